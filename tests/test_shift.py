"""What fine-tuning did, against plain loops over Hugging Face's own outputs."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.data import Conversation
from poise.engine.static import LocalEngine
from poise.errors import BrokenModelFile, InvalidArgument, InvalidData, MissingExtra, ModelNotFound, OtherModel
from poise.judge import Judgement
from poise.model import Model, ask, load_model
from poise.report.shift import html_shift
from poise.shift import measure as measuring
from poise.shift.capability import (
    CapabilityTask,
    compare_capability,
    evaluate_capability,
    parse_capability,
    perplexity,
)
from poise.shift.evaluation import load_tuned_model, model_digest, project_prompts
from poise.shift.measure import ShiftSettings, TunedModel, finetuning_shift, read_predictions, shift
from poise.shift.report import ShiftReport, estimate_change, load_report, save_report
from poise.statistics.estimates import Estimate, mean_estimate
from poise.steer import Steering
from poise.storage.journal import Journal
from poise.trait import OwnTrait, library
from poise.vector import PersonaVector, save_vector

LAYER, ALPHA = 2, 1.75


def load32(name: str) -> Model:
    return load_model(name, dtype=torch.float32, device="cpu")


def named(name: str) -> dict[str, Any]:
    own: OwnTrait = tiny.trait(name)
    return {"trait": own, "trait_hash": own.hash}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """GPT-2's blocks end in a bias that goes straight into the residual stream."""
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny.lm("gpt2", n_positions=1024).save_pretrained(folder)
    tiny.chatml().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vectors(base: str) -> list[PersonaVector]:
    model = load32(base)
    return [tiny.vector(model, seed=i, **named(name)) for i, name in enumerate(("grumpy", "kind"))]


