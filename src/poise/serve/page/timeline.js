/** A trait over the whole conversation: every token, the mean of 8 in a row, and the thresholds of the alarms. */

import { draw, el } from "./dom.js";
import { alarmsOf, ofReply } from "./gauges.js";
import { placeOf, promptOf, seriesOf, summary } from "./turn.js";
import { count, decimalsOfTicks, extent, known, number, promise, ticks } from "./words.js";

const [WIDTH, HEIGHT] = [360, 150];
const [LEFT, TOP, BOTTOM] = [40, 14, 18];
const LETTER = 6.2; // width of a letter of an alarm's name, at most

/** The drawing, with its words; nothing before the first token. */
export function timeline(vector, scale, turns) {
  const answers = turns.map((turn) => seriesOf(turn, vector.name));
  const total = answers.reduce((sum, { values }) => sum + values.length, 0);
  if (total === 0) return [];
  const alarms = alarmsOf(vector);
  const decimals = scale?.decimals ?? 2;
  const names = alarms.map(({ reading, threshold }) => `${reading} ${number(threshold, decimals, true)}`);
  const axes = axesOf(
    scale,
    alarms,
    answers.flatMap(({ values }) => values),
    total,
    WIDTH - 8 - (names.length && 6 + LETTER * Math.max(...names.map((name) => name.length))),
  );
  const parts = [...background(axes, scale), ...thresholds(axes, alarms, names)];
  let start = 0;
  answers.forEach((series, i) => {
    parts.push(...answerMarks(axes, turns[i], i, start, series, vector));
    start += series.values.length;
  });
  return [
    el(
      "figure",
      { class: "timeline" },
      draw(
        "svg",
        {
          viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
          role: "img",
          "aria-label": wordsOf(vector, turns, total, alarms, decimals),
        },
        parts,
      ),
      el(
        "figcaption",
        {},
        alarms.length
          ? promises(alarms).map((words) => el("span", { class: "promise" }, words))
          : `No alarm is set${vector.alarms?.length ? " on replies" : ""}; poise calibrate sets one.`,
      ),
    ),
  ];
}

function axesOf(scale, alarms, values, total, right) {
  const shown = [
    ...values,
    ...alarms.map(({ threshold }) => threshold),
    scale && scale.centre - 2 * scale.step,
    scale && scale.centre + 2 * scale.step,
  ];
  const [low, high] = extent(shown);
  const margin = 0.06 * (high - low) || 1;
  const [from, to] = [low - margin, high + margin];
  return {
    from,
    to,
    right,
    x: (i) => LEFT + ((i + 0.5) / total) * (right - LEFT),
    y: (value) => TOP + ((to - value) / (to - from)) * (HEIGHT - TOP - BOTTOM),
  };
}

function background({ from, to, right, y }, scale) {
  const bottom = HEIGHT - BOTTOM;
  const round = ticks(from, to);
  const numbered = round.flatMap((value) => [
    draw("line", { x1: LEFT - 3, x2: LEFT, y1: y(value), y2: y(value), class: "axis" }),
    draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, number(value, decimalsOfTicks(round), true)),
  ]);
  const frame = draw("line", { x1: LEFT, x2: right, y1: bottom, y2: bottom, class: "axis" });
  if (!scale) return [frame, ...numbered];
  const [top, low, middle] = [scale.centre + scale.step, scale.centre - scale.step, scale.centre].map(y);
  return [
    draw("rect", { x: LEFT, width: right - LEFT, y: top, height: Math.max(0, low - top), class: "band" }),
    draw("line", { x1: LEFT, x2: right, y1: middle, y2: middle, class: "normal" }),
    frame,
    ...numbered,
  ];
}

const DASHES = { prompt: "1 3", mean: "8 3", peak: "5 3" };

const LINE = 11; // height of a name

