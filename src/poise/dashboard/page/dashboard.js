/** The dashboard: asks every few seconds, and shows the answer. Texts are set as text, never as HTML. */

import { key } from "./api.js";
import { byId, el, put, table } from "./dom.js";
import { traitChart } from "./dashboard_charts.js";
import * as notice from "./notice.js";
import { count, known, number, percent } from "./words.js";

const PAUSE = 10_000; // milliseconds between polls
const TRAITS_PAUSE = 60_000;

let [overview, timer] = [null, null];
const traits = new Map(); // by source: when they were asked for, and what came
const asked = { alert: null };

class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}) };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch {
    throw new Refused(`No answer from ${location.host}: is “poise dashboard” still running?`, 0);
  }
  if (response.ok) return response.json();
  const body = await response.json().catch(() => null);
  throw new Refused(body?.error?.message ?? `The dashboard answered ${response.status}.`, response.status);
}

const post = (path, body) => ask(path, { method: "POST", body: JSON.stringify(body) });

async function poll() {
  clearTimeout(timer);
  try {
    overview = await ask(`/api/overview?hours=${byId("hours").value}`);
    notice.clear();
    show();
    byId("status").textContent = `as of ${clock(overview.now)}`;
    await Promise.all(overview.sources.filter((one) => one.readings).map(loadTraits));
  } catch (error) {
    byId("status").textContent = "not connected";
    notice.complain(error, poll);
    if (error.status === 401) return; // until there is a key
  }
  timer = setTimeout(poll, PAUSE);
}

async function loadTraits({ name }) {
  const days = byId("days").value;
  const before = traits.get(name);
  if (before && before.days === days && Date.now() - before.at < TRAITS_PAUSE) return;
  traits.set(name, { ...before, days, at: Date.now() });
  try {
    const data = await ask(`/api/sources/${encodeURIComponent(name)}/traits?days=${days}`);
    traits.set(name, { days, at: Date.now(), data, fault: "" });
  } catch (error) {
    traits.set(name, { days, at: Date.now(), data: null, fault: error.message });
  }
  showTraits(name);
}

function show() {
  const { role, keys, alerts, notes } = overview;
  byId("key-change").hidden = !keys;
  byId("role").textContent = role === "operator" ? "You may acknowledge, silence and test." : "View only: this key is a viewer’s.";
  put(byId("notes"), notes.map((text) => el("li", {}, text)));
  const open = alerts.filter((one) => one.ended === null);
  const past = alerts.filter((one) => one.ended !== null);
  put(byId("alert-list"), open.length ? open.map(alertCard) : el("p", {}, "None is open."));
  put(byId("past-list"), past.length ? pastTable(past) : el("p", { class: "small" }, "None yet."));
  document.title = open.length ? `(${open.length}) Poise dashboard` : "Poise dashboard";
  showSources();
  showRules();
}

function alertCard(alert) {
  const seen = alert.acknowledged !== null;
  const lines = [
    el(
      "p",
      { class: "line" },
      el("strong", {}, `${alert.rule}: ${alert.source}`),
      el("span", { class: `tag ${alert.severity}` }, alert.severity),
      alert.silenced && el("span", { class: "tag" }, "silenced"),
      el("span", { class: "small" }, `since ${clock(alert.began)}${alert.times > 1 ? `, ${alert.times} times` : ""}`),
    ),
    el("p", {}, alert.text),
    seen && el("p", { class: "small" }, `Acknowledged by ${alert.by} at ${clock(alert.acknowledged)}${alert.note ? `: ${alert.note}` : ""}`),
    !seen &&
      overview.role === "operator" &&
      el("button", { type: "button", onclick: () => openAcknowledge(alert) }, "Acknowledge"),
  ];
  return el("article", { class: `alert ${alert.severity}${seen ? " acknowledged" : ""}`, "aria-label": `Alert ${alert.id}` }, lines);
}

function pastTable(alerts) {
  const rows = alerts.map((one) => [
    `${one.rule}: ${one.source}`,
    `${clock(one.began)} to ${clock(one.ended)}`,
    el("span", {}, one.text),
    one.by ? `${one.by}${one.note ? `: ${one.note}` : ""}` : "–",
  ]);
  return table("Alerts that are over", ["Rule and source", "When", "What", "Acknowledged by"], rows);
}

