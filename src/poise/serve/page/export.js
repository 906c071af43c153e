/** Conversations as files, and back from them. */

import { pathTo } from "./branches.js";
import { el } from "./dom.js";
import { soundKnowledge } from "./knowledge.js";
import { messages, textOf, thoughtOf } from "./state.js";

/**
 * Everything of a conversation, as a file that `poise read` takes too.
 *
 * @param {{model, system, title, leaf, all}} conversation `all` its turns, of which those up to `leaf` are shown.
 * @param {object[]} vectors Those that the server holds.
 */
export function exported({ model, system, title, leaf, all }, vectors) {
  const path = pathTo(all, leaf);
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
    title,
    model,
    messages: messages(path, system),
    watched,
    turns: path.map(written),
    other_branches: all.filter((turn) => !path.includes(turn)).map(written),
  };
}

const written = ({ pieces, thought, waiting, ...turn }) => ({
  ...turn,
  answer: textOf({ pieces }),
  ...(thought?.length ? { reasoning_content: thoughtOf({ thought }) } : {}),
  tokens: pieces.map(({ text, readings }) => ({ text, readings })),
  thought: thought ?? [],
});

/**
 * Conversations of a file that `exported` made, one or a list of them.
 *
 * @throws {Error} One sentence, where it is none.
 */
export function imported(text) {
  let parsed;
  try {
    parsed = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON: choose one that this page exported.");
  }
  const entries = Array.isArray(parsed?.conversations) ? parsed.conversations : [parsed];
  return entries.map((entry, i) => {
    if (entry?.page !== 1 || !Array.isArray(entry.turns)) {
      throw new Error(`Entry ${i + 1} of this file is no conversation of this page (it has no “page”: 1 with “turns”).`);
    }
    const path = entry.turns.map(read);
    path.forEach((turn, k) => (turn.parent = path[k - 1]?.id ?? null));
    return { title: String(entry.title ?? ""), leaf: path.at(-1)?.id ?? null, all: [...path, ...(entry.other_branches ?? []).map(read)] };
  });
}

function read(turn, i) {
  const { answer, tokens, reasoning_content: thoughtText, ...facts } = turn ?? {};
  if (typeof answer !== "string" && !Array.isArray(tokens)) throw new Error(`Turn ${i + 1} of this file has no answer.`);
  const pieces = (tokens ?? [{ text: answer, readings: {} }]).map(pieceOf);
  return {
    before: 0,
    restarts: 0,
    ...facts,
    id: String(facts.id ?? `imported-${i}-${facts.time}`),
    user: facts.user === undefined ? undefined : String(facts.user),
    time: String(facts.time ?? ""),
    pieces,
    thought: Array.isArray(facts.thought) ? facts.thought.map(pieceOf) : thoughtText ? [{ text: String(thoughtText), readings: {} }] : [],
    ...Object.fromEntries(["prompt", "push", "layers"].map((name) => [name, facts[name] ?? {}])),
    ...Object.fromEntries(["alarms", "cautions", "calls"].map((name) => [name, Array.isArray(facts[name]) ? facts[name] : []])),
    knowledge: soundKnowledge(facts.knowledge),
    finish: facts.finish ?? "cut",
    waiting: {},
  };
}

const pieceOf = ({ text, readings }) => ({ text: String(text), readings: readings && typeof readings === "object" ? readings : {} });

/** Hand a value to the user as a JSON file. */
export function download(value, name = "poise") {
  const file = new Blob([`${JSON.stringify(value)}\n`], { type: "application/json" });
  const stamp = new Date().toISOString().slice(0, 19).replaceAll(":", "");
  const link = el("a", { href: URL.createObjectURL(file), download: `${name}-${stamp}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
