"""A transformer that belongs to no framework, and learns to draw handwritten digits pixel by pixel.

A digit is a text of 64 pixels with 17 shades. The model reads its label and the pixels so far and says what comes next:
embeddings, masked attention, layer norm and dropout, all by ``lc.xp`` and ``lc.random``.

    python -m examples.transformer --backend jax

Result, on scikit-learn's 1,797 digits: below 1.9 bits a pixel on the fifth that it has not seen; the frequencies of the
shades alone give 3.0, and those of each place 2.4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import loopcore as lc
from examples import common

PIXELS, SHADES = 64, 17
NATS = math.log(2)


def first_weights(width: int = 48, layers: int = 2, seed: int = 0) -> Any:
    """Parameters of a new model, a tree of NumPy arrays."""
    draw = np.random.default_rng(seed).normal

    def normal(*shape: int) -> Any:
        return draw(0, shape[-2] ** -0.5, shape).astype(np.float32)

    def norm() -> Any:
        return {"scale": np.ones(width, np.float32), "offset": np.zeros(width, np.float32)}

    def layer() -> Any:
        attention = {"norm": norm(), "in": normal(width, 3 * width), "out": normal(width, width)}
        return {
            "attention": attention,
            "mlp": {"norm": norm(), "in": normal(width, 4 * width), "out": normal(4 * width, width)},
        }

    embeddings = {"symbol": normal(SHADES + 10, width), "place": normal(PIXELS, width)}
    return {
        "embed": embeddings,
        "layers": [layer() for _ in range(layers)],
        "norm": norm(),
        "out": normal(width, SHADES),
    }


def dropout(x: Any, rate: float, train: bool) -> Any:
    """Zeros with a probability of ``rate``, and the rest as much larger (Srivastava et al., 2014)."""
    return x * lc.random.bernoulli(1 - rate, x.shape) / (1 - rate) if train else x


def attention(part: Any, x: Any, mask: Any, heads: int = 4) -> Any:
    """What places ``(batch, length, width)`` take from those before them (Vaswani et al., 2017, arXiv:1706.03762)."""
    batch, length, width = x.shape
    q, k, v = (
        lc.xp.reshape(x @ part["in"][:, n * width : (n + 1) * width], (batch, length, heads, width // heads))
        for n in range(3)
    )
    scores = lc.xp.einsum("bqhd,bkhd->bhqk", q, k) * (width // heads) ** -0.5
    weights = lc.xp.softmax(lc.xp.where(mask, scores, -1e9), axis=-1)
    return lc.xp.reshape(lc.xp.einsum("bhqk,bkhd->bqhd", weights, v), (batch, length, width)) @ part["out"]


def normal(part: Any, x: Any) -> Any:
    return lc.xp.layer_norm(x, part["scale"], part["offset"])


def transformer(params: Any, symbols: Any, train: bool, rate: float = 0.1) -> Any:
    """Symbols ``(batch, length)``, a label and then pixels -> logits of the next pixel ``(batch, length, 17)``."""
    length = symbols.shape[1]
    x = lc.xp.take(params["embed"]["symbol"], symbols, axis=0) + params["embed"]["place"][:length]
    places = lc.xp.arange(length)
    mask = places[:, None] >= places[None, :]
    for layer in params["layers"]:
        part = layer["attention"]
        x = x + dropout(attention(part, normal(part["norm"], x), mask), rate, train)
        part = layer["mlp"]
        x = x + dropout(lc.xp.gelu(normal(part["norm"], x) @ part["in"]) @ part["out"], rate, train)
    return normal(params["norm"], x) @ params["out"]


def bits(y_pred: Any, ys: Any) -> Any:
    """Cross entropy in bits a pixel."""
    return lc.losses.cross_entropy(y_pred, ys) / NATS


def texts() -> tuple[common.Array, common.Array]:
    """What the model reads ``(1797, 64)``, a label and 63 pixels, and what it shall say, 64 pixels."""
    x, y = common.digits()
    shades = np.rint(x * 16).astype(np.int32)
    return np.concatenate([SHADES + y[:, None], shades[:, :-1]], axis=1).astype(np.int32), shades


def make(*, batch_size: int = 32, width: int = 48, layers: int = 2, **options: Any) -> lc.Learner:
    """A learner for the digits, a fifth of them for validation."""
    seed = options.get("seed", 0)
    train, valid = lc.data.split(texts(), 0.8, seed=0)
    data = lc.data.batches(train, batch_size, shuffle=True, seed=seed), lc.data.batches(valid, 120)
    parts: dict[str, Any] = {"callbacks": [lc.Metrics(bits)], **options}
    model = transformer, first_weights(width, layers, seed)
    return lc.Learner(model, lc.losses.cross_entropy, lc.Adam(3e-3), data, **parts)


def drawn(learner: lc.Learner, labels: common.Array) -> common.Array:
    """Digits ``(n, 8, 8)`` of some labels ``(n,)``, each pixel drawn by its probability."""
    draw, phase = np.random.default_rng(0), lc.PredictionPhase()  # one phase, so that it is compiled once
    symbols = np.zeros((len(labels), PIXELS + 1), np.int32)  # no place looks at those after it
    symbols[:, 0] = SHADES + labels
    for place in range(PIXELS):
        y_pred = learner.run_step(phase, symbols[:, :PIXELS], reads=("step.y_pred",)).y_pred
        logits = learner.to_host(y_pred)[:, place].astype(np.float64)
        symbols[:, place + 1] = np.argmax(logits + draw.gumbel(size=logits.shape), axis=-1)
    return symbols[:, 1:].reshape(-1, 8, 8) / 16


def main() -> None:
    options = common.arguments(__doc__, epochs=20)
    lc.use(options.backend)
    learner = make(seed=options.seed)
    learner.fit(options.epochs)
    print(f"{learner.history['val_bits'][-1]:.2f} bits a pixel")
    pictures = np.pad(drawn(learner, np.repeat(np.arange(10), 4)), ((0, 0), (1, 1), (1, 1)))
    pictures = pictures.reshape(10, 4, 10, 10).swapaxes(0, 1)
    common.image_grid(options.pictures / "transformer.png", pictures, "digits that the transformer drew")


if __name__ == "__main__":
    main()
