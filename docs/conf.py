"""The documentation as a site: ``make site`` builds it from these pages, offline, and checks every link."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from poise import __version__

project, author, release = "Poise", "The Poise developers", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "*.py"]
myst_heading_anchors = 4
nitpicky = False

html_theme = "furo"
html_title = f"Poise {release}"
html_static_path: list[str] = []

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"exclude-members": "model_config"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes are described once, in the class
suppress_warnings = ["ref.python"]  # attributes of one name in several classes

REFERENCE = Path(__file__).parent / "reference"


def public_modules() -> list[str]:
    """The modules that users may import, as the map lists them."""
    page = (Path(__file__).parent / "architecture.md").read_text("utf-8")
    listed = page.partition("## Public modules")[2].partition("\n## ")[0]
    return [line.strip() for line in listed.splitlines() if line.startswith("    poise")]


def offered(module: str) -> list[str]:
    """The names that a module offers; of the errors, its classes."""
    loaded = importlib.import_module(module)
    classes = [n for n, c in vars(loaded).items() if inspect.isclass(c) and c.__module__ == module]
    return list(getattr(loaded, "__all__", classes))


def home(name: str, module: str, modules: list[str]) -> str:
    """The public module whose page explains a name: the one it is defined under, else the first beside ``poise``."""
    offering = [m for m in modules if m != "poise" and name in offered(m)]
    defined = getattr(getattr(importlib.import_module(module), name), "__module__", "")
    under = [m for m in offering if defined == m or str(defined).startswith(m + ".")]
    return max(under, key=len) if under else next(iter(offering), module)


def directive(name: str, thing: Any) -> list[str]:
    """What explains a class with its members, a function, or a constant by its value."""
    if inspect.isclass(thing):
        return [f".. autoclass:: {name}", "   :members:"]
    if callable(thing):
        return [f".. autofunction:: {name}"]
    return [f".. py:data:: {name}", f"   :value: {thing!r}"]


def reference_page(module: str, modules: list[str]) -> str:
    """What a module says of itself, then each name it offers, explained where it is at home."""
    loaded = importlib.import_module(module)
    drawn = module == "poise.errors"  # whose text is a tree of lines
    head = ["```text", inspect.getdoc(loaded) or "", "```", ""] if drawn else []
    about = [f".. py:module:: {module}"] if drawn else [f".. automodule:: {module}", "   :no-members:"]
    lines = [f"# {module}", "", *head, "```{eval-rst}", *about, ""]
    elsewhere = []
    for name in offered(module):
        explained = home(name, module, modules)
        thing = getattr(loaded, name)
        if explained != module:
            elsewhere.append(f"- :py:obj:`{name} <{explained}.{name}>`: in :doc:`{explained}`")
        elif inspect.ismodule(thing):
            elsewhere.append(f"- ``{name}``")
        else:
            lines += [*directive(f"{module}.{name}", thing), ""]
    if elsewhere:
        lines += [".. rubric:: Offered here too", "", *elsewhere, ""]
    return "\n".join([*lines, "```", ""])


def write_reference(_: Any) -> None:
    """A page for each public module, and one that lists them: written at each build, not kept."""
    REFERENCE.mkdir(exist_ok=True)
    modules = public_modules()
    for module in modules:
        (REFERENCE / f"{module}.md").write_text(reference_page(module, modules), "utf-8")
    names = "\n".join(modules)
    intro = "What may be imported; everything else may change without notice."
    (REFERENCE / "index.md").write_text(f"# Python\n\n{intro}\n\n```{{toctree}}\n{names}\n```\n", "utf-8")


def setup(app: Any) -> None:
    """Sphinx calls this with its application."""
    app.connect("builder-inited", write_reference)
