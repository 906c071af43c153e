/** How answers are drawn: model, system prompt, temperature, longest answer, seed, thinking, documents. */

import { showWindow } from "./composer.js";
import { byId, el, put } from "./dom.js";
import { change, onChange, state } from "./state.js";

const NUMBERS = { temperature: "temperature", "max-tokens": "maxTokens", seed: "seed" };

let offered = [];

/** Whether the model is to think before it replies: only where its template has a switch for that. */
export const thinks = () => state.thinking && offered.some(({ id, thinking }) => id === state.model && thinking);

/** Whether answers are to rest on the server’s documents; null where it has none. */
export const documents = () => (offered.some(({ id, documents: any }) => id === state.model && any) ? state.documents : null);

/** The tools that the model may call; null for none. */
export const tools = () => toolsOf(state.tools);

/** @throws {Error} One sentence, where the text is no list of tools. */
function toolsOf(text) {
  if (!text.trim()) return null;
  let parsed;
  try {
    parsed = JSON.parse(text);
  } catch {
    throw new Error("The tools are not JSON.");
  }
  if (!Array.isArray(parsed) || parsed.some((tool) => typeof tool?.function?.name !== "string")) {
    throw new Error('The tools are no list of {"type": "function", "function": {"name": …}}.');
  }
  return parsed.length ? parsed : null;
}

/** The server’s rules for this key, where it says any. */
export const policy = () => offered.find(({ id }) => id === state.model)?.policy ?? null;

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
  byId("documents-row").hidden = documents() === null;
  byId("thinking-row").hidden = !offered.some(({ id, thinking }) => id === state.model && thinking);
  showWindow(offered.find(({ id }) => id === state.model)?.context_window);
  const most = policy()?.most_tokens;
  if (most) byId("max-tokens").max = String(most);
  if (most && state.maxTokens > most) change({ maxTokens: most });
}

/** Listen to the fields; a number that is out of bounds is not taken. */
export function start() {
  byId("model").addEventListener("change", (event) => {
    change({ model: event.target.value });
    showSwitch();
  });
  byId("thinking").checked = state.thinking;
  byId("thinking").addEventListener("change", (event) => change({ thinking: event.target.checked }));
  byId("documents").checked = state.documents;
  byId("documents").addEventListener("change", (event) => change({ documents: event.target.checked }));
  byId("system").value = state.system;
  byId("system").addEventListener("input", (event) => change({ system: event.target.value }));
  const box = byId("tools");
  box.value = state.tools;
  const checkTools = () => {
    let problem = "";
    try {
      toolsOf(box.value);
      change({ tools: box.value });
    } catch (error) {
      problem = `${error.message} They are not sent until they are.`;
      change({ tools: "" });
    }
    byId("tools-problem").textContent = problem;
  };
  box.addEventListener("input", checkTools);
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
