"""The vectors that requests may name, each with the probe that reads it."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise import vector as vectors
from poise.activations import Probe
from poise.errors import InvalidVector, RequestError, UserError
from poise.model import Model
from poise.monitor import alarms_in_force
from poise.monitor.baseline import ReadingBaseline, measure_baseline
from poise.vector import Alarm, PersonaVector

__all__ = ["NAME", "Shelf", "Watched"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """A vector under the name that requests call it by.

    Attributes:
        name: Unique on the shelf.
        vector: Its directions and what is known of them.
        probe: Where it is read.
        fixed: Named when the server was started; it cannot be deleted.
        normal: What tokens of answers without the trait read; ``None`` where the vector carries no such answers.
    """

    name: str
    vector: PersonaVector
    probe: Probe
    fixed: bool
    normal: ReadingBaseline | None = None

    @property
    def alarms(self) -> list[Alarm]:
        """Set on all talk at the layer where it is read."""
        return alarms_in_force(self.vector.at("read", self.probe.layer).alarms)


class Shelf:
    """All vectors of a server; uploaded ones also on disk where there is a folder for them.

    Args:
        model: Whose they must be.
        folder: Where uploads are kept, one file each; ``None`` keeps them until the server stops.
        allow_other_model: Take vectors of another model of the same shape.
        between: Runs what uses the model while nothing else does.
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
        self._all: dict[str, Watched] = {}
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("*.safetensors")):
                self.put(path.stem, vectors.load_vector(path), fixed=False)

    @property
    def all(self) -> Mapping[str, Watched]:
        """By name, as they are now."""
        return self._all

    def find(self, names: Iterable[str]) -> list[Watched]:
        """Those of these names, each once.

        Raises:
            RequestError: 404 for one that is not there; says what is.
        """
        now, wanted = self._all, list(dict.fromkeys(names))
        for name in wanted:
            if name not in now:
                known = ", ".join(now) or "none"
                raise RequestError(404, f"There is no vector {name!r}; there are: {known}.", code="vector_not_found")
        return [now[name] for name in wanted]

    def put(self, name: str, vector: PersonaVector, *, fixed: bool) -> Watched:
        """Put a vector on the shelf.

        Raises:
            InvalidVector: the name cannot be written in a steering expression.
            OtherModel: it is not this model's.
            InvalidSteering: it is zero where it would be read.
            RequestError: 409 for a name that is taken.
        """
        if not re.fullmatch(NAME, name):
            raise InvalidVector(f"{name!r} is no name for a vector here; use letters, digits, _ and -, at most 64.")
        vector.check_model(self.model, allow_other_model=self.allow_other_model)
        probe = vector.at("read").probe
        self._check_free(name)
        normal = self._between(lambda: _normal(vector, probe, self.model))
        with self._lock:
            self._check_free(name)
            self._all = {**self._all, name: Watched(name, vector, probe, fixed, normal)}
            return self._all[name]

    def _check_free(self, name: str) -> None:
        if name in self._all:
            raise RequestError(409, f"There is a vector {name!r} already; delete it first.", code="vector_exists")

    def upload(self, name: str, data: bytes) -> Watched:
        """Put the bytes of a vector file on the shelf, once they have been read and found whole.

        Raises:
            RequestError: 400 for anything else than a vector of this model; 409 for a name that is taken.
        """
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "upload.safetensors"
                path.write_bytes(data)
                vector = vectors.load_vector(path)
            found = self.put(name, vector, fixed=False)
            if self.folder:
                try:
                    vectors.save_vector(vector, self.folder / f"{name}.safetensors")
                except UserError:
                    self._drop(name)
                    raise
        except UserError as error:
            raise RequestError(400, _without_paths(str(error)), code="invalid_vector", param="name") from error
        return found

    def delete(self, name: str) -> None:
        """Take a vector off the shelf and off the disk.

        Raises:
            RequestError: 404 where there is none; 409 for one that the server was started with.
        """
        [found] = self.find([name])
        if found.fixed:
            raise RequestError(409, f"{name} was named when the server was started; restart without it.", code="fixed")
        self._drop(name)
        if self.folder:
            (self.folder / f"{name}.safetensors").unlink(missing_ok=True)

    def _drop(self, name: str) -> None:
        with self._lock:
            self._all = {k: v for k, v in self._all.items() if k != name}


def _normal(vector: PersonaVector, probe: Probe, model: Model) -> ReadingBaseline | None:
    try:
        return measure_baseline(vector, probe, model)
    except UserError:
        return None


def _without_paths(message: str) -> str:
    return re.sub(r"\S*upload\.safetensors", "the upload", message)
