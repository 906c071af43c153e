/** The conversations that this browser keeps: open, export, delete, import. */

import { say } from "./announce.js";
import { byId, el, put } from "./dom.js";
import { download, exported, imported } from "./export.js";
import * as keeping from "./keeping.js";
import { state } from "./state.js";
import * as store from "./store.js";
import { count } from "./words.js";

let vectors = [];

/** The page’s vectors changed. */
export const show = (loaded) => (vectors = loaded);

async function list() {
  const said = byId("kept-said");
  try {
    await keeping.keep();
    const all = await store.list();
    const wanted = byId("kept-find").value.trim().toLowerCase();
    const shown = all.filter(({ title }) => title.toLowerCase().includes(wanted));
    put(byId("kept-list"), shown.map(entry));
    said.textContent = all.length
      ? `${count(all.length, "conversation")} in this browser${shown.length < all.length ? `, ${shown.length} shown` : ""}.`
      : "None are kept yet.";
    for (const id of ["kept-export", "kept-delete"]) byId(id).disabled = all.length === 0;
  } catch {
    said.textContent = "This browser lets the page keep nothing: export conversations as files.";
  }
}

function entry({ id, title, updated, count: turns }) {
  const name = title || "(without a title)";
  const when = new Date(updated).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const open = el("button", { type: "button", class: "link", onclick: () => opened(id) }, name);
  if (id === state.conversation) open.setAttribute("aria-current", "true");
  return el(
    "li",
    {},
    el("div", {}, open, el("p", { class: "small" }, `${when}, ${count(turns, "answer")}`)),
    el(
      "div",
      { class: "row" },
      el("button", { type: "button", class: "quiet", "aria-label": `Export ${name}`, onclick: () => exportOne(id) }, "Export"),
      twice(el("button", { type: "button", class: "quiet" }, "Delete"), `Delete ${name}`, async () => {
        if (id === state.conversation) await stopped();
        await keeping.forget(id);
        drawn();
        await list();
        say("The conversation is deleted.");
      }),
    ),
  );
}

/** A button that acts at its second click only. */
function twice(button, name, act) {
  let sure = false;
  const words = button.textContent;
  const reset = () => {
    sure = false;
    button.textContent = words;
    button.setAttribute("aria-label", name);
  };
  button.addEventListener("click", () => {
    if (sure) {
      reset();
      act();
      return;
    }
    sure = true;
    button.textContent = `Really ${words.toLowerCase()}?`;
    button.removeAttribute("aria-label");
  });
  button.addEventListener("blur", reset);
  reset();
  return button;
}

let drawn = () => {};
let stopped = async () => {};

async function opened(id) {
  if (id !== state.conversation) await stopped();
  if (id !== state.conversation && !(await keeping.open(id))) {
    byId("kept-said").textContent = "It is gone: another tab deleted it.";
    return;
  }
  byId("kept").close();
  location.hash = "#chat";
  drawn();
  window.scrollTo(0, document.body.scrollHeight);
}

async function fileOf(id) {
  const { turns, ...facts } = await store.load(id);
  return exported({ ...facts, all: turns }, vectors);
}

async function exportOne(id) {
  download(await fileOf(id));
}

async function exportAll() {
  const conversations = [];
  for (const { id } of await store.list()) conversations.push(await fileOf(id));
  download({ page: 1, conversations }, "poise-all");
}

async function importFile(file) {
  const said = byId("kept-said");
  try {
    const found = imported(await file.text());
    for (const { title, leaf, all } of found) {
      const time = new Date().toISOString();
      const id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
      const facts = { id, title: title || all[0]?.user?.slice(0, 80) || "", created: time, updated: time, leaf, count: all.length };
      await store.save({ ...facts, model: state.model, system: all[0]?.system ?? "" }, all);
    }
    await list();
    said.textContent = `${count(found.length, "conversation")} imported. ${said.textContent}`;
  } catch (error) {
    said.textContent = `Not imported: ${error.message}`;
  }
}

/** Listen to the buttons; `redraw` shows another conversation, `anew` begins one, `stop` ends an answer on its way. */
export function start({ redraw, anew, stop }) {
  const dialog = byId("kept");
  drawn = redraw;
  stopped = stop;
  byId("kept-open").addEventListener("click", () => {
    dialog.showModal();
    list();
  });
  byId("kept-close").addEventListener("click", () => dialog.close());
  byId("kept-find").addEventListener("input", list);
  byId("kept-new").addEventListener("click", () => {
    dialog.close();
    anew();
  });
  byId("kept-export").addEventListener("click", exportAll);
  byId("kept-import").addEventListener("click", () => byId("kept-file").click());
  byId("kept-file").addEventListener("change", async (event) => {
    for (const file of event.target.files) await importFile(file);
    event.target.value = "";
  });
  twice(byId("kept-delete"), "Delete all conversations", async () => {
    await stopped();
    await keeping.forget();
    drawn();
    await list();
  });
  const keep = byId("kept-switch");
  keep.checked = store.keeping.get();
  keep.addEventListener("change", () => {
    store.keeping.set(keep.checked);
    if (keep.checked) keeping.keep();
  });
}
