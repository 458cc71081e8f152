"""The examples belong to no framework, are as short as they say, and at a small scale do what they say."""

from __future__ import annotations

import ast
import inspect
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from examples import byol, char_lm, common, convnet, custom_step, sam, transformer, vae, wgan_gp
from loopcore.testing.plugin import chosen

EXAMPLES = Path(common.__file__).parent
LOOPS = sorted(EXAMPLES.glob("*.py"))
FRAMEWORKS = {"torch", "jax", "jaxlib", "flax", "optax", "tensorflow", "keras", "autograd"}
pytestmark = pytest.mark.timeout(300)  # fits take seconds, on a busy machine minutes
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that asks for a backend runs on every one that is installed, or on those of ``--backend``."""
    for name in ("native", "backend"):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, chosen(metafunc.config), indirect=True)


@pytest.fixture
def native(request: pytest.FixtureRequest) -> Any:
    """The native models of one framework."""
    return common.models(request.param)


def last(learner: lc.Learner, name: str) -> float:
    """The last epoch's value of a metric."""
    return float(learner.history[name][-1] or 0.0)


def plan_of(learner: lc.Learner) -> list[str]:
    """How the steps of each phase ran, as `Learner.explain` says."""
    return re.findall(r"^  plan: (\w+)", learner.explain(), re.MULTILINE)


# ---- one text for every framework


