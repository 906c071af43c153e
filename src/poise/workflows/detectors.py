"""Detectors from files to files: exemplar pairs and ordinary talk in, vectors that are read with a detector out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from poise import vector as vectors
from poise.data import open_data
from poise.detector.fitting import DETECTOR_BELONGS, DetectorSettings, fit_checked, read_talk
from poise.errors import InvalidArgument
from poise.storage.output import check_output, check_writable
from poise.trait import ExemplarPair, Trait, library
from poise.vector import PersonaVector
from poise.vector.vector_file import vector_loss
from poise.workflows.sources import ModelSource, current_vector, load_checked

__all__ = ["fit_vector_detectors"]


def fit_vector_detectors(
    paths: Sequence[Path],
    model: ModelSource,
    normal: Sequence[str],
    settings: DetectorSettings,
    *,
    exemplars: Path | None = None,
    shape: str = "auto",
    out: Path | None = None,
    allow_other_model: bool = False,
    force: bool = False,
) -> list[PersonaVector]:
    """Fit a detector for the vector files at ``paths`` and write it into them, or one vector's into ``out``.

    Args:
        paths: Vector files.
        model: Model that they belong to, or what loads it.
        normal: Names of ordinary talk with answers; may be empty.
        settings: Kinds, layers, folds, seed.
        exemplars: Pairs to fit on instead of those of the trait.
        shape: Shape of the talk.
        out: Written instead of the file, for one vector.
        allow_other_model: Also take vectors of another model of this shape.
        force: Write over an existing ``out`` whatever it holds.

    Raises:
        OutputExists: ``out`` would be lost; before the model is loaded, as all that can be checked then.
    """
    if out and len(paths) > 1:
        raise InvalidArgument(
            f"{out} cannot take {len(paths)} vectors; leave `out` away to write into their own files."
        )
    opened = [vectors.load_vector(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InvalidArgument(f"{', '.join(map(str, paths))} name one file twice; name each vector once.")
    pairs = library.read_pairs(exemplars) if exemplars else None
    data = open_data(list(normal), shape=shape, need="assistant") if normal else None
    for vector in opened:
        for layer in settings.layers or ():
            vector.check_layer(layer)
    if out:
        header = opened[0].header
        check_output(
            out,
            inputs=[*paths, *(data.files if data else ())],
            loss=lambda p: vector_loss(
                p,
                header.trait.name,
                model=header.model,
                certificate=header.certificate is not None,
                alarms=any(not alarm.detector for alarm in header.alarms),  # those of another detector are dropped
                detector=True,
            ),
            force=force,
        )
    for path in [out] if out else paths:
        check_writable(path)
    loaded = load_checked(opened, model, allow_other_model=allow_other_model, record=DETECTOR_BELONGS)
    talk = read_talk(loaded, data, limit=settings.limit, seed=settings.seed)
    fitted = [fit_checked(vector, loaded, talk, pairs or detector_pairs(vector), settings) for vector in opened]
    for vector, path in zip(fitted, [out] if out else paths, strict=True):
        assert vector.detector
        current = vector if out else current_vector(path, vector)
        vectors.save_vector(current.with_detector(vector.detector), path, force=force or not out)
    return fitted


def detector_pairs(vector: PersonaVector) -> Sequence[ExemplarPair]:
    """Pairs for a vector's detector: its trait's own, or the library's for one of its traits without any."""
    trait = vector.header.trait
    if isinstance(trait, Trait) and not trait.exemplars.detector and trait.name in library.names():
        known = library.load_trait(trait.name)
        if known.hash == trait.hash:
            return known.detector_pairs
    return trait.detector_pairs
