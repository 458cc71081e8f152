"""Whether MLflow, W&B and Trackio have what they were given: real runs, offline, read back by the libraries themselves.

    pip install 'loopcore[mlflow,wandb,trackio,plot]'
    python -m benchmarks.trackers --json benchmarks/results/trackers.json

Each tracker gets the same training, of two epochs with validation, and one value of every kind. What is read back is
compared with what a memory logger was given: names, steps and values of every number, by MLflow's client, by the
records of W&B's file (its own definitions of them), and by Trackio's command line. Then a second run of the same name
is written, and the first one read again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Series = dict[str, list[tuple[int, float]]]
NAMES = (
    *("a b", "../../up", "\x1b[31mred", "=1+1", "@x", "-x", "_step", "step", "__x", "損失", "💥", "a.b", "x" * 400),
    *("\ud800", "a\x00b"),
)
CLASHING = ("top 1", "top?1")
QUIET = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
HUGE = sys.float_info.max  # what databases of MLflow keep of an infinite number


class Found(NamedTuple):
    """What a library says a run has: numbers, and the kinds of everything else by name."""

    numbers: Series
    others: dict[str, str]


class Tracker(NamedTuple):
    """How a logger is made, and how its run is read back after it was closed."""

    make: Callable[[], Any]
    read: Callable[[Any], Found]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trackers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=sorted(TRACKERS), help="one of them")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args(arguments)
    target = options.json and options.json.resolve()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ.update(QUIET, TRACKIO_DIR=folder)  # read when they are imported
        for name in [options.only] if options.only else TRACKERS:
            results[name] = check(name, TRACKERS[name])
            print(name, results[name])
        os.chdir("/")
    if target:
        content = {"benchmark": "trackers", "python": platform.python_version(), "trackers": results}
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def check(name: str, tracker: Tracker) -> dict[str, Any]:
    """Write two runs, read them back, and compare."""
    began = time.perf_counter()
    first, given, kinds = write(tracker.make)
    found = tracker.read(first)
    same(found.numbers, given)
    assert found.others == kinds, (found.others, kinds)
    second, again, _ = write(tracker.make)
    same(tracker.read(second).numbers, again)
    same(tracker.read(first).numbers, given)
    return {
        "version": version(name),
        "numbers": sum(map(len, given.values())),
        "names": len(given),
        "kinds": sorted({"number", *kinds.values()}),
        "left_out": [kind.__name__ for kind in _every_kind() if kind not in first.kinds],
        "seconds": round(time.perf_counter() - began, 1),
    }


def _every_kind() -> tuple[type[Any], ...]:
    from loopcore import loggers

    return (loggers.Value, loggers.Text, loggers.Image, loggers.Histogram, loggers.Figure)


def write(make: Callable[[], Any]) -> tuple[Any, Series, dict[str, str]]:
    """Train, log one value of each kind, close; the numbers that were given, and the kinds of the rest by name."""
    from matplotlib.figure import Figure

    import loopcore as lc

    class Raw(lc.loggers.MemoryLogger):
        def safe_name(self, name: str) -> str:
            return name

    logger, memory = make(), Raw()
    pair = np.ones((4, 1)), np.ones((4, 1))
    callbacks = [
        *(lc.LogMetrics(logger, memory), lc.LogHyperParams(logger, memory), lc.Metrics(lc.losses.mae)),
        lc.Scheduler({lc.LearningRate: lc.schedules.linear(0.1, 0.0, 10)}),
    ]
    lc.testing.toy_learner(callbacks, data=([pair] * 5, [pair] * 3)).fit(2)
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    rest = {
        "kinds/text": lc.loggers.Text("words \ud800"),
        "kinds/image": lc.loggers.Image(np.linspace(0, 1, 60).reshape(4, 5, 3)),
        "kinds/grey": lc.loggers.Image(np.zeros((4, 5), np.uint8)),
        "kinds/histogram": lc.loggers.Histogram(np.array([1.0, 2.0, math.nan, 2.0])),
        "kinds/figure": lc.loggers.Figure(figure),
    }
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for one in (logger, memory):
            for name in (*NAMES, *CLASHING):
                one.log(name, 1.5, 7)
            for step, value in enumerate((math.nan, math.inf, -math.inf, 0.0, 0.25)):
                one.log("odd", value, min(step, 3))  # the last step comes twice
            for name, value in rest.items():
                one.log(name, value, 2)
            one.log("kinds/histogram", lc.loggers.Histogram(np.array([3.0])), 3)
    logger.close()
    left_out = [str(one.message) for one in said if "is left out" in str(one.message)]
    assert len(left_out) == sum(kind not in logger.kinds for kind in _every_kind()), left_out  # each once
    numbers = {logger._names(name): values for name, values in memory.entries.items() if name not in rest}
    assert len(numbers) == len(memory.entries) - len(rest)
    kinds = {name: type(value).__name__ for name, value in rest.items() if isinstance(value, logger.kinds)}
    return logger, numbers, kinds


def same(found: Series, given: Series) -> None:
    """Every number is there, at its step, and no other."""
    assert found.keys() == given.keys(), set(found) ^ set(given)
    for name, values in given.items():
        there = sorted(found[name], key=lambda pair: pair[0])
        assert [step for step, _ in there] == [step for step, _ in values], (name, there, values)
        np.testing.assert_array_equal([value for _, value in there], [value for _, value in values], err_msg=name)


# -- MLflow


def make_mlflow() -> Any:
    import loopcore as lc

    return lc.loggers.MLflowLogger("experiment", "run \x1b[2J", "sqlite:///runs.db")


def read_mlflow(logger: Any) -> Found:
    client = import_module("mlflow").MlflowClient(tracking_uri="sqlite:///runs.db")
    run = client.get_run(logger.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == r"run \x1b[2J"
    numbers: Series = {}
    for name in run.data.metrics:
        history = client.get_metric_history(logger.run_id, name)
        numbers[name] = [(one.step, _infinite(one.value)) for one in history]
    others: dict[str, str] = {}
    for path in _artifacts(client, logger.run_id, ""):
        here = Path(client.download_artifacts(logger.run_id, path))
        folder, _, rest = path.partition("/")
        if folder == "text":
            assert here.read_text(encoding="utf-8") == r"words \ud800" and rest == "kinds/text/2.txt"
            others["kinds/text"] = "Text"
        elif folder == "figures":
            assert _size(here) == (100, 100) and rest == "kinds/figure/2.png"
            others["kinds/figure"] = "Figure"
        elif here.suffix == ".png":
            assert _size(here) == (5, 4) and "+step+2+" in rest
            others[rest.partition("+")[0].replace("~", "/")] = "Image"
    return Found(numbers, others)


def _infinite(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) == HUGE else value


def _artifacts(client: Any, run: str, folder: str) -> list[str]:
    found = client.list_artifacts(run, folder)
    return [path for one in found for path in (_artifacts(client, run, one.path) if one.is_dir else [one.path])]


def _size(path: Path) -> tuple[int, int]:
    return import_module("PIL.Image").open(path).size


# -- W&B


def make_wandb() -> Any:
    import loopcore as lc

    return lc.loggers.WandbLogger("project", "run", folder="files")


def read_wandb(logger: Any) -> Found:
    (path,) = Path("files").glob(f"wandb/offline-run-*/run-{logger.run.id}.wandb")
    records = list(_records(path.read_bytes()))
    against = {one.metric.glob_name: one.metric.step_metric for one in records if one.HasField("metric")}
    assert against["*"] == "loopcore/step"
    numbers: Series = {}
    others: dict[str, str] = {}
    rows = [one.history for one in records if one.HasField("history")]
    assert [row.step.num for row in rows] == list(range(len(rows)))  # its own count; none was dropped
    for row in rows:
        values = {tuple(item.nested_key) or (item.key,): json.loads(item.value_json) for item in row.item}
        (step,) = (value for key, value in values.items() if key == ("loopcore/step",))
        for (name, *rest), value in values.items():
            if rest == ["_type"]:
                others[name] = {"image-file": "Image", "histogram": "Histogram"}[value]
            elif isinstance(value, str) and name == "kinds/text":
                assert value == r"words \ud800"
                others[name] = "Text"
            elif not rest and not name.startswith("_") and name != "loopcore/step":
                numbers.setdefault(name, []).append((step, float(value)))
    assert others["kinds/figure"] == "Image"
    return Found(numbers, {**others, "kinds/figure": "Figure"})


def _records(content: bytes) -> Any:
    """The records of a file of W&B, which has the format of LevelDB's log after a header of seven bytes."""
    record = import_module("wandb.proto.wandb_internal_pb2").Record
    block, place, parts = 32_768, 7, b""
    while place < len(content):
        room = block - place % block
        if room < 7:
            place += room
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record.FromString(parts)
            parts = b""


