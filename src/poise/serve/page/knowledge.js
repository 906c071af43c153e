/** What an answer rests on, in the shape that the server gives; what a file or an older server has otherwise is left out. */

import { count } from "./words.js";

const text = (value) => (typeof value === "string" ? value : "");
const texts = (value) => (Array.isArray(value) ? value.filter((one) => typeof one === "string") : []);
const whole = (value) => (Number.isInteger(value) && value >= 0 ? value : null);
const list = (value, item) => (Array.isArray(value) ? value.filter((one) => one && typeof one === "object").map(item) : []);

const passage = (one, i) => ({
  number: i + 1,
  path: text(one.path),
  title: text(one.title),
  headings: texts(one.headings),
  page: whole(one.page),
  text: text(one.text),
  score: Number.isFinite(one.score) ? one.score : null,
  marks: texts(one.marks),
});

const sentence = (one) => ({
  text: text(one.text),
  start: whole(one.start),
  end: whole(one.end),
  passages: Array.isArray(one.passages) ? one.passages.filter((number) => whole(number)) : [],
  cited_by: one.cited_by === "model" ? "model" : "words",
  score: Number.isFinite(one.score) ? one.score : null,
  supported: one.supported === true,
  problem: text(one.problem),
});

/** The facts of an answer that rests on documents; null for anything else. */
export function soundKnowledge(value) {
  if (!value || typeof value !== "object" || !Array.isArray(value.passages)) return null;
  const passages = list(value.passages, passage);
  if (!Array.isArray(value.sentences)) return { passages };
  return { passages, answered: value.answered === true, sentences: list(value.sentences, sentence) };
}

/** File, headings and page or row of a passage. */
export const placeOf = ({ path, headings, page }) =>
  [...new Set([path, ...headings].filter(Boolean))].join(" › ") + (page ? `, ${page}` : "");

/** Numbers of the passages that the answer cites. */
export const citedIn = ({ sentences = [], answered = false }) =>
  new Set(answered ? sentences.flatMap((one) => one.passages) : []);

/** What the documents say of an answer, in a sentence or two. */
export function supportWords({ passages, sentences, answered }) {
  if (!passages.length) return "Nothing was found in the documents.";
  const retrieved = `${count(passages.length, "passage")} retrieved`;
  if (!sentences) return `${retrieved}.`;
  if (!answered) return `The answer is that the documents do not say it. ${retrieved}.`;
  const supported = sentences.filter((one) => one.supported).length;
  return `The documents support ${supported} of ${count(sentences.length, "sentence")}. ${retrieved}, ${citedIn({ sentences, answered }).size} cited.`;
}
