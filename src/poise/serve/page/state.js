/** What the page remembers: settings, dials and conversation, kept for this tab in the browser’s session storage. */

import { soon } from "./dom.js";

const PLACE = "poise.page";

const FRESH = {
  model: null,
  system: "",
  temperature: 0.7,
  maxTokens: 200,
  seed: 0,
  thinking: false,
  unit: "dose", // or "alpha"; dials are in it
  dials: {},
  tint: null,
  draft: "",
  turns: [],
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

/** Keep the state for a reload; a conversation too long for that stays on the page. */
function save() {
  try {
    sessionStorage.setItem(PLACE, JSON.stringify(state));
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
    const kept = Object.fromEntries(Object.entries(found ?? {}).filter(([name]) => name in FRESH));
    const compared = kept.compared ? Object.values(kept.compared) : [];
    for (const turn of [...(kept.turns ?? []), ...compared]) turn.finish ??= "cut"; // by the reload
    return kept;
  } catch {
    return {};
  }
}

/** What steers: one term for each dial that is not at 0, as JSON of the steering; null for none. */
export function steering(vectors) {
  const terms = vectors
    .filter(({ name }) => state.dials[name])
    .map(({ name, dose_of_one: one }) => ({
      vector: name,
      [state.unit === "dose" && one ? "dose" : "coef"]: state.dials[name],
    }));
  return terms.length ? { terms } : null;
}

/** The conversation as the model is shown it. */
export function messages(turns, system, user) {
  const said = turns.flatMap((turn) => [
    { role: "user", content: turn.user },
    { role: "assistant", content: textOf(turn), ...(thoughtOf(turn) ? { reasoning_content: thoughtOf(turn) } : {}) },
  ]);
  const first = system.trim() ? [{ role: "system", content: system }] : [];
  return [...first, ...said, ...(user === undefined ? [] : [{ role: "user", content: user }])];
}

/** All that an answer said. */
export const textOf = (turn) => turn.pieces.map((piece) => piece.text).join("");

/** What the model thought before it; nothing for most. A conversation kept by an older page has none. */
export const thoughtOf = (turn) => (turn.thought ?? []).map((piece) => piece.text).join("");

/** Everything of a conversation, as a file that `poise read` takes too. */
export function exported(vectors) {
  const watched = vectors.map(({ name, description, watched_layer: layer, layers, norm, normal, alarms }) => ({
    name,
    description,
    layer,
    layers,
    norm: norm?.[layer] ?? null,
    normal: normal ?? null,
    alarms: alarms ?? [],
  }));
  return {
    page: 1,
    exported: new Date().toISOString(),
    model: state.model,
    messages: messages(state.turns, state.system),
    watched,
    turns: state.turns.map(({ pieces, waiting, ...turn }) => ({
      ...turn,
      answer: textOf({ pieces }),
      ...(thoughtOf(turn) ? { reasoning_content: thoughtOf(turn) } : {}),
      tokens: pieces.map(({ text, readings }) => ({ text, readings })),
    })),
  };
}
