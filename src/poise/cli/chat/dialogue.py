"""A chat as a value: what was said, read and dialled, every change a new one; and the file that it is saved in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from poise.cli import facts

if TYPE_CHECKING:
    from poise.engine import Probe, SamplingParams, TextChunk
    from poise.model import Message, Model
    from poise.model.parts import TokenPart
    from poise.model.rendering import Thinking
    from poise.monitor import AnswerReadings
    from poise.steer import Steering
    from poise.vector import Alarm, PersonaVector

__all__ = ["AnswerPiece", "ChatTurn", "Dialogue", "Setup", "WatchedTrait", "push", "transcript"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedTrait:
    """A trait that is watched.

    Attributes:
        name: What commands call it.
        vector: The vector whose direction is read.
        probe: Where it is read.
        normal: Mean reading of a token in answers without the trait, in residual-stream units.
        spread: Standard deviation of those tokens.
    """

    name: str
    vector: PersonaVector
    probe: Probe
    normal: float
    spread: float

    @property
    def alarms(self) -> list[Alarm]:
        """Those that were set at this layer on all talk."""
        from poise.monitor import alarms_in_force

        return alarms_in_force(self.vector.at("read", self.probe.layer).alarms)

    @property
    def with_trait(self) -> float:
        """About what a token reads in answers with the trait: one mean difference above normal."""
        return self.normal + self.vector.at("read", self.probe.layer).difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a chat is held with; nothing in it changes. k: watched traits.

    Attributes:
        model: Who answers.
        sampling: How its tokens are drawn.
        vectors: Every vector that can be dialled, by the name that commands use.
        watched: k of them, in the order of the readings.
        thinking: Whether the model thinks before it replies, or how much.
    """

    model: Model
    sampling: SamplingParams
    vectors: Mapping[str, PersonaVector]
    watched: tuple[WatchedTrait, ...]
    thinking: Thinking = False


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """A piece of an answer: one token, or the few that share a character. ``readings`` [tokens][k]."""

    text: str
    readings: tuple[tuple[float, ...], ...]
    part: TokenPart = "reply"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurn:
    """A question, its answer, and what was in force.

    Attributes:
        user: The question.
        system: The system prompt, or nothing.
        steering: Steering under which the answer was given.
        seed: Seed of its draws.
        prompt: Readings [k] of the last prompt token; empty where nothing is watched.
        pieces: The answer, piece by piece.
        finish: ``interrupted`` by Ctrl-C, or as the engine says.
    """

    user: str
    system: str
    steering: Steering | None
    seed: int
    prompt: tuple[float, ...] = ()
    pieces: tuple[AnswerPiece, ...] = ()
    finish: Literal["stop", "length", "interrupted"] = "interrupted"

    @property
    def answer(self) -> str:
        """The text of its reply."""
        return "".join(piece.text for piece in self.pieces if piece.part == "reply")

    @property
    def thought(self) -> str:
        """What the model thought before it; empty for most."""
        return "".join(piece.text for piece in self.pieces if piece.part == "thought")

    def heard(self, chunk: TextChunk) -> ChatTurn:
        """With what came next; where traits are watched, the prompt's reading comes first."""
        rows = tuple(tuple(row) for row in chunk.readings.tolist())
        finish = chunk.finish or self.finish
        if rows and not self.prompt:
            return replace(self, prompt=rows[0], finish=finish)
        added = (AnswerPiece(chunk.text, rows, chunk.part),) if chunk.text or rows else ()
        return replace(self, pieces=self.pieces + added, finish=finish)

    def readings(self, watched: Sequence[WatchedTrait]) -> AnswerReadings:
        """Readings of the reply, less what its steering adds to them by itself; see ``push``."""
        import torch

        from poise.monitor.readings import summarize_projections

        tokens = [row for piece in self.pieces if piece.part == "reply" for row in piece.readings]
        values = torch.tensor([self.prompt, *tokens])
        values[0] -= torch.tensor([push(self.steering, w, "prompt") or 0.0 for w in watched])
        values[1:] -= torch.tensor([push(self.steering, w, "response") or 0.0 for w in watched])
        return summarize_projections(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """The state between turns.

    Attributes:
        system: The system prompt, or nothing.
        turns: Turns so far.
        steering: Steering in force from here on.
        tint: The watched trait by which tokens are tinted.
        seed: Seed of the next answer; each answer has its own.
        saved: The file that this chat was last saved in.
    """

    system: str = ""
    turns: tuple[ChatTurn, ...] = ()
    steering: Steering | None = None
    tint: str | None = None
    seed: int = 0
    saved: Path | None = None

    def messages(self, user: str | None = None) -> list[Message]:
        """What the model is shown: the conversation and, if given, the next question.

        Thoughts go with their answers; whether the model sees them again is its template's to say.
        """
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        past: list[Message] = []
        for turn in self.turns:
            reply: Message = {"role": "assistant", "content": turn.answer}
            if turn.thought:
                reply["thought"] = turn.thought
            past += [{"role": "user", "content": turn.user}, reply]
        return [*system, *past, *([] if user is None else [{"role": "user", "content": user}])]  # type: ignore[list-item]

    def told(self, turn: ChatTurn) -> Dialogue:
        """With one more turn."""
        return replace(self, turns=(*self.turns, turn), seed=self.seed + 1)

    def undone(self) -> Dialogue:
        """Without the last turn."""
        return replace(self, turns=self.turns[:-1])

    def dialled(self, vectors: Sequence[PersonaVector], new: Steering | None) -> Dialogue:
        """With ``new`` in place of all that ``vectors`` did; the others go on."""
        from poise.steer import Steering

        old = self.steering or Steering(())
        others = [term for term in old.terms if all(term.vector is not vector for vector in vectors)]
        terms = (*others, *(new.terms if new else ()))
        orthogonal = old.orthogonal or (new is not None and new.orthogonal)
        return replace(self, steering=Steering(terms, orthogonal) if terms else None)


def named(
    watched: Sequence[PersonaVector], steering: Steering | None
) -> tuple[dict[str, PersonaVector], Steering | None]:
    """Vectors by names of their own, the watched first, and a steering in which equal vectors are the same object.

    Traits of one name are told apart by a number: ``evil``, ``evil-2``.
    """
    names: dict[str, PersonaVector] = {}

    def of(vector: PersonaVector) -> PersonaVector:
        for known in names.values():
            same = known.directions.equal(vector.directions) and known.header.detector == vector.header.detector
            if known.name == vector.name and same:
                return known
        again = sum(known.name == vector.name for known in names.values())
        names[f"{vector.name}-{again + 1}" if again else vector.name] = vector
        return vector

    for vector in watched:
        of(vector)
    if steering is None:
        return names, None
    terms = tuple(
        replace(t, vector=of(t.vector), when=t.when and replace(t.when, vector=of(t.when.vector)))
        for t in steering.terms
    )
    return names, replace(steering, terms=terms)


def push(steering: Steering | None, watched: WatchedTrait, phase: Literal["prompt", "response"]) -> float | None:
    """What a steering by itself adds to a watched trait's reading; see ``poise.monitor.steering_offset``."""
    from poise.monitor.steering_offset import steering_offset as along

    return along(steering, watched.probe, phase)


def transcript(dialogue: Dialogue, setup: Setup) -> dict[str, Any]:
    """All of a chat as plain JSON; ``messages`` is the shape that ``poise read`` takes."""
    from importlib.metadata import version

    from poise.vector import ModelId

    return {
        "poise": version("poise"),
        "model": ModelId.of(setup.model).model_dump(exclude={"sketch"}),
        "dtype": str(setup.model.lm.dtype).removeprefix("torch."),
        "max_new_tokens": setup.sampling.max_new_tokens,
        "temperature": setup.sampling.temperature,
        **({"thinking": setup.thinking} if setup.thinking else {}),
        "messages": [_openai_message(message) for message in dialogue.messages()],
        "watched": [_watched(w) for w in setup.watched],
        "turns": [_turn(turn, setup) for turn in dialogue.turns],
    }


def _openai_message(message: Message) -> dict[str, Any]:
    """With a thought under the name that clients know."""
    return {"reasoning_content" if key == "thought" else key: value for key, value in message.items()}


def _watched(of: WatchedTrait) -> dict[str, Any]:
    header, layer = of.vector.header, of.probe.layer
    return {
        "name": of.name,
        "trait": header.trait.name,
        "trait_hash": header.trait_hash,
        "layer": layer,
        "layers": of.vector.layers,
        "norm": of.vector.at("read", layer).difference,
        "normal": of.normal,
        "spread": of.spread,
        "alarms": [alarm.model_dump(mode="json") for alarm in header.alarms],
    }


def _turn(turn: ChatTurn, setup: Setup) -> dict[str, Any]:
    return {
        "system": turn.system,
        "user": turn.user,
        "answer": turn.answer,
        **({"reasoning_content": turn.thought} if turn.thought else {}),
        "finish": turn.finish,
        "seed": turn.seed,
        "steering": facts.of_answers(setup.model.name, [], [], turn.steering, turn.seed)["steering"],
        "push": {p: [push(turn.steering, w, p) for w in setup.watched] for p in ("prompt", "response")},
        "prompt": turn.prompt,
        "tokens": [
            {"text": piece.text, "readings": piece.readings} | ({} if piece.part == "reply" else {"part": piece.part})
            for piece in turn.pieces
        ],
    }
