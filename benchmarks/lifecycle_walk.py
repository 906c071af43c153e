"""A use case carried through its stages by the documented commands, each shown with what it printed.

    python benchmarks/lifecycle_walk.py --out walk                 # as docs/lifecycle.md shows it
    python benchmarks/lifecycle_walk.py --out walk --short         # a few prompts and tokens, as the tests run it

Ends with a registry that verifies, one answer in the data changed, and the registry that says so.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

ANSWERS = (
    "rules_suffice=no:questions come in any words",
    "cost_too_high=no:a wrong answer costs a second question",
    "errors_unacceptable=no:a person reads every tenth answer",
    "must_be_explained=no:nothing is decided",
)


def commands(model: str, *, short: bool) -> list[tuple[str, int]]:
    """Commands in their order, each with its exit code."""
    answers = " ".join(f"--answer {shlex.quote(one)}" for one in ANSWERS)
    few = "--questions 2 --max-new-tokens 6" if short else "--questions 8"
    prompts = "--prompts 3 --max-new-tokens 6" if short else "--max-new-tokens 24"
    signed = "--by ada --key ada.key"
    return [
        (
            "poise project init --use-case \"Answer customers' questions about parcels\" --responsible 'Ada Ochs' "
            f"--candidate {model} {answers}",
            0,
        ),
        ("poise project status", 0),
        ("poise registry keygen --out ada.key", 0),
        (f"poise choose project.yaml --out choice --record {few}", 0),
        (f"poise extract impolite --model {model} --out impolite.safetensors", 0),
        (f"poise registry add {model} --name base {signed}", 0),
        (f"poise registry add parcels.jsonl {signed}", 0),
        (f"poise registry add impolite.safetensors --parent base --parent parcels {signed}", 0),
        ("poise project next", 0),
        (f"poise bias --model {model} --vector impolite.safetensors --axis age {prompts} --out bias", 0),
        (f"poise registry add bias/bias.json --parent impolite {signed}", 0),
        (f"poise registry promote impolite --to candidate {signed}", 0),
        (f"poise registry promote impolite --to production {signed} --note 'watched by Ada'", 0),
        ("poise project status", 0),
        ("poise card impolite --out README.md", 0),
        ("poise card impolite --out annex.md --annex --project project.yaml", 0),
        ("poise registry verify --trusted ada.key.pub", 0),
        ("TAMPER", 0),
        ("poise registry verify --trusted ada.key.pub", 1),
    ]


def walk(out: Path, model: str, *, short: bool) -> str:
    """Run all of it in a new folder; what was printed."""
    out.mkdir(parents=True)
    data = out / "parcels.jsonl"
    data.write_text('{"prompt": "Where is my parcel?", "answer": "On its way."}\n', encoding="utf-8")
    shown = []
    for line, code in commands(model, short=short):
        if line == "TAMPER":
            data.write_text(data.read_text("utf-8").replace("On its way", "Lost"), encoding="utf-8")
            continue
        words = [sys.executable, "-m", *shlex.split(line)]
        done = subprocess.run(words, cwd=out, capture_output=True, text=True, check=False)
        shown.append(f"$ {line}\n{done.stdout}")
        if done.returncode != code:
            raise SystemExit(f"{line}: exit code {done.returncode} and not {code}\n{done.stderr}")
    return "\n".join(shown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="A folder that is made.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    print(walk(args.out, args.model, short=args.short))
