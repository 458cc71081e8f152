"""What a compiled step depends on besides its arrays: another value is another program, never an older one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import TraceError
from loopcore.testing.conformance.subject import Subject
from loopcore.testing.conformance.test_compiled import XS, YS, make, traces

ONES = np.ones((2, 1), "float32")
SCALE, ARRAYS = 1, [np.ones(3, "float32")]


@dataclass
class Setting:
    factor: int


class Holder:
    def __init__(self, factor: int) -> None:
        self.factor = factor


class Reads(lc.ValidationPhase):
    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.loss = self.read(learner.shared.value) * learner.xp.mean(state.xs)


@pytest.mark.parametrize(
    ("make_value", "read"),
    [
        (lambda k: {"k": k}, lambda value: value["k"]),
        (lambda k: (k,), lambda value: value[0]),
        (Setting, lambda value: value.factor),
        (Holder, lambda value: value.factor),
        (lambda k: lambda: k, lambda value: value()),
        (lambda k: None if k == 1 else Holder(k), lambda value: 1 if value is None else value.factor),
    ],
    ids=["dict", "tuple", "dataclass", "object", "function", "None"],
)
def test_any_value_of_shared_that_was_read(compiling: Subject, make_value: Any, read: Any) -> None:
    learner, phase = make(compiling), Reads(read)
    losses: list[float] = []
    for factor in range(1, 6):
        learner.shared.value = make_value(factor)
        losses.append(float(learner.run_step(phase, {"xs": ONES}).loss))
    assert losses == [1, 2, 3, 4, 5]
    learner.shared.unread = object()
    assert float(learner.run_step(phase, {"xs": ONES}).loss) == 5 and traces(learner) == 5


def test_an_object_in_the_place_of_one_that_is_gone(compiling: Subject) -> None:
    """Python may give a new object the id of one that was freed, so the key of a program must not be the id alone."""

    class Scaled(lc.ValidationPhase):
        factor: Any = None

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = self.factor() * learner.xp.mean(state.xs)

    learner, phase = make(compiling), Scaled()
    losses: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for factor in range(1, 13):
            phase.factor = lambda factor=factor: factor
            losses.append(float(learner.run_step(phase, {"xs": ONES}).loss))
    assert losses == list(range(1, 13))


def test_an_object_a_body_closes_over(compiling: Subject) -> None:
    learner, phase = make(compiling), lc.ValidationPhase()

    def body_with(holder: Holder) -> Any:
        def body(learner: Any, handle: Any, state: Any) -> None:
            state.loss = holder.factor * learner.xp.mean(state.xs)

        return body

    losses = [float(lc.run_step(body_with(Holder(k)), learner, phase, xs=ONES).loss) for k in range(1, 7)]
    assert losses == [1, 2, 3, 4, 5, 6]


def test_the_default_arguments_of_a_body(compiling: Subject) -> None:
    learner, phase = make(compiling), lc.ValidationPhase()
    losses: list[float] = []
    for factor in (1, 2, 3):

        def body(handle: Any, state: Any, factor: int = factor, *, shift: int = 10 * factor) -> None:
            state.loss = (factor + shift) * learner.xp.mean(state.xs)

        losses.append(float(lc.run_step(body, learner, phase, xs=ONES).loss))
    assert losses == [11, 22, 33]


def test_a_global_number_a_body_names(compiling: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, phase = make(compiling), lc.ValidationPhase()

    def body(learner: Any, handle: Any, state: Any) -> None:
        def inner() -> Any:
            return SCALE * learner.xp.mean(state.xs)

        state.loss = inner()

    assert float(lc.run_step(body, learner, phase, xs=ONES).loss) == 1
    monkeypatch.setitem(globals(), "SCALE", 4)
    assert float(lc.run_step(body, learner, phase, xs=ONES).loss) == 4


def test_attributes_of_the_object_whose_method_the_body_is(compiling: Subject) -> None:
    class Own(Holder):
        def body(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = self.factor * learner.xp.mean(state.xs)

        def __call__(self, handle: Any, state: Any) -> None:
            state.loss = self.factor * learner.xp.mean(state.xs)

    learner, phase, owner = make(compiling), lc.ValidationPhase(), Own(1)
    losses: list[float] = []
    for owner.factor in (1, 2, 3):
        losses.append(float(lc.run_step(owner.body, learner, phase, xs=ONES).loss))
        losses.append(float(lc.run_step(owner, learner, phase, xs=ONES).loss))
    assert losses == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("hide", [tuple, list, lambda pair: {"a": pair[0]}], ids=["tuple", "list", "dict"])
def test_arrays_in_a_container_a_body_closes_over(compiling: Subject, hide: Any) -> None:
    learner, batch = make(compiling), hide((XS, YS))

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.loss = learner.xp.sum(learner.xp.stack([x for x in batch])[0])

    with pytest.raises(TraceError, match=r"uses the array 'batch' from outside"):
        lc.run_step(body, learner, lc.ValidationPhase(), xs=XS)


def test_a_global_array_that_an_inner_function_names(compiling: Subject) -> None:
    learner = make(compiling)

    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            return learner.xp.sum(learner.params.value["weight"]) * ARRAYS[0]

        learner.gradient(objective)

    with pytest.raises(TraceError, match=r"uses the array 'ARRAYS' from outside"):
        lc.run_step(body, learner, lc.TrainingPhase(), xs=XS)


def test_another_loss(compiling: Subject) -> None:
    learner, phase = make(compiling), lc.ValidationPhase()
    loss = float(learner.run_step(phase, (XS, YS)).loss)
    learner.loss_fn = lambda y_pred, ys: 3 * lc.losses.mse(y_pred, ys)
    assert float(learner.run_step(phase, (XS, YS)).loss) == pytest.approx(3 * loss, rel=1e-6)


class Shrinks(lc.Callback):
    """Takes a factor off the gradients, which its host handler changes."""

    writes = ("step.grads",)

    def __init__(self) -> None:
        self.factor, self.calls = 1, 0

    @lc.on(lc.BackwardEnd, lc.TrainingPhase, traced=True)
    def shrink(self, learner: Any, phase: Any) -> None:
        learner.step.grads = learner.tree.scale(learner.step.grads, self._factor())

    def _factor(self) -> int:
        return self.factor

    @lc.on(lc.StepEnd)
    def count(self, learner: Any, phase: Any) -> None:
        self.calls += 1


def test_attributes_that_a_traced_handler_reads(compiling: Subject) -> None:
    callback = Shrinks()
    learner, phase = make(compiling, optimizer=lc.SGD(1.0), callbacks=[callback]), lc.TrainingPhase()
    first, distances = learner.export_weights(), list[float]()
    for callback.factor in (1, 1, 2, 2, 0):
        learner.import_weights(first)
        learner.run_step(phase, (XS, YS))
        distances.append(
            sum(float(np.abs(value - first[path]).sum()) for path, value in learner.export_weights().items())
        )
    assert distances == pytest.approx([distances[0], distances[0], 2 * distances[0], 2 * distances[0], 0], rel=1e-4)
    assert callback.calls == 5 and traces(learner) == 3, "what only host handlers read makes no program"


# -- values of a batch that are no arrays


@pytest.mark.parametrize(
    "meta",
    [
        lambda k: [f"img{k}.png"],
        lambda k: {"file": k},
        lambda k: object(),
        lambda k: np.array([f"img{k}"]),
        lambda k: np.array([{"k": k}], object),
        lambda k: np.array(["2026-01-01"], "datetime64[D]"),
    ],
    ids=["list", "dict", "object", "strings", "objects", "dates"],
)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_values_that_are_no_arrays_pass_by(compiling: Subject, meta: Any, cut: bool) -> None:
    observations: list[Any] = []
    listener = lc.FunctionCallback(
        lambda learner, phase: observations.append(learner.step.meta),
        lc.BackwardEnd,
        reads=("step.meta",),
        writes=("step.grads",),
    )
    learner, phase = make(compiling, callbacks=[listener] if cut else []), lc.TrainingPhase()
    values, before = [meta(k) for k in range(6)], 0
    for number, value in enumerate(values):
        state = learner.run_step(phase, {"xs": XS, "ys": YS, "meta": value}, reads=("step.meta",))
        assert str(state.meta) == str(value)
        if number < 2:
            before = traces(learner)
    assert traces(learner) == before and list(map(str, observations)) == (list(map(str, values)) if cut else [])


def test_values_that_are_no_arrays_but_are_read(compiling: Subject) -> None:
    class Named(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            factor = 5 if getattr(state, "more", None) else 1
            state.loss = (factor + len(state.names)) * learner.xp.mean(state.xs)

    learner, phase = make(compiling), Named()
    names = [["a"], ["b", "c"], ["a"], ["b", "c"]]
    losses = [float(learner.run_step(phase, {"xs": ONES, "names": n, "no": k}).loss) for k, n in enumerate(names)]
    assert losses == [2, 3, 2, 3] and traces(learner) == 2
    assert float(learner.run_step(phase, {"xs": ONES, "names": ["a"], "more": True}).loss) == 6


# -- what is logged or named in an error


def test_further_shapes_are_logged_and_many_are_a_warning(compiling: Subject, caplog: pytest.LogCaptureFixture) -> None:
    learner, phase = make(compiling), lc.TrainingPhase()
    with caplog.at_level(logging.INFO, "loopcore"):
        for count in (6, 5):
            learner.run_step(phase, (XS[:count], YS[:count]))
        assert "compiled again: the shape of step.xs" in caplog.text and "[5, 3]" in caplog.text
    many = np.zeros((20, 3), "float32"), np.zeros((20, 2), "float32")
    with pytest.warns(UserWarning, match=r"were compiled 8 times.*the shape of step\.xs"):
        for count in range(7, 17):
            learner.run_step(phase, (many[0][:count], many[1][:count]))


def test_an_array_that_an_earlier_trace_left_behind_has_a_place(compiling: Subject) -> None:
    class Leaks(lc.ValidationPhase):
        def __init__(self) -> None:
            self.arrays: list[Any] = []

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            shift = self.arrays[-1] if self.arrays else 0.0
            state.loss = learner.xp.mean(state.xs) + shift
            self.arrays.append(state.loss)

    learner, phase = make(compiling), Leaks()
    learner.run_step(phase, {"xs": ONES})
    with pytest.raises(TraceError, match=r"test_compiled_keys\.py:\d+: .*left behind"):
        learner.run_step(phase, {"xs": ONES, "more": ONES})


def test_an_array_left_behind_in_an_attribute_is_named(compiling: Subject) -> None:
    class Leaks(lc.ValidationPhase):
        def __init__(self) -> None:
            self.last: Any = "nothing yet"

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.mean(state.xs)
            self.last = state.loss

    learner, phase = make(compiling), Leaks()
    with pytest.raises(TraceError, match=r"test_compiled_keys\.py:\d+: Leaks\.last .*left behind"):
        learner.run_step(phase, {"xs": ONES})
    assert phase.last == "nothing yet"


# -- what makes no further program


@pytest.mark.parametrize("kind", ["names", "int", "list", "shapes", "objects"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_what_no_body_reads_of_shared_makes_no_program(compiling: Subject, kind: str, cut: bool) -> None:
    cuts = [lc.FunctionCallback(lambda learner, phase: None, lc.BackwardEnd, writes=("step.grads",))] * cut
    learner, phase, first = make(compiling, callbacks=cuts), lc.TrainingPhase(), 0
    for number in range(10):
        if kind == "names":
            setattr(learner.shared, f"note_{number}", np.zeros(3))
        else:
            notes = {"int": number, "list": [np.zeros(3)] * number, "shapes": np.zeros(number), "objects": object()}
            learner.shared.note = notes[kind]
        learner.run_step(phase, (XS, YS))
        if number == 0:
            first = traces(learner)
    assert traces(learner) == first


def test_an_array_of_shared_that_a_body_reads_by_a_name_nobody_foresees(compiling: Subject) -> None:
    class Named(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            name = "no" + "te"
            state.loss = learner.xp.sum(getattr(learner.shared, name)) * learner.xp.mean(state.xs)

    learner, phase = make(compiling), Named()
    losses: list[float] = []
    for number in range(1, 5):
        learner.shared.note = learner.xp.full((2,), float(number))
        learner.shared.unread = learner.xp.zeros((number,))
        losses.append(float(learner.run_step(phase, {"xs": ONES}).loss))
    assert losses == [2, 4, 6, 8] and traces(learner) == 1


def test_a_value_of_shared_that_a_body_missed(compiling: Subject) -> None:
    class Asks(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            factor = getattr(learner.shared, "fac" + "tor", 1.0)
            state.loss = factor * learner.xp.mean(state.xs)

    learner, phase = make(compiling), Asks()
    losses = [float(learner.run_step(phase, {"xs": ONES}).loss)]
    for factor in (2, learner.xp.full((), 3.0), 4.0):
        learner.shared.factor = factor
        losses.append(float(learner.run_step(phase, {"xs": ONES}).loss))
    del learner.shared.factor
    losses.append(float(learner.run_step(phase, {"xs": ONES}).loss))
    assert losses == [1, 2, 3, 4, 1]


def test_an_array_of_shared_read_behind_a_cut_by_a_name_nobody_foresees(compiling: Subject) -> None:
    class Named(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            state.seen = getattr(learner.shared, "no" + "te") + 0.0

    def write(learner: Any, phase: Any) -> None:
        learner.shared.note = learner.shared.note + 1

    cut = lc.FunctionCallback(write, lc.BackwardEnd, writes=("shared.note",))
    learner, phase = make(compiling, callbacks=[cut], reads=("step.seen",)), Named()
    learner.shared.note = learner.xp.zeros((2,))
    values: list[list[float]] = []
    for _ in range(3):
        state = learner.run_step(phase, (XS, YS))
        values.append(learner.to_host(state.seen).tolist())
    assert values == [[1, 1], [2, 2], [3, 3]]


def test_what_another_phase_carries_is_read_as_it_is_now(compiling: Subject) -> None:
    class Counts(lc.Callback):
        writes = carries = ("shared.counted",)

        def setup(self, learner: Any) -> None:
            learner.shared.counted = 0.0

        @lc.on(lc.StepEnd, lc.AbstractTrainingPhase, traced=True)
        def count(self, learner: Any, phase: Any) -> None:
            learner.shared.counted = learner.shared.counted + 1.0

    class Reads(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.shared.counted * learner.xp.mean(state.xs)

    learner, training, validation = make(compiling, callbacks=[Counts()]), lc.TrainingPhase(), Reads()
    losses: list[float] = []
    for _ in range(3):
        learner.run_step(training, (XS, YS))
        losses.append(float(learner.run_step(validation, {"xs": ONES}).loss))
    assert losses == [1, 2, 3] and traces(learner) <= 3


def test_equal_phases_share_their_programs(compiling: Subject) -> None:
    learner = make(compiling, data=([(XS, YS)], None))
    for _ in range(12):
        learner.run_step(lc.TrainingPhase(), (XS, YS))
    learner.fit(1)
    assert traces(learner) == 1


def test_phases_of_other_attributes_do_not(compiling: Subject) -> None:
    class Scaled(lc.ValidationPhase):
        def __init__(self, factor: Any, shifts: Any = ()) -> None:
            self.factor, self.shifts = factor, shifts

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = self.factor * learner.xp.mean(state.xs) + sum(self.shifts)

    class Other(Scaled):
        pass

    learner = make(compiling)
    phases = [Scaled(1), Scaled(2), Scaled(1), Scaled(1, [1]), Scaled(1, [2]), Other(5), Scaled(2), Scaled(1, [1])]
    losses = [float(learner.run_step(phase, {"xs": ONES}).loss) for phase in phases]
    assert losses == [1, 2, 1, 2, 3, 5, 2, 2] and traces(learner) == 5
    first, second = Scaled(7), Scaled(7)
    learner.run_step(first, {"xs": ONES})
    first.factor = 8
    assert float(learner.run_step(second, {"xs": np.ones((5, 1), "float32")}).loss) == 7, "another shape: traced again"
    arrays = [Scaled(learner.xp.full((), float(k))) for k in range(3)]
    before = traces(learner)
    assert [float(learner.run_step(phase, {"xs": ONES}).loss) for phase in arrays] == [0, 1, 2]
    assert traces(learner) == before + 1


def test_phases_with_slots_are_not_taken_for_each_other(compiling: Subject) -> None:
    class Scaled(lc.ValidationPhase):
        __slots__ = ("factor",)
        factor: int

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = self.factor * learner.xp.mean(state.xs)

    learner = make(compiling)
    losses: list[float] = []
    for factor in (1, 2):
        phase = Scaled()
        phase.factor = factor
        losses.append(float(learner.run_step(phase, {"xs": ONES}).loss))
    assert losses == [1, 2]


def test_a_handler_hears_the_phase_that_runs(compiling: Subject) -> None:
    phase_log: list[Any] = []

    def hear(learner: Any, phase: Any) -> None:
        phase_log.append(phase)

    events = (lc.StepBegin, lc.BackwardEnd, lc.StepEnd)
    cuts = [lc.FunctionCallback(hear, event, writes=(f"step.{event.__name__}",)) for event in events]
    learner, phases = make(compiling, callbacks=cuts), [lc.TrainingPhase() for _ in range(3)]
    for phase in phases:
        learner.run_step(phase, (XS, YS))
    assert list(map(id, phase_log)) == [id(phase) for phase in phases for _ in events]


def test_equal_phases_within_each_other(compiling: Subject) -> None:
    phase_log: list[Any] = []
    inner = lc.TrainingPhase()

    def nest(learner: Any, phase: Any) -> None:
        phase_log.append(phase)
        if phase is not inner:
            compiled_learner.run_step(inner, (XS, YS))
            phase_log.append(phase)

    cut = lc.FunctionCallback(nest, lc.BackwardEnd, writes=("step.grads", "model", "params", "optimizer"))
    compiled_learner = make(compiling, callbacks=[cut])
    outer = lc.TrainingPhase()
    for _ in range(2):
        compiled_learner.run_step(outer, (XS, YS))
    assert list(map(id, phase_log)) == [id(outer), id(inner), id(outer)] * 2
