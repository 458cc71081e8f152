"""What callbacks declare: read once, and checked before anything is ordered.

Every check looks at all callbacks and raises the problem whose text sorts first, so that the error does not depend on
the order of the list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from loopcore.callback import Callback, name_of
from loopcore.errors import CallbackError, MissingRequirementError, MissingWriterError

ROOTS = ("step", "model", "params", "buffers", "optimizer", "hyper", "shared", "data")
KNOWN_WRITERS: dict[str, str] = {
    "shared.history": "Recorder",
    "shared.metrics_epoch": "Metrics",
    "shared.metrics_step": "Metrics",
}
_PATHS = ("reads", "traced_reads", "leaves", "writes", "carries")
_CLASSES = ("run_after", "run_before", "requires")


@dataclass(eq=False, slots=True)
class Declaration:
    """A callback and its declarations, each evaluated once; ``rank`` counts by class name, then by list order."""

    callback: Callback
    inner: Callback
    name: str
    rank: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    carries: tuple[str, ...]
    run_after: tuple[type, ...]
    run_before: tuple[type, ...]
    requires: tuple[type, ...]


def read_declarations(callbacks: Sequence[Callback], available: Collection[str]) -> list[Declaration]:
    """Read the declarations of all callbacks, by rank.

    Args:
        callbacks: each one once.
        available: ``shared`` paths that are there although no callback writes them.

    Raises:
        CallbackError: an entry is no callback or comes twice, or a declaration is malformed.
        MissingRequirementError: a required callback is absent.
        MissingWriterError: a ``shared`` path is read that nothing writes.
    """
    raise_first(_misfits(callbacks))
    nodes = _nodes(callbacks)
    raise_first(_unmet_requirements(nodes))
    raise_first(_unwritten_reads(nodes, available))
    return nodes


@lru_cache(maxsize=4096)
def overlaps(a: str, b: str) -> bool:
    """Tell whether one of two dotted paths covers the other.

    Example:
        >>> overlaps("step", "step.loss"), overlaps("step.loss", "step.loss_scale")
        (True, False)
    """
    return a == b or a.startswith(b + ".") or b.startswith(a + ".")


def raise_first(problems: Iterable[CallbackError]) -> None:
    """Raise the problem whose text sorts first: which one it is must not depend on the order of the list."""
    ordered = sorted(problems, key=str)
    if ordered:
        raise ordered[0]


# ---- what is in the list, and what it declares


def _misfits(callbacks: Iterable[Any]) -> Iterator[CallbackError]:
    identities: set[int] = set()
    for callback in callbacks:
        if isinstance(callback, type) and issubclass(callback, Callback):
            name = callback.__name__
            yield CallbackError(f"a callback is an instance: write {name}() instead of {name}")
        elif not isinstance(callback, Callback):
            description = (
                f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
            )
            yield CallbackError(f"{description} is no Callback: {_advice(callback)}")
        # A callback and a wrapper around it are one and the same: its handlers would run twice.
        elif id(callback.identity()) in identities:
            name = name_of(callback.identity())
            yield CallbackError(f"the same {name} is in the list twice: make two of them, or remove one")
        else:
            identities.add(id(callback.identity()))


def _advice(value: Any) -> str:
    """Say what to write instead of an object that is no callback."""
    # By what it can do, or by the name of its package: nothing of another library is imported to ask.
    kind: Any = value if isinstance(value, type) else type(value)
    roots = {cls.__module__.partition(".")[0] for cls in kind.__mro__}
    if callable(getattr(kind, "get_last_lr", None)) or kind.__name__ == "ReduceLROnPlateau":
        return 'write lc.TorchScheduler(scheduler, "epoch"), or "step" if it counts steps'
    if "keras" in roots and hasattr(kind, "set_model"):
        counterparts = {"EarlyStopping": "EarlyStopping", "ModelCheckpoint": "Checkpointer", "CSVLogger": "LogMetrics"}
        counterparts |= {
            "LearningRateScheduler": "Scheduler",
            "TensorBoard": "LogMetrics",
            "TerminateOnNaN": "StopOnNaNLoss",
        }
        advice = (
            f"lc.{counterparts[kind.__name__]} does this here"
            if kind.__name__ in counterparts
            else "write it as a Callback"
        )
        return f"callbacks of Keras are called by its own fit alone; {advice}, with handlers @lc.on(lc.EpochEnd)"
    if callable(getattr(kind, "update", None)) and callable(getattr(kind, "compute", None)):
        return f"a metric goes into lc.Metrics({kind.__name__}(...))"
    return "subclass Callback, or use FunctionCallback(fn, StepEnd)"


def _nodes(callbacks: Sequence[Callback]) -> list[Declaration]:
    # Ranks follow the names of classes, and everything after this line goes by rank: no order of the list and no hash
    # seed can show in the result. Python sorts stably, so that callbacks of one class keep the order that they were
    # given in.
    ranked = sorted(callbacks, key=_class_name)
    # Each is read once: they may be properties, and give another answer the next time.
    declared = [{attribute: getattr(callback, attribute) for attribute in _PATHS + _CLASSES} for callback in ranked]
    names = [name_of(callback) for callback in ranked]
    raise_first(problem for name, values in zip(names, declared, strict=True) for problem in _malformed(name, values))
    for values in declared:
        values["reads"] += values.pop("traced_reads")  # which handler reads makes no difference to the order
    raise_first(_left_twice(names, [values.pop("leaves") for values in declared]))
    return [
        Declaration(callback, callback.identity(), name, rank, **values)
        for rank, (callback, name, values) in enumerate(zip(ranked, names, declared, strict=True))
    ]


def _left_twice(names: Sequence[str], leaves: Sequence[tuple[str, ...]]) -> Iterator[CallbackError]:
    owners: dict[str, str] = {}
    for name, paths in zip(names, leaves, strict=True):
        for path in paths:
            if owners.get(path) == name:
                yield CallbackError(f"there are two {name} in the list: write one that does the work of both")
            elif path in owners:
                yield CallbackError(f"{owners[path]} and {name} both leave {path}: rename it in one of them")
            owners[path] = name


def _class_name(callback: Callback) -> tuple[str, str]:
    cls = type(callback.identity())
    return cls.__module__, cls.__qualname__


def _malformed(name: str, declared: dict[str, Any]) -> Iterator[CallbackError]:
    for attribute, values in declared.items():
        where = f"{name}.{attribute}"
        kind, example = (type, "Recorder") if attribute in _CLASSES else (str, '"step.loss"')
        if not isinstance(values, tuple):
            if isinstance(values, kind):
                example = values.__name__ if isinstance(values, type) else f'"{values}"'
            yield CallbackError(f"{where} is {in_words(values)}: write a tuple, {attribute} = ({example},)")
            continue
        items: tuple[Any, ...] = values
        for value in items:
            if not isinstance(value, kind):
                yield CallbackError(f"{where} holds {in_words(value)}: write for instance {attribute} = ({example},)")
            elif isinstance(value, str) and not _is_path(value):
                rule = f"a path is names joined by dots, the first one of {', '.join(ROOTS)}"
                yield CallbackError(f'{where} holds "{value}": {rule}, for instance {attribute} = ({example},)')


@lru_cache(maxsize=4096)
def _is_path(path: str) -> bool:
    root, *parts = path.split(".")
    numbers = root == "hyper"  # these begin with the prefix of a model, such as "encoder.0"
    return root in ROOTS and all(part.isidentifier() or (numbers and part.isdecimal()) for part in parts)


def in_words(value: Any) -> str:
    """Describe a value without anything that changes from run to run, such as an address."""
    if isinstance(value, Declaration):
        return f"{value.name} first"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f'"{value}"' if isinstance(value, str) else f"a {type(value).__name__}"


# ---- what is absent


def _unmet_requirements(nodes: Sequence[Declaration]) -> Iterator[CallbackError]:
    for node in nodes:
        for cls in node.requires:
            if not any(isinstance(other.inner, cls) for other in nodes if other is not node):
                yield MissingRequirementError(f"{node.name} requires {cls.__name__}: add {cls.__name__}()")


def _unwritten_reads(nodes: Sequence[Declaration], available: Collection[str]) -> Iterator[CallbackError]:
    provided = {*available, *(path for node in nodes for path in node.writes)}
    for node in nodes:
        for path in node.reads:
            if path.startswith("shared.") and not any(overlaps(path, other) for other in provided):
                writer = next((name for known_path, name in KNOWN_WRITERS.items() if overlaps(path, known_path)), None)
                add = f"{writer}()" if writer else "a callback that does"
                yield MissingWriterError(f"{node.name} reads {path}, nothing writes it: add {add}")
