"""Whole trainings on JAX, beside the loops that users of flax and equinox write by hand."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import optax
from flax import nnx

import loopcore as lc

CLASSES, EPOCHS = 4, 3
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(64, 8, 8, 3)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, size=64).astype(np.int32)
BATCHES = [(IMAGES[n : n + 16], LABELS[n : n + 16]) for n in range(0, 64, 16)]


def cross_entropy(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def fitted(model: Any, optimizer: Any, batches: Any) -> lc.Learner:
    learner = lc.Learner(model, cross_entropy, optimizer, (batches, batches[:1]), callbacks=[lc.Metrics(lc.accuracy)])
    assert learner.fit(EPOCHS).status == "completed"
    return learner


def close(ours: Any, theirs: Any) -> None:
    for path, value in jax.tree_util.tree_leaves_with_path(theirs):
        found = dict(jax.tree_util.tree_leaves_with_path(ours))[path]
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))


# -- a convolutional network of nnx with nnx.Optimizer ----------------------------------------------------------------


class Cnn(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.out = nnx.Linear(16 * 2 * 2, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        pool: Any = nnx.avg_pool
        x = pool(nnx.relu(self.norm(self.conv1(x))), (2, 2), (2, 2))
        x = pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        return self.out(x.reshape(x.shape[0], -1))


def cnn_and_optimizer() -> tuple[Any, Any]:
    model = Cnn(nnx.Rngs(0))
    schedule = optax.cosine_decay_schedule(3e-3, len(BATCHES) * EPOCHS)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def test_a_cnn_of_nnx_with_its_optimizer() -> None:
    model, optimizer = cnn_and_optimizer()

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, y: Any) -> None:
        grads = nnx.grad(lambda model: cross_entropy(model(x), y))(model)
        optimizer.update(model, grads)

    model.train()
    for x, y in BATCHES * EPOCHS:
        step(model, optimizer, x, y)

    ours, own = cnn_and_optimizer()
    fitted(ours, own, BATCHES)
    close(nnx.as_pure(nnx.state(ours)), nnx.as_pure(nnx.state(model)))
    close(nnx.as_pure(own.opt_state), nnx.as_pure(optimizer.opt_state))
    assert int(own.step[...]) == int(optimizer.step[...])


# -- a residual network of linen --------------------------------------------------------------------------------------


class Block(nn.Module):
    width: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        def norm(x: Any, scale: Any = nn.initializers.ones) -> Any:
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, scale_init=scale)(x)

        y = nn.Conv(self.width, (3, 3), self.strides, use_bias=False)(x)
        y = nn.Conv(self.width, (3, 3), use_bias=False)(nn.relu(norm(y)))
        y = norm(y, nn.initializers.constant(0.5))
        if x.shape != y.shape:
            x = norm(nn.Conv(self.width, (1, 1), self.strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = Block(16, 2)(Block(8)(x, train), train)
        return nn.Dense(CLASSES)(x.mean(axis=(1, 2)))


def test_a_residual_network_of_linen() -> None:
    model: Any = ResNet()
    tx = optax.sgd(0.05, momentum=0.9, nesterov=True)
    variables = model.init(jax.random.key(0), IMAGES[:1])

    @jax.jit
    def step(params: Any, stats: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, new = model.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
            return cross_entropy(logits, y), new["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state

    params, stats, state = variables["params"], variables["batch_stats"], tx.init(variables["params"])
    for x, y in BATCHES * EPOCHS:
        params, stats, state = step(params, stats, state, x, y)

    for form in ((model, variables), (model.apply, variables)):
        learner = fitted(form, tx, BATCHES)
        close(learner.params.value, params)
        close(learner.buffers.value, {"batch_stats": stats})
        _, ours = learner.model.native
        np.testing.assert_allclose(
            learner.predict(IMAGES), model.apply(ours, IMAGES, train=False), rtol=1e-4, atol=1e-5
        )


# -- a transformer block of equinox -----------------------------------------------------------------------------------

TOKENS = RNG.integers(0, 11, size=(64, 6)).astype(np.int32)
TEXTS = [(TOKENS[n : n + 16], LABELS[n : n + 16]) for n in range(0, 64, 16)]


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    place: jax.Array
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    out: eqx.nn.Linear

    def __init__(self, key: Any, width: int = 16) -> None:
        keys = jax.random.split(key, 5)
        self.embed = eqx.nn.Embedding(11, width, key=keys[0])
        self.place = 0.1 * jax.random.normal(keys[1], (6, width))
        self.norm1, self.norm2 = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(2, width, key=keys[2])
        self.mlp = eqx.nn.MLP(width, width, 2 * width, 1, activation=jax.nn.gelu, key=keys[3])
        self.out = eqx.nn.Linear(width, CLASSES, key=keys[4])

    def one(self, tokens: Any) -> Any:
        x = jax.vmap(self.embed)(tokens) + self.place
        y = jax.vmap(self.norm1)(x)
        x = x + self.attention(y, y, y)
        x = x + jax.vmap(self.mlp)(jax.vmap(self.norm2)(x))
        return self.out(x.mean(axis=0))

    def __call__(self, tokens: Any) -> Any:
        return jax.vmap(self.one)(tokens)


def test_a_transformer_of_equinox() -> None:
    make: Any = Transformer
    start = make(jax.random.key(0))
    tx = optax.adamw(1e-2)
    model, state = start, tx.init(eqx.filter(start, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(model: Any) -> Any:
            return cross_entropy(model(x), y)

        gradient: Any = eqx.filter_grad(loss)
        grads = gradient(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    for x, y in TEXTS * EPOCHS:
        model, state = step(model, state, x, y)

    learner = fitted(start, tx, TEXTS)
    close(learner.model.native, eqx.filter(model, eqx.is_array))
