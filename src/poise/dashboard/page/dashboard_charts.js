/** A trait over days: means with their intervals, thresholds of alarms, and how many answers raised one. */

import { draw, el, table } from "./dom.js";
import { count, decimalsOf, extent, known, number, shareOf } from "./words.js";

const SIZES = { wide: 640, narrow: 350 };
const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [190, 52, 10, 12, 42];
const FEW = 10; // readings of a bucket whose interval sets the scale

/** The section of one trait. */
export function traitChart({ trait: vector, part, thresholds, buckets }, { days, hours }) {
  const trait = part === "reply" ? vector : `${vector}, ${part === "both" ? "thoughts and replies" : "thoughts"}`;
  const found = buckets.filter(({ mean }) => known(mean));
  const [n, raised] = [sum(buckets, "n"), sum(buckets, "alarms")];
  const words = `${count(n, "answer")}; an alarm in ${shareOf(raised, n)}.`;
  const levels = known(thresholds.mean) ? [["mean", thresholds.mean]] : [];
  const of = hours < 1 ? `${hours * 60} minutes` : hours === 1 ? "an hour" : hours === 24 ? "a day" : `${hours} hours`;
  const values = found.flatMap((one) => [one.mean, ...(one.n < FEW ? [] : [one.low, one.high])]).filter(known);
  const [least, most] = extent([...values, ...levels.map(([, level]) => level)]);
  const decimals = Math.min(3, decimalsOf((most - least) / 4));
  const scale = { least, most, decimals, hours, days };
  const rows = found.map((one) => [
    when(one.start, hours),
    `${number(one.mean, decimals)} [${number(one.low, decimals)}, ${number(one.high, decimals)}]`,
    String(one.n),
    String(one.alarms),
  ]);
  return el(
    "section",
    { class: "day", "aria-label": trait },
    el("h3", {}, trait),
    el("p", { class: "small" }, words),
    found.length > 0 &&
      el(
        "figure",
        {},
        Object.entries(SIZES).map(([size, width]) => drawing(found, levels, scale, `${trait}: ${words}`, size, width)),
        el(
          "figcaption",
          {},
          `● mean of the answers in ${of}, with its 95 % interval; ▲ answers with an alarm${levels.length ? "; dashed: threshold of the mean’s alarm" : ""}.`,
        ),
      ),
    el("details", {}, el("summary", {}, "In numbers"), table(trait, ["From", "Mean reading", "n answers", "With an alarm"], rows)),
  );
}

const sum = (buckets, name) => buckets.reduce((total, one) => total + one[name], 0);

function drawing(found, levels, scale, words, size, width) {
  const { least, most, decimals, hours } = scale;
  const starts = found.map(({ start }) => new Date(start).getTime());
  const begin = Math.min(...starts);
  const end = Math.max(Date.now(), ...starts.map((start) => start + hours * 3600e3));
  const x = (time) => LEFT + ((time - begin) / (end - begin || 1)) * (width - LEFT - RIGHT);
  const y = (value) => TOP + ((most - Math.max(least, Math.min(most, value))) / (most - least || 1)) * (HEIGHT - TOP - BOTTOM);
  const times = (size === "wide" ? [0, 0.33, 0.67] : [0, 0.5]).map((part) => begin + part * (end - begin));
  const roomy = x(begin + hours * 3600e3) - LEFT > 30;
  return draw(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, class: size, role: "img", "aria-label": `${words} The table below has every number.` },
    [least, (least + most) / 2, most].flatMap((value) => [
      draw("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" }),
      draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, number(value, decimals)),
    ]),
    levels.map(([, level]) => draw("line", { x1: LEFT, x2: width - RIGHT, y1: y(level), y2: y(level), class: "threshold" })),
    times.map((time) =>
      draw("text", { x: x(time), y: HEIGHT - 6, "text-anchor": time === begin ? "start" : "middle" }, when(time, hours)),
    ),
    draw("text", { x: width - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, "now"),
    found.flatMap(({ start, mean, low, high, alarms }) => {
      const at = x(new Date(start).getTime() + (hours * 3600e3) / 2);
      return [
        known(low) && known(high) && draw("line", { x1: at, x2: at, y1: y(low), y2: y(high), class: "interval" }),
        draw("circle", { cx: at, cy: y(mean), r: 3.5, class: "mean" }),
        alarms > 0 && draw("text", { x: at, y: HEIGHT - 25, "text-anchor": "middle", class: "alarms" }, roomy ? `▲${alarms}` : "▲"),
      ];
    }),
  );
}

function when(time, hours) {
  const day = { day: "numeric", month: "short" };
  const options = hours >= 24 ? day : { ...(hours >= 4 ? day : { weekday: "short" }), hour: "2-digit", minute: "2-digit" };
  return new Date(time).toLocaleString("en-GB", options);
}
