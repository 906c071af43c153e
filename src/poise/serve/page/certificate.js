/** A vector’s certificate: the dose curve with its bands, the controls, the verdict and what it rests on. */

import { draw, el, table } from "./dom.js";
import { figure, known, number, percent, rate, sign, verdict } from "./words.js";

const SIZES = { wide: 640, narrow: 350 };
const [LEFT, RIGHT] = [36, 104]; // room for numbers, and for names
const PANELS = { trait: [22, 122], coherence: [152, 212] }; // top and bottom of each
const HEIGHT = 240;

/** All of it, as nodes; a sentence where there is none. */
export function certificateView(vector) {
  const { certificate: c } = vector;
  if (!c) {
    return [
      el(
        "p",
        {},
        "No certificate: nobody has measured what this vector does. ",
        el("code", {}, "poise validate"),
        " measures it and writes one into the file.",
      ),
      alarmsTable(vector),
    ];
  }
  return [
    el("p", { class: `verdict ${c.verdict}` }, `${sign(c)} ${verdict(c)}`),
    el(
      "p",
      {},
      {
        induced: "Steering with it moves the trait, on questions that it was not made from. This rests on:",
        indicative: "Nothing speaks against it, and the evidence is too thin for a verdict, because:",
      }[c.verdict] ?? "It could not be shown to move the trait, because:",
    ),
    el(
      "ul",
      {},
      (c.reasons ?? []).map((reason) => el("li", {}, reason)),
    ),
    curve(vector),
    pointsTable(c),
    controlsTable(c),
    alarmsTable(vector),
  ];
}

const sorted = (points) => [...points].sort((one, other) => one.dose - other.dose);

function curve(vector) {
  const { certificate: c } = vector;
  const points = sorted(c.curve ?? []);
  if (points.length < 2) return null;
  return el(
    "figure",
    { class: "curve" },
    Object.entries(SIZES).map(([size, width]) => drawing(vector.name, c, points, size, width)),
    el(
      "figcaption",
      {},
      `Layer ${c.layer} of ${c.layers ?? vector.layers}. Across: the dose, the length that steering adds as a share `,
      "of the activation’s usual length. Bands are 95 % intervals",
      c.asked ? ` over ${c.asked.length} questions.` : ".",
      " The ring is the chosen dose, the double line random directions of the same length. Shaded: usable doses.",
    ),
  );
}

function drawing(name, c, points, size, width) {
  const [low, high] = [points[0].dose, points.at(-1).dose];
  const right = width - RIGHT;
  const x = (dose) => LEFT + ((Math.max(low, Math.min(high, dose)) - low) / (high - low)) * (right - LEFT);
  const parts = Object.entries(PANELS).flatMap(([panel, [top, bottom]]) => {
    const y = (score) => bottom - (Math.max(0, Math.min(100, score)) / 100) * (bottom - top);
    const place = { c, panel, x, y, top, bottom, right };
    return [...frame(place), ...series(points, place), ...controlMarks(place), ...names(place)];
  });
  const every = Math.ceil(points.length / (size === "wide" ? 6 : 3));
  const doses = points.filter(({ dose }, i) => i % every === 0 || dose === 0);
  parts.push(
    ...doses.map(({ dose }) => draw("text", { x: x(dose), y: HEIGHT - 12, "text-anchor": "middle" }, percent(dose))),
  );
  const words = points
    .map((p) => `dose ${percent(p.dose)}: trait ${number(p.trait.value)}, coherence ${number(p.coherence.value)}`)
    .join("; ");
  return draw(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, class: size, role: "img", "aria-label": `Dose curve of ${name}. ${words}.` },
    parts,
  );
}

/** What lies where, at the right edge, no two names on top of each other. */
function names({ c, panel, y, right }) {
  const found = [["random", c.random?.[panel]]];
  if (panel === "trait") found.push(["prompt for", c.prompting?.positive], ["prompt against", c.prompting?.negative]);
  else found.push(["floor", { value: c.coherence_floor }]);
  const known_ = found.filter(([, of]) => known(of?.value)).sort(([, one], [, other]) => other.value - one.value);
  let last = -Infinity;
  return known_.map(([name, { value }]) => {
    last = Math.max(y(value) + 4, last + 12);
    return draw("text", { x: right + 6, y: last, class: name.split(" ")[0] }, `${name} ${number(value)}`);
  });
}

