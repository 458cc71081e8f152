"""What code below the Learner may use of it, and of a phase: nothing there imports the Learner.

A step body and a handler get a `LearnerView`; that of a handler is guarded, and lets through what its callback
declares. What runs the loop gets the whole learner, as `LearnerParts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from loopcore.backend.protocol import Array, Backend, Tree
from loopcore.events import Event, Outcome
from loopcore.handles.hyperparameters import Hyper
from loopcore.handles.models import Models
from loopcore.handles.parameters import ParameterHandle
from loopcore.handles.randomness import Random
from loopcore.handles.trees import TreeMath
from loopcore.state import State

Body: TypeAlias = Callable[..., None]
Fire: TypeAlias = Callable[[Event], None]
Objective: TypeAlias = Callable[[], Any]
StateDict: TypeAlias = dict[str, Any]  # what a callback keeps in a checkpoint: JSON values by name
Wrt: TypeAlias = "ParameterHandle | tuple[ParameterHandle, ...] | None"


class EpochView(Protocol):
    """The running epoch of a phase, or the last one; see `loopcore.loop.scopes.EpochInfo`."""

    phase: Any
    length: int | None
    attempted: int
    completed: int
    last: bool
    nested: bool
    round: int | None
    after: int
    within: int | None
    outcome: Outcome | None
    over: bool
    metrics: dict[str, Any]


class LearnerView(Protocol):
    """What a step body and a handler use of a learner; see `loopcore.learner.Learner` for what each does."""

    backend: Backend
    shared: Any
    hyper: Hyper
    model: Models
    params: ParameterHandle
    buffers: ParameterHandle
    random: Random
    xp: Any
    tree: TreeMath
    loss_fn: Callable[..., Any]
    seed: int
    optimizer: dict[str, Any]

    @property
    def losses(self) -> Any:
        """The functions of `loopcore.losses`."""
        ...

    @property
    def phases(self) -> Sequence[Any]:
        """What a round of ``fit`` runs."""
        ...

    @property
    def step(self) -> Any:
        """State of the running step, then of the last one."""
        ...

    @property
    def epoch(self) -> Any:
        """The running epoch, then the last one."""
        ...

    @property
    def data(self) -> dict[str, Any]:
        """Data by key."""
        ...

    @property
    def attempt(self) -> Any:
        """Number of the running step among those begun in its phase, from 0."""
        ...

    @property
    def step_number(self) -> int:
        """Number of the running step among the completed ones of its phase, from 1."""
        ...

    @property
    def sample_weight(self) -> Any:
        """Weight of the running step in epoch means."""
        ...

    @property
    def accelerator(self) -> Any:
        """The first accelerator that the framework sees."""
        ...

    @property
    def history(self) -> Any:
        """Epoch values of the metrics."""
        ...

    @property
    def stop_gradient(self) -> Callable[[Tree], Tree]:
        """The same values without graph."""
        ...

    @property
    def to_host(self) -> Callable[[Tree], Any]:
        """NumPy copies of all arrays."""
        ...

    @property
    def number(self) -> Callable[[Any], Any]:
        """A number for what the host knows at once."""
        ...

    @property
    def is_ready(self) -> Callable[[Array], bool]:
        """Whether fetching would not wait."""
        ...

    def gradient(self, objective: Objective, wrt: Any = None, at: Tree | None = None) -> Any:
        """Differentiate a zero-argument closure."""
        ...

    def grad(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Gradient of a scalar function of arrays."""
        ...

    def update(self, grads: Tree, params: Wrt = None, when: Any = True) -> None:
        """Apply one optimizer step."""
        ...

    def minimize(self, objective: Objective, wrt: Wrt = None, at: Tree | None = None) -> None:
        """Take the gradient of an objective, fire BackwardEnd, and update."""
        ...

    def collect(self, *names: str) -> tuple[Any, ...]:
        """Values of the running step that are looked at later."""
        ...

    def peek(self, phase: Any) -> Any:
        """Look at the next batch of a phase."""
        ...

    def rehearse(self, phase: Any, batch: Any) -> State:
        """Run one step that changes nothing."""
        ...

    def predict(self, data: Any) -> Any:
        """What the model makes of data."""
        ...

    def run_step(self, phase: Any, batch: Any, *, reads: Sequence[str] = ()) -> State:
        """Run one step of a phase."""
        ...

    def run_epoch(self, phase: Any, data: Iterable[Any] | None = None, *, last: bool = True) -> Any:
        """Run one epoch of a phase."""
        ...

    def profile(self, folder: str | Path) -> AbstractContextManager[None]:
        """Profile a block."""
        ...

    def export_weights(self) -> dict[str, np.ndarray[Any, Any]]:
        """NumPy copies of parameters and buffers, by path."""
        ...

    def save(self, path: str | Path, *, only_finite: bool = False, **more: Any) -> Path:
        """Write a checkpoint."""
        ...

    def save_model(self, path: str | Path) -> Path:
        """Write the weights alone."""
        ...

    def to_device(self, device: Any) -> None:
        """Move everything to a device."""
        ...

    def hold(self, *patterns: str, by: Any = None) -> tuple[str, ...]:
        """Leave some of the trained parameters as they are."""
        ...


class LearnerParts(LearnerView, Protocol):
    """The whole learner, for what runs the loop, guards its views, and saves and loads it."""

    runs: Any
    callbacks: Any
    all_params: ParameterHandle
    reads: tuple[str, ...]
    compile: bool | str
    trained: list[tuple[str, tuple[str, ...]]]
    frozen: tuple[str, ...]
    held: frozenset[str]
    holds: dict[int, frozenset[str]]
    result: Any

    def heed_frozen(self) -> None:
        """Follow what the user froze, or let go."""
        ...

    def name_unreached(self) -> None:
        """Warn of trained parameters that no objective has reached."""
        ...

    def import_weights(self, weights: Mapping[str, Any], names: Any = None) -> None:
        """Write parameters and buffers."""
        ...
