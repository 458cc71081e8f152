"""The Learner holds everything: models, data, phases, callbacks, and the verbs a step body uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import urandom
from types import FunctionType
from typing import Any

from loopcore import losses
from loopcore.callback import Callback
from loopcore.errors import CheckpointError
from loopcore.execution.plan import checked_reads
from loopcore.handles.models import Models
from loopcore.handles.randomness import Random
from loopcore.handles.trees import TreeMath
from loopcore.learner.arguments import (
    backend_for,
    check_options,
    checked_phases,
    loss_of,
    named_data,
    named_models,
    named_optimizers,
)
from loopcore.learner.callback_list import CallbackList
from loopcore.learner.default_callbacks import with_defaults
from loopcore.learner.loop_verbs import LoopVerbs
from loopcore.learner.step_verbs import StepVerbs
from loopcore.learner.weight_verbs import WeightVerbs
from loopcore.loop import dry_run
from loopcore.loop.fit import FitResult
from loopcore.loop.session import Session
from loopcore.phases.base import Phase
from loopcore.state import Shared


class Learner(LoopVerbs, StepVerbs, WeightVerbs):
    """Holds all parts of a training run and runs it.

    Args:
        model: a native model, or a dict from name to model. Its type decides the backend.
        loss_fn: ``loss_fn(y_pred, ys) -> scalar``, native or neutral such as ``lc.losses.cross_entropy``.
        optimizer: a neutral spec such as ``lc.Adam(1e-3)``, the framework's own, or a dict from path prefix to one
            of these. What no prefix covers is frozen, and so is what the framework's own flag freezes
            (``requires_grad=False``, ``layer.trainable=False``), unless a prefix is the very path of that parameter.
        data: ``(train, valid)``, either may be None, or a dict by key. Each is an iterable of batches.
        phases: what an epoch of `fit` runs, in order. Default ``(TrainingPhase(), ValidationPhase())``.
        callbacks: in any order; where each runs follows from what it declares.
        hyper: scalars of your own, read as ``learner.hyper.<name>``.
        reads: step values kept after each step, such as ``("step.y_pred",)``; ``("step",)`` for all.
        default_callbacks: whether the default ones join, each unless you pass one of its kind.
        backend: name of the backend where the type of the model does not tell, or ``"auto"``, as in ``lc.use``.
            Default: what that chose, else NumPy.
        device: where models and batches go: ``"cpu"``, ``"gpu"`` for the first accelerator, or in the words of the
            framework. Default: the one chosen with the backend, else where the framework puts them.
        compile: ``"auto"``, True or False; False runs every step eagerly. ``"xla"`` compiles with XLA where the
            framework has other compilers too; on PyTorch a string names the ``torch.compile`` backend.
        seed: of every random number of a step, and of the order of `loopcore.data.batches` without a seed of its own;
            None draws one, which ``learner.seed`` has.

    Raises:
        UnknownModelError, MissingFrameworkError, OptimizerError: the parts do not fit one backend.
        CallbackError: the callbacks cannot work together; the message says why.
        DataError: ``data`` is ambiguous.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> def apply_fn(params, x):
        ...     return x @ params["w"]
        >>> xs = np.arange(8.0).reshape(8, 1) / 8
        >>> learner = lc.Learner(
        ...     (apply_fn, {"w": np.zeros((1, 1))}),
        ...     lc.losses.mse,
        ...     optimizer=lc.SGD(0.5),
        ...     data=([(xs, 3 * xs)], None),
        ...     default_callbacks=False,
        ... )
        >>> learner.fit(100).status
        'completed'
        >>> learner.params.value["w"].round(3)
        array([[3.]])
    """

    def __init__(
        self,
        model: Any,
        loss_fn: Callable[..., Any] | None = None,
        optimizer: Any = None,
        data: Any = (),
        *,
        phases: Sequence[Phase] | None = None,
        callbacks: Sequence[Callback] = (),
        hyper: Mapping[str, float] | None = None,
        reads: Sequence[str] = (),
        default_callbacks: bool = True,
        backend: str | None = None,
        device: Any = None,
        compile: bool | str = "auto",
        seed: int | None = 0,
    ) -> None:
        check_options(callbacks, loss_fn, hyper, seed)
        models = named_models(model)
        self.backend = backend_for(models, backend, device=device, compile=compile)
        self._data = named_data(data)
        self.phases = checked_phases(phases)
        self.runs = Session(self)
        dry_run.build(self, models)
        self.backend.bind(models)
        self.seed = int.from_bytes(urandom(4)) >> 1 if seed is None else int(seed)
        self.losses = losses
        self.xp = self.backend.xp
        self.tree = TreeMath(self.backend)
        self.stop_gradient = self.backend.stop_gradient
        self.number = self.backend.number
        self.to_host = self.backend.to_host
        self.is_ready = self.backend.is_ready
        self.loss_fn: Callable[..., Any] = loss_of(loss_fn)
        self._attach(named_optimizers(optimizer), hyper or {})
        self.reads = checked_reads("Learner", reads)
        self.compile = compile
        self.shared: Any = Shared()
        self.random = Random(self)
        self.model = Models(self, tuple(models))
        self.result: FitResult | None = None
        self._alike: dict[str, dict[str, list[int | None]]] = {}  # by phase, see `batch_length`
        self.callbacks = CallbackList(self, with_defaults(callbacks) if default_callbacks else callbacks)
        for phase in self.phases:
            phase.setup(self)

    @property
    def data(self) -> dict[str, Any]:
        """Data by key; a pair ``(train, valid)`` may be assigned too."""
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        self._data = named_data(data)

    def set_model(self, model: Any) -> None:
        """Replace the models by new ones of the same names; weights are theirs, optimizer state starts anew.

        Args:
            model: as for the constructor. A native optimizer holds the old parameters and must be a spec instead.
        """
        models = named_models(model)
        dry_run.build(self, models)
        self.backend.bind(models)
        self._attach_again()
        self.model = Models(self, tuple(models))
        self.runs.forget_runners()  # a program may hold the variables of the old models

    def __reduce__(self) -> Any:
        raise CheckpointError(
            "a Learner can be neither pickled nor copied: it holds compiled programs, open iterators and objects of "
            "yours. Make another one by the code that made this one, and let it go on from learner.save(path) by "
            "load(path); learner.result and learner.history can be pickled and copied"
        )

    def __repr__(self) -> str:
        models = ", ".join(name for name in self.backend.paths("params") if name) or "one model"
        return (
            f"Learner({models}, backend={self.backend.name!r}, callbacks={[type(c).__name__ for c in self.callbacks]})"
        )


def _name_verbs() -> None:
    """Let Python's own errors say ``Learner.fit() missing ...``, and not the name of a base that no user has met."""
    for base in Learner.__mro__[1:-1]:
        for name, member in vars(base).items():
            if isinstance(member, FunctionType):
                member.__qualname__ = f"Learner.{name}"  # and not the module, by which doctest finds examples
                member.__annotations__.pop("self", None)  # the protocol that a base is written for


_name_verbs()
