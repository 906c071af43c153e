/** A dial for each vector: how far to turn its trait, the range that its certificate covers, and a warning beyond. */

import { draw, el, put } from "./dom.js";
import { alarmOf } from "./gauges.js";
import { levelRange, shapeForm } from "./shapes.js";
import { change, state } from "./state.js";
import { OPERATIONS, scheduleWords, shapeOf, termsOf, termWords } from "./terms.js";
import { known, number, percent } from "./words.js";

/** Doses at which the certificate saw coherent text, at the layer that the dial works at; null where it says nothing. */
function usable({ certificate, default_layer: layer }) {
  return certificate && certificate.layer === layer ? certificate.usable_doses : null;
}

const inDoses = (vector) => state.unit === "dose" && known(vector.dose_of_one) && vector.dose_of_one > 0;
const asDose = (vector, value) =>
  inDoses(vector) ? value : known(vector.dose_of_one) ? value * vector.dose_of_one : null;

/** How far the dial goes to either side, in its own unit. */
function reach(vector) {
  const [low, high] = usable(vector) ?? vector.dial.range;
  const dose = Math.min(vector.dial.most, Math.ceil(16 * Math.max(-low, high, 0.1)) / 10);
  if (inDoses(vector)) return dose;
  return known(vector.dose_of_one) && vector.dose_of_one > 0 ? Math.ceil(dose / vector.dose_of_one) : 3;
}

/** What a value is, in words: “dose 20 %, α 1.99”. */
function settingOf(vector) {
  const [term] = termsOf(vector, state);
  if (!term) return "off";
  if (term.operation) return `${termWords(term, [vector]).slice(vector.name.length + 1)}`;
  const value = state.dials[vector.name];
  const dose = asDose(vector, value);
  const alpha = inDoses(vector) ? value / vector.dose_of_one : value;
  const strength = [known(dose) ? `dose ${percent(dose)}` : null, `α ${number(alpha, 2, true)}`].filter(Boolean).join(", ");
  return strength + scheduleWords(term);
}

/** What steers an answer, in words: “impolite at dose 20 %”. */
export const steeredBy = ({ steer }, vectors) =>
  steer ? steer.terms.map((term) => termWords(term, vectors)).join(", ") : "not steered";

/** What the dials do together, in words; nothing where all are off. */
export function dialsInWords(vectors) {
  const terms = vectors.flatMap((vector) => termsOf(vector, state));
  return terms.map((term) => termWords(term, vectors)).join(", ");
}

/** What is to be said of a value: a sentence, or nothing. */
function warning(vector) {
  const { certificate, name } = vector;
  const [value, shape] = [state.dials[vector.name] ?? 0, shapeOf(vector, state)];
  if (termsOf(vector, state).length === 0) return "";
  if (certificate && certificate.verdict === "not-induced") {
    return `${name} is certified as not induced on this model: steering with it does something else, or nothing.`;
  }
  if (shape.operation !== "add") return "";
  const dose = asDose(vector, value);
  const range = known(shape.layer) && shape.layer !== vector.default_layer ? null : usable(vector);
  if (range && known(dose)) {
    const [low, high] = range;
    if (dose >= low - vector.dial.rounding && dose <= high + vector.dial.rounding) return "";
    const covered = `${percent(low)} to ${percent(high)}`;
    return `Beyond ${covered}, the doses at which the certificate saw coherent text: expect broken text.`;
  }
  const strong = known(dose) && Math.abs(dose) > vector.dial.risky ? " This is strong: text usually breaks near 100 %." : "";
  const where = `layer ${shape.layer ?? vector.default_layer}`;
  return `Nobody has measured what this vector does here: it has no certificate for ${where}.${strong}`;
}

