/** What went wrong, at the top of the page, with what can be done about it. */

import { byId, el, put } from "./dom.js";
import * as api from "./api.js";

let counting = null;

/** Take the notice away. */
export function clear() {
  clearInterval(counting);
  byId("notice").hidden = true;
  put(byId("notice"));
}

/**
 * Show an error.
 *
 * @param {Error} error Of `api`, or anything.
 * @param {(() => void)|null} again What to do at “Try again”.
 */
export function complain(error, again = null) {
  clear();
  if (error.status === 401) {
    askForKey(again);
    return;
  }
  const notice = byId("notice");
  const button =
    again &&
    el(
      "button",
      {
        type: "button",
        onclick: () => {
          clear();
          again();
        },
      },
      "Try again",
    );
  const close = el("button", { type: "button", class: "quiet", onclick: clear }, "Close");
  const wait = error.status === 429 ? Math.max(1, Math.ceil(error.retryAfter ?? 1)) : 0;
  const when = wait ? el("span", { class: "when" }, ` It says to try again in ${seconds(wait)}.`) : null;
  put(
    notice,
    el("p", {}, el("strong", {}, titleOf(error)), ` ${error.message}`, when),
    el("p", { class: "row" }, button, close),
  );
  notice.hidden = false;
  if (wait && button) countDown(button, wait);
}

function titleOf(error) {
  if (error.status === 429) return "The server is busy.";
  if (error.status === 0) return "No connection.";
  return error.status >= 500 ? "The server failed." : "That did not work.";
}

const seconds = (n) => `${n} second${n === 1 ? "" : "s"}`;

function countDown(button, wait) {
  let left = wait;
  const show = () => {
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left-- <= 0) clearInterval(counting);
  };
  show();
  counting = setInterval(show, 1000);
}

/** Ask for the server’s key; `then` runs once one is given. */
export function askForKey(then = null) {
  const dialog = byId("key");
  byId("key-change").hidden = false;
  const form = dialog.querySelector("form");
  byId("key-wrong").hidden = !api.key.get();
  form.onsubmit = () => {
    api.key.set(byId("key-value").value.trim());
    byId("key-value").value = "";
    then?.();
  };
  if (!dialog.open) dialog.showModal();
}
