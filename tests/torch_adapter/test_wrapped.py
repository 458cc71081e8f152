"""The PyTorch adapter: modules that torch.compile and DistributedDataParallel wrap."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

import loopcore as lc
from loopcore.errors import (
    GradientError,
)
from loopcore.optimizers import SGD, Adam
from loopcore_torch import Backend
from tests.torch_adapter.calls import (
    assert_close,
    bound,
    call,
    gradient,
    mlp,
    norm,
    seeded,  # noqa: F401, used by all tests here
)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_learner_names_a_backend_of_torch_compile(compiler: str) -> None:
    first, batch = mlp(), (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    losses: dict[str | bool, list[float]] = {}
    counters.clear()
    for compile in (False, compiler):
        learner = lc.Learner(
            deepcopy(first), lc.losses.cross_entropy, lc.Adam(0.01), default_callbacks=False, compile=compile
        )
        phase = lc.TrainingPhase()
        losses[compile] = [float(learner.run_step(phase, batch).loss) for _ in range(3)]
    assert counters["stats"]["unique_graphs"] > 0
    np.testing.assert_allclose(losses[compiler], losses[False], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("compiler", ["xla", "inductr"])
def test_a_backend_that_torch_compile_does_not_have(compiler: str) -> None:
    with pytest.raises(ValueError, match=f"'eager'.*'inductor'.* on the torch backend, not '{compiler}'"):
        lc.Learner(mlp(), compile=compiler)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
def test_compiled_steps_agree_with_eager_ones() -> None:
    first = mlp()
    models = [mlp(), mlp()]
    for model in models:
        model.load_state_dict(first.state_dict())
    eager, compiled = bound(models[0], Adam(0.01)), bound(models[1], Adam(0.01), compile="aot_eager")
    assert compiled.paths("params") == eager.paths("params") and compiled.native("") is models[1]
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))

    def loss(backend: Backend) -> Tensor:
        return F.cross_entropy(call(backend, x), y)

    for backend in (eager, compiled):
        for _ in range(3):
            backend.update(gradient(backend, partial(loss, backend)), True)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_close(a, b)
    assert_close(call(eager, x, training=False), call(compiled, x, training=False))

    def penalty(backend: Backend) -> Tensor:  # what torch.compile makes cannot be differentiated twice
        slope: Tensor = backend.grad(lambda z: call(backend, z).square().sum(), ())(x)
        return slope.square().sum()

    def mean(backend: Backend) -> Tensor:
        result: Tensor = call(backend, x).mean()
        return result

    def meta(backend: Backend) -> Tensor:
        grads = gradient(backend, lambda: call(backend, x).square().mean())
        return sum((grad.square().sum() for grad in grads.values()), torch.zeros(()))

    for fn in (penalty, meta):
        pairs = [gradient(backend, partial(fn, backend)) for backend in (eager, compiled)]
        for path in pairs[0]:
            assert_close(pairs[0][path], pairs[1][path], 1e-5)
    other = {path: leaf + 1 for path, leaf in eager.snapshot(eager.paths("params")[""]).items()}
    assert_close(*(backend.apply("", other, (x,), {}, training=False) for backend in (eager, compiled)))
    assert_close(*(gradient(backend, partial(mean, backend), other)["0.weight"] for backend in (eager, compiled)))


def test_a_module_in_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        inner = norm()
        twin = norm()
        twin.load_state_dict(inner.state_dict())
        backend, plain = bound(nn.parallel.DistributedDataParallel(inner), SGD(0.1)), bound(twin, SGD(0.1))
        assert backend.paths("params") == plain.paths("params")
        x = torch.randn(6, 4)

        def loss(one: Backend, update: bool) -> Any:
            return call(one, x, update=update).pow(3).mean()

        for update in (True, False, True):
            for one in (backend, plain):
                one.update(gradient(one, partial(loss, one, update)), True)
        for a, b in zip(inner.state_dict().values(), twin.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        with pytest.raises(GradientError, match="not averaged over processes"):
            gradient(backend, lambda: call(backend, x).mean(), {"1.bias": torch.ones(3)})
        assert backend.apply("", {}, (x,), {}, training=False).shape == (6, 3)
    finally:
        torch.distributed.destroy_process_group()
