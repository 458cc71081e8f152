"""``learner.model``: calling models by name, in the mode of the running phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from loopcore._utils.running_learner import Running, running
from loopcore.handles.parameters import layout_of

if TYPE_CHECKING:
    from loopcore.backend.protocol import Extras, Native, Tree


class Model:
    """One model of a learner, called as its own users call it: ``learner.model(x)``, ``learner.model.encode(x)``.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> learner = lc.testing.toy_learner()
        >>> learner.model(np.ones((2, 1))).shape
        (2, 1)
    """

    __slots__ = ("_backend", "_forward", "_learner", "_name", "_runs")

    def __init__(self, learner: Running, name: str) -> None:
        self._learner = learner
        self._backend = learner.backend
        # Looked up once: a model is called at every step.
        self._forward = learner.backend.forward
        self._runs = learner.runs
        self._name = name

    def __call__(
        self, *args: object, training: bool | None = None, update_state: bool = True, **kwargs: object
    ) -> Tree:
        """Run the forward pass.

        Args:
            *args: as the native model takes them.
            training: the mode; default that of the running phase (evaluation outside a step).
            update_state: False leaves non-trainable state, such as BatchNorm statistics, as it is.
            **kwargs: as the native model takes them.
        """
        runs = self._runs
        mode = runs.training if training is None else training
        # A loop is running, and has made this learner the running one already.
        if runs.in_scope:
            return self._forward(self._name, args, kwargs, training=mode, update_state=update_state)
        with running(self._learner):
            return self._forward(self._name, args, kwargs, training=mode, update_state=update_state)

    def apply(self, params: Tree, *args: object, training: bool | None = None, **kwargs: object) -> Tree:
        """Run the forward pass with other parameters, a tree as ``learner.params.value`` has for this model."""
        learner = self._learner
        part = learner.all_params[self._name] if self._name else learner.all_params
        mode = self._runs.training if training is None else training
        leaves = layout_of(part).leaves(params)
        with running(learner):
            return self._backend.apply(self._name, leaves, args, kwargs, training=mode)

    def __repr__(self) -> str:
        return f"Model({type(self.native).__name__})" if not self._name else f"Model({self._name!r})"

    @property
    def native(self) -> Native:
        """The user's own model, with the present weights.

        In a step body of a framework whose programs are functions of arrays, an object like it that is differentiated;
        what a call changes in it, such as statistics, is lost there: call a method as ``learner.model.encode(x)``.
        """
        return self._backend.native(self._name)

    def __getattr__(self, name: str) -> Callable[..., Tree]:
        """A method of the user's own model, called as the model itself is: in a mode, and its state is kept."""
        method = None if name.startswith("_") else self._method(name)
        if method is None:
            raise AttributeError(f"the model {self._name!r} has no method {name!r}", name=name, obj=self)
        return method

    def _method(self, name: str) -> Callable[..., Tree] | None:
        backend = cast("Extras", self._backend)
        if not hasattr(backend, "has_method") or not backend.has_method(self._name, name):
            return None

        def call(*args: object, training: bool | None = None, update_state: bool = True, **kwargs: object) -> Tree:
            mode = self._runs.training if training is None else training
            with running(self._learner):
                return backend.call_method(self._name, name, args, kwargs, training=mode, update_state=update_state)

        return call


class Models(Model):
    """All models of a learner: calling it calls the first, ``learner.model.critic`` is a named one.

    Other names are methods of the first, where no model has that name.
    """

    __slots__ = ("_models",)

    def __init__(self, learner: Running, names: tuple[str, ...]) -> None:
        super().__init__(learner, names[0])
        self._models = {name: Model(learner, name) for name in names if name}

    def __getattr__(self, name: str) -> Native:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._models:
            method = self._method(name)
            if method is not None:
                return method
            names = ", ".join(self._models) or "one unnamed model; learner.model.native is the user's own"
            raise AttributeError(f"there is no model {name!r}; there is: {names}", name=name, obj=self)
        return self._models[name]

    def __repr__(self) -> str:
        return f"Models({', '.join(self._models)})" if self._models else super().__repr__()

    def __getitem__(self, name: str) -> Native:
        return self.__getattr__(name)
