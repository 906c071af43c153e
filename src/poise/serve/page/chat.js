/** The conversation: ask, watch the answer come, stop it, ask again, branch off. */

import { announced } from "./alarms.js";
import { say, sentences } from "./announce.js";
import { answerView } from "./answer.js";
import { newestBelow, pathTo, siblingsOf } from "./branches.js";
import * as composer from "./composer.js";
import { steeredBy } from "./dials.js";
import { byId, put, soon } from "./dom.js";
import { download, exported } from "./export.js";
import * as keeping from "./keeping.js";
import * as notice from "./notice.js";
import * as panel from "./panel.js";
import { documents, thinks, tools } from "./settings.js";
import { spokenSupport } from "./sources.js";
import { changeTurns, messages, onChange, questionOf, state, steering, textOf } from "./state.js";
import { begun, hear } from "./turn.js";
import { turnArticle } from "./turn_view.js";
import { count } from "./words.js";

let views = [];
let running = null;
let following = Promise.resolve(); // until the answer that comes, or the last, has ended
let vectors = [];
let isReady;
const ready = new Promise((resolve) => (isReady = resolve)); // conversation and vectors are there

/** The page’s vectors changed. */
export function show(loaded) {
  vectors = loaded;
  draw();
  isReady();
}

/** Lead to the token of an answer that raised an alarm. */
export function point(turn, alarm) {
  location.hash = "#chat";
  views[turn]?.point(alarm);
}

