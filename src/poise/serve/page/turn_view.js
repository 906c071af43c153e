/** A question with its answer: editing one, asking it again, and the way between the branches that this makes. */

import { siblingsOf } from "./branches.js";
import { resultsForm } from "./calls.js";
import { el } from "./dom.js";
import { plain } from "./words.js";

/**
 * The article of a turn.
 *
 * @param {object} shown `turn`, `i` its place, `view` its answer’s, `how` what steered it, `all` the conversation’s turns,
 *   `last` whether it is the last in sight.
 * @param {object} actions `edit(turn, text)`, `again(turn)`, `switchTo(turn)`, `results(turn, results)`.
 */
export function turnArticle({ turn, i, view, how, all, last }, actions) {
  const asked = el("div", { class: "question" });
  const edit = el("button", { type: "button", class: "quiet idle" }, "Edit");
  edit.addEventListener("click", () => editing(turn, asked, edit, actions));
  showQuestion(turn, asked);
  const again = el("button", { type: "button", class: "quiet idle", onclick: () => actions.again(turn) }, "Regenerate");
  again.title = "The same question once more, with the dials as they are and the next seed; this answer stays as a branch";
  view.tools.querySelector(".copy").after(again);
  const waits = last && turn.finish === "tool_calls" && turn.calls?.some(Boolean);
  return el(
    "article",
    { class: "turn", "aria-label": `Question and answer ${i + 1}` },
    el("div", { class: "line" }, el("h3", { class: "who" }, turn.results ? "Results of tools" : "You"), el("div", { class: "row" }, branches(turn, all, actions), turn.results ? null : edit)),
    asked,
    el("h3", { class: "who" }, `Answer ${i + 1}: `, el("span", { class: "how" }, how)),
    view.node,
    waits ? resultsForm(turn, (results) => actions.results(turn, results)) : null,
  );
}

function showQuestion(turn, asked) {
  const words = (text) => el("p", { class: "asked", dir: "auto" }, text);
  const parts = turn.results
    ? turn.results.map(({ name, content }) => [el("p", { class: "small" }, plain(name)), words(content)])
    : [words(turn.user)];
  asked.replaceChildren(...parts.flat());
}

function editing(turn, asked, button, actions) {
  const box = el("textarea", { rows: "3", "aria-label": "Edit the question", value: turn.user });
  const cancel = () => {
    showQuestion(turn, asked);
    button.hidden = false;
    button.focus();
  };
  const form = el(
    "form",
    { class: "editing" },
    box,
    el(
      "div",
      { class: "row" },
      el("button", { type: "submit", class: "main idle" }, "Ask this instead"),
      el("button", { type: "button", onclick: cancel }, "Cancel"),
      el("span", { class: "small" }, "What came before stays, as a branch."),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (box.value.trim()) actions.edit(turn, box.value);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target === box) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  button.hidden = true;
  asked.replaceChildren(form);
  box.focus();
}

/** “‹ 2 of 3 ›”, where there are others at this place. */
function branches(turn, all, { switchTo }) {
  const siblings = siblingsOf(all, turn);
  if (siblings.length < 2) return null;
  const at = siblings.indexOf(turn);
  const step = (to, sign, name) =>
    el(
      "button",
      { type: "button", class: "quiet idle", "aria-label": name, dataset: { stays: siblings[to] ? "" : "disabled" }, disabled: !siblings[to], onclick: () => switchTo(siblings[to]) },
      sign,
    );
  return el(
    "span",
    { class: "branches", role: "group", "aria-label": "Branches" },
    step(at - 1, "‹", "The branch before"),
    el("span", { class: "small" }, `${at + 1} of ${siblings.length}`),
    step(at + 1, "›", "The next branch"),
  );
}
