"""What users get wrong: a typed error says what came, where, and what to write instead, before anything is lost."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from loopcore.backend import registry
from loopcore.testing import Trace, toy_learner

XS = np.ones((4, 1))
BATCH = (XS, XS)
NUMBERS = "but parameters are arrays of floats, such as np.array([1.0, 2.0])"
NESTED = {"a": np.ones(1), "b": {"c": (np.ones(2), 3.0)}}
ON_NUMPY = {"backend": "numpy"}
untyped: Any = lc  # for arguments that a type checker refuses


def refused(kind: type[BaseException], *words: str, action: Callable[[], Any]) -> BaseException:
    """Assert that an action is refused with exactly this class, and that the message has all the words."""
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
    return caught.value


class Strange:
    """Of no framework."""


class Distance(lc.TrainingPhase):
    """Another phase with the same name."""


def forward(params: Any, xs: Any) -> Any:
    return xs * params["w"]


# ---- model, optimizer, loss and other arguments of a Learner


@pytest.mark.parametrize(
    ("kind", "words", "arguments"),
    [
        (errors.UnknownModelError, ("knows the model of type", "Strange", "(apply_fn, params)"), {"model": Strange()}),
        (errors.UnknownModelError, ("the model 'critic'", "Strange"), {"model": {"critic": Strange()}}),
        (errors.UnknownModelError, ("of 'w.0': it is the number 1", NUMBERS), {"model": (forward, {"w": [1, 2]})}),
        (errors.UnknownModelError, ("the model 'w' cannot be used because of '0'", NUMBERS), {"model": {"w": [1.5]}}),
        (errors.UnknownModelError, ("of 'param': it is the number 0.5", NUMBERS), {"model": (forward, 0.5)}),
        (errors.UnknownModelError, ("of 'm.b.c.1': it is", NUMBERS), {"model": {"m": (forward, NESTED)}}),
        (errors.UnknownModelError, ("'w.0'", NUMBERS), {"model": (forward, {"w": [1]}), **ON_NUMPY}),
        (errors.UnknownModelError, ("because of 'w'", "int64"), {"model": (forward, {"w": np.array([1, 2])})}),
        (errors.UnknownModelError, ("no backend 'numpi'", "known are", "numpy"), {"backend": "numpi"}),
        (errors.OptimizerError, ("Strange cannot train a NumPy model", "lc.Adam(1e-3)"), {"optimizer": Strange()}),
        (errors.OptimizerError, ("optimizer=Adam is a class: write Adam(...)",), {"optimizer": lc.Adam}),
        (errors.OptimizerError, ("'head' trains no parameter", "begin with: w"), {"optimizer": {"head": lc.Adam()}}),
        (errors.LossError, ("loss_fn='mse' cannot be called", "lc.losses.mse"), {"loss_fn": "mse"}),
        (errors.LossError, ("loss_fn=Strange is a class: write Strange()",), {"loss_fn": Strange}),
        (errors.DataError, ("data=list is ambiguous", "data=(train, valid)", '{"training": train}'), {"data": [BATCH]}),
        (errors.DataError, ("3 were given: use a dict",), {"data": ([BATCH],) * 3}),
        (errors.DataError, ("the training data", "cannot be iterated: pass batches"), {"data": (5, None)}),
        (errors.DataError, ("the validation data", "cannot be iterated"), {"data": ([BATCH], "abc")}),
        (errors.BackendError, ("not on 'cuda:0'", "leave device out"), {"device": "cuda:0"}),
        (TypeError, ("named by identifiers", "'my model'"), {"model": {"my model": (forward, {"w": np.ones(1)})}}),
        (TypeError, ("Learner({}) has no model",), {"model": {}}),
        (TypeError, ("not <class", "write TrainingPhase()"), {"phases": [lc.TrainingPhase]}),
        (TypeError, ("a phase is an instance", "'training'"), {"phases": ["training"]}),
        (TypeError, ("phases are named 'training'", "override name"), {"phases": [lc.TrainingPhase(), Distance()]}),
        (TypeError, ("Learner has reads='step.y_pred'", 'reads=("step.y_pred",)'), {"reads": "step.y_pred"}),
        (TypeError, ("reads=('y_pred',)", 'reads=("step.y_pred",)'), {"reads": ("y_pred",)}),
        (ValueError, ("seed is a whole number", "not 'x'"), {"seed": "x"}),
        (ValueError, ("seed is a whole number", "not 2.5"), {"seed": 2.5}),
        (ValueError, ('compile is "auto", True or False', "on the numpy backend", "'yes'"), {"compile": "yes"}),
        (ValueError, ('compile is "auto", True or False', "not 'xla'"), {"compile": "xla"}),
        (ValueError, ('compile is "auto", True or False', "not 1"), {"compile": 1}),
        (ValueError, ('compile is "auto", True or False', "not ['auto']"), {"compile": ["auto"]}),
        (ValueError, ("'learning_rate'", "is the name of an optimizer's own"), {"hyper": {"learning_rate": 0.1}}),
        (TypeError, ("hyper 'kl' is a number, not 'much'",), {"hyper": {"kl": "much"}}),
        (TypeError, ("hyper=['kl'] is no mapping", 'hyper={"kl_weight": 0.5}'), {"hyper": ["kl"]}),
        (TypeError, ("hyper=[] is no mapping",), {"hyper": []}),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_learner_refuses(kind: type[BaseException], words: tuple[str, ...], arguments: dict[str, Any]) -> None:
    refused(kind, *words, action=lambda: toy_learner(**arguments))


@pytest.mark.parametrize(
    ("loss", "kind", "words"),
    [
        (lambda y_pred, ys: (y_pred - ys) ** 2, errors.LossError, ("shape (4, 1)", "scalar", 'reduction="mean"')),
        (lambda y_pred, ys: None, errors.LossError, ("returned nothing", "return state.loss")),
        (lambda y_pred, ys: "low", errors.LossError, ("returned a str", "return state.loss")),
        (lambda y_pred, ys: (ys**2).mean(), errors.GradientError, ("depends on none of 'w'", "learner.model(...)")),
    ],
    ids=["array", "nothing", "text", "constant"],
)
def test_a_loss_that_is_no_scalar(loss: Any, kind: type[BaseException], words: tuple[str, ...]) -> None:
    learner = toy_learner(loss_fn=loss)
    refused(kind, *words, action=lambda: learner.fit(1))
    assert learner.params.value["w"].item() == 0.0


def test_targets_of_another_shape_do_not_broadcast() -> None:
    learner = toy_learner(data=([(XS, np.ones(4))], None))
    refused(errors.LossError, "shape (4, 1)", "shape (4,)", "expand_dims", action=lambda: learner.fit(1))


def test_a_learner_without_optimizer_or_loss() -> None:
    trace = Trace()
    bare, lost = toy_learner([trace], optimizer=None), toy_learner(loss_fn=None)
    refused(errors.OptimizerError, "nothing is trained", "optimizer=lc.Adam(1e-3)", action=lambda: bare.fit(1))
    refused(errors.LossError, "this learner has no loss", "lc.losses.cross_entropy", action=lambda: lost.fit(1))
    assert trace.events == []
    refused(errors.GradientError, "holds no parameters", action=lambda: bare.run_step(lc.TrainingPhase(), BATCH))


@pytest.mark.parametrize("epochs", [2.5, -1, True, "3", None])
def test_a_number_of_epochs_that_is_none(epochs: Any) -> None:
    refused(ValueError, "whole number of epochs, at least 0", repr(epochs), action=lambda: toy_learner().fit(epochs))


def test_any_whole_number_of_epochs() -> None:
    assert toy_learner().fit(np.int64(2)).epochs == 2  # type: ignore[arg-type]
    assert toy_learner().fit(0).status == "completed"


@pytest.mark.parametrize(
    "action",
    [
        lambda learner, phase: learner.run_step(phase, BATCH),
        lambda learner, phase: learner.rehearse(phase, BATCH),
        lambda learner, phase: learner.run_epoch(phase, [BATCH]),
        lambda learner, phase: lc.run_epoch(learner, phase).__enter__(),
        lambda learner, phase: lc.run_step(lambda handle, state: None, learner, phase),
    ],
    ids=["step", "rehearsal", "epoch", "open epoch", "body"],
)
def test_a_phase_class_in_place_of_a_phase(action: Callable[..., Any]) -> None:
    learner = toy_learner()
    refused(TypeError, "a phase is an", "write TrainingPhase()", action=lambda: action(learner, lc.TrainingPhase))
    assert learner.fit(1).status == "completed"


# ---- data


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((XS,), ("takes batches (xs, ys)", "with 1 parts", "unpack(self, batch)")),
        ((XS, XS, XS), ("with 3 parts", "nothing is dropped silently")),
        (XS, ("of type ndarray", "yield pairs")),
        ("batch", ("of type str",)),
        (None, ("of type NoneType",)),
        (5, ("of type int",)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_batch_that_does_not_unpack(batch: Any, words: tuple[str, ...]) -> None:
    trace = Trace()
    learner = toy_learner([trace], data=([batch], None))
    refused(errors.UnpackError, "TrainingPhase", *words, action=lambda: learner.fit(1))
    assert [name for name, _, _ in trace.events] == ["FitBegin", "EpochBegin", "EpochEnd", "FitEnd"]


@pytest.mark.parametrize("returned", [BATCH, None, XS], ids=["tuple", "nothing", "array"])
def test_an_unpack_that_returns_no_names(returned: Any) -> None:
    phase = type("Bare", (lc.TrainingPhase,), {"unpack": lambda self, batch: returned})()
    words: tuple[str, ...] = ("Bare.unpack returned a", type(returned).__name__, '{"xs": xs, "ys": ys}')
    refused(errors.UnpackError, *words, action=lambda: toy_learner(phases=[phase]).fit(1))


@pytest.mark.parametrize("name", ["outcome", "apply", "updated"])
def test_a_part_with_a_reserved_name(name: str) -> None:
    learner = toy_learner(data=([{"xs": XS, "ys": XS, name: XS}], None))
    refused(errors.DataError, f"a part named {name}", "rename it", action=lambda: learner.fit(1))


def test_a_part_that_is_absent() -> None:
    learner = toy_learner(data=([{"xs": XS, 0: XS}], None))
    refused(AttributeError, "the step has no value 'ys'", "it has 0, xs", action=lambda: learner.fit(1))


class Lengthless:
    """An iterable without len and without batches."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def test_no_data_and_empty_data() -> None:
    words: tuple[str, ...] = ("phase 'training'", "does not have (it has: none)", "run_epoch(phase, data)")
    for learner in (toy_learner(data=()), toy_learner(data=None), toy_learner(data={})):
        refused(errors.NoDataError, *words, action=partial(learner.fit, 1))
    trace = Trace()
    learner = toy_learner([trace], data=([], None))
    refused(errors.EmptyDataError, "'training' (list) yielded no batch", action=lambda: learner.fit(1))
    assert trace.events == [], "a list that is empty is found before the fit begins"
    learner = toy_learner(data=(Lengthless(), None))
    refused(errors.EmptyDataError, "(Lengthless) yielded no batch", action=lambda: learner.fit(1))
    refused(errors.NoDataError, "no phase of this fit has data", action=lambda: toy_learner(phases=[]).fit(1))
    refused(errors.EmptyDataError, "prediction", action=lambda: toy_learner().predict([]))


