"""The backend protocol: all that the core asks of a framework.

An adapter is one class per framework, with one instance per Learner. It decides nothing about training: which
parameters are trained, in which order things happen and what a callback may touch is settled in the core.

Words used below. A *path* names one array of one model, ``"0.weight"``, or ``"critic.0.weight"`` when the
Learner holds several named models. *Leaves* are a dict from path to a native array. A *tree* is nested dicts,
lists, tuples (or the framework's own containers) of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

Array: TypeAlias = Any  # the frameworks' arrays have no type in common
Tree: TypeAlias = Any
Leaves: TypeAlias = dict[str, Array]
HostArray: TypeAlias = np.ndarray[Any, Any]
HostDtype: TypeAlias = np.dtype[Any]
Scalar: TypeAlias = float | Array
Condition: TypeAlias = bool | Array  # an array is 0-d and boolean
Namespace: TypeAlias = Any  # functions of arrays, as ``learner.xp`` has them; an adapter adds what it likes
Model: TypeAlias = Any  # whatever the framework's users call a model
Native: TypeAlias = Any  # an object of the framework, which only its own code looks into
Kind: TypeAlias = Literal["params", "buffers"]
Scopes: TypeAlias = Sequence[MutableMapping[str, Tree]]  # state and shared, by name of a value
Result = TypeVar("Result")


class CutError(BaseException):
    """Leaves an objective at a cut of a compiled step; not for users.

    Attributes:
        leaves: arrays that are handed on to the next piece. Whoever differentiates the objective makes them plain.
        pullback: set by it: what takes gradients by these leaves back, a tree of arrays that may leave a program.
    """

    leaves: list[Array]
    pullback: Tree = None


class DrawKey(NamedTuple):
    """Names one random draw: equal keys give equal numbers.

    Attributes:
        seed: of the learner.
        stream: hash of (phase, owner, draw number within the step); static in a compiled step.
        step: count of attempted steps of the phase; an input of a compiled step.
    """

    seed: int
    stream: int
    step: int


class RandomBackend(Protocol):
    """Random arrays in the parameters' dtype on the learner's device; equal keys give equal arrays."""

    def key(self, key: DrawKey) -> Native:
        """What the framework itself draws from, for code that belongs to it."""
        ...

    def normal(self, key: DrawKey, shape: Sequence[int]) -> Array:
        """Standard normal numbers."""
        ...

    def uniform(self, key: DrawKey, shape: Sequence[int], low: float, high: float) -> Array:
        """Uniform numbers in ``[low, high)``."""
        ...

    def bernoulli(self, key: DrawKey, p: float, shape: Sequence[int]) -> Array:
        """Ones with probability ``p``, else zeros, floating."""
        ...

    def integers(self, key: DrawKey, low: int, high: int, shape: Sequence[int]) -> Array:
        """Integers in ``[low, high)``, int32."""
        ...

    def permutation(self, key: DrawKey, n: int) -> Array:
        """The integers below ``n`` in random order."""
        ...

    def beta(self, key: DrawKey, a: float, b: float, shape: Sequence[int]) -> Array:
        """Numbers of the Beta(a, b) distribution."""
        ...

    def categorical(self, key: DrawKey, logits: Array) -> Array:
        """An index along the last axis for each row."""
        ...


class ModelsPart(Protocol):
    """The part of a backend that holds the bound models and their arrays."""

    def native(self, model: str) -> Model:
        """The user's own object, holding the present weights."""
        ...

    def paths(self, kind: Kind) -> dict[str, tuple[str, ...]]:
        """For each model name the full paths of its arrays, in the model's own order."""
        ...

    def get(self, paths: Iterable[str]) -> Leaves:
        """The present arrays, by reference. Inside an objective: those the gradient is taken with respect to."""
        ...

    def set(self, leaves: Mapping[str, Array]) -> None:
        """Copy values in (native or NumPy arrays; dtype and device are adapted, shapes have been checked)."""
        ...

    def snapshot(self, paths: Iterable[str]) -> Leaves:
        """Copies that no later step changes. Inside an objective they are part of what is differentiated."""
        ...

    def pack(self, model: str, kind: Kind, leaves: Leaves) -> Tree:
        """All leaves of one model (keys relative to the model) -> the tree its users know.

        torch and TensorFlow return the dict itself, NumPy and JAX the model's own structure.
        """
        ...

    def unpack(self, model: str, kind: Kind, tree: Tree) -> Leaves:
        """The inverse of `pack`. Raises ValueError when the structure differs."""
        ...

    def forward(
        self, model: str, args: tuple[object, ...], kwargs: dict[str, object], *, training: bool, update_state: bool
    ) -> Tree:
        """Call a model. ``training`` is its mode; without ``update_state`` its buffers stay as they are.

        Outside an objective it builds no graph.
        """
        ...

    def apply(
        self, model: str, leaves: Leaves, args: tuple[object, ...], kwargs: dict[str, object], *, training: bool
    ) -> Tree:
        """Call a model with other parameters (full paths; absent ones are the present ones), buffers unchanged."""
        ...


