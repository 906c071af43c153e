/** Every alarm of the conversation, the newest answer’s first and in the order below it, each a way to its token. */

import { say } from "./announce.js";
import { alarmWords } from "./answer.js";
import { byId, el, put } from "./dom.js";
import { onChange, state } from "./state.js";
import { count } from "./words.js";

/** Tell a screen reader. */
export const announced = (alarm) => say(alarmWords(alarm));

/** Show the list, and its length beside its title; `point(turn, alarm)` leads to its token. */
export function start(point) {
  const show = () => {
    const found = state.turns.map((turn, i) => turn.alarms.map((alarm) => ({ i, alarm }))).reverse().flat();
    byId("alarm-count").textContent = found.length ? `▲ ${count(found.length, "alarm")}` : "none in this conversation";
    byId("alarm-count").classList.toggle("raised", found.length > 0);
    put(
      byId("alarm-list"),
      found.map(({ i, alarm }) =>
        el(
          "li",
          {},
          el(
            "button",
            { type: "button", class: "link", onclick: () => point(i, alarm) },
            `Answer ${i + 1} ${alarmWords(alarm)}`,
          ),
        ),
      ),
    );
  };
  onChange((fields) => fields.includes("turns") && show());
  show();
}
