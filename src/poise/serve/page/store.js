/** Conversations in the browser’s own database (IndexedDB): each turn by itself, so that two tabs overwrite nothing of each other. */

const NAME = "poise";
const SWITCH = "poise.keep";
const LAST = "\uffff"; // after every id

let opened = null;

/** Whether conversations are to be kept in this browser. */
export const keeping = {
  get: () => readable(() => localStorage.getItem(SWITCH)) !== "no",
  set: (wanted) => readable(() => localStorage.setItem(SWITCH, wanted ? "yes" : "no")),
};

function readable(work) {
  try {
    return work();
  } catch {
    return null; // a browser that keeps nothing at all
  }
}

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("turns", { keyPath: ["conversation", "turn.id"] });
    };
    request.onsuccess = () => {
      request.result.onversionchange = () => request.result.close(); // a newer page’s, in another tab
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/** Do `work` with both stores, all or nothing; gives what its request gave. */
async function within(mode, work) {
  const transaction = (await database()).transaction(["conversations", "turns"], mode);
  const request = work(transaction.objectStore("conversations"), transaction.objectStore("turns"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = () => reject(transaction.error);
    transaction.onerror = () => reject(transaction.error);
  });
}

const turnsOf = (id) => IDBKeyRange.bound([id, ""], [id, LAST]);

/** All conversations without their turns, newest first: `id`, `title`, `created`, `updated`, `leaf`, `count`. */
export async function list() {
  const all = await within("readonly", (conversations) => conversations.getAll());
  return all.sort((one, other) => (one.updated < other.updated ? 1 : -1));
}

/** A conversation with its turns in the order of time; null where there is none (any more). */
export async function load(id) {
  const conversation = await within("readonly", (conversations) => conversations.get(id));
  if (!conversation) return null;
  const rows = await within("readonly", (_, turns) => turns.getAll(turnsOf(id)));
  const turns = rows.map(({ turn }) => turn).sort((one, other) => (one.time < other.time ? -1 : 1));
  return { ...conversation, turns };
}

/** Write a conversation’s entry, and these of its turns. */
export const save = (conversation, changed) =>
  within("readwrite", (conversations, turns) => {
    for (const turn of changed) turns.put({ conversation: conversation.id, turn });
    return conversations.put(conversation);
  });

export const removeTurn = (conversation, id) => within("readwrite", (_, turns) => turns.delete([conversation, id]));

export const remove = (id) =>
  within("readwrite", (conversations, turns) => {
    turns.delete(turnsOf(id));
    return conversations.delete(id);
  });

export const removeAll = () =>
  within("readwrite", (conversations, turns) => {
    turns.clear();
    return conversations.clear();
  });
