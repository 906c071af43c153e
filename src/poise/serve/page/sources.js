/**
 * Documents beside an answer: its citations as buttons that show their passage, what no passage supports, and what was
 * retrieved. Texts of documents are set as text, whatever they hold.
 */

import { el, put } from "./dom.js";
import { citedIn, placeOf, soundKnowledge, supportWords } from "./knowledge.js";
import { number, plain } from "./words.js";

const CITATION = /\s?\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\]/g;
const SHOWN = 420; // characters of a passage beside its citation

/** What a screen reader is told of an answer’s support at its end; nothing where it rests on no documents. */
export function spokenSupport(turn) {
  const knowledge = soundKnowledge(turn.knowledge);
  return knowledge?.sentences ? supportWords(knowledge) : "";
}

/**
 * The sources of a turn’s answer.
 *
 * @param {object} turn From `turn.js`.
 * @param {string} label Names the answer.
 * @param {HTMLElement} words Where the answer’s words are shown.
 * @returns `node` with the sources, `peek` with the passage that is pointed at, and `update(body)`, which shows what is new.
 */
export function sourcesView(turn, label, words) {
  const node = el("section", { class: "sources", "aria-label": `Sources of ${label}`, hidden: true });
  const peek = el("div", { class: "peek", "aria-hidden": "true", hidden: true });
  let [shown, marked, items] = ["", false, []];
  const pointer = pointing(node, peek, () => items);

  const update = (body) => {
    const knowledge = soundKnowledge(turn.knowledge);
    if (!knowledge) return;
    const checked = Boolean(knowledge.sentences) && turn.finish !== null;
    const now = `${knowledge.passages.length} ${checked}`;
    if (now !== shown) {
      items = knowledge.passages.map((passage) => passageItem(passage, `passage-${turn.id}-${passage.number}`, pointer));
      put(node, parts(checked ? knowledge : { passages: knowledge.passages }, items));
      node.hidden = false;
    }
    shown = now;
    if (!checked || marked) return;
    marked = true;
    const button = (passage, byModel) => citationButton(passage, byModel, `passage-${turn.id}-${passage.number}`, pointer);
    markSentences(turn, knowledge, body, button, pointer);
    replaceCitations(words, knowledge.passages, button);
  };
  return { node, peek, update };
}

function parts(knowledge, items) {
  const cited = citedIn(knowledge);
  const [used, others] = [true, false].map((wanted) => items.filter((_, i) => cited.has(i + 1) === wanted));
  const list = (some, name) => el("ol", { "aria-label": name }, some.map((item) => item.node));
  const name = used.length ? "Also retrieved" : "Retrieved";
  return [
    el("h4", {}, "Sources"),
    el("p", { class: "small" }, supportWords(knowledge)),
    used.length ? list(used, "Cited passages") : null,
    others.length ? el("details", { class: "others" }, el("summary", {}, `${name} (${others.length})`), list(others, name)) : null,
    knowledge.sentences?.length ? support(knowledge.sentences) : null,
  ];
}

/** A passage in the list: its place, its beginning, and all of it at a click. */
function passageItem({ number: n, text, marks, score, ...passage }, id, pointer) {
  const place = plain(placeOf(passage));
  const excerpt = el("p", { class: "excerpt", id, dir: "auto" }, plain(text));
  const head = el("button", { type: "button", class: "link", "aria-expanded": "false", "aria-controls": id }, el("b", {}, `[${n}]`), ` ${place}`);
  const open = (wanted) => {
    node.classList.toggle("open", wanted);
    head.setAttribute("aria-expanded", String(wanted));
  };
  const warning = marks.length ? el("p", { class: "caution" }, `Reads as an instruction to the model: ${marks.map(plain).join(", ")}.`) : null;
  const node = el("li", { class: "source", dataset: { passage: String(n) } }, head, warning, excerpt);
  node.title = score === null ? "" : `Score in the search: ${number(score, 3)}`;
  head.addEventListener("click", () => open(!node.classList.contains("open")));
  head.addEventListener("keydown", (event) => event.key === "Escape" && pointer.back(event));
  return { node, head, open, place, text };
}

/** Each sentence, and what the documents say of it. */
function support(sentences) {
  const line = (one) => {
    const from = one.passages.map((n) => `[${n}]`).join("");
    const how = one.cited_by === "model" ? "cited by the model" : "found by its words";
    const why = one.supported ? "" : `: ${plain(one.problem)}`;
    const figures = `${from ? `${from} ${how}, ` : ""}score ${number(one.score, 2)}`;
    return el(
      "li",
      { class: one.supported ? "supported" : "unsaid" },
      el("p", { dir: "auto" }, plain(one.text)),
      el("p", { class: "small" }, `${one.supported ? "✓ supported" : "✕ unsupported"}${why} (${figures})`),
    );
  };
  return el("details", { class: "support" }, el("summary", {}, "Sentence by sentence"), el("ol", {}, sentences.map(line)));
}

/** A citation in the answer. Its passage is its description; it shows it while it is pointed at, and leads to it. */
function citationButton({ number: n, ...passage }, byModel, id, pointer) {
  const how = byModel ? "" : ", found by the sentence’s words";
  const properties = { type: "button", class: `cite${byModel ? "" : " by-words"}`, "aria-describedby": id };
  const button = el("button", { ...properties, "aria-label": `Passage ${n}${how}: ${plain(placeOf(passage))}` }, String(n));
  return pointer.listen(button, { passage: n });
}

