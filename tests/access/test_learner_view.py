"""The guarded views: random declarations against random accesses, with an oracle that knows only the rule.

The rule: a path may be read if it, or a path above it, stands in ``reads``, ``writes`` or ``carries``; it may be
written if one of them stands in ``writes``. Everything else is an AccessError that names the path.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing import toy_learner

STEP = ("xs", "ys", "y_pred", "loss", "grads")
SHARED = ("one", "two", "three")
PARAMS = ("a", "b")
HYPER = ("kl", "tau", "learning_rate")
PATHS = (
    *("step", "shared", "hyper", "params", "model", "data", "optimizer"),
    *(f"step.{name}" for name in STEP),
    *(f"shared.{name}" for name in SHARED),
    *(f"hyper.{name}" for name in HYPER),
    *(f"params.{name}" for name in PARAMS),
    *("params.a.w", "params.a.v", "params.b.w"),
)


def follow(learner: Any, path: str) -> Any:
    for name in path.split("."):
        learner = getattr(learner, name)
    return learner


def read(path: str, learner: Any) -> Any:
    root, _, rest = path.partition(".")
    if root == "model":
        return learner.model(np.ones((1, 1)))
    if root == "params":
        return follow(learner, path).value
    if root == "hyper" and not rest:
        return [learner.hyper[name] for name in HYPER]
    if root in ("step", "shared") and not rest:
        return [getattr(getattr(learner, root), name) for name in (STEP if root == "step" else SHARED)]
    return follow(learner, path)


def write(path: str, learner: Any) -> None:
    root, _, rest = path.partition(".")
    above, _, name = path.rpartition(".")
    if root == "params":
        handle = follow(learner, path)
        handle.value = READ_BY_ALL[path]
    elif rest:
        setattr(follow(learner, above), name, 0.5 if root == "hyper" else READ_BY_ALL[path])
    else:
        setattr(learner, path, None)


READ_BY_ALL: dict[str, Any] = {}  # path -> a value that fits there


class Declared(lc.Callback):
    """Declares what it is told, and does what it is told at BackwardEnd."""

    def __init__(self, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
        self.reads, self.writes = reads, writes
        self.action: Callable[[Any], Any] = lambda learner: None

    @lc.on(lc.BackwardEnd)
    def act(self, learner: Any, phase: Any) -> None:
        self.action(learner)


class Keeper(lc.Callback):
    """Writes the shared values, where nobody else does."""

    writes = tuple(f"shared.{name}" for name in SHARED)

    def setup(self, learner: Any) -> None:
        for name in SHARED:
            setattr(learner.shared, name, np.ones(2))

    def resolve_conflict(self, other: lc.Callback) -> Any:
        return lc.RunFirst(self)


def learner_with(callback: Declared) -> lc.Learner:
    params = {name: {"w": np.ones(1), "v": np.ones(1)} for name in PARAMS}
    return toy_learner(
        [Keeper(), callback],
        model=(lambda p, xs: xs * p["a"]["w"] * p["b"]["w"], params),
        hyper={"kl": 0.5, "tau": 0.5},
        default_callbacks=False,
        quiet=False,
        steps=1,
    )


@pytest.fixture(scope="module", autouse=True)
def _values() -> None:
    callback = Declared(PATHS, ())
    callback.action = lambda learner: READ_BY_ALL.update({path: read(path, learner) for path in PATHS})
    learner_with(callback).fit(1)


def covered(path: str, declared: set[str]) -> bool:
    """The rule itself."""
    parts = path.split(".")
    return any(".".join(parts[:n]) in declared for n in range(1, len(parts) + 1))


def may_write(path: str, declared: set[str]) -> bool:
    """Roots themselves are never assigned, parameters are, and what lies below the other roots is."""
    if path == "params":
        return path in declared
    return "." in path and covered(path, declared)


def parts_of(path: str) -> set[str]:
    """What a read of a whole root reads, as this test reads it."""
    names = {"step": STEP, "shared": SHARED, "hyper": HYPER}.get(path)
    return {path} if names is None else {f"{path}.{name}" for name in names}


def attempt(callback: Declared, learner: lc.Learner, action: Callable[[Any], Any]) -> str | None:
    """None if the access went through, else what the AccessError says."""
    result: list[str | None] = []

    def act(view: Any) -> None:
        try:
            action(view)
            result.append(None)
        except lc.AccessError as error:
            result.append(str(error))

    callback.action = act
    learner.fit(1)
    return result[0]


@pytest.mark.parametrize("seed", range(20))
def test_random_accesses_follow_the_rule(seed: int) -> None:
    random = Random(seed)
    refused = allowed = 0
    for _ in range(5):
        reads = set(random.sample(PATHS, random.randint(0, 5)))
        writes = set(random.sample(PATHS, random.randint(0, 3)))
        callback = Declared(tuple(sorted(reads)), tuple(sorted(writes)))
        learner = learner_with(callback)
        for _ in range(20):
            path, writing = random.choice(PATHS), random.random() < 0.5
            fine = may_write(path, writes) if writing else all(covered(p, reads | writes) for p in parts_of(path))
            said = attempt(callback, learner, partial(write if writing else read, path))
            assert (said is None) is fine, (path, writing, sorted(reads), sorted(writes), said)
            if said is not None and "." in path:
                assert path in said or any(f" {path.rsplit('.', n)[0]}," in said for n in (1, 2))
                assert "Pass Declared(" in said or "assigns learner" in said
            refused, allowed = refused + (said is not None), allowed + (said is None)
    assert refused + allowed == 100 and refused > 10 and allowed > 2


def test_two_thousand_writes_that_nobody_declared_change_nothing() -> None:
    """Every way to write that Python has, on everything a reader of it all can reach, while nothing is declared."""
    random = Random(0)
    ways: tuple[Callable[[Any, str], Any], ...] = (
        lambda target, name: setattr(target, name, 9.0),
        lambda target, name: delattr(target, name),
        lambda target, name: target.__setitem__(name, 9.0),
        lambda target, name: target.update({name: 9.0}),
        lambda target, name: target.pop(name),
        lambda target, name: target.clear(),
        lambda target, name: target[name].fill(9.0),
        lambda target, name: getattr(target, name).fill(9.0),
        lambda target, name: getattr(target, name).sort(axis=0),
        lambda target, name: getattr(target, name).__iadd__(9.0),
        lambda target, name: np.copyto(getattr(target, name), 9.0),
        lambda target, name: getattr(target, name).append(9.0),
        lambda target, name: getattr(target, name).__setitem__(..., 9.0),
    )
    names = (*STEP, *SHARED, *HYPER, *PARAMS, "w", "v", "value", "training", "completed", "steps", "", "nothing")
    targets: tuple[Callable[[Any], Any], ...] = (
        *(partial(_get, root) for root in ("step", "shared", "hyper", "params", "data", "optimizer", "epoch")),
        lambda learner: learner,
        lambda learner: learner.params.value,
        lambda learner: learner.params.value["a"],
        lambda learner: learner.params.a,
        lambda learner: learner.step.grads,
        lambda learner: learner.step.grads["a"],
        lambda learner: learner.model,
    )
    refused = 0

    def act(learner: Any) -> None:
        nonlocal refused
        for _ in range(700):
            try:
                random.choice(ways)(random.choice(targets)(learner), random.choice(names))
            except (AttributeError, TypeError, ValueError, LookupError, lc.AccessError):
                refused += 1

    meddler, calm = Declared(tuple(PATHS), ()), Declared(tuple(PATHS), ())
    meddler.action = act
    learner, twin = learner_with(meddler), learner_with(calm)
    for _ in range(3):  # the copies of containers can be changed, which is found when the handler ends
        with pytest.raises(lc.AccessError, match=r"Declared changes step\.grads in place"):
            learner.fit(1)
    assert refused > 1800
    meddler.action = calm.action
    learner.fit(3)
    twin.fit(3)
    for (name, value), other in zip(learner.export_weights().items(), twin.export_weights().values(), strict=True):
        np.testing.assert_array_equal(value, other, name)
    assert {name: learner.hyper[name] for name in HYPER} == {name: twin.hyper[name] for name in HYPER}
    assert [getattr(learner.shared, name).tolist() for name in SHARED] == [[1.0, 1.0]] * 3
    assert set(vars(learner.shared)) == set(vars(twin.shared)) and set(vars(learner.step)) == set(vars(twin.step))
    assert list(learner.data) == list(twin.data) and learner.optimizer == twin.optimizer
    assert learner.epoch is not None and learner.epoch.completed == 1


def _get(name: str, learner: Any) -> Any:
    return getattr(learner, name)


@pytest.mark.parametrize("verb", ["update", "minimize", "import_weights", "set_model", "to_device", "gradient", "grad"])
def test_verbs_need_their_declarations(verb: str) -> None:
    needs = {
        "update": ((), ("params", "optimizer")),
        "minimize": ((), ("params", "optimizer")),
        "import_weights": ((), ("params",)),
        "set_model": ((), ("model",)),
        "to_device": ((), ("model",)),
        "gradient": (("params",), ()),
        "grad": (("model",), ()),
    }
    reads, writes = needs[verb]
    for declared in [(), *((path,) for path in writes), writes]:
        callback = Declared((), declared) if writes else Declared(declared, ())
        said = attempt(callback, learner_with(callback), partial(_get, verb))
        assert (said is None) is (set(declared) == set(writes) and not reads), (declared, said)
    callback = Declared(reads, writes)
    assert attempt(callback, learner_with(callback), partial(_get, verb)) is None


def test_a_callback_may_update_outside_a_step() -> None:
    """Ragged accumulation: what was gathered is applied when the epoch ends."""

    class Applies(lc.Callback):
        writes = ("params", "optimizer")

        @lc.on(lc.EpochEnd)
        def apply(self, learner: Any, phase: Any) -> None:
            learner.update({"w": np.full(1, 10.0)})
            learner.params.w.value = {"w": learner.params.w.value["w"] + 1.0}

    learner = toy_learner([Applies()], data=([(np.ones((4, 1)), np.zeros((4, 1)))], None))
    learner.fit(1)
    np.testing.assert_allclose(learner.params.value["w"], [0.0], atol=1e-15)


@pytest.mark.parametrize("event", [lc.FitBegin, lc.EpochEnd, lc.StepBegin, lc.LossBegin, lc.BackwardEnd, lc.StepEnd])
@pytest.mark.parametrize("traced", [False, True])
def test_a_handler_may_differentiate_an_objective_of_its_own(event: type[lc.Event], traced: bool) -> None:
    """Also within the objective of the body: what it gets is concrete, and the body's gradient stays what it was."""
    if traced and event in (lc.FitBegin, lc.EpochEnd):
        with pytest.raises(lc.errors.CallbackError, match="cannot be traced"):
            lc.on(event, traced=True)
        return

    class Curves(lc.Callback):
        reads = ("params", "model", "step.xs")

        def __init__(self) -> None:
            self.found: list[Any] = []

        @lc.on(event, traced=traced)
        def measure(self, learner: Any, phase: Any) -> None:
            def objective() -> Any:
                weight = learner.params.value["w"] if traced else learner.params.w.value["w"]
                return (learner.model(np.ones((2, 1))) * weight).sum()  # 2 w**2

            grads = learner.gradient(objective, wrt=learner.params.w)["w"]
            slope = learner.grad(lambda x: learner.model(x).sum())(np.full((2, 1), 5.0))
            self.found += [grads, slope, learner.params.value["w"]]

    callback = Curves()
    learner, calm = toy_learner([callback], steps=3), toy_learner(steps=3)
    learner.fit(1)
    calm.fit(1)
    for grads, slope, weight in zip(*(callback.found[n::3] for n in range(3)), strict=True):
        if traced and event is lc.LossBegin:
            grads, slope, weight = map(learner.stop_gradient, (grads, slope, weight))
        assert {type(grads), type(slope), type(weight)} == {np.ndarray}
        np.testing.assert_allclose(grads, 4 * weight, rtol=1e-14)
        np.testing.assert_allclose(slope, np.full((2, 1), weight[0]), rtol=1e-14)
    np.testing.assert_array_equal(learner.params.value["w"], calm.params.value["w"])
