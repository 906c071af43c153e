/**
 * Markdown of an answer as nodes, a block at a time.
 *
 * marked parses it, remend closes what is open while it streams, DOMPurify lets through what is listed here. A model's HTML is
 * shown as the text that it is, an image as a link, and a link leads to http, https or mailto alone.
 */

import { copyButton } from "./copying.js";
import { el } from "./dom.js";
import { Marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";
import remend from "./vendor/remend.js";

export const LONGEST = 100_000; // characters: more is shown as it was written
const DEEPEST = 40; // quotes and lists in one another

const TAGS = "p br hr em strong del code pre blockquote ul ol li table thead tbody tr th td a h4 h5 h6".split(" ");
const ALLOWED = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "title", "align", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ADD_URI_SAFE_ATTR: ["align", "start"], // or their values would have to be addresses
  RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) =>
  text.replace(/[&<>"']/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[sign]);

const marked = new Marked({
  gfm: true,
  tokenizer: { html: () => undefined, tag: () => undefined }, // so that HTML is text like any other
  renderer: {
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 3); // below the page's own
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    image: ({ href, text }) => `<a href="${escaped(href)}">image: ${escaped(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    html: ({ text }) => escaped(text),
  },
});

const purify = DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A" || !node.hasAttribute("href")) return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

/**
 * The blocks of a text, in order: paragraphs, lists, tables, code.
 *
 * @param {string} text With \n alone as the end of a line.
 * @param {boolean} streaming Whether more is to come, so that what is open is shown as if it were closed.
 * @throws {RangeError} It is nested too deep to be shown so.
 * @returns {{key: string, start: number, end: number, nodes: () => DocumentFragment}[]} `key` is equal for equal blocks.
 */
export function blocksOf(text, streaming) {
  const tokens = marked.lexer(streaming ? healed(text) : text);
  if (depthOf(tokens) > DEEPEST) throw new RangeError("too deep");
  const links = Object.keys(tokens.links).length ? JSON.stringify(tokens.links) : "";
  const blocks = [];
  let end = 0;
  for (const token of tokens) {
    const start = Math.max(end, text.indexOf(token.raw, end));
    end = Math.min(text.length, start + token.raw.length);
    if (token.type === "space" || token.type === "def") continue;
    blocks.push({ key: links + token.raw, start, end, nodes: () => nodesOf(token, tokens.links) });
  }
  return blocks;
}

function depthOf(tokens) {
  const inner = tokens.flatMap(({ tokens: below, items }) => [below, items].filter(Boolean));
  return inner.length ? 1 + Math.max(...inner.map(depthOf)) : 1;
}

/** Open marks closed at the end; the head and the rule of a table wait for each other, lest they be read as text first. */
function healed(text) {
  const lines = text.split("\n");
  let first = lines.length;
  while (first > 0 && /^ {0,3}\|/.test(lines[first - 1])) first -= 1;
  const rows = lines.length - first;
  const settled = rows === 1 || rows === 2 ? lines.slice(0, first).join("\n") : text;
  const links = /\]\([^\s()]*$/.test(settled); // a bracket alone may close nothing: it stays as it was written
  return remend(settled, { katex: false, links, images: links });
}

function nodesOf(token, links) {
  const one = Object.assign([token], { links });
  const fragment = purify.sanitize(marked.parser(one), ALLOWED);
  for (const table of fragment.querySelectorAll("table")) {
    const scroll = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of the answer" });
    table.replaceWith(scroll);
    scroll.append(table);
  }
  for (const pre of fragment.querySelectorAll("pre")) {
    const language = /^\w[\w+#.-]{0,20}$/.test(token.lang ?? "") ? token.lang : "";
    const code = el("div", { class: "code" });
    const copy = copyButton(() => pre.textContent, "Copy code");
    pre.replaceWith(code);
    pre.setAttribute("tabindex", "0");
    code.append(el("div", { class: "code-head" }, el("span", { class: "small" }, language), copy), pre);
  }
  fragment.normalize();
  return fragment;
}
