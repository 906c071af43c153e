/** A dial for each vector: how far to turn its trait, the range that its certificate covers, and a warning beyond. */

import { draw, el, put } from "./dom.js";
import { change, state } from "./state.js";
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
function settingOf(vector, value = state.dials[vector.name] ?? 0) {
  if (!value) return "off";
  const dose = asDose(vector, value);
  const alpha = inDoses(vector) ? value / vector.dose_of_one : value;
  return [known(dose) ? `dose ${percent(dose)}` : null, `α ${number(alpha, 2, true)}`].filter(Boolean).join(", ");
}

/** What steers an answer, in words: “impolite at dose 20 %”. */
export function steeredBy({ steer }, vectors) {
  if (!steer) return "not steered";
  const words = steer.terms.map(({ vector: name, dose, coef }) => {
    const vector = vectors.find((one) => one.name === name);
    const of = dose ?? (vector && known(vector.dose_of_one) ? coef * vector.dose_of_one : null);
    return known(of) ? `${name} at dose ${percent(of)}` : `${name} at α ${number(coef, 2, true)}`;
  });
  return words.join(", ");
}

/** What is to be said of a value: a sentence, or nothing. */
function warning(vector, value = state.dials[vector.name] ?? 0) {
  const { certificate, name } = vector;
  if (!value) return "";
  if (certificate && certificate.verdict === "not-induced") {
    return `${name} is certified as not induced on this model: steering with it does something else, or nothing.`;
  }
  const dose = asDose(vector, value);
  const range = usable(vector);
  if (range && known(dose)) {
    const [low, high] = range;
    if (dose >= low - vector.dial.rounding && dose <= high + vector.dial.rounding) return "";
    const covered = `${percent(low)} to ${percent(high)}`;
    return `Beyond ${covered}, the doses at which the certificate saw coherent text: expect broken text.`;
  }
  const strong = known(dose) && Math.abs(dose) > vector.dial.risky ? " This is strong: text usually breaks near 100 %." : "";
  const where = `layer ${vector.default_layer}`;
  return `Nobody has measured what this vector does here: it has no certificate for ${where}.${strong}`;
}

/** What is to be said of several dials together: a sentence, or nothing. */
export function warningOfAll(vectors) {
  const doses = vectors
    .map((vector) => ({ vector, dose: Math.abs(asDose(vector, state.dials[vector.name] ?? 0) ?? 0) }))
    .filter(({ dose }) => dose);
  const total = doses.reduce((sum, { dose }) => sum + dose, 0);
  if (doses.length < 2 || total <= doses[0].vector.dial.risky + doses[0].vector.dial.rounding) return "";
  const sum = doses.map(({ vector, dose }) => `${percent(dose)} of ${vector.name}`).join(" + ");
  return `Warning: The dials come to a dose of ${percent(total)} in all (${sum}): text usually breaks near 100 %, and certificates cover one vector at one layer.`;
}

/** The dial of a vector. */
export function dial(vector) {
  const id = `dial-${vector.name}`;
  const warn = el("p", { class: "caution", id: `${id}-warning` });
  const shown = el("output", { class: "value", for: id });
  const slider = el("input", { type: "range", id, "aria-describedby": `${id}-warning ${id}-range` });
  const exact = el("input", { type: "number", class: "exact", "aria-label": `${vector.name}: exact value` });
  const unit = el("span", { class: "unit" });
  const marks = el("div", { class: "marks", "aria-hidden": "true" });
  const range = el("p", { class: "small", id: `${id}-range` });
  const off = el("button", { type: "button", class: "quiet", "aria-label": `Turn ${vector.name} off` }, "Off");

  const set = (value) => change({ dials: { ...state.dials, [vector.name]: value } });
  const show = () => {
    const value = state.dials[vector.name] ?? 0;
    const most = Math.max(reach(vector), Math.abs(value));
    const scale = inDoses(vector) ? 100 : 1;
    Object.assign(slider, { min: -most, max: most, step: inDoses(vector) ? 0.01 : 0.05, value });
    slider.setAttribute("aria-valuetext", [settingOf(vector), warning(vector)].filter(Boolean).join(". "));
    if (document.activeElement !== exact) exact.value = String(Number((scale * value).toFixed(2)));
    exact.step = inDoses(vector) ? "1" : "0.1";
    unit.textContent = inDoses(vector) ? "%" : "α";
    shown.textContent = settingOf(vector);
    warn.textContent = warning(vector) && `Warning: ${warning(vector)}`;
    off.disabled = !value;
    put(marks, markings(vector, most));
    range.textContent = rangeWords(vector);
  };
  slider.addEventListener("input", () => set(Number(Number(slider.value).toFixed(4))));
  exact.addEventListener("input", () => {
    const value = Number(exact.value) / (inDoses(vector) ? 100 : 1);
    if (exact.value !== "" && Number.isFinite(value)) set(value);
  });
  off.addEventListener("click", () => {
    set(0);
    slider.focus();
  });
  show();
  const node = el(
    "div",
    { class: "dial" },
    el(
      "div",
      { class: "line" },
      el("span", {}, el("label", { for: id }, "Dial"), " ", shown),
      el("span", { class: "set" }, exact, unit, off),
    ),
    el("div", { class: "track" }, marks, slider),
    range,
    warn,
  );
  return { node, show };
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