class OptimizersPart(Protocol):
    """The part of a backend that holds the attached optimizers."""

    def native_paths(self, optimizer: object) -> tuple[str, ...] | None:
        """Which bound parameters a native optimizer was made for; None for a spec or where it does not tell."""
        ...

    def attach(self, optimizers: Sequence[tuple[object, tuple[str, ...]]]) -> None:
        """Take the optimizers, each with the paths it trains (never empty, never overlapping).

        An optimizer is a neutral spec or the framework's own. Raises OptimizerError for one that is neither,
        and for a native one that holds other parameters than its paths.
        """
        ...

    def optimizer_name(self, optimizer: int) -> str:
        """What the n-th attached optimizer is called, for messages: the state of one fits another of the same name."""
        ...

    def hyper_names(self, optimizer: int) -> tuple[str, ...]:
        """Which of ``learning_rate, momentum, weight_decay`` the n-th attached optimizer has."""
        ...

    def get_hyper(self, optimizer: int, name: str) -> float:
        """Present value of a hyperparameter of the n-th attached optimizer."""
        ...

    def set_hyper(self, optimizer: int, name: str, value: float) -> None:
        """Set a hyperparameter of the n-th attached optimizer for its next update, without recompiling."""
        ...

    def export_optimizers(self) -> dict[str, HostArray]:
        """The state of all optimizers, as NumPy copies by names of the adapter's choice.

        Hyperparameters that `get_hyper` gives are not in it, unless one name stands for several values.
        """
        ...

    def import_optimizers(self, state: Mapping[str, HostArray]) -> None:
        """Go on from what `export_optimizers` gave.

        Raises ValueError, with a line for each difference, and changes nothing, if it is that of other optimizers.
        """
        ...

    def update(self, grads: Leaves, apply: Condition) -> Condition:
        """One step of every optimizer that trains one of these paths, for these paths only.

        ``apply`` is a bool or a 0-d boolean array; false changes neither parameters nor optimizer state nor its
        counters. Returns whether the update was applied (a bool, or a 0-d array that is not fetched).
        """
        ...


class GradientsPart(Protocol):
    """The part of a backend that differentiates."""

    def gradient(
        self,
        objective: Callable[[], Tree],
        wrt: Sequence[tuple[str, ...]],
        at: Leaves | None,
        scopes: Scopes,
    ) -> list[list[Leaves]]:
        """Differentiate a zero-argument closure; may be called inside another objective.

        Returns for each scalar the objective returned (usually one), for each entry of ``wrt``, the gradients by
        path. Parameters not reached get zeros. ``at`` replaces the values of some paths while the objective runs
        and writes nothing. The values in ``scopes`` (state, shared) that the objective wrote belong to no graph
        or tape once the outermost gradient has returned; an inner one keeps them differentiable for the outer.

        Raises LossError if it did not return scalars, GradientError if it reaches nothing of ``wrt``.
        """
        ...

    def grad(self, fn: Callable[..., Array], scopes: Scopes) -> Callable[..., Tree]:
        """Gradient of a scalar function of trees of arrays: of one argument its gradient, of several a tuple.

        Inside an objective the result can be differentiated again.
        """
        ...


