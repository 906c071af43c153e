"""The rules of docs/architecture.md that a machine can check. Each test lists every offender at once."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poise import errors

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import structure  # noqa: E402 (a script beside the package)

MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TREES = structure.trees(ROOT)


def block(heading: str) -> list[str]:
    """Lines of the first indented block under a heading of the map."""
    section = MAP.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = section.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("    "))
    last = next((i for i in range(first, len(lines)) if lines[i] and not lines[i].startswith("    ")), len(lines))
    return [line.strip() for line in lines[first:last] if line.strip()]


# From the ground up; a room imports from lower floors only, never from its own.
FLOORS = [set(line.split()) for line in reversed(block("Floors"))]
RANK = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
PUBLIC = block("Public modules")
HEAVY = {"torch", "transformers", "sklearn", "scipy", "pyarrow", "datasets"}
LIGHT_ROOMS = {
    "",
    "_lazy",
    "errors",
    "progress",
    "notebook",
    "storage",
    "settings",
    "statistics",
    "trait",
    "data",
    "cli",
}
FRONT = {"poise", "poise.__main__"}
SHARED_NAMES = {"log", "app"}
"""What every module may call its logger and its command group."""
HOOKS = {"register_forward_hook", "register_forward_pre_hook", "register_module_forward_hook"}
PIP = re.compile(r"--[a-z-]+(=\S+)?")  # arguments of the installer that ``model.loading`` calls
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

# Numbers that only shrink: lower them when you remove some; a number goes when it is zero.
REPEATED_NAMES, VAGUE_NAMES, FRAGMENTS, FLAGS, ASSERTS = 20, 51, 16, 6, 2


DRAWN = re.findall(r"^([│├└─ ]*)(\w+)(?:  +.*)?$", str(errors.__doc__).partition("\n\n")[2], flags=re.MULTILINE)
ERRORS = {name: c for name, c in vars(errors).items() if isinstance(c, type) and c.__module__ == errors.__name__}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def docstrings(tree: ast.Module) -> set[int]:
    """Ids of the nodes that are docstrings, of attributes too."""
    return {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


class TestImports:
    def test_every_room_has_a_floor(self) -> None:
        assert {room_of(module) for module in TREES.keys() - FRONT} == RANK.keys() - {"__main__"}

    def test_point_down_only(self) -> None:
        upward = [
            f"{module} imports {name}"
            for module, tree in TREES.items()
            for name in structure.imports(tree, TREES)
            if module not in FRONT and name.startswith("poise.") and room_of(name) != room_of(module)
            if RANK[room_of(name)] >= RANK[room_of(module)]
        ]
        assert upward == []

    def test_do_not_go_in_circles(self) -> None:
        assert structure.circles(TREES) == []

    def test_are_absolute_and_name_the_room_not_the_front(self) -> None:
        relative = [m for m, t in TREES.items() for n in ast.walk(t) if isinstance(n, ast.ImportFrom) and n.level]
        front = [m for m, t in TREES.items() if "poise" in set(structure.imports(t, TREES)) and room_of(m) != "cli"]
        assert (relative, front) == ([], [])

    def test_of_light_rooms_are_light(self) -> None:
        heavy = [
            f"{module} imports {name} at its top"
            for module, tree in TREES.items()
            if room_of(module) in LIGHT_ROOMS or module in FRONT
            for name in structure.imports_at_top(tree, TREES)
            if name.partition(".")[0] in HEAVY
        ]
        assert heavy == []


class TestNames:
    def test_have_one_home(self) -> None:
        repeated = {n: m for n, m in structure.repeated_names(TREES).items() if n not in SHARED_NAMES}
        assert len(repeated) <= REPEATED_NAMES, repeated

    def test_say_what_they_hold(self) -> None:
        vague = structure.vague_names(TREES)
        assert sum(map(len, vague.values())) <= VAGUE_NAMES, vague

    def test_of_attributes_are_explained_by_sentences(self) -> None:
        fragments = structure.fragments(TREES)
        assert len(fragments) <= FRAGMENTS, fragments


class TestCode:
    def test_is_short(self) -> None:
        assert structure.long_files(ROOT) + structure.long_functions(TREES) == []

    def test_prints_in_cli_only(self) -> None:
        prints = [f"{m}:{n.lineno}" for m, n in calls() if m.split(".")[1:2] != ["cli"] and called(n) == "print"]
        assert prints == []

    def test_registers_hooks_in_one_module(self) -> None:
        hooks = [f"{m}:{n.lineno}" for m, n in calls() if m != "poise.model.hooks" and called(n) in HOOKS]
        assert hooks == []

    def test_of_the_library_names_no_options_of_the_command_line(self) -> None:
        flags = [
            f"{module}:{node.lineno}: {node.value}"
            for module, tree in TREES.items()
            if room_of(module) != "cli"
            for words in [docstrings(tree)]
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in words
            if FLAG.search(node.value)
            and "pip install" not in node.value
            and not (module == "poise.model.loading" and PIP.fullmatch(node.value))
        ]
        assert len(flags) <= FLAGS, "\n".join(flags)

    def test_asserts_nothing_of_its_arguments(self) -> None:
        asserts = []
        for module, tree in TREES.items():
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    a = function.args
                    names = {arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)} - {"self", "cls"}
                    for node in ast.walk(function):
                        if isinstance(node, ast.Assert):
                            used = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
                            asserts += [f"{module}:{node.lineno}"] if used & names else []
        assert len(asserts) <= ASSERTS, asserts

    def test_does_not_reach_into_its_callers_or_pretend(self) -> None:
        tricks = [m for m, n in calls() if called(n) == "_getframe"]
        tricks += [m for m, t in TREES.items() if "unittest.mock" in set(structure.imports(t, TREES))]
        assert tricks == []


def calls() -> Iterator[tuple[str, ast.Call]]:
    for module, tree in TREES.items():
        yield from ((module, node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def called(call: ast.Call) -> str:
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


class TestPublicModules:
    """``docs/architecture.md`` lists what users may import; the rest may change without notice."""

    @pytest.mark.filterwarnings("ignore")
    def test_say_what_they_offer_and_explain_it(self) -> None:
        silent = []
        for name in PUBLIC:
            module = importlib.import_module(name)
            assert hasattr(module, "__all__") or name == "poise.errors", name  # the errors are all public
            for public in getattr(module, "__all__", sorted(ERRORS)):
                value = getattr(module, public)
                if (inspect.isclass(value) or inspect.isfunction(value)) and not value.__doc__:
                    silent.append(f"{name}.{public}")
        assert silent == []

    def test_are_all_that_the_docs_import(self) -> None:
        pages = {page.name: page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
        imported = {
            f"{page} imports {name}"
            for page, text in pages.items()
            for name, attribute in re.findall(r"^ *from (poise[\w.]*) import (\w+)", text, flags=re.MULTILINE)
            if name not in PUBLIC and f"{name}.{attribute}" not in PUBLIC
        }
        assert imported == set()


class TestTheCommandLine:
    def test_reaches_nothing_heavy_at_its_top_through_any_room(self) -> None:
        tops = {module: set(structure.imports_at_top(tree, TREES)) for module, tree in TREES.items()}
        waiting, reached = ["poise.cli"], {"poise.cli"}
        while waiting:
            name = waiting.pop()
            packages = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}  # importing a.b runs a too
            for module in tops.get(name, set()) | packages:
                assert module.partition(".")[0] not in {"torch", "transformers"}, f"{name} imports {module} at its top"
                if module in tops and module not in reached:
                    reached.add(module)
                    waiting.append(module)
        assert "poise.errors" in reached

    def test_is_there_without_torch(self) -> None:
        program = f"import sys, poise.cli; print(sorted({HEAVY} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"


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


def test_what_is_raised_on_purpose_is_in_the_tree_of_errors() -> None:
    """No other class of the package is an exception, but for what ends a forward pass early."""
    offenders = []
    for module, tree in TREES.items():
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
            bases = {ast.unparse(base) for base in node.bases}
            if (
                node.name != "_DeepestLayerDone"
                and module != "poise.errors"
                and any(re.search(r"(Exception|Error)$", base) for base in bases)
            ):
                offenders.append(f"{module}: {node.name}")
    assert offenders == []
