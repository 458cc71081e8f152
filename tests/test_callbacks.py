"""The callbacks that come with the package: recorder, metrics, printers, the NaN guard, wrappers, devices."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import os
import pkgutil
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.metrics import r2_score

import loopcore as lc
from loopcore import callbacks as package
from loopcore._utils.argument_order import predictions_first
from loopcore._utils.text import clean
from loopcore.callbacks import metrics as metrics_module
from loopcore.errors import AccessError, BackendError, CallbackError
from loopcore.history import History, Ring
from loopcore.testing import Trace, toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))
NASTY: tuple[str, ...] = (
    "a\x1b[2Jb",
    "\x1b]0;title\x07",
    "two\nlines",
    "tab\tbel\x07nul\x00del\x7f",
    "c1\x9bm",
    "bidi\u202eevil",
    "iso\u2066x",
)
NASTY += ("line\u2028paragraph\u2029", "[bold]markup[/bold]", "\ud800lone", "x" * 300)


# ---- what every callback of the package says about itself


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


# ---- Recorder


def test_the_recorder_counts_completed_epochs_and_steps() -> None:
    learner = toy_learner(data=([BATCH] * 3, [BATCH] * 2))
    learner.fit(2)
    history = learner.shared.history
    assert dict(history) == {"training": (2, 6, 3, 6), "validation": (2, 4, 2, 4)}
    assert repr(history) == (
        "History({'training': Counts(epochs=2, steps=6, steps_epoch=3), "
        "'validation': Counts(epochs=2, steps=4, steps_epoch=2)})"
    )
    assert history[lc.TrainingPhase()] == history["training"] and lc.TrainingPhase() in history
    assert "testing" not in history and history["testing"] == (0, 0, 0, 0) and len(history) == 2


def test_a_recorder_that_joins_again_counts_anew() -> None:
    recorder, phase = lc.Recorder(), lc.TrainingPhase()
    learner = toy_learner([recorder], default_callbacks=False)
    with lc.run_epoch(learner, phase):
        learner.run_step(phase, BATCH)
    learner.callbacks.remove(recorder)
    learner.callbacks.add(recorder)
    learner.run_step(phase, BATCH)
    assert learner.shared.history[phase].steps == 1


def test_a_count_that_was_read_does_not_change() -> None:
    learner = toy_learner(steps=2)
    before = learner.shared.history["training"]
    learner.fit(1)
    assert before.steps == 0 and learner.shared.history["training"].steps == 2


def test_a_recorder_goes_on_where_counts_are() -> None:
    learner = toy_learner(steps=2)
    learner.fit(1)
    recorder = learner.callbacks.get(lc.Recorder)
    assert recorder is not None and recorder.state_dict() == {}
    learner.callbacks.replace(recorder, lc.Recorder())
    learner.fit(1)
    assert learner.shared.history["training"] == (2, 4, 2, 4)
    assert isinstance(learner.shared.history, History)


# ---- Metrics


def test_epoch_means_are_weighted_by_samples() -> None:
    sizes, targets = (4, 4, 1), (1.0, 2.0, 6.0)
    data = [(np.ones((n, 1)), np.full((n, 1), target)) for n, target in zip(sizes, targets, strict=True)]
    mae = lc.Metric(lc.losses.mae, "mae")
    learner = toy_learner([lc.Metrics(mae)], data=(None, data), phases=[lc.ValidationPhase()])
    learner.fit(1)
    assert learner.history["val_loss"] == [pytest.approx((4 * 1 + 4 * 4 + 1 * 36) / 9, rel=1e-15)]
    assert learner.history["val_mae"] == [pytest.approx((4 * 1 + 4 * 2 + 1 * 6) / 9, rel=1e-15)]
    assert learner.history.steps("val_mae") == [1.0, 2.0, 6.0]


def test_a_weight_in_the_state_replaces_the_number_of_samples() -> None:
    data = [{"xs": np.ones((4, 1)), "ys": np.full((4, 1), t), "weight": w} for t, w in ((1.0, 1.0), (2.0, 3.0))]
    learner = toy_learner(data=(None, data), phases=[lc.ValidationPhase()])
    learner.fit(1)
    assert learner.history["val_loss"] == [pytest.approx((1 * 1 + 3 * 4) / 4, rel=1e-15)]


class TwoLosses(lc.TrainingPhase):
    """Writes more values than the loss, one of them now and then."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        super().step(learner, handle, state)
        state.kl = learner.xp.sum(state.ys) * 0.5
        if learner.runs.attempt % 2:
            state.odd = learner.runs.attempt * 1.0


