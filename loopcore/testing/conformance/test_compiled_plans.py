"""The plan of a step never changes its results."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from loopcore.testing.conformance.plans import make_case, run_case
from loopcore.testing.conformance.subject import Subject


def run(backend: Subject, seed: int, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # handlers whose event a body does not fire, values replaced in objectives
        return run_case(backend, make_case(seed), **options)


@pytest.mark.parametrize("seed", range(100))
def test_random_bodies_with_random_handlers(compiling: Subject, seed: int) -> None:
    """A case is compiled whole or in pieces, by what its handlers declare; the results are those of eager steps."""
    weights, observations = run(compiling, seed)
    eager, expected = run(compiling, seed, compile=False)
    compiling.close(weights, eager, rtol=1e-4)
    assert [entry[:2] for entry in observations] == [entry[:2] for entry in expected]
    for (_, _, actual), (_, _, desired) in zip(observations, expected, strict=True):
        same(actual, desired)


def same(actual: Any, desired: Any) -> None:
    if isinstance(desired, dict):
        assert actual.keys() == desired.keys()
        for name in desired:
            same(actual[name], desired[name])
    elif isinstance(desired, list):
        for a, b in zip(actual, desired, strict=True):
            same(a, b)
    else:
        np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=1e-5)
