"""Preventative steering in stock trainers: right to the last digit, off where nothing is learnt, never saved."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

import tiny
from poise import vector as vectors
from poise.errors import HookDidNotFire, InvalidArgument, InvalidData, InvalidSteering, OtherModel
from poise.model import Model
from poise.steer import Steering, Term, steer_training
from poise.steer.training import Positions
from poise.train.examples import marking_collator
from poise.train.vaccine_callback import VaccineCallback, vaccine_steering
from poise.vector import PersonaVector

IGNORED = -100


def rows(model: Model, n: int = 8) -> list[dict[str, list[int]]]:
    """Texts with labels on their answers."""
    out = []
    for text in tiny.texts(model, n):
        labels = [IGNORED] * text.start + list(text.ids[text.start : text.end])
        out.append({"input_ids": list(text.ids), "labels": labels})
    return out


def collate(side: str) -> Any:
    """Pads on one side, as collators differ in."""

    def together(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        out: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for row in batch:
            n = longest - len(row["input_ids"])
            for name, values, fill in (
                ("input_ids", row["input_ids"], 0),
                ("labels", row["labels"], IGNORED),
                ("attention_mask", [1] * len(row["input_ids"]), 0),
            ):
                out[name].append([fill] * n + values if side == "left" else values + [fill] * n)
        return {name: torch.tensor(values) for name, values in out.items()}

    return together


def trainer(
    model: Model, folder: Path, *callbacks: Any, side: str = "right", data: Any = None, lm: Any = None, **options: Any
) -> Trainer:
    """Plain SGD, so that a step can be taken by hand."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "train_sampling_strategy": "sequential",
        "average_tokens_across_devices": False,
    }
    arguments = {name: value for name, value in settings.items() if name in TrainingArguments.__dataclass_fields__}
    run = Trainer(
        model=model.lm if lm is None else lm,
        args=TrainingArguments(output_dir=str(folder), **(arguments | options)),
        train_dataset=Dataset.from_list(rows(model) if data is None else data),
        processing_class=model.tokenizer,
        data_collator=collate(side),
        callbacks=list(callbacks),
    )
    if arguments != settings:  # transformers before they had a setting for it
        run._get_train_sampler = lambda *given: SequentialSampler(run.train_dataset)  # type: ignore[method-assign]
    return run


def by_hand(
    model: Model, work: Any, *, batch: int = 4, steps: int = 2, positions: str = "all", marks: Any = None
) -> dict[str, Any]:
    """The same steps with wrapped block forwards instead of hooks, and nothing of Poise or of the trainer."""
    lm = copy.deepcopy(model.lm).train()
    blocks = lm.model.layers
    mask: list[torch.Tensor | None] = [None]
    for layer, block in enumerate(blocks):

        def forward(h: torch.Tensor, *args: Any, layer: int = layer, plain: Any = block.forward, **given: Any) -> Any:
            return work(layer, plain(h, *args, **given), mask[0])

        block.forward = forward
    data = rows(model)
    for step in range(steps):
        chosen = [data[(step * batch + i) % len(data)] for i in range(batch)]
        inputs = collate("right")(chosen)
        mask[0] = (inputs["labels"] != IGNORED).unsqueeze(-1) if positions == "response" else None
        if marks is not None:
            now = torch.tensor([marks[(step * batch + i) % len(data)] for i in range(batch)]).view(-1, 1, 1)
            mask[0] = now if mask[0] is None else now & mask[0]
        logits = lm(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), ignore_index=IGNORED
        )
        lm.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in lm.parameters():
                if p.grad is not None:
                    p -= 0.05 * p.grad
    return dict(lm.state_dict())