def test_a_string_averages_a_step_value_where_there_is_one() -> None:
    learner = toy_learner(
        [lc.Metrics("kl", "odd")], phases=[TwoLosses(), lc.ValidationPhase()], data=([BATCH] * 4,) * 2
    )
    learner.fit(1)
    assert learner.history["kl"] == [2.0] and learner.history["odd"] == [2.0]
    assert learner.history.steps("odd") == [1.0, 3.0]
    assert list(learner.history) == ["loss", "kl", "odd", "val_loss"]


def test_a_metric_for_one_kind_of_phase_is_left_out_elsewhere() -> None:
    only = lc.Metric(lc.losses.mae, "mae", phase=lc.AbstractValidationPhase)
    learner = toy_learner([lc.Metrics(only)], data=([BATCH], [BATCH]))
    learner.fit(2)
    assert list(learner.history) == ["loss", "val_loss", "val_mae"] and len(learner.history["val_mae"]) == 2


def test_a_metric_over_the_epoch_sees_everything_at_once() -> None:
    seen: list[tuple[Any, ...]] = []

    def largest(y_pred: Any, ys: Any) -> float:
        seen.append((y_pred.shape, ys.shape))
        return float(ys.max())

    data = [(np.ones((n, 1)), np.full((n, 1), float(n))) for n in (4, 2, 5)]
    learner = toy_learner([lc.Metrics(lc.Metric(largest, over="epoch"))], data=(data, None))
    learner.fit(2)
    assert seen == [((11, 1), (11, 1))] * 2 and learner.history["largest"] == [5.0, 5.0]


class Spread:
    """An object that accumulates, in the way of torchmetrics."""

    def __init__(self) -> None:
        self.resets = 0
        self.values: list[float] = []

    def update(self, y_pred: Any, ys: Any) -> None:
        self.values += np.asarray(ys).ravel().tolist()

    def compute(self) -> dict[str, float]:
        return {"low": min(self.values), "high": max(self.values)}

    def reset(self) -> None:
        self.resets += 1
        self.values = []


class KerasLike:
    """An object that accumulates, in the way of Keras: labels first."""

    def __init__(self) -> None:
        self.first: list[float] = []

    def update_state(self, y_true: Any, y_pred: Any) -> None:
        self.first.append(float(np.mean(y_true)))

    def result(self) -> float:
        return self.first[-1]

    def reset_state(self) -> None:
        self.first = []


KerasLike.__module__ = "keras.metrics"


def test_objects_that_accumulate() -> None:
    spread, keras = Spread(), KerasLike()
    data = [(np.ones((2, 1)), np.full((2, 1), target)) for target in (3.0, 7.0)]
    learner = toy_learner([lc.Metrics(spread, lc.Metric(keras, "mean"))], data=(data, None))
    learner.fit(2)
    assert (learner.history["low"], learner.history["high"]) == ([3.0, 3.0], [7.0, 7.0])
    assert spread.resets == 2 and learner.history["mean"] == [7.0, 7.0]


def test_functions_of_scikit_learn_get_the_labels_first() -> None:
    from sklearn.metrics import precision_score

    ys, xs = np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 0.0])
    metric = lc.Metric(precision_score, args=("xs", "ys"))  # 1 of the 1 predicted is right; 1 of the 3 labels is found
    learner = toy_learner([lc.Metrics(metric)], data=([(xs, ys)], None))
    learner.fit(1)
    assert learner.history["precision_score"] == [1.0]


def first(ys: Any, y_pred: Any) -> Any:
    return ys[0]


def labels_first(y_true: Any, y_pred: Any) -> Any:
    return y_true[0]


