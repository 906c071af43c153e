"""How legible solutions are, with files: what ``poise legibility`` runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from poise.errors import InvalidArgument
from poise.judge.yes_no import LocalYesNo, YesNo, yes_no_reader
from poise.knowledge import Knowledge
from poise.legibility import (
    Legibility,
    ProverCondition,
    Solution,
    read_problems,
    read_solutions,
    summarise_legibility,
    verify_solutions,
    write_solutions,
)
from poise.model import load_model
from poise.progress import track
from poise.shift.evaluation import ModelLoader, check_tuned_source, free_memory, load_tuned_model
from poise.storage.atomic_write import saving
from poise.storage.journal import Journal
from poise.storage.lock import locked
from poise.storage.output import check_output_folder
from poise.workflows.generation import read_steering, steer_by

__all__ = ["LegibilityRequest", "measure_legibility"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LegibilityRequest:
    """What is verified, and by whom.

    Attributes:
        verifier: ``model:NAME``, ``endpoint:NAME`` or a model's name.
        right: Files of right solutions.
        wrong: Files of wrong ones.
        problems: File of problems with answers, whose solutions the prover writes.
        prover: Name of the prover.
        steer: Steering expressions; its solutions are compared with and without them.
        tuned: An adapter or tuned model; likewise.
        knowledge: Folder of a knowledge base; likewise.
        limit: Most problems.
        most_tokens: Longest solution that is written.
        batch: Most solutions at once.
    """

    verifier: str
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    problems: str | None = None
    prover: str | None = None
    steer: tuple[str, ...] = ()
    tuned: str | None = None
    knowledge: Path | None = None
    limit: int | None = None
    most_tokens: int = 200
    batch: int = 8

    def __post_init__(self) -> None:
        given_files = bool(self.right or self.wrong)
        if given_files == (self.problems is not None):
            raise InvalidArgument(
                "Solutions come from `right` and `wrong`, or are written for `problems` by a `prover`; give one of "
                "these."
            )
        if given_files and (self.prover or self.steer or self.tuned or self.knowledge):
            raise InvalidArgument(
                "`right` and `wrong` are solutions already; leave prover, steering and documents out."
            )
        if self.problems is not None and not self.prover:
            raise InvalidArgument("`problems` are solved by a `prover`; name the model.")


def measure_legibility(
    request: LegibilityRequest, out: Path, *, load: ModelLoader = load_model, force: bool = False
) -> Legibility:
    """Measure how often a verifier tells right solutions from wrong ones, and write ``legibility.json`` into ``out``.

    Run again after a kill, it continues in ``out/.run``; ``force`` writes over a file there that it did not write.

    Raises:
        OutputExists: a file in ``out`` would be lost; before a model is loaded.
        InvalidData: solutions or problems that cannot be used.
        JudgeUnavailable: the verifier's endpoint does not answer.
    """
    run_folder = out / ".run"
    names = [*request.right, *request.wrong, *([request.problems] if request.problems else [])]
    check_output_folder(
        out,
        ("legibility.json",),
        job="legibility",
        run_folder=run_folder,
        marks=(".run",),
        inputs=[Path(name).expanduser() for name in names],
        force=force,
    )
    read_steering(request.steer)
    if request.tuned:
        check_tuned_source(request.tuned)
    with locked(run_folder, "legibility", results=out):
        solutions = _solutions(request, run_folder, load)
        answers, verifier = _verify(request, solutions, run_folder, load)
        conditions = {name: (solutions[name], answers[name]) for name in solutions}
        result = summarise_legibility(verifier, request.prover or "as given", conditions)
        with saving(out / "legibility.json") as temporary:
            temporary.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return result


def _solutions(request: LegibilityRequest, folder: Path, load: ModelLoader) -> dict[str, list[Solution]]:
    """Solutions by condition, as given or written; one prover at a time is loaded."""
    if request.problems is None:
        return {"as given": read_solutions(request.right, request.wrong, request.limit)}
    problems = read_problems(request.problems, request.limit)
    journal = Journal(folder / "solutions.jsonl")
    written = {}
    for condition in _conditions(request, load):
        written[condition.name] = write_solutions(
            problems, condition, journal, most_tokens=request.most_tokens, batch=request.batch
        )
        del condition  # its model is to be gone before the next one is loaded
    free_memory()
    return written


def _conditions(request: LegibilityRequest, load: ModelLoader) -> Iterator[ProverCondition]:
    """The prover before, and after each of what is asked about alone."""
    name = str(request.prover)
    model = load(name)
    yield ProverCondition(name="before", model=model)
    if request.steer:
        yield ProverCondition(name="steered", model=model, steering=steer_by(request.steer, model))
    if request.knowledge:
        yield ProverCondition(name="with documents", model=model, knowledge=Knowledge(request.knowledge))
    del model
    free_memory()
    if request.tuned:
        yield ProverCondition(name="tuned", model=load_tuned_model(request.tuned, name, load))


def _verify(
    request: LegibilityRequest, solutions: dict[str, list[Solution]], folder: Path, load: ModelLoader
) -> tuple[dict[str, list[YesNo]], str]:
    journal = Journal(folder / "verified.jsonl")
    with track("Loading the verifier"):
        reader = yes_no_reader(request.verifier, load)
    identity = reader.model.fingerprint.weights if isinstance(reader, LocalYesNo) else ""
    answers = {name: verify_solutions(each, reader, journal, identity) for name, each in solutions.items()}
    return answers, reader.name