def test_a_generator_is_read_once() -> None:
    trace = Trace()
    learner = toy_learner([trace], data=((batch for batch in [BATCH]), None))
    words: tuple[str, ...] = ("is a generator", "fit(2) reads it 2 times", "pass a list")
    refused(errors.DataExhaustedError, *words, action=lambda: learner.fit(2))
    assert trace.events == []
    assert learner.fit(1).epochs == 1
    words = ("is a generator that is used up", "read only once", "lc.data.batches")
    refused(errors.DataExhaustedError, *words, action=lambda: learner.fit(1))
    assert learner.shared.history["training"].epochs == 1


def test_an_iterator_that_is_no_generator_is_read_once() -> None:
    learner = toy_learner(data=(iter([BATCH, BATCH]), None))
    refused(errors.DataExhaustedError, "list_iterator that is used up", action=lambda: learner.fit(2))
    assert learner.shared.history["training"].epochs == 1


# ---- callbacks and events


class Reader(lc.Callback):
    """Reads more than it declares."""

    reads = ("step.loss",)

    @lc.on(lc.StepEnd)
    def read(self, learner: Any, phase: Any) -> None:
        _ = learner.step.grads


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


@pytest.mark.parametrize("body", [5, lambda state: None, lambda: None])
def test_what_is_no_body(body: Any) -> None:
    words = ("a body is a function body(handle, state) or body(learner, handle, state), not", "write learner.run_step(")
    refused(TypeError, *words, action=lambda: lc.run_step(body, toy_learner(), lc.TrainingPhase(), xs=np.ones(1)))


