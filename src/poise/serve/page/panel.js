/** A card for each vector beside the conversation: its dial, its gauge, its timeline, and whether it tints the text. */

import { byId, el, put, soon } from "./dom.js";
import { converted, dial, dialsInWords, warningOfAll } from "./dials.js";
import { gauge } from "./gauges.js";
import { legend, legendWords, scaleOf } from "./tint.js";
import { policy } from "./settings.js";
import { timeline } from "./timeline.js";
import { change, onChange, state } from "./state.js";
import { open } from "./vectors.js";
import { percent, sign, verdict } from "./words.js";

let cards = [];
let current = [];
const together = el("p", { class: "caution", id: "dials-warning", role: "status" });

/** The vector that tints the text, if one does. */
export const tinting = () => current.find(({ name }) => name === state.tint) ?? null;

/** The scale of the tint. */
export const scaleOfTint = () => (tinting() ? scaleOf(tinting(), state.turns) : null);

/** Build the cards anew for these vectors. */
export function show(vectors) {
  current = vectors;
  if (state.tint !== "" && !tinting() && vectors.length) change({ tint: vectors[0].name });
  cards = vectors.map(card);
  put(
    byId("cards"),
    vectors.length
      ? [together, ...cards.map(({ node }) => node)]
      : el(
          "p",
          {},
          "No vector is loaded, so nothing is watched and nothing can be turned. ",
          el("a", { href: "#vectors" }, "Upload one"),
          ".",
        ),
  );
  choices();
  showPolicy();
  showTogether();
  refresh();
}

function showTogether() {
  together.textContent = warningOfAll(current);
  const words = dialsInWords(current);
  for (const button of document.querySelectorAll(".sheet-open")) button.textContent = `Dials: ${words || "off"}`;
}

/** What the server’s rules do to every answer, and what they leave to the dials. */
function showPolicy() {
  const rules = policy();
  const sentences = [
    rules?.steer && `The server steers every answer by its policy, whatever the dials say: ${rules.steer}.`,
    rules && !rules.may_steer && "Its policy lets this key not steer, so dials that are turned are refused.",
    rules?.may_steer && rules.most_dose < 1 && `Its policy allows dials a dose of ${percent(rules.most_dose)} in all.`,
  ].filter(Boolean);
  byId("policy").textContent = sentences.join(" ");
  byId("policy").hidden = sentences.length === 0;
}

function card(vector) {
  const { name, description, certificate } = vector;
  const turned = dial(vector, current);
  const read = el("div", { class: "of-chat" });
  const mark = certificate ? `${sign(certificate)} ` : "";
  const tone = certificate ? certificate.verdict : "none";
  const node = el(
    "section",
    { class: "card", "aria-labelledby": `card-${name}` },
    el(
      "div",
      { class: "title" },
      el("h3", { id: `card-${name}` }, name),
      el(
        "button",
        {
          type: "button",
          class: `badge ${tone}`,
          title: "What was measured about this vector",
          onclick: () => open(name),
        },
        `${mark}${verdict(certificate)}`,
      ),
    ),
    description && el("p", { class: "small about", title: description }, description),
    turned.node,
    read,
  );
  return {
    node,
    showDial: turned.show,
    showReadings: () => {
      const scale = scaleOf(vector, state.turns);
      const last = state.turns.at(-1);
      put(read, gauge(vector, scale, last), timeline(vector, scale, state.turns));
    },
  };
}

function choices() {
  const select = byId("tint");
  put(
    select,
    current.map(({ name }) => el("option", { value: name }, name)),
    el("option", { value: "" }, "nothing"),
  );
  select.value = state.tint ?? "";
  byId("unit").value = state.unit;
}

/** Gauges, timelines and legend after a chunk. */
export const refresh = soon(() => {
  cards.forEach(({ showReadings }) => showReadings());
  const vector = tinting();
  const layer = vector && state.turns.at(-1)?.layers[vector.name];
  const scale = scaleOfTint();
  put(byId("legend"), scale ? legend(vector, scale) : []);
  byId("legend-words").textContent = vector ? legendWords(vector, scale, layer) : "";
}, 150);

/** Listen to the selects and to the state. */
export function start() {
  byId("tint").addEventListener("change", (event) => change({ tint: event.target.value }));
  byId("unit").addEventListener("change", (event) => {
    const unit = event.target.value;
    change({ dials: converted(current, unit), unit });
  });
  onChange((fields) => {
    if (fields.includes("model")) showPolicy();
    if (["dials", "unit", "shapes"].some((field) => fields.includes(field))) {
      cards.forEach(({ showDial }) => showDial());
      showTogether();
    }
    if (fields.includes("tint") || fields.includes("turns")) refresh();
  });
}
