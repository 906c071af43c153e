"""Reading: the hook gives what Hugging Face calls ``hidden_states``, at every layer, however texts are batched."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from poise.activations import Probe, forward, project, read, read_tokens, reference_norm
from poise.contrast import ContrastSet, exemplars
from poise.errors import HookDidNotFire, InvalidArgument, NonFiniteActivation, TooFewResponses
from poise.extract import extract, pair_agreement
from poise.model import Encoded, Model, ask, wrap
from poise.model.batching import Side, pad
from poise.model.hooks import observe

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")


def without_final_norm(lm: Any) -> Any:
    """A copy whose ``last_hidden_state`` is the last block's output."""
    bare = copy.deepcopy(lm)
    backbone = (bare.get_base_model() if hasattr(bare, "get_base_model") else bare).base_model
    name = next(n for n in FINAL_NORMS if hasattr(backbone, n))
    setattr(backbone, name, nn.Identity())
    return bare


@torch.no_grad()
def hidden_states(bare: Any, text: Encoded) -> torch.Tensor:
    """Hugging Face's own, one text at a time: float32 [T, L, d]."""
    states = bare(input_ids=torch.tensor([text.ids]), output_hidden_states=True).hidden_states
    return torch.stack([s[0] for s in states[1:]], dim=1)


@torch.inference_mode()
def token_states(model: Model, texts: Sequence[Encoded], side: Side) -> list[torch.Tensor]:
    """The hook's, all texts in one padded batch."""
    batch, seen = pad(texts, side=side), {}
    with observe(model, lambda layer, states: seen.__setitem__(layer, states)):
        forward(model, batch)
    stacked = torch.stack([seen[i] for i in range(model.layers)], dim=2)
    return [stacked[row][batch.real[row]] for row in range(len(texts))]


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> tuple[Model, list[Encoded], list[torch.Tensor]]:
    """A model, sixteen texts and Hugging Face's hidden states of each."""
    model = tiny.model(request.param)
    texts = tiny.texts(model, 16)
    bare = without_final_norm(model.lm)
    return model, texts, [hidden_states(bare, text) for text in texts]


