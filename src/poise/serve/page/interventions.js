/** What a guardrail did to a question and its answer: by which rule, and never the words that matched. */

import { el } from "./dom.js";
import { number, rate } from "./words.js";

const DONE = { BLOCK: ["■ Blocked", "blocked"], ANONYMIZE: ["▨ Masked", "masked"], NONE: ["□ Noted", "noted"] };
const WHERE = { INPUT: "in the question", OUTPUT: "in the answer" };
const KINDS = {
  CUSTOM: (rule) => `the word “${rule}”`,
  PROFANITY: () => "profanity",
  PII: (rule) => rule.toLowerCase().replaceAll("_", " "),
  REGEX: (rule) => `the pattern “${rule}”`,
  TOPIC: (rule) => `the topic “${rule}”`,
  CONTENT: (rule) => `content: ${rule.toLowerCase().replaceAll("_", " ")}`,
};

/** A line for each rule that did something on one of the two ways, what it did most severely first. */
export function interventionLines(turn) {
  const groups = new Map();
  for (const one of turn.interventions ?? []) { // a conversation kept by an older page has none
    const key = JSON.stringify([one.source, one.action, one.kind, one.rule]);
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  const order = Object.keys(DONE);
  return [...groups.values()]
    .sort(([a], [b]) => order.indexOf(a.action) - order.indexOf(b.action))
    .map((group) => el("p", { class: `intervention ${DONE[group[0].action]?.[1] ?? "noted"}` }, lineOf(group)));
}

/** The guardrail that ended an answer; `null` where none did. */
export const blockedBy = (turn) => turn.interventions?.find(({ action }) => action === "BLOCK")?.guardrail ?? null;

function lineOf(group) {
  const [{ guardrail, source, action, kind, rule, score, threshold, rate: share }] = group;
  const name = KINDS[kind]?.(rule) ?? rule;
  const times = group.length > 1 ? `, ${group.length} times` : "";
  const read = score === undefined ? "" : ` (${number(score, 2, true)}, above ${number(threshold, 2, true)}; ${rate(share)} of normal texts are)`;
  const left = group.reduce((sum, one) => sum + (one.left ?? 0), 0);
  const gone = left ? ` ${left} of its characters had left by then.` : "";
  return `${DONE[action]?.[0] ?? action} ${WHERE[source] ?? ""}: ${name}${times}${read}, by the guardrail ${guardrail}.${gone}`;
}