/** A line for each alarm, with its name in the margin at its end: clear of the curve, and of the other names. */
function thresholds({ right, y }, alarms, names) {
  const lines = alarms
    .map(({ reading, threshold }, i) => ({ reading, name: names[i], at: y(threshold) }))
    .sort((one, other) => one.at - other.at);
  let last = -Infinity;
  for (const line of lines) line.place = last = Math.max(line.at, last + LINE);
  let next = HEIGHT - BOTTOM + LINE;
  for (const line of lines.toReversed()) line.place = next = Math.min(line.place, next - LINE);
  return lines.flatMap(({ reading, name, at, place }) => [
    draw("line", { x1: LEFT, x2: right, y1: at, y2: at, class: "threshold", "stroke-dasharray": DASHES[reading] }),
    draw("line", { x1: right, x2: right + 8, y1: at, y2: place, class: "leader" }),
    draw("text", { x: right + 11, y: place + 4, class: "named" }, name),
  ]);
}

/** What the alarms promise: one sentence for those that promise the same. */
function promises(alarms) {
  const readings = new Map();
  for (const alarm of alarms) readings.set(promise(alarm), [...(readings.get(promise(alarm)) ?? []), alarm.reading]);
  return [...readings].map(([words, names]) => `Dashed: alarm of ${names.join(", ")}. ${words}${names.length > 1 ? ", each" : ""}.`);
}

function answerMarks({ x, y }, turn, i, start, { values, line }, vector) {
  const parts = [];
  const bottom = HEIGHT - BOTTOM;
  if (i > 0)
    parts.push(draw("line", { x1: x(start - 0.5), x2: x(start - 0.5), y1: TOP, y2: bottom, class: "between" }));
  if (values.length)
    parts.push(
      draw("text", { x: x(start + (values.length - 1) / 2), y: HEIGHT - 5, "text-anchor": "middle" }, i ? String(i + 1) : "answer 1"),
    );
  const dots = values.map((value, k) => (known(value) ? `M${x(start + k).toFixed(1)} ${y(value).toFixed(1)}h.01` : ""));
  parts.push(draw("path", { d: dots.join(""), class: "token" }));
  for (const points of runs(line)) {
    parts.push(
      draw("polyline", {
        points: points.map(([k, value]) => `${x(start + k).toFixed(1)},${y(value).toFixed(1)}`).join(" "),
        class: "line",
      }),
    );
  }
  const prompt = promptOf(turn, vector.name);
  if (known(prompt) && values.length) {
    const [cx, cy] = [x(start - 0.5), y(prompt)];
    parts.push(draw("path", { d: `M${cx} ${cy - 4} l4 4 l-4 4 l-4 -4 z`, class: "prompt" }));
  }
  for (const alarm of turn.alarms.filter((one) => one.trait === vector.name && ofReply(one))) {
    const at = x(start + Math.max(0, Math.min(values.length - 1, placeOf(turn, alarm.token ?? Infinity))));
    parts.push(
      draw("line", { x1: at, x2: at, y1: 10, y2: bottom, class: "raised" }),
      draw("path", { d: `M${at} 1 l5 9 h-10 z`, class: "alarm" }),
    );
  }
  return parts;
}

/** Stretches without a gap. */
function runs(line) {
  const found = [[]];
  line.forEach((value, k) => (known(value) ? found.at(-1).push([k, value]) : found.push([])));
  return found.filter((points) => points.length);
}

function wordsOf(vector, turns, total, alarms, decimals) {
  const means = turns.map((turn) => number(summary(turn, vector.name).mean, decimals, true));
  const raised = turns.flatMap((turn) => turn.alarms).filter((one) => one.trait === vector.name).length;
  const lines = alarms.map(({ reading, threshold }) => `${reading} ${number(threshold, decimals, true)}`).join(", ");
  return (
    `${vector.name} over ${count(turns.length, "answer")}, ${count(total, "token")}. ` +
    `Means: ${means.join(", ")}. ${lines ? `Alarm thresholds: ${lines}.` : "No alarm is set."} ${count(raised, "alarm")}.`
  );
}