@pytest.mark.parametrize(
    ("fn", "swapped"),
    [
        (r2_score, True),
        (functools.partial(r2_score, multioutput="variance_weighted"), True),
        (functools.wraps(r2_score)(lambda y_pred, ys: ys[0]), False),
        (labels_first, True),
        (functools.partial(labels_first), True),
        (first, False),
        (np.hypot, False),
    ],
    ids=str,
)
def test_who_gets_the_labels_first(fn: Any, swapped: bool) -> None:
    """What scikit-learn made, also behind a partial, and what says so by its parameters; not what quotes it."""
    assert (predictions_first(fn) is not fn) is swapped
    ys, y_pred = np.array([3.0, -0.5, 2.0, 7.0]), np.array([2.5, 0.0, 2.0, 8.0])
    expected = fn(ys, y_pred) if swapped else fn(y_pred, ys)
    np.testing.assert_equal(lc.Metric(fn, "m").fn(y_pred, ys), expected)
    np.testing.assert_equal(lc.Metric(fn, "m", args=("ys", "y_pred")).fn(y_pred, ys), fn(y_pred, ys))


def test_a_batch_without_samples_does_not_count() -> None:
    batch, empty = (np.ones((4, 1)), np.ones((4, 1))), (np.ones((0, 1)), np.ones((0, 1)))
    learner = toy_learner(data=([batch], [batch, empty]))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing
        learner.fit(1)
    assert learner.history["val_loss"] == pytest.approx([0.64])


def test_pending_values_are_fetched_in_bulk_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, calm = toy_learner(steps=20), toy_learner(steps=20)
    calm.fit(2)
    monkeypatch.setattr(metrics_module, "_FLUSH", 3)
    learner.fit(2)
    assert learner.history["loss"] == pytest.approx(calm.history["loss"], rel=1e-14)
    assert learner.history.steps("loss") == calm.history.steps("loss")


