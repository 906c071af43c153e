/** An answer on the page: its words, tinted; one token in numbers; its thought and calls; how it ended; what it set off. */

import { bodyOf, spanOf } from "./body.js";
import { callsView } from "./calls.js";
import { copyButton } from "./copying.js";
import { el, put } from "./dom.js";
import { blockedBy, interventionLines } from "./interventions.js";
import { sourcesView } from "./sources.js";
import { state, textOf } from "./state.js";
import { levelOf, said, toneOf } from "./tint.js";
import { paceOf, placeOf, readingOf } from "./turn.js";
import { count, known, number, plain, rate } from "./words.js";

const ENDED = {
  stopped: "You stopped it here.",
  cut: "It broke off here.",
  length: "Cut short: it reached the longest answer that you allow.",
  content_filter: "Stopped by the server’s policy.",
};

const IN_PART = { thought: ", in the thought", both: ", of thought and reply" };

/**
 * The view of a turn’s answer.
 *
 * @param {object} turn From `turn.js`.
 * @param {string} label Names it, such as “Answer 2”.
 * @returns `node`; `update()` shows what is new, `tint(vector, scale)` paints, `point(alarm)` leads to its token,
 *   `tools` is the row of buttons below.
 */
export function answerView(turn, label) {
  const nodes = nodesOf(turn, label);
  const { text, cursor, readout } = nodes;
  const body = bodyOf(text);
  let [by, scale, lit, remarked, restarts] = [null, null, null, "", turn.restarts];

  const valueAt = (i) => (by && i >= 0 ? readingOf(turn, turn.pieces[i], by.name) : null);
  const paint = (i) => body.spans(i).forEach((span) => paintPiece(span, valueAt(i), valueAt(i - 1), scale));
  const thoughtAt = (i) => (by && i >= 0 ? readingOf(turn, turn.thought[i], by.name, "thought") : null);
  const paintThought = (span, i) => paintPiece(span, thoughtAt(i), thoughtAt(i - 1), scale);
  const light = () => {
    for (const span of text.querySelectorAll(".at")) span.classList.remove("at");
    if (lit !== null) body.spans(lit).forEach((span) => span.classList.add("at"));
  };
  const point = (i) => {
    lit = turn.pieces[i] ? i : null;
    light();
    if (lit === null) return;
    const reading = by ? `: ${by.name} ${said(valueAt(i), scale)}` : "";
    const shown = plain(turn.pieces[i].text).trim() || "blank";
    cursor.value = String(i + 1);
    readout.textContent = `token ${i + 1} of ${turn.pieces.length} “${shown}”${reading}`;
    cursor.setAttribute("aria-valuetext", readout.textContent);
  };
  const lead = ({ token, part }) => {
    if (part === "thought") nodes.thought.open = true;
    point(Math.min(placeOf(turn, token), turn.pieces.length - 1)); // an alarm that stops takes its token with it
    if (part === "thought") nodes.thought.firstChild.focus();
    else cursor.focus();
  };
  const update = () => {
    if (turn.restarts !== restarts) [body, { reset: () => nodes.thoughts.replaceChildren() }].forEach((one) => one.reset());
    restarts = turn.restarts;
    const [first, end] = body.update(turn.pieces, state.formatted, turn.finish === null);
    for (let i = first; i < end; i += 1) paint(i);
    if (lit !== null && lit >= first) light();
    const thought = turn.thought ?? []; // a conversation kept by an older page has none
    nodes.thought.hidden = thought.length === 0;
    for (let i = nodes.thoughts.children.length; i < thought.length; i += 1) {
      nodes.thoughts.append(spanOf(thought[i].text, i));
      paintThought(nodes.thoughts.lastChild, i);
    }
    cursor.max = String(Math.max(1, turn.pieces.length));
    nodes.foot.classList.toggle("unused", turn.pieces.length === 0);
    nodes.node.classList.toggle("waiting", turn.finish === null);
    nodes.pace.textContent = paceWords(turn);
    nodes.copy.disabled = !textOf(turn);
    nodes.calls.update();
    nodes.sources.update(body);
    const now = [turn.alarms.length, turn.cautions.length, turn.interventions?.length, turn.finish, body.problem()].join();
    if (now !== remarked) put(nodes.remarks, remarksOn(turn, lead, body.problem()));
    remarked = now;
  };
  const tint = (vector, itsScale) => {
    [by, scale] = [vector, itsScale];
    turn.pieces.forEach((_, i) => paint(i));
    [...nodes.thoughts.children].forEach(paintThought);
    if (lit !== null) point(lit);
    else readout.textContent = "Point at a token, or move the slider, for its number.";
  };
  text.addEventListener("click", (event) => {
    const token = event.target.closest("[data-token]")?.dataset.token;
    if (token !== undefined) point(Number(token));
  });
  text.addEventListener("mouseover", (event) => {
    const span = event.target.closest("[data-token]");
    span?.classList.toggle("right", span.getBoundingClientRect().left - text.getBoundingClientRect().left > text.clientWidth / 2);
  });
  for (const event of ["input", "focus"]) cursor.addEventListener(event, () => point(Number(cursor.value) - 1));
  update();
  return { node: nodes.node, update, tint, point: lead, tools: nodes.tools };
}

