"""Values leave in time; what cannot be written says so once; messages say what to write instead."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CallbackError, DataError, LossError, SanityError
from loopcore.testing import toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


# -- values leave in time


class Endless:
    def __iter__(self) -> Any:
        while True:
            yield BATCH


def test_an_endless_epoch_logs_while_it_runs_and_keeps_no_list() -> None:
    sizes: list[int] = []
    logger = lc.loggers.MemoryLogger()

    class Watch(lc.Callback):
        @lc.on(lc.StepEnd, lc.TrainingPhase)
        def watch(self, learner: Any, phase: Any) -> None:
            if learner.attempt in (1_600, 3_600):
                sizes.append(tracemalloc.get_traced_memory()[0])
            if learner.attempt == 1_100:
                for name in ("step/loss", "hyper/learning_rate", "trace/one"):
                    assert 1_000 < logger.entries[name][-1][0] <= 1_101, name

    rates = lc.Scheduler({lc.LearningRate: lambda step: 1e-3 / (1 + step)})
    logs = [lc.LogMetrics(logger), lc.LogHyperParams(logger), lc.LogTraces(logger)]
    trace = lc.Traces({"one": lambda learner: 1.0}, size=100)
    learner = toy_learner([*logs, rates, trace, Watch(), lc.MaxSteps(3_650)], data=(Endless(), None))
    tracemalloc.start()
    learner.fit(1)
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 120_000  # 12 bytes for each of three values a step, as the logger keeps them
    for name in ("step/loss", "hyper/learning_rate", "trace/one"):
        steps = [step for step, _ in logger.entries[name]]
        assert steps == sorted(set(steps)) and len(steps) == 3_650, name
    assert learner.history["loss"] == pytest.approx([np.mean(learner.history.steps("loss"))])
    assert rates.values("learning_rate")[-1] == learner.hyper.learning_rate


def test_a_long_epoch_loses_no_step() -> None:
    logger = lc.loggers.MemoryLogger()
    toy_learner([lc.LogMetrics(logger)], steps=20_000, optimizer=lc.SGD(1e-6)).fit(1)
    assert [step for step, _ in logger.entries["step/loss"]] == list(range(1, 20_001))


# -- no terminal, no disk


class Pipe(io.StringIO):
    """Closed by who reads it."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


class Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


