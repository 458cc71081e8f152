"""The backend under test, and what its adapter provides for the suite."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias, cast

import numpy as np

from loopcore.backend.registry import BUILT_IN, GROUP, known, load
from loopcore.errors import BackendError, MissingFrameworkError
from loopcore.handles.parameters import layout_of

__all__ = ["KNOWN_GAPS", "MissingFrameworkError", "NativeModels", "Subject", "installed", "known", "subject"]

Weights: TypeAlias = Mapping[str, "np.ndarray[Any, Any]"]

# (backend, name of the test) -> why it fails there. It must fail: a gap that closed fails the run.
KNOWN_GAPS: dict[tuple[str, str], str] = {
    ("jax", "test_int64_on_request"): "JAX has 64-bit integers only with jax_enable_x64; without, int64 means int32",
    ("tensorflow", "test_operators_of_two_dtypes"): "operators of TensorFlow take one dtype: xp.astype(n, x.dtype)",
}


class NativeModels(Protocol):
    """What the module ``testing`` of an adapter's package holds: models as users of the framework write them.

    Weights come, and go back, under the names of the suite: ``weight`` of shape ``(inputs, outputs)`` and ``bias`` of
    a dense layer, ``scale``, ``offset``, ``mean`` and ``variance`` of a normalisation. Layers are called ``hidden``,
    ``norm`` and ``out``, and a bias is called ``bias``, in the framework too, so that paths begin and end so. Arrays
    are ``(batch, features)``. A model must not keep the arrays of ``weights``.

    Attributes:
        dtypes: floating dtypes it trains in, the widest first.
        batch_norm_correction: 1 if its running variance divides by n - 1, 0 if by n.
    """

    dtypes: tuple[str, ...]
    batch_norm_correction: int

    def linear(self, weights: Weights, dtype: str) -> Any:
        """``x @ weight + bias``; the layer is the model itself, so its paths have no dot."""
        ...

    def mlp(self, weights: Weights, dtype: str) -> Any:
        """``out(tanh(hidden(x)))``."""
        ...

    def batch_norm(self, weights: Weights, dtype: str) -> Any:
        """``out(norm(x))``: keeps 0.9 of its running statistics at each step, epsilon 1e-5."""
        ...

    def dropout(self, weights: Weights, p: float, dtype: str) -> Any:
        """``out(drop(x))``: while training ``drop`` zeroes with probability ``p`` and divides the rest by 1 - p."""
        ...

    def structured(self, weights: Weights, dtype: str) -> Any:
        """Called as ``model(x, scale=2.0)``; returns ``{"plain": out(x), "scaled": scale * out(x)}``."""
        ...

    def arrays(self, tree: Any, dtype: str) -> Any:
        """A dict of native arrays with the values of a dict of NumPy arrays: parameters without a forward."""
        ...

    def neutral(self, weights: Weights) -> dict[str, np.ndarray[Any, Any]]:
        """Arrays by path, as `Learner.export_weights` gives them -> the names and shapes of the suite.

        Paths may begin with the name of a model; gradients come here too.
        """
        ...

    def is_plain(self, array: Any) -> bool:
        """Whether the array belongs to no graph, tape or trace."""
        ...


_NAMES = tuple(name for name in (*NativeModels.__annotations__, *vars(NativeModels)) if not name.startswith("_"))
NEUTRAL = "neutral"  # models that belong to no framework, see `loopcore.testing.neutral`
_FLOORS = {"float64": 1e-10, "float32": 2e-5}


@dataclass(frozen=True)
class Subject:
    """A backend under test in one floating dtype. Its methods make native models, see `NativeModels`.

    Attributes:
        name: of the backend.
        native: the module ``testing`` of its adapter.
        dtype: of all parameters.
    """

    name: str
    native: NativeModels
    dtype: str

    def within(self, dtype: str) -> Subject:
        """The same backend in another dtype."""
        return replace(self, dtype=dtype)

    def linear(self, weights: Weights) -> Any:
        """A dense layer."""
        return self.native.linear(weights, self.dtype)

    def mlp(self, weights: Weights) -> Any:
        """Two dense layers, ``hidden`` and ``out``."""
        return self.native.mlp(weights, self.dtype)

    def batch_norm(self, weights: Weights) -> Any:
        """A normalisation ``norm`` and a dense layer ``out``."""
        return self.native.batch_norm(weights, self.dtype)

    def dropout(self, weights: Weights, p: float) -> Any:
        """Dropout and a dense layer ``out``."""
        return self.native.dropout(weights, p, self.dtype)

    def structured(self, weights: Weights) -> Any:
        """A dense layer that takes a keyword and returns a dict."""
        return self.native.structured(weights, self.dtype)

    def arrays(self, tree: Any) -> Any:
        """Parameters without a forward."""
        return self.native.arrays(tree, self.dtype)

    def weights(self, learner: Any) -> dict[str, np.ndarray[Any, Any]]:
        """All weights of a learner, under the names of the suite."""
        return self.native.neutral(learner.export_weights())

    def leaves(self, learner: Any, tree: Any, handle: Any = None) -> dict[str, np.ndarray[Any, Any]]:
        """A tree in the structure of ``handle.value`` (default: of all parameters) -> NumPy under the suite's names."""
        leaves = layout_of(learner.params if handle is None else handle).leaves(tree)
        return self.native.neutral({path: np.asarray(learner.to_host(leaf)) for path, leaf in leaves.items()})

    def close(self, actual: Any, desired: Any, rtol: float = 0.0) -> None:
        """Assert that arrays, or dicts of arrays, agree.

        Args:
            actual: what the backend computed, on the host.
            desired: what is expected; a dict has the same keys.
            rtol: tolerance relative to the largest entry, where more than the dtype's own is needed.
        """
        if isinstance(desired, Mapping):
            wanted = cast("Mapping[str, Any]", desired)
            np.testing.assert_equal(sorted(actual), sorted(wanted))
            for name, value in wanted.items():
                self._close(name, actual[name], value, rtol)
        else:
            self._close("", actual, desired, rtol)

    def _close(self, name: str, actual: Any, desired: Any, rtol: float) -> None:
        rtol = max(rtol, _FLOORS[self.dtype])
        atol = rtol * np.max(np.abs(desired), initial=0.0) + 1e-30
        np.testing.assert_allclose(actual, desired, rtol=rtol, atol=atol, err_msg=name)
        np.testing.assert_equal(np.shape(actual), np.shape(desired), err_msg=name)


