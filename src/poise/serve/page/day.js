/** Readings of every answer that the server gave of late: a chart for each trait, and the last alarms. */

import * as api from "./api.js";
import { alarmWords } from "./answer.js";
import { byId, draw, el, put, table } from "./dom.js";
import * as notice from "./notice.js";
import { count, extent, figure, known, number, shareOf } from "./words.js";

const SIZES = { wide: 880, narrow: 350 };
const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [180, 44, 8, 12, 42];
const FEW = 10; // readings of a bucket whose interval sets the scale
const BUCKETS = { 1: 2, 6: 10, 24: 30, 168: 240 }; // hours to minutes
const MINUTES = [1, 2, 5, 10, 30, 60, 120, 240];
const MOST_BUCKETS = 60;
const LEAST_HOURS = 1 / 6;

/** Ask the server and show what it says: as far back as is chosen, or as there are answers where that is much less. */
export async function show() {
  const hours = Number(byId("hours").value);
  byId("day-said").textContent = "Asking the server …";
  try {
    const since = new Date(Date.now() - hours * 3600e3).toISOString();
    const [longest, alarmed] = await Promise.all([api.dayOf(hours, BUCKETS[hours]), api.alarmedSince(since)]);
    const { span, data } = await fitting({ hours, minutes: BUCKETS[hours] }, longest.data);
    const answered = data.filter(({ buckets }) => buckets.some(({ n }) => n > 0));
    const shorter = span.hours < hours ? `The first answer came ${ago(span.age)} ago, so less is shown.` : "";
    byId("day-said").textContent = answered.length ? shorter : "No answer was read in this time.";
    put(
      byId("day-charts"),
      answered.map((one) => chart(one, span)),
    );
    put(byId("day-alarms"), alarms(alarmed.data));
  } catch (error) {
    byId("day-said").textContent = "Nothing could be read from the server.";
    notice.complain(error, show);
  }
}

/** The same in finer stretches where the answers fill less than half of the time that is chosen. */
async function fitting(span, data) {
  const starts = data.flatMap(({ buckets }) => buckets.filter(({ n }) => n > 0).map(({ start }) => new Date(start).getTime()));
  const age = starts.length ? (Date.now() - Math.min(...starts)) / 3600e3 : span.hours;
  if (age > span.hours / 2) return { span, data };
  const hours = Math.max(LEAST_HOURS, 1.05 * age);
  const minutes = MINUTES.find((candidate) => candidate >= (hours * 60) / MOST_BUCKETS) ?? span.minutes;
  if (minutes >= span.minutes) return { span: { ...span, hours, age }, data };
  return fitting({ hours, minutes, age }, (await api.dayOf(hours, minutes)).data);
}

const ago = (hours) => (hours < 1 ? count(Math.max(1, Math.round(hours * 60)), "minute") : count(Math.round(hours), "hour"));

function chart({ trait: vector, part, buckets }, span) {
  const { hours, minutes } = span;
  const trait = { thought: `${vector}, thoughts`, both: `${vector}, thoughts and replies` }[part] ?? vector;
  const id = `day-${vector}${trait === vector ? "" : `-${part}`}`;
  const total = buckets.reduce((sum, { n }) => sum + n, 0);
  const raised = buckets.reduce((sum, { alarms: n }) => sum + n, 0);
  const words = `${count(total, "answer")}; an alarm in ${shareOf(raised, total)}.`;
  const found = buckets.filter(({ mean }) => known(mean));
  const rows = found.map((b) => [
    clock(b.start, hours),
    figure({ ...b, value: b.mean }, 2),
    number(b.peak_p95, 2),
    String(b.n),
    String(b.alarms),
  ]);
  return el(
    "section",
    { class: "day", "aria-labelledby": id },
    el("h3", { id }, trait),
    el("p", {}, words),
    el(
      "figure",
      {},
      Object.entries(SIZES).map(([size, width]) => drawing(found, span, `${trait}: ${words}`, size, width)),
      el(
        "figcaption",
        {},
        `● mean of ${minutes === 1 ? "a minute’s" : `${minutes} minutes’`} answers, with its 95 % interval; △ 95th percentile of their peaks; ▲ with an alarm.`,
      ),
    ),
    el(
      "details",
      {},
      el("summary", {}, "In numbers"),
      table(
        `${trait}, ${count(minutes, "minute")} a row`,
        ["From", "Mean", "Peak, 95th percentile", "n answers", "With an alarm"],
        rows,
      ),
    ),
  );
}

function drawing(found, { hours, minutes }, words, size, width) {
  const [end, bucket] = [Date.now(), minutes * 60e3];
  const begin = end - hours * 3600e3;
  const x = (time) => LEFT + Math.max(0, Math.min(1, (time - begin) / (end - begin))) * (width - LEFT - RIGHT);
  // An interval of a few readings is many times as wide as they are: it is cut at the edge and sets no scale.
  const values = found
    .flatMap(({ n, mean, low, high, peak_p95: peak }) => [mean, peak, ...(n < FEW ? [] : [low, high])])
    .filter(known);
  const [least, most] = extent(values);
  const y = (value) =>
    TOP + ((most - Math.max(least, Math.min(most, value))) / (most - least || 1)) * (HEIGHT - TOP - BOTTOM);
  const times = (size === "wide" ? [0, 0.25, 0.5, 0.75] : [0, 0.5]).map((share) => begin + share * (end - begin));
  const parts = [
    ...[least, (least + most) / 2, most].flatMap((value) => [
      draw("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" }),
      draw(
        "text",
        { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" },
        number(value, most - least > 20 ? 0 : 1, true),
      ),
    ]),
    ...times.map((time) =>
      draw(
        "text",
        { x: x(time), y: HEIGHT - 6, "text-anchor": time === begin ? "start" : "middle" },
        clock(time, hours),
      ),
    ),
    draw("text", { x: width - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, "now"),
    ...found.flatMap((one) => marks(one, x(new Date(one.start).getTime() + bucket / 2), y)),
  ];
  return draw(
    "svg",
    {
      viewBox: `0 0 ${width} ${HEIGHT}`,
      class: size,
      role: "img",
      "aria-label": `${words} The table below has every number.`,
    },
    parts,
  );
}

function marks({ mean, low, high, peak_p95: peak, alarms: raised }, x, y) {
  return [
    known(low) && known(high) && draw("line", { x1: x, x2: x, y1: y(low), y2: y(high), class: "interval" }),
    draw("circle", { cx: x, cy: y(mean), r: 3, class: "mean" }),
    known(peak) && draw("path", { d: `M${x} ${y(peak) - 4} l4 7 h-8 z`, class: "peak" }),
    raised > 0 && draw("text", { x, y: HEIGHT - 25, "text-anchor": "middle", class: "alarms" }, `▲${raised}`),
  ];
}

function clock(time, hours) {
  const options =
    hours > 24 ? { weekday: "short", hour: "2-digit", minute: "2-digit" } : { hour: "2-digit", minute: "2-digit" };
  return new Date(time).toLocaleString("en-GB", options);
}

function alarms(readings) {
  const items = readings.flatMap(({ time, trait, alarms: raised }) =>
    raised.map((alarm) =>
      el("li", {}, `${new Date(time).toLocaleString("en-GB")}: ${alarmWords({ trait, ...alarm })}`),
    ),
  );
  return [
    el("h3", {}, "The last alarms"),
    items.length ? el("ul", {}, items) : el("p", { class: "small" }, "None in this time."),
  ];
}

/** Listen to the choice of hours and to the button. */
export function start() {
  byId("hours").addEventListener("change", show);
  byId("day-again").addEventListener("click", show);
}
