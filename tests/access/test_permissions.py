"""What a callback may touch, as it declares it; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from operator import setitem
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing import toy_learner
from tests.refusals import refused


class Containers(lc.AbstractTrainingPhase):
    """The supervised step, with containers in its state."""

    data_key = "training"

    def unpack(self, batch: Any) -> dict[str, Any]:
        xs, ys = batch
        return {
            "xs": xs,
            "ys": ys,
            "parts": {"a": xs, "names": ["x"]},
            "pair": ([1.0], (xs,)),
            "odd": OrderedDict(b=xs),
        }

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.y_pred = learner.model(state.xs)
            handle(lc.LossBegin())
            state.loss = learner.loss_fn(state.y_pred, state.ys)
            handle(lc.BackwardBegin())
            return state.loss

        learner.minimize(objective)


class Meddler(lc.Callback):
    """Reads everything, declares no write, and tries to change what it was handed at every moment."""

    reads = ("step", "params", "buffers", "model", "optimizer", "hyper", "data", "shared.history", "shared.box")

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.allowed: set[str] = set()

    @lc.on(lc.Event)
    def meddle(self, learner: Any, phase: Any) -> None:
        self.attempt("epoch", AttributeError, lambda: setattr(learner.epoch, "completed", 99))
        self.attempt("epoch", AttributeError, lambda: setattr(learner, "step", None))
        self.attempt("hyper", lc.AccessError, lambda: setattr(learner.hyper, "learning_rate", 9.0))
        self.attempt("hyper item", lc.AccessError, lambda: setitem(learner.hyper, "learning_rate", 9.0))
        self.attempt("params", lc.AccessError, lambda: setattr(learner.params, "value", {"w": np.full(1, 9.0)}))
        self.attempt("params.w", lc.AccessError, lambda: setattr(learner.params.w, "value", {"w": np.full(1, 9.0)}))
        self.attempt("optimizer", TypeError, lambda: setitem(learner.optimizer, "", lc.SGD(9.0)))
        self.attempt("data", TypeError, lambda: setitem(learner.data, "training", []))
        self.attempt("counts", AttributeError, lambda: setattr(learner.shared.history["training"], "steps", 99))
        self.attempt("shared", lc.AccessError, lambda: setattr(learner.shared, "box", 1))
        self.attempt("delete", lc.AccessError, lambda: delattr(learner.shared, "box"))
        self.attempt("update", lc.AccessError, lambda: learner.update({"w": np.full(1, 9.0)}))
        self.attempt("import", lc.AccessError, lambda: learner.import_weights({"w": np.full(1, 9.0)}))
        self.attempt("params array", ValueError, lambda: learner.params.value["w"].fill(9.0))
        learner.model.native[1]["w"][...] = 9.0  # a copy: theirs to change
        self.arrays(learner)

    def arrays(self, learner: Any) -> None:
        self.attempt("shared array", ValueError, lambda: learner.shared.box["array"].fill(9.0))
        for name in ("xs", "ys", "y_pred", "grads", "loss"):
            if hasattr(learner.step, name):
                self.attempt(f"set {name}", lc.AccessError, partial(setattr, learner.step, name, 9.0))
                value = getattr(learner.step, name)
                array = value["w"] if name == "grads" else value
                if isinstance(array, np.ndarray) and array.ndim:
                    self.attempt(f"fill {name}", ValueError, partial(array.fill, 9.0))
        if hasattr(learner.step, "parts"):
            self.attempt("leaf", ValueError, lambda: learner.step.parts["a"].fill(9.0))
            self.attempt("leaf in tuple", ValueError, lambda: learner.step.pair[1][0].fill(9.0))

    def attempt(self, what: str, refusal: type[Exception], action: Callable[[], Any]) -> None:
        try:
            action()
        except (refusal, lc.AccessError):
            self.refused.add(what)
        else:
            self.allowed.add(what)


class BoxKeeper(lc.Callback):
    """Keeps a container in shared, which others may read."""

    writes = ("shared.box",)

    def setup(self, learner: Any) -> None:
        learner.shared.box = {"list": [1.0], "inner": {}, "tuple": ([1.0],), "array": np.ones(3)}


def test_a_reader_changes_nothing_it_was_handed() -> None:  # P-1
    """A declared read handed out the raw object, so that a reader could change batch, parameters and counts."""
    meddler, keep = Meddler(), lc.FunctionCallback(lambda learner, phase: None, lc.StepEnd, reads=("step",))
    learner = toy_learner([meddler, BoxKeeper()], phases=[Containers()], hyper={"kl": 0.5})
    calm = toy_learner([keep], phases=[Containers()])
    learner.fit(2)
    calm.fit(2)
    assert not meddler.allowed
    assert {"fill xs", "fill y_pred", "fill grads", "leaf", "leaf in tuple", "counts", "epoch"} <= meddler.refused
    np.testing.assert_array_equal(learner.params.value["w"], calm.params.value["w"])
    assert learner.history["loss"] == calm.history["loss"]
    assert learner.shared.history == calm.shared.history
    assert learner.optimizer == calm.optimizer and list(learner.data) == list(calm.data)
    box = learner.shared.box
    assert (box["list"], box["inner"], box["tuple"], box["array"].tolist()) == ([1.0], {}, ([1.0],), [1.0, 1.0, 1.0])
    state = learner.step
    assert state.parts["names"] == ["x"] and set(state.parts) == {"a", "names"} and state.pair[0] == [1.0]
    assert list(state.odd) == ["b"]
    np.testing.assert_array_equal(state.xs, np.ones((4, 1)))


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("shared.box", lambda learner: learner.shared.box["list"].append(9.0)),
        ("shared.box", lambda learner: setitem(learner.shared.box["inner"], "x", 9.0)),
        ("shared.box", lambda learner: learner.shared.box["tuple"][0].append(9.0)),
        ("step.parts", lambda learner: setitem(learner.step.parts, "more", 9.0)),
        ("step.parts", lambda learner: learner.step.parts["names"].append("y")),
        ("step.pair", lambda learner: learner.step.pair[0].append(9.0)),
        ("step.odd", lambda learner: setitem(learner.step.odd, "more", 9.0)),
        ("step.grads", lambda learner: learner.step.grads.clear()),
    ],
)
@pytest.mark.parametrize("event", [lc.StepBegin, lc.LossBegin, lc.BackwardEnd, lc.StepEnd, lc.EpochEnd, lc.FitEnd])
def test_a_reader_gets_copies_of_containers(path: str, change: Callable[[Any], Any], event: type[lc.Event]) -> None:
    """A reader gets copies of containers, and is told that changing them changes nothing."""
    if path == "step.grads" and event in (lc.StepBegin, lc.LossBegin):
        event = lc.BackwardEnd  # there are none before
    meddler = lc.FunctionCallback(lambda learner, phase: change(learner), event, reads=("step", "shared.box"))
    learner = toy_learner([meddler, BoxKeeper()], phases=[Containers()], steps=1)
    with pytest.raises(lc.AccessError, match=rf"changes {path.replace('.', '[.]')} in place.*writes=\('{path}',\)"):
        learner.fit(1)
    box, state = learner.shared.box, learner.step
    assert (box["list"], box["inner"], box["tuple"], box["array"].tolist()) == ([1.0], {}, ([1.0],), [1.0, 1.0, 1.0])
    assert state.parts["names"] == ["x"] and set(state.parts) == {"a", "names"} and state.pair[0] == [1.0]
    assert list(state.odd) == ["b"] and (event in (lc.StepBegin, lc.LossBegin) or list(state.grads) == ["w"])


def test_what_is_written_by_one_who_declared_it_arrives() -> None:
    """The other side of P-1: a declared write reaches the loop, and the arrays of the user's data stay theirs."""
    xs = np.ones((4, 1))

    def double(learner: Any, phase: Any) -> None:
        learner.step.xs = learner.step.xs * 2

    writer = lc.FunctionCallback(double, lc.StepBegin, writes=("step.xs",))
    learner = toy_learner([writer], data=([(xs, np.ones((4, 1)))], None))
    learner.fit(1)
    np.testing.assert_allclose(learner.params.value["w"], [0.4], rtol=1e-15)  # gradient of (2w - 1)**2 at 0 is -4
    np.testing.assert_array_equal(xs, np.ones((4, 1)))


