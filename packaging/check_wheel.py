"""Looks at a built wheel as its users will: what is in it, its extras, its commands in a clean environment.

    python packaging/check_wheel.py dist/poise-0.1.0-py3-none-any.whl

``make dist`` runs it. Says what was tried and ends with 1 where something is missing.
"""

from __future__ import annotations

import argparse
import email
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = "offline,report"
ELSEWHERE = {"dev", "vllm"}  # the checkout's own, and one that has an environment of its own (requirements-vllm.txt)
COMMANDS = (["--version"], ["traits", "list"], ["traits", "show", "impolite"], ["extract", "--help"])


def missing_files(wheel: Path) -> Iterator[str]:
    """What the package's folder holds and the wheel does not, and what only the wheel does."""
    source = ROOT / "src"
    there = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    yield from (f"the wheel lacks {name}" for name in sorted(there - packed))
    yield from (f"the wheel has {name}, which src does not" for name in sorted(packed - there))


def wrong_metadata(wheel: Path) -> Iterator[str]:
    """Where the wheel's metadata say something else than pyproject.toml, or what an index would refuse."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(metadata.get_all("Provides-Extra", []))
    if extras != set(project["optional-dependencies"]):
        yield f"the wheel's extras are {sorted(extras)}"
    for field in ("Name", "Version", "Summary", "Requires-Python", "License-Expression", "Description-Content-Type"):
        if not metadata.get(field):
            yield f"the metadata have no {field}"
    if not metadata.get_payload():
        yield "the metadata have no description"


def run(*words: str | Path, cwd: Path) -> str:
    """Run a command; what it wrote where it failed, else nothing."""
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-1500:]


def faults_installed(wheel: Path, extras: list[str]) -> Iterator[str]:
    """Faults of the wheel in an empty environment, away from the checkout."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = folder / "venv" / "bin" / "python"
        if fault := run(sys.executable, "-m", "venv", folder / "venv", cwd=folder):
            yield f"no environment could be made: {fault}"
            return
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        constraint = ["-c", ROOT / "requirements.lock"]
        if fault := run(*pip, *constraint, f"{wheel}[{INSTALLED}]", cwd=folder):
            yield f"[{INSTALLED}] cannot be installed: {fault}"
            return
        print(f"installed with [{INSTALLED}]", flush=True)
        for command in COMMANDS:
            fault = run(folder / "venv" / "bin" / "poise", *command, cwd=folder)
            print(f"poise {' '.join(command)}: {'failed' if fault else 'works'}", flush=True)
            if fault:
                yield f"poise {' '.join(command)}: {fault}"
        for extra in extras:
            fault = run(*pip, "--dry-run", *constraint, f"{wheel}[{extra}]", cwd=folder)
            print(f"[{extra}]: {'cannot be installed' if fault else 'its packages are there'}", flush=True)
            if fault:
                yield f"[{extra}]: {fault}"


def main() -> None:
    """Everything, and 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = sorted(set(project["optional-dependencies"]) - ELSEWHERE)
    faults = [*missing_files(wheel), *wrong_metadata(wheel), *faults_installed(wheel, extras)]
    print(f"not tried here: {', '.join(sorted(ELSEWHERE))}")
    if faults:
        raise SystemExit("\n".join(faults))
    print(
        f"{wheel.name} is whole. To publish it: an account at the package index, and twine upload {wheel.parent.name}/*"
    )


if __name__ == "__main__":
    main()