def test_a_body_of_any_arguments_is_one() -> None:
    def body(*given: Any) -> None:
        learner, _, state = given
        state.loss = learner.xp.sum(state.xs)

    assert float(lc.run_step(body, toy_learner(), lc.ValidationPhase(), xs=np.ones(2)).loss) == 2


def test_undeclared_reads_and_writes() -> None:
    words: tuple[str, ...] = ("Reader reads step.grads", "test_bad_input.py:", "reads = ('step.loss', 'step.grads',)")
    refused(lc.AccessError, *words, action=lambda: toy_learner([Reader()]).fit(1))
    words = ("Writer writes step.xs", "class Writer", "writes = ('step.xs',)")
    refused(lc.AccessError, *words, action=lambda: toy_learner([Writer()]).fit(1))
    function = lc.FunctionCallback(lambda learner, phase: learner.step.grads, lc.StepEnd, reads=("step.loss",))
    words = ("Pass FunctionCallback(..., reads=('step.loss', 'step.grads',))",)
    refused(lc.AccessError, *words, action=lambda: toy_learner([function]).fit(1))


def test_an_event_class_in_place_of_an_event() -> None:
    class Forgetful(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            handle(lc.LossBegin)

    words: tuple[str, ...] = ("handle takes an event, not an event class", "handle(LossBegin())", "brackets")
    refused(errors.EventError, *words, action=lambda: toy_learner(phases=[Forgetful()]).fit(1))

    class FiresEnd(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            handle(lc.StepEnd())

    words = ("StepEnd is fired by the loop itself",)
    refused(errors.EventError, *words, action=lambda: toy_learner(phases=[FiresEnd()]).fit(1))


@pytest.mark.parametrize(
    ("kind", "words", "arguments"),
    [
        (errors.EventError, ("takes the class of an event, not LossBegin()", "@on(LossBegin, ...)"), (lc.LossBegin(),)),
        (errors.EventError, ("not 'LossBegin': pass a subclass of Event",), ("LossBegin",)),
        (errors.CallbackError, ("takes the class of a phase", "write TrainingPhase"), (lc.StepEnd, lc.TrainingPhase())),
    ],
)
def test_an_instance_in_place_of_a_class(kind: type[BaseException], words: tuple[str, ...], arguments: Any) -> None:
    refused(kind, *words, action=lambda: lc.on(*arguments))
    with pytest.raises(errors.EventError if kind is errors.EventError else errors.CallbackError):
        lc.FunctionCallback(lambda learner, phase: None, *arguments)


def test_handlers_that_can_never_be_called() -> None:
    words: tuple[str, ...] = ("FitBegin of a phase", "write @on(FitBegin)")
    late = lc.FunctionCallback(lambda learner, phase: None, lc.FitBegin, lc.TrainingPhase)
    refused(errors.CallbackError, *words, action=lambda: toy_learner([late]))
    refused(errors.CallbackError, "EpochEnd is not fired within a step", action=lambda: lc.on(lc.EpochEnd, traced=True))
    traced = lc.FunctionCallback(lambda learner, phase: None, lc.Event, traced=True)
    assert toy_learner([traced]).fit(1).status == "completed"
    waiting = lc.FunctionCallback(lambda learner, phase: None, type("Never", (lc.Event,), {}))
    with pytest.warns(UserWarning, match=r"listens to Never, but a step of TrainingPhase ended without firing it"):
        toy_learner([waiting]).fit(1)


def test_a_handler_for_any_phase_may_wait_where_nothing_is_trained() -> None:
    heard: list[str] = []
    note = lc.FunctionCallback(lambda learner, phase: heard.append(phase.name), lc.BackwardEnd)
    batch = np.ones((4, 1)), np.ones((4, 1))
    toy_learner([note], data=([batch], [batch])).fit(1)  # a warning would be an error
    assert heard == ["training"]


def test_a_phase_with_the_names_of_validation() -> None:
    phase = type("Validates", (lc.ValidationPhase,), {"name": "val"})()
    words: tuple[str, ...] = ("Validates", "'val'", "another name")
    refused(ValueError, *words, action=lambda: toy_learner(phases=[phase]))


def test_a_handler_with_a_wrong_signature() -> None:
    def define() -> None:
        class TooFew(lc.Callback):
            @lc.on(lc.StepEnd)
            def look(self, learner: Any) -> None: ...

    words: tuple[str, ...] = ("TooFew.look", "test_bad_input.py:", "write def look(self, learner, phase)", "fourth")
    refused(errors.CallbackError, *words, action=define)
    words = ("takes a function fn(learner, phase)", "(learner)")
    refused(errors.CallbackError, *words, action=lambda: lc.FunctionCallback(lambda learner: None, lc.StepEnd))  # type: ignore[arg-type,misc]
    refused(errors.CallbackError, "not 5", action=lambda: lc.FunctionCallback(5, lc.StepEnd))  # type: ignore[arg-type]


class StopsInside(lc.Callback):
    """Traced, and raises a cancel."""

    @lc.on(lc.BackwardEnd, traced=True)
    def stop(self, learner: Any, phase: Any) -> None:
        raise lc.CancelStepException("bad gradient")


def test_a_cancel_in_a_traced_handler() -> None:
    words = ("StopsInside.stop is traced and raised CancelStepException", "be cancelled", "host handler")
    error = refused(errors.CallbackError, *words, action=lambda: toy_learner([StopsInside()]).fit(1))
    assert isinstance(error.__cause__, lc.CancelStepException)


def test_a_fit_within_a_fit() -> None:
    caught: list[str] = []

    def again(learner: Any, phase: Any) -> None:
        try:
            learner.fit(1)
        except errors.ReentrantFitError as error:
            caught.append(str(error))

    learner, calm = toy_learner([lc.FunctionCallback(again, lc.LossBegin)], steps=3), toy_learner(steps=3)
    assert learner.fit(2).status == "completed"
    calm.fit(2)
    assert len(caught) == 6 and "learner.run_epoch(phase)" in caught[0] and "another learner" in caught[0]
    assert learner.history["loss"] == calm.history["loss"]
    assert learner.params.value["w"].item() == calm.params.value["w"].item()
    careless = lc.FunctionCallback(lambda learner, phase: learner.fit(1), lc.EpochEnd)
    refused(errors.ReentrantFitError, "fit was called while", action=lambda: toy_learner([careless]).fit(1))


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


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("every=n, seconds=s or when=condition",), {}),
        (("every=n, seconds=s or when=condition",), {"every": 1, "seconds": 1.0}),
        (("every=0", "at least 1"), {"every": 0}),
        (("every=2.5", "a whole number"), {"every": 2.5}),
        (("every='3'", "a whole number"), {"every": "3"}),
        (("every=True", "a whole number"), {"every": True}),
        (("seconds=0", "above 0"), {"seconds": 0}),
        (("seconds=nan", "above 0"), {"seconds": float("nan")}),
        (("seconds='1'", "above 0"), {"seconds": "1"}),
    ],
)
def test_throttles_that_make_no_sense(words: tuple[str, ...], options: dict[str, Any]) -> None:
    refused(errors.CallbackError, *words, action=lambda: lc.throttle(lc.Recorder(), lc.StepEnd, **options))


