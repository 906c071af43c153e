/**
 * What the page remembers. Settings, dials and which conversation is open are kept for this tab in the browser’s session
 * storage; conversations in its database (`keeping.js`), or in the session storage too where the user wants none kept.
 */

import { asPath, pathTo } from "./branches.js";
import { resultMessages, sentCalls } from "./calls.js";
import { soon } from "./dom.js";
import { keeping } from "./store.js";
import { termsOf } from "./terms.js";

const PLACE = "poise.page";

const FRESH = {
  model: null,
  system: "",
  temperature: 0.7,
  maxTokens: 200,
  seed: 0,
  thinking: false,
  documents: true, // whether to answer from the server’s, where it has any
  unit: "dose", // or "alpha"; dials are in it
  dials: {},
  shapes: {}, // how a dial works, by vector, where not as a plain addition to the reply
  tint: null,
  formatted: true, // Markdown rather than what was written
  tools: "", // JSON, as requests have it
  draft: "",
  conversation: null, // its id
  title: "",
  created: null,
  leaf: null, // the last turn in sight
  all: [], // all turns of the conversation
  turns: [], // of these the ones in sight, in order
  compared: null,
};

/** The page's state; change it through `change`, so that it is saved and shown. */
export const state = { ...structuredClone(FRESH), ...stored() };

const listeners = new Set();
let full = false;

/** Call `listener` after every change. */
export const onChange = (listener) => listeners.add(listener);

/** Set some fields, save, and tell whoever listens which. */
export function change(fields) {
  Object.assign(state, fields);
  saveSoon();
  listeners.forEach((listener) => listener(Object.keys(fields)));
}

/** Set which turns there are and which of them is the last in sight. */
export const changeTurns = (all, leaf, more = {}) => change({ all, leaf, turns: pathTo(all, leaf), ...more });

const inDatabase = new WeakMap(); // turns to their revision there

const revisionOf = ({ pieces, thought, alarms, calls, finish, usage, knowledge }) =>
  [pieces.length, thought?.length, alarms.length, JSON.stringify(calls ?? []).length, finish, Boolean(usage), knowledge?.passages?.length].join();

/** Turns that the database does not have as they are, each with what to call once it has. */
export const unsaved = () =>
  state.all
    .filter((turn) => inDatabase.get(turn) !== revisionOf(turn))
    .map((turn) => {
      const revision = revisionOf(turn);
      return { turn, done: () => inDatabase.set(turn, revision) };
    });

/** Keep the state for a reload; of turns that the database has, nothing. */
function save() {
  const { turns, all, ...others } = state;
  try {
    const still = keeping.get() ? unsaved().map(({ turn }) => turn) : all;
    sessionStorage.setItem(PLACE, JSON.stringify({ ...others, all: still }));
    full = false;
  } catch {
    full = true;
  }
}

const saveSoon = soon(save, 300);
window.addEventListener("pagehide", save);

/** Whether there is room for this conversation, once it is saved. */
export function fits() {
  save();
  return !full;
}

function stored() {
  try {
    const found = JSON.parse(sessionStorage.getItem(PLACE));
    const fields = Object.fromEntries(Object.entries(found ?? {}).filter(([name]) => name in FRESH));
    if (fields.turns?.length) [fields.all, fields.leaf] = [asPath(fields.turns), fields.turns.at(-1).id]; // an older page’s
    const compared = fields.compared ? Object.values(fields.compared) : [];
    for (const turn of [...(fields.all ?? []), ...compared]) turn.finish ??= "cut"; // by the reload
    return { ...fields, turns: pathTo(fields.all ?? [], fields.leaf) };
  } catch {
    return {};
  }
}

/** What steers, as JSON of the steering; null for nothing. */
export function steering(vectors) {
  const terms = vectors.flatMap((vector) => termsOf(vector, state));
  return terms.length ? { terms } : null;
}

/** The conversation as the model is shown it. */
export function messages(turns, system, user) {
  const said = turns.flatMap((turn) => [...questionOf(turn), answerOf(turn)]);
  const first = system.trim() ? [{ role: "system", content: system }] : [];
  return [...first, ...said, ...(user === undefined ? [] : [{ role: "user", content: user }])];
}

/** What a turn asks: a question, or what tools gave back. */
export const questionOf = (turn) =>
  turn.results ? resultMessages(turn.results) : [{ role: "user", content: turn.user }];

function answerOf(turn) {
  const calls = (turn.calls ?? []).filter(Boolean);
  return {
    role: "assistant",
    content: textOf(turn),
    ...(thoughtOf(turn) ? { reasoning_content: thoughtOf(turn) } : {}),
    ...(calls.length ? { tool_calls: sentCalls(calls) } : {}),
  };
}

/** All that an answer said. */
export const textOf = (turn) => turn.pieces.map((piece) => piece.text).join("");

/** What the model thought before it; nothing for most. A conversation kept by an older page has none. */
export const thoughtOf = (turn) => (turn.thought ?? []).map((piece) => piece.text).join("");
