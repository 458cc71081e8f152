"""The learning rate finder: what it measures, suggests, and leaves as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import DataExhaustedError, LossError

PHASE = lc.TrainingPhase()


def learner_of(**options: Any) -> lc.Learner:
    """Mean of (w x - x)^2 with x^2 = 1 on average: SGD with a rate r multiplies w - 1 by 1 - 2 r, and diverges at 1."""
    draw = np.random.default_rng(0).normal(size=(64, 1))
    x = draw / np.sqrt(np.mean(draw**2, axis=0))
    given: dict[str, Any] = {"data": ([(x, x)] * 7, None), "optimizer": lc.SGD(0.3)} | options
    return lc.testing.toy_learner(**given)


def test_losses_are_those_of_the_rates() -> None:
    found = lc.LRFinder(low=1e-3, high=0.4, steps=25).run(learner_of())
    np.testing.assert_allclose(found.rates, 1e-3 * 400 ** (np.arange(25) / 24))
    distance = np.concatenate([[1.0], np.cumprod(1 - 2 * found.rates[:-1])])
    np.testing.assert_allclose(found.losses, distance**2, rtol=1e-12)
    assert not found.diverged
    powers = 0.9 ** np.arange(25)[::-1]
    expected = np.sum(powers * found.losses) / np.sum(powers)
    np.testing.assert_allclose(found.smoothed[-1], expected, rtol=1e-12)


def test_the_suggestion_is_where_the_loss_falls() -> None:
    found = lc.LRFinder(low=1e-5, high=100.0, steps=140).run(learner_of())
    assert found.diverged and len(found.rates) < 140
    assert 0.003 < found.suggestion < 1.0
    learner = learner_of(optimizer=lc.SGD(found.suggestion))
    learner.fit(20)
    assert abs(learner.params.value["w"].item() - 1.0) < 0.2


def test_everything_is_as_it_was() -> None:
    heard: list[int] = []

    def make() -> lc.Learner:
        count = lc.FunctionCallback(lambda learner, phase: heard.append(1), lc.StepEnd)
        loader = lc.data.batches((np.arange(8.0)[:, None] / 8,) * 2, 2, shuffle=True)
        return learner_of(callbacks=[count], optimizer=lc.Adam(0.02), data=(loader, None))

    found, other = make(), make()
    for learner in (found, other):
        learner.fit(1)
    heard.clear()
    lc.LRFinder(steps=30).run(found)
    assert heard == [] and found.hyper.learning_rate == 0.02
    assert found.shared.history["training"] == other.shared.history["training"]
    for learner in (found, other):
        learner.fit(2)
    np.testing.assert_array_equal(found.params.value["w"], other.params.value["w"])
    assert found.history == other.history


@pytest.mark.parametrize("fails", [False, True])
def test_a_batch_that_was_looked_at_before_comes_first_after_it(fails: bool) -> None:
    """The loader goes on as if neither had been, also when a step of the run fails."""

    class Fails(lc.TrainingPhase):
        broken = False

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            if self.broken:
                raise ZeroDivisionError
            super().step(learner, handle, state)

    def make() -> lc.Learner:
        loader = lc.data.batches((np.arange(8.0)[:, None] / 8,) * 2, 2, shuffle=True)
        return learner_of(data=(loader, None), phases=[Fails()], optimizer=lc.SGD(0.1))

    found, other = make(), make()
    found.peek(found.phases[0])
    if fails:
        found.phases[0].broken = True  # type: ignore[attr-defined]
        with pytest.raises(ZeroDivisionError):
            lc.LRFinder(steps=30).run(found)
        found.phases[0].broken = False  # type: ignore[attr-defined]
    else:
        lc.LRFinder(steps=30).run(found)
    for learner in (found, other):
        learner.fit(3)
    np.testing.assert_array_equal(found.params.value["w"], other.params.value["w"])


def test_one_optimizer_among_several() -> None:
    model = {"a": (lambda params, x: x * params["w"], {"w": np.zeros(1)}), "b": {"v": np.ones(1)}}
    learner = learner_of(model=model, optimizer={"a": lc.SGD(0.1), "b": lc.SGD(0.001)})
    lc.LRFinder(steps=10, parameter=lc.LearningRate("a")).run(learner)
    lc.LRFinder(steps=10).run(learner)
    assert (learner.hyper["a.learning_rate"], learner.hyper["b.learning_rate"]) == (0.1, 0.001)


def test_data_that_would_be_used_up() -> None:
    with pytest.raises(DataExhaustedError, match="only once"):
        lc.LRFinder().run(learner_of(data=(iter([(np.ones((1, 1)),) * 2]), None)))


def test_losses_that_are_never_finite() -> None:
    with pytest.raises(LossError, match="nothing to learn"):
        lc.LRFinder().run(learner_of(data=([(np.full((1, 1), np.nan),) * 2], None)))


@pytest.mark.parametrize(
    "options", [{"low": 0.0}, {"low": 1.0, "high": 0.1}, {"steps": 2}, {"beta": 1.0}], ids=lambda o: next(iter(o))
)
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        lc.LRFinder(**options)


def test_the_plot_shows_losses_and_suggestion() -> None:
    figure = lc.LRFinder(low=1e-5, high=100.0, steps=80).run(learner_of()).plot()
    (panel,) = figure.axes
    assert panel.get_xscale() == "log" and len(panel.lines) == 3
    assert panel.get_legend().get_texts()[2].get_text().startswith("suggestion")