def test_throttling_what_cannot_be_throttled() -> None:
    words: tuple[str, ...] = ("Recorder does not listen to LossBegin",)
    refused(errors.CallbackError, *words, action=lambda: lc.throttle(lc.Recorder(), lc.LossBegin, every=2))
    refused(errors.CallbackError, "instance", action=lambda: lc.throttle(lc.Recorder, lc.StepEnd, every=2))  # type: ignore[arg-type]
    refused(errors.EventError, "class of an event", action=lambda: lc.throttle(lc.Recorder(), lc.StepEnd(), every=2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "words", "make"),
    [
        (ValueError, ("positive norm or value", "norm='1'"), lambda: untyped.GradientClipping("1")),
        (ValueError, ("positive norm or value", "value=nan"), lambda: untyped.GradientClipping(value=float("nan"))),
        (ValueError, ("positive norm or value", "norm=True"), lambda: untyped.GradientClipping(True)),
        (ValueError, ("decay of AveragedWeights is in [0, 1)", "not 'a'"), lambda: untyped.AveragedWeights("a")),
        (ValueError, ("whole number of updates", "not 'a'"), lambda: untyped.AveragedWeights(0.9, start="a")),
        (ValueError, ("whole number of updates, at least 0", "not -1"), lambda: untyped.AveragedWeights(0.9, start=-1)),
        (ValueError, ("alpha of MixUp is positive", "not 'a'"), lambda: untyped.MixUp("a")),
        (ValueError, ("MixUp(classes=0)", "a whole number, at least 1"), lambda: untyped.MixUp(classes=0)),
        (ValueError, ("MixUp(classes='a')",), lambda: untyped.MixUp(classes="a")),
        (ValueError, ("epsilon of LabelSmoothing is in [0, 1]", "not 'a'"), lambda: untyped.LabelSmoothing("a")),
        (ValueError, ("LabelSmoothing(classes=-1)",), lambda: untyped.LabelSmoothing(classes=-1)),
        (ValueError, ("beta='a'", "at least 0 and below 1"), lambda: untyped.SmoothLoss("a")),
        (errors.CallbackError, ("'w' for epochs='a'", "at least 0"), lambda: untyped.Freeze("w", epochs="a")),
        (errors.CallbackError, ("'w' for epochs=-1", "None"), lambda: untyped.Freeze("w", epochs=-1)),
        (errors.CallbackError, ("'b' for epochs=0.5",), lambda: untyped.Freeze({"a": 1, "b": 0.5})),
        (TypeError, ("the class Strange", "write Strange(...)"), lambda: untyped.Metric(Strange)),
        (TypeError, ("schedule", "not 0.1", "lc.schedules.constant(0.1)"), lambda: untyped.schedules.scale(0.1, 2)),
        (TypeError, ("lc.schedules.constant(0.1)",), lambda: untyped.schedules.shift(0.1, 2)),
        (TypeError, ("lc.schedules.constant(0.1)",), lambda: untyped.schedules.warmup(0.1, 2)),
        (TypeError, ("lc.schedules.constant(1)",), lambda: untyped.schedules.sequence(lambda step: step, 1, at=(2,))),
        (ValueError, ("length='a'", "a number of steps above 0"), lambda: untyped.schedules.linear(0.0, 1.0, "a")),
        (ValueError, ("rise='a'", "above 0 and below 1"), lambda: untyped.one_cycle(0.1, 10, rise="a")),
    ],
)  # fmt: skip
def test_arguments_of_parts_that_make_no_sense(
    kind: type[BaseException], words: tuple[str, ...], make: Callable[[], Any]
) -> None:
    refused(kind, *words, action=make)


