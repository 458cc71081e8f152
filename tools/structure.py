"""Measure how the code is laid out and lettered: ``python tools/structure.py [--check] [--names]``.

It parses the files and imports none of them. Imports count wherever they stand, under ``TYPE_CHECKING`` and inside
functions too, since a reader follows those as well. A room is a folder of the core, or a file at its top. The
conformance suite counts for the vague names alone. A private access is one to ``x._name`` in a module that defines no
``_name``; ``self._name`` is none, since a subclass may use what its base keeps for it.

A vague name is a pronoun, an adverb or a participle where a noun would say what the value is. `VAGUE` has those that
occurred here, and the like; ``_found`` is one as ``found`` is. It has no terms of the field, participles or not
(``traced``, ``frozen``, ``expected``), no pairs such as ``before`` and ``after``, and no words of the public interface
(``every``, ``at``, ``where``). Names in `STARRED` are plain behind a star: ``first, *rest = parts``.
"""

from __future__ import annotations

import argparse
import ast
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CORE, CONFORMANCE = "loopcore", "loopcore.testing.conformance"
VAGUE = frozenset(
    """
    one ones two twice there here this these those its own mine ours theirs what who why how when now again both each
    everything something nothing some rest more whole left others alone within instead
    found given known made held kept done got gone asked told heard seen shown wanted taken said begun looked noted
    reached came coming had was moved drawn named written raised caught chosen passed set_aside left_out
    """.split()  # noqa: SIM905 - a list would take a line for each word
)
STARRED = frozenset({"rest", "more", "others"})
NAMEDTUPLE = frozenset({"_replace", "_asdict", "_fields", "_make", "_field_defaults"})
LONG_FUNCTION, COMPLEX = 40, 20  # lines; cognitive complexity
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
Graph = Mapping[str, set[str]]


class Module:
    """One file, parsed."""

    def __init__(self, path: Path, folder: Path) -> None:
        parts = path.relative_to(folder).with_suffix("").parts
        self.path = path
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.text = path.read_text(encoding="utf-8")
        self.nodes = list(ast.walk(ast.parse(self.text)))

    def imports(self) -> Iterator[str]:
        """Full names of what is imported: of modules, and of names in modules."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = self.name.split(".")[: len(self.name.split(".")) - node.level + self.is_package]
                source = [*(above if node.level else ()), *filter(None, [node.module])]
                yield from (".".join([*source, alias.name]) for alias in node.names)

    def bound_names(self) -> Iterator[tuple[str, int]]:
        """Names of parameters and of targets, those of ``self.`` too, each with its line, wherever one is bound."""
        stars = {id(node.value) for node in self.nodes if isinstance(node, ast.Starred)}
        stars |= {id(a) for n in self.nodes if isinstance(n, ast.arguments) for a in (n.vararg, n.kwarg) if a}
        for node in self.nodes:
            name = bound_name(node)
            if name:
                yield f"*{name}" if id(node) in stars and name in STARRED else name, getattr(node, "lineno", 0)

    def private_accesses(self) -> list[str]:
        """Names of the private attributes that it reads or sets and that nothing in it defines."""
        defined = {node.name for node in self.nodes if isinstance(node, FUNCTIONS | ast.ClassDef)}
        defined |= {*map(bound_name, self.nodes), *NAMEDTUPLE}
        names = [node.attr for node in self.nodes if isinstance(node, ast.Attribute) and not is_of_self(node)]
        return [name for name in names if is_private(name) and name not in defined]

    def code_and_comments(self) -> tuple[set[int], set[int]]:
        """Numbers of the lines with code, without docstrings, and of those with a comment."""
        lines: tuple[set[int], set[int]] = set(), set()
        layout = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        for token in tokenize.generate_tokens(iter(self.text.splitlines(keepends=True)).__next__):
            if token.type not in layout:
                lines[token.type == tokenize.COMMENT].update(range(token.start[0], token.end[0] + 1))
        return lines[0].difference(*map(docstring, self.nodes)), lines[1]

    def function_lengths(self) -> Iterator[int]:
        """How many lines each function has, without its docstring."""
        for node in self.nodes:
            if isinstance(node, FUNCTIONS):
                yield (node.end_lineno or 0) - node.lineno + 1 - len(docstring(node))


def bound_name(node: ast.AST) -> str:
    """The name that a node binds to a value, or nothing; ``self``, ``cls`` and ``_`` are nobody's choice."""
    name = ""
    if isinstance(node, ast.arg):
        name = node.arg
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        name = node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_of_self(node):
        name = node.attr
    return "" if name in ("self", "cls", "_") else name


def is_of_self(node: ast.Attribute) -> bool:
    """Whether it is an attribute of ``self`` or ``cls``."""
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


