"""The switch, in the process of NumPy; what the other backends do of it is in frameworks/test_switch.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.backend import choice
from loopcore.errors import MissingFrameworkError, UnknownModelError

Fresh = Callable[..., str]
FRAMEWORKS = ("jax", "torch", "tensorflow")
PARAMS = {"w": np.ones((2, 2), "float32")}
SCRIPT = """
import numpy as np
import loopcore as lc

def line(params, x):
    return x @ params["w"]

PARAMS = {"w": np.ones((2, 2), "float32")}
"""


def line(params: Any, x: Any) -> Any:
    return x @ params["w"]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is chosen, and what a test chooses is forgotten."""
    monkeypatch.delenv("LOOPCORE_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "tensorflow"))
    yield
    lc.use(None)


# -- use, using, and nothing


def test_nothing_is_chosen_at_first_and_numpy_takes_neutral_models() -> None:
    assert choice.chosen() is None and choice.name() == "numpy" and choice.device_of("numpy") is None
    assert lc.Learner((line, PARAMS)).backend.name == "numpy"


def test_a_choice_stays_until_it_is_forgotten() -> None:
    lc.use("torch")
    assert choice.chosen() == ("torch", None) and choice.name() == "torch"
    lc.use("jax", device="cpu")
    assert choice.chosen() == ("jax", "cpu")
    lc.use(None)
    assert choice.chosen() is None


def test_a_block_goes_before_use_and_use_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPCORE_BACKEND", "jax")
    assert choice.name() == "jax"
    lc.use("torch")
    assert choice.name() == "torch"
    with lc.using("tensorflow"):
        with lc.using("numpy"):
            assert choice.name() == "numpy"
        lc.use("jax")  # a block is not changed from within
        assert choice.name() == "tensorflow"
    assert choice.name() == "jax"


def test_a_block_ends_where_it_fails() -> None:
    with pytest.raises(ZeroDivisionError), lc.using("torch"):
        _ = 1 / 0
    assert choice.chosen() is None


def test_an_argument_of_the_learner_goes_before_all() -> None:
    lc.use("torch")
    assert lc.Learner((line, PARAMS), backend="numpy").backend.name == "numpy"


def test_another_thread_does_not_see_a_block_and_sees_use() -> None:
    with ThreadPoolExecutor(1) as pool:
        with lc.using("torch"):
            assert pool.submit(choice.name).result() == "numpy"
        lc.use("jax")
        assert pool.submit(choice.name).result() == "jax"


# -- devices


def test_a_device_belongs_to_the_backend_it_was_chosen_with() -> None:
    lc.use("torch", device="cpu")
    assert choice.device_of("torch") == "cpu" and choice.device_of("jax") is None
    with lc.using("torch"):
        assert choice.device_of("torch") is None


def test_a_device_is_passed_on_and_a_learner_may_name_another() -> None:
    lc.use("numpy", device="gpu")
    with pytest.raises(lc.errors.BackendError, match="NumPy computes on the CPU, not on 'gpu'"):
        lc.Learner((line, PARAMS))
    assert lc.Learner((line, PARAMS), device="cpu").backend.name == "numpy"
    with pytest.raises(lc.errors.BackendError, match="NumPy computes on the CPU, not on 'gpu'"):
        lc.xp.zeros((2,))


# -- auto, and names that do not exist


@pytest.mark.parametrize("absent", range(4))
def test_auto_takes_the_first_that_is_installed(fresh: Fresh, absent: int) -> None:
    assert (*FRAMEWORKS, "numpy") == choice.AUTO
    code = 'import loopcore as lc\nlc.use("auto")\nprint(lc.backend.choice.name())\n'
    code += 'with lc.using("auto"): print(lc.backend.choice.name())'
    assert fresh(code, blocked=FRAMEWORKS[:absent]).split() == 2 * [choice.AUTO[absent]]


def test_auto_needs_all_that_a_framework_needs(fresh: Fresh) -> None:
    """JAX without optax cannot train, nor can TensorFlow without Keras."""
    code = 'import loopcore as lc\nlc.use("auto")\nprint(lc.backend.choice.name())'
    assert fresh(code, blocked=("optax",)).split() == ["torch"]
    assert fresh(code, blocked=("optax", "torch", "keras")).split() == ["numpy"]


@pytest.mark.parametrize("name", ["trch", "Torch", "gpu", ""])
def test_a_name_that_no_backend_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = r"there is no backend '.*'; known are jax, numpy, tensorflow, torch"
    with pytest.raises(UnknownModelError, match=known):
        lc.use(name)
    with pytest.raises(UnknownModelError, match=known), lc.using(name):
        pass
    with pytest.raises(UnknownModelError, match=known):
        lc.Learner((line, PARAMS), backend=name)
    monkeypatch.setenv("LOOPCORE_BACKEND", name)
    if name:  # an empty variable chooses nothing
        with pytest.raises(UnknownModelError, match=f"^LOOPCORE_BACKEND={name}: {known}"):
            lc.Learner((line, PARAMS))
        with pytest.raises(UnknownModelError, match=f"^xp.zeros: LOOPCORE_BACKEND={name}: {known}"):
            lc.xp.zeros((2,))
    assert choice._process is None


# -- a framework that is not installed


@pytest.mark.parametrize("backend", FRAMEWORKS)
def test_a_missing_framework_is_said_with_what_to_install(fresh: Fresh, backend: str) -> None:
    code = f"""{SCRIPT}
import os
for act in (
    lambda: lc.use("{backend}"),
    lambda: lc.using("{backend}").__enter__(),
    lambda: lc.Learner((line, PARAMS), backend="{backend}"),
    lambda: (os.environ.update(LOOPCORE_BACKEND="{backend}"), lc.Learner((line, PARAMS))),
    lambda: lc.xp.zeros((2,)),
):
    try:
        act()
    except lc.errors.MissingFrameworkError as error:
        print(error)
"""
    said = fresh(code, blocked=(backend,)).splitlines()
    assert len(said) == 5
    for message in said:
        assert f"the {backend} backend needs {backend}, which is not installed: " in message
        assert message.endswith(f"pip install 'loopcore[{backend}]'")
    assert [f"LOOPCORE_BACKEND={backend}: " in message for message in said] == [False] * 3 + [True] * 2


def test_choosing_imports_no_framework(fresh: Fresh) -> None:
    code = f"""
import sys
import loopcore as lc
for backend in {FRAMEWORKS}:
    lc.use(backend)
    with lc.using(backend): pass
print([name for name in (*{FRAMEWORKS}, "keras") if name in sys.modules])
"""
    assert fresh(code).strip() == "[]"


def test_a_missing_framework_is_no_choice() -> None:
    with pytest.raises((MissingFrameworkError, UnknownModelError)):
        lc.use("absent")
    assert choice.chosen() is None


# -- Keras


def test_keras_follows_if_it_is_not_imported_yet(fresh: Fresh) -> None:
    code = """
import os
os.environ.pop("KERAS_BACKEND", None)
import loopcore as lc
lc.use("jax"); print(os.environ.get("KERAS_BACKEND"))
with lc.using("torch"): print(os.environ.get("KERAS_BACKEND"))
print(os.environ.get("KERAS_BACKEND"))
lc.use("numpy"); print(os.environ.get("KERAS_BACKEND"))
del os.environ["KERAS_BACKEND"]
with lc.using("tensorflow"): print(os.environ.get("KERAS_BACKEND"))
print(os.environ.get("KERAS_BACKEND"))
"""
    assert fresh(code).split() == ["jax", "torch", "jax", "jax", "tensorflow", "None"]


@pytest.mark.parametrize(("value", "expected"), [("torch", "torch"), ("auto", "jax"), ("numpy", "None"), ("", "None")])
def test_keras_follows_the_environment_when_loopcore_is_imported(fresh: Fresh, value: str, expected: str) -> None:
    code = f"""
import os
os.environ.pop("KERAS_BACKEND", None)
os.environ["LOOPCORE_BACKEND"] = "{value}"
import loopcore
print(os.environ.get("KERAS_BACKEND"))
"""
    assert fresh(code).strip() == expected


def test_a_wrong_environment_is_no_error_before_it_is_needed(fresh: Fresh) -> None:
    code = """
import os
os.environ["LOOPCORE_BACKEND"] = "trch"
import loopcore as lc
with lc.using("numpy"): print(lc.xp.zeros((2,)))
"""
    assert fresh(code).strip() == "[0. 0.]"
