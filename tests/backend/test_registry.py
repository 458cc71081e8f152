"""A framework that is not installed, and what an adapter needs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable

import pytest

from loopcore.backend import registry
from tests.conftest import ROOT


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_a_framework_that_is_not_installed(backend: str, fresh: Callable[..., str]) -> None:
    printed = fresh(
        f"""
        import loopcore as lc

        assert lc.testing.toy_learner().fit(1).status == "completed"
        try:
            lc.testing.toy_learner(backend={backend!r})
        except ImportError as error:
            print(type(error).__name__, error)
        """,
        blocked=("torch", "jax", "tensorflow", "loopcore_jax", "loopcore_tensorflow"),
    )
    assert re.match(rf"MissingFrameworkError the {backend} backend needs \w*{backend}, which is not installed", printed)
    assert f"pip install 'loopcore[{backend}]'" in printed


@pytest.mark.parametrize(
    ("backend", "package", "install"),
    [
        ("numpy", "autograd", "autograd"),
        ("torch", "torch", "'loopcore[torch]'"),
        ("jax", "jax", "'loopcore[jax]'"),
        ("jax", "jaxlib", "'loopcore[jax]'"),
        ("jax", "optax", "'loopcore[jax]'"),
        ("tensorflow", "tensorflow", "'loopcore[tensorflow]'"),
        ("tensorflow", "keras", "'loopcore[tensorflow]'"),
    ],
)
def test_half_of_a_framework(backend: str, package: str, install: str, fresh: Callable[..., str]) -> None:
    printed = fresh(
        f"""
        import loopcore as lc

        try:
            lc.testing.toy_learner(backend={backend!r})
        except lc.errors.MissingFrameworkError as error:
            print(error)
        """,
        blocked=(package,),
    )
    assert printed == f"the {backend} backend needs {package}, which is not installed: pip install {install}\n"


def test_the_packages_of_an_adapter_are_those_of_its_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for name, adapter in registry.BUILT_IN.items():
        brought = project["optional-dependencies"].get(name, project["dependencies"])
        assert {re.split(r"\W", line)[0] for line in brought} >= adapter.needs - {"jaxlib"}, name  # jax brings jaxlib
        assert name in ("numpy", *project["optional-dependencies"])