class ArraysPart(Protocol):
    """The part of a backend that makes native arrays."""

    def convert(self, tree: Tree) -> Tree:
        """A batch from any loader -> native arrays on the device.

        Floating arrays get the parameters' dtype, integers and bools keep theirs. NumPy leaves are copied, since
        loaders reuse their buffers. Python scalars, strings and None are left alone. A native array that already
        fits is returned as it is, and so is a tree in which nothing changes.
        """
        ...

    def adopt(self, old: Tree, new: Tree) -> Tree:
        """Convert what a host handler wrote over ``old``.

        Leaves that the handler had read and handed back unchanged stay those of ``old``, so that a gradient still
        flows through them; replaced leaves are constants.
        """
        ...


class Backend(ModelsPart, OptimizersPart, GradientsPart, ArraysPart, Protocol):
    """One framework's side of one Learner.

    The four protocols that it is made of are no more than groups of its methods. An adapter may implement all of it in
    one class, or a part in a class of its own and put these together by `loopcore.backend.composed.ComposedBackend`.

    Life: ``__init__``, then ``bind`` once, then ``attach`` once, then everything else in any order.
    """

    name: str
    compiles: bool  # whether a step can become one program; False means that every plan is eager
    xp: Namespace  # the array functions of `learner.xp`
    losses: Namespace  # the functions of `learner.losses`: f(y_pred, ys, reduction="mean")
    random: RandomBackend
    transfers: int  # how many arrays `to_host` has copied

    def __init__(self, *, device: object = None, compile: bool | str = "auto") -> None: ...

    def bind(self, models: Mapping[str, Model]) -> None:
        """Take the user's models. Names are ``""`` for a single unnamed model.

        Raises UnknownModelError for a model it cannot use. Moves models to ``device`` if one was given.
        """
        ...

    def to_device(self, device: object) -> None:
        """Move models, buffers and optimizer state; nothing of the optimizer state is lost."""
        ...

    def scope(self) -> AbstractContextManager[object]:
        """Context manager around an outermost run: restores what the adapter changes globally (RNG state)."""
        ...

    def run_body(self, call: Callable[..., None], key: DrawKey, *args: object) -> None:
        """Call ``call(*args)``, a step body: no gradients outside objectives, the framework's dropout seeded by key."""
        ...

    def stop_gradient(self, tree: Tree) -> Tree:
        """The same values, constant for every gradient."""
        ...

    def is_differentiated(self, tree: Tree) -> bool:
        """Whether a leaf depends on what an open objective is differentiated by."""
        ...

    def concrete(self, tree: Tree) -> Tree:
        """What a host handler sees: values without graph or tape, read-only where the framework can say so."""
        ...

    def to_host(self, tree: Tree) -> Tree:
        """NumPy copies of all arrays. Counts each in ``transfers``."""
        ...

    def number(self, value: Tree) -> Tree:
        """A Python number for a 0-d array that is in the memory of the host and complete, anything else as it is."""
        ...

    def is_ready(self, array: Array) -> bool:
        """Whether ``to_host`` would not wait."""
        ...

    def is_array(self, value: object) -> bool:
        """Whether the value is a native array or a NumPy array."""
        ...

    def signature(self, array: Array) -> tuple[tuple[int, ...], HostDtype]:
        """Shape and dtype of an array, without fetching it."""
        ...

    def tree_map(self, fn: Callable[..., Tree], tree: Tree, *rest: Tree) -> Tree:
        """Map over the leaves of trees of one structure."""
        ...

    def tree_leaves(self, tree: Tree) -> list[Array]:
        """The leaves in canonical order."""
        ...

    def tree_structure(self, tree: Tree) -> Native:
        """A tree without its leaves; those of two trees are equal if `tree_map` takes them together."""
        ...


