"""Alarms on normal talk, and readings of finished conversations, from files to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from poise import vector as vectors
from poise.data import AnswerPart, open_data
from poise.errors import InvalidArgument
from poise.monitor import table
from poise.monitor.calibrate import (
    ALARMS_BELONG,
    Calibration,
    CalibrationSettings,
    calibrate_alarms,
    check_calibrated_part,
)
from poise.storage.lock import locked
from poise.storage.output import check_output, check_writable
from poise.vector.algebra import check_distinct
from poise.vector.vector_file import vector_loss
from poise.vllm.choice import GeneratorName, check_generator, choose_engine
from poise.workflows.sources import ModelSource, current_vector, load_checked, open_vectors

__all__ = ["calibrate_vectors", "read_data"]


def calibrate_vectors(
    paths: Sequence[Path],
    model: ModelSource,
    source: Sequence[str],
    plan: CalibrationSettings,
    *,
    shape: str = "auto",
    part: AnswerPart = "reply",
    out: Path | None = None,
    allow_other_model: bool = False,
    force: bool = False,
    engine: GeneratorName = "local",
) -> Calibration:
    """Set alarms on normal talk and write them into the vector files at ``paths``, or one vector's into ``out``.

    Run again after a kill, it continues in the first file + ``.calibration``. ``force`` writes over an existing
    ``out`` whatever it holds; ``engine`` generates, ``local`` or ``vllm``.

    Raises:
        OutputExists: ``out`` would be lost; before the model is loaded, as all that can be checked then.
        FolderInUse: another run is calibrating this file.
    """
    if out and len(paths) > 1:
        raise InvalidArgument(
            f"{out} cannot take {len(paths)} vectors; leave `out` away to write into their own files."
        )
    if engine != "local" and plan.read_given_answers:
        raise InvalidArgument(
            f"`engine` is {engine}, and answers that the data have are read, not generated; leave `engine` out, or "
            "`given_answers`."
        )
    check_generator(engine)
    opened = [vectors.load_vector(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InvalidArgument(f"{', '.join(map(str, paths))} name one file twice; name each vector once.")
    targets = [out] if out else list(paths)
    folder = targets[0].with_name(targets[0].name + ".calibration")
    data = open_data(list(source), shape=shape, part=part, need="assistant" if plan.read_given_answers else "user")
    check_calibrated_part(data, plan)
    if out:
        header = opened[0].header
        certified, detected = header.certificate is not None, header.detector is not None
        check_output(
            out,
            inputs=[*paths, *data.files],
            loss=lambda p: vector_loss(
                p, header.trait.name, model=header.model, certificate=certified, alarms=True, detector=detected
            ),
            force=force,
        )
    for path in targets:
        check_writable(path)
    with locked(folder, "calibrate"):
        loaded = load_checked(opened, model, allow_other_model=allow_other_model, record=ALARMS_BELONG)
        done = calibrate_alarms(
            data,
            loaded,
            opened,
            plan,
            folder,
            allow_other_model=allow_other_model,
            engine=choose_engine(engine, loaded, batch=plan.batch),
        )
    for vector, path in zip(done.vectors, targets, strict=True):
        current = vector if out else current_vector(path, vector)
        vectors.save_vector(current.with_alarms(vector.header.alarms, vector.header.drift), path, force=force)
    return done


def read_data(
    source: Sequence[str],
    paths: Sequence[Path],
    model: ModelSource,
    out: Path,
    *,
    shape: str = "auto",
    part: AnswerPart = "reply",
    layer: int | None = None,
    by: str | None = None,
    projection: bool = False,
    allow_other_model: bool = False,
    force: bool = False,
) -> table.FinishedTable:
    """Score every answer of a data set by the vectors at ``paths`` and write the table to ``out``; resumes.

    ``projection`` reads by the vectors' own directions, whatever detectors they have; ``force`` writes over an existing
    file whatever it holds.

    Raises:
        OutputExists: ``out`` would be lost, or lies in a folder of data; before the model is loaded.
        FolderInUse: another run is writing this table.
    """
    table.check_table_format(out)
    opened = open_vectors(paths, projection=projection)
    check_distinct(opened)
    data = open_data(list(source), shape=shape, part=part)
    table.check_table_output(out, data, source, inputs=paths, force=force)
    for vector in opened:
        vector.at("read", layer)  # a layer that it lacks
    loaded = load_checked(opened, model, allow_other_model=allow_other_model)
    return table.write_readings_table(data, loaded, opened, out, layer=layer, by=by, force=force)
