/** Numbers and short sentences as the whole of Poise writes them: a true minus sign, a dash for what is missing. */

const MISSING = "–";

export const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Least and greatest of what is known; a spread of arguments would not do for long conversations. */
export const extent = (values) =>
  values
    .filter(known)
    .reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

/** A number with a fixed count of decimals; a dash where there is none. */
export function number(value, decimals = 1, signed = false) {
  if (!known(value)) return MISSING;
  const text = Math.abs(value).toFixed(decimals);
  if (Number(text) === 0) return text;
  return value < 0 ? `−${text}` : signed ? `+${text}` : text;
}

/** Round numbers between two: as few as there can be, but at least so many. */
export function ticks(from, to, least = 3) {
  if (!(to > from)) return [];
  for (let power = Math.ceil(Math.log10(to - from)); ; power -= 1) {
    for (const step of [5, 2, 1].map((factor) => factor * 10 ** power)) {
      const [first, last] = [Math.ceil(from / step), Math.floor(to / step)];
      if (last - first + 1 < least) continue;
      return Array.from({ length: last - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
    }
  }
}

/** Decimals that tell round numbers apart. */
export const decimalsOfTicks = (values) => {
  const step = Math.min(...values.slice(1).map((value, i) => value - values[i]), 1);
  return Math.min(6, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
};

/** A share as a percentage: 0.2 is 20 %. */
export const percent = (share, decimals = 0) => (known(share) ? `${number(100 * share, decimals)} %` : MISSING);

/** A share of n with its Wilson 95 % interval: “3 of 5 (60 % [23 %, 88 %])”. */
export function shareOf(k, n) {
  if (n === 0) return "0 of 0";
  const [z2, p] = [1.96 ** 2, k / n];
  const middle = (p + z2 / (2 * n)) / (1 + z2 / n);
  const half = (1.96 / (1 + z2 / n)) * Math.sqrt((p * (1 - p)) / n + z2 / (4 * n * n));
  return `${k} of ${n} (${percent(p)} [${percent(Math.max(0, middle - half))}, ${percent(middle + half)}])`;
}

/** A rate of false alarms, without zeros that say nothing. */
export const rate = (share) => `${Number((100 * share).toPrecision(2))} %`;

/** A figure with its 95 % interval and n. */
export function figure(of, decimals = 1) {
  if (!of || !known(of.value)) return MISSING;
  const interval =
    known(of.low) && known(of.high) ? ` [${number(of.low, decimals)}, ${number(of.high, decimals)}]` : "";
  return `${number(of.value, decimals)}${interval}`;
}

/** What an alarm promises: how often normal answers raise it. */
export function promise({ rate: share, low, high, n_answers: n }) {
  const interval = known(low) && known(high) ? ` (95 % interval ${rate(low)} to ${rate(high)}, n = ${n})` : "";
  return `${rate(share)} of normal answers raise it${interval}`;
}

/** Decimals that a reading deserves: two digits of its spread. */
export const decimalsOf = (spread) =>
  known(spread) && spread > 0 ? Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(spread)))) : 1;

export const count = (n, noun) => `${n.toLocaleString("en-GB")} ${noun}${n === 1 ? "" : "s"}`;

/** What a vector's certificate says of itself, in a word. */
/** The sign of a certificate's verdict. */
export const sign = (certificate) => ({ induced: "✓", indicative: "○" })[certificate.verdict] ?? "✕";

export const verdict = (certificate) => (certificate ? certificate.verdict.replace("-", " ") : "no certificate");

/** What a reading is, for someone who has not read the paper. */
export const READINGS = {
  prompt: "Read at the end of the prompt, before a word is said: what the answer is about to be like.",
  mean: "The mean over the answer’s tokens.",
  peak: "The highest mean of 8 tokens in a row, so that one odd token is no alarm.",
};

const UNSEEN = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f" +
    "\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]",
  "g",
);

/** Text with nothing unseen in it: what controls, hides or reorders is shown by its number, as `[U+202E]`. */
export const plain = (text) =>
  text.replace(UNSEEN, (sign) => `[U+${sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
