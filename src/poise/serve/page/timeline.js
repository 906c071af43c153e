/** A trait over the whole conversation: every token, the mean of 8 in a row, and the threshold of the alarm for it. */

import { draw, el } from "./dom.js";
import { alarmOf, ofReply } from "./gauges.js";
import { placeOf, promptOf, seriesOf, summary } from "./turn.js";
import { count, extent, known, number, promise } from "./words.js";

const [WIDTH, HEIGHT] = [360, 132];
const [LEFT, RIGHT, TOP, BOTTOM] = [40, 8, 14, 18];

/** The drawing, with its words; nothing before the first token. */
export function timeline(vector, scale, turns) {
  const answers = turns.map((turn) => seriesOf(turn, vector.name));
  const total = answers.reduce((sum, { values }) => sum + values.length, 0);
  if (total === 0) return [];
  const alarm = alarmOf(vector, "peak");
  const axes = axesOf(
    scale,
    alarm,
    answers.flatMap(({ values }) => values),
    total,
  );
  const decimals = scale?.decimals ?? 2;
  const parts = [...background(axes, scale, decimals), ...(alarm ? threshold(axes, alarm, decimals) : [])];
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
          "aria-label": wordsOf(vector, turns, total, alarm, decimals),
        },
        parts,
      ),
      el(
        "figcaption",
        {},
        alarm ? `Alarm of the peak: ${promise(alarm)}.` : `No alarm is set${vector.alarms?.length ? " on replies" : ""}; poise calibrate sets one.`,
      ),
    ),
  ];
}

function axesOf(scale, alarm, values, total) {
  const shown = [
    ...values,
    alarm?.threshold,
    scale && scale.centre - 2 * scale.step,
    scale && scale.centre + 2 * scale.step,
  ];
  const [low, high] = extent(shown);
  const margin = 0.06 * (high - low) || 1;
  const [from, to] = [low - margin, high + margin];
  return {
    from,
    to,
    x: (i) => LEFT + ((i + 0.5) / total) * (WIDTH - LEFT - RIGHT),
    y: (value) => TOP + ((to - value) / (to - from)) * (HEIGHT - TOP - BOTTOM),
  };
}

function background({ y }, scale, decimals) {
  const bottom = HEIGHT - BOTTOM;
  const frame = draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: bottom, y2: bottom, class: "axis" });
  if (!scale) return [frame];
  const [top, low, middle] = [scale.centre + scale.step, scale.centre - scale.step, scale.centre].map(y);
  return [
    draw("rect", { x: LEFT, width: WIDTH - LEFT - RIGHT, y: top, height: Math.max(0, low - top), class: "band" }),
    draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: middle, y2: middle, class: "normal" }),
    draw("text", { x: LEFT - 4, y: middle + 4, "text-anchor": "end" }, number(scale.centre, decimals, true)),
    frame,
  ];
}

function threshold({ y }, alarm, decimals) {
  const at = y(alarm.threshold);
  return [
    draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at, class: "threshold" }),
    draw("text", { x: LEFT + 3, y: at - 5, class: "named" }, `alarm ${number(alarm.threshold, decimals, true)}`),
  ];
}

function answerMarks({ x, y }, turn, i, start, { values, line }, vector) {
  const parts = [];
  const bottom = HEIGHT - BOTTOM;
  if (i > 0)
    parts.push(draw("line", { x1: x(start - 0.5), x2: x(start - 0.5), y1: TOP, y2: bottom, class: "between" }));
  if (values.length)
    parts.push(
      draw("text", { x: x(start + (values.length - 1) / 2), y: HEIGHT - 5, "text-anchor": "middle" }, String(i + 1)),
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

function wordsOf(vector, turns, total, alarm, decimals) {
  const means = turns.map((turn) => number(summary(turn, vector.name).mean, decimals, true));
  const alarms = turns.flatMap((turn) => turn.alarms).filter((one) => one.trait === vector.name).length;
  const line = alarm ? `Alarm threshold ${number(alarm.threshold, decimals, true)}. ` : "No alarm is set. ";
  return (
    `${vector.name} over ${count(turns.length, "answer")}, ${count(total, "token")}. ` +
    `Means: ${means.join(", ")}. ${line}${count(alarms, "alarm")}.`
  );
}