def test_a_skipped_step_and_a_cancelled_epoch_have_no_value() -> None:
    count = 0

    def skip(learner: Any, phase: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise lc.CancelStepException("skip")
        if count == 9:
            raise lc.CancelEpochException("enough")

    learner = toy_learner([lc.FunctionCallback(skip, lc.BackwardEnd)], steps=4)
    learner.fit(3)
    assert len(learner.history["loss"]) == 2
    assert learner.history["loss"][0] == pytest.approx((1 + 0.8**2 + 0.8**4) / 3, rel=1e-12)
    assert len(learner.history.steps("loss")) == 7


def test_the_loss_is_always_first_and_may_be_renamed() -> None:
    assert [metric.name for metric in lc.Metrics(lc.accuracy).metrics] == ["loss", "accuracy"]
    assert [metric.name for metric in lc.Metrics(lc.accuracy, lc.Loss("nll")).metrics] == ["nll", "accuracy"]


@given(size=st.integers(1, 9), pieces=st.lists(st.lists(st.floats(allow_nan=False), max_size=25), max_size=6))
def test_a_ring_keeps_the_latest_values(size: int, pieces: list[list[float]]) -> None:
    ring, everything = Ring(size), [value for piece in pieces for value in piece]
    for piece in pieces:
        ring.extend(np.array(piece))
    assert ring.latest().tolist() == everything[-size:] and ring.count == len(everything)


# ---- printers


class Terminal:
    """A real pseudo-terminal: what is written to ``file`` is collected by a thread until it is closed."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8", errors="surrogatepass")
        self._read = b""
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        while True:
            try:
                self._read += os.read(self._master, 65536)
            except OSError:  # the other end was closed
                return

    def close(self) -> str:
        if not self.file.closed:
            self.file.close()
            self._thread.join(10)
            assert not self._thread.is_alive()
            os.close(self._master)
        return self._read.decode("utf-8", errors="surrogatepass")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    found = Terminal()
    yield found
    found.close()


@contextmanager
def clock(monkeypatch: pytest.MonkeyPatch, tick: float) -> Iterator[list[float]]:
    """Time goes on by ``tick`` seconds whenever somebody looks."""
    now = [100.0]

    def look() -> float:
        now[0] += tick
        return now[0]

    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", look)
        yield now


def test_a_bar_on_a_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn at most ten times a second, and as many transfers of the loss: 1,000 steps in 10 seconds."""
    assert terminal.file.isatty()
    bar = lc.ProgressPrinter(file=terminal.file)
    learner = toy_learner([bar], steps=1000, default_callbacks=False)
    with clock(monkeypatch, 0.01):
        learner.fit(1)
    text = terminal.close()
    draws = text.count("training")
    assert 90 <= draws <= 102 and learner.backend.transfers <= 101
    assert "━" in text and re.search(r"\b\d+/1000", text) and "loss" in text
    assert text.endswith("\x1b[2K"), "the bar is gone when the epoch is over"


def test_a_bar_is_closed_whatever_happens(terminal: Terminal) -> None:
    def fail(learner: Any, phase: Any) -> None:
        raise KeyboardInterrupt

    bar = lc.ProgressPrinter(file=terminal.file)
    learner = toy_learner([bar, lc.FunctionCallback(fail, lc.LossBegin)])
    with pytest.raises(KeyboardInterrupt):
        learner.fit(1)
    assert bar._bar is None
    text = terminal.close()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is shown again"


def test_a_line_for_each_round_in_a_pipe() -> None:
    out = io.StringIO()
    learner = toy_learner([lc.ProgressPrinter(file=out)], data=([BATCH] * 3, [BATCH] * 2))
    learner.fit(2)
    learner.fit(1)
    learner.run_epoch(lc.TrainingPhase())
    lines = re.sub(r"\d+\.\d s", "0.0 s", out.getvalue()).splitlines()
    both = "training 3 steps 0.0 s, validation 2 steps 0.0 s"
    assert lines[:3] == [f"epoch 1: {both}", f"epoch 2: {both}", f"epoch 3: {both}"]
    assert lines[3] == "epoch 4: training 3 steps 0.0 s" and len(lines) == 4


def test_the_line_of_a_round_comes_before_its_row() -> None:
    out = io.StringIO()
    learner = toy_learner([lc.MetricsPrinter(file=out), lc.ProgressPrinter(file=out)], steps=1)
    learner.fit(2)
    starts = [line.split()[0] for line in out.getvalue().splitlines()]
    assert starts == ["epoch", "epoch", "1", "epoch", "2"]
    assert "epoch 1: training 1 steps" in out.getvalue().splitlines()[0]


def test_a_stopped_round_says_so() -> None:
    for action, word in ((lc.CancelEpochException("e"), "cancelled"), (lc.CancelFittingException("f"), "cancelled")):
        out = io.StringIO()

        def act(learner: Any, phase: Any, action: BaseException = action) -> None:
            raise action

        quit_ = lc.FunctionCallback(act, lc.LossBegin, lc.TrainingPhase)
        toy_learner([lc.ProgressPrinter(file=out), quit_], data=([BATCH] * 3, [BATCH] * 2)).fit(1)
        assert re.search(rf"^epoch 1: training 0 steps \S+ s {word}", out.getvalue())


def test_quiet_printers_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    toy_learner([lc.ProgressPrinter(quiet=True), lc.MetricsPrinter(quiet=True)]).fit(2)
    assert capsys.readouterr() == ("", "")


def test_the_default_is_standard_output_at_the_time_of_printing(capsys: pytest.CaptureFixture[str]) -> None:
    learner = toy_learner(quiet=False, steps=1)
    learner.fit(1)
    out = capsys.readouterr().out
    assert "epoch 1: training 1 steps" in out and "loss" in out


def test_a_table_of_metrics() -> None:
    out = io.StringIO()
    late = lc.Metric("odd")
    learner = toy_learner([lc.MetricsPrinter(file=out), lc.Metrics(late)], phases=[TwoLosses()], steps=1)
    learner.fit(3)
    assert out.getvalue().splitlines() == [
        " epoch     loss",
        "     1        1",
        " epoch     loss      odd",
        "     2     0.64        1",
        "     3   0.4096        -",
    ]


def test_a_missing_value_is_a_dash() -> None:
    out = io.StringIO()

    def skip(learner: Any, phase: Any) -> None:
        raise lc.CancelStepException("skip")

    skipper = lc.FunctionCallback(skip, lc.StepBegin, lc.TrainingPhase)
    learner = toy_learner([lc.MetricsPrinter(file=out), skipper], data=([BATCH], [BATCH]))
    learner.fit(1)
    assert out.getvalue().splitlines() == [" epoch     loss val_loss", "     1        -        1"]


class Named(lc.TrainingPhase):
    """A phase whose name is somebody's idea of a joke."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name


@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
@pytest.mark.parametrize("where", ["pipe", "terminal"])
def test_nasty_names_on_the_console(name: str, where: str, terminal: Terminal) -> None:
    out = io.StringIO()
    file = out if where == "pipe" else terminal.file
    metrics = lc.Metrics(lc.Metric(lc.losses.mae, name=name))
    printers = [lc.ProgressPrinter(file=file), lc.MetricsPrinter(file=file)]
    toy_learner([*printers, metrics], phases=[Named(name)], steps=2).fit(2)
    text = terminal.close() + out.getvalue()
    own = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n", "", text)  # the terminal's own sequences
    assert not [c for c in own if c != " " and clean(c) != c]
    assert "\x1b[2Jb" not in text and "\x1b]0" not in text
    if where == "pipe":
        assert len(text.splitlines()) == 2 + 3, "a line a round, a header and a row a round"
        assert clean(name)[:20] in text
    assert max(map(len, text.splitlines())) < 20_000


@given(st.text(st.characters(), max_size=100))
@example("\u202e")
def test_clean_text_has_no_control_characters(text: str) -> None:
    shown = clean(text)
    assert len(shown) <= 80 and shown == clean(shown)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]", shown)
    shown.encode("utf-8")


# ---- StopOnNaNLoss


def spoiled(at: int, value: float, steps: int = 6) -> list[Any]:
    """Batches of which one makes the loss not finite."""
    return [(BATCH[0], np.full((4, 1), value if n == at else 1.0)) for n in range(steps)]


def first_step_in(reason: str) -> int:
    found = re.search(r"\bstep (\d+)\b", reason)
    assert found, reason
    return int(found.group(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("at", [0, 3])
def test_a_loss_that_is_not_finite_stops_the_fit_before_it_reaches_a_weight(value: float, at: int) -> None:
    trace = Trace()
    learner = toy_learner([trace], data=(spoiled(at, value), [BATCH]), optimizer=lc.Momentum(0.1))
    calm = toy_learner(steps=max(at, 1), optimizer=lc.Momentum(0.1))
    result = learner.fit(3)
    assert (result.status, result.stopped_by) == ("stopped", "StopOnNaNLoss")
    assert "phase 'training'" in result.reason and first_step_in(result.reason) == at + 1
    if at:
        calm.fit(1)
    np.testing.assert_array_equal(learner.params.value["w"], calm.params.value["w"])
    assert trace.events[-3:] == [
        ("StepEnd", "training", "completed"),
        ("EpochEnd", "training", "cancelled"),
        ("FitEnd", None, "cancelled"),
    ]
    assert learner.shared.history["training"].epochs == 0


def test_later_updates_are_blocked_until_the_host_looks() -> None:
    """On an accelerator the host sees the mark some steps later: until then nothing may be updated."""
    updated: list[bool] = []
    watch = lc.FunctionCallback(
        lambda learner, phase: updated.append(bool(learner.step.updated)), lc.StepEnd, reads=("step.updated",)
    )
    learner = toy_learner([watch], data=(spoiled(1, float("nan"), 8), None))
    learner.number = lambda value: value  # as on an accelerator, where a look is a transfer
    learner.is_ready = lambda array: learner.epoch is not None and learner.epoch.attempted >= 6
    result = learner.fit(1)
    assert result.status == "stopped" and first_step_in(result.reason) == 2, "the first bad step, not where it was seen"
    assert updated == [True] + [False] * 5
    np.testing.assert_allclose(learner.params.value["w"], [0.2], rtol=1e-15)


def test_a_new_fit_gets_a_new_chance() -> None:
    learner = toy_learner(data=(spoiled(2, float("nan")), None))
    assert learner.fit(1).status == "stopped"
    learner.data["training"] = [BATCH] * 3
    assert learner.fit(1).status == "completed"
    assert learner.shared.history["training"].epochs == 1


def test_the_guard_leaves_validation_alone() -> None:
    learner = toy_learner(data=([BATCH], spoiled(0, float("nan"), 1)))
    assert learner.fit(2).status == "completed"
    assert np.isnan(np.array(learner.history["val_loss"], float)).all()


# ---- FunctionCallback, throttle, ToDevice


def test_a_function_is_guarded_like_any_callback() -> None:
    def change(learner: Any, phase: Any) -> None:
        learner.step.grads = {"w": learner.step.grads["w"] * 0.0}

    frozen = toy_learner([lc.FunctionCallback(change, lc.BackwardEnd, lc.TrainingPhase, writes=("step.grads",))])
    frozen.fit(1)
    assert frozen.params.value["w"].item() == 0.0
    with pytest.raises(AccessError, match=r"writes=\('step\.grads',\)"):
        toy_learner([lc.FunctionCallback(change, lc.BackwardEnd, reads=("step.grads",))]).fit(1)
    traced = lc.FunctionCallback(change, lc.BackwardEnd, writes=("step.grads",), traced=True)
    learner = toy_learner([traced])
    learner.fit(1)
    assert learner.params.value["w"].item() == 0.0


class Notes(lc.Callback):
    """Notes the number of every step and epoch it hears."""

    reads = ("shared.history",)
    requires = (lc.Recorder,)

    def __init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self.epochs: list[str] = []

    @lc.on(lc.StepEnd)
    def step(self, learner: Any, phase: Any) -> None:
        self.steps.append((phase.name, learner.shared.history[phase].steps))

    @lc.on(lc.EpochEnd)
    def epoch(self, learner: Any, phase: Any, event: lc.EpochEnd) -> None:
        self.epochs.append(f"{phase.name} {event.outcome}")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": len(self.steps)}


def test_every_nth_event_of_each_phase() -> None:
    """Validation steps do not advance the count of training steps, and the count goes on from fit to fit."""
    notes = Notes()
    learner = toy_learner([lc.throttle(notes, lc.StepEnd, every=3)], data=([BATCH] * 4, [BATCH] * 2))
    learner.fit(2)
    learner.fit(1)
    assert [n for phase, n in notes.steps if phase == "training"] == [3, 6, 9, 12]
    assert [n for phase, n in notes.steps if phase == "validation"] == [3, 6]
    assert notes.epochs == ["training completed", "validation completed"] * 3, "other events come as before"


def test_at_most_once_in_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that never jumps; the first of each fit and phase is always heard."""
    notes = Notes()
    learner = toy_learner([lc.throttle(notes, lc.StepEnd, seconds=1.0)], data=([BATCH] * 10, [BATCH] * 2))
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the wall clock may jump"))
    with clock(monkeypatch, 0.25):
        learner.fit(1)
    assert [n for phase, n in notes.steps if phase == "training"] == [1, 5, 9]
    assert [n for phase, n in notes.steps if phase == "validation"] == [1]
    with clock(monkeypatch, 0.0):
        learner.fit(1)
    assert notes.steps[-2:] == [("training", 11), ("validation", 3)]


@pytest.mark.parametrize("event", [lc.FitBegin, lc.FitEnd, lc.EpochBegin, lc.LossBegin, lc.Event])
def test_any_event_can_be_throttled(event: type[lc.Event]) -> None:
    heard: list[Any] = []
    callback = lc.FunctionCallback(lambda learner, phase: heard.append(phase), event)
    learner = toy_learner([lc.throttle(callback, event, every=2)], steps=4)
    for _ in range(4):
        learner.fit(1)
    whole = {lc.FitBegin: 4, lc.FitEnd: 4, lc.EpochBegin: 4, lc.LossBegin: 16, lc.Event: 4 * (2 + 2 + 4 * 5)}
    assert len(heard) == whole[event] // 2


def test_a_throttled_callback_keeps_all_it_declares() -> None:
    notes = Notes()
    wrapped = lc.throttle(lc.throttle(notes, lc.StepEnd, every=2), lc.EpochEnd, every=2)
    assert wrapped.identity() is notes and wrapped.reads == notes.reads and wrapped.requires == (lc.Recorder,)
    learner = toy_learner([wrapped], steps=4)
    assert learner.callbacks.get(Notes) is notes
    kinds = [type(callback.identity()) for callback in learner.callbacks]
    assert kinds.index(lc.Recorder) < kinds.index(Notes)
    learner.fit(4)
    assert [n for _, n in notes.steps] == [2, 4, 6, 8, 10, 12, 14, 16] and len(notes.epochs) == 2
    with pytest.raises(CallbackError, match="requires Recorder"):
        toy_learner([lc.throttle(Notes(), lc.StepEnd, every=2)], default_callbacks=False, quiet=False)

    class Peeks(Notes):
        @lc.on(lc.StepEnd)
        def peek(self, learner: Any, phase: Any) -> None:
            _ = learner.step.xs

    with pytest.raises(AccessError, match=r"Peeks reads step\.xs.*Add to class Peeks.*test_callbacks\.py"):
        toy_learner([lc.throttle(Peeks(), lc.StepEnd, every=2)]).fit(1)


def test_a_throttled_callback_keeps_its_state_and_its_opinion() -> None:
    class Opinion(lc.Callback):
        writes = ("step.extra",)

        @lc.on(lc.StepEnd)
        def hear(self, learner: Any, phase: Any) -> None: ...

        def resolve_conflict(self, other: lc.Callback) -> Any:
            return lc.RunFirst(other)

    class Second(lc.Callback):
        writes = ("step.extra",)

    wrapped, second = lc.throttle(Opinion(), lc.StepEnd, every=2), Second()
    learner = toy_learner([wrapped, second], default_callbacks=False, quiet=False)
    assert list(learner.callbacks) == [second, wrapped]
    notes = lc.throttle(Notes(), lc.StepEnd, every=4)
    toy_learner([notes], steps=6).fit(1)
    assert notes.state_dict() == {"counts": {"step/training": 2}, "callback": {"steps": 1}}
    resumed = Notes()
    again = lc.throttle(resumed, lc.StepEnd, every=4)
    again.load_state_dict(notes.state_dict())
    toy_learner([again], steps=6).fit(1)
    assert [n for _, n in resumed.steps] == [2, 6]


def test_models_move_once() -> None:
    device = lc.ToDevice("cpu")
    learner = toy_learner(optimizer=lc.Momentum(0.1), data=([BATCH], [BATCH]))
    calm = toy_learner(optimizer=lc.Momentum(0.1), data=([BATCH], [BATCH]))
    moves: list[Any] = []
    move: Callable[[Any], None] = learner.backend.to_device

    def counted(device: Any) -> None:
        moves.append(device)
        move(device)

    learner.backend.to_device = counted  # type: ignore[method-assign]
    learner.fit(1)
    learner.callbacks.add(device)
    learner.fit(2)
    calm.fit(3)
    assert moves == ["cpu"]
    np.testing.assert_array_equal(learner.params.value["w"], calm.params.value["w"])
    with pytest.raises(BackendError, match="'cuda:0'"):
        learner.callbacks.replace(device, lc.ToDevice("cuda:0"))
    assert device in list(learner.callbacks) and learner.fit(1).status == "completed"


def test_a_callback_may_hear_events_on_a_condition() -> None:
    heard: list[str] = []
    note = lc.FunctionCallback(lambda learner, phase: heard.append(f"{phase.name} {learner.attempt}"), lc.StepEnd)
    wrapped = lc.throttle(note, lc.StepEnd, when=lambda phase: phase.name == "validation")
    learner = toy_learner([wrapped], data=([BATCH] * 3, [BATCH] * 2))
    learner.fit(1)
    assert heard == ["validation 0", "validation 1"]
    assert learner.callbacks.get(lc.FunctionCallback) is note
    wrong: Any
    for wrong in ({}, {"when": 1}, {"when": bool, "every": 2}):
        with pytest.raises(lc.errors.CallbackError, match="when"):
            lc.throttle(note, lc.StepEnd, **wrong)


def test_garbage_is_collected_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("gc.collect", lambda: calls.append(1))
    toy_learner([lc.GarbageCollect(every=2)], data=([BATCH] * 5, None)).fit(2)
    assert len(calls) == 5 + 2
