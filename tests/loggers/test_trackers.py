"""What MLflow, W&B and Trackio are asked to write, by stand-ins; `benchmarks.trackers` asks the real libraries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import MissingFrameworkError
from loopcore.loggers import Figure, Histogram, Image, Text

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


class Calls:
    """An object any method of which can be called; it keeps what was."""

    def __init__(self, **known: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, *args, *kwargs.items()))

    def of(self, name: str) -> list[Any]:
        return [rest for called, *rest in self.calls if called == name]


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **known: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(known)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """MLflow without the experiment that is asked for."""
    run = SimpleNamespace(info=SimpleNamespace(run_id="id"))

    def create_run(*args: Any, **kwargs: Any) -> Any:
        client.calls.append(("create_run", *args, *kwargs.items()))
        return run

    known = {"get_experiment_by_name": lambda name: None, "create_experiment": lambda name: f"number of {name}"}
    client = Calls(create_run=create_run, **known)

    def connect(tracking_uri: str | None) -> Calls:
        client.calls.append(("connect", tracking_uri))
        return client

    entities = SimpleNamespace(Metric=lambda key, value, timestamp, step: (key, value, step))
    stand_in(monkeypatch, "mlflow", MlflowClient=connect, entities=entities)
    return client


def started(calls: Calls) -> Callable[..., Calls]:
    def init(**options: Any) -> Calls:
        calls.calls.append(("init", options))
        return calls

    return init


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Calls:
    run = Calls()
    kinds = {"Histogram": lambda values: ("histogram", *values), "Image": lambda pixels: ("image", pixels)}
    stand_in(monkeypatch, "wandb", init=started(run), **kinds)
    return run


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Calls:
    run = Calls()
    kinds = {"Histogram": lambda values: ("histogram", *values), "Image": lambda pixels: ("image", pixels)}
    stand_in(monkeypatch, "trackio", init=started(run), Markdown=lambda text: ("markdown", text), **kinds)
    return run


@pytest.mark.parametrize("kind", ["MLflow", "Wandb", "Trackio"])
def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setitem(sys.modules, kind.lower(), None)
    with pytest.raises(MissingFrameworkError, match=rf"{kind}Logger needs .* pip install 'loopcore\[{kind.lower()}\]'"):
        getattr(lc.loggers, f"{kind}Logger")()


def test_the_import_asks_for_none_of_them(fresh: Callable[..., str]) -> None:
    assert "ok" in fresh("import loopcore; print('ok')", blocked=("mlflow", "wandb", "trackio", "tensorboardX"))


# -- MLflow


def test_mlflow_opens_a_run_of_its_own(mlflow: Calls) -> None:
    logger = lc.loggers.MLflowLogger("digits", "run\x1b", "sqlite:///x.db")
    assert mlflow.calls == [
        ("connect", "sqlite:///x.db"),
        ("create_run", "number of digits", ("run_name", r"run\x1b")),
    ]
    assert logger.run_id == "id"
    mlflow.__dict__["get_experiment_by_name"] = lambda name: SimpleNamespace(experiment_id="7")
    lc.loggers.MLflowLogger("digits")
    assert mlflow.calls[-2:] == [("connect", None), ("create_run", "7", ("run_name", None))]


def test_mlflow_gets_numbers_in_batches(mlflow: Calls) -> None:
    logger = lc.loggers.MLflowLogger()
    for step in range(2500):
        logger.log("a b", step / 10, step)
    assert not mlflow.of("log_batch")
    logger.flush()
    logger.flush()
    batches = [metrics for _, (_, metrics) in mlflow.of("log_batch")]
    assert [len(metrics) for metrics in batches] == [1000, 1000, 500]
    assert [one for metrics in batches for one in metrics] == [("a_b", step / 10, step) for step in range(2500)]
    logger.log("a b", 1.0, 2500)
    logger.close()
    last, end = mlflow.calls[-2:]
    assert last == ("log_batch", "id", ("metrics", [("a_b", 1.0, 2500)])) and end == ("set_terminated", "id")


def test_mlflow_keeps_what_is_no_number_as_artifacts(mlflow: Calls) -> None:
    logger = lc.loggers.MLflowLogger()
    logger.log("a/note", Text("words\ud800"), 3)
    logger.log("ü", Image(np.array([[0.0, 0.5, 2.0, np.nan]])), 4)
    logger.log("plot", Figure("a figure"), 5)
    assert mlflow.of("log_text") == [["id", r"words\ud800", "text/a/note/3.txt"]]
    assert mlflow.of("log_figure") == [["id", "a figure", "figures/plot/5.png"]]
    ((_, pixels, *rest),) = mlflow.of("log_image")
    assert pixels.dtype == np.uint8 and pixels.tolist() == [[0, 128, 255, 0]] and rest == [("key", "ufc"), ("step", 4)]
    with pytest.warns(UserWarning, match="MLflowLogger takes no Histogram: numbers is left out"):
        logger.log("numbers", Histogram(np.arange(3)), 1)
    logger.log("numbers", Histogram(np.arange(3)), 2)


# -- W&B


def test_wandb_has_an_axis_that_may_go_back(wandb: Calls) -> None:
    """Its own count of rows only goes up: rows that come with a lower ``step`` are dropped."""
    logger = lc.loggers.WandbLogger()
    lc.testing.toy_learner([lc.LogMetrics(logger)], data=([BATCH] * 2, None)).fit(2)
    logger.close()
    axis = "loopcore/step"
    assert wandb.calls[1:3] == [
        ("define_metric", axis, ("hidden", True)),
        ("define_metric", "*", ("step_metric", axis)),
    ]
    rows = [row for (row,) in wandb.of("log")]  # nothing but a row: no step=
    steps = [row[axis] for row in rows]
    assert steps == [1, 2, 2, 3, 4] and [sorted({*row} - {axis}) for row in rows] == [
        *(["loss", "step/loss"], ["step/loss"], ["loss"], ["step/loss"], ["step/loss"]),
    ]
    assert wandb.calls[-1] == ("finish",)


def test_wandb_runs_are_apart(wandb: Calls, tmp_path: Path) -> None:
    lc.loggers.WandbLogger("digits", "run\x1b", folder=tmp_path / "new", mode="offline", tags=["x"])
    (options,) = wandb.of("init")[0]
    assert (tmp_path / "new").is_dir() and options == {
        **{"project": "digits", "name": r"run\x1b", "dir": str(tmp_path / "new"), "mode": "offline", "tags": ["x"]},
        **{"reinit": "create_new", "resume": "never"},
    }


def test_wandb_two_values_of_one_step_are_two_rows(wandb: Calls) -> None:
    logger = lc.loggers.WandbLogger()
    for value in (1.0, 2.0):
        logger.log("a", value, 1)
    logger.flush()
    assert [row["a"] for (row,) in wandb.of("log")] == [1.0, 2.0]


def test_wandb_takes_every_kind(wandb: Calls) -> None:
    logger = lc.loggers.WandbLogger()
    logger.log("_step", 1.0, 1)
    logger.log("note", Text("words\ud800"), 1)
    logger.log("numbers", Histogram(np.array([1.0, np.nan, np.inf])), 1)
    logger.log("picture", Image(np.ones((1, 1))), 1)
    logger.flush()
    ((row,),) = wandb.of("log")
    assert row.pop("picture")[1].tolist() == [[255]]
    assert row == {"metric/_step": 1.0, "note": r"words\ud800", "numbers": ("histogram", 1.0), "loopcore/step": 1}


# -- Trackio


def test_trackio_gets_the_steps_as_they_are(trackio: Calls) -> None:
    logger = lc.loggers.TrackioLogger("digits", "../run", group="g")
    lc.testing.toy_learner([lc.LogMetrics(logger)], data=([BATCH] * 2, None)).fit(1)
    logger.close()
    options = {"resume": "never", "embed": False, "project": "digits", "name": "__run", "group": "g"}
    assert trackio.of("init") == [[options]]
    assert trackio.of("log") == [
        [{"loss": pytest.approx(0.82)}, ("step", 1)],
        [{"step/loss": 1.0}, ("step", 1)],
        [{"step/loss": pytest.approx(0.64)}, ("step", 2)],
    ]
    assert trackio.calls[-1] == ("finish",)


def test_trackio_takes_every_kind(trackio: Calls) -> None:
    from matplotlib.figure import Figure as Drawing

    logger = lc.loggers.TrackioLogger()
    logger.log("time", 1.0, 1)
    logger.log("note", Text("words\ud800"), 1)
    logger.log("numbers", Histogram(np.array([1.0, np.nan])), 1)
    logger.log("picture", Image(np.full((1, 1), 7, np.uint8)), 1)
    logger.log("plot", Figure(Drawing(figsize=(1, 2), dpi=10)), 1)
    found = {name: value for row, _ in trackio.of("log") for name, value in row.items()}
    assert found.pop("picture")[1].tolist() == [[7]] and found.pop("plot")[1].shape == (20, 10, 4)
    assert found == {"metric/time": 1.0, "note": ("markdown", r"words\ud800"), "numbers": ("histogram", 1.0)}
