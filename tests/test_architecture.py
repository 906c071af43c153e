"""The house rules that a machine can check: who imports whom, who prints, how long things are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import poise
from poise import errors

ROOT = Path(poise.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# From the ground up; a room imports from lower floors only, never from its own.
FLOORS = [
    {"_lazy", "errors", "progress"},
    {"storage", "settings"},
    {"data", "statistics"},
    {"trait", "model"},
    {"vector"},
    {"steer", "activations"},
    {"judge", "engine"},
    {"contrast"},
    {"extract", "validate", "monitor", "train", "shift", "screen"},
    {"report"},
    {"workflows"},
    {"serve"},
    {"cli"},
    {"__init__", "__main__"},
]
RANK = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"torch", "transformers", "sklearn", "scipy", "pyarrow", "datasets"}
LIGHT_ROOMS = {
    "_lazy",
    "errors",
    "progress",
    "storage",
    "settings",
    "statistics",
    "trait",
    "data",
    "cli",
    "__init__",
    "__main__",
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = ("poise", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
NAMES = {module_of(path) for path in MODULES}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a file: lazily and for type-checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else str(node.module)


def imports_at_top(tree: ast.Module) -> Iterator[str]:
    """What runs when the file is imported: not inside functions, and not for type-checking only."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        waiting += ast.iter_child_nodes(node)


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which may be as long as it has to be."""
    first = function.body[0] if ast.get_docstring(function) is not None else None
    words = first.end_lineno - first.lineno + 1 if first else 0  # type: ignore[operator]
    return int(function.end_lineno) - function.lineno + 1 - words  # type: ignore[arg-type]


@pytest.mark.parametrize("path", MODULES, ids=module_of)
class TestAModule:
    def test_has_a_room_with_a_floor(self, path: Path) -> None:
        assert room_of(path) in RANK, f"say in FLOORS where {room_of(path)} stands"

    def test_imports_from_lower_floors_only(self, path: Path) -> None:
        here = room_of(path)
        for name in imports(TREES[path]):
            if name.partition(".")[0] == "poise" and name != "poise":
                there = name.split(".")[1]
                assert there == here or RANK[there] < RANK[here], f"{module_of(path)} must not import {name}"
        assert "poise" not in set(imports(TREES[path])) or here == "cli", "import the room, not the front"

    def test_prints_in_cli_only(self, path: Path) -> None:
        calls = [n for n in ast.walk(TREES[path]) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        printing = [call.lineno for call in calls if call.func.id == "print"]  # type: ignore[attr-defined]
        assert not printing or room_of(path) == "cli"

    def test_of_a_light_room_imports_nothing_heavy_at_its_top(self, path: Path) -> None:
        if room_of(path) in LIGHT_ROOMS:
            assert not HEAVY & {name.partition(".")[0] for name in imports_at_top(TREES[path])}

    def test_is_short_and_so_are_its_functions(self, path: Path) -> None:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
        functions = [n for n in ast.walk(TREES[path]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert [f"{f.name}: {length(f)} lines" for f in functions if length(f) > 60] == []


class TestTheCommandLine:
    def test_reaches_nothing_heavy_at_its_top_through_any_room(self) -> None:
        tops = {module_of(path): set(imports_at_top(tree)) for path, tree in TREES.items()}
        waiting, reached = ["poise.cli"], {"poise.cli"}
        while waiting:
            name = waiting.pop()
            packages = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}  # importing a.b runs a too
            for found in tops.get(name, set()) | packages:
                assert found.partition(".")[0] not in {"torch", "transformers"}, f"{name} imports {found} at its top"
                if found in tops and found not in reached:
                    reached.add(found)
                    waiting.append(found)
        assert "poise.errors" in reached

    def test_is_there_without_torch(self) -> None:
        program = f"import sys, poise.cli; print(sorted({HEAVY} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"


DRAWN = re.findall(r"^([│├└─ ]*)(\w+)(?:  +.*)?$", str(errors.__doc__).partition("\n\n")[2], flags=re.MULTILINE)
ERRORS = {name: c for name, c in vars(errors).items() if isinstance(c, type) and c.__module__ == errors.__name__}


class TestTheErrorTree:
    def test_is_drawn_complete(self) -> None:
        assert sorted(name for _, name in DRAWN) == sorted(ERRORS)

    def test_is_drawn_as_it_is(self) -> None:
        above: list[tuple[int, str]] = []
        for lead, name in DRAWN:
            depth = len(lead)
            above = [(d, parent) for d, parent in above if d < depth]
            parent = ERRORS[name].__bases__[0].__name__
            assert parent == (above[-1][1] if above else "Exception")
            above.append((depth, name))

    def test_gives_each_error_its_sentence(self) -> None:
        assert all(c.__doc__ for c in ERRORS.values())


FLAG = re.compile(r"(?<![\w`-])--[a-z][a-z-]+")
OTHERS = ("`poise ", "pip install", "--control-vector", "--only-binary", "--target", "--model goes")


def test_the_library_names_arguments_and_leaves_options_to_the_command_line() -> None:
    """Texts of raised errors; the command line turns `argument` into --argument."""
    offenders = []
    for path, tree in TREES.items():
        if "cli" in path.parts:
            continue
        for raised in (n for n in ast.walk(tree) if isinstance(n, ast.Raise) and n.exc is not None):
            texts = [n.value for n in ast.walk(raised) if isinstance(n, ast.Constant)]
            text = "".join(value for value in texts if isinstance(value, str))
            if FLAG.search(text) and not any(word in text for word in OTHERS):
                offenders.append(f"{path.name}:{raised.lineno}")
    assert offenders == []


def test_what_is_raised_on_purpose_is_in_the_tree_of_errors() -> None:
    """No other class of the package is an exception, but for what ends a forward pass early."""
    offenders = []
    for path, tree in TREES.items():
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
            bases = {ast.unparse(base) for base in node.bases}
            if (
                node.name != "_DeepestLayerDone"
                and path.name != "errors.py"
                and any(re.search(r"(Exception|Error)$", base) for base in bases)
            ):
                offenders.append(f"{path.name}: {node.name}")
    assert offenders == []
