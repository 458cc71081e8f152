"""Callbacks join and leave a learner, or are refused; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from loopcore.errors import CallbackError, ConflictError, MissingWriterError
from loopcore.testing import Trace, toy_learner
from tests.refusals import refused


class Counter(lc.Callback):
    """Counts how often it is set up and how many steps it hears."""

    writes = ("shared.counted",)

    def __init__(self) -> None:
        self.setups = 0

    def setup(self, learner: Any) -> None:
        self.setups += 1
        learner.shared.counted = 0

    @lc.on(lc.StepEnd)
    def count(self, learner: Any, phase: Any) -> None:
        learner.shared.counted += 1


class ReadsCounter(lc.Callback):
    """Reads what `Counter` writes; sorts before it by name only if renamed."""

    reads = ("shared.counted",)

    def __init__(self) -> None:
        self.seen: list[int] = []

    @lc.on(lc.StepEnd)
    def look(self, learner: Any, phase: Any) -> None:
        self.seen.append(learner.shared.counted)


@pytest.mark.parametrize("how", ["add", "replace", "set"])
def test_new_callbacks_are_set_up(how: str) -> None:  # L-3
    """Changing the callbacks did not call ``init!`` on the new ones."""
    old, new, reader = Trace(), Counter(), ReadsCounter()
    learner = toy_learner([old], steps=3)
    learner.fit(1)
    heard = len(old.events)
    if how == "add":
        learner.callbacks.add(new, reader)
    elif how == "replace":
        learner.callbacks.replace(old, new)
        learner.callbacks.add(reader)
    else:
        learner.callbacks.set(reader, new)
    assert new.setups == 1
    learner.fit(1)
    assert learner.shared.counted == 3 and reader.seen == [1, 2, 3] and new.setups == 1
    assert (len(old.events) > heard) is (how == "add")


def test_changing_callbacks_leaves_the_learner_as_it_is() -> None:  # L-4
    """Changing the callbacks rebuilt everything with defaults, dropping what the learner had been given."""
    learner = toy_learner(
        compile=False, reads=("step.y_pred",), hyper={"kl": 0.5}, optimizer=lc.Momentum(0.01, 0.9), seed=7, steps=2
    )
    twin = toy_learner(optimizer=lc.Momentum(0.01, 0.9), seed=7, steps=2)
    learner.hyper.kl = 0.75
    learner.fit(1)
    callback = Trace()
    learner.callbacks.add(callback)
    learner.callbacks.remove(callback)
    learner.fit(1)
    twin.fit(2)
    assert (learner.compile, learner.seed, learner.hyper.kl) == (False, 7, 0.75)
    assert learner.step.y_pred.shape == (4, 1)
    assert learner.runs.runner_of(learner.phases[0]).plan.kind == "eager"
    assert learner.runs.attempts == {"training": 4} and learner.shared.history["training"].epochs == 2
    np.testing.assert_array_equal(learner.params.value["w"], twin.params.value["w"])  # the velocity was kept


class BadSetup(lc.Callback):
    """Changes shared state in its setup, and then fails."""

    writes = ("shared.bad",)

    def setup(self, learner: Any) -> None:
        learner.shared.bad = 1
        raise ValueError("setup failed")


def test_a_refused_change_of_callbacks_changes_nothing() -> None:  # L-5
    """Callbacks were replaced before the graph was built: an error left new callbacks with the old graph."""
    counter, trace = Counter(), Trace()
    learner = toy_learner([counter, trace], steps=2)
    before, shared = list(learner.callbacks), set(vars(learner.shared))
    with pytest.raises(ConflictError, match=r"both write shared\.counted"):
        learner.callbacks.replace(trace, Counter())
    with pytest.raises(ValueError, match="setup failed"):
        learner.callbacks.replace(counter, BadSetup())
    with pytest.raises(MissingWriterError, match=r"LossReader reads shared\.nothing"):
        learner.callbacks.set(type("LossReader", (lc.Callback,), {"reads": ("shared.nothing",)})())
    assert list(learner.callbacks) == before and set(vars(learner.shared)) == shared
    learner.fit(1)
    assert learner.shared.counted == 2 and ("FitEnd", None, "completed") in trace.events


def test_a_removed_callback_takes_its_state_along() -> None:  # L-7
    """A removed callback left its state behind, and readers went on with stale values."""
    counter, reader = Counter(), ReadsCounter()
    learner = toy_learner([counter, reader], steps=2)
    learner.fit(1)
    with pytest.raises(MissingWriterError, match=r"ReadsCounter reads shared\.counted, nothing writes it"):
        learner.callbacks.remove(counter)
    assert learner.shared.counted == 2 and counter in list(learner.callbacks)
    learner.callbacks.remove(counter, reader)
    assert not hasattr(learner.shared, "counted")
    with pytest.raises(lc.errors.CallbackError, match="not a callback of this learner"):
        learner.callbacks.remove(counter)


def test_a_learner_shows_its_callbacks_and_finds_wrapped_ones() -> None:  # L-8
    """``show(learner)`` printed nothing of use, and a wrapped callback could not be found."""
    counter = Counter()
    learner = toy_learner([lc.throttle(counter, lc.StepEnd, every=2)])
    assert learner.callbacks.get(Counter) is counter
    assert learner.callbacks.get(ReadsCounter) is None
    assert "backend='numpy'" in repr(learner) and "Throttle" in repr(learner) and "Recorder" in repr(learner)
    learner.callbacks.remove(counter)
    assert learner.callbacks.get(Counter) is None


def forward(params: Any, xs: Any) -> Any:
    return xs * params["w"]


class Writer(lc.Callback):
    """Writes what it does not declare."""

    @lc.on(lc.StepBegin)
    def write(self, learner: Any, phase: Any) -> None:
        learner.step.xs = 0.0


class ReadsSecret(lc.Callback):
    """Reads what nobody writes."""

    reads = ("shared.secret",)


class First(lc.Callback):
    """Of a circle."""

    reads, writes = ("shared.b",), ("shared.a",)


class Second(lc.Callback):
    """Of a circle."""

    reads, writes = ("shared.a",), ("shared.b",)


class ScalesGrads(lc.Callback):
    """Writes the gradients."""

    writes = ("step.grads",)


class ClipsGrads(lc.Callback):
    """Writes the gradients, too."""

    writes = ("step.grads",)


class NeedsRecorder(lc.Callback):
    """Cannot be without another one."""

    requires = (lc.Recorder,)


class BadPath(lc.Callback):
    """Declares no path."""

    reads = ("loss",)


class BadTuple(lc.Callback):
    """Forgot the comma."""

    reads = "step.loss"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "words", "callbacks"),
    [
        (errors.CallbackError, ("write Recorder() instead of Recorder",), [lc.Recorder]),
        (errors.CallbackError, ("is no Callback: subclass Callback", "FunctionCallback(fn, StepEnd)"), [print]),
        (errors.CallbackError, ("same Writer is in the list twice",), [Writer()] * 2),
        (errors.MissingWriterError, ("ReadsSecret reads shared.secret, nothing writes it",), [ReadsSecret()]),
        (errors.MissingRequirementError, ("NeedsRecorder requires Recorder: add Recorder()",), [NeedsRecorder()]),
        (errors.CycleError, ("First before Second", "Second before First", "run_after"), [First(), Second()]),
        (
            errors.ConflictError,
            ("ClipsGrads and ScalesGrads both write step.grads", "run_after = (ClipsGrads,)", "resolve_conflict"),
            [ScalesGrads(), ClipsGrads()],
        ),
        (errors.ConflictError, ("Recorder and Recorder both", "keep one Recorder"), [lc.Recorder(), lc.Recorder()]),
        (errors.CallbackError, ('BadPath.reads holds "loss"', "names joined by dots", '"step.loss"'), [BadPath()]),
        (errors.CallbackError, ("BadTuple.reads", 'write a tuple, reads = ("step.loss",)'), [BadTuple()]),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, tuple) else "",
)
def test_a_list_of_callbacks_that_cannot_work(
    kind: type[BaseException], words: tuple[str, ...], callbacks: list[Any]
) -> None:
    refused(kind, *words, action=lambda: toy_learner(callbacks, default_callbacks=False, quiet=False))
    learner = toy_learner(default_callbacks=False, quiet=False)
    refused(kind, *words, action=lambda: learner.callbacks.add(*callbacks))
    assert len(learner.callbacks) == 0 and learner.fit(1).status == "completed"


def test_one_callback_in_place_of_a_list() -> None:
    arguments: dict[str, Any] = {"model": (forward, {"w": np.ones(1)}), "callbacks": lc.Recorder()}
    refused(errors.CallbackError, "write callbacks=[Recorder(", action=lambda: lc.Learner(**arguments))


def test_a_callback_of_two_learners() -> None:
    trace = Trace()
    learner = toy_learner([trace])
    words: tuple[str, ...] = ("Trace belongs to another learner", "two would mix their state", "callbacks.remove")
    refused(errors.CallbackError, *words, action=lambda: toy_learner([trace]))
    wrapped = lc.throttle(trace, lc.StepEnd, every=2)
    refused(errors.CallbackError, "belongs to another learner", action=lambda: toy_learner([wrapped]))
    learner.callbacks.remove(trace)
    other = toy_learner([trace])
    del other
    assert toy_learner([trace]).fit(1).status == "completed", "the learner that had it is gone"


def test_callbacks_need_no_hash() -> None:
    class Equal(lc.Callback):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

    one, two = Equal(), Equal()  # unhashable, as dataclasses are
    learner = toy_learner([one, two])
    learner.callbacks.remove(one)
    assert [c for c in learner.callbacks if isinstance(c, Equal)] == [two] and learner.callbacks.get(Equal) is two


def test_removing_what_is_not_there() -> None:
    for learner in (toy_learner(), toy_learner(default_callbacks=False, quiet=False)):
        words = ("is not a callback of this learner", "callbacks.get")
        refused(errors.CallbackError, *words, action=partial(learner.callbacks.remove, Trace()))


def test_a_list_where_callbacks_are_wanted() -> None:
    callbacks: Any = toy_learner().callbacks
    for name in ("set", "add", "remove"):
        words = (f"callbacks.{name}(*callbacks)", "takes callbacks one by one, not a list of them")
        refused(errors.CallbackError, *words, action=partial(getattr(callbacks, name), [lc.Recorder()]))


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