/** Everything anew, as after another conversation was opened. */
export function draw() {
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

const actions = {
  edit: (turn, text) => ask({ user: text }, turn.parent),
  again: (turn) => ask(turn.results ? { results: turn.results } : { user: turn.user }, turn.parent, nextSeed(turn)),
  results: (turn, results) => ask({ results }, turn.id),
  switchTo: (turn) => {
    changeTurns(state.all, newestBelow(state.all, turn));
    draw();
    panel.refresh();
    const siblings = siblingsOf(state.all, turn);
    say(`Branch ${siblings.indexOf(turn) + 1} of ${siblings.length}.`);
  },
};

const nextSeed = (turn) => Math.max(...siblingsOf(state.all, turn).map(({ seed }) => seed ?? 0)) + 1;

function article(turn, i) {
  const last = i === state.turns.length - 1;
  return turnArticle({ turn, i, view: views[i], how: steeredBy(turn, vectors), all: state.all, last }, actions);
}

function paint() {
  const [vector, scale] = [panel.tinting(), panel.scaleOfTint()];
  views.forEach((view) => view.tint(vector, scale));
}

function buttons() {
  const busy = running !== null;
  composer.busy(busy);
  for (const id of ["again", "save"]) byId(id).disabled = busy || !state.turns.length;
  byId("anew").disabled = !state.turns.length;
  byId("empty").hidden = state.turns.length > 0;
  for (const button of document.querySelectorAll("#turns .idle")) {
    button.disabled = busy || button.dataset.stays === "disabled";
  }
}

/** Ask the model; a question that fails before a word is said goes back into the box. */
export async function send(user) {
  if (!user.trim()) return;
  await ready; // lest a dial be left out
  if (running) {
    composer.queue(user);
    return;
  }
  composer.empty();
  await ask({ user }, state.turns.at(-1)?.id ?? null);
}

async function ask(question, parent, seed = null) {
  if (running) return;
  notice.clear();
  const { system, temperature, maxTokens, model, leaf } = state;
  const before = pathTo(state.all, parent);
  const facts = { system, temperature, maxTokens, model, thinking: thinks(), tools: tools(), documents: documents(), steer: steering(vectors) };
  const turn = begun({ ...question, ...facts, parent, seed: seed ?? state.seed + before.length });
  const asked = [...messages(before, system), ...questionOf(turn)];
  running = new AbortController();
  keeping.named(question.user);
  const grows = parent === (state.turns.at(-1)?.id ?? null);
  changeTurns([...state.all, turn], turn.id);
  if (grows) append(turn);
  else draw();
  buttons();
  paint();
  toEnd();
  keeping.keep();
  say("The model answers.");
  following = follow(turn, asked, leaf);
  await following;
}

function append(turn) {
  const at = state.turns.length - 1;
  for (const form of byId("turns").querySelectorAll(".results")) form.remove();
  views.push(viewOf(turn, at));
  byId("turns").append(article(turn, at));
}

async function follow(turn, asked, leafBefore) {
  const view = views[state.turns.indexOf(turn)];
  const spoken = sentences();
  let [heard, alarms] = [0, 0];
  const showAll = () => {
    const atEnd = covered() < 120;
    view.update();
    panel.refresh();
    if (atEnd) toEnd();
  };
  const shown = soon(showAll);
  const kept = soon(keeping.keep, 1000);
  const onChunk = () => {
    heard = Math.min(heard, turn.pieces.length);
    for (; heard < turn.pieces.length; heard += 1) spoken.hear(turn.pieces[heard].text);
    for (; alarms < turn.alarms.length; alarms += 1) announced(turn.alarms[alarms]);
    shown();
    kept();
  };
  view.node.setAttribute("aria-busy", "true");
  try {
    await hear(turn, asked, running.signal, onChunk);
  } catch (error) {
    failed(turn, error);
  }
  view.node.removeAttribute("aria-busy");
  running = null;
  toldToTheEnd(turn, spoken);
  showAll();
  if (cameToNothing(turn)) takeBack(turn, leafBefore);
  changeTurns(state.all, state.leaf);
  if (turn.finish === "tool_calls") draw();
  paint();
  buttons();
  await keeping.keep();
  composer.next(["stop", "length", "content_filter"].includes(turn.finish), send);
}

const ENDS = { stopped: "Stopped.", cut: "The answer broke off.", content_filter: "Stopped by the server’s policy.", tool_calls: "The model calls a tool." };

function toldToTheEnd(turn, spoken) {
  if (turn.pieces.length || turn.calls.length)
    spoken.end(`${ENDS[turn.finish] ?? "End of the answer."} ${count(turn.pieces.length, "token")}. ${spokenSupport(turn)}`.trim());
}

const cameToNothing = (turn) => !textOf(turn) && ["stopped", "cut", null].includes(turn.finish) && !turn.calls.length;

function failed(turn, error) {
  const retry = textOf(turn) || turn.results ? null : () => send(byId("question").value || turn.user);
  notice.complain(error, retry);
}

/** A question that nothing was said to is no part of the conversation; one that was typed goes back into the box. */
function takeBack(turn, leafBefore) {
  if (!byId("question").value && turn.user) byId("question").value = turn.user;
  changeTurns(state.all.filter((one) => one !== turn), leafBefore, { draft: byId("question").value });
  keeping.drop(turn);
  draw();
}

/** How far the conversation reaches below what the form leaves free. */
const covered = () => byId("turns").getBoundingClientRect().bottom - byId("ask").getBoundingClientRect().top;

/** Show the end of the conversation. */
function toEnd() {
  if (covered() > 0) window.scrollBy(0, covered() + 16);
}

/** Stop the answer that comes, if one does; done when it has ended and is kept. */
export function stop() {
  running?.abort();
  return following;
}

/** Leave for an empty conversation; this one is kept. */
export async function anew() {
  await stop();
  await keeping.begin();
  draw();
  notice.clear();
  byId("question").focus();
  say("The conversation begins anew.");
}

/** Listen to the buttons and to the state. */
export function start() {
  composer.start({ send, stop });
  byId("again").addEventListener("click", () => actions.again(state.turns.at(-1)));
  byId("anew").addEventListener("click", anew);
  byId("save").addEventListener("click", () => {
    download(exported(state, vectors));
    say("The conversation is saved as a file.");
  });
  byId("formatted").checked = state.formatted;
  byId("formatted").addEventListener("change", () => {
    state.formatted = byId("formatted").checked;
    changeTurns(state.all, state.leaf, { formatted: state.formatted });
    draw();
  });
  onChange((fields) => fields.includes("tint") && paint());
}