def test_permissions_hold_in_setup() -> None:  # P-2
    """``init!`` got the unprotected learner, although permissions were documented to apply."""

    class Sneaky(lc.Callback):
        def setup(self, learner: Any) -> None:
            learner.shared.history = "mine"

    class Peeping(lc.Callback):
        def setup(self, learner: Any) -> None:
            _ = learner.params.value

    with pytest.raises(lc.AccessError, match=r"Sneaky writes shared\.history.*writes = \('shared\.history',\)"):
        toy_learner([Sneaky()])
    learner = toy_learner()
    before = list(learner.callbacks)
    with pytest.raises(lc.AccessError, match=r"Peeping reads params.*reads = \('params',\)"):
        learner.callbacks.add(Peeping())
    assert list(learner.callbacks) == before
    assert learner.fit(1).status == "completed"


def test_callbacks_are_set_up_in_their_order() -> None:  # P-3
    """``init!`` ran in the order of the list, so that a reader could be set up before its writer."""
    order: list[str] = []

    class Zeta(lc.Callback):
        writes = ("shared.x",)

        def setup(self, learner: Any) -> None:
            learner.shared.x = 1.0
            order.append("Zeta")

    class Alpha(lc.Callback):
        reads = ("shared.x",)

        def setup(self, learner: Any) -> None:
            order.append(f"Alpha saw {learner.shared.x}")

    for callbacks in ([Alpha(), Zeta()], [Zeta(), Alpha()]):
        order.clear()
        toy_learner(callbacks)
        assert order == ["Zeta", "Alpha saw 1.0"]


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_a_refusal_names_what_was_touched(write: bool) -> None:  # P-4
    """The refusal had its parameters swapped: the message showed the value where the name belongs."""

    class Careless(lc.Callback):
        reads = ("step.loss",)
        writes = ("shared.mine",)

        def setup(self, learner: Any) -> None:
            learner.shared.mine = 0

        @lc.on(lc.StepEnd)
        def look(self, learner: Any, phase: Any) -> None:
            if write:
                learner.step.weight = "a value"
            else:
                print(learner.step.xs)

    with pytest.raises(lc.AccessError) as caught:
        toy_learner([Careless()]).fit(1)
    text = str(caught.value)
    assert ("Careless writes step.weight" if write else "Careless reads step.xs") in text
    added = "writes = ('shared.mine', 'step.weight',)" if write else "reads = ('step.loss', 'step.xs',)"
    assert added in text and "test_permissions.py:" in text
    assert "a value" not in text
    assert any("callback Careless at StepEnd of phase 'training'" in note for note in caught.value.__notes__)


