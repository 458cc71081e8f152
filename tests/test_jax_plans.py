"""Compiled steps on JAX: how many programs there are, what they depend on, and what cannot be compiled."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

import loopcore as lc
from loopcore.errors import CarryError, TraceError

XS = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
YS = np.random.default_rng(1).normal(size=(6, 2)).astype("float32")


def apply_fn(params: Any, x: Any) -> Any:
    return x @ params["w"]


def make(**options: Any) -> lc.Learner:
    settings: dict[str, Any] = {"optimizer": lc.Adam(0.1), "default_callbacks": False, **options}
    return lc.Learner((apply_fn, {"w": jnp.ones((3, 2))}), lc.losses.mse, **settings)


def traces(learner: Any) -> int:
    return int(learner.backend.traces)


# -- one program per phase and shape


def test_one_program_for_each_phase_and_shape() -> None:
    ragged = [(XS, YS)] * 3 + [(XS[:4], YS[:4])]
    learner = make(data=(ragged, [(XS, YS)]), default_callbacks=True, callbacks=[lc.ProgressPrinter(quiet=True)])
    for number in range(10):
        learner.hyper.learning_rate = 0.1 / (number + 1)
        learner.fit(1)
    assert traces(learner) == 3
    assert len(learner.history["loss"]) == 10


def test_the_plan_follows_who_listens() -> None:
    learner = make()
    phase = lc.TrainingPhase()
    learner.run_step(phase, (XS, YS))
    assert learner.runs.runner_of(phase).plan.kind == "fused" and traces(learner) == 1
    listener = lc.FunctionCallback(lambda learner, phase: None, lc.BackwardEnd)
    learner.callbacks.add(listener)
    learner.run_step(phase, (XS, YS))
    assert learner.runs.runner_of(phase).plan.kind == "split" and traces(learner) == 3


def test_no_transfer_within_a_step_with_the_default_callbacks() -> None:
    guard = lc.StopOnNaNLoss()
    learner = make(default_callbacks=True, callbacks=[guard, lc.Metrics(lc.losses.mae), lc.ProgressPrinter(quiet=True)])
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
    found: list[float] = []
    for factor in factors:
        phase.factor = factor
        found.append(float(learner.run_step(phase, (XS, YS)).loss))
    return found


def test_a_python_value_of_the_phase_that_changed_is_another_program(caplog: pytest.LogCaptureFixture) -> None:
    learner, phase = make(optimizer=lc.SGD(0.0)), Scaled(1)
    with caplog.at_level(logging.INFO, "loopcore"):
        one, two, again = losses(learner, phase, (1, 2, 1))
    assert two == pytest.approx(2 * one, rel=1e-6) and again == one
    assert traces(learner) == 2
    assert "compiled again: an attribute of the phase changed" in caplog.text


def test_an_array_of_the_phase_is_an_input() -> None:
    learner, phase = make(optimizer=lc.SGD(0.0)), Scaled(1)
    one, two = losses(learner, phase, (jnp.float32(1), jnp.float32(2)))
    assert two == pytest.approx(2 * one, rel=1e-6) and traces(learner) == 1


def test_a_value_that_never_stops_changing_is_a_warning() -> None:
    learner, phase = make(optimizer=lc.SGD(0.0)), Scaled(1)
    with pytest.warns(UserWarning, match="were compiled 8 times, because an attribute of the phase changed"):
        losses(learner, phase, range(1, 12))


def test_scalars_of_shared_that_the_body_read_are_checked() -> None:
    class Reads(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.shared.factor * learner.xp.sum(state.xs)

    learner, phase = make(), Reads()
    learner.shared.factor, learner.shared.other = 2, 1
    first = float(learner.run_step(phase, {"xs": XS}).loss)
    learner.shared.other = 5
    assert float(learner.run_step(phase, {"xs": XS}).loss) == first and traces(learner) == 1
    learner.shared.factor = 3
    assert float(learner.run_step(phase, {"xs": XS}).loss) == pytest.approx(1.5 * first, rel=1e-6)
    assert traces(learner) == 2


# -- what cannot be compiled


def test_reading_a_value_in_a_body_names_the_line() -> None:
    class Peeks(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            if state.xs.sum() > 0:  # the line that is named
                state.loss = state.xs.sum()

    learner = make()
    before = learner.export_weights()
    with pytest.raises(TraceError) as caught:
        learner.run_step(Peeks(), (XS, YS))
    message = str(caught.value)
    assert "test_jax_plans.py" in message and "# the line that is named" in message
    assert "compile = False on the phase" in message
    np.testing.assert_array_equal(learner.export_weights()["w"], before["w"])
    learner.run_step(lc.TrainingPhase(), (XS, YS))


def test_a_metric_that_is_no_array_code_says_to_run_it_on_the_host() -> None:
    def late(y_pred: Any, ys: Any) -> Any:
        return float(y_pred.sum())  # the line that is named

    def learner(metric: Any) -> lc.Learner:
        return make(callbacks=[lc.Metrics(metric), lc.Recorder()], data=([(XS, YS)], None))

    with pytest.raises(TraceError, match=r"(?s)# the line that is named.*metric 'late'.*Metric\(fn, host=True\)"):
        learner(late).fit(1)
    fitted = learner(lc.Metric(late, host=True))
    fitted.fit(1)
    assert fitted.history["late"] == [pytest.approx(np.sum(XS @ np.ones((3, 2))), rel=1e-5)]


def test_it_runs_where_the_phase_says_so() -> None:
    class Peeks(lc.ValidationPhase):
        compile = False

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = state.xs.sum() if float(state.xs.sum()) > 0 else -state.xs.sum()

    assert float(make().run_step(Peeks(), (XS, YS)).loss) == pytest.approx(abs(XS.sum()), rel=1e-5)


def test_a_body_that_closes_over_an_array_is_refused() -> None:
    factor = jnp.ones(())

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.loss = factor * state.xs.sum()

    with pytest.raises(TraceError, match=r"uses the array 'factor' from outside.*factor=factor"):
        lc.run_step(body, make(), lc.ValidationPhase(), xs=XS)


# -- nothing the user holds is used up


def test_donation_takes_nothing_that_the_user_holds() -> None:
    given = {"w": jnp.ones((3, 2))}
    learner = lc.Learner((apply_fn, given), lc.losses.mse, lc.Adam(0.1), default_callbacks=False)
    phase = lc.TrainingPhase()
    held = [learner.params.value["w"]]
    for _ in range(3):
        learner.run_step(phase, (XS, YS))
        held.append(learner.params.value["w"])
    learner.params.value = {"w": held[1]}
    for _ in range(2):
        learner.run_step(phase, (XS, YS))
    values = [np.asarray(one) for one in (given["w"], *held)]
    np.testing.assert_array_equal(values[0], 1.0)
    assert not any(np.array_equal(a, b) for a, b in pairwise(values[1:]))


def test_no_placeholder_stays_behind() -> None:
    learner = make(default_callbacks=True, callbacks=[lc.ProgressPrinter(quiet=True)], data=([(XS, YS)], None))
    learner.fit(1)
    kept = [*vars(learner.shared).values(), *vars(learner.step).values(), learner.attempt]
    assert not any(isinstance(leaf, Tracer) for leaf in jax.tree_util.tree_leaves(kept))


# -- cuts and what they cost


def test_a_throttled_listener_cuts_only_the_steps_it_hears() -> None:
    heard: list[int] = []
    note = lc.FunctionCallback(lambda learner, phase: heard.append(learner.attempt), lc.BackwardEnd)
    learner, phase = make(callbacks=[lc.throttle(note, lc.BackwardEnd, every=4)]), lc.TrainingPhase()
    for _ in range(3):
        learner.run_step(phase, (XS, YS))
    assert traces(learner) == 1, "one program as long as it sleeps"
    for _ in range(9):
        learner.run_step(phase, (XS, YS))
    assert heard == [3, 7, 11] and traces(learner) == 3, "and two pieces for the steps it hears"


@pytest.mark.parametrize("events", [(lc.LossBegin,), (lc.BackwardBegin,), (lc.LossBegin, lc.BackwardBegin)])
def test_a_cut_objective_is_differentiated_once(events: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece between two cuts is differentiated by itself; nothing before a cut is computed again."""
    products: list[int] = []
    listening = [lc.FunctionCallback(lambda learner, phase: None, event) for event in events]
    learner: Any = make(callbacks=listening)
    real = learner.backend.compile

    def compile(fn: Any, donate: Any = ()) -> Any:
        run = real(fn, donate)

        def call(*trees: Any) -> Any:
            program = jax.jit(lambda *given: fn(*given)[0]).lower(*trees).compile()
            products.append(str(program.as_text()).count(" dot("))
            return run(*trees)

        return call

    monkeypatch.setattr(learner.backend, "compile", compile)
    learner.run_step(lc.TrainingPhase(), (XS, YS))
    assert len(products) == len(events) + 1
    assert sum(products) == 2, "one product forward, one backward: the layer's input is data"


