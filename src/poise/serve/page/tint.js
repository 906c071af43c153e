/** How far a reading lies from a trait’s normal, as a colour, a line below the text, and in numbers. */

import { el } from "./dom.js";
import { decimalsOf, known, number } from "./words.js";
import { mean, seriesOf } from "./turn.js";

const LEVELS = [-3, -2, -1, 0, 1, 2, 3];
const FEWEST = 8; // tokens that a scale without a known normal needs

/**
 * Centre and step of a trait’s tint.
 *
 * Normal is what the vector’s answers without the trait read; where nothing says it, that of the page’s unsteered answers.
 *
 * @returns {{centre: number, step: number, decimals: number, own: boolean}|null} Null for too little to say.
 */
export function scaleOf(vector, turns) {
  if (known(vector.normal?.mean) && vector.normal.sd > 0) {
    const { mean: centre, sd: step } = vector.normal;
    return { centre, step, decimals: decimalsOf(step), own: false };
  }
  const plain = turns.filter((turn) => !turn.steer && turn.pieces.length);
  const values = (plain.length ? plain : turns).flatMap((turn) => seriesOf(turn, vector.name).values).filter(known);
  if (values.length < FEWEST) return null;
  const centre = mean(values);
  const step = Math.sqrt(mean(values.map((value) => (value - centre) ** 2))) || 1;
  return { centre, step, decimals: decimalsOf(step), own: true };
}

/** Whole spreads above normal, −3 to 3; 0 for no reading. */
export function levelOf(value, scale) {
  if (!known(value) || !scale) return 0;
  return Math.max(-3, Math.min(3, Math.trunc((value - scale.centre) / scale.step)));
}

/** Class of a level: `a` above normal, `b` below. */
export const toneOf = (level) => (level > 0 ? `a${level}` : level < 0 ? `b${-level}` : "");

/** A reading in words: its value, and its distance from normal in spreads. */
export function said(value, scale) {
  if (!known(value)) return "no reading";
  if (!scale) return number(value, 2, true);
  const spreads = (value - scale.centre) / scale.step;
  return `${number(value, scale.decimals, true)} (${number(spreads, 1, true)} spreads)`;
}

/** The steps of the tint, in numbers. */
export function legend(vector, scale) {
  const sign = (level) => (level === -3 ? "≤ " : level === 3 ? "≥ " : "");
  const at = (level) => `${sign(level)}${number(scale.centre + level * scale.step, scale.decimals, true)}`;
  return el(
    "ol",
    { class: "legend", "aria-label": `Steps of the tint of ${vector.name}` },
    LEVELS.map((level) => el("li", { class: toneOf(level) }, el("span", {}, at(level)))),
  );
}

/** What the steps mean. */
export function legendWords(vector, scale, layer) {
  const where = known(layer ?? vector.watched_layer)
    ? ` at layer ${layer ?? vector.watched_layer} of ${vector.layers}`
    : "";
  if (!scale) return `${vector.name}${where}: nothing says yet what is normal; the steps come with the first answer.`;
  const centre = number(scale.centre, scale.decimals, true);
  const normal = scale.own
    ? `${centre} is the mean of what was said here, as nothing says what is normal`
    : `normal ${centre} (mean of ${vector.normal.n} tokens of answers without the trait)`;
  const step = `Each step is one spread (${number(scale.step, scale.decimals)}).`;
  const signs = "Above normal: orange with a line below, thicker the higher. Below normal: blue, dotted.";
  return `${vector.name}${where}: ${normal}. ${step} ${signs}`;
}
