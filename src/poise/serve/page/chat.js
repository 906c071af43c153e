/** The conversation: ask, watch the answer come, stop it, ask again, begin anew, save. */

import { announced } from "./alarms.js";
import { say, sentences } from "./announce.js";
import { answerView } from "./answer.js";
import { steeredBy } from "./dials.js";
import { byId, el, put, soon } from "./dom.js";
import * as notice from "./notice.js";
import * as panel from "./panel.js";
import { thinks } from "./settings.js";
import { change, exported, fits, messages, onChange, state, steering, textOf } from "./state.js";
import { begun, hear } from "./turn.js";
import { count } from "./words.js";

let views = [];
let running = null;
let vectors = [];

/** The page’s vectors changed. */
export function show(loaded) {
  vectors = loaded;
  draw();
}

/** Lead to the token of an answer that raised an alarm. */
export function point(turn, alarm) {
  location.hash = "#chat";
  views[turn]?.point(alarm);
}

function draw() {
  views = state.turns.map(viewOf);
  put(
    byId("turns"),
    state.turns.map((turn, i) => article(turn, i)),
  );
  paint();
  buttons();
}

function viewOf(turn, i) {
  return answerView(turn, `Answer ${i + 1}`);
}

function article(turn, i) {
  return el(
    "article",
    { class: "turn", "aria-label": `Question and answer ${i + 1}` },
    el("h3", { class: "who" }, "You"),
    el("p", { class: "asked", dir: "auto" }, turn.user),
    el("h3", { class: "who" }, `Answer ${i + 1}: `, el("span", { class: "how" }, steeredBy(turn, vectors))),
    views[i].node,
  );
}

function paint() {
  const [vector, scale] = [panel.tinting(), panel.scaleOfTint()];
  views.forEach((view) => view.tint(vector, scale));
}

function buttons() {
  const busy = running !== null;
  byId("send").disabled = busy;
  byId("stop").disabled = !busy;
  byId("again").disabled = busy || !state.turns.length;
  byId("anew").disabled = busy || !state.turns.length;
  byId("save").disabled = busy || !state.turns.length;
  byId("empty").hidden = state.turns.length > 0;
}

/** Ask the model; a question that fails before a word is said goes back into the box. */
async function send(user) {
  if (running || !user.trim()) return;
  notice.clear();
  const { model, system, temperature, maxTokens, seed } = state;
  const turn = begun({
    user,
    system,
    steer: steering(vectors),
    seed: seed + state.turns.length,
    temperature,
    maxTokens,
    model,
    thinking: thinks(),
  });
  const asked = messages(state.turns, system, user);
  const heldBy = new AbortController();
  running = heldBy;
  change({ turns: [...state.turns, turn], draft: "" });
  byId("question").value = "";
  const at = state.turns.length - 1;
  views.push(viewOf(turn, at));
  byId("turns").append(article(turn, at));
  buttons();
  paint();
  toEnd();
  say("The model answers.");
  await follow(turn, asked, at);
}

async function follow(turn, asked, at) {
  const view = views[at];
  const spoken = sentences();
  let [heard, alarms] = [0, 0];
  const showAll = () => {
    const atEnd = covered() < 120;
    view.update();
    panel.refresh();
    if (atEnd) toEnd();
  };
  const shown = soon(showAll);
  const onChunk = () => {
    heard = Math.min(heard, turn.pieces.length);
    for (; heard < turn.pieces.length; heard += 1) spoken.hear(turn.pieces[heard].text);
    for (; alarms < turn.alarms.length; alarms += 1) announced(turn.alarms[alarms]);
    shown();
  };
  view.node.setAttribute("aria-busy", "true");
  try {
    await hear(turn, asked, running.signal, onChunk);
  } catch (error) {
    failed(turn, error);
  }
  view.node.removeAttribute("aria-busy");
  running = null;
  const words = {
    stopped: "Stopped.",
    cut: "The answer broke off.",
    content_filter: "Stopped by the server’s policy.",
  };
  if (turn.pieces.length)
    spoken.end(`${words[turn.finish] ?? "End of the answer."} ${count(turn.pieces.length, "token")}.`);
  showAll();
  if (!textOf(turn) && turn.finish !== "stop" && turn.finish !== "length") takeBack(turn);
  change({ turns: state.turns });
  paint();
  buttons();
  if (!fits()) notice.complain(new Error("This conversation is too long to be kept for a reload; save it as a file."));
}

function failed(turn, error) {
  const retry = textOf(turn) ? null : () => send(byId("question").value || turn.user);
  notice.complain(error, retry);
}

/** A question that nothing was said to is no part of the conversation. */
function takeBack(turn) {
  if (!byId("question").value) byId("question").value = turn.user;
  change({ turns: state.turns.filter((one) => one !== turn), draft: byId("question").value });
  draw();
}

/** How far the conversation reaches below what the form leaves free. */
const covered = () => byId("turns").getBoundingClientRect().bottom - byId("ask").getBoundingClientRect().top;

/** Show the end of the conversation. */
function toEnd() {
  if (covered() > 0) window.scrollBy(0, covered() + 16);
}

function again() {
  const { user } = state.turns.at(-1);
  change({ turns: state.turns.slice(0, -1), seed: state.seed + 1 });
  draw();
  send(user);
}

function anew() {
  change({ turns: [] });
  draw();
  notice.clear();
  byId("question").focus();
  say("The conversation begins anew.");
}

function download() {
  const file = new Blob([`${JSON.stringify(exported(vectors))}\n`], { type: "application/json" });
  const link = el("a", {
    href: URL.createObjectURL(file),
    download: `poise-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.json`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say("The conversation is saved as a file.");
}

/** Listen to the form, its buttons and the keyboard. */
export function start() {
  const question = byId("question");
  question.value = state.draft;
  question.addEventListener("input", () => change({ draft: question.value }));
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send(question.value);
  });
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send(question.value);
  });
  byId("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  byId("again").addEventListener("click", again);
  byId("anew").addEventListener("click", anew);
  byId("save").addEventListener("click", download);
  onChange((fields) => fields.includes("tint") && paint());
}
