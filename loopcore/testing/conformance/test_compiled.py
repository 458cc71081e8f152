"""Steps that are compiled: how many programs there are, what they depend on, and what cannot be compiled."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CarryError, TraceError
from loopcore.testing.conformance.subject import Subject

XS = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
YS = np.random.default_rng(1).normal(size=(6, 2)).astype("float32")
WEIGHTS = {"weight": np.ones((3, 2)), "bias": np.zeros(2)}


def make(backend: Subject, **options: Any) -> lc.Learner:
    settings: dict[str, Any] = {"optimizer": lc.Adam(0.1), "default_callbacks": False, **options}
    return lc.Learner(backend.within("float32").linear(WEIGHTS), lc.losses.mse, **settings)


def traces(learner: Any) -> int:
    return int(learner.backend.traces)


# -- one program per phase and shape


def test_one_program_for_each_phase_and_shape(compiling: Subject) -> None:
    ragged = [(XS, YS)] * 3 + [(XS[:4], YS[:4])]
    quiet = [lc.ProgressPrinter(quiet=True)]
    learner = make(compiling, data=(ragged, [(XS, YS)]), default_callbacks=True, callbacks=quiet)
    for number in range(10):
        learner.hyper.learning_rate = 0.1 / (number + 1)
        learner.fit(1)
    assert traces(learner) == 3
    assert len(learner.history["loss"]) == 10


def test_the_plan_follows_who_listens(compiling: Subject) -> None:
    learner = make(compiling)
    phase = lc.TrainingPhase()
    learner.run_step(phase, (XS, YS))
    assert learner.runs.runner_of(phase).plan.kind == "fused" and traces(learner) == 1
    listener = lc.FunctionCallback(lambda learner, phase: None, lc.BackwardEnd)
    learner.callbacks.add(listener)
    learner.run_step(phase, (XS, YS))
    assert learner.runs.runner_of(phase).plan.kind == "split"


def test_no_transfer_within_a_step_with_the_default_callbacks(compiling: Subject) -> None:
    guard = lc.StopOnNaNLoss()
    callbacks = [guard, lc.Metrics(lc.losses.mae), lc.ProgressPrinter(quiet=True)]
    learner = make(compiling, default_callbacks=True, callbacks=callbacks)
    phase = lc.TrainingPhase()
    with lc.run_epoch(learner, phase):
        learner.run_step(phase, (XS, YS))
        guard._next = float("inf")  # it may look ten times a second
        before = learner.backend.transfers
        for _ in range(20):
            learner.run_step(phase, (XS, YS))
        assert learner.backend.transfers == before


# -- what a program depends on


class Scaled(lc.TrainingPhase):
    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.loss = self.factor * learner.loss_fn(learner.model(state.xs), state.ys)
            return state.loss

        learner.minimize(objective)


def losses(learner: lc.Learner, phase: Any, factors: Any) -> list[float]:
    values: list[float] = []
    for factor in factors:
        phase.factor = factor
        values.append(float(learner.run_step(phase, (XS, YS)).loss))
    return values


def test_a_python_value_of_the_phase_that_changed_is_another_program(
    compiling: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    learner, phase = make(compiling, optimizer=lc.SGD(0.0)), Scaled(1)
    with caplog.at_level(logging.INFO, "loopcore"):
        single, double, repeat = losses(learner, phase, (1, 2, 1))
    assert double == pytest.approx(2 * single, rel=1e-6) and repeat == single
    assert traces(learner) == 2
    assert "compiled again: an attribute of the phase changed" in caplog.text


def test_an_array_of_the_phase_is_an_input(compiling: Subject) -> None:
    learner, phase = make(compiling, optimizer=lc.SGD(0.0)), Scaled(1)
    single, double = losses(learner, phase, map(learner.backend.convert, np.array([1, 2], "float32")))
    assert double == pytest.approx(2 * single, rel=1e-6) and traces(learner) == 1


def test_a_value_that_never_stops_changing_is_a_warning(compiling: Subject) -> None:
    learner, phase = make(compiling, optimizer=lc.SGD(0.0)), Scaled(1)
    with pytest.warns(UserWarning, match="were compiled 8 times, because an attribute of the phase changed"):
        losses(learner, phase, range(1, 12))


def test_scalars_of_shared_that_the_body_read_are_checked(compiling: Subject) -> None:
    class Reads(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.shared.factor * learner.xp.sum(state.xs)

    learner, phase = make(compiling), Reads()
    learner.shared.factor, learner.shared.other = 2, 1
    first = float(learner.run_step(phase, {"xs": XS}).loss)
    learner.shared.other = 5
    assert float(learner.run_step(phase, {"xs": XS}).loss) == first and traces(learner) == 1
    learner.shared.factor = 3
    assert float(learner.run_step(phase, {"xs": XS}).loss) == pytest.approx(1.5 * first, rel=1e-6)
    assert traces(learner) == 2


# -- what cannot be compiled


def test_reading_a_value_in_a_body_names_the_line(compiling: Subject) -> None:
    class Peeks(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            if learner.xp.sum(state.xs) > 0:  # the line that is named
                state.loss = learner.xp.sum(state.xs)

    learner = make(compiling)
    before = learner.export_weights()
    with pytest.raises(TraceError) as excinfo:
        learner.run_step(Peeks(), (XS, YS))
    message = str(excinfo.value)
    assert "test_compiled.py" in message and "# the line that is named" in message
    assert "compile = False on the phase" in message
    np.testing.assert_equal(learner.export_weights(), before)
    learner.run_step(lc.TrainingPhase(), (XS, YS))


def test_a_metric_that_is_no_array_code_says_to_run_it_on_the_host(compiling: Subject) -> None:
    def late(y_pred: Any, ys: Any) -> Any:
        return float(y_pred[0, 0])  # the line that is named

    def learner(metric: Any) -> lc.Learner:
        return make(compiling, callbacks=[lc.Metrics(metric), lc.Recorder()], data=([(XS, YS)], None))

    with pytest.raises(TraceError, match=r"(?s)# the line that is named.*metric 'late'.*Metric\(fn, host=True\)"):
        learner(late).fit(1)
    fitted = learner(lc.Metric(late, host=True))
    fitted.fit(1)
    assert fitted.history["late"] == [pytest.approx(XS[0].sum(), rel=1e-5)]


def test_it_runs_where_the_phase_says_so(compiling: Subject) -> None:
    class Peeks(lc.ValidationPhase):
        compile = False

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            total = learner.xp.sum(state.xs)
            state.loss = total if float(total) > 0 else -total

    assert float(make(compiling).run_step(Peeks(), (XS, YS)).loss) == pytest.approx(abs(XS.sum()), rel=1e-5)


def test_a_body_that_closes_over_an_array_is_refused(compiling: Subject) -> None:
    learner = make(compiling)
    factor = learner.backend.convert(np.float32(1))

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.loss = factor * learner.xp.sum(state.xs)

    with pytest.raises(TraceError, match=r"uses the array 'factor' from outside.*factor=factor"):
        lc.run_step(body, learner, lc.ValidationPhase(), xs=XS)


# -- cuts


def test_a_throttled_listener_cuts_only_the_steps_it_hears(compiling: Subject) -> None:
    attempts: list[int] = []
    note = lc.FunctionCallback(lambda learner, phase: attempts.append(learner.attempt), lc.BackwardEnd)
    learner, phase = make(compiling, callbacks=[lc.throttle(note, lc.BackwardEnd, every=4)]), lc.TrainingPhase()
    for _ in range(3):
        learner.run_step(phase, (XS, YS))
    assert traces(learner) == 1, "one program as long as it sleeps"
    for _ in range(9):
        learner.run_step(phase, (XS, YS))
    assert attempts == [3, 7, 11] and traces(learner) <= 3, "and at most two pieces for the steps it hears"


# -- packed words


class Counts(lc.Callback):
    """Counts on the device, and lets the host look and set."""

    writes = ("shared.count",)
    carries = ("shared.count",)

    def setup(self, learner: Any) -> None:
        learner.shared.count = 0

    @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase, traced=True)
    def count(self, learner: Any, phase: Any) -> None:
        learner.shared.count = learner.shared.count + 1


def test_a_carried_scalar_goes_on_from_what_the_host_sees_and_sets(compiling: Subject) -> None:
    learner, phase = make(compiling, callbacks=[Counts()]), lc.TrainingPhase()
    for _ in range(3):
        learner.run_step(phase, (XS, YS))
    assert int(learner.shared.count) == 3 and int(learner.shared.count) == 3
    learner.run_step(phase, (XS, YS))
    learner.shared.count = 10
    learner.run_step(phase, (XS, YS))
    learner.run_step(lc.ValidationPhase(), (XS, YS))
    assert int(learner.shared.count) == 11
    learner.run_step(phase, (XS, YS))
    assert int(learner.shared.count) == 12 and traces(learner) == 2


def test_a_carried_scalar_keeps_its_dtype(compiling: Subject) -> None:
    class Halves(Counts):
        @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase, traced=True)
        def count(self, learner: Any, phase: Any) -> None:
            learner.shared.count = learner.shared.count / 2

    with pytest.raises(CarryError, match=r"shared\.count is carried, but changed .* from int32\[\] to float\d+\[\]"):
        make(compiling, callbacks=[Halves()]).run_step(lc.TrainingPhase(), (XS, YS))


def test_a_carried_scalar_goes_with_the_callback_that_wrote_it(compiling: Subject) -> None:
    counts, phase = Counts(), lc.TrainingPhase()
    learner = make(compiling, callbacks=[counts])
    learner.run_step(phase, (XS, YS))
    reader = lc.FunctionCallback(lambda learner, phase: None, lc.StepEnd, reads=("shared.count",))
    learner.callbacks.add(reader)
    learner.run_step(phase, (XS, YS))
    assert int(learner.shared.count) == 2
    learner.run_step(phase, (XS, YS))
    learner.callbacks.remove(reader)
    learner.callbacks.remove(counts)
    assert not hasattr(learner.shared, "count")
    learner.run_step(phase, (XS, YS))


def test_two_phases_share_a_carried_scalar(compiling: Subject) -> None:
    class Other(lc.TrainingPhase):
        @property
        def name(self) -> str:
            return "other"

    learner, first, second = make(compiling, callbacks=[Counts()]), lc.TrainingPhase(), Other()
    for phase in (first, first, second, first, second, second):
        learner.run_step(phase, (XS, YS))
    assert int(learner.shared.count) == 6


def test_what_was_left_for_later_is_fetched_later(compiling: Subject) -> None:
    class Leaves(lc.Callback):
        leaves = ("step.left",)

        def __init__(self) -> None:
            self.values: list[Any] = []

        @lc.on(lc.StepEnd, traced=True)
        def leave(self, learner: Any, phase: Any) -> None:
            learner.step.left = learner.xp.stack([learner.xp.sum(learner.step.xs), learner.step.loss])

        @lc.on(lc.StepEnd)
        def take(self, learner: Any, phase: Any) -> None:
            self.values += learner.collect("left")

        traced_reads = ("step.xs", "step.loss")

    callback = Leaves()
    learner = make(compiling, callbacks=[callback])
    states = [learner.run_step(lc.TrainingPhase(), (XS * n, YS)) for n in (1, 2)]
    for n, (pending, state) in enumerate(zip(callback.values, states, strict=True), 1):
        np.testing.assert_allclose(np.asarray(pending), [XS.sum() * n, float(state.loss)], rtol=1e-5)
    assert set(vars(states[0])) == {"loss"}


def test_a_callback_collects_only_what_it_leaves(compiling: Subject) -> None:
    nosy = lc.FunctionCallback(lambda learner, phase: learner.collect("loss"), lc.StepEnd)
    with pytest.raises(lc.AccessError, match=r'collects step\.loss.*leaves = \("step\.loss",\)'):
        make(compiling, callbacks=[nosy]).run_step(lc.TrainingPhase(), (XS, YS))


# -- control flow: a trace runs the Python of a body once


def test_python_decides_while_a_body_is_traced(compiling: Subject) -> None:
    """Loops over ranges, lists and dicts, conditions on shapes, attributes and None, comprehensions, early returns."""

    class Chooses(lc.ValidationPhase):
        factors = (1.0, 2.0, 0.5)

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            total, count = learner.xp.zeros(()), 0
            for factor in self.factors:
                if factor == 0.5:
                    continue
                total = total + factor * learner.xp.sum(state.xs)
                count += 1
            while count < 4:
                total, count = total + 1.0, count + 1
            parts = {name: value * 2.0 for name, value in {"a": total, "b": total}.items() if name != "b"}
            assert count == 4 and state.xs.shape[0] == 6
            state.loss = parts["a"] if state.ys is not None and state.xs.ndim == 2 else None
            return

    learner = make(compiling)
    expected = 2 * (3 * XS.sum() + 2)
    for compile in (True, False):
        phase = Chooses()
        phase.compile = compile
        assert float(learner.run_step(phase, (XS, YS)).loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["if", "while", "and", "not", "range", "float", "int", "format", "ternary"])
def test_an_array_cannot_decide(compiling: Subject, kind: str) -> None:
    """Nothing rewrites Python behind the user's back: what depends on a value of an array is an error everywhere."""

    class Asks(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            value = learner.xp.max(state.xs)
            count = learner.xp.astype(value, learner.xp.int32)
            match kind:
                case "if":
                    if value > 0:
                        value = -value
                case "while":
                    while value > 0:
                        value = value - 1.0
                case "and":
                    value = (value > 0) and value
                case "not":
                    value = 1.0 if not value > 0 else value
                case "range":
                    value = sum((value for _ in range(count)), value)
                case "float":
                    value = value * float(value)
                case "int":
                    value = value * int(count)
                case "format":
                    print(f"{value:.3f}", end="")
                case _:
                    value = value if value > 0 else -value
            state.loss = value

    with pytest.raises(TraceError, match=r"test_compiled\.py.*compile = False on the phase"):
        make(compiling).run_step(Asks(), (XS, YS))
    phase = Asks()
    phase.compile = False
    assert np.isfinite(float(make(compiling).run_step(phase, (XS, YS)).loss))


# -- what is baked in


TABLE = np.arange(6.0)


class Bakes(lc.TrainingPhase):
    """Reaches arrays in all ways there are."""

    def __init__(self) -> None:
        self.scale = np.ones(2)  # an array: it is passed to the program
        self.settings = {"deep": [np.zeros(3), "text"], "number": 1}

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.y_pred = learner.model(state.xs) * learner.xp.sum(state.xs * 0 + TABLE[0])
            state.loss = learner.loss_fn(state.y_pred, state.ys)
            return state.loss

        learner.minimize(objective)


def test_explain_lists_the_arrays_that_are_baked_in(compiling: Subject) -> None:
    weights = np.ones((6, 2), "float32")

    def weigh(y_pred: Any) -> Any:
        return y_pred * weights

    def weighted(y_pred: Any, ys: Any) -> Any:
        return lc.losses.mse(weigh(y_pred), ys)

    def level(y_pred: Any, ys: Any) -> Any:
        return (y_pred * weights[0]).sum()

    class Adds(lc.Callback):
        traced_reads = ("step.loss",)
        writes = ("step.more",)

        def __init__(self) -> None:
            self.noise = np.ones(4)

        @lc.on(lc.StepEnd, lc.AbstractTrainingPhase, traced=True)
        def add(self, learner: Any, phase: Any) -> None:
            learner.step.more = learner.step.loss + self.noise[0]

    model = compiling.within("float32").linear(WEIGHTS)
    callbacks = [lc.Metrics(level), Adds(), lc.ProgressPrinter(quiet=True), lc.MetricsPrinter(quiet=True)]
    learner = lc.Learner(model, weighted, lc.SGD(0.1), phases=[Bakes()], callbacks=callbacks)
    vars(learner.callbacks.get(lc.StopOnNaNLoss))["_mark"] = np.ones(1)  # a private one is read by no program
    text = learner.explain()
    lines = sorted(line.partition(": ")[2] for line in text.splitlines() if "kept as it is now" in line)
    assert len(lines) == 4
    for line, (start, end) in zip(
        lines,
        [
            ("Adds.noise", "(float64[4])"),
            ("Bakes.settings['deep'][0]", "(float64[3])"),
            ("TABLE in ", "Bakes.step (float64[6])"),
            ("weights in ", "(float32[6, 2])"),
        ],
        strict=True,
    ):
        assert line.startswith(start) and line.endswith(end)
    eager = lc.Learner(model, weighted, lc.SGD(0.1), phases=[Bakes()], compile=False, default_callbacks=False)
    assert "kept as it is now" not in eager.explain()
