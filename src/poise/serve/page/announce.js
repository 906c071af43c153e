/** What a screen reader is told: an answer in whole sentences, and short remarks. Never token by token. */

import { byId, el } from "./dom.js";

const KEPT = 12;
const LEAST = 40; // characters: shorter sentences wait for the next

/** Say a sentence politely. */
export function say(text) {
  const live = byId("live");
  live.append(el("p", {}, text));
  while (live.children.length > KEPT) live.firstChild.remove();
}

/** Takes an answer bit by bit and says it sentence by sentence. */
export function sentences() {
  let waiting = "";
  return {
    hear(text) {
      waiting += text;
      const end = Math.max(...[". ", "! ", "? ", "\n"].map((sign) => waiting.lastIndexOf(sign)));
      if (end < LEAST) return;
      say(waiting.slice(0, end + 1).trim());
      waiting = waiting.slice(end + 1);
    },
    end(remark) {
      if (waiting.trim()) say(waiting.trim());
      waiting = "";
      if (remark) say(remark);
    },
  };
}
