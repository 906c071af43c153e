/** Text to the clipboard, also where the page did not come over https. */

import { say } from "./announce.js";
import { el } from "./dom.js";

const SHOWN = 1500; // milliseconds that a button says how it went

/** A button that copies what `text()` gives. */
export function copyButton(text, name = "Copy") {
  const button = el("button", { type: "button", class: "quiet copy" }, name);
  button.addEventListener("click", async () => {
    const done = await copied(text());
    button.textContent = done ? "Copied" : "Not copied";
    say(done ? "Copied." : "The browser did not let the page copy.");
    setTimeout(() => (button.textContent = name), SHOWN);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedByHand(text);
  }
}

function copiedByHand(text) {
  const box = el("textarea", { class: "hidden", "aria-hidden": "true", value: text });
  const before = document.activeElement;
  document.body.append(box);
  box.select();
  const done = document.execCommand("copy");
  box.remove();
  before?.focus();
  return done;
}
