"""Trees that users of torch bring: dataclasses and mappings in batches and outputs, as transformers has them."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

import loopcore as lc
from loopcore.errors import DataError
from loopcore_torch.arrays import Arrays
from loopcore_torch.containers import flatten

X = torch.ones(3, 4)


@dataclasses.dataclass
class Out:
    logits: Tensor
    extra: Any = None


@dataclasses.dataclass
class ModelOutput(OrderedDict[str, Any]):
    """As that of transformers: what is None is no item."""

    loss: Any = None
    logits: Any = None
    hidden: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                self[field.name] = value


class Encoding(UserDict[str, Any]):
    """As BatchEncoding."""


class Model(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.out, self.make = nn.Linear(4, 2), make

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        y = self.out(input_ids)
        return self.make(y)


def learner_of(make: Any) -> lc.Learner:
    return lc.Learner(Model(make), None, lc.SGD(0.1), default_callbacks=False)


BATCH = {"input_ids": X, "attention_mask": torch.ones(3, 4), "labels": torch.zeros(3, dtype=torch.int64)}


@pytest.mark.parametrize(
    "batch", [BATCH, Encoding(BATCH), X, (X, torch.zeros(3))], ids=["dict", "encoding", "xs", "pair"]
)
def test_predictions_have_the_structure_that_the_model_returns(batch: Any) -> None:
    learner = learner_of(lambda y: ModelOutput(loss=y.mean(), logits=y, hidden=(y, [2 * y])))
    found = learner.predict([batch, batch])
    assert type(found) is ModelOutput and list(found) == ["loss", "logits", "hidden"]
    assert found.loss.shape == (2,) and found.logits.shape == (6, 2) and isinstance(found.logits, np.ndarray)
    np.testing.assert_allclose(found.hidden[1][0], 2 * found["logits"])


def test_none_stays_and_other_values_are_listed() -> None:
    learner = learner_of(lambda y: Out(y, {"cache": SimpleNamespace(), "nothing": None}))
    found = learner.predict([X, X])
    assert found.logits.shape == (6, 2) and len(found.extra["cache"]) == 2 and found.extra["nothing"] is None


def test_outputs_of_several_shapes_say_what_to_do() -> None:
    learner = learner_of(lambda y: y.expand(2, *y.shape) if len(y) == 3 else y)
    with pytest.raises(DataError, match=r"\(2, 3, 2\), \(1, 2\), which cannot be one array"):
        learner.predict([X, X[:1]])


def test_a_model_that_takes_a_mapping_gets_it() -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 2)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            found: Tensor = self.out(batch["a"] + batch["b"])
            return found

    learner = lc.Learner(Takes(), None, lc.SGD(0.1), default_callbacks=False)
    assert learner.predict([{"a": X, "b": X}]).shape == (3, 2)


def test_values_of_a_step_leave_their_graph() -> None:
    class Train(lc.AbstractTrainingPhase):
        data_key = "training"

        def unpack(self, batch: Any) -> dict[str, Any]:
            return {"batch": batch}

        def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
            def objective() -> Any:
                state.out = learner.model(state.batch.logits)
                state.loss = state.out.logits.mean()
                return state.loss

            learner.minimize(objective)

    learner = learner_of(Out)
    state = learner.run_step(Train(), Out(np.ones((3, 4)), "text"), reads=("step",))  # type: ignore[arg-type]
    assert type(state.out) is Out and not state.out.logits.requires_grad
    assert type(state.batch.logits) is Tensor and state.batch.extra == "text"


def test_what_cannot_be_made_anew_is_a_leaf() -> None:
    @dataclasses.dataclass
    class Strict:
        a: Tensor
        made: int = dataclasses.field(init=False, default=0)

    value = Strict(X)
    assert flatten({"x": value})[0] == [value]
    assert flatten([value, Out(X, 1)])[0][1:] == [X, 1]


def test_objects_that_move_themselves() -> None:
    """Such as a batch of graphs."""

    class Graphs:
        device = "cpu"

        def to(self, device: torch.device) -> Graphs:
            self.device = device.type
            return self

    arrays = Arrays()
    assert arrays.leaf(Graphs()).device == "cpu"
    arrays.place(torch.float32, torch.device("meta"))
    assert arrays.leaf(Graphs()).device == "meta"