def alien(source: str) -> list[str]:
    """What makes a source depend on a framework: its imports, and choices by the name of a backend."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"import {name}" for name in names if name.partition(".")[0] in FRAMEWORKS]
        if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Match)):
            test = ast.unparse(node.subject if isinstance(node, ast.Match) else node.test)
            found += [f"if {test}"] if re.search(r"backend|framework|" + "|".join(sorted(FRAMEWORKS)), test) else []
    return found


@pytest.mark.parametrize("path", LOOPS, ids=lambda path: path.name)
def test_a_loop_imports_no_framework_and_asks_for_no_backend(path: Path) -> None:
    assert alien(path.read_text(encoding="utf-8")) == []


def test_a_dependence_on_a_framework_is_noticed() -> None:
    assert alien("import torch.nn as nn\nfrom jax import numpy") == ["import torch.nn", "import jax"]
    assert alien("x = 1 if learner.backend.name == 'jax' else 2") == ["if learner.backend.name == 'jax'"]
    assert alien("import numpy\nif epochs > 3: pass") == []


# ---- the custom step of Keras's guide


def code_lines(*parts: Any) -> int:
    """Lines with code of these functions and classes: not blank, no comment, no docstring, no import."""
    return sum(lines_of(inspect.getsource(part)) for part in parts)


def lines_of(source: str) -> int:
    tree = ast.parse(source)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        doc = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None
        gone = [node.body[0]] if doc else []  # type: ignore[attr-defined]
        gone += [node] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        for one in gone:
            skipped.update(range(one.lineno, (one.end_lineno or one.lineno) + 1))
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in NO_CODE]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - skipped)


def test_lines_are_counted_as_the_example_says() -> None:
    assert (
        lines_of(
            '"""Doc\n\nof two."""\nimport a\n\n# words\nx = f(\n    1,\n)  # words\n\ndef g():\n    "doc"\n    y = 2\n'
        )
        == 5
    )
    assert lines_of('text = """a\n\nb"""\n') == 3


def test_the_custom_step_is_as_short_as_it_says() -> None:
    step, whole = re.findall(r"the step is (\d+) lines, and (\d+) with", " ".join(str(custom_step.__doc__).split()))[0]
    assert code_lines(custom_step.CustomStep) == int(step)
    assert code_lines(custom_step.CustomStep, custom_step.train) == int(whole) < 20


def test_the_custom_step_fits(native: Any) -> None:
    data = common.diabetes()
    learner = custom_step.train(native.regressor(10), lc.data.batches(data, 32, shuffle=True), 20)
    assert list(learner.history) == ["loss", "mae"] and len(learner.history["mae"]) == 20
    assert last(learner, "mae") < 0.6
    assert plan_of(learner) == ["fused" if learner.backend.compiles else "eager"]
    np.testing.assert_allclose(np.mean(np.abs(data["y"])), 0.85, atol=0.01)


# ---- the five loops, small: scikit-learn's digits of 8 x 8 pixels, which need no further package

IMAGES, LABELS = common.digits()
TRAIN, VALID = lc.data.split((IMAGES, LABELS), 0.5)
QUIET: dict[str, Any] = {"default_callbacks": False}


def fitted(learner: lc.Learner, epochs: int, phases: int = 1) -> lc.Learner:
    """A learner after a fit whose steps were one program each, where the backend compiles."""
    assert plan_of(learner) == ["fused" if learner.backend.compiles else "eager"] * phases
    assert learner.fit(epochs).status == "completed"
    return learner


def test_wgan_gp_makes_digits(native: Any) -> None:
    learner = wgan_gp.make(native, IMAGES, size=32, width=64)
    assert wgan_gp.mean_error(wgan_gp.generated(learner, 500), IMAGES) > 0.2
    made = wgan_gp.generated(fitted(learner, 40), 500)
    assert wgan_gp.mean_error(made, IMAGES) < 0.05
    assert len(set(common.nearest_labels(IMAGES, LABELS, made))) >= 5
    assert list(learner.history) == ["loss", "distance", "penalty"]


def test_vae_bounds_the_evidence(native: Any) -> None:
    learner = fitted(vae.make(native, TRAIN[0], VALID[0], width=64, latent=8), 30, phases=2)
    bounds = learner.history["val_bound"]
    assert 20 < last(learner, "val_bound") < 0.8 * (bounds[0] or 0)
    for step in "", "val_":
        parts = last(learner, f"{step}recon") + last(learner, f"{step}kl")
        np.testing.assert_allclose(last(learner, f"{step}bound"), parts, rtol=1e-5)
    assert vae.reconstructed(learner, VALID[0][:5]).shape == (5, 64)
    assert vae.sampled(learner, 3, 8).shape == (3, 64)


def test_vae_raises_the_weight_of_the_divergence(native: Any) -> None:
    learner = vae.make(native, TRAIN[0][:64], VALID[0][:64], width=8, latent=2)
    weights = []
    for _ in range(7):
        learner.fit(1)
        weights.append(learner.hyper.kl_weight)
    np.testing.assert_allclose(weights, [0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    losses, recon, kl = (np.array(learner.history[name], float) for name in ("loss", "recon", "kl"))
    np.testing.assert_allclose(losses, recon + np.array(weights) * kl, rtol=1e-5)


def test_sam_finds_flatter_ground(native: Any) -> None:
    plain, flat = (fitted(sam.make(native, TRAIN, VALID, radius=radius), 40, phases=2) for radius in (0.0, 0.2))
    assert last(flat, "val_accuracy") > 0.97
    assert sam.rise(flat, TRAIN, 0.5) < 0.75 * sam.rise(plain, TRAIN, 0.5)


def test_sam_updates_the_statistics_once(native: Any) -> None:
    """After one step they are those of the first forward pass, whatever the second one saw."""
    learners = [sam.make(native, TRAIN, VALID, radius=radius, callbacks=(), **QUIET) for radius in (0.0, 0.2)]
    before = learners[0].export_weights()
    for learner in learners:
        learner.run_step(learner.phases[0], (TRAIN[0][:64], TRAIN[1][:64]))
    plain, sharp = (learner.export_weights() for learner in learners)
    changed = [path for path in plain if (plain[path] != sharp[path]).any()]
    statistics = [path for path in plain if (plain[path] != before[path]).any() and path not in changed]
    assert sum("norm" in path for path in statistics) >= 4
    assert {path.rpartition(".")[0] for path in changed} >= {"hidden1", "hidden2", "out"}


def test_byol_learns_a_representation(native: Any) -> None:
    def score() -> float:
        x = byol.features(learner, IMAGES)
        return common.linear_probe(x[:100], LABELS[:100], x[100:], LABELS[100:])

    learner = byol.make(native, IMAGES, size=64, width=128)
    before = score()
    fitted(learner, 20)
    assert score() > before + 0.03


def test_byol_averages_parameters_and_statistics(native: Any) -> None:
    learner = byol.make(native, IMAGES, size=64, width=16, **QUIET)
    before = learner.export_weights()
    learner.run_step(learner.phases[0], IMAGES[:64])
    now = learner.export_weights()
    moved = [path for path in now if path.startswith("target.") and (now[path] != before[path]).any()]
    assert {path.split(".")[1] for path in moved} >= {"hidden1", "norm1", "hidden2", "norm2", "out"}
    assert sum("norm" in path for path in moved) == 8  # scale, offset, mean and variance of both
    for path in moved:
        online = now[path.replace("target.", "online.")]
        np.testing.assert_allclose(now[path], 0.98 * before[path] + 0.02 * online, rtol=1e-4, atol=1e-6)


def test_char_lm_reads_on(native: Any) -> None:
    codes, alphabet = common.text()
    codes = codes[:60_000]
    shares = np.bincount(codes)[np.bincount(codes) > 0] / len(codes)
    learner = fitted(char_lm.make(native, codes, len(alphabet), length=32, width=64), 3, phases=2)
    assert last(learner, "val_bits") < -float(np.sum(shares * np.log2(shares))) - 0.5
    said = char_lm.continued(learner, alphabet, "The ", 10, width=64)
    assert said.startswith("The ") and len(said) == 14


def test_char_lm_carries_the_hidden_state_through_an_epoch(native: Any) -> None:
    """Reading a text piece by piece ends where reading it in one go does; a new epoch starts from zeros."""
    codes, alphabet = common.text()
    learner = char_lm.make(native, codes[:2000], len(alphabet), streams=4, length=8, width=16, callbacks=(), **QUIET)
    pieces = list(char_lm.Streams(codes[:129], 4, 8))
    hidden = []
    for _ in range(2):
        learner.run_epoch(learner.phases[1], pieces)
        hidden.append(np.asarray(learner.to_host(learner.step.hidden)))
    whole = np.concatenate([piece["xs"] for piece in pieces], axis=1)
    _, expected = common.forward(learner, whole, np.zeros((4, 16), np.float32))
    assert len(pieces) == 4
    for found in hidden:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# ---- models that belong to no framework


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend, which is chosen."""
    with lc.using(request.param):
        yield request.param


