"""What the pages tell a newcomer to type: commands that the parser takes, extras that exist, names that are there."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import poise
from poise.cli import app
from poise.errors import MissingExtra

ROOT = Path(__file__).parent.parent
PAGES = {
    page.name: page.read_text("utf-8")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if page.name != "cli.md"  # written from the parser
}
MAP = (ROOT / "docs" / "architecture.md").read_text("utf-8").partition("## Public modules")[2].partition("## ")[0]
PUBLIC = set(re.findall(r"^    (poise[\w.]*)$", MAP, flags=re.MULTILINE))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])


def lines_to_type() -> Iterator[tuple[str, str]]:
    """The page and text of every command in a block, continued lines joined, without a shell's comments and pipes."""
    for page, text in PAGES.items():
        joined = re.sub(r"\\\n\s*", " ", text)
        for line in re.findall(r"^(?: {4,}|```\w*\n)?(?:\$ )?(poise [a-z].*)$", joined, flags=re.MULTILINE):
            yield page, re.split(r"\s+#|\s+[|>]\s", line)[0]


def lines_in_sentences() -> Iterator[tuple[str, str]]:
    """The page and text of every command between backticks; what a sentence leaves out need not be there."""
    for page, text in PAGES.items():
        yield from ((page, line) for line in re.findall(r"`(poise [a-z][^`|]*)`", text.replace("\n", " ")))


def without_brackets(line: str) -> str:
    """A usage line as somebody types it: what is optional is left out."""
    return re.sub(r"\s*\[[^\]]*\]", "", line).replace("…", "")


def parse(line: str) -> list[str]:
    """Holds a line to the command line's parser and says what is wrong; runs nothing."""
    words = shlex.split(without_brackets(line))[1:]
    command: Any = typer.main.get_command(app)
    names = ["poise"]
    while hasattr(command, "commands"):
        if words and words[0] not in command.commands and hasattr(command, "default_command"):
            words.insert(0, command.default_command)
        if not words or words[0] not in command.commands:
            return [f"{' '.join(names)} has no command {words[:1]}"]
        names.append(words.pop(0))
        command = command.commands[names[-1]]
    try:
        command.make_context(" ".join(names), words)
    except Exception as error:  # typer's class of usage errors has no public name
        return [error.format_message()]  # type: ignore[attr-defined]
    return []


@pytest.mark.parametrize(("page", "line"), list(lines_to_type()))
def test_a_command_on_a_page_is_one_that_the_parser_takes(page: str, line: str) -> None:
    assert parse(line) == [], f"docs/{page}: {line}"


@pytest.mark.parametrize(("page", "line"), list(lines_in_sentences()))
def test_a_command_in_a_sentence_has_the_options_that_it_names(page: str, line: str) -> None:
    left_out = ("Missing ", "poise has no command []", "Option ")  # an argument, a command, an option's value
    wrong = [w for w in parse(line) if not w.startswith(left_out)]
    assert wrong == [], f"docs/{page}: {line}"


def test_commands_are_read_off_the_pages() -> None:
    assert len(list(lines_to_type())) > 30
    assert len(list(lines_in_sentences())) > 30
    assert parse("poise traits draft 'dry wit' -o mine.yaml") == ["Missing option '--model'."]
    assert "No such option" in parse("poise show a.safetensors --lod")[0]


def test_every_page_is_in_the_contents_of_the_site() -> None:
    contents = re.findall(r"^```\{toctree\}\n(.*?)^```", PAGES["index.md"], flags=re.MULTILINE | re.DOTALL)
    listed = {line for block in contents for line in block.splitlines() if line and not line.startswith(":")}
    missing = {page.removesuffix(".md") for page in PAGES} - listed - {"README", "index"}
    assert missing == set(), "add them to a toctree of docs/index.md"


def resolves(name: str) -> bool:
    """Whether a dotted name is there as it stands on a page: a module that is public, or an attribute of one."""
    for depth in range(name.count(".") + 1, 0, -1):
        module = ".".join(name.split(".")[:depth])
        if module in PUBLIC:
            value: Any = importlib.import_module(module)
            parts = name.split(".")[depth:]
            return all(not inspect.ismodule(value := getattr(value, part, inspect)) for part in parts)
    return False


def test_every_dotted_name_of_a_sentence_is_public() -> None:
    wrong = {
        f"{page}: {name}"
        for page, text in PAGES.items()
        if page != "architecture.md"
        for name in re.findall(r"`(poise(?:\.\w+)+)", text)
        if not resolves(name) and name != "poise.parts"  # a field of the server's answers
    }
    assert wrong == set()


def test_pages_use_the_top_level_names_where_there_are_some() -> None:
    tops = set(poise.__all__)
    wrong = {
        f"{page}: from {room} import {name}"
        for page, text in PAGES.items()
        for room, names in re.findall(r"^ *from (poise\.[\w.]+) import (.+)$", text, flags=re.MULTILINE)
        for name in names.split(", ")
        if name in tops
    }
    assert wrong == set()


def test_every_extra_that_is_named_exists_and_is_installed_from_a_checkout() -> None:
    sources = {path.name: path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py")}
    named = {
        extra
        for text in (*sources.values(), *PAGES.values())
        for extras in re.findall(r"-e '\.\[([\w,]+)\]'|whl\[([\w,]+)\]|MissingExtra\.of\([^)]*?\"(\w+)\",?\s*\)", text)
        for extra in "".join(extras).split(",")
    }
    assert {"offline", "report", "data", "train", "serve", "eval", "scale"} <= named
    assert named <= EXTRAS
    wrong = [name for name, text in {**sources, **PAGES}.items() if re.search(r"[\"'`]poise\[", text)]
    assert wrong == [], "Poise is not on the package index"


def test_a_missing_extra_says_how_a_checkout_and_a_wheel_get_it() -> None:
    assert str(MissingExtra.of("Training needs trl and peft", "train")) == (
        "Training needs trl and peft; in a checkout of Poise run pip install -e '.[train]', or install the wheel with "
        "[train]."
    )
