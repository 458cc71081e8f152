"""Scalars that may change while training: ``learner.hyper``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Protocol

from loopcore.backend.protocol import Backend, Scalar


class Hyper:
    """User-defined scalars and those of the optimizers, by name.

    ``learner.hyper.kl_weight`` is a float given as ``Learner(hyper={"kl_weight": 0.0})``;
    ``learner.hyper.learning_rate`` is that of the optimizer, of all optimizers when assigned;
    ``learner.hyper["critic.learning_rate"]`` that of the optimizer for the prefix ``critic``. Values are inputs of
    a step: changing one never recompiles anything.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(hyper={"kl_weight": 0.5})
        >>> learner.hyper.learning_rate = 0.01
        >>> learner.hyper.kl_weight, learner.hyper.learning_rate
        (0.5, 0.01)
    """

    __slots__ = ("_backend", "_own", "_slots")
    _backend: Backend
    _own: dict[str, float]
    _slots: dict[str, list[tuple[int, str]]]

    def __init__(self, backend: Backend, values: Mapping[str, float], prefixes: tuple[str, ...]) -> None:
        slots: dict[str, list[tuple[int, str]]] = {}
        for index, prefix in enumerate(prefixes):
            for name in backend.hyper_names(index):
                slots.setdefault(name, []).append((index, name))
                if prefix:
                    slots.setdefault(f"{prefix}.{name}", []).append((index, name))
        # Otherwise which of the two a schedule sets would depend on the order of a look-up.
        for name in values:
            if name in slots:
                raise ValueError(f"hyper={{{name!r}: ...}} is the name of an optimizer's own: set it in the optimizer")
        object.__setattr__(self, "_backend", backend)
        object.__setattr__(self, "_slots", slots)
        object.__setattr__(self, "_own", {name: _number(name, value) for name, value in values.items()})

    def __getitem__(self, name: str) -> float:
        if name in self._own:
            return self._own[name]
        return self._backend.get_hyper(*self._slots[self._checked(name)][0])

    def __setitem__(self, name: str, value: float) -> None:
        number = _number(name, value)
        if name in self._own:
            self._own[name] = number
            return
        slots = self._slots[self._checked(name)]
        # A value of the user's own may be infinite, as a bound is. A rate that is not finite destroys every weight in
        # one update, where no guard of gradients sees it.
        if not isfinite(number):
            raise ValueError(
                f"hyper {name!r} would be {number}, and with it every weight: an optimizer takes finite ones"
            )
        for index, slot in slots:
            self._backend.set_hyper(index, slot, number)

    def __getattr__(self, name: str) -> float:
        return self[name]

    def __setattr__(self, name: str, value: float) -> None:
        self[name] = value

    def __iter__(self) -> Iterator[str]:
        return iter((*self._own, *self._slots))

    def __contains__(self, name: str) -> bool:
        return name in self._own or name in self._slots

    def __repr__(self) -> str:
        return f"Hyper({', '.join(self)})"

    def _checked(self, name: str) -> str:
        if name not in self._slots:
            names = ", ".join(self) or "none"
            raise AttributeError(
                f"there is no hyperparameter {name!r}; there are: {names}. Pass Learner(hyper={{{name!r}: 0.0}})",
                name=name,
                obj=self,
            )
        return name


def own_values(hyper: Hyper) -> dict[str, float]:
    """The scalars of the user's own, by name: always the same dict, which `Hyper` itself reads and writes."""
    return hyper._own  # pyright: ignore[reportPrivateUsage]  # a public name could be that of a hyperparameter


def _number(name: str, value: Scalar) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"hyper {name!r} is a number, not {value!r}")
    return float(value)


class HasHyper(Protocol):
    """A learner, or a guarded view of one."""

    @property
    def hyper(self) -> Hyper:
        """Its hyperparameters."""
        ...


class HyperParameter:
    """Names a scalar of ``learner.hyper``; as a key of `Scheduler`, and to read and set it.

    Those that optimizers have are `LearningRate`, `WeightDecay` and ``HyperParameter("momentum")``; `Momentum` is an
    optimizer. Of one optimizer among several: ``LearningRate("critic")``, with the prefix it has in the Learner.

    Args:
        name: a key of ``Learner(hyper={...})``, or the name of an optimizer's own.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(hyper={"kl_weight": 0.5})
        >>> KlWeight = lc.HyperParameter("kl_weight")
        >>> KlWeight.get(learner)
        0.5
        >>> lc.LearningRate.set(learner, 0.25)
        >>> lc.LearningRate.get(learner), lc.LearningRate("critic").name
        (0.25, 'critic.learning_rate')
    """

    def __init__(self, name: str) -> None:
        if not name or not isinstance(name, str):
            raise TypeError(f"a hyperparameter is known by its name, not by {name!r}")
        self.name = name

    def __call__(self, prefix: str) -> HyperParameter:
        """The hyperparameter of this name of the optimizer for a prefix."""
        return HyperParameter(f"{prefix}.{self.name}")

    def get(self, learner: HasHyper) -> float:
        """Read its present value from a learner, as a float."""
        return float(learner.hyper[self.name])

    def set(self, learner: HasHyper, value: float) -> None:
        """Set it in a learner, from the next step on."""
        learner.hyper[self.name] = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HyperParameter) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"HyperParameter({self.name!r})"


LearningRate = HyperParameter("learning_rate")
WeightDecay = HyperParameter("weight_decay")