def docstring(node: ast.AST) -> range:
    """Numbers of the lines of a docstring; empty where there is none."""
    if isinstance(node, ast.Module | ast.ClassDef | FUNCTIONS) and ast.get_docstring(node, clean=False) is not None:
        return range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    return range(0)


def import_graph(modules: Iterable[Module]) -> Graph:
    """Which module imports which others of them."""
    by_name = {module.name: module for module in modules}

    def module_of(name: str) -> str:
        while name and name not in by_name:
            name = name.rpartition(".")[0]
        return name

    return {name: set(map(module_of, module.imports())) - {name, ""} for name, module in by_name.items()}


def room_graph(graph: Graph) -> Graph:
    """Which room of the core imports which others."""
    rooms: dict[str, set[str]] = {room_of(name): set() for name in graph}
    for name, imports in graph.items():
        rooms[room_of(name)] |= set(map(room_of, imports)) - {room_of(name)}
    return rooms


def room_of(name: str) -> str:
    """The room of a module: the second part of its name."""
    return [*name.split("."), "__init__"][1]


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one node, the largest first."""
    reach = {node: reachable(graph, node) for node in graph}
    components = {frozenset(other for other in reach[node] if node in reach[other]) for node in graph}
    return sorted(map(sorted, filter(None, components)), key=len, reverse=True)


def reachable(graph: Graph, start: str) -> set[str]:
    """What a node leads to; itself only by a circle."""
    nodes, pending = set[str](), [start]
    while pending:
        new = graph[pending.pop()] - nodes
        nodes |= new
        pending += new
    return nodes


class Measure(NamedTuple):
    """A row of the table: infinite is what cannot be measured, and ``aim`` is the most it may be."""

    title: str
    value: float
    remark: str = ""
    aim: float | None = None

    @property
    def is_missed(self) -> bool:
        """Whether it is above its aim."""
        return self.aim is not None and self.value > self.aim

    def __str__(self) -> str:
        aim = "" if self.aim is None else f"{self.aim:g}{' MISSED' if self.is_missed else ''}"
        return f"{self.title:<44}{self.value:>8.5g}  {aim:<11}  {self.remark}".rstrip()


def modules_in(folder: Path, package: str = "") -> list[Module]:
    """All files of a package, or of a folder of packages."""
    return [Module(path, folder) for path in sorted((folder / package).rglob("*.py"))]


def measures(root: Path) -> list[Measure]:
    """All rows for the checkout in a folder."""
    everywhere = modules_in(root, CORE)
    core = [module for module in everywhere if not f"{module.name}.".startswith(f"{CONFORMANCE}.")]
    packages = [path.parent.name for path in sorted((root / "backends").glob("*/__init__.py"))]
    adapters = [modules_in(root / "backends", package) for package in packages]
    all_adapters = [*chain.from_iterable(adapters)]
    graph = import_graph(core)
    return [
        *(circle_of(name, import_graph(part)) for name, part in zip([CORE, *packages], [core, *adapters], strict=True)),
        *measures_of_rooms(room_graph(graph), root),
        *measures_of_folder(root / CORE),
        fan_out(graph, core),
        *chain(*zip(measures_of_text("core", core, 9, 5), measures_of_text("adapters", all_adapters), strict=True)),
        vague_share([*everywhere, *modules_in(root / "backends")]),
        complex_functions([*core, *all_adapters]),
    ]


def circle_of(title: str, graph: Graph) -> Measure:
    """How many modules the largest circle of imports has."""
    components = circles(graph)
    remark = f"{in_words(components[0])}; {len(components)} in all" if components else ""
    return Measure(f"largest circle of {title}", len(components[0]) if components else 0, remark, 0)


def measures_of_rooms(rooms: Graph, root: Path) -> Iterator[Measure]:
    """Circles of rooms, and arrows against the layers of the contract."""
    components = circles(rooms)
    remark = "; ".join([f"{len(rooms)} rooms", *(f"{len(part)}: {in_words(part)}" for part in components)])
    yield Measure("circles of rooms", len(components), remark, 0)
    heights = layer_heights(root / "pyproject.toml")
    arrows = [(a, b) for a, targets in rooms.items() for b in sorted(targets)]
    upward = [f"{a} -> {b}" for a, b in arrows if a in heights and heights[a] < heights.get(b, -1)]
    remark = f"of {len(arrows)}: {in_words(upward)}" if heights else "no layers contract"
    yield Measure("upward arrows between rooms", len(upward) if heights else float("inf"), remark, 1)


def layer_heights(pyproject: Path) -> dict[str, int]:
    """How high the rooms stand by the contract of layers of import-linter; empty where there is none."""
    contracts = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {}).get("importlinter", {})
    for contract in contracts.get("contracts", ()):
        if contract["type"] == "layers" and contract.get("containers") == [CORE]:
            layers = [layer.replace("|", ":").split(":") for layer in reversed(contract["layers"])]
            return {room.strip(" ()"): height for height, layer in enumerate(layers) for room in layer}
    return {}


def measures_of_folder(folder: Path) -> Iterator[Measure]:
    """How much lies at the top of the core."""
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    folders = [path for path in folder.iterdir() if (path / "__init__.py").exists()]
    yield Measure("files at the top", len(files), aim=18)
    yield Measure("files and folders at the top", len(files) + len(folders))


def fan_out(graph: Graph, modules: list[Module]) -> Measure:
    """The most modules that one imports; the ``__init__`` of a package only hands on, and does not count."""
    counts = {module.name: len(graph[module.name]) for module in modules if not module.is_package}
    name = max(counts, key=lambda name: counts[name])
    return Measure("largest fan-out", counts[name], name, 20)


def measures_of_text(
    title: str, modules: list[Module], private: float | None = None, untyped: float | None = None
) -> Iterator[Measure]:
    """What a part of the code has of private accesses, ``Any``, comments, long files and long functions."""
    accesses = Counter(name for module in modules for name in module.private_accesses())
    yield Measure(f"private accesses, {title}", accesses.total(), most_common(accesses), private)
    private_imports = [name for module in modules for name in module.imports() if is_private(name.rpartition(".")[2])]
    yield Measure(f"private imports, {title}", len(private_imports), in_words(private_imports))
    code, comments = (sum(map(len, lines)) for lines in zip(*(m.code_and_comments() for m in modules), strict=True))
    count = sum(isinstance(node, ast.Name) and node.id == "Any" for module in modules for node in module.nodes)
    yield Measure(f"Any per 100 code lines, {title}", 100 * count / code, f"{count} in {code}", untyped)
    yield Measure(f"comment lines per 100 code lines, {title}", 100 * comments / code, f"{comments}")
    lengths = sorted(module.text.count("\n") for module in modules)
    yield Measure(f"lines of a file, median, {title}", median(lengths), spread(lengths))
    functions = sorted(length for module in modules for length in module.function_lengths())
    count = sum(length > LONG_FUNCTION for length in functions)
    yield Measure(f"functions over {LONG_FUNCTION} lines, {title}", count, spread(functions))


def spread(lengths: list[int]) -> str:
    """The upper end of sorted lengths."""
    return f"of {len(lengths)}; nine in ten up to {lengths[len(lengths) * 9 // 10]}, the longest {lengths[-1]}"


def is_vague(name: str) -> bool:
    """Whether a name says nothing of the value."""
    return name.strip("_") in VAGUE


def vague_share(modules: list[Module]) -> Measure:
    """How many of the names that are bound say nothing, in percent."""
    names = [name for module in modules for name, _ in module.bound_names()]
    vague = Counter(name.strip("_") for name in names if is_vague(name))
    remark = f"{vague.total()} of {len(names)}: {most_common(vague)}"
    return Measure("vague names, %", 100 * vague.total() / len(names), remark, 0.3)


def print_vague(modules: list[Module]) -> None:
    """List the places of all vague names."""
    for module in modules:
        for name, line in sorted(module.bound_names(), key=lambda place: place[1]):
            if is_vague(name):
                print(f"{module.path.relative_to(ROOT)}:{line}: {name}")


def complex_functions(modules: list[Module]) -> Measure:
    """Functions of high cognitive complexity."""
    title = f"functions of complexity over {COMPLEX}"
    if find_spec("complexipy") is None:
        return Measure(title, float("inf"), "complexipy is not installed", 0)
    measure = import_module("complexipy").file_complexity
    functions = [(f.complexity, f.name) for module in modules for f in measure(str(module.path)).functions]
    hard = sorted(((complexity, name) for complexity, name in functions if complexity > COMPLEX), reverse=True)
    return Measure(title, len(hard), in_words([f"{name} {complexity}" for complexity, name in hard]), 0)


def most_common(counts: Counter[str]) -> str:
    """The ten most frequent names."""
    return ", ".join(f"{name} {count}" for name, count in counts.most_common(10))


def in_words(names: list[str]) -> str:
    """A list, cut where it gets long."""
    return ", ".join([*names[:10], *(["..."] if len(names) > 10 else [])])


def main() -> int:
    """Print the table, or the vague names; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if an aim is missed")
    parser.add_argument("--names", action="store_true", help="list every vague name instead")
    options = parser.parse_args()
    if options.names:
        print_vague([*modules_in(ROOT, CORE), *modules_in(ROOT / "backends")])
        return 0
    rows = measures(ROOT)
    print(f"{'':<44}{'':>8}  at most", *rows, sep="\n")
    return int(options.check and any(row.is_missed for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
