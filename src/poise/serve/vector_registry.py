"""The vectors that requests may name, each with the probe that reads it."""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from poise import vector as vectors
from poise.activations import Probe
from poise.data import AnswerPart
from poise.errors import InvalidVector, RequestError, UserError
from poise.model import Model
from poise.model.relation import SAME_MODEL, ModelRelation
from poise.monitor import alarms_in_force
from poise.monitor.baseline import ReadingBaseline, ReadsText, baseline_texts, read_baseline
from poise.steer import Steering, cautions
from poise.steer.request_field import VECTOR_NAME
from poise.vector import Alarm, PersonaVector

__all__ = ["VectorRegistry", "WatchedVector"]

LARGEST_NORM_RATIO = 2  # between mean ‖h‖ of one model on two sets of answers
MOST_HEADER = 2**20  # bytes of an uploaded vector's texts
MOST_TOKENS = 512  # of an answer that it carries, which is read in one piece between two steps of other answers


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WatchedVector:
    """A vector under the name that requests call it by.

    Attributes:
        name: Name that is unique in the registry.
        vector: The persona vector.
        probe: Probe that reads it, at the layer where it is watched.
        fixed: Whether it was named when the server was started, watches all answers and cannot be deleted.
        owner: Name of the key that uploaded it, and whose answers alone it watches; ``None`` without keys.
        normal: Readings of tokens in answers without the trait; ``None`` where the vector carries no such answers.
        relation: What the served model is to the vector's own.
    """

    name: str
    vector: PersonaVector
    probe: Probe
    fixed: bool
    owner: str | None = None
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

    def cap_alarm(self, part: AnswerPart) -> Alarm | None:
        """What a cap holds the trait at: the lowest alarm for tokens that was set along the vector's own direction.

        The alarm that a detector raises is a level along the detector, and a cap works along the direction.
        """
        alarms = alarms_in_force(self.vector.without_detector().at("read", part=part).alarms)
        of_tokens = [alarm for alarm in alarms if alarm.reading != "prompt"] or alarms
        return min(of_tokens, key=lambda alarm: alarm.threshold, default=None)

    def missing_cap(self, part: AnswerPart) -> str:
        """Why its alarms cannot cap it; empty where they can, or where it has none that could be raised."""
        if not self.alarms_on(part) or self.cap_alarm(part):
            return ""
        return (
            f"a cap works along the vector's own direction, and {self.vector.name} has alarms for its detector alone; "
            "run `poise calibrate` on it, which sets both, or note or stop instead"
        )

    def missing_alarms(self, part: AnswerPart) -> str:
        """Why none of its alarms are in force for that part; empty where some are, or it has none at all."""
        place = self.vector.at("read", self.probe.layer, part=part)
        return place.missing_alarm("mean") if place.lacks_alarms else ""


