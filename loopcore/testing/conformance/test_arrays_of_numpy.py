"""NumPy arrays that a phase or ``shared`` holds are constants: in functions, and in operators as arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.backend.choice import using
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import Array, make_learner, mlp_weights
from loopcore.testing.conformance.subject import Subject

X = np.arange(6.0).reshape(2, 3) / 4 + 0.6
TABLE, ROWS = np.array([0.5, -1.5, 2.0]), np.arange(12.0).reshape(3, 4) - 4
KINDS: dict[str, Any] = {"float64": np.float64, "float32": np.float32}

CALLS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "right": lambda xp, x, table, rows: x * table + table,
    "left": lambda xp, x, table, rows: table * x - table,
    "divided": lambda xp, x, table, rows: table / x,
    "compared": lambda xp, x, table, rows: xp.where(table > x, x, 2 * x),
    "matmul": lambda xp, x, table, rows: x @ rows,
    "matmul left": lambda xp, x, table, rows: xp.matmul(table, xp.matrix_transpose(x)),
    "of constants": lambda xp, x, table, rows: xp.sum(table * table) * x,
    "function": lambda xp, x, table, rows: xp.matmul(x, rows) + xp.sum(xp.exp(table)),
    "take": lambda xp, x, table, rows: xp.take(table, xp.asarray([2, 0, 1]), axis=0) * x,
    "sliced": lambda xp, x, table, rows: x[:, 1:] * table[:2],
}


DIRECT = ("function", "take")  # functions take them as they are


class Holding(lc.TrainingPhase):
    """Uses arrays of its own, or those of ``shared``."""

    def __init__(self, kind: Any, call: Callable[[Any, Any, Any, Any], Any], shared: bool, direct: bool) -> None:
        self.table, self.rows = kind(TABLE), kind(ROWS)
        self.call, self.shared, self.direct = call, shared, direct

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        holder = learner.shared if self.shared else self

        def total(x: Any) -> Any:
            xp = learner.xp
            arrays = holder.table, holder.rows
            state.result = self.call(xp, x, *(arrays if self.direct else map(xp.asarray, arrays)))
            return learner.xp.sum(state.result * state.result)

        state.slope = learner.grad(total)(state.x)


@pytest.mark.parametrize("shared", [False, True], ids=["phase", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_numpy(backend: Subject, kind: str, shared: bool) -> None:
    for title, call in CALLS.items():
        phase = Holding(KINDS[kind], call, shared, title in DIRECT)
        learner = make_learner(backend.mlp(mlp_weights()))
        if shared:
            learner.shared.table, learner.shared.rows = phase.table, phase.rows
        state = lc.run_step(phase.step, learner, phase, x=X)
        result, slope = learner.to_host(state.result), learner.to_host(state.slope)
        backend.close(result, expected(call, X), rtol=1e-6 if kind == "float32" else 0.0)  # NumPy computes in it
        backend.close(slope, differences(call), rtol=1e-5)
        assert result.dtype == backend.dtype == slope.dtype
        assert type(phase.table) is np.ndarray and phase.table.dtype == kind


def expected(call: Callable[[Any, Any, Any, Any], Any], x: Array) -> Array:
    with using("numpy"):
        return np.asarray(call(lc.xp, x, TABLE, ROWS))


def differences(call: Callable[[Any, Any, Any, Any], Any]) -> Array:
    return oracle.finite_difference(lambda x: np.sum(expected(call, x) ** 2), X)


def test_compiled_steps_take_them_in_operators_too(compiling: Subject) -> None:
    for call in CALLS.values():
        phase = Holding(np.float32, call, shared=False, direct=True)
        learner = make_learner(compiling.mlp(mlp_weights()))
        state = lc.run_step(phase.step, learner, phase, x=X)
        compiling.close(learner.to_host(state.result), expected(call, X))
