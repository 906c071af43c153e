"""Groups of people and prompts about them, and which members are asked about in which prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from poise.errors import InvalidSettings
from poise.settings import ListOfTexts, Settings, read_settings
from poise.settings.scalar_types import FilledText

__all__ = ["BiasAxis", "BiasGroup", "BiasPrompt", "BiasSet", "SwapCell", "draw_swaps", "read_bias_set"]

SLOTS = 2  # members of each group that a prompt is asked about: their difference is the swap control


class BiasGroup(Settings):
    """Members of a group, each as it stands in a prompt.

    Attributes:
        members: Names or words for a member; two are drawn for each prompt.
        pronouns: Words for {they}, {them} and {their}.
    """

    members: ListOfTexts = Field(min_length=SLOTS)
    pronouns: dict[str, str] = Field(default_factory=dict)


def _as_group(value: Any) -> Any:
    return {"members": value} if isinstance(value, list | str) else value


class BiasAxis(Settings):
    """Groups that are compared with each other.

    Attributes:
        templates: Prompts that are asked: with a person in them, or with pronouns.
        groups: Groups by name.
    """

    templates: Literal["person", "pronoun"] = "person"
    groups: dict[str, Annotated[BiasGroup, BeforeValidator(_as_group)]] = Field(min_length=2)


class BiasPrompt(Settings):
    """A prompt, and two answers to it whose likelihoods are compared.

    Attributes:
        prompt: Prompt with {Person} or {person}, or with {member}, {they}, {them} and {their}.
        favourable: Answer that speaks for the person.
        unfavourable: Answer that speaks against.
    """

    prompt: FilledText
    favourable: FilledText
    unfavourable: FilledText


class BiasSet(Settings):
    """Groups and prompts.

    Attributes:
        axes: Groups that are compared with each other, by name.
        person: Prompts about a person.
        pronoun: Prompts with pronouns.
    """

    axes: dict[str, BiasAxis] = Field(min_length=1)
    person: tuple[BiasPrompt, ...] = ()
    pronoun: tuple[BiasPrompt, ...] = ()

    def prompts(self, axis: str) -> tuple[BiasPrompt, ...]:
        """Prompts of an axis."""
        return self.person if self.axes[axis].templates == "person" else self.pronoun


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapCell:
    """One prompt about one member of one group.

    Attributes:
        axis: Axis of the group.
        group: Name of the group.
        template: Place of the prompt among those of the axis.
        slot: Which of the two members drawn for the prompt, 0 or 1.
        text: Prompt as it is asked.
        favourable: Answer that speaks for the person.
        unfavourable: Answer that speaks against.
    """

    axis: str
    group: str
    template: int
    slot: int
    text: str
    favourable: str
    unfavourable: str


def read_bias_set(path: str | Path | None = None) -> BiasSet:
    """Groups and prompts from a file, or those that come with Poise.

    Raises:
        InvalidSettings: it cannot be read, or a prompt has a place that nothing fills.
    """
    if path is None:
        return _packaged_set()
    bias_set = read_settings(path, BiasSet)
    for axis in bias_set.axes:
        if len(bias_set.prompts(axis)) < SLOTS:
            kind = bias_set.axes[axis].templates
            raise InvalidSettings(f"{path} has fewer than {SLOTS} prompts under {kind}, which axis {axis} takes.")
        list(_cells_of(bias_set, axis, np.random.default_rng(0), None))
    return bias_set


@lru_cache(maxsize=1)
def _packaged_set() -> BiasSet:
    with as_file(files("poise.lifecycle") / "bias_sets.yaml") as path:
        return read_settings(path, BiasSet)


def draw_swaps(
    bias_set: BiasSet, *, axes: Sequence[str] = (), templates: int | None = None, seed: int = 0
) -> list[SwapCell]:
    """Every prompt with two members of each group, drawn anew for each prompt.

    Args:
        bias_set: Groups and prompts.
        axes: Axes by name; all where none is named.
        templates: Most prompts of each axis.
        seed: Seed of the draw.

    Raises:
        InvalidSettings: there is no such axis.
    """
    for axis in axes:
        if axis not in bias_set.axes:
            raise InvalidSettings(f"There is no axis {axis}; use one of {', '.join(bias_set.axes)}.")
    random = np.random.default_rng(seed)
    return [cell for axis in axes or bias_set.axes for cell in _cells_of(bias_set, axis, random, templates)]


def _cells_of(bias_set: BiasSet, axis: str, random: np.random.Generator, templates: int | None) -> Iterator[SwapCell]:
    for template, prompt in enumerate(bias_set.prompts(axis)[:templates]):
        for name, group in bias_set.axes[axis].groups.items():
            for slot, member in enumerate(random.choice(len(group.members), SLOTS, replace=False)):
                yield SwapCell(
                    axis=axis,
                    group=name,
                    template=template,
                    slot=slot,
                    text=_filled_prompt(prompt.prompt, group.members[int(member)], group.pronouns),
                    favourable=prompt.favourable,
                    unfavourable=prompt.unfavourable,
                )


def _filled_prompt(prompt: str, member: str, pronouns: Mapping[str, str]) -> str:
    person = member[:1].upper() + member[1:]
    try:
        return prompt.format(Person=person, person=member, member=member, **pronouns)
    except (KeyError, IndexError, ValueError) as error:
        raise InvalidSettings(f"The prompt {prompt!r} has a place that its groups do not fill ({error}).") from error
