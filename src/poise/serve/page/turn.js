/** One question and its answer: ask the server, hear the chunks, and what was read in them. */

import { known } from "./words.js";
import * as api from "./api.js";
import { addCalls } from "./calls.js";

const WINDOW = 8; // tokens of a peak, as in `poise.monitor`

/**
 * A turn before its first chunk. `asked`: user, system, steer, seed, temperature, maxTokens, model, thinking, tools,
 * documents; for what tools gave back `results` instead of `user`. `parent` is the turn before it.
 */
export const begun = (asked) => ({
  id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, // which only https and localhost have
  parent: null,
  ...asked,
  time: new Date().toISOString(),
  pieces: [],
  thought: [],
  before: 0, // tokens before the reply: a thought’s, and the marks around it
  restarts: 0, // how often what was taken for a reply turned out to be thought
  prompt: {},
  push: {},
  layers: {},
  summary: null,
  alarms: [],
  cautions: [],
  interventions: [], // of the server’s guardrail, which comes with the end of the answer
  knowledge: null, // passages that the answer rests on, from its first chunk; its sentences, checked, from its last
  finish: null,
  calls: [],
  usage: null,
  pace: null, // seconds to the first token, and from it to the last
  waiting: {},
});

/**
 * Ask, and fill the turn with what comes.
 *
 * @param {object} turn From `begun`.
 * @param {object[]} messages What the model is shown.
 * @param {AbortSignal} signal Stops the answer; what was said so far stays.
 * @param {() => void} heard Called after every chunk.
 */
export async function hear(turn, messages, signal, heard) {
  const request = {
    model: turn.model,
    messages,
    temperature: turn.temperature,
    max_tokens: turn.maxTokens,
    seed: turn.seed,
    stream_options: { include_usage: true },
    ...(turn.tools ? { tools: turn.tools } : {}),
    ...(turn.thinking ? { chat_template_kwargs: { enable_thinking: true } } : {}),
    poise: {
      watch: true,
      ...(turn.steer ? { steer: turn.steer } : {}),
      ...(typeof turn.documents === "boolean" ? { knowledge: turn.documents } : {}),
    },
  };
  const began = performance.now();
  try {
    for await (const chunk of api.stream(request, signal)) {
      turn.usage = chunk.usage ?? turn.usage;
      if (chunk.choices?.length) take(turn, chunk.choices[0], (performance.now() - began) / 1000);
      heard();
    }
  } catch (error) {
    settle(turn);
    turn.finish = signal.aborted ? "stopped" : "cut";
    heard();
    if (!signal.aborted) throw error;
  }
}

function take(turn, { delta = {}, poise = {}, finish_reason: finish }, seconds) {
  if (poise.tokens?.length || delta.content) turn.pace = { first: turn.pace?.first ?? seconds, last: seconds };
  addCalls(turn.calls, delta.tool_calls ?? []);
  for (const field of ["prompt", "push", "layers"]) Object.assign(turn[field], poise[field] ?? {});
  turn.cautions.push(...(poise.cautions ?? []));
  turn.alarms.push(...(poise.alarms ?? []));
  turn.interventions = poise.guardrail ?? turn.interventions;
  turn.knowledge = poise.knowledge ?? turn.knowledge;
  turn.summary = poise.summary ?? turn.summary;
  turn.finish = finish ?? turn.finish;
  const text = delta.content ?? "";
  const tokens = poise.tokens ?? [];
  const kept = (value) => (known(value) ? Number(value.toPrecision(7)) : null); // float32 has no more
  const read = (from, to) =>
    Object.fromEntries(
      Object.entries(poise.readings ?? {}).map(([trait, values]) => [trait, values.slice(from, to).map(kept)]),
    );
  const part = poise.parts?.[0] ?? (delta.reasoning_content ? "thought" : "reply");
  if (poise.ends_unopened_thought) makeThought(turn);
  if (part !== "reply" && turn.pieces.length === 0) turn.before += tokens.length;
  if (part === "reply" && turn.pieces.length === 0) turn.led = turn.thought.length;
  if (part === "thought") {
    turn.thought.push({ text: delta.reasoning_content ?? "", readings: read(0, tokens.length) });
  } else if (part === "mark") {
    // what stands around a thought is neither thought nor reply
  } else if (tokens.length === 0) {
    if (text) turn.pieces.push({ text, readings: {} }); // a message that the server set, not the model’s own
  } else if (tokens.join("") === text) {
    tokens.forEach((token, i) => add(turn, token, read(i, i + 1)));
  } else {
    add(turn, text, read(0, tokens.length));
  }
  if (finish) settle(turn);
}

