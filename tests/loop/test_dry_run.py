"""A look at the next batch, and steps that leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CallbackError, CheckpointError, EmptyDataError

PHASE = lc.TrainingPhase()


def pairs(count: int) -> list[Any]:
    return [(np.full((4, 1), float(n)), np.full((4, 1), float(n))) for n in range(1, count + 1)]


class Shuffled:
    """A loader that draws another order each time, as torch's DataLoader does."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)

    def __iter__(self) -> Any:
        return iter([(np.full((4, 1), float(n)),) * 2 for n in self._generator.permutation(5)])


def seen_by(data: Any, *, looks: int, epochs: int = 2) -> list[float]:
    """The batches of a fit, after so many looks at the first."""
    seen: list[float] = []
    note = lc.FunctionCallback(
        lambda learner, phase: seen.append(float(learner.step.xs[0, 0])), lc.StepEnd, reads=("step.xs",)
    )
    learner = lc.testing.toy_learner(callbacks=[note], data=(data, None))
    found = [float(learner.peek(PHASE)[0][0, 0]) for _ in range(looks)]
    learner.fit(epochs)
    assert found == seen[:1] * looks
    return seen


@pytest.mark.parametrize(
    "make",
    [
        lambda: pairs(3),
        Shuffled,
        lambda: lc.data.batches((np.arange(9.0)[:, None],) * 2, 4, shuffle=True),
    ],
    ids=["list", "own order", "batches"],
)
def test_a_look_changes_no_batch(make: Callable[[], Any]) -> None:
    assert seen_by(make(), looks=2) == seen_by(make(), looks=0)


def test_a_look_into_what_can_be_read_once() -> None:
    """The check consumed the first batch of a stateful iterator."""
    assert seen_by(iter(pairs(3)), looks=2, epochs=1) == [1.0, 2.0, 3.0]
    with pytest.raises(EmptyDataError, match="used up"):
        lc.testing.toy_learner(data=(iter([]), None)).peek(PHASE)


def test_a_look_is_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    """The state of a loader is the one of before, when saved, loaded, and brought back after a load that failed."""

    def make(**options: Any) -> lc.Learner:
        x = np.arange(9.0)[:, None] / 9
        return lc.testing.toy_learner(data=(lc.data.batches((x, x), 4, shuffle=True), None), **options)

    whole, part, rest, failed = make(), make(), make(), make()
    for learner in (part, rest, failed):
        learner.peek(PHASE)
    rest.load(part.save(tmp_path / "x"))
    with pytest.raises(CheckpointError):
        failed.load(make(optimizer=lc.Adam(0.1)).save(tmp_path / "y"))
    for learner in (whole, part, rest, failed):
        learner.fit(2)
        np.testing.assert_array_equal(learner.params.value["w"], whole.params.value["w"])


class Busy(lc.AbstractTrainingPhase):
    """Changes all that a body can change."""

    data_key = "training"
    carries = ("memory",)

    def __init__(self) -> None:
        self.calls = 0

    def unpack(self, batch: Any) -> Any:
        return {"xs": batch[0], "ys": batch[1]}

    def start(self, learner: Any, state: Any) -> None:
        state.memory = learner.xp.zeros(())

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        self.calls += 1
        state.memory = state.memory + learner.random.normal(())
        learner.shared.total = getattr(learner.shared, "total", 0.0) + 1.0
        learner.params.value = learner.tree.scale(learner.params.value, 2.0)

        def objective() -> Any:
            state.loss = learner.xp.mean((learner.model(state.xs) - state.ys) ** 2) + state.memory * 0
            return state.loss

        learner.minimize(objective)


def test_a_rehearsal_leaves_no_trace() -> None:
    heard: list[str] = []
    listen = lc.FunctionCallback(lambda learner, phase: heard.append(phase.name), lc.StepEnd)

    def make() -> tuple[lc.Learner, Busy]:
        phase = Busy()
        callbacks = [listen] if not heard else []
        return lc.testing.toy_learner(callbacks, optimizer=lc.Adam(0.1), data=(pairs(3), None), phases=[phase]), phase

    learner, phase = make()
    learner.run_step(phase, pairs(1)[0])
    step, before = learner.step, learner.params.value["w"].copy()
    heard.clear()
    for _ in range(3):
        state = learner.rehearse(phase, learner.peek(phase))
        assert float(state.loss) > 0 and set(state.grads) == {"w"}, "all values are there"
    np.testing.assert_array_equal(learner.params.value["w"], before)
    assert (phase.calls, learner.shared.total, learner.step, heard) == (1, 1.0, step, [])
    assert learner.shared.history["training"].attempts == 1
    learner.fit(1)
    other, same = make()
    other.run_step(same, pairs(1)[0])
    other.fit(1)
    np.testing.assert_array_equal(learner.params.value["w"], other.params.value["w"])


def test_no_rehearsal_within_a_step() -> None:
    class Wrong(lc.Callback):
        reads = ("data", "model", "params", "buffers")

        @lc.on(lc.StepEnd)
        def look(self, learner: Any, phase: Any) -> None:
            learner.rehearse(phase, learner.peek(phase))

    with pytest.raises(CallbackError, match="between two steps"):
        lc.testing.toy_learner([Wrong()], data=(pairs(2), None)).fit(1)