function nodesOf(turn, label) {
  const text = el("div", { class: "tokens", dir: "auto" });
  const thoughts = el("p", { class: "thoughts", dir: "auto" });
  const thought = el("details", { class: "thought" }, el("summary", {}, "Thought before the reply"), thoughts);
  const calls = callsView(turn);
  const options = { type: "range", min: "1", max: "1", step: "1", value: "1" };
  const cursor = el("input", { ...options, "aria-label": `${label}: read token by token` });
  const readout = el("output", { class: "readout" });
  const foot = el("div", { class: "foot" }, cursor, readout);
  const copy = copyButton(() => textOf(turn));
  const pace = el("span", { class: "pace small" });
  const tools = el("div", { class: "row tools" }, copy, pace);
  const remarks = el("div", { class: "remarks" });
  const sources = sourcesView(turn, label, text);
  const words = el("div", { class: "words" }, thought, text, calls.node, foot, tools, remarks);
  const beside = el("div", { class: "beside" }, words, sources.node, sources.peek);
  const node = el("div", { class: "answer", "aria-label": label, role: "group" }, beside);
  return { node, thought, thoughts, text, calls, sources, cursor, readout, foot, copy, pace, tools, remarks };
}

/** How many tokens came, and how fast, as the browser saw them. */
function paceWords(turn) {
  const { tokens, first, perSecond } = paceOf(turn);
  if (!tokens) return "";
  const speed = known(perSecond) ? `, ${number(perSecond, perSecond < 10 ? 1 : 0)} a second` : "";
  return `${count(tokens, "token")}${speed}${known(first) ? `, the first after ${number(first, 1)} s` : ""}`;
}

function paintPiece(span, value, before, scale) {
  const [level, last] = [levelOf(value, scale), levelOf(before, scale)];
  const [blank, word] = span.children;
  word.className = toneOf(level);
  blank.className = level * last > 0 ? toneOf(Math.abs(level) < Math.abs(last) ? level : last) : "";
  if (known(value)) span.dataset.reading = said(value, scale);
  else delete span.dataset.reading;
}

function remarksOn(turn, point, problem) {
  const empty = turn.finish === "stop" && turn.pieces.length === 0;
  const guarded = turn.finish === "content_filter" && blockedBy(turn);
  const ended = empty ? "(an empty answer)" : guarded ? "Stopped by the server’s guardrail." : ENDED[turn.finish];
  return [
    turn.alarms.map((alarm) => el("p", { class: "alarm" }, alarmButton(alarm, point))),
    turn.cautions.map((caution) => el("p", { class: "caution" }, `Warning: ${caution}`)),
    interventionLines(turn),
    ended && el("p", { class: "ended" }, ended),
    problem && el("p", { class: "ended" }, problem),
  ].flat();
}

/** An alarm in a line, which leads to its token. */
function alarmButton(alarm, point) {
  return el("button", { type: "button", class: "link", onclick: () => point(alarm) }, alarmWords(alarm));
}

/** What an alarm says. */
export function alarmWords({ trait, reading, value, threshold, rate: share, token, action, part }) {
  const all = { thought: "over the whole thought", both: "over thought and reply" }[part] ?? "over the whole answer";
  const where = { prompt: "before the first token", mean: all }[reading] ?? `by token ${token}${IN_PART[part] ?? ""}`;
  const done = { cap: " Capped from there on.", stop: " The answer was stopped." }[action] ?? "";
  const decimals = Math.abs(threshold) < 10 ? 2 : 1;
  const read = `${trait} ${reading} ${number(value, decimals, true)} ${where}`;
  return `▲ ${read}, above ${number(threshold, decimals, true)} (${rate(share)} of normal answers are).${done}`;
}
