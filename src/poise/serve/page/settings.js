/** How answers are drawn: model, system prompt, temperature, longest answer, seed, thinking. */

import { byId, el, put } from "./dom.js";
import { change, onChange, state } from "./state.js";

const NUMBERS = { temperature: "temperature", "max-tokens": "maxTokens", seed: "seed" };

let offered = [];

/** Whether the model is to think before it replies: only where its template has a switch for that. */
export const thinks = () => state.thinking && offered.some(({ id, thinking }) => id === state.model && thinking);

/** Offer the server’s models. */
export function show(models) {
  offered = models;
  const select = byId("model");
  put(
    select,
    models.map(({ id }) => el("option", { value: id }, id)),
  );
  if (!models.some(({ id }) => id === state.model)) change({ model: models[0]?.id ?? null });
  select.value = state.model ?? "";
  showSwitch();
}

function showSwitch() {
  byId("thinking-row").hidden = !offered.some(({ id, thinking }) => id === state.model && thinking);
}

/** Listen to the fields; a number that is out of bounds is not taken. */
export function start() {
  byId("model").addEventListener("change", (event) => {
    change({ model: event.target.value });
    showSwitch();
  });
  byId("thinking").checked = state.thinking;
  byId("thinking").addEventListener("change", (event) => change({ thinking: event.target.checked }));
  byId("system").value = state.system;
  byId("system").addEventListener("input", (event) => change({ system: event.target.value }));
  for (const [id, field] of Object.entries(NUMBERS)) {
    const input = byId(id);
    input.value = state[field];
    input.addEventListener(
      "input",
      () => input.value !== "" && input.checkValidity() && change({ [field]: Number(input.value) }),
    );
    input.addEventListener("blur", () => {
      input.value = state[field];
    });
    onChange((fields) => {
      if (fields.includes(field) && document.activeElement !== input) input.value = state[field];
    });
  }
}
