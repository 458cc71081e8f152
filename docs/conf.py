"""How the documentation is built: ``sphinx-build -W -n docs docs/_build``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "backends")]

from docutils import nodes  # noqa: E402

import loopcore as lc  # noqa: E402
from loopcore.events import STEP_EVENTS  # noqa: E402

project = "loopcore"
author = "The loopcore authors"
project_copyright = author
version = release = lc.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "py:obj"
nitpicky = True
# Names of other libraries, whose documentation is not fetched, and aliases and protocols that only annotations use.
nitpick_ignore_regex = [
    (r"py:.*", r"(collections\.abc|contextlib|numpy|np|optree|pathlib|types|typing|rich)\..*"),
    (r"py:.*", r"(.*\.)?(Array|Tree|Leaves|Kind|Body|Fire|Outcome|Reduction|Method|Mode|Unit|Schedule|C)"),
    (r"py:.*", r"(.*\.)?(Condition|Native|Result|Scalar|HasHyper|LearnerParts|Running|Seeded|\w+Part)"),
]

myst_enable_extensions = ["substitution"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Class attributes", "params_style")]
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"loopcore {release}"
html_static_path = ["_static"]
html_css_files = ["loopcore.css"]
html_show_sphinx = False
html_copy_source = False


# -- pages that are made from the code --------------------------------------------------------------------------------


def step_events() -> str:
    """The table of events: for each phase the step values that exist from an event on."""
    rows = {event.__name__: event for table in STEP_EVENTS.values() for event, _ in table}
    lines = [f"| event | {' | '.join(f'{{py:class}}`~loopcore.{phase}`' for phase in STEP_EVENTS)} |"]
    lines += ["|---" * (len(STEP_EVENTS) + 1) + "|"]
    for event in rows.values():
        cells = [", ".join(f"`{name}`" for name in dict(table).get(event, ())) for table in STEP_EVENTS.values()]
        lines.append(f"| {{py:class}}`~loopcore.{event.__name__}` | {' | '.join(cell or '-' for cell in cells)} |")
    return "\n".join(lines)


def error_tree(cls: type[Exception] = lc.LoopcoreError, depth: int = 0) -> str:
    """A nested list of every error class."""
    module = "loopcore" if cls.__name__ in lc.__all__ else "loopcore.errors"
    below = (error_tree(child, depth + 1) for child in cls.__subclasses__() if child.__module__ == "loopcore.errors")
    summary = (cls.__doc__ or "").partition("\n")[0]
    return "\n".join([f"{'  ' * depth}- {{py:class}}`~{module}.{cls.__name__}`: {summary}", *below])


myst_substitutions = {"step_events": step_events(), "error_tree": error_tree()}


# -- docstrings and references ----------------------------------------------------------------------------------------

FACTS = re.compile(r"^(Reads|Writes|Leaves|Handles|Runs after|Requires): (.*)$")


def tidy(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Write docstrings as napoleon reads them: types stand in annotations, and what a callback declares is a list."""
    if name == "loopcore.errors":  # a tree for readers of the code; the page has one with links
        lines.clear()
    for index, line in enumerate(lines):
        line = FACTS.sub(r":\1: \2", line.replace("Class attributes (or properties):", "Class attributes:"))
        if (what in ("property", "attribute") and index == 0) or (index and lines[index - 1].strip() == "Returns:"):
            indent = len(line) - len(line.lstrip())
            line = f"{line[:indent]}: {line[indent:]}"  # else words before a colon are taken for a type
        lines[index] = line


def resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Find what a docstring or an annotation calls by another path than the one it is documented under."""
    if node.get("refdomain") != "py":
        return None
    target: str = node["reftarget"]
    owner, _, name = target.rpartition(".")
    owner = owner or node.get("py:class") or ""
    wanted = [target, name] if target.startswith("loopcore") else [target]
    if hasattr(getattr(lc, owner, None), name):  # an attribute without an entry of its own: its class has one
        wanted.append(owner)
    objects = env.get_domain("py").objects
    for ending in wanted:
        found = [known for known in objects if known.endswith(f".{ending}")]
        if found:
            entry = objects[min(found, key=len)]
            uri = app.builder.get_relative_uri(node.get("refdoc", env.docname), entry.docname)
            return nodes.reference("", "", contnode, internal=True, refuri=f"{uri}#{entry.node_id}")
    return None


def setup(app: Any) -> None:
    """Connect the two functions above."""
    app.connect("autodoc-process-docstring", tidy, priority=400)  # before napoleon
    app.connect("missing-reference", resolve)