def test_convnet_knows_digits(backend: str) -> None:
    learner = fitted(convnet.make(batch_size=16, channels=(8, 16)), 3, phases=2)
    assert learner.backend.name == backend
    assert last(learner, "val_accuracy") > 0.85
    weights = learner.export_weights()
    kept = [weights[f"{block}.{name}"] for block in (0, 1) for name in ("mean", "variance")]
    assert [value.shape for value in kept] == [(8,), (8,), (16,), (16,)] and all(np.ptp(value) > 0 for value in kept)


def test_transformer_draws_digits(backend: str) -> None:
    learner = fitted(transformer.make(width=16, layers=1), 3, phases=2)
    assert learner.backend.name == backend
    assert last(learner, "val_bits") < 2.9
    images = transformer.drawn(learner, np.array([0, 1]))
    assert images.shape == (2, 8, 8) and 0 <= images.min() < 0.1 and 0.4 < images.max() <= 1


def test_transformer_looks_at_nothing_that_comes_later() -> None:
    learner = transformer.make(width=16, layers=1, **QUIET)
    symbols = transformer.texts()[0][:2]
    others = symbols.copy()
    others[:, 40:] = 0
    found, expected = (common.forward(learner, texts) for texts in (others, symbols))
    np.testing.assert_array_equal(found[:, :40], expected[:, :40])
    assert (found[:, 40:] != expected[:, 40:]).any()


# ---- the same losses everywhere: each backend in float32 against NumPy in float64