function openAcknowledge(alert) {
  asked.alert = alert;
  byId("acknowledge-text").textContent = `${alert.rule}: ${alert.source}. ${alert.text}`;
  byId("acknowledge-note").value = "";
  byId("new-normal").checked = false;
  byId("new-normal-row").hidden = alert.kind !== "drift";
  byId("acknowledge").showModal();
}

/** A share with interval and n, in words. */
function share(of, decimals = 1) {
  if (!of || !known(of.value)) return "–";
  return `${percent(of.value, decimals)} [${percent(of.low, decimals)}, ${percent(of.high, decimals)}]`;
}

/** Alarms an answer may be more than one: a rate, not a share. */
const seconds = (value) => (known(value) ? `${number(value, value < 1 ? 3 : 1)} s` : "–");

function tile(value, words) {
  return el("li", {}, el("b", {}, value), el("span", {}, words));
}

function tiles(one) {
  const { figures, state, available } = one;
  const first = figures.latency.first_token;
  return el(
    "ul",
    { class: "tiles" },
    tile(share(available, 1), `of ${count(available.n, "poll")} found it up`),
    tile(first.n ? `${seconds(first.median)} / ${seconds(first.p95)}` : "–", `to the first token, median / 95 %, n = ${first.n.toLocaleString("en-GB")}`),
    tile(share(figures.faults), `faults of the server, of ${count(figures.requests, "request")}`),
    tile(share(figures.alarms), `alarms an answer, of ${count(figures.answers, "answer")}`),
    tile(interventions(figures), "interventions of guardrails"),
    tile(`${number(state.running, 0)} / ${number(state.queue, 0)}`, "answers that run / wait now"),
  );
}

function interventions({ actions }) {
  const words = Object.entries(actions).map(([action, n]) => `${n} ${action}`);
  return words.length ? words.join(", ") : "0";
}

function showSources() {
  put(
    byId("source-list"),
    overview.sources.map((one) =>
      el(
        "article",
        { class: "source", "aria-label": one.name },
        el(
          "p",
          { class: "line" },
          el("strong", {}, one.name),
          one.fault ? el("span", { class: "tag page" }, "away") : el("span", { class: one.seen ? "tag well" : "tag" }, one.seen ? "well" : "not polled yet"),
          el("span", { class: "small" }, about(one)),
        ),
        one.fault && el("p", { class: "caution" }, `${one.fault}${one.seen ? `; last well at ${clock(one.seen)}` : ""}`),
        one.address && tiles(one),
        el("div", { class: "traits", id: `traits-${one.name}` }),
        one.charts.length > 0 && charts(one.charts),
        one.versions.length > 0 && versions(one),
      ),
    ),
  );
  overview.sources.forEach((one) => showTraits(one.name));
}

function about({ address, facts }) {
  const runs = facts.model ? `${facts.model}, Poise ${facts.version ?? "?"}, ${facts.engine ?? ""} on ${facts.device ?? "?"}` : "";
  return [address, runs].filter(Boolean).join(" · ") || "readings of a run";
}

function charts(all) {
  const rows = all.map((one) => [
    one.trait,
    one.rule,
    one.promise ? Object.entries(one.sides).map(([side, { sum, limit }]) => `${side} ${number(sum, 1)} of ${number(limit, 1)}`).join(", ") : `${one.have} of ${one.wanted} answers`,
    el("span", {}, one.promise || one.note || "collecting ordinary answers"),
  ]);
  return el("details", {}, el("summary", {}, "Drift charts"), table("Drift charts", ["Trait", "Rule", "Sum", "What it promises"], rows));
}

function versions({ name, versions: all }) {
  const means = new Map(); // of traits, by version
  for (const { trait, versions: of } of traits.get(name)?.data?.traits ?? [])
    for (const { version, mean, low, high, n } of of)
      means.set(version, [...(means.get(version) ?? []), `${trait} ${number(mean, 2)} [${number(low, 2)}, ${number(high, 2)}], n = ${n}`]);
  const rows = all.map((one) => [
    one.version,
    `${clock(one.began)} to ${clock(one.ended)}`,
    one.answers.toLocaleString("en-GB"),
    share(one.faults),
    share(one.alarms),
    seconds(one.latency.first_token.p95),
    el("span", {}, (means.get(one.version) ?? ["–"]).join("; ")),
  ]);
  const heads = ["Version", "Served", "Answers", "Faults a request", "Alarms an answer", "First token, 95 %", "Mean readings"];
  return el("details", { open: all.length > 1 }, el("summary", {}, "Versions side by side"), table(`Versions of ${name}`, heads, rows));
}

