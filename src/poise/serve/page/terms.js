/** A dial as a term of the steering: what it does, how strongly, and when. Knows nothing of the page. */

import { known, number, percent } from "./words.js";

/** What a dial does unless its card says otherwise; `first` and `last` count tokens from 1, both included. */
export const PLAIN = { operation: "add", level: null, layer: null, first: null, last: null, phase: "response", part: "reply", when: null };

/** Operations of a dial: those with a level take one in units of projections. */
export const OPERATIONS = {
  add: { words: "add, or take away", leveled: false },
  cap: { words: "cap: no higher than", leveled: true },
  floor: { words: "floor: no lower than", leveled: true },
  clamp: { words: "clamp: hold at", leveled: true },
  project_out: { words: "project out", leveled: false },
};

export const shapeOf = (vector, { shapes }) => ({ ...PLAIN, ...shapes[vector.name] });

/** The terms of a vector’s dial: one, or none where it does nothing. */
export function termsOf(vector, state) {
  const shape = shapeOf(vector, state);
  const strength = strengthOf(vector, state, shape);
  if (!strength) return [];
  const { operation, layer, first, last, phase, part, when } = shape;
  return [
    {
      vector: vector.name,
      ...(operation === "add" ? {} : { operation }),
      ...strength,
      ...(known(layer) ? { layers: [layer] } : {}),
      ...(phase === "response" ? {} : { phase }),
      ...(part === "reply" ? {} : { part }),
      ...(known(first) || known(last) ? { tokens: [known(first) ? first - 1 : 0, known(last) ? last : null] } : {}),
      ...(when?.vector && (known(when.value) || when.value === "alarm") ? { when } : {}),
    },
  ];
}

function strengthOf(vector, { dials, unit }, { operation, level }) {
  if (operation === "project_out") return {};
  if (OPERATIONS[operation].leveled) return known(level) || level === "alarm" ? { level } : null;
  const value = dials[vector.name];
  return value ? { [unit === "dose" && vector.dose_of_one ? "dose" : "coef"]: value } : null;
}

/** A term in words: “impolite at dose 20 %, tokens 1 to 20”. */
export function termWords(term, vectors) {
  return `${term.vector} ${strengthWords(term, vectors)}${scheduleWords(term)}`;
}

function strengthWords({ vector: name, operation = "add", dose, coef, level }, vectors) {
  const at = level === "alarm" ? "its alarm’s threshold" : number(level, 2, true);
  if (operation === "cap") return `capped at ${at}`;
  if (operation === "floor") return `kept at ${at} or above`;
  if (operation === "clamp") return `held at ${at}`;
  if (operation === "project_out") return "projected out";
  const one = vectors.find((vector) => vector.name === name)?.dose_of_one;
  const of = dose ?? (known(one) ? coef * one : null);
  return known(of) ? `at dose ${percent(of)}` : `at α ${number(coef, 2, true)}`;
}

/** When a term is at work; nothing where that is the whole reply. */
export function scheduleWords({ layers, phase = "response", part = "reply", tokens, when }) {
  const [first, last] = tokens ?? [0, null];
  const span = !tokens ? null : last === null ? `after token ${first}` : first ? `tokens ${first + 1} to ${last}` : `first ${last} tokens`;
  const condition = when && `if ${when.vector} ${when.above === false ? "<" : ">"} ${when.value === "alarm" ? "its alarm’s threshold" : number(when.value, 2, true)}`;
  const words = [
    layers && `layer ${Array.isArray(layers) ? layers.join(", ") : layers}`,
    { prompt: "on the prompt", all: "on all tokens" }[phase],
    { thought: "in the thought", both: "in thought and reply" }[part],
    span,
    condition,
  ].filter(Boolean);
  return words.length ? `, ${words.join(", ")}` : "";
}