class Double:
    """The models of NumPy in float64."""

    def __getattr__(self, name: str) -> Any:
        make = getattr(common.models("numpy"), name)

        def wide(tree: Any) -> Any:
            return {key: wide(value) for key, value in tree.items()} if isinstance(tree, dict) else tree.astype("f8")

        def made(*args: Any, **options: Any) -> Any:
            return tuple(part if callable(part) else wide(part) for part in make(*args, **options))

        return made


TOLERANCE = 1e-5  # relative; the largest difference seen was 1.4e-6
BARE: dict[str, Any] = {"callbacks": (), **QUIET}
WGAN: dict[str, Any] = {"size": 16, "width": 32, "critic_steps": 2, **BARE}
AGREEING: dict[str, tuple[Any, tuple[str, ...]]] = {
    "wgan_gp": (lambda native, **how: wgan_gp.make(native, IMAGES, **WGAN, **how), ("distance", "penalty")),
    "vae": (lambda native, **how: vae.make(native, TRAIN[0], VALID[0], width=32, **BARE, **how), ("recon", "kl")),
    "sam": (lambda native, **how: sam.make(native, TRAIN, VALID, **BARE, **how), ()),
}


@pytest.mark.parametrize("loop", AGREEING)
def test_the_first_20_losses_agree(loop: str, native: Any) -> None:
    make, more = AGREEING[loop]
    witness, learner = make(Double()), make(native)
    learner.import_weights(native.own(learner.export_weights(), witness.export_weights()))
    with lc.testing.same_random():
        expected, found = (first_values(one, ("loss", *more)) for one in (witness, learner))
    assert len(set(expected["loss"])) == 20
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("loop", AGREEING)
def test_the_first_20_losses_are_those_of_eager_steps(loop: str, native: Any) -> None:
    """However a backend runs its steps; here the noise is its own."""
    make, more = AGREEING[loop]
    losses = [first_values(make(native, compile=compiled), ("loss", *more)) for compiled in ("auto", False)]
    for name in losses[0]:
        np.testing.assert_allclose(losses[0][name], losses[1][name], rtol=TOLERANCE, err_msg=name)


def first_values(learner: lc.Learner, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Step values of the first 20 training steps."""
    found: dict[str, list[float]] = {name: [] for name in names}
    kept = tuple(f"step.{name}" for name in names)
    batches = itertools.chain.from_iterable(itertools.repeat(learner.data["training"]))
    for batch in itertools.islice(batches, 20):
        state = learner.run_step(learner.phases[0], batch, reads=kept)
        for name in names:
            found[name].append(float(getattr(state, name)))
    return found


# ---- what people look at

PICTURES = EXAMPLES.parent / "docs" / "_static" / "examples"
PNG = b"\x89PNG\r\n\x1a\n"


def test_pictures_are_written(tmp_path: Path) -> None:
    common.image_grid(tmp_path / "new" / "grid.png", IMAGES[:6].reshape(2, 3, 8, 8), "digits")
    common.curves(tmp_path / "curves.png", {"loss": [3.0, 2.0], "val_loss": [3.0, 2.5]}, ["loss", "val_loss"], "loss")
    common.scatter(tmp_path / "points.png", IMAGES[:40], LABELS[:40], "digits")
    written = sorted(tmp_path.rglob("*.png"))
    assert [path.name for path in written] == ["curves.png", "grid.png", "points.png"]
    assert all(path.read_bytes().startswith(PNG) for path in written)


def test_the_page_shows_every_example_and_small_pictures() -> None:
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    for path in LOOPS:
        assert path.stem in ("__init__", "common") or f"`{path.name}`" in page
    shown = re.findall(r"!\[[^\]]+\]\(_static/examples/([\w.]+)\)", page)
    assert sorted(shown) == sorted(path.name for path in PICTURES.iterdir())
    for name in shown:
        content = (PICTURES / name).read_bytes()
        assert content.startswith(PNG) and len(content) < 100_000
