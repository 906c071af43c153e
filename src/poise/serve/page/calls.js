/** Tool calls of an answer, folded: what the model wants to have called, with what, and a place for what came of it. */

import { copyButton } from "./copying.js";
import { el, put } from "./dom.js";
import { plain } from "./words.js";

/** Add a chunk’s parts of calls, as OpenAI streams them: by their place, the arguments in pieces of text. */
export function addCalls(calls, parts) {
  for (const { index = 0, id, function: named = {} } of parts) {
    const call = (calls[index] ??= { id: "", name: "", arguments: "" });
    call.id = id ?? call.id;
    call.name += named.name ?? "";
    call.arguments += named.arguments ?? "";
  }
}

/** An assistant’s calls as a request has them. */
export const sentCalls = (calls) =>
  calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));

/** What tools gave back, as messages. */
export const resultMessages = (results) =>
  results.map(({ id, content }) => ({ role: "tool", tool_call_id: id, content }));

/** The folded list of a turn’s calls; `update()` shows what is new. */
export function callsView(turn) {
  const node = el("div", { class: "calls" });
  let shown = "";
  const update = () => {
    const calls = (turn.calls ?? []).filter(Boolean);
    const now = JSON.stringify(calls);
    node.hidden = calls.length === 0;
    if (now === shown) return;
    shown = now;
    const open = [...node.children].map((details) => details.open);
    put(
      node,
      calls.map((call, i) => callView(call, open[i])),
    );
  };
  return { node, update };
}

function callView({ name, arguments: text }, open) {
  const indented = laidOut(text);
  return el(
    "details",
    { class: "call", open },
    el("summary", {}, "Calls ", el("code", {}, plain(name || "a tool"))),
    el("pre", { tabindex: "0" }, plain(indented)),
    copyButton(() => indented, "Copy arguments"),
  );
}

/** JSON with line breaks; what is not JSON (yet), as it is. */
function laidOut(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/**
 * A form for what the calls gave back.
 *
 * @param {object} turn Whose calls wait.
 * @param {(results: {id: string, name: string, content: string}[]) => void} send Takes them, in the order of the calls.
 */
export function resultsForm(turn, send) {
  const calls = turn.calls.filter(Boolean);
  const boxes = calls.map((call) => el("textarea", { rows: "2", required: true, placeholder: `What ${call.name} gave` }));
  const form = el(
    "form",
    { class: "results" },
    calls.map((call, i) => el("label", {}, `Result of ${plain(call.name)}`, boxes[i])),
    el("button", { type: "submit", class: "main" }, calls.length === 1 ? "Send the result" : "Send the results"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(calls.map(({ id, name }, i) => ({ id, name, content: boxes[i].value })));
  });
  return form;
}
