/** On narrow screens the dials are a sheet above the composer, so that a question, its answer and the dials are in sight together. */

import { byId } from "./dom.js";

/** Listen to the buttons that open it. */
export function start() {
  let opener = null;
  const set = (open) => {
    window.dispatchEvent(new Event("resize")); // the composer’s place, which may have moved
    document.body.dataset.sheet = open ? "open" : "";
    for (const button of document.querySelectorAll(".sheet-open")) button.setAttribute("aria-expanded", String(open));
  };
  for (const button of document.querySelectorAll(".sheet-open")) {
    button.addEventListener("click", () => {
      const open = document.body.dataset.sheet !== "open";
      opener = button;
      set(open);
      if (open) byId("panel").focus({ preventScroll: true });
    });
  }
  const close = () => {
    set(false);
    opener?.focus({ preventScroll: true });
  };
  byId("sheet-close").addEventListener("click", close);
  byId("panel").addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.body.dataset.sheet !== "open") return;
    event.stopPropagation();
    close();
  });
  set(false);
}
