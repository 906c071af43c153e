/** An answer on the page: its tokens, tinted; one of them in numbers; how it ended; what it set off. */

import { el, put } from "./dom.js";
import { levelOf, said, toneOf } from "./tint.js";
import { placeOf, readingOf } from "./turn.js";
import { known, number, plain, rate } from "./words.js";

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
 * @returns `node`; `update()` shows what is new, `tint(vector, scale)` paints, `point(alarm)` leads to its token.
 */
export function answerView(turn, label) {
  const nodes = nodesOf(label);
  const { text, cursor, readout } = nodes;
  let [by, scale, lit, remarked, restarts] = [null, null, null, "", turn.restarts];

  const valueAt = (i) => (by && i >= 0 ? readingOf(turn, turn.pieces[i], by.name) : null);
  const paint = (span, i) => paintPiece(span, valueAt(i), valueAt(i - 1), scale);
  const thoughtAt = (i) => (by && i >= 0 ? readingOf(turn, turn.thought[i], by.name, "thought") : null);
  const paintThought = (span, i) => paintPiece(span, thoughtAt(i), thoughtAt(i - 1), scale);
  const point = (i) => {
    lit?.classList.remove("at");
    lit = text.children[i] ?? null;
    if (!lit) return;
    lit.classList.add("at");
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
    if (turn.restarts !== restarts) [text, nodes.thoughts].forEach((node) => node.replaceChildren());
    restarts = turn.restarts;
    for (let i = text.children.length; i < turn.pieces.length; i += 1) {
      text.append(spanOf(turn.pieces[i]));
      paint(text.lastChild, i);
    }
    const thought = turn.thought ?? []; // a conversation kept by an older page has none
    nodes.thought.hidden = thought.length === 0;
    for (let i = nodes.thoughts.children.length; i < thought.length; i += 1) {
      nodes.thoughts.append(spanOf(thought[i]));
      paintThought(nodes.thoughts.lastChild, i);
    }
    cursor.max = String(Math.max(1, turn.pieces.length));
    nodes.foot.hidden = turn.pieces.length === 0;
    nodes.node.classList.toggle("waiting", turn.finish === null);
    const now = [turn.alarms.length, turn.cautions.length, turn.finish].join();
    if (now !== remarked) put(nodes.remarks, remarksOn(turn, lead));
    remarked = now;
  };
  const tint = (vector, itsScale) => {
    [by, scale] = [vector, itsScale];
    [...text.children].forEach(paint);
    [...nodes.thoughts.children].forEach(paintThought);
    if (lit) point([...text.children].indexOf(lit));
    else readout.textContent = "Point at a token, or move the slider, for its number.";
  };
  text.addEventListener("click", (event) => point([...text.children].indexOf(event.target.closest("span"))));
  text.addEventListener("mouseover", (event) => {
    const span = event.target.closest("span");
    span?.classList.toggle("right", span.offsetLeft > text.clientWidth / 2);
  });
  for (const event of ["input", "focus"]) cursor.addEventListener(event, () => point(Number(cursor.value) - 1));
  update();
  return { node: nodes.node, update, tint, point: lead };
}

function nodesOf(label) {
  const text = el("p", { class: "tokens", dir: "auto" });
  const thoughts = el("p", { class: "thoughts", dir: "auto" });
  const thought = el("details", { class: "thought" }, el("summary", {}, "Thought before the reply"), thoughts);
  const options = { type: "range", min: "1", max: "1", step: "1", value: "1" };
  const cursor = el("input", { ...options, "aria-label": `${label}: read token by token` });
  const readout = el("output", { class: "readout" });
  const foot = el("div", { class: "foot" }, cursor, readout);
  const remarks = el("div", { class: "remarks" });
  const node = el("div", { class: "answer", "aria-label": label, role: "group" }, thought, text, foot, remarks);
  return { node, thought, thoughts, text, cursor, readout, foot, remarks };
}

/** A piece’s blank and its word: a blank is tinted inside of a passage only. */
function spanOf(piece) {
  const [, blank, word] = plain(piece.text).match(/^(\s*)([^]*)$/);
  return el("span", {}, el("i", {}, blank), el("i", {}, word));
}

function paintPiece(span, value, before, scale) {
  const [level, last] = [levelOf(value, scale), levelOf(before, scale)];
  const [blank, word] = span.children;
  word.className = toneOf(level);
  blank.className = level * last > 0 ? toneOf(Math.abs(level) < Math.abs(last) ? level : last) : "";
  if (known(value)) span.dataset.reading = said(value, scale);
  else delete span.dataset.reading;
}

function remarksOn(turn, point) {
  const ended = turn.finish === "stop" && turn.pieces.length === 0 ? "(an empty answer)" : ENDED[turn.finish];
  return [
    turn.alarms.map((alarm) => el("p", { class: "alarm" }, alarmButton(alarm, point))),
    turn.cautions.map((caution) => el("p", { class: "caution" }, `Warning: ${caution}`)),
    ended && el("p", { class: "ended" }, ended),
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
