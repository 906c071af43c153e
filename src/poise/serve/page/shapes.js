/** How a dial works: adding, capping, holding; at which layer, on which tokens, on which condition. Folded below the dial. */

import { el } from "./dom.js";
import { alarmOf } from "./gauges.js";
import { state } from "./state.js";
import { OPERATIONS, PLAIN, shapeOf, termsOf } from "./terms.js";
import { known } from "./words.js";

const SPREADS = 4; // to either side of normal

/** Least and greatest level of a vector’s dial, and its step: around what is normal, with the alarm in sight. */
export function levelRange(vector) {
  const centre = vector.normal?.mean ?? 0;
  const norm = vector.norm?.[vector.default_layer];
  const spread = vector.normal?.sd > 0 ? vector.normal.sd : known(norm) && norm > 0 ? norm / SPREADS : 1;
  const alarm = alarmOf(vector, "mean")?.threshold ?? centre;
  const level = shapeOf(vector, state).level;
  const reach = Math.max(SPREADS * spread, 1.2 * Math.abs(alarm - centre), Math.abs((known(level) ? level : centre) - centre));
  const step = 10 ** Math.floor(Math.log10(reach / 50));
  const round = (value) => Number((Math.round(value / step) * step).toPrecision(6));
  return [round(centre - reach), round(centre + reach), step];
}

const option = (value, words) => el("option", { value }, words);
const labelled = (words, control, title) => el("label", { title }, words, " ", control);

function numberBox(name, least) {
  return el("input", { type: "number", step: "1", min: String(least), "aria-label": name, class: "brief" });
}

/**
 * The form of a dial.
 *
 * @param {object} vector Whose dial it is.
 * @param {object[]} vectors Those that a condition may read.
 * @param {(fields: object) => void} set Takes what is changed.
 */
export function shapeForm(vector, vectors, set) {
  const name = vector.name;
  const controls = controlsOf(vector, vectors);
  const { operation, alarm, layer, first, last, phase, part, whose, sign, value } = controls;
  const summary = el("summary", {}, "How and when");
  const node = el(
    "details",
    { class: "shape" },
    summary,
    labelled("It works as", operation),
    el("label", { class: "check" }, alarm, " at the threshold of its alarm"),
    labelled("Layer", layer, `Empty is layer ${vector.default_layer}`),
    el("fieldset", {}, el("legend", {}, "Tokens of the answer"), labelled("from", first), labelled("to", last)),
    labelled("Where", phase),
    labelled("Part", part, "Only of models that think before they reply"),
    el("fieldset", {}, el("legend", {}, "Only if a token reads"), whose, sign, value),
  );
  const show = () => {
    const shape = shapeOf(vector, state);
    operation.value = shape.operation;
    alarm.checked = shape.level === "alarm";
    alarm.parentElement.hidden = !OPERATIONS[shape.operation].leveled || !alarmOf(vector, "mean");
    for (const [box, field] of [[layer, "layer"], [first, "first"], [last, "last"]]) {
      if (document.activeElement !== box) box.value = shape[field] ?? "";
    }
    [phase.value, part.value] = [shape.phase, shape.part];
    [whose.value, sign.value] = [shape.when?.vector ?? "", shape.when?.above === false ? "<" : ">"];
    if (document.activeElement !== value) value.value = shape.when?.value ?? "";
    sign.disabled = value.disabled = !whose.value;
    const changed = Object.keys(PLAIN).some((field) => shape[field] !== PLAIN[field]);
    summary.textContent = changed ? "How and when (changed)" : "How and when";
    summary.classList.toggle("raised", changed && termsOf(vector, state).length > 0);
  };
  operation.addEventListener("change", () => set({ operation: operation.value, level: startingLevel(vector, operation.value) }));
  alarm.addEventListener("change", () => set({ level: alarm.checked ? "alarm" : startingLevel(vector, operation.value) }));
  for (const [box, field] of [[layer, "layer"], [first, "first"], [last, "last"]]) {
    box.addEventListener("input", () => box.checkValidity() && set({ [field]: box.value === "" ? null : Number(box.value) }));
  }
  phase.addEventListener("change", () => set({ phase: phase.value }));
  part.addEventListener("change", () => set({ part: part.value }));
  const condition = () =>
    set({ when: whose.value ? { vector: whose.value, value: value.value === "" ? null : Number(value.value), above: sign.value === ">" } : null });
  for (const control of [whose, sign]) control.addEventListener("change", condition);
  value.addEventListener("input", condition);
  node.setAttribute("aria-label", `${name}: how and when its dial works`);
  return { node, show };
}

function controlsOf({ name, layers, default_layer: standard }, vectors) {
  const select = (label, options) => el("select", { "aria-label": `${name}: ${label}` }, options);
  const layer = numberBox(`${name}: layer`, 0);
  Object.assign(layer, { max: String(layers - 1), placeholder: String(standard) });
  return {
    operation: select("it works as", Object.entries(OPERATIONS).map(([value, { words }]) => option(value, words))),
    alarm: el("input", { type: "checkbox" }),
    layer,
    first: numberBox(`${name}: from token`, 1),
    last: numberBox(`${name}: to token`, 1),
    phase: select("where", [option("response", "in the answer"), option("prompt", "on the prompt"), option("all", "on both")]),
    part: select("part", [option("reply", "reply"), option("thought", "thought"), option("both", "both")]),
    whose: select("condition on", [option("", "anything"), ...vectors.map((vector) => option(vector.name, vector.name))]),
    sign: select("above or below", [option(">", "above"), option("<", "below")]),
    value: el("input", { type: "number", step: "any", class: "brief", "aria-label": `${name}: value of the condition` }),
  };
}

/** Where a cap, floor or clamp begins: at normal, so that it does something. */
function startingLevel(vector, operation) {
  if (!OPERATIONS[operation].leveled) return null;
  return Number((vector.normal?.mean ?? 0).toFixed(2));
}
