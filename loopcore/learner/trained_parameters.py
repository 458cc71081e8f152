"""Which parameters are trained, by which optimizer, and which are frozen or held."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

from loopcore.backend.protocol import Backend, Extras
from loopcore.callback import Callback
from loopcore.checkpoint.parts import OptimizersPart
from loopcore.errors import CallbackError
from loopcore.handles.hyperparameters import Hyper, own_values
from loopcore.handles.parameters import ParameterHandle, assign_optimizers, layout_of, matching
from loopcore.loop.session import Session
from loopcore.protocols import LearnerParts

_NONE: frozenset[str] = frozenset()


class TrainedParameters:
    """A base of `Learner`: its parameters, and what an optimizer trains of them."""

    backend: Backend
    runs: Session

    def _attach(self, optimizers: Mapping[str, Any], hyper: Mapping[str, float]) -> None:
        parts = self.backend.paths("params")
        paths = [path for part in parts.values() for path in part]
        self.optimizer = dict(optimizers)
        self._covered = [(p, self._held(optimizers[p], covered)) for p, covered in assign_optimizers(paths, optimizers)]
        self._woken = frozenset(prefix for prefix in optimizers if prefix in paths and prefix not in parts)
        if self._woken and hasattr(self.backend, "wake"):
            cast(Extras, self.backend).wake(self._woken)
        self._frozen_by_user = self._asked()
        self._attached = [
            (prefix, tuple(path for path in covered if path not in self._frozen_by_user) or covered)
            for prefix, covered in self._covered
        ]
        self._attach_all()
        self.held: frozenset[str] = frozenset()
        self.holds: dict[int, frozenset[str]] = {}  # by id of the callback
        self._named_unreached = set[str]()  # of what no objective reaches
        self.all_params = ParameterHandle(self.backend, "params", parts)
        self.buffers = ParameterHandle(self.backend, "buffers", self.backend.paths("buffers"))
        self._select()
        self.hyper = Hyper(self.backend, hyper, tuple(prefix for prefix, _ in self.trained))

    def _attach_again(self) -> None:
        """Let the same optimizers train the parameters of new models."""
        self._attach(self.optimizer, dict(own_values(self.hyper)))

    def _asked(self) -> frozenset[str]:
        """What the user froze by the framework's own means, but for what an optimizer of its own wakes."""
        frozen_by_user = getattr(self.backend, "frozen_by_user", None)
        return _NONE if frozen_by_user is None else frozen_by_user() - self._woken

    def _attach_all(self) -> None:
        self.backend.attach([(self.optimizer[prefix], paths) for prefix, paths in self._attached])
        self._takes_value = bool(getattr(self.backend, "takes_value", False))

    def _select(self) -> None:
        """Train what has an optimizer, and what the user did not freeze."""
        frozen = self._frozen_by_user
        self.trained = [
            (prefix, tuple(path for path in paths if path not in frozen)) for prefix, paths in self._attached
        ]
        trained_paths = {path for _, group in self.trained for path in group}
        self.frozen = tuple(path for path in self.all_params.names if path not in trained_paths)
        parts = self.backend.paths("params")
        paths_by_model = {model: tuple(path for path in part if path in trained_paths) for model, part in parts.items()}
        nonempty = {model: part for model, part in paths_by_model.items() if part or not model}
        self.params = ParameterHandle(self.backend, "params", nonempty, everything=self.all_params)
        self._layout = layout_of(self.params)

    def _held(self, optimizer: Any, covered: tuple[str, ...]) -> tuple[str, ...]:
        """A native optimizer trains what it was made for; a neutral spec all that its prefix covers."""
        native_paths = self.backend.native_paths(optimizer)
        return covered if native_paths is None else tuple(path for path in covered if path in native_paths)

    def heed_frozen(self) -> None:
        """Follow what the user froze, or let go, by the framework's own means since it was asked for last.

        ``fit`` and every epoch begin with it. Optimizers keep their states.
        """
        frozen = self._asked()
        if frozen == self._frozen_by_user or self.runs.runner is not None:
            return
        attached = [
            (prefix, tuple(path for path in covered if path in before or path not in frozen))
            for (prefix, covered), (_, before) in zip(self._covered, self._attached, strict=True)
        ]
        if attached != self._attached:
            with OptimizersPart(cast("LearnerParts", self)).going_on():
                self.backend.attach([(self.optimizer[prefix], paths) for prefix, paths in attached])
        self._attached, self._frozen_by_user = attached, frozen  # not before: an optimizer may refuse more parameters
        self._select()
        self.runs.forget_runners()

    def hold(self, *patterns: str, by: Callback | None = None) -> tuple[str, ...]:
        """Leave some of the trained parameters as they are from now on; without a pattern, let go what a call held.

        No update touches them: neither decay nor momentum moves them, and the optimizer keeps its state of them as it
        is. Their gradients are zero and are not computed. Buffers, such as BatchNorm's statistics, go on changing.
        Compiled steps are compiled anew. What is never trained needs no optimizer instead, see `Learner`.

        Args:
            *patterns: of full paths, as in ``fnmatch``: ``"encoder.*"``, ``"*bias"``. They replace those of the last
                call with the same ``by``.
            by: the callback that holds them, until it is removed. What others hold stays held.

        Returns:
            The paths that are held, by anybody.

        Raises:
            WeightsError: a pattern matches no trained parameter.
            CallbackError: a step is running.

        Example:
            >>> import loopcore as lc
            >>> learner = lc.testing.toy_learner()
            >>> learner.hold("w")
            ('w',)
            >>> result = learner.fit(1)
            >>> learner.params.value
            {'w': array([0.])}
        """
        if self.runs.runner is not None:
            raise CallbackError("hold changes what a step is: call it between two steps, for instance at EpochBegin")
        self.holds[id(by)] = matching(self.params.names, patterns)
        held_paths = frozenset[str]().union(*self.holds.values())
        if held_paths != self.held:
            self.held = held_paths
            self.runs.forget_runners()
        return tuple(path for path in self.params.names if path in held_paths)

    def name_unreached(self) -> None:
        """Warn once, by name, of trained parameters that no objective has reached; a training epoch ends with it."""
        unreached = getattr(self.backend, "unreached", None)
        names = () if unreached is None else tuple(path for path in unreached() if path not in self._named_unreached)
        if names:
            self._named_unreached.update(names)
            warnings.warn(
                f"no objective has reached {', '.join(names)} so far, though an optimizer trains them. Compute the "
                "loss from them, or leave them without an optimizer: optimizer={'head': ...} trains what is below head",
                stacklevel=2,
            )
