/** Begin: load models and vectors, start every part, and show the view that the address names. */

import * as alarms from "./alarms.js";
import * as api from "./api.js";
import * as chat from "./chat.js";
import * as compare from "./compare.js";
import * as day from "./day.js";
import * as drawer from "./drawer.js";
import { byId } from "./dom.js";
import * as keeping from "./keeping.js";
import * as notice from "./notice.js";
import * as panel from "./panel.js";
import * as settings from "./settings.js";
import * as sheet from "./sheet.js";
import * as vectors from "./vectors.js";

const VIEWS = ["chat", "compare", "vectors", "day"];
const TITLES = { chat: "Chat", compare: "Side by side", vectors: "Vectors", day: "Last day" };

const restored = keeping.restore();

let connected = false;

async function load() {
  try {
    const [models, loaded] = await Promise.all([api.models(), api.vectors(), restored]);
    settings.show(models);
    showVectors(loaded);
    byId("status").textContent = `connected to ${models.map(({ id }) => id).join(", ")}`;
    connected = true;
    if (location.hash === "#day") day.show();
  } catch (error) {
    connected = false;
    byId("status").textContent = error.status === 401 ? "needs a key" : "not connected";
    await restored;
    chat.show([]);
    notice.complain(error, load);
  }
}

async function reloadVectors() {
  showVectors(await api.vectors());
}

function showVectors(loaded) {
  panel.show(loaded);
  chat.show(loaded);
  compare.show(loaded);
  drawer.show(loaded);
  vectors.show(loaded, reloadVectors);
}

function navigate() {
  const named = location.hash.slice(1);
  const view = VIEWS.includes(named) ? named : "chat";
  document.body.dataset.view = view;
  for (const one of VIEWS) byId(one).hidden = one !== view;
  byId("panel").hidden = view !== "chat" && view !== "compare";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${TITLES[view]} · Poise`;
  if (view === "day" && connected) day.show();
}

panel.start();
settings.start();
chat.start();
compare.start();
day.start();
vectors.start(reloadVectors);
alarms.start(chat.point);
keeping.start();
sheet.start();
drawer.start({
  redraw: () => {
    chat.draw();
    panel.refresh();
  },
  anew: chat.anew,
  stop: chat.stop,
});
window.addEventListener("hashchange", navigate);
byId("key-change").hidden = !api.key.get();
byId("key-change").addEventListener("click", () => notice.askForKey(load));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  const view = document.querySelector("main > section:not([hidden])");
  (view.querySelector("textarea") ?? view.querySelector("input, select, button")).focus();
});
navigate();
load();
