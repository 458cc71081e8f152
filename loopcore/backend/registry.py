"""How a backend is found: by the type of the model, without importing any framework."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from loopcore.backend.protocol import Array, Backend, Extras, Model
from loopcore.errors import MissingFrameworkError, UnknownModelError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints


class Adapter(NamedTuple):
    """The package of an adapter, what it needs installed, and which types of models and arrays it takes.

    Attributes:
        package: its import package.
        install: what pip installs what it needs by.
        needs: packages that this brings.
        roots: of the types it takes.
    """

    package: str
    install: str
    needs: frozenset[str]
    roots: frozenset[str]


class Plugin(Protocol):
    """The class of an adapter that another package offers."""

    def recognises(self, model: Model) -> bool:
        """Whether it takes a model; a static method."""
        ...


BUILT_IN: dict[str, Adapter] = {
    "torch": Adapter("loopcore_torch", "'loopcore[torch]'", frozenset({"torch"}), frozenset({"torch"})),
    "jax": Adapter(
        "loopcore_jax",
        "'loopcore[jax]'",
        frozenset({"jax", "jaxlib", "optax"}),
        frozenset({"jax", "jaxlib", "flax", "equinox", "haiku", "optax"}),
    ),
    "tensorflow": Adapter(
        "loopcore_tensorflow",
        "'loopcore[tensorflow]'",
        frozenset({"tensorflow", "keras"}),
        frozenset({"tensorflow", "keras"}),
    ),
    "numpy": Adapter("loopcore_numpy", "autograd", frozenset({"autograd"}), frozenset({"numpy", "autograd"})),
}
GROUP = "loopcore.backends"
_namespaces: dict[type, type[Backend]] = {}
_owners: dict[type, str | None] = {}


def _plugins() -> EntryPoints:
    from importlib.metadata import entry_points  # 20 ms, and few programs need it

    return entry_points(group=GROUP)


def known() -> frozenset[str]:
    """Names of the built-in backends and of those that installed packages offer."""
    return frozenset(BUILT_IN) | frozenset(point.name for point in _plugins())


def type_roots(value: object) -> frozenset[str]:
    """Top-level modules of the classes of a value and of all it holds when it is a tuple, list or dict."""
    if isinstance(value, Mapping):
        parts: Iterable[object] = value.values()
    elif isinstance(value, (tuple, list)):
        parts = value
    else:
        return frozenset(cls.__module__.split(".")[0] for cls in type(value).__mro__)
    return frozenset[str]().union(*(type_roots(part) for part in parts))


def check_name(backend: str, where: str = "") -> None:
    """Raise for a name that no backend has.

    Raises:
        UnknownModelError: says which there are.
    """
    if not isinstance(backend, str) or backend not in known():
        raise UnknownModelError(f"{where}there is no backend {backend!r}; known are {', '.join(sorted(known()))}")


def absent(backend: str) -> list[str]:
    """Packages that a built-in backend needs and that are not installed; nothing is imported to find out."""
    adapter = BUILT_IN.get(backend)
    return [] if adapter is None else sorted(package for package in adapter.needs if not is_installed(package))


def is_installed(package: str) -> bool:
    """Whether a top-level package can be found; it is not imported."""
    try:
        return package in sys.modules or find_spec(package) is not None
    except ModuleNotFoundError:  # a finder may raise instead of returning None
        return False


def infer(models: Mapping[str, Model], neutral: Callable[[], str] = lambda: "numpy") -> str:
    """Name of the backend that takes all these models.

    Args:
        models: by name.
        neutral: asked for the backend of models that belong to no framework.

    Raises:
        UnknownModelError: no adapter, or more than one, takes them; the message names the type.
    """
    backends = {name: _infer_one(name, model) for name, model in models.items()}
    frameworks = set(backends.values()) - {"numpy"} or {"numpy"}
    if len(frameworks) > 1:
        listed = ", ".join(f"{name!r} is a {backend} model" for name, backend in backends.items())
        raise UnknownModelError(f"one Learner holds models of one framework, but {listed}")
    name = frameworks.pop()
    return neutral() if name == "numpy" else name


def _infer_one(name: str, model: Model) -> str:
    roots = type_roots(model)
    if "keras" in roots:  # a Keras model runs on the framework that Keras was told to use
        return str(sys.modules["keras"].config.backend())
    takers = [backend for backend, adapter in BUILT_IN.items() if roots & adapter.roots]
    frameworks = [backend for backend in takers if backend != "numpy"]
    if len(frameworks) > 1 and isinstance(model, (tuple, list, Mapping)):
        raise UnknownModelError(
            f"the model{f' {name!r}' if name else ''} mixes what belongs to {' and '.join(frameworks)}: make all its "
            "arrays by one framework, or with NumPy, which every backend takes"
        )
    if takers:
        return takers[0]
    for point in _plugins():
        if cast(Plugin, load(point.name)).recognises(model):
            return point.name
    where = f" {name!r}" if name else ""
    number = next(_numbers(model), None)
    if number is not None:
        raise UnknownModelError(
            f"the model{where} cannot be used because of {number[0]!r}: it is the number {number[1]!r}, but parameters "
            "are arrays of floats, such as np.array([1.0, 2.0])"
        )
    raise UnknownModelError(
        f"no backend knows the model{where} of type {type(model).__module__}.{type(model).__qualname__}. Pass a "
        "torch.nn.Module, a Keras, flax or equinox module, or a pair (apply_fn, params) with params a tree of arrays; "
        "or name the backend: Learner(..., backend='torch')"
    )


def _numbers(model: Model) -> Iterator[tuple[str, float]]:
    """Python numbers where parameters should be, with their paths."""
    if isinstance(model, tuple) and model and callable(model[0]):
        model = model[1] if len(model) > 1 else ()
        if isinstance(model, (int, float)):
            yield "param", model
    parts = (
        model.items() if isinstance(model, Mapping) else enumerate(model) if isinstance(model, (list, tuple)) else ()
    )
    for key, part in parts:
        if isinstance(part, (int, float)):
            yield str(key), part
        else:
            yield from ((f"{key}.{path}", number) for path, number in _numbers(part))


def load(name: str) -> type[Backend]:
    """The adapter class of a backend.

    Raises:
        UnknownModelError: no adapter has that name.
        MissingFrameworkError: its framework, or a part of it, is not installed; says what to install.
    """
    for point in _plugins() if name not in BUILT_IN else ():
        if point.name == name:
            return cast("type[Backend]", point.load())
    check_name(name)
    adapter = BUILT_IN[name]
    try:
        return cast("type[Backend]", importlib.import_module(adapter.package).Backend)
    except ModuleNotFoundError as error:
        missing = _missing(error)
        if missing not in adapter.needs | {adapter.package}:
            raise
        raise MissingFrameworkError(
            f"the {name} backend needs {missing}, which is not installed: pip install {adapter.install}"
        ) from error


def _missing(error: ModuleNotFoundError) -> str | None:
    """The package that was not found; where JAX misses jaxlib it says so in an error without a name."""
    cause = error.__cause__
    return cause.name if error.name is None and isinstance(cause, ModuleNotFoundError) else error.name


def make(name: str, *, device: object, compile: bool | str) -> Backend:
    """A new backend instance for one Learner.

    Raises:
        ValueError: ``compile`` is nothing that the backend knows; the message says what it does.
    """
    adapter = load(name)
    if not (isinstance(compile, bool) or compile == "auto"):
        _check_compiler(adapter, compile)
    return adapter(device=device, compile=compile)


def _check_compiler(adapter: type[Backend], compile: bool | str) -> None:
    names: Sequence[str] = ("xla",) if adapter.compiles else ()
    if hasattr(adapter, "compilers"):
        names = cast(type[Extras], adapter).compilers()
    if compile not in names:
        or_one = f", or one of {', '.join(map(repr, names))}" if names else ""
        raise ValueError(f'compile is "auto", True or False{or_one} on the {adapter.name} backend, not {compile!r}')


@lru_cache(maxsize=64)
def loose(name: str, device: object = None) -> Backend:
    """A backend without models, for arrays outside a learner: floats are float32, on this device."""
    return make(name, device=device, compile=False)


def owner_of(value: object) -> str | None:
    """Name of the backend that owns the type of an array; None for what is no array, or none of a backend."""
    kind = type(value)
    try:
        return _owners[kind]
    except KeyError:
        owner = _owners[kind] = _owner(value) if hasattr(value, "shape") and hasattr(value, "dtype") else None
        return owner


def _owner(array: Array) -> str | None:
    try:
        return _infer_one("array", array)
    except UnknownModelError:
        return None


def owners_of(values: Iterable[object]) -> set[str]:
    """Names of the backends whose arrays are among some values, or in lists and tuples among them."""
    owners: set[str | None] = set()
    for value in values:
        if type(value) is list or type(value) is tuple:
            owners.update(map(owner_of, value))
        else:
            owners.add(owner_of(value))
    owners.discard(None)
    return owners  # type: ignore[return-value]


def namespace_of(array: Array) -> type[Backend]:
    """The adapter class that owns an array's type; its ``xp`` and ``losses`` work on the array.

    Raises:
        UnknownModelError: no backend knows the type.
    """
    adapter = _namespaces.get(type(array))
    if adapter is None:
        adapter = _namespaces[type(array)] = load(_infer_one("array", array))
    return adapter
