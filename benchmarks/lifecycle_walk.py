"""A use case carried through its stages by the documented commands, each shown with what it printed.

    python benchmarks/lifecycle_walk.py --out walk                 # as docs/lifecycle.md shows it
    python benchmarks/lifecycle_walk.py --out walk --short         # a few prompts and tokens, as the tests run it

The model is served with its readings on, asked a few questions over HTTP and looked at by the dashboard, whose report
is recorded. Ends with a registry that verifies, one answer in the data changed, and the registry that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
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
        ("poise project next", 0),
        ("SERVE", 0),
        ("poise registry add watch.json --parent impolite " + signed, 0),
        ("poise project status", 0),
        ("poise card impolite --out README.md", 0),
        ("poise card impolite --out annex.md --annex --project project.yaml", 0),
        ("poise registry verify --trusted ada.key.pub", 0),
        ("TAMPER", 0),
        ("poise registry verify --trusted ada.key.pub", 1),
    ]


QUESTIONS = (
    "Where is my parcel?",
    "My parcel came broken. What shall I do?",
    "Can I send a battery abroad?",
    "How long does a letter to Oslo take?",
    "Who pays the customs duty?",
    "May my neighbour take the parcel in?",
)


@contextlib.contextmanager
def serving(out: Path, model: str) -> Iterator[str]:
    """A server of the model that reads the vector; its address, on a free port."""
    line = f"poise serve --model {shlex.quote(model)} --vector impolite.safetensors --log readings.sqlite --port 0"
    server = subprocess.Popen(
        [sys.executable, "-m", *shlex.split(line)], cwd=out, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        said = []
        for text in server.stderr or ():
            said.append(text)
            if text.startswith("Listening on "):
                yield text.split()[2].rstrip(";")
                return
        raise SystemExit(f"{line}: did not begin\n{''.join(said)}")
    finally:
        server.terminate()
        server.communicate()


def ask(address: str, question: str, most: int) -> None:
    """One question, as any client of OpenAI's asks it."""
    with urllib.request.urlopen(f"{address}/v1/models", timeout=60) as answer:
        name = json.load(answer)["data"][0]["id"]
    body = {"model": name, "messages": [{"role": "user", "content": question}], "max_tokens": most}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        json.load(answer)


def watch(out: Path, model: str, *, short: bool) -> list[str]:
    """Serve, ask, and look twice: in words, and as a report; what was printed."""
    with serving(out, model) as address:
        for question in QUESTIONS[: 2 if short else None]:
            ask(address, question, 6 if short else 48)
        looked = f"poise dashboard --server served={address} --readings served=readings.sqlite --once"
        words, report = (run(out, line, 0) for line in (looked, f"{looked} --json"))
    (out / "watch.json").write_text(report, encoding="utf-8")
    return [f"$ {looked}\n{words}", f"$ {looked} --json > watch.json\n"]


def run(out: Path, line: str, code: int) -> str:
    """What a command printed, which has to end with this exit code."""
    words = [sys.executable, "-m", *shlex.split(line)]
    done = subprocess.run(words, cwd=out, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise SystemExit(f"{line}: exit code {done.returncode} and not {code}\n{done.stdout}{done.stderr}")
    return done.stdout


def walk(out: Path, model: str, *, short: bool) -> str:
    """Run all of it in a new folder; what was printed."""
    out.mkdir(parents=True)
    data = out / "parcels.jsonl"
    data.write_text('{"prompt": "Where is my parcel?", "answer": "On its way."}\n', encoding="utf-8")
    shown = []
    for line, code in commands(model, short=short):
        if line == "TAMPER":
            data.write_text(data.read_text("utf-8").replace("On its way", "Lost"), encoding="utf-8")
        elif line == "SERVE":
            shown += watch(out, model, short=short)
        else:
            shown.append(f"$ {line}\n{run(out, line, code)}")
    return "\n".join(shown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="A folder that is made.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    print(walk(args.out, args.model, short=args.short))
