"""Topics and content to detectors: directions that tell a rule's examples from ordinary talk, and promised rates.

Each rule has one detector a way, in the model's activations or in the sentence encoder's embeddings
(``encoder_fitting``). It is fitted to the examples, to the texts beside them and to a part of the ordinary talk;
thresholds and figures are of ``rule_detectors``. n: texts, d: model width, k: directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import torch

from poise.activations import project, read_layers
from poise.arguments import check_number, check_type
from poise.data import DataSet, InputRow, Rejections, data_from_rows, draw_conversations
from poise.errors import InvalidArgument
from poise.guardrail.encoder_fitting import EncoderTalk, encoder_direction, fit_encoder_place, whole_embeddings
from poise.guardrail.encoder_reader import encoder_user, unit_embeddings
from poise.guardrail.fit_texts import OrdinaryTexts, RuleTexts, last_token_of, rule_texts
from poise.guardrail.guard_file import ENCODER, ENCODER_WIDTH, FittedGuard, GuardDetector, GuardHeader
from poise.guardrail.readings import WINDOW_TOKENS, ReadPlace, highest_window
from poise.guardrail.rule_detectors import (
    GuardFitSettings,
    PlaceReadings,
    RuleReadings,
    fitted_number,
    logistic_direction,
    place_detectors,
)
from poise.guardrail.schema import Guardrail
from poise.judge.exemplars import check_sentence_encoder
from poise.model import Encoded, Model
from poise.model.probe import Probe
from poise.storage.content_hash import content_key
from poise.vector.header import ModelId

__all__ = ["GuardFitSettings", "check_fit_model", "fit_guard"]


GUARD_DEPTH = 0.6
GUARD_RIDGE = 3e-5  # C: of 1e-1 to 3e-5 the best recall at 1 %, in benchmarks/guardrail_quality.py --half choose


def fit_guard(
    guardrail: Guardrail,
    model: Model | None,
    normal: DataSet | Iterable[InputRow],
    settings: GuardFitSettings | None = None,
) -> FittedGuard:
    """Fit a detector for each topic and kind of content, on each way that it is looked for on.

    Args:
        guardrail: Its topics and content.
        model: The model that is to be guarded; not used, and may be ``None``, where the encoder reads all rules.
        normal: Ordinary talk, as the server will meet it.
        settings: Rate, layer, folds, seed.

    Raises:
        InvalidArgument: the guardrail has neither topics nor content, it needs a model, or the model lacks the layer.
        TooFewResponses: too few examples of a rule, or too little talk to promise a rate; says how much is needed.
        InvalidData: too many rows of the talk are rejected.
        MissingExtra: the encoder is to read a rule, and is not installed.
    """
    check_type("guardrail", guardrail, Guardrail, "a Guardrail, as load_guardrail(path) gives")
    check_type("model", model, (Model, type(None)), "a Model, as load_model(name) gives")
    settings = settings or GuardFitSettings()
    if not guardrail.needs_fit:
        raise InvalidArgument(f"{guardrail.name} has neither topics nor content, so that there is nothing to fit.")
    check_fit_model(guardrail, model, settings)
    rules = [replace(rule, judge=guardrail.judge) for rule in rule_texts(guardrail)]
    drawn = draw_conversations(
        data_from_rows(normal, need="user"), settings.limit, seed=settings.seed, rejections=Rejections()
    )
    by_encoder = [rule for rule in rules if rule.reader == "encoder"]
    by_model, by_both = ([rule for rule in rules if rule.reader == r] for r in ("activations", "both"))
    encoded: list[tuple[GuardDetector, RuleReadings]] = []
    fitted: list[tuple[GuardDetector, RuleReadings]] = []
    talk: OrdinaryTexts | EncoderTalk | None = None
    if by_encoder:
        talk = EncoderTalk.of(drawn, seed=settings.seed)
        for of_place in _by_place(by_encoder):
            encoded += fit_encoder_place(of_place, talk, settings)
    if model is not None and (by_model or by_both):
        talk = OrdinaryTexts.of(model, drawn, seed=settings.seed)
        layer = round(GUARD_DEPTH * (model.layers - 1)) if settings.layer is None else settings.layer
        for of_place in _by_place(by_model):
            fitted += _fit_place(model, of_place, talk, layer, settings)
        if by_both:
            fitted += _fit_both(model, by_both, talk, layer, settings)
    return _fitted_guard(guardrail, model, rules, [*fitted, *encoded], talk, settings)


def check_fit_model(guardrail: Guardrail, model: object, settings: GuardFitSettings) -> None:
    """Refuse to fit without a model where one is needed, and with a layer where none is read.

    Raises:
        InvalidArgument: says which.
        MissingExtra: the encoder is to read a rule, and is not installed.
    """
    if guardrail.needs_model and model is None:
        raise InvalidArgument(
            f"{guardrail.name} has rules that are read in a model's activations; give the `model` that is to be "
            "guarded, or let the rules be `read_by: encoder`."
        )
    if guardrail.needs_encoder:
        check_sentence_encoder(encoder_user(guardrail))
    if not guardrail.needs_model and settings.layer is not None:
        raise InvalidArgument(
            f"`layer` is {settings.layer}, and the sentence encoder reads all rules of {guardrail.name}; leave it out."
        )
    if isinstance(model, Model) and settings.layer is not None:
        check_number("layer", settings.layer, least=0, most=model.layers - 1)


def _by_place(rules: Sequence[RuleTexts]) -> list[list[RuleTexts]]:
    places = [[rule for rule in rules if rule.place == place] for place in get_args(ReadPlace)]
    return [of_place for of_place in places if of_place]


def _fitted_guard(
    guardrail: Guardrail,
    model: Model | None,
    rules: Sequence[RuleTexts],
    fitted: Sequence[tuple[GuardDetector, RuleReadings]],
    talk: OrdinaryTexts | EncoderTalk | None,
    settings: GuardFitSettings,
) -> FittedGuard:
    encodes = any(detector.read_by != "activations" for detector, _ in fitted)
    header = GuardHeader(
        guardrail=guardrail,
        model=ModelId.of(model) if model is not None and guardrail.needs_model else None,
        encoder=ENCODER if encodes else None,
        detectors=tuple(detector for detector, _ in fitted),
        window=WINDOW_TOKENS,
        rate=settings.rate,
        seed=settings.seed,
        normal=talk.names if talk else {},
        normal_sha256=talk.sha256 if talk else "",
        examples_sha256=content_key(rules=[[r.kind, r.rule, r.source, r.examples, r.near_misses] for r in rules]),
    )
    width = model.width if model is not None else 0
    by_model = [direction[:width] for detector, direction in fitted if detector.read_by != "encoder"]
    by_encoder = [direction[-ENCODER_WIDTH:] for detector, direction in fitted if detector.read_by != "activations"]
    return FittedGuard(header, _stacked(by_model, width), _stacked(by_encoder, ENCODER_WIDTH))


def _stacked(directions: Sequence[RuleReadings], width: int) -> torch.Tensor:
    return torch.tensor(np.stack(directions) if directions else np.zeros((0, width)), dtype=torch.float32)


def _fit_place(
    model: Model, rules: Sequence[RuleTexts], talk: OrdinaryTexts, layer: int, settings: GuardFitSettings
) -> list[tuple[GuardDetector, RuleReadings]]:
    """The detectors of one place, and their directions."""
    place = rules[0].place
    texts = talk.in_place(model, place)
    n_fit = fitted_number(len(texts), rules, settings)
    encoded = [talk.encode_rule(model, rule, settings.seed) for rule in rules]
    features = [(_features(model, e, layer, place), _features(model, n, layer, place)) for e, n in encoded]
    ordinary = _features(model, texts[:n_fit], layer, place)
    if place == "answer":  # examples are what people ask: as answers they differ from answers by that alone
        asked_back = [talk.as_answer(model, question, settings.seed) for question in talk.questions[:n_fit]]
        ordinary = np.concatenate([ordinary, _features(model, asked_back, layer, place)])

    def read(directions: Sequence[RuleReadings]) -> PlaceReadings:
        reader = _Reader(model, layer, place, directions)
        held_out = reader.read(texts[n_fit:])
        of_rules = [(reader.read(e), reader.read(n)) for e, n in encoded]
        before = reader.read(talk.before_results(model)[n_fit:]) if place == "tool result" else None
        return PlaceReadings(held_out, of_rules, None if before is None else held_out - before)

    return place_detectors(
        rules, features, ordinary, read, fit=_activation_direction, layer=layer, n_fit=n_fit, settings=settings
    )


def _activation_direction(examples: RuleReadings, near: RuleReadings, ordinary: RuleReadings) -> RuleReadings:
    return logistic_direction(examples, near, ordinary, ridge=GUARD_RIDGE)


def _fit_both(
    model: Model, rules: Sequence[RuleTexts], talk: OrdinaryTexts, layer: int, settings: GuardFitSettings
) -> list[tuple[GuardDetector, RuleReadings]]:
    """Detectors of prompts that both read, with directions [d + 384]: the sum of two readings of equal weight.

    Each is in standard deviations of the talk that is fitted to; the threshold is set on the sum, on other talk.
    """
    n_fit, width = fitted_number(len(talk.prompts), rules, settings), model.width
    encoded = [talk.encode_rule(model, rule, settings.seed) for rule in rules]
    texts = [(rule.examples, rule.near_misses) for rule in rules]

    def features(prompts: Sequence[Encoded], words: Sequence[str]) -> RuleReadings:
        return np.concatenate([_features(model, prompts, layer, "prompt"), whole_embeddings(words)], axis=1)

    def fit(examples: RuleReadings, near: RuleReadings, ordinary: RuleReadings) -> RuleReadings:
        sides = []
        for part, direction in ((slice(width), _activation_direction), (slice(width, None), encoder_direction)):
            values = direction(examples[:, part], near[:, part], ordinary[:, part])
            sides.append(values / (ordinary[:, part] @ values).std())
        return np.concatenate(sides)

    def read(directions: Sequence[RuleReadings]) -> PlaceReadings:
        matrix, reader = np.stack(directions, axis=1), _Reader(model, layer, "prompt", [d[:width] for d in directions])

        def of(prompts: Sequence[Encoded], words: Sequence[str]) -> RuleReadings:
            return reader.read(prompts) + unit_embeddings(words, "prompt").highest(matrix[width:])

        of_rules = [(of(e, te), of(n, tn)) for (e, n), (te, tn) in zip(encoded, texts, strict=True)]
        return PlaceReadings(of(talk.prompts[n_fit:], talk.questions[n_fit:]), of_rules)

    pairs = [(features(e, te), features(n, tn)) for (e, n), (te, tn) in zip(encoded, texts, strict=True)]
    ordinary = features(talk.prompts[:n_fit], talk.questions[:n_fit])
    return place_detectors(rules, pairs, ordinary, read, fit=fit, layer=layer, n_fit=n_fit, settings=settings)


def _features(model: Model, texts: Sequence[Encoded], layer: int, place: ReadPlace) -> RuleReadings:
    """Activations that directions are fitted to: of the last prompt token, or the answer's mean [n, d]."""
    if not texts:
        return np.zeros((0, model.width))
    if place != "answer":
        texts = last_token_of(texts)
    return read_layers(model, texts, [layer])[:, 0].double().numpy()


class _Reader:
    """Reads texts with several directions at once, as the server will."""

    def __init__(self, model: Model, layer: int, place: ReadPlace, directions: Sequence[RuleReadings]) -> None:
        self._model, self._place = model, place
        self._probes = [Probe(layer, torch.tensor(direction, dtype=torch.float32)) for direction in directions]

    def read(self, texts: Sequence[Encoded]) -> RuleReadings:
        """What thresholds are set on [n, k]."""
        rows = []
        for text, values in zip(texts, project(self._model, list(texts), self._probes), strict=True):
            readings = values.double().numpy()
            last = readings[text.last_prompt]
            rows.append(highest_window(readings[text.start : text.end]) if self._place == "answer" else last)
        return np.stack(rows) if rows else np.zeros((0, len(self._probes)))