class VectorRegistry:
    """The vectors of a server: some for all, and uploaded ones for one key each, also on disk where there is a folder.

    Args:
        model: Model that they must belong to.
        folder: Folder in which uploads are stored, one file each, in a folder for each key; ``None`` keeps them until
            the server stops.
        owners: Names of the keys whose uploads are read from there; none where the server has no keys.
        allow_other_model: Take vectors of another model of the same shape.
        between: Function that runs work on the model while nothing else uses it.
        read_text: Function that reads a text, where another engine than transformers runs the model.
        check_steering: Function that raises where the engine cannot do a steering.
    """

    def __init__(
        self,
        model: Model,
        *,
        folder: Path | None = None,
        owners: Sequence[str] = (),
        allow_other_model: bool = False,
        between: Callable[[Callable[[], Any]], Any] = lambda work: work(),
        read_text: ReadsText | None = None,
        check_steering: Callable[[Steering], None] = lambda steering: None,
    ) -> None:
        self.check_steering, self._read_text = check_steering, read_text
        self.model, self.folder, self.allow_other_model, self._between = model, folder, allow_other_model, between
        self._lock, self._upload_lock = threading.Lock(), threading.Lock()
        self._shared: dict[str, WatchedVector] = {}
        self._uploaded: dict[str | None, dict[str, WatchedVector]] = {}
        if folder:
            if not folder.exists():
                folder.mkdir(parents=True, mode=0o700)
            for owner in owners or (None,):
                for path in sorted(self._folder(owner).glob("*.safetensors")):
                    self.add(path.stem, vectors.load_vector(path), fixed=False, owner=owner)

    @property
    def entries(self) -> Mapping[str, WatchedVector]:
        """The vectors of a server without keys; else those for all."""
        return self.of(None)

    def of(self, owner: str | None) -> Mapping[str, WatchedVector]:
        """What watches the answers of a key, and what its requests may name: the vectors for all, and its own."""
        return {**self._shared, **self._uploaded.get(owner, {})}

    @property
    def uploaded(self) -> list[WatchedVector]:
        """The uploads of all keys."""
        return [watched for entries in self._uploaded.values() for watched in entries.values()]

    def find(self, names: Iterable[str], owner: str | None = None) -> list[WatchedVector]:
        """Those of these names that a key may name, each once.

        Raises:
            RequestError: 404 for one that is not there; says what is.
        """
        entries, unique_names = self.of(owner), list(dict.fromkeys(names))
        for name in unique_names:
            if name not in entries:
                known = ", ".join(entries) or "none"
                raise RequestError(404, f"There is no vector {name!r}; there are: {known}.", code="vector_not_found")
        return [entries[name] for name in unique_names]

    def add(
        self,
        name: str,
        vector: PersonaVector,
        *,
        fixed: bool,
        owner: str | None = None,
        most_tokens: int | None = None,
    ) -> WatchedVector:
        """Add a vector.

        Raises:
            InvalidVector: the name cannot be written in a steering expression, or an answer that it carries is longer
                than ``most_tokens``.
            OtherModel: it is not this model's.
            InvalidSteering: it is zero where it would be read.
            RequestError: 409 for a name that is taken.
        """
        if not re.fullmatch(VECTOR_NAME, name):
            raise InvalidVector(f"{name!r} is not a name for a vector here; use letters, digits, _ and -, at most 64.")
        self._check_free(name, owner)
        entry = self._entry(name, vector, fixed=fixed, owner=owner, most_tokens=most_tokens)
        with self._lock:
            self._check_free(name, owner)
            if fixed:
                self._shared = {**self._shared, name: entry}
            else:
                self._uploaded = {**self._uploaded, owner: {**self._uploaded.get(owner, {}), name: entry}}
            return entry

    def _entry(
        self, name: str, vector: PersonaVector, *, fixed: bool, owner: str | None = None, most_tokens: int | None = None
    ) -> WatchedVector:
        vector = vector.named(name)
        relation = vector.check_model(self.model, allow_other_model=self.allow_other_model)
        probe = vector.at("read").probe
        normal = self._normal_readings(vector, probe, most_tokens)
        return WatchedVector(
            name=name, vector=vector, probe=probe, fixed=fixed, owner=owner, normal=normal, relation=relation
        )

    def prepared(self, name: str, vector: PersonaVector) -> WatchedVector:
        """What is to take the place of a vector for all, checked like one that is added.

        Raises:
            UserError: it is not this model's, or cannot be read.
        """
        return self._entry(name, vector, fixed=True)

    def replace_shared(self, entries: Mapping[str, WatchedVector]) -> None:
        """Put these in the places of the vectors for all that have their names; answers under way keep theirs."""
        with self._lock:
            self._shared = {**self._shared, **entries}

    def _check_free(self, name: str, owner: str | None) -> None:
        if name in self.of(owner):
            raise RequestError(409, f"There is a vector {name!r} already; delete it first.", code="vector_exists")

    def _normal_readings(self, vector: PersonaVector, probe: Probe, most_tokens: int | None) -> ReadingBaseline | None:
        try:
            texts = baseline_texts(vector, self.model)
        except UserError:
            return None
        longest = max(len(text.ids) for text in texts)
        if most_tokens is not None and longest > most_tokens:
            raise InvalidVector(
                f"An answer that {vector.name} carries has {longest} tokens with its question; at most {most_tokens} "
                "are read of an upload. Shorten its trait's pairs, or name the file when the server is started."
            )
        return read_baseline(texts, probe, self.model, self._between, self._read_text)

    def upload(self, name: str, data: bytes, *, owner: str | None = None, most: int = 4) -> WatchedVector:
        """Add the vector in the bytes of a file, once they have been read and checked.

        Args:
            name: Name by which requests call it.
            data: The file.
            owner: Key that uploads it.
            most: Most uploads that the key may have.

        Raises:
            RequestError: 400 for anything else than a vector of this model, or one with too much text; 409 for a name
                that is taken, or one vector too many; 429 while another one is read.
        """
        if not self._upload_lock.acquire(blocking=False):
            text = "Another vector is being read; try again in 2 s."
            raise RequestError(429, text, code="upload_busy", headers={"Retry-After": "2"})
        try:
            return self._upload(name, data, owner, most)
        except UserError as error:
            raise RequestError(400, _without_paths(str(error)), code="invalid_vector", param="name") from error
        finally:
            self._upload_lock.release()

    def _upload(self, name: str, data: bytes, owner: str | None, most: int) -> WatchedVector:
        if len(self._uploaded.get(owner, {})) >= most:
            text = f"There are {most} uploaded vectors already, which is all that may be; delete one first."
            raise RequestError(409, text, code="too_many_vectors")
        if self.folder and (self._folder(owner) / f"{name}.safetensors").exists():
            text = f"There is a file of {name} from before, which is not in use; its operator has to move it away."
            raise RequestError(409, text, code="vector_exists")
        header = int.from_bytes(data[:8], "little")
        if MOST_HEADER < header < len(data):
            raise InvalidVector(f"The texts of the vector have {header} bytes; at most {MOST_HEADER} are taken.")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "upload.safetensors"
            path.write_bytes(data)
            vector = vectors.load_vector(path)
        self._check_usable(vector)
        entry = self.add(name, vector, fixed=False, owner=owner, most_tokens=MOST_TOKENS)
        if self.folder:
            try:
                self._folder(owner).mkdir(mode=0o700, parents=True, exist_ok=True)
                vectors.save_vector(vector, self._folder(owner) / f"{name}.safetensors")
            except UserError:
                self._remove(name, owner)
                raise
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
        known = [w.vector.reference_norm for w in self._shared.values()]
        if known and (vector.reference_norm > LARGEST_NORM_RATIO * torch.stack(known).median(dim=0).values).any():
            raise InvalidVector(
                f"The reference norms of {vector.name!r} are more than {LARGEST_NORM_RATIO} times those of the vectors "
                "that are here, so its doses would count for less than they are; extract it on this model."
            )

    def delete(self, name: str, owner: str | None = None) -> None:
        """Remove an upload of a key, from disk too.

        Raises:
            RequestError: 404 where there is none; 409 for one that the server was started with.
        """
        [entry] = self.find([name], owner)
        if entry.fixed:
            raise RequestError(409, f"{name} was named when the server was started; restart without it.", code="fixed")
        self._remove(name, owner)
        if self.folder:
            (self._folder(owner) / f"{name}.safetensors").unlink(missing_ok=True)

    def _remove(self, name: str, owner: str | None) -> None:
        with self._lock:
            remaining = {k: v for k, v in self._uploaded.get(owner, {}).items() if k != name}
            self._uploaded = {**self._uploaded, owner: remaining}

    def _folder(self, owner: str | None) -> Path:
        """Where the uploads of a key are: names of keys may hold any character, file names may not."""
        folder = self.folder or Path()
        return folder if owner is None else folder / f"key-{quote(owner, safe='')}"


def _without_paths(message: str) -> str:
    return re.sub(r"\S*upload\.safetensors", "the upload", message)
