"""All backends in one process: the same losses, the same events, and training from the loaders of all frameworks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from tests.frameworks.networks import BACKENDS, Array, dense_weights, keras, model_of
from tests.test_docs import ROOT
from tests.test_docs import run as run_page

import grain  # isort: skip
import tensorflow as typed_tf  # isort: skip
import torch  # isort: skip

pytestmark = pytest.mark.timeout(300)
tf: Any = typed_tf
WEIGHTS = dense_weights((64, 32, 10))


def digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    x, y = map(np.asarray, load_digits(return_X_y=True))
    return (x / 16).astype("float32"), y.astype("int32")


# -- the same curve


class Notes(lc.Callback):
    """The loss of every step."""

    reads = ("step.loss",)

    def __init__(self) -> None:
        self.losses: list[float] = []

    @lc.on(lc.StepEnd, lc.AbstractTrainingPhase)
    def note(self, learner: Any, phase: Any) -> None:
        self.losses.append(float(learner.to_host(learner.step.loss)))


def curve(backend: str, *more: lc.Callback) -> tuple[list[float], Any]:
    """200 steps of SGD on the digits, and what the history says of the epochs they are in."""
    train, valid = lc.data.split(digits(), 0.8, seed=0)
    notes = Notes()
    learner = lc.Learner(
        model_of(backend, WEIGHTS),
        lc.losses.cross_entropy,
        lc.SGD(0.5),
        data=(lc.data.batches(train, 64, shuffle=True, seed=1), lc.data.batches(valid, 64)),
        callbacks=[notes, lc.Recorder(), lc.Metrics(lc.accuracy), *more],
        default_callbacks=False,
    )
    learner.fit(9)
    return notes.losses[:200], learner.history


@pytest.fixture(scope="module")
def witness() -> tuple[list[float], list[Any], Any]:
    trace = lc.testing.Trace()
    losses, history = curve("numpy", trace)
    return losses, trace.events, history


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_200_losses_on_digits_are_those_of_numpy(backend: str, witness: Any) -> None:
    losses, history = curve(backend)
    assert len(losses) == 200 and losses[-1] < 0.3
    np.testing.assert_allclose(losses, witness[0], rtol=1e-4)
    np.testing.assert_allclose(history["val_loss"], witness[2]["val_loss"], rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_the_events_are_those_of_numpy(backend: str, witness: Any) -> None:
    trace = lc.testing.Trace()
    losses, _ = curve(backend, trace)  # a step that is cut at each of its events
    np.testing.assert_allclose(losses, witness[0], rtol=1e-4)
    assert len(trace.events) > 1000
    assert trace.events == witness[1]


# -- loaders

X, Y = (part[:48] for part in digits())


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index], int(Y[index])


class Sequence(keras.utils.PyDataset):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return X[16 * index : 16 * index + 16], Y[16 * index : 16 * index + 16]


class Source:
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return {"xs": X[index], "ys": Y[index]}


def generator() -> Iterator[Any]:
    for start in range(0, 48, 16):
        yield X[start : start + 16].astype("float64"), Y[start : start + 16]


LOADERS: dict[str, Callable[[], Any]] = {
    "torch DataLoader": lambda: torch.utils.data.DataLoader(Rows(), batch_size=16),
    "tf.data.Dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(16),
    "tf.data.Dataset of dicts": lambda: tf.data.Dataset.from_tensor_slices({"xs": X, "ys": Y}).batch(16),
    "grain MapDataset": lambda: grain.MapDataset.source(Source()).batch(16),
    "grain IterDataset": lambda: grain.MapDataset.source(Source()).batch(16).to_iter_dataset(),
    "keras PyDataset": Sequence,
    "list of tuples": lambda: [(X[n : n + 16], Y[n : n + 16]) for n in range(0, 48, 16)],
    "list of dicts": lambda: [{"xs": X[n : n + 16], "ys": Y[n : n + 16].astype("uint8")} for n in range(0, 48, 16)],
    "generator of float64": generator,
    "loopcore batches": lambda: lc.data.batches((X, Y), 16),
}


def trained(backend: str, loader: Any) -> tuple[dict[str, Array], list[Any]]:
    learner = lc.Learner(
        model_of(backend, WEIGHTS),
        lc.losses.cross_entropy,
        lc.Adam(0.01),
        data=(loader, None),
        callbacks=[lc.Recorder(), lc.Metrics(lc.accuracy)],
        default_callbacks=False,
    )
    assert learner.fit(1).status == "completed"
    assert learner.shared.history["training"].steps == 3
    return learner.export_weights(), learner.history["loss"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOADERS)
def test_every_backend_trains_from_every_loader(backend: str, name: str) -> None:
    expected, losses = trained(backend, LOADERS["list of tuples"]())
    found, mine = trained(backend, LOADERS[name]())
    np.testing.assert_allclose(mine, losses, rtol=1e-6)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nested_batches_from_a_dataset_of_tensorflow(backend: str) -> None:
    class Nested(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                state.loss = lc.losses.cross_entropy(learner.model(state.inputs["x"]), state.labels[0])
                return state.loss

            learner.minimize(objective)

    nested = tf.data.Dataset.from_tensor_slices({"inputs": {"x": X, "extra": X[:, :2]}, "labels": (Y, Y)}).batch(16)
    learner = lc.Learner(
        model_of(backend, WEIGHTS), None, lc.SGD(0.1), (nested, None), phases=[Nested()], default_callbacks=False
    )
    learner.fit(1)
    assert np.isfinite(float(learner.step.loss))


# -- carrying weights


def test_weights_are_carried_as_the_page_says() -> None:
    path = ROOT / "docs" / "carrying-weights.md"
    assert run_page(path.read_text(encoding="utf-8"), str(path)) == 4
