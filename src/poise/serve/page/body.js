/** The words of an answer on the page, each in a span of its token: formatted as Markdown, or as they were written. */

import { blocksOf, LONGEST } from "./markdown.js";
import { el } from "./dom.js";
import { plain } from "./words.js";

/**
 * The body of an answer.
 *
 * @param {HTMLElement} node Filled with the words.
 * @returns `update(pieces, formatted, streaming)` shows them and returns the numbers of the tokens whose spans are new;
 *   `spans(i)` are those of token i; `problem()` says why the text is not formatted although it should be.
 */
export function bodyOf(node) {
  let [mode, shown, blocks, problem] = [null, 0, [], ""];
  let spans = [];

  const clear = () => {
    node.replaceChildren();
    [shown, blocks, spans] = [0, [], []];
  };

  const written = (pieces) => {
    const first = shown;
    for (; shown < pieces.length; shown += 1) {
      spans[shown] = [spanOf(pieces[shown].text, shown)];
      node.append(spans[shown][0]);
    }
    return [first, shown];
  };

  const formatted = (pieces, streaming) => {
    const texts = pieces.map((piece) => piece.text.replaceAll("\r\n", "\n").replaceAll("\r", "\n"));
    const [text, places] = [texts.join(""), placesOf(texts)];
    const fresh = blocksOf(text, streaming);
    const same = sameBlocks(blocks, fresh);
    for (const old of blocks.splice(same)) old.parts.forEach((part) => part.remove());
    const from = same ? blocks[same - 1].end : 0;
    const first = places.tokenAt(from);
    spans.length = Math.min(spans.length, pieces.length);
    for (let i = first; i < pieces.length; i += 1) spans[i] = (spans[i] ?? []).filter((span) => span.isConnected);
    for (const block of fresh.slice(same)) {
      const fragment = block.nodes();
      inSpans(fragment, text, block, places, spans);
      blocks.push({ ...block, parts: [...fragment.childNodes] });
      node.append(fragment);
    }
    shown = pieces.length;
    return [first, shown];
  };

  return {
    update(pieces, asMarkdown, streaming) {
      const wanted = asMarkdown && !problem ? "formatted" : "written";
      if (wanted !== mode || shown > pieces.length) clear();
      mode = wanted;
      node.classList.toggle("formatted", mode === "formatted");
      if (mode === "written") return written(pieces);
      try {
        const length = pieces.reduce((sum, { text }) => sum + text.length, 0);
        if (length > LONGEST) throw new RangeError("too long");
        return formatted(pieces, streaming);
      } catch {
        problem = "Shown as it was written: its formatting is too long or too deep.";
        return this.update(pieces, asMarkdown, streaming);
      }
    },
    reset: () => {
      clear();
      problem = "";
    },
    spans: (i) => spans[i] ?? [],
    problem: () => problem,
  };
}

/** How many blocks at the beginning are as they were. */
function sameBlocks(old, fresh) {
  let same = 0;
  while (same < old.length && old[same].key === fresh[same]?.key && old[same].start === fresh[same].start) same += 1;
  return same;
}

/** Where tokens begin in the text they make, and which one a place belongs to. */
function placesOf(texts) {
  const ends = [];
  texts.reduce((sum, text) => (ends.push(sum + text.length), sum + text.length), 0);
  return {
    ends,
    tokenAt(place) {
      let [low, high] = [0, ends.length - 1];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (ends[middle] > place) high = middle;
        else low = middle + 1;
      }
      return Math.max(0, low);
    },
  };
}

/**
 * Put each text of a block into spans of the tokens that it came from.
 *
 * Formatting leaves signs out, so a rendered text is looked for in what was written from where the one before ended:
 * as a stretch, else word by word, else character by character.
 */
function inSpans(fragment, text, { start, end }, places, spans) {
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) if (!walker.currentNode.parentElement?.closest(".code-head")) texts.push(walker.currentNode);
  let at = start;
  for (const node of texts) {
    if (!node.data.trim() && !node.parentElement?.closest("pre")) continue; // between rows and items
    const origins = originsOf(node.data, text, at, end);
    at = Math.min(end, origins.at(-1) + 1);
    const parts = document.createDocumentFragment();
    for (let from = 0; from < node.data.length; ) {
      const token = places.tokenAt(origins[from]);
      let to = from + 1;
      while (to < node.data.length && origins[to] < places.ends[token]) to += 1;
      const span = spanOf(node.data.slice(from, to), token);
      (spans[token] ??= []).push(span);
      parts.append(span);
      from = to;
    }
    node.replaceWith(parts);
  }
}

/** The place in `text` of every character of a rendered stretch, never going back. */
function originsOf(rendered, text, start, end) {
  const stretch = text.indexOf(rendered, start);
  if (stretch >= 0 && stretch + rendered.length <= end) {
    return Array.from({ length: rendered.length }, (_, i) => stretch + i);
  }
  const origins = [];
  let at = start;
  for (const [word] of rendered.matchAll(/\s+|\S+/g)) {
    const place = text.indexOf(word, at);
    if (place >= 0 && place + word.length <= end) {
      for (let i = 0; i < word.length; i += 1) origins.push(place + i);
      at = place + word.length;
      continue;
    }
    for (let i = 0; i < word.length; i += 1) {
      const sign = text.indexOf(word[i], at);
      if (sign >= 0 && sign < end) at = sign + 1;
      origins.push(Math.max(start, Math.min(at, end) - 1));
    }
  }
  return origins;
}

/** A token’s blank and its word: a blank is tinted inside of a passage only. */
export function spanOf(text, token) {
  const [, blank, word] = plain(text).match(/^(\s*)([^]*)$/);
  return el("span", { class: "token", dataset: { token: String(token) } }, el("i", {}, blank), el("i", {}, word));
}
