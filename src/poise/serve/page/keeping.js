/** Keeps the open conversation in the browser’s database while it goes on, and opens those that are there. */

import { asPath, pathTo } from "./branches.js";
import { soon } from "./dom.js";
import * as notice from "./notice.js";
import { change, changeTurns, fits, onChange, state, unsaved } from "./state.js";
import * as store from "./store.js";

const TITLE = 80; // characters
const FRESH = { conversation: null, title: "", created: null };

let complained = false;
let busy = Promise.resolve();

/** What the list shows of a conversation. */
const entry = () => ({
  id: state.conversation,
  title: state.title,
  created: state.created,
  updated: new Date().toISOString(),
  leaf: state.leaf,
  count: state.all.length,
  model: state.model,
  system: state.system,
});

/** Write what is new; one write after the other. */
export function keep() {
  if (!store.keeping.get() || !state.conversation || !state.all.length) return busy;
  const waiting = unsaved();
  if (!waiting.length) return busy;
  const [conversation, turns] = [entry(), waiting.map(({ turn }) => structuredClone(turn))];
  busy = busy
    .then(() => store.save(conversation, turns))
    .then(() => waiting.forEach(({ done }) => done()))
    .catch(complain);
  return busy;
}

function complain(error) {
  if (complained && fits()) return;
  complained = true;
  const why = error?.name === "QuotaExceededError" ? "its room is used up" : "it lets this page keep nothing";
  notice.complain(new Error(`This browser did not keep the conversation (${why}): export it as a file before you close the tab.`));
}

/** Name a conversation at its first question. */
export function named(question) {
  if (state.conversation) return;
  const title = (question ?? "").replace(/\s+/g, " ").trim();
  const short = title.length > TITLE ? `${title.slice(0, TITLE - 1)}…` : title;
  change({ conversation: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: short, created: new Date().toISOString() });
}

/** Leave this conversation for a new, empty one. */
export async function begin() {
  await keep();
  changeTurns([], null, FRESH);
}

/** Open a conversation of the database; false where it is gone. */
export async function open(id) {
  await keep();
  const found = await store.load(id);
  if (!found) return false;
  for (const turn of found.turns) turn.finish ??= "cut";
  changeTurns(found.turns, found.leaf, { conversation: id, title: found.title, created: found.created });
  markSaved();
  return true;
}

const markSaved = () => unsaved().forEach(({ done }) => done());

/** After a reload: the turns of the database, and of this tab those that it had no time to write. */
export async function restore() {
  if (!state.conversation || !store.keeping.get()) {
    if (state.all.length) asPath(state.all);
    return;
  }
  const found = await store.load(state.conversation).catch(() => null);
  if (!found) return;
  const here = state.all;
  for (const turn of found.turns) turn.finish ??= "cut";
  changeTurns(found.turns, state.leaf);
  markSaved();
  const longer = (turn) => !found.turns.some((other) => other.id === turn.id && other.pieces.length > turn.pieces.length);
  const newer = here.filter(longer);
  const all = [...found.turns.filter(({ id }) => !newer.some((turn) => turn.id === id)), ...newer];
  changeTurns(all, pathTo(all, state.leaf).length ? state.leaf : (found.leaf ?? null));
}

/** Forget the open conversation too, where it is this one or all are. */
export async function forget(id = null) {
  await busy;
  if (id === null) await store.removeAll();
  else await store.remove(id);
  if (id === null || id === state.conversation) changeTurns([], null, FRESH);
}

/** A turn that came to nothing is taken out of the database too. */
export function drop(turn) {
  const conversation = state.conversation;
  busy = busy.then(() => store.removeTurn(conversation, turn.id)).catch(complain);
}

/** Write soon after every change, and at once where the page may be on its way out. */
export function start() {
  const soonKept = soon(keep, 1000);
  onChange((fields) => fields.includes("all") && soonKept());
  document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && keep());
  return soonKept;
}