def test_numbers_of_numpy_are_numbers() -> None:
    assert untyped.GradientClipping(np.float32(0.5)).norm == 0.5
    assert untyped.MixUp(np.float32(0.5), classes=np.int64(3)).alpha == 0.5
    assert untyped.Freeze("w", epochs=np.int64(2)).epochs == {"w": 2}


def test_a_list_where_callbacks_are_wanted() -> None:
    callbacks: Any = toy_learner().callbacks
    for name in ("set", "add", "remove"):
        words = (f"callbacks.{name}(*callbacks)", "takes callbacks one by one, not a list of them")
        refused(errors.CallbackError, *words, action=partial(getattr(callbacks, name), [lc.Recorder()]))


# ---- metrics, hyperparameters, weights


def test_metrics_that_make_no_sense() -> None:
    words: tuple[str, ...] = ("two metrics are named 'accuracy'", "Metric(fn, name=...)")
    refused(errors.CallbackError, *words, action=lambda: lc.Metrics(lc.accuracy, lc.accuracy))
    refused(TypeError, "lambda has no name", "name='...'", action=lambda: lc.Metrics(lambda y_pred, ys: 1.0))
    refused(TypeError, "not 5", action=lambda: lc.Metrics(5))
    refused(ValueError, 'over is "step" or "epoch", not \'epochs\'', action=lambda: lc.Metric("kl", over="epochs"))  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"metric 'kl' had no value in this fit: no phase wrote state\.kl"):
        toy_learner([lc.Metrics("kl")]).fit(1)
    shaped = lc.Metric(lambda y_pred, ys: y_pred, name="shaped")
    learner = toy_learner([lc.Metrics(shaped)])
    refused(errors.LossError, "'shaped'", "shape (4, 1)", "mean", action=lambda: learner.fit(1))