# -- Trackio


def make_trackio() -> Any:
    import loopcore as lc

    return lc.loggers.TrackioLogger("project", "../../run")


def read_trackio(logger: Any) -> Found:
    sql = f"SELECT step, run_name, metrics FROM metrics WHERE run_id = '{logger.run.id}' ORDER BY id"
    command = [sys.executable, "-m", "trackio.cli", "query", "project", "--project", "project", "--sql", sql, "--json"]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    numbers: Series = {}
    others: dict[str, str] = {}
    for row in answer["rows"]:
        assert row["run_name"] == "____run"
        ((name, value),) = json.loads(row["metrics"]).items()
        if not isinstance(value, dict):
            numbers.setdefault(name, []).append((row["step"], float(value)))
            continue
        others[name] = value["_type"].removeprefix("trackio.").title()
        if "file_path" in value:
            assert _size(Path("media") / value["file_path"]) == ((100, 100) if name == "kinds/figure" else (5, 4))
        if row["step"] == 2 and name == "kinds/histogram":
            assert sum(value["values"]) == 3 and value["bins"][-1] == 2.0
        if name == "kinds/text":
            assert value["_value"] == r"words \ud800"
    assert (others["kinds/figure"], others["kinds/text"]) == ("Image", "Markdown")
    return Found(numbers, {**others, "kinds/figure": "Figure", "kinds/text": "Text"})


TRACKERS = {
    "mlflow": Tracker(make_mlflow, read_mlflow),
    "wandb": Tracker(make_wandb, read_wandb),
    "trackio": Tracker(make_trackio, read_trackio),
}

if __name__ == "__main__":
    sys.exit(main())