def adding(vector: PersonaVector, coef: float, layers: list[int]) -> Any:
    def work(layer: int, h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if layer not in layers:
            return h
        extra = coef * vector.directions[layer].to(h.dtype)
        return h + (extra if mask is None else extra * mask)

    return work


def increments(vector: PersonaVector, coef: float) -> Any:
    steps = torch.diff(vector.directions, dim=0, prepend=torch.zeros_like(vector.directions[:1]))
    return lambda layer, h, mask: h + coef * steps[layer].to(h.dtype)


def removing(vector: PersonaVector, at_layer: int) -> Any:
    unit = vector.directions[at_layer] / vector.directions[at_layer].norm()

    def work(layer: int, h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return h - (h.float() @ unit).unsqueeze(-1).to(h.dtype) * unit.to(h.dtype) if layer == at_layer else h

    return work


def same(a: dict[str, Any], b: dict[str, Any], *, within: float = 2e-5) -> bool:
    return all(torch.allclose(a[name], b[name], atol=within, rtol=1e-4) for name in a)


@pytest.fixture
def base() -> Model:
    model = tiny.model("llama")
    model.lm.requires_grad_(True)
    return model


@pytest.fixture
def vector(base: Model) -> PersonaVector:
    return tiny.vector(base, scale=0.5)


class TestStepsAreThoseTakenByHand:
    def test_at_one_layer(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        plain = by_hand(base, lambda layer, h, mask: h)
        trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2))).train()
        assert same(base.lm.state_dict(), wanted)
        assert not same(base.lm.state_dict(), plain)

    def test_as_increments_at_all_layers(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, increments(vector, 0.7))
        trainer(
            base, tmp_path, VaccineCallback(Steering((Term(vector=vector, value=0.7, layers="increments"),)))
        ).train()
        assert same(base.lm.state_dict(), wanted)

    def test_projecting_out(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, removing(vector, 1))
        trainer(base, tmp_path, VaccineCallback(Steering.project_out(vector, layer=1))).train()
        assert same(base.lm.state_dict(), wanted)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_on_response_positions_only_whatever_the_padding(
        self, base: Model, vector: PersonaVector, tmp_path: Path, side: str
    ) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [1]), positions="response")
        callback = VaccineCallback(Steering.add(vector, coef=1.5, layer=1), positions="response")
        trainer(base, tmp_path, callback, side=side).train()
        assert same(base.lm.state_dict(), wanted)

    @pytest.mark.parametrize("positions", ["all", "response"])
    def test_on_marked_rows_only(
        self, base: Model, vector: PersonaVector, tmp_path: Path, positions: Positions
    ) -> None:
        marks = [i % 3 == 0 for i in range(8)]
        wanted = by_hand(base, adding(vector, 1.5, [2]), positions=positions, marks=marks)
        data = [row | {"vaccinated": mark} for row, mark in zip(rows(base), marks, strict=True)]
        callback = VaccineCallback(Steering.add(vector, coef=1.5, layer=2), positions=positions, marked=True)
        run = trainer(base, tmp_path, callback, data=data, remove_unused_columns=False)
        run.data_collator = marking_collator(run.data_collator)
        run.train()
        assert same(base.lm.state_dict(), wanted)

    def test_under_left_padding(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2)), side="left").train()
        assert same(base.lm.state_dict(), wanted)

    def test_under_gradient_accumulation(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        callback = VaccineCallback(Steering.add(vector, coef=1.5, layer=2))
        options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        trainer(base, tmp_path, callback, **options).train()
        assert same(base.lm.state_dict(), wanted)

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("positions", ["all", "response"])
    def test_under_gradient_checkpointing(
        self, base: Model, vector: PersonaVector, tmp_path: Path, reentrant: bool, positions: Any
    ) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]), positions=positions)
        callback = VaccineCallback(Steering.add(vector, coef=1.5, layer=2), positions=positions)
        base.lm.enable_input_require_grads()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base.lm.gradient_checkpointing_enable({"use_reentrant": reentrant})
            trainer(base, tmp_path, callback).train()
        assert same(base.lm.state_dict(), wanted)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_on_marked_rows_under_gradient_checkpointing_and_accumulation(
        self, base: Model, vector: PersonaVector, tmp_path: Path, reentrant: bool
    ) -> None:
        marks = [i % 3 == 0 for i in range(8)]
        wanted = by_hand(base, adding(vector, 1.5, [2]), marks=marks)
        data = [row | {"vaccinated": mark} for row, mark in zip(rows(base), marks, strict=True)]
        callback = VaccineCallback(Steering.add(vector, coef=1.5, layer=2), marked=True)
        halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        base.lm.enable_input_require_grads()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base.lm.gradient_checkpointing_enable({"use_reentrant": reentrant})
            run = trainer(base, tmp_path, callback, data=data, remove_unused_columns=False, **halves)
            run.data_collator = marking_collator(run.data_collator)
            run.train()
        assert same(base.lm.state_dict(), wanted)

    @pytest.mark.slow
    def test_when_compiled(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        callback = VaccineCallback(Steering.add(vector, coef=1.5, layer=2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(base, tmp_path, callback, torch_compile=True, torch_compile_backend="aot_eager").train()
        assert same(base.lm.state_dict(), wanted)

    @pytest.mark.slow
    def test_when_the_user_compiled_it(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base.lm.compile(backend="eager")
            trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2))).train()
        assert same(base.lm.state_dict(), wanted)

    def test_in_bfloat16_autocast_it_is_near(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2)), bf16=True).train()
        assert same(base.lm.state_dict(), wanted, within=5e-3)