class TestHiddenStates:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("rows", [1, 16])
    def test_equal_hugging_faces_at_every_layer_and_token(self, architecture: Any, side: Side, rows: int) -> None:
        model, texts, expected = architecture
        for at in range(0, 16, rows):
            for found, wanted in zip(token_states(model, texts[at : at + rows], side), expected[at:], strict=False):
                assert_equal(found, wanted)

    def test_are_read_token_by_token_for_chosen_layers(self, architecture: Any) -> None:
        model, texts, expected = architecture
        for found, wanted in zip(read_tokens(model, texts, [3, 0]), expected, strict=True):
            assert_equal(found, wanted[:, [3, 0]])

    def test_are_projected_on_any_probes_token_by_token(self, architecture: Any) -> None:
        model, texts, expected = architecture
        vectors = {layer: tiny.vector(model, seed=layer) for layer in (2, 0)}
        probes = [Probe(layer, vectors[layer].unit(layer)) for layer in (2, 0, 2)]
        for found, states in zip(project(model, texts, probes), expected, strict=True):
            wanted = torch.stack([states[:, p.layer] @ p.direction for p in probes], dim=1)
            assert_equal(found, wanted)

    @pytest.mark.parametrize("padding", ["left", "right"])
    @pytest.mark.parametrize("budget", [1, 100_000])
    def test_are_pooled_over_the_response(self, architecture: Any, padding: Side, budget: int) -> None:
        model, texts, states = architecture
        expected = torch.stack([s[t.start : t.end].mean(0) for s, t in zip(states, texts, strict=True)])
        assert_equal(read(model, texts, padding=padding, budget=budget), expected)

    @pytest.mark.parametrize("padding", ["left", "right"])
    def test_are_pooled_over_the_prompt(self, architecture: Any, padding: Side) -> None:
        model, texts, states = architecture
        means = torch.stack([s[: t.start].mean(0) for s, t in zip(states, texts, strict=True)])
        lasts = torch.stack([s[t.start - 1] for s, t in zip(states, texts, strict=True)])
        assert_equal(read(model, texts, pool="prompt_mean", padding=padding), means)
        assert_equal(read(model, texts, pool="prompt_last", padding=padding), lasts)

    def test_have_the_final_norm_after_the_last_of_them(self, architecture: Any) -> None:
        model, texts, expected = architecture
        with torch.no_grad():
            entry = model.lm(torch.tensor([texts[0].ids]), output_hidden_states=True).hidden_states[-1][0]
        assert not torch.allclose(entry, expected[0][:, -1], atol=1e-2), "the entry that a naive reader would take"

    def test_give_a_dose_its_unit(self, architecture: Any) -> None:
        model, texts, states = architecture
        every = torch.cat([s[t.start : t.end] for s, t in zip(states, texts, strict=True)])
        torch.testing.assert_close(reference_norm(model, texts), every.norm(dim=-1).mean(0), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
    def test_equal_hugging_faces_under_a_lora_wrapper(self, name: str) -> None:
        lm = tiny.adapted(tiny.lm(name))
        model = wrap(lm, tiny.chatml(), name="adapted")
        texts = tiny.texts(model, 4)
        bare = without_final_norm(lm)
        for found, text in zip(read_tokens(model, texts, range(tiny.L)), texts, strict=True):
            assert_equal(found, hidden_states(bare, text))
        assert not torch.allclose(read(model, texts), read(tiny.model(name), texts), atol=1e-2)


class TestAProjection:
    def test_runs_no_block_after_the_deepest_that_it_needs(self) -> None:
        model = tiny.model()
        ran: list[int] = []
        handles = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(model.blocks)]
        project(model, tiny.texts(model, 3), [Probe(0, torch.ones(tiny.D)), Probe(1, torch.ones(tiny.D))])
        for handle in handles:
            handle.remove()
        assert set(ran) == {0, 1}
        assert not any(block._forward_hooks for block in model.blocks)

    def test_that_fails_says_where_and_leaves_no_hook(self) -> None:
        lm = copy.deepcopy(tiny.lm())
        lm.model.layers[1].mlp.down_proj.weight.data[:] = float("nan")
        model = wrap(lm, tiny.chatml(), name="broken")
        with pytest.raises(NonFiniteActivation, match=r"text 0 \(3 of 3 texts\)"):
            project(model, tiny.texts(model, 3), [Probe(2, torch.ones(tiny.D))])
        assert not any(block._forward_hooks for block in model.blocks)

    def test_of_nothing_is_empty(self) -> None:
        assert project(tiny.model(), [], [Probe(0, torch.ones(tiny.D))]) == []