@pytest.mark.parametrize("metric", [lc.accuracy, lc.top_k_accuracy(2)], ids=lambda metric: metric.__name__)
@pytest.mark.parametrize(
    ("y_pred", "ys", "words"),
    [
        (np.eye(3), np.zeros((3, 1), int), ("int64 ys of shape (3, 1)", "labels of shape (3,)")),
        (np.eye(3), np.zeros(1, int), ("ys of shape (1,)", "one-hot rows of the shape of y_pred")),
        (np.eye(3), np.zeros((2, 3)), ("float64 ys of shape (2, 3)",)),
        (np.zeros((2, 4, 3)), np.zeros((4, 2), int), ("labels of shape (2, 4)",)),
        (np.zeros((3, 1)), np.zeros(3, int), ("y_pred of shape (3, 1)", "a single class", "> 0")),
        (np.zeros((3, 1)), np.zeros((3, 1)), ("a single class",)),
        (np.zeros(()), np.zeros((), int), ("y_pred of shape ()", "(..., classes)")),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_not_counted(metric: Any, y_pred: Any, ys: Any, words: tuple[str, ...]) -> None:
    refused(errors.LossError, f"{metric.__name__} got", *words, action=lambda: metric(y_pred, ys))


def test_labels_that_fit_are_counted() -> None:
    logits = np.eye(3)[None].repeat(2, axis=0)
    labels = np.array([[0, 1, 2], [0, 1, 1]])
    for ys in (labels, np.eye(3)[labels]):
        assert float(lc.accuracy(logits, ys)) == pytest.approx(5 / 6)
        assert float(lc.top_k_accuracy(1)(logits, ys)) == pytest.approx(5 / 6)


def test_typos_in_hyperparameters() -> None:
    learner = toy_learner(hyper={"kl_weight": 0.5})
    words: tuple[str, ...] = ("no hyperparameter 'kl_weigth'", "there are: kl_weight, learning_rate")
    refused(AttributeError, *words, action=lambda: learner.hyper.kl_weigth)
    refused(AttributeError, "'learning_rat'", action=lambda: setattr(learner.hyper, "learning_rat", 0.5))
    refused(AttributeError, "'w.learning_rate'", action=lambda: learner.hyper["w.learning_rate"])
    refused(TypeError, "'kl_weight' is a number, not 'x'", action=lambda: setattr(learner.hyper, "kl_weight", "x"))
    refused(TypeError, "SGD(learning_rate='x')", "learner.hyper.learning_rate", action=lambda: lc.SGD("x"))  # type: ignore[arg-type]
    refused(ValueError, "SGD(learning_rate=-1)", "must not be negative", action=lambda: lc.SGD(-1))
    assert (learner.hyper.kl_weight, learner.hyper.learning_rate) == (0.5, 0.1)


def test_weights_that_do_not_fit_name_every_mismatch_and_write_nothing() -> None:
    params = {"a": np.zeros(2), "b": np.zeros((2, 3)), "c": np.zeros(1), "d": np.zeros(1)}
    learner = toy_learner(model=(lambda p, xs: xs * p["c"], params))
    wrong = {"a": np.ones(2), "b": np.ones((3, 2)), "c": np.array(["x"]), "e": np.ones(1)}
    error = refused(errors.WeightsError, "nothing was loaded", action=lambda: learner.import_weights(wrong))
    listed = [line.strip() for line in str(error).splitlines()[1:]]
    assert listed == [
        "e: the model has no such weight",
        "d: missing",
        "b: the model has shape [2, 3], the value [3, 2]",
        "c: the model has dtype float64, the value <U1",
    ]
    assert all(not value.any() for value in learner.export_weights().values())
    refused(errors.WeightsError, "dict from path to array", action=lambda: learner.import_weights([1]))  # type: ignore[arg-type]
    two, other = {"c": np.ones(2)}, {"z": np.ones(1)}
    refused(errors.WeightsError, "shape [1]", "[2]", action=lambda: setattr(learner.params.c, "value", two))
    refused(errors.WeightsError, "structure", "['z']", action=lambda: setattr(learner.params, "value", other))
    refused(errors.WeightsError, "a NoneType", action=lambda: learner.update(None))
    refused(errors.GradientError, "'c'", "(3,)", action=lambda: learner.update({"c": np.ones(3)}, learner.params.c))


def test_names_that_are_not_there() -> None:
    learner = toy_learner()
    learner.fit(1)
    refused(errors.UnknownMetricError, "history has no 'acc'. It has: loss", action=lambda: learner.history["acc"])
    refused(AttributeError, "no params 'v' here; there are: w", action=lambda: learner.params.v)
    refused(AttributeError, "no model 'critic'", "learner.model.native", action=lambda: learner.model.critic)
    refused(AttributeError, "nothing wrote shared.x yet", "history", action=lambda: learner.shared.x)
    refused(errors.UnknownModelError, "no backend 'torhc'", "torch", action=lambda: lc.use("torhc"))


# ---- a framework that is not installed


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_a_framework_that_is_not_installed(backend: str, fresh: Callable[..., str]) -> None:
    printed = fresh(
        f"""
        import loopcore as lc

        assert lc.testing.toy_learner().fit(1).status == "completed"
        try:
            lc.testing.toy_learner(backend={backend!r})
        except ImportError as error:
            print(type(error).__name__, error)
        """,
        blocked=("torch", "jax", "tensorflow", "loopcore_jax", "loopcore_tensorflow"),
    )
    assert re.match(rf"MissingFrameworkError the {backend} backend needs \w*{backend}, which is not installed", printed)
    assert f"pip install 'loopcore[{backend}]'" in printed


@pytest.mark.parametrize(
    ("backend", "package", "install"),
    [
        ("numpy", "autograd", "autograd"),
        ("torch", "torch", "'loopcore[torch]'"),
        ("jax", "jax", "'loopcore[jax]'"),
        ("jax", "jaxlib", "'loopcore[jax]'"),
        ("jax", "optax", "'loopcore[jax]'"),
        ("tensorflow", "tensorflow", "'loopcore[tensorflow]'"),
        ("tensorflow", "keras", "'loopcore[tensorflow]'"),
    ],
)
def test_half_of_a_framework(backend: str, package: str, install: str, fresh: Callable[..., str]) -> None:
    printed = fresh(
        f"""
        import loopcore as lc

        try:
            lc.testing.toy_learner(backend={backend!r})
        except lc.errors.MissingFrameworkError as error:
            print(error)
        """,
        blocked=(package,),
    )
    assert printed == f"the {backend} backend needs {package}, which is not installed: pip install {install}\n"


def test_the_packages_of_an_adapter_are_those_of_its_extra() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    for name, adapter in registry.BUILT_IN.items():
        brought = project["optional-dependencies"].get(name, project["dependencies"])
        assert {re.split(r"\W", line)[0] for line in brought} >= adapter.needs - {"jaxlib"}, name  # jax brings jaxlib
        assert name in ("numpy", *project["optional-dependencies"])
