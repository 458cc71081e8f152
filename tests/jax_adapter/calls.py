"""What the tests of the JAX adapter share: one model in every library, and the protocol's calls in short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import loopcore as lc
from loopcore.backend import DrawKey, Leaves
from loopcore_jax import Backend

KEY = DrawKey(seed=1, stream=2, step=3)
X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(16, 2)).astype(np.float32)


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.List([nnx.Linear(4, 2, rngs=rngs)])

    def __call__(self, x: Any) -> Any:
        return self.out[0](self.drop(self.norm(self.hidden(x))))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Dense(4, name="hidden")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return nn.Dense(2, name="out")(nn.Dropout(0.5, deterministic=not train)(x))


class Equinox(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    out: eqx.nn.Linear
    width: int = eqx.field(static=True)

    def __init__(self, key: Any) -> None:
        first, second = jax.random.split(key)
        self.hidden = eqx.nn.Linear(3, 4, key=first)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", momentum=0.9, mode="batch")
        self.drop = eqx.nn.Dropout(0.5)
        self.out = eqx.nn.Linear(4, 2, key=second)
        self.width = 4

    def __call__(self, x: Any, state: Any, *, key: Any) -> Any:
        norm = jax.vmap(self.norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        x, state = norm(jax.vmap(self.hidden)(x), state)
        return jax.vmap(self.out)(self.drop(x, key=key)), state


def haiku_forward(x: Any, is_training: bool) -> Any:
    x = hk.BatchNorm(True, True, 0.9, name="norm")(hk.Linear(4, name="hidden")(x), is_training)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(2, name="out")(x)


def make_linen() -> Any:
    module = Linen()
    return module, module.init(jax.random.key(0), X, False)


def make_haiku() -> Any:
    transformed = hk.transform_with_state(haiku_forward)
    return transformed, *transformed.init(jax.random.key(0), X, True)


MODELS: dict[str, Callable[[], Any]] = {
    "nnx": lambda: Nnx(nnx.Rngs(0)),
    "linen": make_linen,
    "equinox": lambda: eqx.nn.make_with_state(Equinox)(jax.random.key(0)),
    "haiku": make_haiku,
}
PARAMS = {
    "nnx": "hidden.bias hidden.kernel norm.bias norm.scale out.0.bias out.0.kernel",
    "linen": "hidden.bias hidden.kernel norm.bias norm.scale out.bias out.kernel",
    "equinox": "hidden.weight hidden.bias norm.weight norm.bias out.weight out.bias",
    "haiku": "hidden.b hidden.w norm.offset norm.scale out.b out.w",
}
MEANS = {
    "nnx": "norm.mean",
    "linen": "batch_stats.norm.mean",
    "equinox": "state.1.0",
    "haiku": "norm/~/mean_ema.hidden",
}
KERNEL = {"nnx": "hidden.kernel", "linen": "hidden.kernel", "equinox": "hidden.weight", "haiku": "hidden.w"}
LIBRARIES = list(MODELS)


def evaluated(name: str, native: Any) -> Any:
    """The forward pass in evaluation mode, as users of the library call it."""
    if name == "nnx":
        native.eval()
        return native(X)
    if name == "linen":
        module, variables = native
        return module.apply(variables, X, train=False)
    if name == "equinox":
        module, state = native
        return eqx.nn.inference_mode(module)(X, state, key=None)[0]
    transformed, params, state = native
    return transformed.apply(params, state, None, X, is_training=False)[0]


def learner_of(model: Any, optimizer: Any = None, **options: Any) -> lc.Learner:
    given: dict[str, Any] = {"default_callbacks": False, "compile": False, **options}
    return lc.Learner(model, lc.losses.mse, optimizer or lc.Adam(0.01), ([(X, Y)] * 3, None), **given)


def dense(params: Any, x: Any) -> Any:
    return x @ params["w"] + params["b"]


def dense_params() -> dict[str, Any]:
    return {"w": jnp.full((3, 2), 0.5), "b": jnp.zeros(2)}


def bound(optimizer: Any, params: Any = None) -> Backend:
    backend = Backend()
    backend.bind({"": (dense, params or dense_params())})
    backend.attach([(optimizer, backend.paths("params")[""])])
    return backend


GRADS: Leaves = {"w": jnp.full((3, 2), 0.25), "b": jnp.asarray([1.0, -2.0])}


def stepped(backend: Backend, grads: Leaves = GRADS, times: int = 3) -> dict[str, Any]:
    for _ in range(times):
        assert backend.update(grads, True) is True
    return {path: np.asarray(value) for path, value in backend.get(backend.paths("params")[""]).items()}


def program(backend: Backend, donate: tuple[int, ...] = (0,)) -> Callable[..., Any]:
    """One step of gradient descent as the core compiles it."""

    def fn(carried: Any, hyper: Any, batch: Any, apply: Any) -> Any:
        backend.put_carried(carried)
        backend.put_hyper_values(hyper)
        scope: dict[str, Any] = {}

        def objective() -> Any:
            scope["loss"] = jnp.mean(
                (backend.forward("", batch[:1], {}, training=True, update_state=True) - batch[1]) ** 2
            )
            return scope["loss"]

        (grads,) = backend.gradient(objective, [backend.paths("params")[""]], None, [scope])[0]
        updated = backend.update(grads, apply)
        assert backend.is_traced(backend.get_hyper(0, "learning_rate"))
        return (backend.carried(), scope["loss"], updated), {"shape": batch[0].shape}

    return backend.compile(fn, donate)