class TestAReading:
    def test_is_missing_for_an_empty_answer_and_there_for_its_neighbours(self) -> None:
        model = tiny.model()
        texts = tiny.texts(model, 2)
        found = read(model, [texts[0], model.encode(ask("Well?"), ""), texts[1]])
        assert found[1].isnan().all()
        assert_equal(found[[0, 2]], read(model, texts))

    def test_of_nothing_is_empty(self) -> None:
        assert read(tiny.model(), []).shape == (0, tiny.L, tiny.D)

    def test_takes_its_means_in_float32_also_from_a_bfloat16_model(self) -> None:
        lm = tiny.lm().to(torch.bfloat16)
        model = wrap(lm, tiny.chatml(), name="half")
        texts = tiny.texts(model, 8)
        tokens = read_tokens(model, texts, range(tiny.L))
        expected = torch.stack([s[t.start : t.end].mean(0) for s, t in zip(tokens, texts, strict=True)])
        found = read(model, texts, budget=100_000)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_can_be_changed_and_differentiated_by_whoever_asked_for_it(self) -> None:
        model = tiny.model()
        for states in (read(model, tiny.texts(model, 2)), read_tokens(model, tiny.texts(model, 1), [1])[0]):
            states -= states.mean(0)
            (torch.ones_like(states, requires_grad=True) * states).sum().backward()

    def test_may_name_a_layer_twice(self) -> None:
        model = tiny.model()
        [once], [twice] = (read_tokens(model, tiny.texts(model, 1), layers) for layers in ([2], [2, 2]))
        assert torch.equal(twice, torch.cat([once, once], dim=1))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_that_is_not_finite_names_the_layer_and_the_text(self, value: float) -> None:
        model = tiny.model()
        broken = tiny.chatml().convert_tokens_to_ids("Q")
        model.blocks[1].register_forward_pre_hook(
            lambda module, args: (torch.where(ids == broken, value, args[0]), *args[1:]), prepend=True
        )
        texts = [model.encode(ask("Fine?"), "Fine."), model.encode(ask("Fine?"), "QQQ")]
        ids = torch.tensor([])

        def note(module: Any, args: Any, kwargs: Any) -> None:
            nonlocal ids
            ids = kwargs["input_ids"].unsqueeze(-1)

        model.backbone.register_forward_pre_hook(note, with_kwargs=True)
        with pytest.raises(NonFiniteActivation, match="layer 1 of 4 for text 1"):
            read(model, texts)

    def test_leaves_no_hook_behind_whatever_happens(self) -> None:
        model = tiny.model()

        def fail(layer: int, states: torch.Tensor) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), observe(model, fail):
            forward(model, pad(tiny.texts(model, 1), side="right"))
        with pytest.raises(InvalidArgument, match="no layer 99; its layers are 0 to 3"), observe(model, fail, [0, 99]):
            pass
        assert not any(block._forward_hooks for block in model.blocks)

    def test_of_a_block_that_never_ran_is_an_error_that_names_it(self) -> None:
        model = tiny.model()
        with (
            pytest.raises(HookDidNotFire, match=r"Layers \[2, 3\] of tiny-llama were never run"),
            observe(model, lambda layer, states: None, [1, 2, 3]),
        ):
            model.blocks[1](torch.zeros(1, 1, tiny.D), position_embeddings=(torch.ones(1, 1, 8), torch.zeros(1, 1, 8)))


class TestAnExtractedVector:
    @pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3_text", "mixtral"])
    def test_equals_a_plain_loops(self, name: str) -> None:
        model, trait = tiny.model(name), tiny.trait()
        found = extract(exemplars(trait, model), model)
        bare = without_final_norm(model.lm)
        means: dict[str, list[torch.Tensor]] = {"positive": [], "negative": []}
        norms = []
        for pair in trait.pairs:
            for side, answer in (("positive", pair.positive), ("negative", pair.negative)):
                text = model.encode(ask(pair.question), answer)
                response = hidden_states(bare, text)[text.start : text.end]
                means[side].append(response.mean(0))
                if side == "negative":
                    norms.append(response.norm(dim=-1))
        positive, negative = (torch.stack(means[side]).mean(0) for side in ("positive", "negative"))
        assert_equal(found.directions, positive - negative)
        assert_equal(found.reference_norm, torch.cat(norms).mean(0))

    def test_carries_the_trait_the_model_and_the_counts(self) -> None:
        model, trait = tiny.model(), tiny.trait()
        header = extract(exemplars(trait, model), model).header
        assert (header.trait, header.trait_hash, header.contrast) == (trait, trait.hash, "exemplars")
        assert header.kept == {"positive": 8, "negative": 8}
        assert header.model.fingerprint == model.fingerprint
        assert header.software["torch"] == torch.__version__

    def test_takes_the_means_that_an_engine_kept(self) -> None:
        model = tiny.model()
        contrast = exemplars(tiny.trait(), model)
        kept = dataclasses.replace(
            contrast,
            positive=tuple(dataclasses.replace(a, mean=torch.full((tiny.L, tiny.D), 2.0)) for a in contrast.positive),
            negative=tuple(dataclasses.replace(a, mean=torch.full((tiny.L, tiny.D), 0.5)) for a in contrast.negative),
        )
        assert torch.equal(extract(kept, model).directions, torch.full((tiny.L, tiny.D), 1.5))

    def test_reports_how_far_single_differences_agree(self) -> None:
        differences = torch.randn(5, tiny.L, tiny.D, generator=torch.Generator().manual_seed(0))
        pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
        cosines = [torch.cosine_similarity(differences[i], differences[j], dim=-1) for i, j in pairs]
        torch.testing.assert_close(pair_agreement(differences), torch.stack(cosines).mean(0))

    def test_of_too_few_pairs_is_an_error_that_names_the_limit_and_what_was_left_out(self) -> None:
        model = tiny.model()
        contrast: ContrastSet = exemplars(tiny.trait(), model, most=3)
        few = dataclasses.replace(contrast, dropped={"positive empty": 5})
        with pytest.raises(TooFewResponses, match=r"grumpy has 3 usable pairs and needs 4.*'positive empty': 5"):
            extract(few, model)