/** What is to be said of several dials together: a sentence, or nothing. */
export function warningOfAll(vectors) {
  const doses = vectors
    .filter((vector) => shapeOf(vector, state).operation === "add")
    .map((vector) => ({ vector, dose: Math.abs(asDose(vector, state.dials[vector.name] ?? 0) ?? 0) }))
    .filter(({ dose }) => dose);
  const total = doses.reduce((sum, { dose }) => sum + dose, 0);
  if (doses.length < 2 || total <= doses[0].vector.dial.risky + doses[0].vector.dial.rounding) return "";
  const sum = doses.map(({ vector, dose }) => `${percent(dose)} of ${vector.name}`).join(" + ");
  return `Warning: The dials come to a dose of ${percent(total)} in all (${sum}): text usually breaks near 100 %, and certificates cover one vector at one layer.`;
}

/** How a dial turns: by dose, by α, or, where it caps, floors or clamps, by level. */
function gearOf(vector) {
  const { operation, level } = shapeOf(vector, state);
  if (OPERATIONS[operation].leveled) {
    const [least, most, step] = levelRange(vector);
    const set = (value) => setShape(vector, { level: value });
    const value = level === "alarm" ? vector.alarms?.[0]?.threshold : level;
    return { value: value ?? (least + most) / 2, least, most, step, exactStep: step, scale: 1, unit: "", set };
  }
  const value = state.dials[vector.name] ?? 0;
  const most = Math.max(reach(vector), Math.abs(value));
  const [step, exactStep, scale, unit] = inDoses(vector) ? [0.01, "1", 100, "%"] : [0.05, "0.1", 1, "α"];
  const set = (turned) => change({ dials: { ...state.dials, [vector.name]: turned } });
  return { value, least: -most, most, step, exactStep, scale, unit, set };
}

function setShape(vector, fields) {
  change({ shapes: { ...state.shapes, [vector.name]: { ...shapeOf(vector, state), ...fields } } });
}

/** The dial of a vector. */
export function dial(vector, vectors = [vector]) {
  const id = `dial-${vector.name}`;
  const warn = el("p", { class: "caution", id: `${id}-warning` });
  const shown = el("output", { class: "value", for: id });
  const slider = el("input", { type: "range", id, "aria-describedby": `${id}-warning ${id}-range` });
  const exact = el("input", { type: "number", class: "exact", "aria-label": `${vector.name}: exact value` });
  const unit = el("span", { class: "unit" });
  const marks = el("div", { class: "marks", "aria-hidden": "true" });
  const range = el("p", { class: "small", id: `${id}-range` });
  const off = el("button", { type: "button", class: "quiet", "aria-label": `Turn ${vector.name} off` }, "Off");
  const form = shapeForm(vector, vectors, (fields) => setShape(vector, fields));
  const track = el("div", { class: "track" }, marks, slider);

  const show = () => {
    const gear = gearOf(vector);
    const { operation } = shapeOf(vector, state);
    const isOff = termsOf(vector, state).length === 0;
    Object.assign(slider, { min: gear.least, max: gear.most, step: gear.step, value: gear.value });
    slider.setAttribute("aria-valuetext", [settingOf(vector), warning(vector)].filter(Boolean).join(". "));
    if (document.activeElement !== exact) exact.value = isOff && gear.scale === 1 && !gear.unit ? "" : String(Number((gear.scale * gear.value).toFixed(2)));
    exact.step = gear.exactStep;
    unit.textContent = gear.unit;
    shown.textContent = settingOf(vector);
    warn.textContent = warning(vector) && `Warning: ${warning(vector)}`;
    off.disabled = isOff;
    track.hidden = exact.hidden = operation === "project_out";
    put(marks, operation === "add" ? markings(vector, gear.most) : levelMarkings(vector, gear));
    range.textContent = operation === "add" ? rangeWords(vector) : levelWords(vector, operation);
    form.show();
  };
  slider.addEventListener("input", () => gearOf(vector).set(Number(Number(slider.value).toFixed(4))));
  exact.addEventListener("input", () => {
    const value = Number(exact.value) / gearOf(vector).scale;
    if (exact.value !== "" && Number.isFinite(value)) gearOf(vector).set(value);
  });
  off.addEventListener("click", () => {
    if (shapeOf(vector, state).operation === "add") gearOf(vector).set(0);
    else setShape(vector, { operation: "add", level: null });
    slider.focus();
  });
  show();
  const name = el("span", {}, el("label", { for: id }, "Dial"), " ", shown);
  const line = el("div", { class: "line" }, name, el("span", { class: "set" }, exact, unit, off));
  return { node: el("div", { class: "dial" }, line, track, range, warn, form.node), show };
}

