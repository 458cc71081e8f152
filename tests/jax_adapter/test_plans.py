"""Compiled steps on JAX: how many programs there are, what they depend on, and what cannot be compiled."""

from __future__ import annotations

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
from loopcore.errors import CallbackError

XS = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
YS = np.random.default_rng(1).normal(size=(6, 2)).astype("float32")


def apply_fn(params: Any, x: Any) -> Any:
    return x @ params["w"]


def make(**options: Any) -> lc.Learner:
    settings: dict[str, Any] = {"optimizer": lc.Adam(0.1), "default_callbacks": False, **options}
    return lc.Learner((apply_fn, {"w": jnp.ones((3, 2))}), lc.losses.mse, **settings)


def traces(learner: Any) -> int:
    return int(learner.backend.traces)


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


def listener(event: type[lc.Event], writes: bool) -> lc.Callback:
    """Hears an event and does nothing, but may say that it writes a value of its own."""
    return lc.FunctionCallback(lambda learner, phase: None, event, writes=(f"step.{event.__name__}",) * writes)


@pytest.mark.parametrize("events", [(lc.LossBegin,), (lc.BackwardBegin,), (lc.LossBegin, lc.BackwardBegin)])
def test_a_cut_objective_is_differentiated_once(events: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece between two cuts is differentiated by itself; nothing before a cut is computed again."""
    products: list[int] = []
    learner: Any = make(callbacks=[listener(event, writes=True) for event in events])
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


@pytest.mark.parametrize("writes", [False, True])
def test_who_only_looks_cuts_nothing(writes: bool) -> None:
    """One program for the whole step, where there would be four."""
    listening = [listener(event, writes) for event in (lc.LossBegin, lc.BackwardBegin, lc.BackwardEnd)]
    learner: Any = make(callbacks=listening)
    phase = lc.TrainingPhase()
    for _ in range(3):
        learner.run_step(phase, (XS, YS))
    assert learner.backend.traces == (4 if writes else 1)


@pytest.mark.parametrize("writes", [(), ("step.unused",)])
def test_an_attribute_of_the_phase_that_changes_within_a_step(writes: tuple[str, ...]) -> None:
    class Flagged(lc.TrainingPhase):
        flag = False

    def change(learner: Any, phase: Any) -> None:
        phase.flag = True

    learner = make(callbacks=[lc.FunctionCallback(change, lc.BackwardBegin, writes=writes)])
    with pytest.raises(CallbackError, match="FunctionCallback changed flag of the phase at BackwardBegin"):
        learner.run_step(Flagged(), (XS, YS))


def test_parameters_that_did_not_change_before_a_cut_stay_the_same_arrays() -> None:
    held: list[Any] = []
    note = lc.FunctionCallback(lambda learner, phase: held.append(inner.backend.carried()["params"]["w"]), lc.LossBegin)
    inner: Any = make(callbacks=[note])
    before = inner.backend.carried()["params"]["w"]
    inner.run_step(lc.TrainingPhase(), (XS, YS))
    assert held[0] is before and not before.is_deleted()


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


def test_explain_tells_looks_from_cuts() -> None:
    learner = make(callbacks=[listener(lc.LossBegin, False), Halves()])
    text = learner.explain()
    assert "  cut at LossBegin: FunctionCallback (writes nothing, so the program goes on)\n" in text
    assert "plan: split" in text and "  cut at BackwardEnd: Halves\n" in text


class Halves(lc.Callback):
    writes = ("step.grads",)

    @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase)
    def halve(self, learner: Any, phase: Any) -> None:
        learner.step.grads = learner.tree.scale(learner.step.grads, 0.5)