class Extras(Protocol):
    """What an adapter may have besides; the core asks whether it does.

    Attributes:
        loops: modules of the framework, or ``module:function``, that run a function once for all iterations of a loop,
            where a random draw would be the same in each.
    """

    loops: tuple[str, ...]

    def build(self, model: Model, batch: Callable[[], Tree]) -> None:
        """Give a model its weights, if it makes them from the first batch and has none yet; before `bind`.

        ``batch()`` gives what the model is called with, as the data has it, or None where there is no data.
        """
        ...

    def frozen_by_user(self) -> frozenset[str]:
        """Full paths of the parameters that the user froze by the framework's own means, as they are now.

        They are left out of what is trained, though an optimizer covers them. Asked when the Learner is made, and
        again when a fit and an epoch begin.
        """
        ...

    def wake(self, paths: Iterable[str]) -> None:
        """Train parameters again that `frozen_by_user` has, since the user gave them an optimizer of their own."""
        ...

    def eval_parts(self) -> tuple[str, ...]:
        """Parts of models that stay in evaluation mode in training phases too, as the user left them."""
        ...

    def unreached(self) -> tuple[str, ...]:
        """Full paths that gradients were taken by, and that none has reached so far."""
        ...

    def profile(self, folder: Path) -> AbstractContextManager[None]:
        """Profile a block with the framework's own profiler; its files are in the folder when the block ends."""
        ...

    def lerp(self, a: Array, b: Array, t: Scalar) -> Array:
        """``a + t * (b - a)`` of two floating arrays of one shape, where the framework can do it in one pass."""
        ...

    def is_bounded(self, leaves: Sequence[Array]) -> Condition:
        """Whether the sum of squares of floating arrays is finite; a bool where the host knows without waiting.

        Of dtypes with less than 32 bits it is that of their values in float32.
        """
        ...

    def show(self) -> None:
        """Let the user's own objects hold the present values, where the adapter trains copies of what they hold.

        Called before every handler that may look. What ends with `Backend.scope` does the same.
        """
        ...

    def take(self) -> None:
        """Go on from what the user wrote into these objects since; called after such a handler."""
        ...

    def has_method(self, model: str, name: str) -> bool:
        """Whether a model has a method of this name that `call_method` can call."""
        ...

    def call_method(
        self,
        model: str,
        name: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        training: bool,
        update_state: bool,
    ) -> Tree:
        """`Backend.forward` of another method than the one that a call of the model means."""
        ...

    @property
    def takes_value(self) -> bool:
        """Whether an optimizer needs the loss: then `Backend.update` takes it as a third argument."""
        ...

    def advice(self, error: Exception) -> str | None:
        """What to write instead where an error of the framework, raised in a step body, is typical of neutral code."""
        ...

    def tree_names(self, tree: Tree) -> list[str]:
        """What the leaves of a tree of the framework's own kinds are called in exported weights, in their order."""
        ...

    @staticmethod
    def compilers() -> Sequence[str]:
        """What ``Learner(compile=...)`` may be besides ``"auto"``, True and False.

        Without it that is ``"xla"`` where ``compiles`` is true, else nothing.
        """
        ...

    def feed(self, tree: Tree) -> Tree:
        """`convert` for a step that is one program: NumPy copies in the right dtype may stay, if programs take them.

        What it left is made native by `place`, where somebody looks at it.
        """
        ...

    def place(self, tree: Tree) -> Tree:
        """Make native what `feed` left as NumPy arrays."""
        ...

    def restore(self, host: HostArray, old: Array) -> Array:
        """What `to_host` made of an array, again as what that array was, where `convert` cannot know."""
        ...

    def accelerator(self) -> Native:
        """The first accelerator, as `to_device` takes it; None if there is none."""
        ...


