/** The same prompt plain and steered, side by side, with the same seed. */

import { answerView } from "./answer.js";
import { steeredBy } from "./dials.js";
import { byId, el, put, soon, table } from "./dom.js";
import { gauge } from "./gauges.js";
import * as notice from "./notice.js";
import * as panel from "./panel.js";
import { say } from "./announce.js";
import { documents, thinks, tools } from "./settings.js";
import { change, messages, onChange, state, steering } from "./state.js";
import { scaleOf } from "./tint.js";
import { begun, hear, summary } from "./turn.js";
import { known, number } from "./words.js";

let vectors = [];
let running = null;
let views = [];

/** The page’s vectors changed. */
export function show(loaded) {
  vectors = loaded;
  draw();
}

const pair = () => (state.compared ? [state.compared.plain, state.compared.steered] : []);

function draw() {
  const turns = pair();
  views = turns.map((turn, i) => answerView(turn, i ? "Steered answer" : "Plain answer"));
  put(
    byId("pair"),
    views.map((view, i) =>
      el(
        "section",
        { "aria-label": i ? "Steered" : "Plain" },
        el("h3", {}, i ? "Steered" : "Plain", " ", el("span", { class: "how" }, steeredBy(turns[i], vectors))),
        view.node,
        el("div", { class: "pair-gauges" }),
      ),
    ),
  );
  paint();
}

function paint() {
  const vector = panel.tinting();
  const scale = scaleOfPair(vector);
  views.forEach((view) => view.tint(vector, scale));
  measure();
}

const scaleOfPair = (vector) => vector && scaleOf(vector, [...state.turns, ...pair()]);

/** Gauges and figures of what is there so far. */
function measure() {
  const vector = panel.tinting();
  const scale = scaleOfPair(vector);
  [...byId("pair").querySelectorAll(".pair-gauges")].forEach((place, i) =>
    put(place, vector && pair()[i] ? [el("h4", {}, vector.name), gauge(vector, scale, pair()[i])] : []),
  );
  put(byId("differences"), state.compared && vectors.length ? differences() : []);
}

function differences() {
  const [plain, steered] = pair();
  const rows = vectors.map(({ name, normal }) => {
    const [one, other] = [summary(plain, name), summary(steered, name)];
    const decimals = normal?.sd > 0 ? Math.max(0, 1 - Math.floor(Math.log10(normal.sd))) : 2;
    const difference = known(one.mean) && known(other.mean) ? other.mean - one.mean : null;
    return [
      name,
      ...[one.mean, other.mean, difference, one.peak, other.peak].map((value) => number(value, decimals, true)),
    ];
  });
  const n = `${summary(plain, vectors[0].name).tokens} and ${summary(steered, vectors[0].name).tokens} tokens`;
  return [
    table(
      "Plain and steered in numbers",
      ["Trait", "Mean, plain", "Mean, steered", "Difference", "Peak, plain", "Peak, steered"],
      rows,
    ),
    el(
      "p",
      { class: "small" },
      `${running ? "So far. " : ""}One answer each (${n}), seed ${plain.seed}: an example, not a measurement. A certificate is the measurement.`,
    ),
  ];
}

async function run(user) {
  if (running || !user.trim()) return;
  notice.clear();
  const { model, system, temperature, maxTokens, seed } = state;
  const steer = steering(vectors);
  byId("compare-hint").hidden = steer !== null;
  if (!steer) return;
  const asked = { user, system, seed, temperature, maxTokens, model, thinking: thinks(), tools: tools(), documents: documents() };
  const turns = [begun({ ...asked, steer: null }), begun({ ...asked, steer })];
  running = new AbortController();
  change({ compared: { plain: turns[0], steered: turns[1] } });
  draw();
  buttons();
  say("Two answers are on their way.");
  const sent = messages([], system, user);
  const measured = soon(measure, 150);
  const update = soon(() => {
    views.forEach((view) => view.update());
    measured();
  });
  const ends = await Promise.allSettled(turns.map((turn) => hear(turn, sent, running.signal, update)));
  running = null;
  views.forEach((view) => view.update());
  change({ compared: state.compared });
  paint();
  buttons();
  const wrong = ends.find(({ status }) => status === "rejected");
  if (wrong) notice.complain(wrong.reason, () => run(user));
  else say("Both answers are there.");
}

function buttons() {
  byId("compare-send").disabled = running !== null;
  byId("compare-stop").disabled = running === null;
}

/** Listen to the form. */
export function start() {
  const question = byId("compare-question");
  question.value = state.compared?.plain.user ?? state.turns.at(-1)?.user ?? "";
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    run(question.value);
  });
  byId("compare-ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run(question.value);
  });
  byId("compare-stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  onChange((fields) => {
    if (fields.includes("tint")) paint();
    if (fields.includes("formatted")) draw();
    if (fields.includes("dials")) byId("compare-hint").hidden = true;
  });
  buttons();
}
