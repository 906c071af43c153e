/** A gauge for a trait: prompt, mean and peak of an answer, beside normal and the alarm’s threshold. */

import { draw, el } from "./dom.js";
import { summary } from "./turn.js";
import { decimalsOfTicks, known, number, READINGS, ticks } from "./words.js";

const SPAN = 4; // spreads to either side of normal
const WIDTH = 360;
const ROW = 11; // height of an alarm's name
const LETTER = 6.6; // width of one of its letters, at most

/** Whether an alarm is for replies, which is what gauges and lines show. */
export const ofReply = (alarm) => (alarm.part ?? "reply") === "reply";

/** The alarm of a reading that normal answers raise least often. */
export function alarmOf(vector, reading) {
  const own = (vector.alarms ?? []).filter(
    (alarm) => alarm.reading === reading && !alarm.topic && alarm.layer === vector.watched_layer && ofReply(alarm),
  );
  return own.sort((one, other) => one.rate - other.rate)[0] ?? null;
}

/** The alarms of a vector for replies, one a reading, in the order of the readings. */
export const alarmsOf = (vector) =>
  Object.keys(READINGS)
    .map((reading) => alarmOf(vector, reading))
    .filter(Boolean);

/** The gauge of a turn; with no turn yet, what it will show. */
export function gauge(vector, scale, turn) {
  if (!turn) return [el("p", { class: "small" }, "Readings come with the first answer.")];
  const found = summary(turn, vector.name);
  const mine = turn.alarms.filter((alarm) => alarm.trait === vector.name && ofReply(alarm));
  const raised = (reading) => mine.some((alarm) => alarm.reading === reading);
  const decimals = scale?.decimals ?? 2;
  return [
    el(
      "dl",
      { class: "readings" },
      Object.keys(READINGS).map((reading) =>
        el(
          "div",
          { class: raised(reading) ? "raised" : "", title: READINGS[reading] },
          el("dt", {}, reading),
          el(
            "dd",
            {},
            number(found[reading], decimals, true),
            raised(reading) && el("span", { class: "mark" }, " ▲ alarm"),
          ),
        ),
      ),
      el("div", { title: "Tokens that were read." }, el("dt", {}, "tokens"), el("dd", {}, String(found.tokens))),
    ),
    scale && bar(vector, scale, found, decimals),
    turn.steer && !turn.push[vector.name]
      ? el("p", { class: "small" }, "This answer was steered: what that adds to the readings by itself is left in.")
      : null,
  ];
}

/** Each alarm's name to the right of its line; where lines are close, the left one's is a row above, and its line is longer. */
function alarmNames(alarms, place) {
  const names = [];
  for (const { reading, threshold } of [...alarms].sort((one, other) => other.threshold - one.threshold)) {
    const x = place(threshold);
    const below = names.filter((name) => name.x < x + LETTER * reading.length + 8);
    names.push({ reading, x, row: Math.max(-1, ...below.map(({ row }) => row)) + 1 });
  }
  return names;
}

function bar(vector, scale, found, decimals) {
  const alarms = alarmsOf(vector);
  const spreads = (value) => (value - scale.centre) / scale.step;
  const span = Math.max(SPAN, ...alarms.map(({ threshold }) => 1.2 * Math.abs(spreads(threshold))));
  const place = (value) => WIDTH / 2 + (Math.max(-1, Math.min(1, spreads(value) / span)) * (WIDTH - 40)) / 2;
  const names = alarmNames(alarms, place);
  const top = ROW * (Math.max(1, ...names.map(({ row }) => row + 1)) - 1);
  const [middle, height] = [top + 26, top + 54];
  const parts = [
    draw("line", { x1: 8, x2: WIDTH - 8, y1: middle, y2: middle, class: "axis" }),
    draw("line", { x1: WIDTH / 2, x2: WIDTH / 2, y1: middle - 9, y2: middle + 9, class: "normal" }),
  ];
  const [low, high] = [scale.centre - span * scale.step, scale.centre + span * scale.step];
  const round = ticks(low, high, 4);
  for (const value of round) {
    const x = place(value);
    parts.push(
      draw("line", { x1: x, x2: x, y1: middle, y2: middle + 5, class: "axis" }),
      draw("text", { x, y: height - 1, "text-anchor": "middle" }, number(value, decimalsOfTicks(round), true)),
    );
  }
  if (known(found.mean)) {
    const [x, y] = [place(found.mean), middle];
    parts.push(
      draw("line", { x1: WIDTH / 2, x2: x, y1: y, y2: y, class: spreads(found.mean) > 0 ? "above" : "below" }),
    );
    parts.push(draw("circle", { cx: x, cy: y, r: 5, class: "mean" }));
  }
  if (known(found.peak)) {
    const x = place(found.peak);
    parts.push(draw("path", { d: `M${x} ${middle - 6} l6 11 h-12 z`, class: "peak" }));
  }
  if (known(found.prompt)) {
    const x = place(found.prompt);
    parts.push(draw("path", { d: `M${x} ${middle - 6} l5 6 l-5 6 l-5 -6 z`, class: "peak" }));
  }
  for (const { reading, x, row } of names) {
    const y = top - ROW * row + 9;
    parts.push(
      draw("line", { x1: x, x2: x, y1: y - 8, y2: middle + 10, class: "threshold" }),
      draw("text", { x: x + 4, y, class: "alarm-name" }, reading),
    );
  }
  const words =
    `${vector.name}: prompt ${number(found.prompt, decimals, true)}, mean ${number(found.mean, decimals, true)}, ` +
    `peak ${number(found.peak, decimals, true)}, normal ${number(scale.centre, decimals, true)}` +
    alarms.map(({ reading, threshold }) => `, alarm for the ${reading} at ${number(threshold, decimals, true)}`).join("");
  return draw("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", class: "gauge", "aria-label": words }, parts);
}
