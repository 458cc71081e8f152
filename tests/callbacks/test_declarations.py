"""Each callback of the package says in its docstring what it declares."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import loopcore as lc
from loopcore import callbacks as package


def shipped() -> Iterator[type[lc.Callback]]:
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for _, cls in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if issubclass(cls, lc.Callback) and cls.__module__ == info.name and not cls.__name__.startswith("_"):
                yield cls


def line(cls: type[lc.Callback], heading: str) -> str:
    found = re.search(rf"^( *){heading}: (.*(?:\n\1    .*)*)$", cls.__doc__ or "", re.MULTILINE)
    return re.sub(r"\s+", " ", found.group(2)) if found else ""


class Plateau:
    def step(self) -> None: ...


Plateau.__name__ = "ReduceLROnPlateau"
EXAMPLES: dict[type, Any] = {  # of those whose declarations depend on their arguments
    lc.LogHistograms: lambda: lc.LogHistograms(lc.loggers.MemoryLogger(), gradients=True),
    lc.Metrics: lc.Metrics,  # without metrics it has the loss
    lc.Scheduler: lambda: lc.Scheduler({"learning_rate": lc.schedules.constant(0.1)}, unit="update"),
    lc.TorchScheduler: lambda: lc.TorchScheduler(Plateau(), "epoch", monitor="val_loss"),
}
NAMES = {cls.__name__ for cls in shipped()}


@pytest.mark.parametrize("cls", list(shipped()), ids=lambda cls: cls.__name__)
def test_the_docstring_lists_what_the_class_declares(cls: type[lc.Callback]) -> None:
    if cls.__name__ in ("FunctionCallback", "Throttle"):
        assert not (cls.reads or cls.writes or cls.listeners), "theirs depend on their arguments"
        return
    example = EXAMPLES.get(cls, lambda: cls)()
    reads = ", ".join((*example.reads, *example.traced_reads))
    assert line(cls, "Reads").removesuffix(" and the step values of its metrics") == reads
    assert line(cls, "Leaves") == ", ".join(example.leaves)
    assert line(cls, "Writes") == ", ".join(example.writes)
    after = {other.__name__ for other in (*cls.run_after, *cls.requires)}
    said = ", ".join((line(cls, "Runs after"), line(cls, "Requires"))).strip(", ")
    assert {name for name in said.split(", ") if name in NAMES} == after & NAMES
    heard: dict[str, set[bool]] = {}
    for listener in cls.listeners:
        heard.setdefault(listener.event.__name__, set()).add(listener.traced)
    marks = {frozenset({False}): "", frozenset({True}): " (traced)", frozenset({False, True}): " (also traced)"}
    expected = {name + marks[frozenset(traced)] for name, traced in heard.items()}
    assert set(filter(None, line(cls, "Handles").split(", "))) == expected