def test_parameters_that_did_not_change_before_a_cut_stay_the_same_arrays() -> None:
    held: list[Any] = []
    note = lc.FunctionCallback(lambda learner, phase: held.append(inner.backend.carried()["params"]["w"]), lc.LossBegin)
    inner: Any = make(callbacks=[note])
    before = inner.backend.carried()["params"]["w"]
    inner.run_step(lc.TrainingPhase(), (XS, YS))
    assert held[0] is before and not before.is_deleted()


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


def test_a_carried_scalar_goes_on_from_what_the_host_sees_and_sets() -> None:
    learner, phase = make(callbacks=[Counts()]), lc.TrainingPhase()
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


def test_a_carried_scalar_keeps_its_dtype() -> None:
    class Halves(Counts):
        @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase, traced=True)
        def count(self, learner: Any, phase: Any) -> None:
            learner.shared.count = learner.shared.count / 2

    with pytest.raises(CarryError, match=r"shared\.count is carried, but changed .* from int32\[\] to float32\[\]"):
        make(callbacks=[Halves()]).run_step(lc.TrainingPhase(), (XS, YS))


def test_a_carried_scalar_goes_with_the_callback_that_wrote_it() -> None:
    counts, phase = Counts(), lc.TrainingPhase()
    learner = make(callbacks=[counts])
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


