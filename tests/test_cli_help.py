"""``--help`` answers without heavy imports, and ``docs/cli.md`` is what it says."""

from __future__ import annotations

import inspect
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from poise.cli import app, talk, vectors

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "numpy", "sklearn", "scipy", "openai", "matplotlib"}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def commands(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    for name, command in getattr(group, "commands", {}).items():
        found += commands(command, (*path, name))
    return found


ALL = commands(typer.main.get_command(app))


def test_the_page_of_the_docs_is_what_help_says() -> None:
    generated = runpy.run_path(str(ROOT / "docs" / "generate_cli.py"))["page"]()
    assert generated == (ROOT / "docs" / "cli.md").read_text("utf-8"), "run: python docs/generate_cli.py"


def test_every_command_and_every_option_has_a_help_text() -> None:
    for path in ALL:
        command: Any = typer.main.get_command(app)
        for name in path:
            command = command.commands[name]
        assert command.help, path
        assert [p.name for p in command.params if not p.help] == [], path


def test_help_names_no_types_where_nothing_is_chosen() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert [word for word in ("<bool>", "<str>", "<list") if word in page] == []


@pytest.mark.slow
def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from poise.cli import app\n"
        f"for path in {ALL!r}: assert CliRunner().invoke(app, [*path, '--help']).exit_code == 0, path\n"
        f"print(sorted({HEAVY!r} & sys.modules.keys()))"
    )
    assert run(code).strip() == "[]"


def test_the_lines_of_help_fit_into_80_columns() -> None:
    blocks = (ROOT / "docs" / "cli.md").read_text("utf-8").split("```text\n")[1:]
    assert len(blocks) == len(ALL)
    assert max(len(line) for block in blocks for line in block.partition("```")[0].splitlines()) <= 80


def test_defaults_in_help_are_those_of_the_library() -> None:
    from poise.engine import SamplingParams
    from poise.workflows import GenerationBudget

    def defaults(function: Any) -> dict[str, Any]:
        return {name: p.default for name, p in inspect.signature(function).parameters.items()}

    budget, sampling = GenerationBudget(), SamplingParams()
    for command in (vectors.extract_command, vectors.validate_command):
        shown = defaults(command)
        assert {k: shown[k] for k in ("questions", "rollouts", "max_new_tokens", "seed")} == {
            "questions": budget.questions,
            "rollouts": budget.rollouts,
            "max_new_tokens": budget.max_new_tokens,
            "seed": budget.seed,
        }
    shown = defaults(talk.generate_command)
    assert (shown["max_new_tokens"], shown["temperature"]) == (sampling.max_new_tokens, sampling.temperature)


def test_importing_poise_imports_nothing_heavy_and_lists_its_names() -> None:
    code = f"import sys, poise; print(sorted({HEAVY!r} & sys.modules.keys()), set(poise.__all__) <= set(dir(poise)))"
    assert run(code).strip() == "[] True"


def test_every_public_name_is_there_whichever_room_is_imported_first() -> None:
    import poise
    import poise.contrast
    import poise.extract
    import poise.validate
    import poise.workflows

    for name in poise.__all__:
        assert not inspect.ismodule(getattr(poise, name)), name
    assert poise.load_model is poise.model.load_model
    assert poise.load_vector is poise.vector.load_vector
    assert poise.__version__


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import poise

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        poise.nonsense  # noqa: B018


def test_poise_runs_as_a_module_and_says_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "poise", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("poise ")
