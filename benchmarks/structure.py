"""How a source tree of Poise is built: names, lengths, import circles. Prints one figure a line, and what is behind it.

    python benchmarks/structure.py                   # this checkout
    python benchmarks/structure.py /path/to/another  # e.g. a worktree of an older commit
    python benchmarks/structure.py --all             # every name and place, not only the figures

``tests/test_architecture.py`` holds this tree to the same measures.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

VAGUE = frozenset(["found", "said", "asked", "kept", "made", "given", "whole", "own", "rest", "none"])
"""Words that say that something happened, or nothing, where a noun would say what a variable holds."""
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
FRAGMENT = re.compile(r"(Of|Whose|Likewise|By|As|Where|That|With)\b")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def trees(root: Path) -> dict[str, ast.Module]:
    """Module name → syntax tree, for every module of the package at ``root/src/poise``."""
    package = root / "src" / "poise"
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = ("poise", *path.relative_to(package).with_suffix("").parts)
        modules[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return modules


def top_level_names(tree: ast.Module) -> set[str]:
    """Classes, functions and variables that a module defines; not what it imports."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def repeated_names(modules: Mapping[str, ast.Module]) -> dict[str, list[str]]:
    """Top-level name → modules, for names that more than one module defines; Python's own ``__x__`` are left out."""
    homes = defaultdict(list)
    for module, tree in modules.items():
        for name in top_level_names(tree):
            if not (name.startswith("__") and name.endswith("__")):
                homes[name].append(module)
    return {name: homes[name] for name in sorted(homes) if len(homes[name]) > 1}


def vague_names(modules: Mapping[str, ast.Module]) -> dict[str, list[str]]:
    """Word of ``VAGUE`` → ``module:line`` of every variable and parameter that it names."""
    places = defaultdict(list)
    for module, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            elif isinstance(node, ast.arg):
                name = node.arg
            else:
                continue
            if name in VAGUE:
                places[name].append(f"{module}:{node.lineno}")
    return dict(places)


def length(function: Function) -> int:
    """Lines of a function without its docstring, which may be as long as it has to be."""
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    lines = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - lines


def long_functions(modules: Mapping[str, ast.Module]) -> list[str]:
    """``module.function: lines`` for those that are too long."""
    return [
        f"{module}.{node.name}: {length(node)} lines"
        for module, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, Function) and length(node) > LONGEST_FUNCTION
    ]


def long_files(root: Path) -> list[str]:
    """``path: lines`` for modules that are too long."""
    files = {path: len(path.read_text("utf-8").splitlines()) for path in sorted((root / "src/poise").rglob("*.py"))}
    return [f"{path.relative_to(root)}: {lines} lines" for path, lines in files.items() if lines > LONGEST_FILE]


def imports(tree: ast.AST, modules: Mapping[str, ast.Module]) -> Iterator[str]:
    """Every module that is imported anywhere in a file: inside functions and for type-checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else str(node.module)


def imports_at_top(tree: ast.Module, modules: Mapping[str, ast.Module]) -> Iterator[str]:
    """What runs when the file is imported: not inside functions, and not for type-checking only."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node, modules)
        waiting += ast.iter_child_nodes(node)


def circles(modules: Mapping[str, ast.Module]) -> list[list[str]]:
    """Modules that import one another at their top: strongly connected components of more than one (Tarjan 1972)."""
    edges = {name: set(imports_at_top(tree, modules)) & modules.keys() for name, tree in modules.items()}
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    components: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        path.append(name)
        for neighbour in sorted(edges[name]):
            if neighbour not in order:
                visit(neighbour)
                low[name] = min(low[name], low[neighbour])
            elif neighbour in path:
                low[name] = min(low[name], order[neighbour])
        if low[name] == order[name]:
            component = path[path.index(name) :]
            del path[path.index(name) :]
            if len(component) > 1:
                components.append(sorted(component))

    for name in modules:
        if name not in order:
            visit(name)
    return components


def fragments(modules: Mapping[str, ast.Module]) -> list[str]:
    """Attribute docs and field descriptions that are no sentence by themselves, such as "Of the vector"."""
    places = []
    for module, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | Function):
                lines = (ast.get_docstring(node) or "").splitlines()
                docs = [m[1] for line in lines if (m := re.match(r"\s+\w+: (.*)", line))]
            elif isinstance(node, ast.keyword) and node.arg == "description" and isinstance(node.value, ast.Constant):
                docs = [str(node.value.value)]
            else:
                continue
            places += [f"{module}: {doc}" for doc in docs if FRAGMENT.match(doc)]
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--all", action="store_true", help="Print every name and place.")
    args = parser.parse_args()
    modules = trees(args.root)
    repeated, vague = repeated_names(modules), vague_names(modules)
    public = [name for name in repeated if not name.startswith("_")]
    files = {place.partition(":")[0] for places in vague.values() for place in places}
    results: list[tuple[str, list[str]]] = [
        (f"top-level names defined in more than one file ({len(public)} public)", [*map(str, repeated.items())]),
        (f"variables with a vague name, in {len(files)} files", [p for places in vague.values() for p in places]),
        (f"files over {LONGEST_FILE} lines", long_files(args.root)),
        (f"functions over {LONGEST_FUNCTION} lines", long_functions(modules)),
        ("import circles", [", ".join(circle) for circle in circles(modules)]),
        ("attribute docs that are fragments", fragments(modules)),
    ]
    for title, offenders in results:
        print(f"{len(offenders):6}  {title}")
        if args.all:
            print(*(f"          {offender}" for offender in offenders), sep="\n")
    counts = ", ".join(f"{name} {len(places)}" for name, places in sorted(vague.items()))
    print(f"vague names: {counts or 'no occurrences'}")


if __name__ == "__main__":
    main()
