"""The conformance suite as a pytest plugin: prove that a backend keeps the promises of loopcore.

```
python -m pytest --pyargs loopcore.testing.conformance --backend torch
```

An adapter of your own takes part when its package, found through the entry-point group ``loopcore.backends``, has a
module ``testing`` with the functions of `loopcore.testing.conformance.subject.NativeModels`.

``LOOPCORE_REQUIRE_BACKENDS="numpy,torch"`` names backends whose absence is an error. Otherwise a backend without its
framework is skipped, and says so. The plugin does nothing for tests that do not ask for its fixture ``backend``, and
adds its option only to command lines that mention loopcore, so that ``--backend`` stays free for everybody else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from loopcore.testing.conformance.subject import Subject

REQUIRED = "LOOPCORE_REQUIRE_BACKENDS"
_NAME = "_loopcore_backend_name"


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add ``--backend`` where loopcore is what is tested."""
    config: pytest.Config | None = pluginmanager.get_plugin("pytestconfig")
    if config is None or any("loopcore" in argument for argument in config.invocation_params.args):
        parser.getgroup("loopcore").addoption(
            "--backend",
            action="append",
            default=[],
            metavar="NAME",
            dest="loopcore_backends",
            help="backend to test; repeat it or separate names by commas (default: all whose framework is installed)",
        )
        parser.getgroup("loopcore").addoption(
            "--models",
            default="",
            metavar="PACKAGE",
            dest="loopcore_models",
            help="package whose module testing has the models, such as loopcore_keras, or neutral for models that "
            "belong to no framework (default: that of the adapter)",
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses the fixture once for each chosen backend."""
    if _NAME in metafunc.fixturenames and "compiling" in metafunc.fixturenames:
        names = [name for name in chosen(metafunc.config) if len(_plans(name)) > 1]
        metafunc.parametrize(_NAME, names, indirect=True)
    elif _NAME in metafunc.fixturenames and "any_plan" in metafunc.fixturenames:
        metafunc.parametrize(_NAME, chosen(metafunc.config), indirect=True)
    elif _NAME in metafunc.fixturenames:
        names = [f"{name}{plan}" for name in chosen(metafunc.config) for plan in _plans(name)]
        metafunc.parametrize(_NAME, names, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of compiled steps where no chosen backend compiles any."""
    compiled_items = [item for item in items if "compiling" in getattr(item, "fixturenames", ())]
    if compiled_items and not any(len(_plans(name)) > 1 for name in chosen(config)):
        config.hook.pytest_deselected(items=compiled_items)
        items[:] = [item for item in items if item not in compiled_items]


@pytest.fixture
def _loopcore_backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(request: pytest.FixtureRequest, _loopcore_backend_name: str) -> Iterator[Subject]:
    """The backend under test, with its native models; one that compiles is tested in each plan."""
    from loopcore.backend.choice import using
    from loopcore.testing.conformance.problems import forced_plan
    from loopcore.testing.conformance.subject import KNOWN_GAPS, MissingFrameworkError, subject

    name, _, plan = _loopcore_backend_name.partition("-")
    try:
        backend_subject = subject(name, request.config.getoption("loopcore_models", default=""))
    except MissingFrameworkError as error:
        if name in _split([os.environ.get(REQUIRED, "")]):
            pytest.fail(f"{error} ({REQUIRED} names it)", pytrace=False)
        pytest.skip(str(error))
    gap = KNOWN_GAPS.get((name, request.function.__name__))
    if gap is not None:
        request.applymarker(pytest.mark.xfail(reason=gap, strict=True))
    token = forced_plan.set(plan or "fused")
    with using(name):  # decides for models that belong to no framework
        yield backend_subject
    forced_plan.reset(token)


@pytest.fixture
def compiling(backend: Subject) -> Subject:
    """A backend that compiles steps, in the plan that follows from who listens."""
    return backend


@pytest.fixture
def any_plan(backend: Subject) -> Subject:
    """A backend in the plan that follows from who listens, for tests that choose others themselves."""
    return backend


@pytest.fixture
def witness() -> Subject:
    """The NumPy backend in float64, which the others are compared with."""
    from loopcore.testing.conformance.subject import subject

    return subject("numpy")


def chosen(config: pytest.Config) -> list[str]:
    """Names of the backends to test: those asked for, or the installed and the required ones.

    Raises:
        pytest.UsageError: there is no backend of a name.
    """
    from loopcore.testing.conformance.subject import installed, known

    required = _split([os.environ.get(REQUIRED, "")])
    requests = _split(config.getoption("loopcore_backends", default=[]) or [])
    names = requests or list(dict.fromkeys([*installed(), *required]))
    for name in (*names, *required):
        if name not in known():
            raise pytest.UsageError(f"there is no backend {name!r}; known are {', '.join(sorted(known()))}")
    return names


def _plans(name: str) -> tuple[str, ...]:
    """What is added to the name of a backend, for each plan its steps can have."""
    from loopcore.backend.registry import load
    from loopcore.errors import MissingFrameworkError

    try:
        return ("", "-split", "-eager") if load(name).compiles else ("",)
    except MissingFrameworkError:
        return ("",)


def _split(lists: Iterable[str]) -> list[str]:
    names = [name.strip() for part in lists for name in part.split(",")]
    return list(dict.fromkeys(name for name in names if name))