/** What points at passages: hover and focus show one, a click leads to it, Escape puts it away. */
function pointing(node, peek, items) {
  let from = null;
  const hide = () => {
    peek.hidden = true;
    for (const item of items()) item.node.classList.remove("lit");
  };
  const show = (button, { passage, problem }) => {
    hide();
    const item = items()[passage - 1];
    item?.node.classList.add("lit");
    const long = item && item.text.length > SHOWN;
    const text = item && (long ? `${item.text.slice(0, SHOWN)}…` : item.text);
    put(peek, item ? [el("p", { class: "small" }, `[${passage}] ${item.place}`), el("p", { dir: "auto" }, plain(text))] : el("p", {}, problem));
    peek.hidden = false;
    place(peek, button);
  };
  const lead = (button, { passage }) => {
    const item = items()[passage - 1];
    if (!item) return;
    from = button;
    hide();
    const folded = item.node.closest("details");
    if (folded) folded.open = true;
    item.open(true);
    item.head.focus();
    item.node.scrollIntoView({ block: "nearest" });
  };
  const listen = (button, what) => {
    const left = () => document.activeElement !== button && !peek.matches(":hover") && hide();
    button.addEventListener("mouseenter", () => show(button, what));
    button.addEventListener("focus", () => show(button, what));
    button.addEventListener("mouseleave", () => setTimeout(left, 120)); // long enough to go over to what is shown
    button.addEventListener("blur", () => !peek.matches(":hover") && hide());
    button.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || peek.hidden) return;
      event.stopPropagation();
      hide();
    });
    button.addEventListener("click", (event) => {
      event.stopPropagation();
      lead(button, what);
    });
    return button;
  };
  peek.addEventListener("mouseleave", hide);
  const back = (event) => {
    event.stopPropagation();
    from?.focus();
  };
  return { listen, back };
}

/** Put what is shown below a button, or above it where the form is in the way, within the answer’s own width. */
function place(peek, button) {
  const [frame, at] = [peek.parentElement.getBoundingClientRect(), button.getBoundingClientRect()];
  const width = button.closest(".words").offsetWidth; // so that the passage in the list stays in sight beside it
  const left = Math.max(0, Math.min(at.left - frame.left - 16, width - peek.offsetWidth));
  const floor = document.getElementById("ask")?.getBoundingClientRect().top || window.innerHeight;
  const above = at.bottom + peek.offsetHeight + 8 > floor && at.top - peek.offsetHeight > 60;
  peek.style.left = `${left}px`;
  peek.style.top = `${above ? at.top - frame.top - peek.offsetHeight - 6 : at.bottom - frame.top + 6}px`;
}

/** Underline what no passage supports, and put a citation behind sentences whose passage was found by their words. */
function markSentences(turn, { passages, sentences, answered }, body, button, pointer) {
  const tokens = rangesOf(turn.pieces);
  for (const one of sentences) {
    if (one.start === null || one.end === null) continue;
    const within = tokens.filter(({ from, to, blank }) => from < one.end && to > one.start && !blank);
    const spans = within.flatMap(({ i }) => body.spans(i));
    if (!spans.length) continue;
    if (!one.supported) spans.forEach((span) => span.classList.add("unsupported"));
    const found = answered && one.cited_by === "words" ? passages.filter((passage) => one.passages.includes(passage.number)) : [];
    const marks = found.map((passage) => button(passage, false));
    if (!one.supported) marks.push(unsupportedButton(one, pointer));
    spans.at(-1).after(...marks);
  }
}

function unsupportedButton({ problem }, pointer) {
  const why = `Unsupported: ${plain(problem)}.`;
  return pointer.listen(el("button", { type: "button", class: "cite unsaid", "aria-label": why }, "✕ unsupported"), { problem: why });
}

/** Where each piece of an answer stands in it, in whole characters as the server counts them. */
function rangesOf(pieces) {
  let at = 0;
  return pieces.map(({ text }, i) => {
    const signs = [...text];
    const blank = signs.length - [...text.trimStart()].length;
    const range = { i, from: at + blank, to: at + [...text.trimEnd()].length, blank: !text.trim() };
    at += signs.length;
    return range;
  });
}

/** Put buttons in the place of citations that the model wrote, such as “[1]”, wherever tokens part them; code stays. */
function replaceCitations(words, passages, button) {
  const walker = document.createTreeWalker(words, NodeFilter.SHOW_TEXT);
  const places = [];
  let at = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest("code, pre, .code-head, .cite")) continue;
    places.push({ node, at, length: node.length });
    at += node.length;
  }
  const text = places.map(({ node }) => node.data).join("");
  for (const match of [...text.matchAll(CITATION)].reverse()) {
    const cited = match[1].split(/\s*[,;]\s*/).map((n) => passages[Number(n) - 1]);
    const end = match.index + match[0].length;
    if (cited.every(Boolean)) exchange(places, match.index, end, cited.map((passage) => button(passage, true)));
  }
}

/** Put buttons in the place of a stretch of text, which may stand in several nodes. Later stretches come first. */
function exchange(places, start, end, buttons) {
  let put = false;
  for (const { node, at, length } of places) {
    const [from, to] = [Math.max(0, start - at), Math.min(length, end - at)];
    if (from >= to) continue;
    const rest = node.data.slice(to);
    node.data = node.data.slice(0, from);
    node.after(...(put ? [] : buttons), rest);
    put = true;
  }
}