@pytest.mark.real
class TestSmolLM:
    @pytest.mark.parametrize("padding", ["left", "right"])
    def test_is_read_as_hugging_face_reads_it(self, smollm: Model, padding: Side) -> None:
        pairs = {"What is love?": "Hm.", "Name three rivers of France.": "The Loire, the Seine and the Rhône."}
        texts = [smollm.encode(ask(question), answer) for question, answer in pairs.items()]
        found = read(smollm, texts, padding=padding)
        for row, text in enumerate(texts):
            with torch.no_grad():
                states = smollm.lm(torch.tensor([text.ids]), output_hidden_states=True).hidden_states
            means = torch.stack([s[0, text.start : text.end].mean(0) for s in states[1:-1]])
            scale = means.abs().amax(dim=-1, keepdim=True).clamp(min=1)  # a few dimensions run into the thousands
            assert ((found[row, :-1] - means) / scale).abs().max() < 1e-5


class TestBadInput:
    @pytest.mark.parametrize(
        ("use", "fault"),
        [
            (lambda m, texts: read(m, texts, pool="response"), "pool is 'response'; it must be one of response_mean"),
            (lambda m, texts: read(m, texts, padding="top"), "padding is 'top'"),
            (lambda m, texts: read(m, texts, budget=0), "budget is 0"),
            (lambda m, texts: read_tokens(m, texts, []), "no layers to read"),
            (lambda m, texts: read_tokens(m, texts, [9]), "no layer 9; its layers are 0 to 3"),
            (lambda m, texts: read_tokens(m, texts, [-1]), "no layer -1"),
            (lambda m, texts: project(m, texts, []), "no probes"),
            (lambda m, texts: project(m, texts, [Probe(7, torch.ones(tiny.D))]), "no layer 7"),
            (lambda m, texts: project(m, texts, [Probe(1, torch.ones(5))]), "probe 0 has the shape (5,)"),
            (lambda m, texts: reference_norm(m, []), "The texts (0) have no response token"),
            (lambda m, texts: reference_norm(m, [m.encode(ask("Hm?"), "")]), "The texts (1) have no response token"),
            (lambda m, texts: pad([], side="left"), "no texts to pad"),
            (lambda m, texts: m.encode([]), "The conversation has no messages"),
            (lambda m, texts: m.encode([{"role": "user"}]), "Message 0"),
            (lambda m, texts: m.encode(["hello"]), "Message 0"),
        ],
    )
    def test_is_one_sentence(self, use: Any, fault: str) -> None:
        model = tiny.model()
        with pytest.raises(InvalidArgument, match=re.escape(fault)) as caught:
            use(model, tiny.texts(model, 2))
        assert str(caught.value).endswith(".")

    def test_no_texts_have_no_projections(self) -> None:
        assert project(tiny.model(), [], [Probe(1, torch.ones(tiny.D))]) == []
