"""Runs whose checkpoints lie in ``fixtures/checkpoints``, and tests that a new learner goes on from them.

Imported by a test module of each framework, which says ``BACKEND``. `tests.fixtures.make_checkpoints` wrote the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc

FOLDER = Path(__file__).resolve().parent / "fixtures" / "checkpoints"
DRAW = np.random.default_rng(11)
XS = DRAW.normal(size=(44, 4)).astype("f4")
YS = (XS[:, 0] > 0).astype("i8") + (XS[:, 1] * XS[:, 2] > 0)
EPOCHS = 2  # before the checkpoint, and after it

# Keras 3.15 reads its own variables in a way that NumPy 2.4 wants otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def layers(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and state of a model that is a pair."""
    rng = np.random.default_rng(seed)
    hidden, out = (rng.normal(0, 0.5, shape).astype("f4") for shape in ((4, 8), (8, 3)))
    params = {
        "hidden": {"kernel": hidden, "bias": np.zeros(8, "f4")},
        "norm": {"scale": np.ones(8, "f4"), "offset": np.zeros(8, "f4")},
        "out": {"kernel": out, "bias": np.zeros(3, "f4")},
    }
    return params, {"norm": {"mean": np.zeros(8, "f4"), "variance": np.ones(8, "f4")}}


def neutral_model(seed: int) -> Any:
    def forward(params: Any, state: Any, x: Any, train: bool) -> Any:
        def mask(x: Any) -> Any:
            return lc.random.bernoulli(0.9, x.shape) / 0.9

        return normalized(lc.xp, mask, params, state, x, train)

    return forward, *layers(seed)


def jax_model(seed: int) -> Any:
    import jax
    import jax.numpy as jnp

    def forward(params: Any, state: Any, x: Any, train: bool, rng: Any) -> Any:
        def mask(x: Any) -> Any:
            return jax.random.bernoulli(rng, 0.9, x.shape) / 0.9

        return normalized(jnp, mask, params, state, x, train)

    return forward, *jax.tree_util.tree_map(jnp.asarray, layers(seed))


def normalized(xp: Any, mask: Any, params: Any, state: Any, x: Any, train: bool) -> tuple[Any, Any]:
    """Two dense layers, between them BatchNorm and dropout."""
    x = xp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    mean, variance = state["norm"]["mean"], state["norm"]["variance"]
    if train:
        averages = {"mean": 0.9 * mean + 0.1 * xp.mean(x, axis=0), "variance": 0.9 * variance + 0.1 * xp.var(x, axis=0)}
        mean, variance, state = xp.mean(x, axis=0), xp.var(x, axis=0), {"norm": averages}
    x = (x - mean) / xp.sqrt(variance + 1e-3) * params["norm"]["scale"] + params["norm"]["offset"]
    x = x * mask(x) if train else x
    return x @ params["out"]["kernel"] + params["out"]["bias"], state


def torch_model(seed: int) -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(4, 8),
            torch.nn.Tanh(),
            torch.nn.BatchNorm1d(8),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(8, 3),
        )


def keras_model(seed: int) -> Any:
    import keras as typed_keras

    keras: Any = typed_keras
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="tanh", name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.1, name="drop"),
            keras.layers.Dense(3, name="out"),
        ]
    )


MODELS = {"numpy": neutral_model, "torch": torch_model, "jax": jax_model, "tensorflow": keras_model}


def learner_of(backend: str, seed: int) -> lc.Learner:
    """A learner like that of the checkpoint; with another seed its weights and draws are others until it is loaded."""
    rates = lc.Scheduler({lc.LearningRate: lc.schedules.one_cycle(0.05, 20)})
    return lc.Learner(
        MODELS[backend](seed),
        lc.losses.cross_entropy,
        lc.Adam(0.01, beta1=0.8),
        data=(lc.data.batches((XS[:34], YS[:34]), 8, shuffle=True, seed=3), lc.data.batches((XS[34:], YS[34:]), 10)),
        callbacks=[
            lc.Metrics(lc.accuracy),
            lc.GradientAccumulation(2),
            rates,
            lc.AveragedWeights(0.9),
            lc.EarlyStopping(5, "val_loss", min_delta=0.01),
        ],
        hyper={"temperature": 1.5},
        backend=backend,
        device="cpu",
        seed=seed,
    )


def record_of(learner: lc.Learner) -> dict[str, Any]:
    """What a learner has after some epochs, as JSON has it."""
    scheduler, stopping = (learner.callbacks.get(kind) for kind in (lc.Scheduler, lc.EarlyStopping))
    assert scheduler is not None and stopping is not None
    shared = learner.shared
    return {
        "weights": {path: value.tolist() for path, value in learner.export_weights().items()},
        "history": {key: list(learner.history[key]) for key in learner.history},
        "losses": learner.history.steps("loss"),
        "hyper": {name: learner.hyper[name] for name in learner.hyper},
        "rates": shared.hyper_step["training"]["learning_rate"].latest().tolist(),
        "scheduler": scheduler.state_dict(),
        "stopping": stopping.state_dict(),
        "accumulation": [shared.accumulation.batches, shared.accumulation.updates],
        "averaged": int(learner.to_host(shared.averaged_updates)),
        "counts": {phase: [counts.epochs, counts.steps] for phase, counts in shared.history.items()},
    }


def flat(record: Any, path: str = "") -> dict[str, Any]:
    """The numbers of a record by their path."""
    if isinstance(record, dict | list):
        items = record.items() if isinstance(record, dict) else enumerate(record)
        return {name: value for key, item in items for name, value in flat(item, f"{path}/{key}").items()}
    return {path: record}


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.module.BACKEND)


def load(backend: str) -> lc.Learner:
    """A new learner that took all of the checkpoint."""
    learner = learner_of(backend, seed=1)
    learner.load(FOLDER / f"{backend}.safetensors")
    return learner


@pytest.fixture
def resumed(backend: str) -> lc.Learner:
    return load(backend)


@pytest.fixture
def expected(backend: str) -> Any:
    return json.loads((FOLDER / f"{backend}.json").read_text(encoding="utf-8"))


def test_everything_in_an_old_checkpoint_comes_back(resumed: lc.Learner, expected: Any) -> None:
    np.testing.assert_equal(flat(record_of(resumed)), flat(expected["saved"]))
    assert resumed.seed == 0 and resumed.shared.history["training"].epochs == EPOCHS


def test_a_run_goes_on_from_an_old_checkpoint_with_the_same_numbers(resumed: lc.Learner, expected: Any) -> None:
    result = resumed.fit(EPOCHS)
    assert result.status == "completed" and len(resumed.history["val_loss"]) == 2 * EPOCHS
    actual, desired = flat(record_of(resumed)), flat(expected["continued"])
    assert actual.keys() == desired.keys()
    for path, value in desired.items():  # another machine adds up in another order
        assert actual[path] == pytest.approx(value, rel=1e-3, abs=1e-4), path


def test_its_weights_can_be_taken_alone(backend: str, expected: Any) -> None:
    learner = learner_of(backend, seed=1)
    learner.load_model(FOLDER / f"{backend}.safetensors")
    weights = {path: value.tolist() for path, value in learner.export_weights().items()}
    np.testing.assert_equal(flat(weights), flat(expected["saved"]["weights"]))