function frame({ c, panel, x, y, top, bottom, right }) {
  const parts = [
    draw(
      "text",
      { x: LEFT, y: top - 8, class: "named" },
      panel === "trait" ? "Trait score, 0 to 100" : "Coherence, 0 to 100",
    ),
  ];
  const usable = c.usable_doses;
  if (usable && usable[0] < usable[1]) {
    const [from, to] = usable.map(x);
    parts.push(draw("rect", { x: from, width: to - from, y: top, height: bottom - top, class: "usable-doses" }));
  }
  for (const score of panel === "trait" ? [0, 50, 100] : [0, 100]) {
    parts.push(draw("line", { x1: LEFT, x2: right, y1: y(score), y2: y(score), class: "grid" }));
    parts.push(draw("text", { x: LEFT - 6, y: y(score) + 4, "text-anchor": "end" }, String(score)));
  }
  if (panel === "coherence" && known(c.coherence_floor)) {
    const at = y(c.coherence_floor);
    parts.push(draw("line", { x1: LEFT, x2: right, y1: at, y2: at, class: "threshold" }));
  }
  return parts;
}

function series(points, { panel, x, y }) {
  const shown = points.filter((p) => known(p[panel].value));
  const banded = shown.filter((p) => known(p[panel].low) && known(p[panel].high));
  const upper = banded.map((p) => `${x(p.dose)},${y(p[panel].high)}`);
  const lower = banded.map((p) => `${x(p.dose)},${y(p[panel].low)}`).reverse();
  return [
    draw("polygon", { points: [...upper, ...lower].join(" "), class: `band ${panel}` }),
    draw("polyline", {
      points: shown.map((p) => `${x(p.dose)},${y(p[panel].value)}`).join(" "),
      class: `series ${panel}`,
    }),
    ...shown.map((p) => draw("circle", { cx: x(p.dose), cy: y(p[panel].value), r: 2.2, class: `dot ${panel}` })),
  ];
}

function controlMarks({ c, panel, x, y, right }) {
  const parts = [];
  const chosen = at(c, c.dose);
  if (known(chosen?.[panel].value))
    parts.push(draw("circle", { cx: x(c.dose), cy: y(chosen[panel].value), r: 6, class: `ring ${panel}` }));
  const random = c.random?.[panel]?.value;
  for (const shift of known(random) ? [-1.5, 1.5] : []) {
    parts.push(
      draw("line", {
        x1: x(c.dose) - 14,
        x2: x(c.dose) + 14,
        y1: y(random) + shift,
        y2: y(random) + shift,
        class: "random",
      }),
    );
  }
  const prompted = panel === "trait" && c.prompting ? [c.prompting.positive, c.prompting.negative] : [];
  for (const side of prompted.filter((one) => known(one?.value))) {
    parts.push(draw("line", { x1: LEFT, x2: right, y1: y(side.value), y2: y(side.value), class: "prompting" }));
  }
  return parts;
}

/** The curve’s point at a dose. */
const at = (c, dose) => (c.curve ?? []).find((p) => Math.abs(p.dose - dose) < 1e-6);

function pointsTable(c) {
  const rows = sorted(c.curve ?? []).map((p) => [
    `${percent(p.dose)}${Math.abs(p.dose - c.dose) < 1e-6 ? " (chosen)" : p.dose === 0 ? " (unsteered)" : ""}`,
    figure(p.trait),
    figure(p.coherence),
    number(p.coefficient, 2, true),
    String(p.trait.n),
  ]);
  return el(
    "details",
    {},
    el("summary", {}, "Every point of the curve"),
    table("The dose curve", ["Dose", "Trait score", "Coherence", "α", "n questions"], rows),
  );
}

function controlsTable(c) {
  const row = (name, trait, coherence) => [
    name,
    figure(trait),
    coherence ? figure(coherence) : "– not measured",
    trait ? String(trait.n) : "–",
  ];
  const rows = [
    ["Unsteered", at(c, 0)],
    [`This vector, dose ${percent(c.dose)}`, at(c, c.dose)],
  ]
    .filter(([, point]) => point)
    .map(([name, point]) => row(name, point.trait, point.coherence));
  if (c.random) rows.push(row(`Random directions (${c.random.draws} draws)`, c.random.trait, c.random.coherence));
  if (c.prompting) {
    rows.push(row("System prompt for the trait", c.prompting.positive, c.prompting.coherence));
    rows.push(row("System prompt against it", c.prompting.negative, c.prompting.negative_coherence));
  }
  return table(
    "Controls: the same questions under each condition",
    ["Condition", "Trait score", "Coherence", "n questions"],
    rows,
  );
}

function alarmsTable({ alarms }) {
  if (!alarms?.length)
    return el("p", { class: "small" }, "No alarm is set: ", el("code", {}, "poise calibrate"), " sets some.");
  const rows = alarms.map((a) => [
    a.reading,
    number(a.threshold, 2, true),
    `${rate(a.rate)} [${rate(a.low)}, ${rate(a.high)}]`,
    String(a.n_answers),
    String(a.layer),
    a.topic ?? "all",
    a.part ?? "reply",
  ]);
  return table("Alarms", ["Reading", "Above", "False alarms", "n answers", "Layer", "Topic", "Part"], rows);
}
