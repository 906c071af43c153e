/** The box that questions are written in: its keys, what waits for the answer to end, and how full the window is. */

import { say } from "./announce.js";
import { byId } from "./dom.js";
import { change, onChange, state } from "./state.js";
import { known } from "./words.js";

const NEARLY = 0.85; // of the window

let waiting = null;
let isBusy = false;
let size = null;

/** Show whether an answer is on its way. */
export function busy(on) {
  isBusy = on;
  byId("stop").disabled = !on;
  byId("send").textContent = on ? "Ask next" : "Ask";
}

/** Nothing is left in the box. */
export function empty() {
  byId("question").value = "";
  change({ draft: "" });
}

/** Keep a question until the answer has come; it can be taken back. */
export function queue(text) {
  waiting = waiting ? `${waiting}\n\n${text}` : text;
  empty();
  showWaiting();
  say("Your question waits until the answer has come.");
}

/** After an answer: ask what waits; after one that was stopped or broke off it goes back into the box. */
export function next(ended, send) {
  if (!waiting) return;
  const text = waiting;
  waiting = null;
  showWaiting();
  if (ended) send(text);
  else putBack(text);
}

function putBack(text) {
  const box = byId("question");
  box.value = box.value ? `${text}\n\n${box.value}` : text;
  change({ draft: box.value });
  box.focus();
}

function showWaiting() {
  byId("queued").hidden = waiting === null;
  byId("queued-text").textContent = waiting ?? "";
}

/** The model’s window, in tokens. */
export function showWindow(tokens) {
  size = known(tokens) ? tokens : null;
  fill();
}

function fill() {
  const used = state.turns.findLast((turn) => turn.usage)?.usage.total_tokens ?? 0;
  const [words, bar] = [byId("window"), byId("window-bar")];
  bar.hidden = !size;
  if (!size) {
    words.textContent = "";
    return;
  }
  Object.assign(bar, { max: size, value: used, high: NEARLY * size });
  const n = (value) => value.toLocaleString("en-GB");
  const full = used > NEARLY * size ? ": nearly full, begin a new conversation" : "";
  words.textContent = `${n(used)} of ${n(size)} tokens${full}`;
  words.classList.toggle("caution", Boolean(full));
}

/** Listen to the box; `send(text)` asks or queues, `stop()` ends the answer. */
export function start({ send, stop }) {
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
  byId("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isBusy && !document.querySelector("dialog[open]")) stop();
  });
  byId("queued-now").addEventListener("click", () => {
    const text = waiting;
    waiting = null;
    showWaiting();
    if (text) stop().then(() => send(text));
  });
  byId("queued-back").addEventListener("click", () => {
    const text = waiting;
    waiting = null;
    showWaiting();
    if (text) putBack(text);
  });
  onChange((fields) => fields.includes("turns") && fill());
  const measure = () => {
    const below = window.innerHeight - byId("ask").getBoundingClientRect().top;
    document.body.style.setProperty("--composer", `${Math.max(0, below)}px`); // where the sheet of dials ends
  };
  new ResizeObserver(measure).observe(byId("ask"));
  for (const event of ["scroll", "resize"]) window.addEventListener(event, measure, { passive: true });
}