class TestOnlyWhatIsLearntFromIsSteered:
    def test_evaluation_is_not(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        callback = VaccineCallback(Steering.add(vector, coef=3.0, layer=2))
        watched = trainer(base, tmp_path, callback, learning_rate=0.0)
        watched.eval_dataset = watched.train_dataset
        plain = watched.evaluate()["eval_loss"]
        seen: list[float] = []

        class Evaluate(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                seen.append(watched.evaluate()["eval_loss"])

        watched.add_callback(Evaluate())
        watched.train()
        assert len(seen) == 2
        assert all(loss == pytest.approx(plain, abs=1e-6) for loss in seen)

    def test_generation_in_the_middle_is_not(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        prompt = torch.tensor([list(tiny.prompts(base, 1)[0].ids)])
        wanted = base.lm.generate(prompt, max_new_tokens=8, do_sample=False).tolist()
        said: list[Any] = []

        class Talk(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                given["model"].eval()
                said.append(given["model"].generate(prompt, max_new_tokens=8, do_sample=False).tolist())

        callback = VaccineCallback(Steering.add(vector, coef=30.0, layer=2))
        trainer(base, tmp_path, callback, Talk(), learning_rate=0.0).train()
        assert said == [wanted, wanted]

    def test_a_pass_without_gradients_is_not(self, base: Model, vector: PersonaVector) -> None:
        ids = torch.tensor([[5, 6, 7, 8]])
        with steer_training(base, Steering.add(vector, coef=3.0, layer=2)):
            base.lm.train()
            with torch.no_grad():
                frozen = base.lm(ids).logits
            learnt = base.lm(ids).logits
        with torch.no_grad():
            assert torch.equal(frozen, base.lm(ids).logits)
        assert not torch.allclose(frozen, learnt, atol=1e-3)

    def test_packed_texts_are_steered_at_their_own_responses(self, base: Model, vector: PersonaVector) -> None:
        seen: list[torch.Tensor] = []
        labels = torch.tensor([[IGNORED, 4, 5, IGNORED, IGNORED, 6, 7]])
        ids = torch.tensor([[3, 4, 5, 3, 3, 6, 7]])
        positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
        base.lm.train()

        def look(module: Any, args: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        hook = base.blocks[2].register_forward_hook(look)
        base.lm(ids, position_ids=positions, labels=labels)
        hook.remove()
        with steer_training(base, Steering.add(vector, coef=2.0, layer=2), positions="response"):
            hook = base.blocks[2].register_forward_hook(look)
            base.lm(ids, position_ids=positions, labels=labels)
            hook.remove()
        change = (seen[1] - seen[0])[0].norm(dim=-1)
        assert [bool(x > 0) for x in change] == [label != IGNORED for label in labels[0].tolist()]


class TestWhatIsSavedHasNoTraceOfIt:
    @pytest.mark.filterwarnings("ignore:Could not find a config file")  # PEFT 0.18, of a model that has no name
    def test_an_adapter_loads_and_equals_the_steps_taken_by_hand(self, vector: PersonaVector, tmp_path: Path) -> None:
        plain = tiny.model("llama")
        lm = tiny.adapted(tiny.lm("llama"))
        start = {name: p.clone() for name, p in lm.named_parameters() if p.requires_grad}
        callback = VaccineCallback(Steering.add(vector, coef=1.5, layer=2))
        done = trainer(plain, tmp_path, callback, lm=lm, save_strategy="steps", save_steps=2)
        done.train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT still asks for it by its old name
            again = PeftModel.from_pretrained(tiny.lm("llama"), str(tmp_path / "checkpoint-2"))
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        with torch.no_grad():
            assert torch.allclose(again(ids).logits, lm.eval()(ids).logits, atol=1e-6)
        hand = adapter_by_hand(plain, start, adding(vector, 1.5, [2]))
        trained = {name: p for name, p in lm.named_parameters() if p.requires_grad}
        assert same(hand, trained)

    def test_hooks_are_gone_after_training(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2))).train()
        assert not any(block._forward_hooks for block in base.blocks)

    def test_two_at_once_work_together(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, lambda layer, h, mask: adding(vector, 0.5, [1, 2])(layer, h, mask))
        both = [VaccineCallback(Steering.add(vector, coef=0.5, layer=layer)) for layer in (1, 2)]
        trainer(base, tmp_path, *both).train()
        assert same(base.lm.state_dict(), wanted)

    def test_a_run_that_broke_off_does_not_steer_the_next(
        self, base: Model, vector: PersonaVector, tmp_path: Path
    ) -> None:
        class Break(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                raise RuntimeError("power cut")

        wanted = by_hand(base, adding(vector, 1.5, [1]))
        with pytest.raises(RuntimeError, match="power cut"):
            trainer(
                base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2)), Break(), learning_rate=0.0
            ).train()
        trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=1))).train()
        assert same(base.lm.state_dict(), wanted)

    @pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # PEFT 0.18, after unload() too
    def test_nor_one_of_the_same_base_in_a_new_adapter(self, vector: PersonaVector, tmp_path: Path) -> None:
        class Break(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                raise RuntimeError("power cut")

        plain, base = tiny.model("llama"), tiny.lm("llama")
        adapted = tiny.adapted(base)
        with pytest.raises(RuntimeError, match="power cut"):
            trainer(
                plain, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=1)), Break(), lm=adapted
            ).train()
        again = tiny.adapted(adapted.unload())
        start = {name: p.clone() for name, p in again.named_parameters() if p.requires_grad}
        trainer(plain, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2)), lm=again).train()
        trained = {name: p for name, p in again.named_parameters() if p.requires_grad}
        assert same(adapter_by_hand(plain, start, adding(vector, 1.5, [2])), trained)