def installed() -> list[str]:
    """Names of the backends whose adapter and framework are there; nothing is imported."""
    built_in = [name for name, adapter in BUILT_IN.items() if all(map(find_spec, (adapter.package, *adapter.needs)))]
    return sorted(built_in) + sorted(point.name for point in entry_points(group=GROUP) if point.name not in BUILT_IN)


@cache
def subject(name: str, models: str = "") -> Subject:
    """The backend of a name, in its widest dtype.

    Args:
        name: of the backend.
        models: package whose module ``testing`` has the models instead of the adapter's own; ``"neutral"`` for those
            that belong to no framework.

    Raises:
        MissingFrameworkError: its framework is not installed.
        BackendError: its package has no module ``testing``, or one that lacks something.
    """
    package = _package_of(name)
    try:
        native: Any = importlib.import_module(f"{package}.testing")
    except ModuleNotFoundError as error:
        if error.name != f"{package}.testing":
            raise
        raise BackendError(
            f"the backend {name!r} cannot be tested: write the module {package}.testing with the functions of "
            "loopcore.testing.conformance.subject.NativeModels"
        ) from error
    missing = [wanted for wanted in _NAMES if not hasattr(native, wanted)]
    if missing:
        raise BackendError(f"{package}.testing has no {', '.join(missing)}; see NativeModels for what they are")
    if models:
        own = {wanted: getattr(native, wanted) for wanted in _NAMES}
        module = "loopcore.testing.neutral" if models == NEUTRAL else f"{models}.testing"
        native = SimpleNamespace(**{**own, **vars(importlib.import_module(module))})
    return Subject(name, native, native.dtypes[0])


def _package_of(name: str) -> str:
    load(name)  # tells a missing framework from a missing module
    if name in BUILT_IN:
        return BUILT_IN[name].package
    module = next(point.module for point in entry_points(group=GROUP) if point.name == name)
    return importlib.import_module(module).__spec__.parent or module  # type: ignore[union-attr]