class Terminal(Pipe):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out", [None, Pipe(), Full(), Terminal()], ids=["none", "pipe", "full", "terminal"])
def test_where_nothing_can_be_printed_the_training_goes_on(out: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = toy_learner([lc.ProgressPrinter(), lc.MetricsPrinter()], quiet=False)
    monkeypatch.setattr(sys, "stdout", out)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert learner.fit(3).status == "completed"
    texts = [str(one.message) for one in said]
    assert [text.partition(" cannot print")[0] for text in texts] == ["ProgressPrinter", "MetricsPrinter"], texts


def test_an_output_that_only_writes_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    class Write:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None: ...

    out = Write()
    monkeypatch.setattr(sys, "stdout", out)
    toy_learner([lc.ProgressPrinter(), lc.MetricsPrinter()], quiet=False).fit(1)
    assert out.text.startswith("epoch 1:")


class Removes(lc.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    @lc.on(lc.EpochBegin)
    def remove(self, learner: Any, phase: Any) -> None:
        if learner.epoch.round == 2:
            shutil.rmtree(self.path)


@pytest.mark.parametrize("kind", ["CSVLogger", "JSONLinesLogger"])
def test_a_folder_that_is_removed_is_made_anew(kind: str, tmp_path: Path) -> None:
    logger = getattr(lc.loggers, kind)(tmp_path, "run")
    with pytest.warns(UserWarning, match="is gone, with what was logged"):
        assert toy_learner([lc.LogMetrics(logger), Removes(logger.path.parent)]).fit(4).status == "completed"
    lines = logger.path.read_text().splitlines()
    assert len(lines) == len(set(lines)) and '"name": "loss"' in lines[-1] + '"name": "loss"'
    assert lines[0] == "step,name,value" or json.loads(lines[0])["step"] > 1


@pytest.mark.parametrize("kind", ["CSVLogger", "JSONLinesLogger"])
def test_a_full_disk_tears_no_row_and_doubles_none(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = getattr(lc.loggers, kind)(tmp_path, "run")
    logger.log("loss", 0.0, 0)
    logger.flush()
    monkeypatch.setattr("loopcore.loggers.files.open_file", lambda path: _Full(path.open("ab", buffering=0), 1000))
    for step in range(1, 201):
        logger.log("loss", step / 7, step)
    with pytest.warns(UserWarning, match=r"No space left.*strict=True\) ends it instead"):
        logger.flush()
    logger.flush()  # said once
    monkeypatch.undo()
    logger.log("loss", 1.0, 201)
    logger.flush()
    lines = logger.path.read_text().splitlines()
    steps = [json.loads(line)["step"] if kind == "JSONLinesLogger" else line.split(",")[0] for line in lines]
    assert [int(step) for step in steps if step != "step"] == list(range(202))
    strict = getattr(lc.loggers, kind)(tmp_path, "strict", strict=True)
    monkeypatch.setattr("loopcore.loggers.files.open_file", lambda path: _Full(path.open("ab", buffering=0), 10))
    with pytest.raises(OSError, match="No space left"):
        toy_learner([lc.LogMetrics(strict)]).fit(1)


class _Full:
    """A file on a disk with room for so many bytes, which takes a part of what does not fit."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> Any:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        return int(self.file.write(part))


def test_a_tracker_that_loses_its_connection_says_so_once() -> None:
    class Lost(Exception):
        """As those of a library."""

    class Tracker(lc.loggers.Logger):
        def write(self, name: str, value: Any, step: int) -> None:
            raise Lost("no connection")

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert toy_learner([lc.LogMetrics(Tracker())]).fit(3).status == "completed"
    assert len(said) == 1 and "no connection" in str(said[0].message)
    with pytest.raises(Lost):
        toy_learner([lc.LogMetrics(Tracker(strict=True))]).fit(3)

    class Wrong(lc.loggers.Logger):
        def write(self, name: str, value: Any, step: int) -> None:
            raise KeyError("a mistake")

    with pytest.raises(KeyError):
        toy_learner([lc.LogMetrics(Wrong())]).fit(1)


# -- metrics that are no scalar


def by_class(y_pred: Any, ys: Any) -> Any:
    return np.array([0.25, 0.5, 1.0])


def matrix(y_pred: Any, ys: Any) -> Any:
    return np.arange(4).reshape(2, 2)


def curve(y_pred: Any, ys: Any) -> Any:
    return np.array([0.0, 1.0]), np.array([0.5])


def test_arrays_are_kept_and_logged_as_they_are(tmp_path: Path) -> None:
    memory, lines, rows = (
        lc.loggers.MemoryLogger(),
        lc.loggers.JSONLinesLogger(tmp_path),
        lc.loggers.CSVLogger(tmp_path),
    )
    metrics = lc.Metrics(*(lc.Metric(fn, over="epoch") for fn in (by_class, matrix, curve)))
    out = io.StringIO()
    learner = toy_learner([metrics, lc.LogMetrics(memory, lines, rows), lc.MetricsPrinter(file=out)])
    learner.fit(2)
    history: Any = learner.history
    assert history["by_class"] == [[0.25, 0.5, 1.0]] * 2
    assert history["matrix"] == [[[0.0, 1.0], [2.0, 3.0]]] * 2 and history["curve_1"] == [[0.5]] * 2
    assert json.loads(json.dumps(dict(learner.history))) == dict(learner.history)
    assert memory.entries["matrix"][0][1].shape == (2, 2)
    assert '"value": [0.25, 0.5, 1.0]' in lines.path.read_text() and "1,matrix/1/0,2.0" in rows.path.read_text()
    assert "matrix" not in out.getvalue() and [one.get_title(loc="left") for one in learner.history.plot().axes] == [
        "loss"
    ]
    other = toy_learner([metrics_of_arrays()])
    learner = toy_learner([metrics_of_arrays()])
    learner.fit(1)
    other.load(learner.save(tmp_path / "x"))
    assert dict(other.history) == dict(learner.history)
    with pytest.raises(CallbackError, match="monitor a number"):
        toy_learner([metrics_of_arrays(), lc.EarlyStopping(3, "by_class")]).fit(1)


def metrics_of_arrays() -> lc.Metrics:
    return lc.Metrics(*(lc.Metric(fn, over="epoch") for fn in (by_class, matrix)))


def broken(y_pred: Any, ys: Any) -> Any:
    raise ZeroDivisionError("broken")


def report(y_pred: Any, ys: Any) -> Any:
    return "precision recall"


class Broken(lc.AbstractMetric):
    reads = ("step.y_pred",)

    def step(self, learner: Any, phase: Any) -> None:
        self.seen = learner.step.y_pred.shape

    def epoch_value(self) -> float:
        raise ZeroDivisionError("broken")


@pytest.mark.parametrize(
    "make",
    [
        lambda: lc.Metric(broken, "mine"),
        lambda: lc.Metric(broken, "mine", host=True),
        lambda: lc.Metric(broken, "mine", over="epoch"),
        lambda: lc.Metric(by_class, "mine"),
        lambda: lc.Metric(by_class, "mine", host=True),
        lambda: lc.Metric(report, "mine", over="epoch"),
        lambda: lc.Metric(Broken(), "mine"),
    ],
)
def test_an_error_in_a_metric_names_it_and_is_found_before_the_first_step(make: Callable[[], lc.Metric]) -> None:
    with pytest.raises((ZeroDivisionError, LossError)) as caught:
        toy_learner([lc.Metrics(make())]).fit(1)
    assert "metric 'mine'" in "\n".join((str(caught.value), *getattr(caught.value, "__notes__", ())))
    learner = toy_learner([lc.Metrics(make()), lc.SanityCheck()])
    with pytest.raises(SanityError, match="metric 'mine' fails in phase 'training'"):
        learner.fit(1)
    assert learner.params.value["w"] == 0.0


# -- messages


class Hooks(lc.Callback):
    def on_epoch_end(self, learner: Any, phase: Any) -> None: ...


class MoreHooks(lc.Callback):
    def on_validation_batch_start(self, learner: Any, phase: Any) -> None: ...


class StepLR:
    """As torch has them."""

    def step(self) -> None: ...
    def get_last_lr(self) -> list[float]:
        return [0.1]


class Silent(lc.TrainingPhase):
    def step(self, learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: learner.loss_fn(learner.model(state.xs), state.ys))


def test_data_are_assigned_as_they_are_passed() -> None:
    learner = toy_learner(data=([BATCH], None))
    learner.data = ([BATCH] * 3, None)
    learner.fit(1)
    assert learner.shared.history["training"].steps == 3
    with pytest.raises(DataError, match="ambiguous"):
        learner.data = [BATCH]


def test_what_is_no_callback_says_what_to_write() -> None:
    with pytest.raises(CallbackError, match="there are two Metrics in the list"):
        toy_learner([lc.Metrics(), lc.Metrics("x")])
    with pytest.raises(CallbackError, match=r"Hooks\.on_epoch_end is heard by nobody.*@lc\.on\(lc\.EpochEnd\)"):
        toy_learner([Hooks()])
    with pytest.raises(CallbackError, match=r"@lc\.on\(lc\.StepBegin, lc\.AbstractValidationPhase\)"):
        toy_learner([MoreHooks()])
    with pytest.raises(CallbackError, match=r'lc\.TorchScheduler\(scheduler, "epoch"\)'):
        toy_learner([StepLR()])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"write lc\.top_k_accuracy\(5\)"):
        lc.Metrics(lc.top_k_accuracy)
    with pytest.raises(TypeError, match=r"is called with the step values y_pred, ys, but takes \(one\)"):
        lc.Metrics(lc.Metric(lambda one: one, "mine"))
    with pytest.warns(UserWarning, match=r"Silent\.step sets no state\.loss"):
        toy_learner(phases=[Silent()]).fit(2)


def test_a_batch_whose_length_nobody_knows_asks_for_its_weight() -> None:
    class Mixed(lc.AbstractValidationPhase):
        data_key = "validation"

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.losses.mse(state.x * 0, state.t)

    class Weighted(Mixed):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            state.weight = len(state.x)

    parts: list[Any] = [
        {"idx": np.zeros(1), "x": np.ones((size, 8)), "t": np.full((size, 8), target)}
        for size, target in ((10, 0.0), (2, 10.0))
    ]
    with pytest.raises(
        DataError, match=r"idx 1, x 2, t 2 \(a batch before it: idx 1, x 10, t 10\)\. Write state\.weight"
    ):
        toy_learner(data=(None, parts), phases=[Mixed()]).fit(1)
    alike = toy_learner(data=(None, [parts[0], {**parts[0], "t": np.full((10, 8), 10.0)}]), phases=[Mixed()])
    alike.fit(1)
    assert alike.history["val_loss"] == [pytest.approx(50.0)]
    weighted = toy_learner(data=(None, parts), phases=[Weighted()])
    weighted.fit(1)
    assert weighted.history["val_loss"] == [pytest.approx(200 / 12)]
    one_length = toy_learner(
        data=(None, [{k: v for k, v in part.items() if k != "idx"} for part in parts]), phases=[Mixed()]
    )
    one_length.fit(1)
    assert one_length.history["val_loss"] == weighted.history["val_loss"]
    opaque = [{"graph": object()}]

    class Opaque(Mixed):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.zeros(())

    with pytest.raises(DataError, match=r"graph \?\. Write state\.weight"):
        toy_learner(data=(None, opaque), phases=[Opaque()]).fit(1)


def test_a_sequence_is_walked_to_its_length() -> None:
    class Sequence:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return BATCH  # never an IndexError

    sequence: Any = Sequence()
    learner = toy_learner(data=(sequence, None))
    learner.peek(learner.phases[0])
    learner.fit(2)
    assert learner.shared.history["training"].steps == 4
    assert len(list(lc.data.combine({"one": sequence}))) == 2


# -- handlers are found by the attribute


def counted(fn: Callable[..., None]) -> Callable[..., None]:
    def handler(self: Any, learner: Any, phase: Any) -> None:
        fn(self)

    return handler


def test_a_handler_is_what_the_class_calls_so() -> None:
    class Made(lc.Callback):
        def __init__(self) -> None:
            self.heard: list[str] = []

        first = lc.on(lc.EpochBegin)(counted(lambda self: self.heard.append("first")))
        second = lc.on(lc.EpochEnd)(counted(lambda self: self.heard.append("second")))
        again = second

    for number, event in enumerate((lc.StepBegin, lc.StepEnd)):
        setattr(Made, f"loop_{number}", lc.on(event)(counted(lambda self, n=number: self.heard.append(str(n)))))

    class Made2(Made):
        """A class made from one to which handlers were added."""

    made = Made2()
    assert {one.method for one in made.listeners} == {"again", "first", "loop_0", "loop_1"}
    toy_learner([made], steps=1).fit(1)
    assert made.heard == ["first", "0", "1", "second"]