def adapter_by_hand(model: Model, start: dict[str, Any], work: Any) -> dict[str, Any]:
    """Two SGD steps of a fresh wrapper of the same base, its blocks wrapped by hand."""
    lm = tiny.adapted(tiny.lm("llama"))
    own = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(start[name])
    for layer, block in enumerate(lm.get_base_model().model.layers):

        def forward(h: torch.Tensor, *args: Any, layer: int = layer, plain: Any = block.forward, **given: Any) -> Any:
            return work(layer, plain(h, *args, **given), None)

        block.forward = forward
    lm.train()
    data = rows(model)
    for step in range(2):
        inputs = collate("right")([data[(step * 4 + i) % len(data)] for i in range(4)])
        lm.zero_grad()
        lm(**inputs).loss.backward()
        with torch.no_grad():
            for p in own.values():
                p -= 0.05 * p.grad
    return {name: p.detach() for name, p in own.items()}


class TestOtherTrainers:
    @pytest.mark.parametrize("packing", [False, True])
    def test_sft_with_and_without_packing_takes_other_steps_than_without_a_vaccine(
        self, vector: PersonaVector, tmp_path: Path, packing: bool
    ) -> None:
        norms = []
        for callbacks in ([], [VaccineCallback(Steering.add(vector, coef=1.5, layer=2), positions="response")]):
            model = tiny.model("llama")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                options = {"packing": True, "max_length": 64, "padding_free": False} if packing else {}
                done = SFTTrainer(
                    model=model.lm,
                    args=SFTConfig(
                        output_dir=str(tmp_path),
                        max_steps=1,
                        per_device_train_batch_size=2,
                        use_cpu=True,
                        bf16=False,
                        report_to="none",
                        save_strategy="no",
                        disable_tqdm=True,
                        **options,
                    ),
                    train_dataset=Dataset.from_list(rows(model)),
                    processing_class=model.tokenizer,
                    peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
                    callbacks=callbacks,
                )
                done.remove_callback(PrinterCallback)
                done.train()
            norms.append(done.state.log_history[-1]["train_loss"])
        assert norms[0] != pytest.approx(norms[1], abs=1e-4)