function levelWords(vector, operation) {
  if (operation === "project_out") return "What of each activation lies along the vector is taken out.";
  const normal = vector.normal ? ` Normal is ${number(vector.normal.mean, 2, true)}, the line in the middle.` : "";
  return `A level of the projection, as readings are.${normal}`;
}

/** Normal and the alarm’s threshold behind a slider of levels. */
function levelMarkings(vector, { least, most }) {
  const at = (value) => (100 * (value - least)) / (most - least);
  const lines = [draw("line", { x1: "0", x2: "100", y1: "8", y2: "8", class: "rail" })];
  const mark = (value, kind) =>
    known(value) && lines.push(draw("line", { x1: at(value), x2: at(value), y1: "0", y2: "16", class: kind }));
  mark(vector.normal?.mean, "zero");
  mark(alarmOf(vector, "mean")?.threshold, "threshold");
  return draw("svg", { viewBox: "0 0 100 16", preserveAspectRatio: "none" }, lines);
}

function rangeWords(vector) {
  const range = usable(vector);
  const { certificate } = vector;
  const induced = !certificate || certificate.verdict === "induced";
  const verdict = induced ? "" : ` Its certificate says: ${certificate.verdict.replace("-", " ")}.`;
  if (!certificate) return "No range is marked: no certificate says which doses are usable.";
  if (!range) {
    const layers = `its certificate is for layer ${certificate.layer}, and the dial turns layer ${vector.default_layer}`;
    return `No range is marked: ${layers}.${verdict}`;
  }
  const [low, high] = inDoses(vector) ? range : range.map((dose) => dose / vector.dose_of_one);
  const [from, to] = inDoses(vector) ? [percent(low), percent(high)] : [number(low, 2, true), number(high, 2, true)];
  return `Hatched: ${induced ? "certified range" : "doses with coherent text"}, ${from} to ${to}.${verdict}`;
}

/** The certified range, hatched, and 0, behind the slider. */
function markings(vector, most) {
  const range = usable(vector);
  const at = (dose) => {
    const value = inDoses(vector) ? dose : dose / vector.dose_of_one;
    return Math.max(0, Math.min(100, 50 + (50 * value) / most));
  };
  const parts = [draw("line", { x1: "0", x2: "100", y1: "8", y2: "8", class: "rail" })];
  if (range) {
    const [from, to] = range.map(at);
    parts.push(draw("rect", { x: from, width: Math.max(0.5, to - from), y: "2", height: "12", class: "usable" }));
    for (let x = from + 1; x < to; x += 1.5)
      parts.push(draw("line", { x1: x, x2: x, y1: "2", y2: "14", class: "hatch" }));
  }
  parts.push(draw("line", { x1: "50", x2: "50", y1: "0", y2: "16", class: "zero" }));
  return draw("svg", { viewBox: "0 0 100 16", preserveAspectRatio: "none" }, parts);
}

/** Dials in another unit, as far as they can be told in it. */
export function converted(vectors, unit) {
  if (unit === state.unit) return state.dials;
  return Object.fromEntries(
    Object.entries(state.dials).map(([name, value]) => {
      const one = vectors.find((vector) => vector.name === name)?.dose_of_one;
      if (!known(one) || one <= 0) return [name, value];
      return [name, Number((unit === "dose" ? value * one : value / one).toFixed(unit === "dose" ? 4 : 3))];
    }),
  );
}