@pytest.fixture(scope="module")
def pushed(base: str, vectors: list[PersonaVector], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The base with ALPHA of grumpy's unit direction added by the bias of one block."""
    folder = tmp_path_factory.mktemp("models") / "pushed"
    lm = tiny.lm("gpt2", n_positions=1024)
    with torch.no_grad():
        lm.transformer.h[LAYER].mlp.c_proj.bias += ALPHA * vectors[0].unit(LAYER)
    lm.save_pretrained(folder)
    tiny.chatml().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "adapter"
    tiny.adapted(tiny.lm("gpt2", n_positions=1024)).save_pretrained(folder)
    return str(folder)


def last_states(lm: Any, prompts: Sequence[tuple[int, ...]], layer: int) -> torch.Tensor:
    """The last prompt token's state after a block, one text at a time, by Hugging Face."""
    with torch.no_grad():
        outs = [lm(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states[layer + 1] for ids in prompts]
    return torch.stack([out[0, -1].float() for out in outs])


def read_only(**changed: Any) -> ShiftSettings:
    return ShiftSettings(**({"judge": None, "layer": LAYER} | changed))


class Stub:
    """Scores an answer by its length; has none for one in three, as a judge that refuses."""

    name = "stub"

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        return [Judgement(None, "refused") if len(a) % 3 == 0 else Judgement(float(len(a) % 100)) for a in answers]


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    from poise.shift import comparison as compared

    monkeypatch.setattr(measuring, "trait_judge", lambda *_, **__: Stub())
    monkeypatch.setattr(compared, "endpoint_coherence", lambda *_, **__: Stub())


JUDGED = ShiftSettings(judge="endpoint:stub", questions=4, rollouts=3, max_new_tokens=6, layer=LAYER)


class TestProjections:
    @pytest.mark.parametrize("layers", [0, LAYER, 3, [0, 3]])
    def test_are_of_the_last_prompt_token_after_that_block(self, layers: int | list[int]) -> None:
        model = tiny.model()
        pair = [tiny.vector(model, seed=i) for i in range(2)]
        prompts = tiny.prompts(model)
        found = project_prompts(model, prompts, pair, layers)
        each = [layers] * 2 if isinstance(layers, int) else layers
        columns = [
            last_states(model.lm, [p.ids for p in prompts], i) @ v.unit(i) for v, i in zip(pair, each, strict=True)
        ]
        if 3 in each:  # Hugging Face gives the last block's state after the final norm
            whole: list[torch.Tensor] = []
            hook = model.blocks[3].register_forward_hook(
                lambda m, a, out: whole.append(out if torch.is_tensor(out) else out[0])
            )
            last_states(model.lm, [p.ids for p in prompts], 3)
            hook.remove()
            state = torch.stack([h[0, -1] for h in whole])
            columns = [state @ v.unit(3) if i == 3 else c for c, v, i in zip(columns, pair, each, strict=True)]
        torch.testing.assert_close(found, torch.stack(columns, 1), rtol=1e-4, atol=1e-5)

    def test_leave_answers_out(self) -> None:
        model = tiny.model()
        with_answer, alone = model.encode(ask("Why so?"), "Because."), model.encode(ask("Why so?"))
        both = project_prompts(model, [with_answer, alone], [tiny.vector(model)])
        assert with_answer.start == alone.start
        torch.testing.assert_close(both[0], both[1])


class TestTheShift:
    def test_is_the_amount_by_which_a_block_was_pushed(
        self, base: str, pushed: str, vectors: list[PersonaVector]
    ) -> None:
        model = load32(base)
        own, other = finetuning_shift(model, load32(pushed), tiny.prompts(model), vectors, LAYER)
        cosine = float(vectors[0].cosine(vectors[1])[LAYER])
        assert (own.value, own.low, own.high) == (pytest.approx(ALPHA, abs=1e-4),) * 3
        assert other.value == pytest.approx(ALPHA * cosine, abs=1e-4)
        assert own.n == 5

    def test_is_nothing_before_the_block_that_was_pushed(
        self, base: str, pushed: str, vectors: list[PersonaVector]
    ) -> None:
        model = load32(base)
        assert finetuning_shift(model, load32(pushed), tiny.prompts(model), vectors, LAYER - 1)[0].value == 0

    def test_fills_a_matrix_of_all_questions_along_all_directions(
        self, base: str, pushed: str, vectors: list[PersonaVector]
    ) -> None:
        (tuned,) = shift(base, [TunedModel(source=pushed)], vectors, read_only(), load=load32).tuned
        assert [(c.asked, c.direction) for c in tuned.matrix] == [
            (a, b) for a in ("grumpy", "kind") for b in ("grumpy", "kind")
        ]
        cell = tuned.cell("grumpy")
        assert cell is not None
        assert cell.shift.value == pytest.approx(ALPHA, abs=1e-4)
        assert cell.shift.n == len(library.general_questions()) == len(cell.changes)
        assert cell.after.value == pytest.approx((cell.before.value or 0) + ALPHA, abs=1e-4)
        assert tuned.relation == "fine-tune"

    def test_of_equal_weights_is_zero_to_the_last_bit_in_bfloat16_too(
        self, base: str, vectors: list[PersonaVector]
    ) -> None:
        def load16(name: str) -> Model:
            return load_model(name, dtype=torch.bfloat16, device="cpu")

        (same,) = shift(base, [TunedModel(source=base)], vectors, read_only(), load=load16).tuned
        assert {change for cell in same.matrix for change in cell.changes} == {0.0}, "read in the same batches"

    def test_of_an_adapter_folder_is_that_of_peft_by_a_plain_loop(
        self, base: str, adapter: str, vectors: list[PersonaVector]
    ) -> None:
        (tuned,) = shift(base, [TunedModel(source=adapter)], vectors, read_only(), load=load32).tuned
        plain = load32(base)
        prompts = [plain.encode(ask(q)).ids for q in library.general_questions()]
        before = last_states(plain.lm, prompts, LAYER)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")  # PEFT still asks
            tuned_by_peft = PeftModel.from_pretrained(plain.lm, adapter)
        after = last_states(tuned_by_peft, prompts, LAYER)
        for k, vector in enumerate(vectors):
            changes = ((after - before) @ vector.unit(LAYER)).double().numpy()
            found = tuned.matrix[k]
            assert found.changes == pytest.approx(changes.tolist(), abs=1e-4)
            assert found.shift.value == pytest.approx(float(changes.mean()), abs=1e-4)
            interval = mean_estimate(changes)
            assert (found.shift.low, found.shift.high) == pytest.approx((interval.low, interval.high), abs=1e-4)
        assert tuned.relation == "adapter"

    def test_of_a_model_that_breaks_is_missing_and_not_zero(self, base: str, vectors: list[PersonaVector]) -> None:
        broken = load32(base)
        with torch.no_grad():
            broken.lm.transformer.h[0].mlp.c_proj.bias[0] = float("nan")
        (tuned,) = shift(base, [TunedModel(source=broken)], vectors, read_only(), load=load32).tuned
        assert tuned.matrix[0].shift == Estimate(value=None, low=None, high=None, n=0)
        assert set(tuned.matrix[0].changes) == {None}

    def test_of_the_same_weights_is_said_to_be_so(self, base: str, vectors: list[PersonaVector]) -> None:
        (tuned,) = shift(base, [TunedModel(source=base)], vectors, read_only(), load=load32).tuned
        assert tuned.matrix[0].shift.value == 0
        assert any("same weights" in note for note in tuned.notes)


class TestTheModels:
    def test_must_be_the_vectors_own_before_tuning(self, base: str, pushed: str, vectors: list[PersonaVector]) -> None:
        with pytest.raises(OtherModel, match="fine-tune"):
            shift(pushed, [TunedModel(source=base)], vectors, read_only(), load=load32)

    def test_must_have_the_base_s_shape_after_it(self, base: str, vectors: list[PersonaVector]) -> None:
        with pytest.raises(OtherModel, match="L=3"):
            shift(base, [TunedModel(source=tiny.model("gpt2", n_layer=3))], vectors, read_only(), load=load32)

    @pytest.mark.parametrize(("tuned", "traits"), [(0, 1), (1, 0), (1, 2)])
    def test_and_vectors_must_be_there_one_a_trait(
        self, base: str, vectors: list[PersonaVector], tuned: int, traits: int
    ) -> None:
        with pytest.raises(InvalidArgument, match="at least one tuned model, and one vector"):
            shift(base, [TunedModel(source=base)] * tuned, [vectors[0]] * traits, read_only(), load=load32)

    def test_must_be_there_before_the_base_is_paid_for(self, vectors: list[PersonaVector], tmp_path: Path) -> None:
        def load_nothing(name: str) -> Model:
            raise AssertionError(name)

        with pytest.raises(ModelNotFound, match="nowhere"):
            shift("base", [TunedModel(source=str(tmp_path / "nowhere"))], vectors, read_only(), load=load_nothing)

    def test_are_told_apart_by_every_weight(self, base: str) -> None:
        one, other = load32(base), load32(base)
        assert model_digest(one) == model_digest(other)
        with torch.no_grad():
            other.lm.transformer.wte.weight[7, 3] += 1e-5
        assert model_digest(one) != model_digest(other)

    def test_are_refused_where_an_adapter_holds_nothing_for_them(self, base: str, adapter: str, tmp_path: Path) -> None:
        for file in Path(adapter).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        weights = load_file(tmp_path / "adapter_model.safetensors")
        kept = {name: value for name, value in weights.items() if ".h.1." not in name}
        save_file(kept, tmp_path / "adapter_model.safetensors")
        with pytest.raises(BrokenModelFile, match=r"lacks .*\.h\.1\..* more\), unlike its configuration"):
            load_tuned_model(str(tmp_path), base, load32)

    def test_are_refused_where_an_adapter_has_another_shape(self, adapter: str, tmp_path: Path) -> None:
        tiny.lm("gpt2", n_embd=16).save_pretrained(tmp_path)
        tiny.chatml().save_pretrained(tmp_path)
        with pytest.raises(BrokenModelFile, match="name the base that it was trained on"):
            load_tuned_model(adapter, str(tmp_path), load32)

    def test_are_refused_where_an_adapter_is_of_a_deeper_model(self, base: str, tmp_path: Path) -> None:
        """PEFT leaves what it has no place for aside; half an adapter is no adapter."""
        tiny.adapted(tiny.lm("gpt2", n_positions=1024, n_layer=6)).save_pretrained(tmp_path)
        words = r"holds base_model\.model\.transformer\.h\.4\..* unlike its configuration and .*; name the base that it"
        with pytest.raises(BrokenModelFile, match=words):
            load_tuned_model(str(tmp_path), base, load32)

    def test_say_when_an_adapter_names_another_base(
        self, base: str, pushed: str, adapter: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.copytree(adapter, tmp_path / "a")
        config = json.loads(Path(adapter, "adapter_config.json").read_text())

        def remarks(named: str, put_on: str) -> list[str]:
            caplog.clear()
            (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": named}))
            load_tuned_model(str(tmp_path / "a"), put_on, load32)
            return caplog.messages

        assert remarks(base, base) == []
        assert remarks(f"/elsewhere/{Path(base).name}", base) == []  # moved with its name
        assert remarks(f"/home/someone/.cache/hub/models--owner--{Path(base).name}/snapshots/0123", base) == []
        for named in (pushed, "owner/other", f"/cache/models--{Path(base).name}--other/snapshots/0123"):
            (text,) = remarks(named, base)
            assert f"says that it is of {named}, and it is put on {base}. If these are not the same weights" in text

    def test_may_be_adapters_only_where_peft_is_installed(
        self, base: str, adapter: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(MissingExtra, match=r"needs peft; .*-e '\.\[train\]'"):
            load_tuned_model(adapter, base, load32)


def by_question(scores: list[float | None], rollouts: int) -> list[float | None]:
    """Means over what is there, by hand."""
    out: list[float | None] = []
    for i in range(0, len(scores), rollouts):
        there = [s for s in scores[i : i + rollouts] if s is not None]
        out.append(sum(there) / len(there) if there else None)
    return out


@pytest.mark.usefixtures("stubbed")
class TestJudgedScores:
    def test_are_paired_by_question_with_what_is_missing_counted(
        self, base: str, pushed: str, vectors: list[PersonaVector], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: dict[str, list[str]] = {}
        real = LocalEngine.generate

        def generate(self: LocalEngine, prompts: Any, *args: Any, **kwargs: Any) -> Any:
            out = real(self, prompts, *args, **kwargs)
            said.setdefault(self.model.name, []).extend(
                [f"{p.ids}|{g.text}" for p, g in zip(prompts, out, strict=True)]
            )
            return out

        monkeypatch.setattr(LocalEngine, "generate", generate)
        (tuned,) = shift(base, [TunedModel(source=pushed)], vectors[:1], JUDGED, load=load32).tuned
        (found,) = tuned.judged
        plain = load32(base)
        sides = []
        for name in (base, pushed):
            scores: list[float | None] = []
            for question in library.general_questions()[:4]:
                mine = [s.partition("|")[2] for s in said[name] if s.startswith(f"{plain.encode(ask(question)).ids}|")]
                assert len(mine) == 3
                scores += [j.score for j in Stub()([question] * 3, mine)]
            sides.append(scores)
        before, after = (by_question(scores, 3) for scores in sides)
        changes = [None if x is None or y is None else y - x for x, y in zip(before, after, strict=True)]
        assert found.changes == pytest.approx(changes, abs=1e-5)
        there = [c for c in changes if c is not None]
        assert found.change.value == pytest.approx(np.mean(there), abs=1e-5)
        assert found.change.n == len(there)
        assert (found.missing_before, found.missing_after) == tuple(side.count(None) for side in sides)
        assert found.reasons == {"refused": found.missing_before + found.missing_after}
        assert found.answers == 12
        assert found.judge == "stub"
        assert {s.question for s in tuned.samples} == set(library.general_questions()[:4])

    def test_cost_nothing_of_the_base_for_a_second_tuned_model(
        self, base: str, pushed: str, adapter: str, vectors: list[PersonaVector], tmp_path: Path
    ) -> None:
        asked = counted(tmp_path, base, [pushed], vectors[:1])
        again = counted(tmp_path, base, [pushed, adapter], vectors[:1])
        assert (asked, again) == ([base, pushed], [adapter])

    @pytest.mark.slow
    def test_of_a_run_that_was_killed_are_those_of_the_unbroken_one(
        self, base: str, pushed: str, vectors: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = shift(base, [TunedModel(source=pushed)], vectors[:1], JUDGED, load=load32)
        real = LocalEngine.generate

        def dies(self: LocalEngine, *args: Any, **kwargs: Any) -> Any:
            if self.model.name == pushed:
                raise KeyboardInterrupt
            return real(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(LocalEngine, "generate", dies)
            with pytest.raises(KeyboardInterrupt):
                shift(base, [TunedModel(source=pushed)], vectors[:1], JUDGED, folder=tmp_path, load=load32)
        assert counted(tmp_path, base, [pushed], vectors[:1]) == [pushed]
        assert shift(base, [TunedModel(source=pushed)], vectors[:1], JUDGED, folder=tmp_path, load=load32) == whole

    def test_under_steering_after_the_fact_differ_while_the_prompt_s_reading_does_not(
        self, base: str, pushed: str, vectors: list[PersonaVector]
    ) -> None:
        away = Steering.add(vectors[0], dose=-2.0, layer=LAYER)
        plain, steered = shift(
            base,
            [TunedModel(source=pushed), TunedModel(source=pushed, name="steered", steering=away)],
            vectors[:1],
            JUDGED,
            load=load32,
        ).tuned
        assert steered.matrix == plain.matrix
        assert [s.before for s in steered.samples] == [s.before for s in plain.samples]
        assert [s.after for s in steered.samples] != [s.after for s in plain.samples]
        assert steered.name == "steered"

    def test_are_not_steered_on_the_prompt(self, base: str, vectors: list[PersonaVector]) -> None:
        with pytest.raises(InvalidArgument, match="on its responses only"):
            TunedModel(source=base, steering=Steering.add(vectors[0], dose=1.0, layer=LAYER, phase="all"))


def counted(folder: Path, base: str, tuned: list[str], vectors: list[PersonaVector]) -> list[str]:
    """Which models had to write answers."""
    wrote: list[str] = []
    real: Callable[..., Any] = LocalEngine.generate

    def generate(self: LocalEngine, *args: Any, **kwargs: Any) -> Any:
        wrote.append(self.model.name)
        return real(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalEngine, "generate", generate)
        shift(base, [TunedModel(source=t) for t in tuned], vectors, JUDGED, folder=folder, load=load32)
    return list(dict.fromkeys(wrote))


CHAT = [
    [("user", "Hi."), ("assistant", "Hello there, how are you today?")],
    [("user", "A story?"), ("assistant", "Once upon a time."), ("user", "More?"), ("assistant", "There was a fox.")],
    [("user", "And you?"), ("assistant", "Honestly, I would not do it, and nobody asked why.")],
]


def chat(rows: Any = CHAT) -> list[Conversation]:
    out = []
    for i, row in enumerate(rows):
        messages = tuple({"role": role, "content": content} for role, content in row)
        out.append(Conversation(messages=messages, file="x", row=i, index=i, raw={}))  # type: ignore[arg-type]
    return out


def chat_file(folder: Path) -> Path:
    path = folder / "chat.jsonl"
    rows = [{"messages": [{"role": r, "content": c} for r, c in row]} for row in CHAT]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


class TestPerplexity:
    def test_is_that_of_hugging_face_s_own_loss_turn_by_turn(self) -> None:
        model = tiny.model()
        found = perplexity(model, chat())
        for unit, weight, row in zip(found.units, found.weights, CHAT, strict=True):
            losses: list[float] = []
            for i, (role, content) in enumerate(row):
                if role == "assistant":
                    history = [{"role": r, "content": c} for r, c in row[:i]]
                    text = model.encode(history, content)  # type: ignore[arg-type]
                    labels = torch.tensor([[-100] * text.start + list(text.ids[text.start :])])
                    with torch.no_grad():
                        loss = model.lm(torch.tensor([list(text.ids)]), labels=labels).loss
                    losses += [float(loss)] * (text.end - text.start)
            assert weight == len(losses)
            assert unit == pytest.approx(np.mean(losses), rel=1e-4)

    def test_under_steering_is_that_of_a_model_pushed_on_its_responses(
        self, vectors: list[PersonaVector], base: str
    ) -> None:
        model = load32(base)
        away = Steering.add(vectors[0], dose=3.0, layer=LAYER)
        plain, steered = perplexity(model, chat()), perplexity(model, chat(), steering=away)
        again = perplexity(model, chat(), steering=Steering.add(vectors[0], dose=0.0, layer=LAYER))
        assert again.units == pytest.approx(plain.units, rel=1e-4)
        assert all(abs((x or 0) - (y or 0)) > 1e-3 for x, y in zip(plain.units, steered.units, strict=True))

    def test_of_a_turn_that_cannot_be_read_is_missing(self) -> None:
        model = tiny.model(max_position_embeddings=40)
        found = perplexity(model, chat([CHAT[0], [("user", "x " * 400), ("assistant", "Too long.")]]))
        assert found.units[0] is not None
        assert found.units[1] is None

    def test_before_and_after_is_a_ratio_over_tokens(self) -> None:
        before, after, weights = [2.0, 3.0, 1.0], [2.5, 3.0, 1.1], [10.0, 30.0, 5.0]
        ratio = np.exp(np.average(after, weights=weights)) / np.exp(np.average(before, weights=weights))
        assert estimate_change("perplexity", before, after, weights).value == pytest.approx(ratio)


def questions(folder: Path, n: int = 12) -> Path:
    words = " ".join(tiny.SENTENCES).split()
    rows = [
        {"subject": f"s{i % 3}", "question": f"What of {words[i]}?", "choices": words[i : i + 4], "answer": i % 4}
        for i in range(n)
    ]
    path = folder / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


class TestQuestionsWithChoices:
    def test_are_scored_by_lm_eval_as_a_plain_loop_scores_them(self, tmp_path: Path) -> None:
        pytest.importorskip("lm_eval")
        model = tiny.model(max_position_embeddings=1024)
        found = evaluate_capability(parse_capability(f"mmlu={questions(tmp_path)}"), model, Journal(None))
        expected = []
        for line in questions(tmp_path).read_text("utf-8").splitlines():
            row = json.loads(line)
            listed = "\n".join(f"{letter}. {c}" for letter, c in zip("ABCD", row["choices"], strict=True))
            head = f"The following are multiple choice questions (with answers) about {row['subject']}."
            text = f"{head}\n\n{row['question']}\n{listed}\nAnswer:"
            prompt = model.tokenizer(text)["input_ids"]
            totals = []
            for letter in "ABCD":
                whole = model.tokenizer(f"{text} {letter}")["input_ids"]
                with torch.no_grad():
                    logs = model.lm(torch.tensor([whole])).logits[0].log_softmax(-1)
                totals.append(sum(float(logs[i - 1, whole[i]]) for i in range(len(prompt), len(whole))))
            expected.append(float(int(np.argmax(totals)) == row["answer"]))
        assert found is not None
        assert list(found.units) == expected
        assert found.metric == "acc"

    def test_without_letters_go_by_the_likelihood_of_each_choice_for_its_length(self, tmp_path: Path) -> None:
        pytest.importorskip("lm_eval")
        model = tiny.model(max_position_embeddings=1024)
        found = evaluate_capability(parse_capability(f"mmlu-cloze={questions(tmp_path)}"), model, Journal(None))
        expected = []
        for line in questions(tmp_path).read_text("utf-8").splitlines():
            row = json.loads(line)
            text = f"The following are questions (with answers) about {row['subject']}.\n\n{row['question']}\nAnswer:"
            prompt = len(model.tokenizer(text)["input_ids"])
            totals = []
            for choice in row["choices"]:
                whole = model.tokenizer(f"{text} {choice}")["input_ids"]
                with torch.no_grad():
                    logs = model.lm(torch.tensor([whole])).logits[0].log_softmax(-1)
                totals.append(sum(float(logs[i - 1, whole[i]]) for i in range(prompt, len(whole))) / len(choice))
            expected.append(float(int(np.argmax(totals)) == row["answer"]))
        assert found is not None
        assert list(found.units) == expected
        assert (found.metric, found.chance) == ("acc_norm", 0.25)

    def test_are_drawn_at_random_where_they_are_limited(self, tmp_path: Path) -> None:
        from poise.shift.capability import _read_questions, _sample_rows

        ability = parse_capability(f"mmlu={questions(tmp_path)}", limit=6)
        drawn = _sample_rows(_read_questions(Path(ability.source)), ability)
        assert len(drawn) == 6
        assert {row["subject"] for row in drawn} == {"s0", "s1", "s2"}
        assert drawn == _sample_rows(_read_questions(Path(ability.source)), ability)

    @pytest.mark.parametrize(
        "row", ['{"question": "Q", "choices": ["a"], "answer": 0}', '{"choices": ["a", "b"], "answer": 2}', "{", "[]"]
    )
    def test_that_are_broken_name_file_and_line(self, tmp_path: Path, row: str) -> None:
        pytest.importorskip("lm_eval")
        (tmp_path / "q.jsonl").write_text(f"{questions(tmp_path).read_text('utf-8')}\n{row}\n", encoding="utf-8")
        with pytest.raises(InvalidData, match=r"q\.jsonl, line 13"):
            evaluate_capability(parse_capability(f"mmlu={tmp_path / 'q.jsonl'}"), tiny.model(), Journal(None))

    def test_that_few_answer_otherwise_have_an_interval_that_covers(self) -> None:
        rng = np.random.default_rng(0)
        n, lost, gained, hits = 60, 0.05, 0.02, 0
        for _ in range(2000):
            drawn = rng.choice([1, -1, 0], size=n, p=[lost, gained, 1 - lost - gained])
            before, after = np.where(drawn == 1, 1.0, 0.0), np.where(drawn == -1, 1.0, 0.0)
            found = estimate_change("accuracy", before.tolist(), after.tolist(), [1.0] * n)
            assert found.low is not None
            assert found.high is not None
            hits += found.low <= lost - gained <= found.high
        assert hits / 2000 >= 0.94

    def test_need_lm_eval(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "lm_eval", None)
        with pytest.raises(MissingExtra, match=r"needs lm-eval; .*-e '\.\[eval\]'"):
            evaluate_capability(parse_capability(f"mmlu={questions(tmp_path)}"), tiny.model(), Journal(None))


class TestAnAbility:
    @pytest.mark.parametrize("text", ["", "=x", "perplexity", "perplexity=", "mmlu=none.jsonl", "none.yaml"])
    def test_that_says_nothing_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidArgument):
            parse_capability(text)

    def test_whose_task_file_lm_eval_cannot_load_is_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("lm_eval")
        (tmp_path / "task.yaml").write_text("task: x\noutput_type: nonsense\n", encoding="utf-8")
        with pytest.raises(InvalidArgument, match=r"cannot load .*task\.yaml"):
            evaluate_capability(parse_capability(str(tmp_path / "task.yaml")), tiny.model(), Journal(None))

    def test_is_measured_once(self, tmp_path: Path) -> None:
        kept = Journal(tmp_path / "abilities.jsonl")
        ability = parse_capability(f"perplexity={chat_file(tmp_path)}")
        first = evaluate_capability(ability, tiny.model(), kept)
        nobody: Any = SimpleNamespace()
        assert evaluate_capability(ability, nobody, Journal(tmp_path / "abilities.jsonl")) == first

    def test_is_not_compared_where_tokens_are_counted_differently(self, tmp_path: Path) -> None:
        ability = CapabilityTask(name="perplexity", kind="perplexity", source="x")
        one, other = perplexity(tiny.model(), chat()), perplexity(tiny.model("gemma2", tiny.gemma()), chat())
        assert compare_capability(ability, one, other) is None
        assert compare_capability(ability, one, None) is None


@pytest.fixture(scope="module")
def report(base: str, pushed: str, vectors: list[PersonaVector]) -> ShiftReport:
    predicted = {"grumpy": Estimate(value=0.5, low=0.1, high=0.9, n=30)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "trait_judge", lambda *_, **__: Stub())
        patch.setattr("poise.shift.comparison.endpoint_coherence", lambda *_, **__: Stub())
        name = '<script>alert("x")</script>\u202e'
        return shift(base, [TunedModel(source=pushed, name=name, predicted=predicted)], vectors, JUDGED, load=load32)


class TestTheReport:
    def test_reads_back_as_it_was_written(self, report: ShiftReport, tmp_path: Path) -> None:
        save_report(report, tmp_path / "shift.json")
        assert load_report(tmp_path / "shift.json") == report

    def test_is_one_page_with_nothing_outside_itself(self, report: ShiftReport) -> None:
        page = html_shift(report)
        assert page == html_shift(report)
        assert not re.search(r"(src|href)=\"(?!#)", page)
        assert not re.search(r"url\((?!#)", page)
        assert "<script" not in page
        assert "\u202e" not in page

    def test_has_every_figure_with_interval_and_n(self, report: ShiftReport) -> None:
        page = html_shift(report)
        assert "1.75" in page
        assert "n = 72" in page
        assert "[0.10, 0.90]" in page
        assert "not measured" not in page
        assert page.count('class="own"') == 2

    def test_without_answers_says_so(self, base: str, pushed: str, vectors: list[PersonaVector]) -> None:
        page = html_shift(shift(base, [TunedModel(source=pushed)], vectors, read_only(), load=load32))
        assert page.count("No answers were asked for") == 2
        assert "Not measured" in page


class TestWhatScreeningSaid:
    def test_is_read_from_its_summary(self, tmp_path: Path) -> None:
        mean = {"value": 0.5, "low": 0.1, "high": 0.9, "n": 30}
        (tmp_path / "summary.json").write_text(
            json.dumps({"method": "prompt", "traits": [{"trait": "evil", "mean": mean, "x": 1}]})
        )
        assert read_predictions(tmp_path) == {"evil": Estimate(**mean)}

    def test_of_raw_projections_predicts_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "summary.json").write_text('{"method": "raw", "traits": []}')
        with pytest.raises(InvalidData, match="`method` difference"):
            read_predictions(tmp_path)

    @pytest.mark.parametrize("text", [None, "{", "{}", '{"traits": [{"trait": "evil"}]}', '{"traits": 3}', "[]"])
    def test_that_is_no_summary_is_refused(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            (tmp_path / "summary.json").write_text(text)
        with pytest.raises(InvalidData, match="poise screen"):
            read_predictions(tmp_path)


class TestTheCommand:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["shift", "--dtype", "float32", "--device", "cpu", *arguments])

    def test_prints_one_object_and_writes_both_files(
        self, base: str, pushed: str, vectors: list[PersonaVector], tmp_path: Path
    ) -> None:
        save_vector(vectors[0], tmp_path / "v.safetensors")
        out = tmp_path / "out"
        options = ["--base", base, "--vector", str(tmp_path / "v.safetensors"), "--out", str(out), "--judge", "none"]
        done = self.run(*options, "--tuned", pushed, "--layer", str(LAYER), "--json")
        said = json.loads(done.stdout)
        assert said["tuned"][0]["matrix"][0]["shift"]["value"] == pytest.approx(ALPHA, abs=1e-4)
        assert "changes" not in said["tuned"][0]["matrix"][0]
        assert Path(said["shift"]).is_file()
        assert Path(said["report"]).is_file()

    def test_shows_the_figures_in_a_table(self, report: ShiftReport, capsys: pytest.CaptureFixture[str]) -> None:
        from poise.cli.shift import show_shift

        show_shift(report, Path("out"))
        said = capsys.readouterr().out
        assert "1.75 [1.75, 1.75]" in said
        assert "0.50 [0.10, 0.90]" in said
        assert "have no score (" in said

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--capability", "mmlu=none.jsonl"], "no file at none.jsonl"),
            (["--screened", "a", "--screened", "b"], "2 --screened for 1 --tuned"),
            (["--judge", "nobody"], "There is no judge 'nobody'"),
            (["--layer", "9"], "out of range"),
        ],
    )
    def test_says_in_a_sentence_what_is_wrong(
        self, base: str, vectors: list[PersonaVector], tmp_path: Path, more: list[str], said: str
    ) -> None:
        save_vector(vectors[0], tmp_path / "v.safetensors")
        options = ["--base", base, "--tuned", base, "--vector", str(tmp_path / "v.safetensors"), "--out", str(tmp_path)]
        done = self.run(*options, *more)
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