function showTraits(name) {
  const place = document.getElementById(`traits-${name}`);
  const of = traits.get(name);
  if (!place || !of) return;
  if (of.fault) put(place, el("p", { class: "caution" }, of.fault));
  else if (of.data) put(place, of.data.traits.map((one) => traitChart(one, of.data)));
}

function showRules() {
  const operator = overview.role === "operator";
  const channels = overview.channels.join(" and ");
  const unsent = overview.unsent.map(({ channel, state, n, fault }) => `${channel}: ${n} ${state}${fault ? ` (${fault})` : ""}`);
  byId("notified").textContent = [channels ? `Notifications by ${channels}.` : "Nobody is notified: the file has no webhook and no mail.", ...unsent].join(" ");
  const rows = overview.rules.map((rule) => [
    rule.name,
    rule.when,
    rule.severity,
    rule.servers.join(", ") || "all",
    operator ? el("button", { type: "button", class: "quiet", disabled: !channels, onclick: (event) => test(rule, event.target) }, "Test") : "",
  ]);
  put(byId("rule-list"), table("Rules", ["Name", "When", "Severity", "Of", ""], rows));
  put(
    byId("silence-list"),
    overview.silences.length
      ? overview.silences.map((one) =>
          el(
            "p",
            { class: "row" },
            `${one.rule || "Every rule"} of ${one.source || "everything"} until ${clock(one.until)}, by ${one.by}${one.note ? `: ${one.note}` : ""}`,
            operator && el("button", { type: "button", class: "quiet", onclick: () => act(() => ask(`/api/silences/${one.id}`, { method: "DELETE" })) }, "Lift"),
          ),
        )
      : el("p", { class: "small" }, "None."),
  );
  byId("silence").hidden = !operator;
  choices(byId("silence-rule"), "every rule", overview.rules);
  choices(byId("silence-source"), "everything", overview.sources);
}

function choices(select, all, named) {
  const options = ["", ...named.map(({ name }) => name)];
  if (select.options.length === options.length) return;
  put(select, options.map((name) => el("option", { value: name }, name || all)));
}

async function test(rule, button) {
  button.disabled = true;
  await act(async () => {
    const { sent } = await post(`/api/rules/${encodeURIComponent(rule.name)}/test`, {});
    const words = sent.map(({ channel, fault }) => `${channel}: ${fault || "sent"}`).join("; ");
    byId("notified").textContent = `Test of ${rule.name}: ${words}`;
  }, false);
  button.disabled = false;
}

/** Do something, say what went wrong, and poll again. */
async function act(work, again = true) {
  try {
    await work();
    if (again) await poll();
  } catch (error) {
    notice.complain(error);
  }
}

function clock(time) {
  if (!known(time)) return "–";
  const at = new Date(time * 1000);
  const today = at.toDateString() === new Date().toDateString();
  const options = { hour: "2-digit", minute: "2-digit", ...(today ? {} : { day: "numeric", month: "short" }) };
  return at.toLocaleString("en-GB", options);
}

byId("hours").addEventListener("change", poll);
byId("days").addEventListener("change", poll);
byId("key-change").addEventListener("click", () => notice.askForKey(poll));
byId("acknowledge-close").addEventListener("click", () => byId("acknowledge").close("no"));
byId("acknowledge").addEventListener("close", () => {
  if (byId("acknowledge").returnValue !== "yes") return;
  const body = { note: byId("acknowledge-note").value, new_normal: byId("new-normal").checked };
  act(() => post(`/api/alerts/${asked.alert.id}/acknowledge`, body));
  byId("acknowledge").returnValue = "";
});
byId("silence").addEventListener("submit", (event) => {
  event.preventDefault();
  const body = {
    rule: byId("silence-rule").value,
    source: byId("silence-source").value,
    hours: Number(byId("silence-hours").value),
    note: byId("silence-note").value,
  };
  act(() => post("/api/silences", body));
});
poll();