def test_two_phases_share_a_carried_scalar() -> None:
    class Other(lc.TrainingPhase):
        @property
        def name(self) -> str:
            return "other"

    learner, first, second = make(callbacks=[Counts()]), lc.TrainingPhase(), Other()
    for phase in (first, first, second, first, second, second):
        learner.run_step(phase, (XS, YS))
    assert int(learner.shared.count) == 6


def test_what_was_left_for_later_is_fetched_later() -> None:
    class Leaves(lc.Callback):
        leaves = ("step.left",)

        def __init__(self) -> None:
            self.found: list[Any] = []

        @lc.on(lc.StepEnd, traced=True)
        def leave(self, learner: Any, phase: Any) -> None:
            learner.step.left = learner.xp.stack([learner.xp.sum(learner.step.xs), learner.step.loss])

        @lc.on(lc.StepEnd)
        def take(self, learner: Any, phase: Any) -> None:
            self.found += learner.collect("left")

        traced_reads = ("step.xs", "step.loss")

    callback = Leaves()
    learner = make(callbacks=[callback])
    states = [learner.run_step(lc.TrainingPhase(), (XS * n, YS)) for n in (1, 2)]
    for n, (pending, state) in enumerate(zip(callback.found, states, strict=True), 1):
        np.testing.assert_allclose(np.asarray(pending), [XS.sum() * n, float(state.loss)], rtol=1e-5)
    assert set(vars(states[0])) == {"loss"}


def test_a_callback_collects_only_what_it_leaves() -> None:
    nosy = lc.FunctionCallback(lambda learner, phase: learner.collect("loss"), lc.StepEnd)
    with pytest.raises(lc.AccessError, match=r'collects step\.loss.*leaves = \("step\.loss",\)'):
        make(callbacks=[nosy]).run_step(lc.TrainingPhase(), (XS, YS))


MOVES = """
import jax.numpy as jnp, numpy as np, loopcore as lc
batch = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
quiet = [lc.ProgressPrinter(quiet=True), lc.MetricsPrinter(quiet=True)]
model = (lambda params, x: x @ params["w"]), {"w": jnp.ones((3, 2))}
learner, phase = lc.Learner(model, lc.losses.mse, lc.Adam(0.1), callbacks=quiet, device="cpu:0"), lc.TrainingPhase()
for device in ("cpu:0", "cpu:1"):
    learner.to_device(device)
    for _ in range(3):
        state = learner.run_step(phase, batch)
print(*(device.id for array in (state.loss, learner.params.value["w"]) for device in array.devices()))
"""


def test_a_learner_that_moved_leaves_nothing_behind() -> None:
    """Inputs that programs keep on the device move too. How many devices there are is decided when JAX starts."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", MOVES], env={**os.environ, **flags}, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1"], done.stderr
