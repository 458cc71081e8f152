"""Models that belong to no framework, on torch: what stays the user's own, torch's optimizers, compiled functions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import loopcore as lc


def apply_fn(params: Any, x: Any) -> Any:
    return lc.xp.tanh(x @ params["w"] + params["b"])


def arrays() -> dict[str, Any]:
    return {"w": np.random.default_rng(0).normal(size=(3, 2)).astype("float32"), "b": np.zeros(2, "float32")}


X = np.random.default_rng(1).normal(size=(8, 3)).astype("float32")
Y = np.ones((8, 2), "float32")


def learner_of(model: Any, optimizer: Any, **options: Any) -> lc.Learner:
    return lc.Learner(
        model, lc.losses.mse, optimizer, ([(X, Y)] * 3, None), default_callbacks=False, backend="torch", **options
    )


@pytest.mark.parametrize("kind", ["RAdam", "Adagrad", "RMSprop", "NAdam", "ASGD", "Rprop", "Adadelta", "SGD"])
def test_any_optimizer_of_torch_trains_a_pair(kind: str) -> None:
    recipe = partial(getattr(torch.optim, kind), lr=1e-2)
    learner = learner_of((apply_fn, arrays()), recipe)
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in arrays().items()}
    by_hand = recipe([params["b"], params["w"]])
    learner.fit(1)
    for _ in range(3):
        by_hand.zero_grad()
        loss = torch.nn.functional.mse_loss(torch.tanh(torch.tensor(X) @ params["w"] + params["b"]), torch.tensor(Y))
        torch.autograd.backward((loss,))
        by_hand.step()
    for name, value in learner.export_weights().items():
        np.testing.assert_allclose(value, params[name].detach().numpy(), rtol=1e-6, atol=1e-7)
    assert learner.hyper.learning_rate == 1e-2


def test_parameters_stay_the_users_own() -> None:
    w, b = torch.nn.Parameter(torch.tensor(arrays()["w"])), torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([w, b], lr=0.1)
    learner = learner_of((apply_fn, {"w": w, "b": b}), optimizer)
    before = w.detach().clone()
    learner.fit(1)
    assert learner.model.native[1]["w"] is w and learner.model.native[1]["b"] is b
    assert not torch.equal(w, before) and w.grad is None
    np.testing.assert_array_equal(learner.export_weights()["w"], w.detach().numpy())


def test_other_tensors_are_copied() -> None:
    w = torch.tensor(arrays()["w"])
    learner = learner_of((apply_fn, {"w": w, "b": torch.zeros(2)}), lc.SGD(0.1))
    learner.fit(1)
    np.testing.assert_array_equal(w.numpy(), arrays()["w"])
    with pytest.raises(lc.errors.OptimizerError, match=r"SGD.*functools\.partial\(torch\.optim\.SGD, lr=1e-3\)"):
        learner_of((apply_fn, {"w": w, "b": torch.zeros(2)}), {"w": torch.optim.SGD([w], lr=0.1)})


def test_a_pair_and_a_module_in_one_learner() -> None:
    models = {"net": torch.nn.Linear(3, 2).double(), "gain": (lambda params, x: params["g"] * x, {"g": np.ones(2)})}
    learner = lc.Learner(models, optimizer=lc.Adam(0.1), default_callbacks=False)

    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.loss = lc.losses.mse(learner.model.gain(learner.model.net(state.xs)), state.ys)
            return state.loss

        learner.minimize(objective)

    before = learner.export_weights()
    lc.run_step(body, learner, lc.TrainingPhase(), xs=X, ys=Y)
    after = learner.export_weights()
    assert sorted(after) == ["gain.g", "net.bias", "net.weight"]
    assert all(np.abs(after[name] - before[name]).max() > 0.05 for name in after)


def test_a_function_is_compiled_by_its_user() -> None:
    with pytest.raises(lc.errors.BackendError, match=r"compile='eager'.*torch\.compile\(apply_fn\)"):
        learner_of((apply_fn, arrays()), lc.SGD(0.1), compile="eager")
    compiled = torch.compile(lambda params, x: torch.tanh(x @ params["w"] + params["b"]), backend="eager")
    learner, other = learner_of((compiled, arrays()), lc.SGD(0.1)), learner_of((apply_fn, arrays()), lc.SGD(0.1))
    learner.fit(1)
    other.fit(1)
    for name, value in other.export_weights().items():
        np.testing.assert_allclose(learner.export_weights()[name], value, rtol=1e-6)


def test_the_generator_is_the_one_that_every_step_seeds() -> None:
    def noisy(params: Any, x: Any, train: bool, rng: Any) -> Any:
        return apply_fn(params, x + torch.randn(x.shape, generator=rng) if train else x)

    def losses() -> list[float]:
        learner = learner_of((noisy, arrays()), lc.SGD(0.0))
        return [float(learner.run_step(lc.TrainingPhase(), (X, Y)).loss) for _ in range(3)]

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = losses()
    assert len(set(first)) == 3 and losses() == first
    assert torch.equal(torch.get_rng_state(), state)
