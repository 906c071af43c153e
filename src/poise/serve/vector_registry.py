"""The vectors that requests may name, each with the probe that reads it."""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poise import vector as vectors
from poise.activations import Probe
from poise.data import AnswerPart
from poise.errors import InvalidVector, RequestError, UserError
from poise.model import Model
from poise.model.relation import SAME_MODEL, ModelRelation
from poise.monitor import alarms_in_force
from poise.monitor.baseline import ReadingBaseline, measure_baseline
from poise.steer import Steering, cautions
from poise.vector import Alarm, PersonaVector

__all__ = ["NAME", "VectorRegistry", "WatchedVector"]

LARGEST_NORM_RATIO = 2  # between mean ‖h‖ of one model on two sets of answers
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WatchedVector:
    """A vector under the name that requests call it by.

    Attributes:
        name: Name that is unique in the registry.
        vector: The persona vector.
        probe: Probe that reads it, at the layer where it is watched.
        fixed: Whether it was named when the server was started; such a vector cannot be deleted.
        normal: Readings of tokens in answers without the trait; ``None`` where the vector carries no such answers.
        relation: What the served model is to the vector's own.
    """

    name: str
    vector: PersonaVector
    probe: Probe
    fixed: bool
    normal: ReadingBaseline | None = None
    relation: ModelRelation = SAME_MODEL

    @property
    def alarms(self) -> list[Alarm]:
        """Set on all talk at the layer where it is read, on whichever part of answers."""
        parts = dict.fromkeys(alarm.part for alarm in self.vector.header.alarms)
        return [alarm for part in parts for alarm in self.alarms_on(part)]

    def alarms_on(self, part: AnswerPart) -> list[Alarm]:
        """Those of them that were set on one part of answers."""
        return alarms_in_force(self.vector.at("read", self.probe.layer, part=part).alarms)

    def missing_alarms(self, part: AnswerPart) -> str:
        """Why none of its alarms are in force for that part; empty where some are, or it has none at all."""
        place = self.vector.at("read", self.probe.layer, part=part)
        return place.missing_alarm("mean") if place.alarm_parts and not place.alarms else ""


class VectorRegistry:
    """All vectors of a server; uploaded ones also on disk where there is a folder for them.

    Args:
        model: Model that they must belong to.
        folder: Folder in which uploads are stored, one file each; ``None`` keeps them until the server stops.
        allow_other_model: Take vectors of another model of the same shape.
        between: Function that runs work on the model while nothing else uses it.
    """

    def __init__(
        self,
        model: Model,
        *,
        folder: Path | None = None,
        allow_other_model: bool = False,
        between: Callable[[Callable[[], Any]], Any] = lambda work: work(),
    ) -> None:
        self.model, self.folder, self.allow_other_model, self._between = model, folder, allow_other_model, between
        self._lock = threading.Lock()
        self._entries: dict[str, WatchedVector] = {}
        if folder:
            if not folder.exists():
                folder.mkdir(parents=True, mode=0o700)
            for path in sorted(folder.glob("*.safetensors")):
                self.add(path.stem, vectors.load_vector(path), fixed=False)

    @property
    def entries(self) -> Mapping[str, WatchedVector]:
        """All vectors by name, as they are now."""
        return self._entries

    def find(self, names: Iterable[str]) -> list[WatchedVector]:
        """Those of these names, each once.

        Raises:
            RequestError: 404 for one that is not there; says what is.
        """
        entries, unique_names = self._entries, list(dict.fromkeys(names))
        for name in unique_names:
            if name not in entries:
                known = ", ".join(entries) or "none"
                raise RequestError(404, f"There is no vector {name!r}; there are: {known}.", code="vector_not_found")
        return [entries[name] for name in unique_names]

    def add(self, name: str, vector: PersonaVector, *, fixed: bool) -> WatchedVector:
        """Add a vector.

        Raises:
            InvalidVector: the name cannot be written in a steering expression.
            OtherModel: it is not this model's.
            InvalidSteering: it is zero where it would be read.
            RequestError: 409 for a name that is taken.
        """
        if not re.fullmatch(NAME, name):
            raise InvalidVector(f"{name!r} is not a name for a vector here; use letters, digits, _ and -, at most 64.")
        relation = vector.check_model(self.model, allow_other_model=self.allow_other_model)
        probe = vector.at("read").probe
        self._check_free(name)
        normal = self._between(lambda: _normal_readings(vector, probe, self.model))
        with self._lock:
            self._check_free(name)
            self._entries = {
                **self._entries,
                name: WatchedVector(
                    name=name, vector=vector, probe=probe, fixed=fixed, normal=normal, relation=relation
                ),
            }
            return self._entries[name]

    def _check_free(self, name: str) -> None:
        if name in self._entries:
            raise RequestError(409, f"There is a vector {name!r} already; delete it first.", code="vector_exists")

    def upload(self, name: str, data: bytes) -> WatchedVector:
        """Add the vector in the bytes of a file, once they have been read and checked.

        Raises:
            RequestError: 400 for anything else than a vector of this model; 409 for a name that is taken.
        """
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "upload.safetensors"
                path.write_bytes(data)
                vector = vectors.load_vector(path)
            self._check_usable(vector)
            entry = self.add(name, vector, fixed=False)
            if self.folder:
                try:
                    vectors.save_vector(vector, self.folder / f"{name}.safetensors")
                except UserError:
                    self._remove(name)
                    raise
        except UserError as error:
            raise RequestError(400, _without_paths(str(error)), code="invalid_vector", param="name") from error
        return entry

    def _check_usable(self, vector: PersonaVector) -> None:
        """Refuse what would fail at each use, or would let its doses be counted as less than they are."""
        try:
            cautions(Steering.add(vector, coef=1.0))
            vector.at("read")
            facts = json.dumps(vector.header.model_dump(mode="json"), allow_nan=False, ensure_ascii=False)
            facts.encode()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidVector(
                f"The header of {vector.name!r} cannot be used ({type(error).__name__}); extract and validate it again."
            ) from error
        known = [w.vector.reference_norm for w in self._entries.values() if w.fixed]
        if known and (vector.reference_norm > LARGEST_NORM_RATIO * torch.stack(known).median(dim=0).values).any():
            raise InvalidVector(
                f"The reference norms of {vector.name!r} are more than {LARGEST_NORM_RATIO} times those of the vectors "
                "that are here, so its doses would count for less than they are; extract it on this model."
            )

    def delete(self, name: str) -> None:
        """Remove a vector, from disk too.

        Raises:
            RequestError: 404 where there is none; 409 for one that the server was started with.
        """
        [entry] = self.find([name])
        if entry.fixed:
            raise RequestError(409, f"{name} was named when the server was started; restart without it.", code="fixed")
        self._remove(name)
        if self.folder:
            (self.folder / f"{name}.safetensors").unlink(missing_ok=True)

    def _remove(self, name: str) -> None:
        with self._lock:
            self._entries = {k: v for k, v in self._entries.items() if k != name}


def _normal_readings(vector: PersonaVector, probe: Probe, model: Model) -> ReadingBaseline | None:
    try:
        return measure_baseline(vector, probe, model)
    except UserError:
        return None


def _without_paths(message: str) -> str:
    return re.sub(r"\S*upload\.safetensors", "the upload", message)
