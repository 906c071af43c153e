/** The vectors that the server holds: what each is, its certificate, uploading one, deleting one. */

import { say } from "./announce.js";
import * as api from "./api.js";
import { certificateView } from "./certificate.js";
import { byId, el, put } from "./dom.js";
import * as notice from "./notice.js";
import { policy } from "./settings.js";
import { number, percent, verdict } from "./words.js";

const mayDelete = () => mayUpload() || policy().admin;
const mayUpload = () => policy()?.may_change_vectors ?? true; // of a server that does not say, the answer will

/** Show them; `reload` asks the server for them again. */
export function show(vectors, reload) {
  byId("upload").hidden = !mayUpload();
  byId("upload-closed").hidden = mayUpload();
  put(
    byId("vector-list"),
    vectors.length
      ? vectors.map((vector) => entry(vector, vectors.length === 1, reload))
      : el("p", {}, `None yet. poise extract makes one; ${mayUpload() ? "upload its file here" : "start the server with --vector FILE"}.`),
  );
}

function entry(vector, alone, reload) {
  const { name, description, layers, width, default_layer: layer, dose_of_one: one } = vector;
  return el(
    "article",
    { class: "vector", "aria-labelledby": `vector-${name}` },
    el("h3", { id: `vector-${name}` }, name),
    description && el("p", {}, description),
    el(
      "p",
      { class: "small" },
      `Steers at layer ${layer} of ${layers}, is read at layer ${vector.watched_layer ?? layer}; width ${width}. `,
      typeof one === "number" ? `α 1 is a dose of ${percent(one, 1)}.` : "",
    ),
    el(
      "details",
      { id: `certificate-${name}`, open: alone },
      el("summary", {}, vector.certificate ? `Certificate: ${verdict(vector.certificate)}` : "No certificate"),
      certificateView(vector),
    ),
    vector.fixed
      ? el("p", { class: "small given" }, "The server was started with it, so it cannot be deleted here.")
      : mayDelete() && el("p", { class: "row" }, deleteButton(name, reload)),
  );
}

function deleteButton(name, reload) {
  let sure = false;
  const button = el("button", { type: "button", class: "quiet" }, `Delete ${name}`);
  button.addEventListener("click", async () => {
    if (!sure) {
      sure = true;
      button.textContent = `Really delete ${name} from the server?`;
      return;
    }
    try {
      await api.remove(name);
      say(`${name} is deleted.`);
      await reload();
    } catch (error) {
      notice.complain(error);
    }
  });
  button.addEventListener("blur", () => {
    sure = false;
    button.textContent = `Delete ${name}`;
  });
  return button;
}

/** Open a vector’s certificate. */
export function open(name) {
  const details = byId(`certificate-${name}`);
  details.open = true;
  location.hash = "#vectors";
  requestAnimationFrame(() => {
    details.scrollIntoView();
    details.querySelector("summary").focus({ preventScroll: true });
  });
}

/** Listen to the upload form. */
export function start(reload) {
  const [file, name, said] = [byId("upload-file"), byId("upload-name"), byId("upload-said")];
  file.addEventListener("change", () => {
    const picked = file.files[0];
    if (picked) name.value = picked.name.replace(/\.safetensors$/i, "").replace(/[^\w-]+/g, "-");
  });
  byId("upload").addEventListener("submit", async (event) => {
    event.preventDefault();
    const picked = file.files[0];
    if (!picked) return;
    if (!/\.safetensors$/i.test(picked.name)) {
      said.textContent = `${picked.name} is no .safetensors file; nothing else is taken.`;
      return;
    }
    said.textContent = `Uploading ${picked.name} (${number(picked.size / 1e6)} MB) …`;
    byId("upload-send").disabled = true;
    try {
      const { name: held } = await api.upload(name.value.trim(), picked);
      await reload();
      said.textContent = `${held} is loaded: it is watched from now on, and has a dial in the chat.`;
      byId("upload").reset();
    } catch (error) {
      said.textContent = error.status === 401 ? "" : `Not taken: ${error.message}`;
      if (error.status === 401) notice.complain(error);
    }
    byId("upload-send").disabled = false;
  });
}