def test_permissions_are_looked_up_by_name_only() -> None:  # P-5
    """Permissions were looked up by index: an integer key picked one by its position, other keys crashed."""
    seen: list[Any] = []

    class ByKey(lc.Callback):
        reads = ("hyper.kl", "params.w")

        @lc.on(lc.StepEnd)
        def look(self, learner: Any, phase: Any) -> None:
            seen.append((learner.hyper["kl"], learner.hyper.kl, learner.params["w"].value["w"].shape))
            for key in (0, 1, ("kl",), None, "learning_rate"):
                for container in (learner.hyper, learner.params):
                    with pytest.raises(lc.AccessError):
                        container[key]

    toy_learner([ByKey()], hyper={"kl": 0.5}, steps=1).fit(1)
    assert seen == [(0.5, 0.5, (1,))]


def test_asking_for_names_is_guarded_and_creates_nothing() -> None:  # P-6
    """Asking for keys was unchecked, views listed their private fields, and reading created state."""

    class Curious(lc.Callback):
        reads = ("shared.history", "step.loss")

        @lc.on(lc.StepEnd)
        def look(self, learner: Any, phase: Any) -> None:
            with pytest.raises(lc.AccessError):
                hasattr(learner.step, "xs")
            with pytest.raises(lc.AccessError):
                hasattr(learner.shared, "metrics_epoch")
            with pytest.raises(lc.AccessError):
                vars(learner.step)
            assert hasattr(learner.step, "loss") and not hasattr(learner, "callbacks")
            assert not {"data", "perms", "shared_state"} & set(dir(learner))
            assert learner.shared.history["never ran"] == (0, 0, 0, 0)
            assert "never ran" not in learner.shared.history and list(learner.shared.history) == ["training"]

    learner = toy_learner([Curious()], steps=2)
    assert learner.fit(1).status == "completed"
    assert list(learner.shared.history) == ["training"]


def test_permissions_of_hyperparameters_are_kept_apart() -> None:  # P-7
    """The permissions of several hyperparameters were merged at the top only: one nested entry replaced the others."""

    class Tuner(lc.Callback):
        reads = ("params.a", "params.b.w", "hyper.kl")
        writes = ("hyper.a.learning_rate", "hyper.momentum")

        @lc.on(lc.StepBegin)
        def tune(self, learner: Any, phase: Any) -> None:
            learner.hyper["a.learning_rate"] = 0.5
            learner.hyper.momentum = learner.hyper.kl
            _ = learner.params.a.value, learner.params.b.w.value
            with pytest.raises(lc.AccessError, match=r"params\.b,"):
                _ = learner.params.b.value
            with pytest.raises(lc.AccessError, match=r"hyper\.b\.learning_rate"):
                learner.hyper["b.learning_rate"] = 0.5
            with pytest.raises(lc.AccessError, match=r"hyper\.learning_rate"):
                learner.hyper.learning_rate = 0.5

    params = {name: {"w": np.zeros(1), "v": np.zeros(1)} for name in ("a", "b")}
    learner = toy_learner(
        [Tuner()],
        model=(lambda p, x: x * p["a"]["w"] * p["b"]["w"], params),
        optimizer={"a": lc.SGD(0.1), "b": lc.Momentum(0.1)},
        hyper={"kl": 0.25},
        steps=1,
    )
    learner.fit(1)
    assert learner.hyper["a.learning_rate"] == 0.5 and learner.hyper["b.learning_rate"] == 0.1
    assert learner.hyper.momentum == 0.25


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


def test_undeclared_reads_and_writes() -> None:
    words: tuple[str, ...] = ("Reader reads step.grads", "test_permissions.py:", "reads = ('step.loss', 'step.grads',)")
    refused(lc.AccessError, *words, action=lambda: toy_learner([Reader()]).fit(1))
    words = ("Writer writes step.xs", "class Writer", "writes = ('step.xs',)")
    refused(lc.AccessError, *words, action=lambda: toy_learner([Writer()]).fit(1))
    function = lc.FunctionCallback(lambda learner, phase: learner.step.grads, lc.StepEnd, reads=("step.loss",))
    words = ("Pass FunctionCallback(..., reads=('step.loss', 'step.grads',))",)
    refused(lc.AccessError, *words, action=lambda: toy_learner([function]).fit(1))
