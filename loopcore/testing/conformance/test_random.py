"""Random draws: what they are, when they repeat, and when they differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance.problems import Array, make_learner, mlp_weights, run
from loopcore.testing.conformance.subject import Subject

N = 4000
SHAPE = (N // 4, 4)
LOGITS = np.log(np.array([[0.1, 0.2, 0.7]] * N))


class Draw(NamedTuple):
    """A draw with its range, mean and standard deviation."""

    call: Callable[[Any, Any], Any]
    shape: tuple[int, ...]
    low: float
    high: float
    mean: float
    deviation: float
    kind: str = "f"


DRAWS = {
    "normal": Draw(lambda r, s: r.normal(SHAPE), SHAPE, -8, 8, 0, 1),
    "uniform": Draw(lambda r, s: r.uniform(SHAPE), SHAPE, 0, 1, 0.5, 12**-0.5),
    "uniform_between": Draw(lambda r, s: r.uniform(SHAPE, low=-1.0, high=3.0), SHAPE, -1, 3, 1, 4 * 12**-0.5),
    "bernoulli": Draw(lambda r, s: r.bernoulli(0.3, SHAPE), SHAPE, 0, 1, 0.3, 0.21**0.5),
    "integers": Draw(lambda r, s: r.integers(2, 6, SHAPE), SHAPE, 2, 5, 3.5, 1.25**0.5, "i"),
    "permutation": Draw(lambda r, s: r.permutation(N), (N,), 0, N - 1, (N - 1) / 2, N * 12**-0.5, "i"),
    "beta": Draw(lambda r, s: r.beta(2.0, 3.0, SHAPE), SHAPE, 0, 1, 0.4, 0.2),
    "categorical": Draw(lambda r, s: r.categorical(s.logits), (N,), 0, 2, 1.6, 0.44**0.5, "i"),
}


def test_every_draw_has_a_case(backend: Subject) -> None:
    random = make_learner(backend.mlp(mlp_weights())).random
    public = {name for name in dir(random) if not name.startswith("_")} - {"generator", "key"}
    assert public == {name.partition("_")[0] for name in DRAWS}


def drawn(backend: Subject, name: str, steps: int = 1, phase: lc.Phase | None = None, **options: Any) -> list[Array]:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = DRAWS[name].call(learner.random, state)

    learner = make_learner(backend.mlp(mlp_weights()), **options)
    return [learner.to_host(run(learner, body, phase, logits=LOGITS).found) for _ in range(steps)]


@pytest.mark.parametrize("name", DRAWS)
def test_shape_dtype_range_and_moments(backend: Subject, name: str) -> None:
    draw, numbers = DRAWS[name], drawn(backend, name)[0]
    assert numbers.shape == draw.shape
    assert numbers.dtype.kind == draw.kind
    if draw.kind == "f":
        assert numbers.dtype == backend.dtype
    assert draw.low <= numbers.min() <= numbers.max() <= draw.high
    assert abs(numbers.mean() - draw.mean) < 5 * draw.deviation / N**0.5
    assert abs(numbers.std() / draw.deviation - 1) < 0.1


def test_integers_are_int32_and_reach_both_ends(backend: Subject) -> None:
    numbers = drawn(backend, "integers")[0]
    assert numbers.dtype == np.int32
    assert sorted(set(numbers.ravel().tolist())) == [2, 3, 4, 5]


def test_a_bernoulli_mask_holds_ones_and_zeros(backend: Subject) -> None:
    assert sorted(set(drawn(backend, "bernoulli")[0].ravel().tolist())) == [0.0, 1.0]


def test_a_permutation_holds_each_number_once(backend: Subject) -> None:
    numbers = drawn(backend, "permutation")[0]
    np.testing.assert_array_equal(np.sort(numbers), np.arange(N))
    assert (numbers != np.arange(N)).mean() > 0.9


def test_categories_follow_the_softmax_of_the_logits(backend: Subject) -> None:
    shares = np.bincount(drawn(backend, "categorical")[0], minlength=3) / N
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.7], atol=0.04)


def test_categories_of_batches_of_rows(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = learner.random.categorical(state.logits)

    sharp = np.where(np.arange(12).reshape(2, 2, 3) % 3 == 1, 50.0, 0.0)
    learner = make_learner(backend.mlp(mlp_weights()))
    np.testing.assert_array_equal(learner.to_host(run(learner, body, logits=sharp).found), np.ones((2, 2)))


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_seed_and_step_draw_the_same(backend: Subject, name: str) -> None:
    first, second = drawn(backend, name, 3, seed=5), drawn(backend, name, 3, seed=5)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", DRAWS)
def test_steps_seeds_and_phases_draw_differently(backend: Subject, name: str) -> None:
    class Another(lc.AbstractTrainingPhase):
        """Another phase."""

    first, second = drawn(backend, name, 2)
    draws = [second, drawn(backend, name, seed=1)[0], drawn(backend, name, phase=Another())[0]]
    for other in draws:
        assert (first != other).mean() > 0.2


def test_each_call_is_a_new_draw_and_each_owner_has_its_own(backend: Subject) -> None:
    class Noisy(lc.Callback):
        writes = ("step.theirs",)

        @lc.on(lc.StepBegin, lc.TrainingPhase, traced=True)
        def draw(self, learner: Any, phase: Any) -> None:
            learner.step.theirs = learner.random.normal((100,))

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.first, state.second = learner.random.normal((100,)), learner.random.normal((100,))

    def body_draws(*callbacks: lc.Callback) -> list[Array]:
        learner = make_learner(backend.mlp(mlp_weights()), callbacks=callbacks)
        state = run(learner, body)
        names = ("first", "second", "theirs") if callbacks else ("first", "second")
        return [learner.to_host(getattr(state, name)) for name in names]

    first, second, callback_draw = body_draws(Noisy())
    for a, b in ((first, second), (first, callback_draw), (second, callback_draw)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.5
        assert (a != b).all()
    np.testing.assert_array_equal(body_draws(), [first, second])  # a callback that draws does not disturb the body


def test_draws_in_nested_objectives_are_in_order(backend: Subject) -> None:
    def nested(learner: Any, handle: Any, state: Any) -> None:
        def outer() -> Any:
            state.first = learner.random.normal((5,))

            def inner() -> Any:
                state.second = learner.random.normal((5,))
                return learner.xp.sum(learner.model(state.xs))

            slopes = learner.gradient(inner)
            state.third = learner.random.normal((5,))
            return learner.tree.dot(slopes, slopes)

        learner.gradient(outer)

    def flat(learner: Any, handle: Any, state: Any) -> None:
        state.first, state.second, state.third = (learner.random.normal((5,)) for _ in range(3))

    learners = [make_learner(backend.mlp(mlp_weights())) for _ in range(2)]
    states = [run(learner, body, xs=np.ones((2, 3))) for learner, body in zip(learners, (nested, flat), strict=True)]
    for name in ("first", "second", "third"):
        a, b = (learner.to_host(getattr(state, name)) for learner, state in zip(learners, states, strict=True))
        np.testing.assert_array_equal(a, b)


def test_a_skipped_step_counts_as_an_attempt(backend: Subject) -> None:
    class SkipFirst(lc.Callback):
        @lc.on(lc.StepBegin)
        def skip(self, learner: Any, phase: Any) -> None:
            if learner.epoch.attempted == 1:
                raise lc.CancelStepException

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = learner.random.normal((5,))

    phase = lc.TrainingPhase()
    learner = make_learner(backend.mlp(mlp_weights()), callbacks=[SkipFirst()])
    other = make_learner(backend.mlp(mlp_weights()))
    draws = []
    with lc.run_epoch(learner, phase):
        for _ in range(2):
            draws.append(getattr(run(learner, body, phase), "found", None))
    assert draws[0] is None
    run(other, body, phase)
    np.testing.assert_array_equal(learner.to_host(draws[1]), other.to_host(run(other, body, phase).found))


def test_draws_are_plain_numbers_for_the_gradient(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.noise = learner.random.normal(state.xs.shape)
            return learner.xp.sum(learner.model(state.xs) * state.noise[:, :2])

        state.found = learner.gradient(objective)

    learner = make_learner(backend.mlp(mlp_weights()))
    state = run(learner, body, xs=np.ones((4, 3)))
    noise = learner.to_host(state.noise)[:, :2]
    backend.close(backend.leaves(learner, state.found)["out.bias"], noise.sum(axis=0))


@pytest.mark.parametrize("name", DRAWS)
def test_same_random_gives_every_backend_the_same_numbers(backend: Subject, witness: Subject, name: str) -> None:
    with lc.testing.same_random():
        numbers = drawn(backend, name, 2)
        with lc.using(witness.name):
            expected = drawn(witness, name, 2)
    for a, b in zip(numbers, expected, strict=True):
        backend.close(a, b, rtol=1e-6)
        assert a.dtype.kind == b.dtype.kind
    assert (numbers[0] != numbers[1]).mean() > 0.2


def test_training_with_noise_is_the_same_everywhere_under_same_random(backend: Subject, witness: Subject) -> None:
    class Noisy(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.xs = state.xs + 0.1 * learner.random.normal(state.xs.shape)
            super().step(learner, handle, state)

    def trained(subject: Subject) -> dict[str, Array]:
        draw = np.random.default_rng(0).normal
        learner = make_learner(
            subject.mlp(mlp_weights()), data=([(draw(size=(5, 3)), draw(size=(5, 2)))] * 5, None), phases=[Noisy()]
        )
        with lc.testing.same_random():
            learner.fit(2)
        return subject.weights(learner)

    with lc.using(witness.name):
        expected = trained(witness)
    backend.close(trained(backend), expected)


def test_a_generator_for_host_code(backend: Subject) -> None:
    def numbers(seed: int) -> Array:
        learner = make_learner(backend.mlp(mlp_weights()), seed=seed)
        return np.stack([learner.random.generator().normal(size=4) for _ in range(2)])

    first, repeat, other = numbers(0), numbers(0), numbers(1)
    np.testing.assert_array_equal(first, repeat)
    assert (first[0] != first[1]).all()
    assert (first != other).all()


def test_a_key_of_the_framework_is_a_draw_of_its_own(backend: Subject) -> None:
    random = make_learner(backend.mlp(mlp_weights())).random
    assert type(random.key()) is type(random.key())
    numbers = [random.generator().normal() for _ in range(2)]
    fresh = make_learner(backend.mlp(mlp_weights())).random
    assert fresh.generator().normal() not in numbers  # the two keys count as draws before it
    with lc.testing.same_random(), pytest.raises(lc.errors.TraceError, match="the framework's own"):
        random.key()


# -- draws of the host


class HostDrawn(lc.TrainingPhase):
    """Draws numbers of all kinds, in and outside of its objective."""

    reads = ("step.noise", "step.row", "step.order", "step.other")
    ran = 0

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        type(self).ran += 1
        random, xp = learner.random, learner.xp
        state.noise = random.normal(state.xs.shape)
        state.order = random.permutation(state.xs.shape[0])
        state.other = random.uniform((2,), -1.0, 1.0) + random.beta(2.0, 3.0, (2,)) + random.bernoulli(0.5, (2,))

        def objective() -> Any:
            state.row = random.categorical(xp.zeros((4, 5)))
            y_pred = learner.model(state.xs + state.noise)
            handle(lc.LossBegin())
            return learner.loss_fn(y_pred, state.ys)

        learner.minimize(objective)


def linear(backend: Subject, **options: Any) -> Any:
    model = backend.within("float32").linear({"weight": np.ones((3, 2)), "bias": np.zeros(2)})
    return lc.Learner(model, lc.losses.mse, lc.SGD(0.1), default_callbacks=False, **options)


@pytest.mark.parametrize("kind", ["fused", "split"])
def test_draws_of_the_host_are_the_same_in_every_plan(backend: Subject, kind: str) -> None:
    cut = lc.FunctionCallback(lambda learner, phase: None, lc.BackwardEnd, writes=("step.grads",))
    runs: list[list[Any]] = []
    for callbacks, compile in (([], False), ([cut] * (kind == "split"), "auto")):
        learner, phase, values = linear(backend, callbacks=callbacks, compile=compile), HostDrawn(), list[Any]()
        with lc.testing.same_random():
            for count in (6, 6, 5, 6):
                xs, ys = np.ones((count, 3), "float32"), np.zeros((count, 2), "float32")
                state = learner.run_step(phase, (xs, ys))
                values += learner.to_host([state.noise, state.order, state.other, state.row])
        runs.append([*values, *learner.export_weights().values()])
    for value, other in zip(*runs, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-6)


def test_draws_of_the_host_enter_the_program(compiling: Subject) -> None:
    learner, phase = linear(compiling), HostDrawn()
    batch = np.ones((6, 3), "float32"), np.zeros((6, 2), "float32")
    with lc.testing.same_random():
        learner.run_step(phase, batch)
        HostDrawn.ran = 0
        for _ in range(5):
            learner.run_step(phase, batch)
    assert (learner.backend.traces, HostDrawn.ran) == (1, 0)
    learner.run_step(phase, batch)
    assert learner.backend.traces == 2


def test_a_draw_of_the_host_by_a_value_of_the_step(backend: Subject) -> None:
    class Beta(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.mean(learner.random.beta(state.alpha, state.alpha, (4,)))

    losses: list[float] = []
    for compile in (False, "auto"):
        learner = linear(backend, compile=compile)
        with lc.testing.same_random():
            losses += [float(learner.run_step(Beta(), {"alpha": np.float32(0.5)}).loss) for _ in range(2)]
    assert losses[:2] == pytest.approx(losses[2:])
