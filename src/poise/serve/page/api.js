/** The server: its paths, its key, its errors as sentences, and streams chunk by chunk. Knows nothing of the page. */

const KEY = "poise.key";

/** Something that the server, or the way to it, said no to. */
class Refused extends Error {
  /**
   * @param {string} message One sentence for the user.
   * @param {number} status HTTP's; 0 where no answer came at all.
   * @param {number|null} retryAfter Seconds, if the server said so.
   */
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export const models = async () => (await json("/v1/models")).data;
export const vectors = async () => (await json("/v1/poise/vectors")).data;
export const dayOf = (hours, minutes) => json(`/v1/poise/readings/summary?hours=${hours}&bucket_minutes=${minutes}`);
export const alarmedSince = (since) =>
  json(`/v1/poise/readings?alarmed=true&limit=20&since=${encodeURIComponent(since)}`);
export const remove = (name) => json(`/v1/poise/vectors/${encodeURIComponent(name)}`, { method: "DELETE" });
export const upload = (name, file) =>
  json(`/v1/poise/vectors?name=${encodeURIComponent(name)}`, {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream" },
    body: file,
  });

/**
 * Chunks of an answer as they come.
 *
 * @param {object} request Body of `/v1/chat/completions`.
 * @param {AbortSignal} signal Ends the stream, and frees the server's slot.
 */
export async function* stream(request, signal) {
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true }),
    signal,
  });
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(chunk.error.message, 500);
    yield chunk;
  }
  throw new Refused("The connection ended before the answer did.");
}

async function* events(body, signal) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const parts = rest.split(/\r?\n\r?\n/);
      rest = done ? "" : parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
      if (done) return;
    }
  } catch (error) {
    throw away(error, signal);
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function json(path, options) {
  return (await ask(path, options)).json();
}

async function ask(path, options = {}) {
  const held = key.get();
  const headers = { ...options.headers, ...(held ? { Authorization: `Bearer ${held}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw away(error, options.signal);
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  const sentence = said?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  throw new Refused(sentence, response.status, Number.isFinite(seconds) ? seconds : null);
}

function away(error, signal) {
  if (signal?.aborted || error instanceof Refused) return error;
  return new Refused(`No answer from ${location.host}: is “poise serve” still running?`);
}