class CompilingBackend(Backend, Protocol):
    """A backend whose ``compiles`` is true: what it does for fused and split plans.

    It keeps its arrays in one store. While a program is traced the store holds the placeholders of the framework, and
    every method of `Backend` works on them.
    """

    tracing_errors: tuple[type[Exception], ...]  # what the framework raises when a trace reads a concrete value
    replays: bool  # whether a program may run a body from its begin again; else a step that is cut runs eagerly
    chains: bool  # whether it has `piece` and `pull`; else what lies before a cut in an objective is computed again
    leak_errors: tuple[type[Exception], ...]  # what it raises when a trace meets a placeholder of another one
    depth: int  # how many objectives, and functions given to `grad`, are open one inside the other
    traces: int  # how often a program was traced

    def carried(self) -> Tree:
        """Parameters, buffers and optimizer states, by reference: all that a step may change."""
        ...

    def put_carried(self, tree: Tree) -> None:
        """Make the arrays that a program returned the present ones, in the structure of `carried`."""
        ...

    def hyper_values(self) -> dict[str, Scalar]:
        """The present hyperparameters of all optimizers, by a name of the adapter's choice."""
        ...

    def put_hyper_values(self, values: Mapping[str, Scalar]) -> None:
        """Set hyperparameters by the names of `hyper_values`, to 0-d placeholders while a program is traced."""
        ...

    def run_parts(self, call: Callable[..., None], key: DrawKey, *args: object) -> None:
        """`run_body` of a step that is cut, where ``replays`` is false: eagerly, but its parts may be compiled."""
        ...

    def piece(
        self,
        objective: Callable[[], Tree],
        wrt: Sequence[tuple[str, ...]],
        at: Leaves | None,
        scopes: Scopes,
        inputs: Sequence[Array],
        receive: Callable[[list[Array]], None],
    ) -> list[tuple[list[Leaves], list[Array]]]:
        """`gradient` of an objective that is cut, from its last cut on.

        ``receive`` gets what stands for ``inputs`` before the objective runs. Returns for each loss the gradients as
        `gradient` does and those by the inputs. If the objective raises a `CutError`, its ``leaves`` are the results
        that are differentiated instead; it goes on with ``pullback`` set.
        """
        ...

    def pull(
        self, pullback: Tree, cotangents: list[Array], wrt: Sequence[tuple[str, ...]]
    ) -> tuple[list[Leaves], list[Array]]:
        """From gradients by the leaves of a cut to those by parameters and by the inputs of the piece before it."""
        ...

    def constant(self, value: float) -> Array:
        """A 0-d array on the device that a program takes in place of this Python float, without another trace."""
        ...

    def to_words(self, values: Sequence[Array]) -> Array:
        """Small arrays of 32-bit dtypes and bools -> their bits in one int32 vector.

        It has ``loopcore.backend.packing.WORDS`` words. Bools become 0 and 1; what is left is 0. Works on arrays
        and, in a trace, on placeholders.
        """
        ...

    def from_words(self, vector: Array, start: int, shape: tuple[int, ...], dtype: str) -> Array:
        """One of the arrays that `to_words` packed; in a trace and outside, where nothing waits for its value."""
        ...

    def compile(
        self, fn: Callable[..., tuple[Tree, Result]], donate: tuple[int, ...]
    ) -> Callable[..., tuple[Tree, Result]]:
        """Compile a function of trees of arrays and floats, once for each structure and shape of its arguments.

        It returns a tree of arrays and any Python object; calls return the object of the trace that fits them. The
        arrays of the arguments numbered in ``donate`` may be used up by a call.
        """
        ...