/** What was taken for a reply was thought: a mark ended it that nothing had opened. */
function makeThought(turn) {
  settle(turn);
  turn.thought.splice(turn.led ?? 0, 0, ...turn.pieces); // its last tokens may have come as thought already
  turn.before = turn.thought.reduce((sum, piece) => sum + tokensOf(piece), 0);
  turn.pieces = [];
  turn.restarts += 1;
  counted.delete(turn);
}

const tokensOf = (piece) => Math.max(1, ...Object.values(piece.readings).map((values) => values.length));

/** Tokens of an answer so far, seconds to the first, and how many a second came after it; null where that says nothing. */
export function paceOf({ thought = [], pieces, pace }) {
  const tokens = [...thought, ...pieces].reduce((sum, piece) => sum + tokensOf(piece), 0);
  const seconds = pace ? pace.last - pace.first : 0;
  return { tokens, first: pace?.first ?? null, perSecond: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null };
}

/** A token, or the few that share a character: those without a text of their own wait for the one that has it. */
function add(turn, text, readings) {
  for (const [trait, values] of Object.entries(readings)) (turn.waiting[trait] ??= []).push(...values);
  if (!text) return;
  turn.pieces.push({ text, readings: turn.waiting });
  turn.waiting = {};
}

/** At the end of an answer: what still waits belongs to its last piece. */
function settle(turn) {
  if (Object.keys(turn.waiting).length === 0) return;
  if (turn.pieces.length === 0) turn.pieces.push({ text: "", readings: {} });
  const last = turn.pieces.at(-1);
  for (const [trait, values] of Object.entries(turn.waiting)) (last.readings[trait] ??= []).push(...values);
  turn.waiting = {};
  counted.delete(turn);
}

/** The place in the reply of the answer’s token of that number, counted from 1; 0 for one before the reply. */
export const placeOf = (turn, token) => Math.max(0, (token ?? 1) - 1 - (turn.before ?? 0));

/** What the steering by itself adds to a trait’s readings, which says nothing about the text; 0 where not known. */
const pushed = (turn, trait, phase) => turn.push[trait]?.[phase] ?? 0;

/** The reading of the last prompt token, less the push; null where there is none. */
export function promptOf(turn, trait) {
  const value = turn.prompt[trait];
  return known(value) ? value - pushed(turn, trait, "prompt") : null;
}

/** A piece’s reading, the highest of its tokens’, less the push; null where there is none. */
export function readingOf(turn, piece, trait, part = "reply") {
  const values = (piece.readings[trait] ?? []).filter(known);
  const push = pushed(turn, trait, part === "reply" ? "response" : "thought");
  return values.length ? Math.max(...values) - push : null;
}

const counted = new WeakMap(); // turns to their series, for as long as no piece is added

/**
 * A trait in an answer, token by token, less the push; null where there is no reading.
 *
 * @returns {{values: (number|null)[], line: (number|null)[]}} `line`: the mean of the last 8 tokens, or fewer at the start.
 */
export function seriesOf(turn, trait) {
  let held = counted.get(turn);
  if (held?.pieces !== turn.pieces.length) counted.set(turn, (held = { pieces: turn.pieces.length, of: {} }));
  if (!held.of[trait]) {
    const push = pushed(turn, trait, "response");
    const values = turn.pieces.flatMap((piece) =>
      (piece.readings[trait] ?? []).map((value) => (known(value) ? value - push : null)),
    );
    held.of[trait] = { values, line: values.map((_, i) => mean(values.slice(Math.max(0, i - WINDOW + 1), i + 1))) };
  }
  return held.of[trait];
}

/** Prompt, mean, peak and tokens of an answer so far. */
export function summary(turn, trait) {
  const { values, line } = seriesOf(turn, trait);
  const windows = line.slice(Math.max(0, Math.min(WINDOW, values.length) - 1)).filter(known);
  return {
    prompt: promptOf(turn, trait),
    mean: mean(values),
    peak: windows.length ? windows.reduce((high, value) => Math.max(high, value)) : null,
    tokens: values.filter(known).length,
  };
}

export function mean(values) {
  const found = values.filter(known);
  return found.length ? found.reduce((sum, value) => sum + value, 0) / found.length : null;
}
