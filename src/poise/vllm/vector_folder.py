"""The vectors that requests may name: files of one folder that the server was started with, never a request's paths."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from poise.activations import Probe
from poise.errors import InvalidVector
from poise.steer.request_field import VECTOR_NAME
from poise.storage.content_hash import content_key
from poise.vector import PersonaVector, load_vector

__all__ = ["VectorFolder"]


@dataclass(frozen=True, eq=False, kw_only=True)
class VectorFolder:
    """Vectors of one model by name.

    Attributes:
        vectors: Vectors by the stem of their file's name.
        digest: Hash of all files, which tells two folders apart.
    """

    vectors: Mapping[str, PersonaVector]
    digest: str

    @classmethod
    def read(cls, folder: Path) -> VectorFolder:
        """All ``.safetensors`` files of a folder.

        Raises:
            InvalidVector: no such folder, none in it, a name that requests cannot write, a file that is no vector, or
                vectors of two shapes.
        """
        if not folder.is_dir():
            raise InvalidVector(f"POISE_VECTORS is {folder}, which is no folder; name the one that holds the vectors.")
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise InvalidVector(
                f"There is no .safetensors file in {folder} (POISE_VECTORS); put vectors there, as `poise extract` "
                "writes them."
            )
        for path in paths:
            if not re.fullmatch(VECTOR_NAME, path.stem):
                raise InvalidVector(
                    f"{path.name!r} cannot be named in a request; use letters, digits, _ and -, at most 64."
                )
        vectors = {path.stem: load_vector(path).named(path.stem) for path in paths}
        shapes = {name: (vector.layers, vector.width) for name, vector in vectors.items()}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{name} {layers} × {width}" for name, (layers, width) in shapes.items())
            raise InvalidVector(f"The vectors in {folder} are of several models ({listed}); keep one model's there.")
        return cls(
            vectors=vectors,
            digest=content_key(files=[[p.name, hashlib.sha256(p.read_bytes()).hexdigest()] for p in paths]),
        )

    @property
    def layers(self) -> int:
        """L of all of them."""
        return next(iter(self.vectors.values())).layers

    @property
    def width(self) -> int:
        """d of all of them."""
        return next(iter(self.vectors.values())).width

    def probe(self, name: str) -> Probe:
        """What reads a vector, at the layer where it is to be read."""
        return self.vectors[name].at("read").probe