class TestItRefuses:
    def test_a_vector_of_another_model(self, base: Model, tmp_path: Path) -> None:
        other = tiny.vector(tiny.model("llama", seed=7))
        with pytest.raises(OtherModel, match="other weights"):
            trainer(base, tmp_path, VaccineCallback(Steering.add(other, coef=1.0, layer=1))).train()

    def test_to_start_where_a_block_is_not_run(
        self, base: Model, vector: PersonaVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base.lm.model.layers = base.lm.model.layers[:2]
        monkeypatch.setattr(
            "poise.train.vaccine_callback.wrap_trainer_model", lambda lm, tokenizer: base
        )  # blocks 2 and 3 are known, and not run
        with pytest.raises(HookDidNotFire, match=r"Layers \[2\]"):
            trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.0, layer=2))).train()
        assert not any(block._forward_hooks for block in base.blocks)

    def test_to_go_on_where_a_step_was_not_steered(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        class LoseHooks(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                base.lm.register_forward_pre_hook(lambda module, args: base.blocks[2]._forward_hooks.clear())

        callback = VaccineCallback(Steering.add(vector, coef=1.0, layer=2))
        with pytest.raises(HookDidNotFire, match="without the vaccine"):
            trainer(base, tmp_path, callback, LoseHooks()).train()

    def test_response_positions_without_labels(self, base: Model, vector: PersonaVector) -> None:
        base.lm.train()
        with (
            pytest.raises(InvalidSteering, match="positions='all'"),
            steer_training(base, Steering.add(vector, coef=1.0, layer=2), positions="response"),
        ):
            base.lm(torch.tensor([[4, 5]]))

    def test_marked_rows_in_batches_without_marks(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        with pytest.raises(InvalidSteering, match="marking"):
            trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.0, layer=2), marked=True)).train()

    def test_marks_where_all_rows_are_to_be_steered(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        data = [row | {"vaccinated": True} for row in rows(base)]
        run = trainer(
            base,
            tmp_path,
            VaccineCallback(Steering.add(vector, coef=1.0, layer=2)),
            data=data,
            remove_unused_columns=False,
        )
        run.data_collator = marking_collator(run.data_collator)
        with pytest.raises(InvalidSteering, match="marked=True"):
            run.train()

    def test_marks_on_some_rows_of_a_batch(self, base: Model) -> None:
        data = rows(base, 3)
        with pytest.raises(InvalidData, match="2 of 3 rows"):
            marking_collator(collate("right"))([data[0] | {"vaccinated": True}, *data[1:]])

    def test_fewer_marks_than_texts(self, base: Model, vector: PersonaVector) -> None:
        ids = torch.ones(4, 3, dtype=torch.long)
        base.lm.train()
        with (
            steer_training(base, Steering.add(vector, coef=1.0, layer=2), marked=True),
            pytest.raises(InvalidSteering, match="2 marks for 4 texts"),
        ):
            base.lm(input_ids=ids, labels=ids, vaccinated=torch.tensor([True, False]))

    def test_response_positions_where_the_pass_goes_around_the_marked_model(
        self, base: Model, vector: PersonaVector
    ) -> None:
        base.lm.train()
        with steer_training(base, Steering.add(vector, coef=1.0, layer=2), positions="response"):
            with pytest.raises(InvalidSteering, match="last seen: none"):
                base.lm.model(torch.tensor([[4, 5]]))
            base.lm(torch.tensor([[4, 5]]), labels=torch.tensor([[IGNORED, 5]]))
            with pytest.raises(InvalidSteering, match=r"1x3 tokens.*last seen: 1x2"):
                base.lm.model(torch.tensor([[4, 5, 6]]))

    def test_layers_beside_a_steering_that_has_its_own(self, vector: PersonaVector) -> None:
        with pytest.raises(InvalidArgument, match="names its own"):
            VaccineCallback(Steering.add(vector, coef=1.0), layers="increments")

    def test_a_trainer_without_a_tokenizer(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        run = trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.0, layer=2)))
        run.processing_class = run.callback_handler.processing_class = None
        with pytest.raises(InvalidArgument, match="processing_class=tokenizer"):
            run.train()

    def test_conditions_and_schedules(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        term = Term(vector=vector, value=1.0, layers=(2,), tokens=(0, 5))
        with pytest.raises(InvalidSteering, match="Give its strength and layers only"):
            trainer(base, tmp_path, VaccineCallback(Steering((term,)))).train()

    @pytest.mark.parametrize("shares", [{"warmup": -0.1}, {"decay": 1.5}, {"warmup": 0.7, "decay": 0.7}])
    def test_shares_that_are_none(self, vector: PersonaVector, shares: dict[str, float]) -> None:
        with pytest.raises(InvalidArgument):
            VaccineCallback(Steering.add(vector, coef=1.0), **shares)


class TestTheStrength:
    def test_rises_and_falls(self, vector: PersonaVector) -> None:
        callback = VaccineCallback(Steering.add(vector, coef=1.0), warmup=0.5, decay=0.25)
        assert [round(callback.strength(step, 8), 3) for step in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.5]

    def test_is_constant_by_default(self, vector: PersonaVector) -> None:
        callback = VaccineCallback(Steering.add(vector, coef=1.0))
        assert {callback.strength(step, 8) for step in range(8)} == {1.0}

    def test_a_step_of_no_strength_is_a_plain_step(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, lambda layer, h, mask: h)
        callback = VaccineCallback(Steering.add(vector, coef=1.5, layer=2))
        callback.strength = lambda step, steps: 0.0  # type: ignore[method-assign]
        trainer(base, tmp_path, callback).train()
        assert same(base.lm.state_dict(), wanted)


class TestExpressions:
    def test_name_files_and_take_layers(self, vector: PersonaVector, tmp_path: Path) -> None:
        vectors.save_vector(vector, tmp_path / "grumpy.safetensors")
        (term,) = vaccine_steering(f"{tmp_path / 'grumpy.safetensors'}=1.5", "increments").terms
        assert (term.value, term.layers, term.operation) == (1.5, "increments", "add")
        (term,) = vaccine_steering(f"{tmp_path / 'grumpy.safetensors'}@1=30%", "increments").terms
        assert term.layers == (1,)
        (term,) = vaccine_steering([f"{tmp_path / 'grumpy.safetensors'}=out"], 3).terms
        assert (term.operation, term.layers) == ("project_out", (3,))
