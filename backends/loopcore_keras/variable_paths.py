"""Paths of the variables of a Keras model that do not depend on what else was built in the process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import keras

_NUMBERED = re.compile(r"(.+?)(?:_\d+)?$")


def paths_of(layer: Any) -> dict[int, str]:
    """Return a path such as ``dense.kernel`` for each variable of a layer, by the variable's id.

    Keras calls the layers of a process ``dense``, ``dense_1``, ``dense_2`` as they come. Here they are numbered within
    the model; a name that the user gave stays as it is. The name of the model itself is left out.
    """
    # Names that Keras gives by itself. A user's name that looks like one of these is numbered too.
    automatic = {_snake(type(part).__name__) for part in within(layer)}
    numbers: dict[tuple[str, str, str], str] = {}
    counts: dict[tuple[str, str], int] = {}
    paths: dict[int, str] = {}
    for variable in layer.variables:
        words = variable.path.split("/")
        # Keras may have numbered the name of the model too.
        if len(words) > 1 and words[0] == layer.name:
            words = words[1:]
        path: list[str] = []
        for word in words[:-1]:
            path.append(_numbered(".".join(path), word, automatic, numbers, counts))
        paths[id(variable)] = _free(".".join([*path, words[-1]]), set(paths.values()))
    return paths


def _numbered(
    above: str,
    word: str,
    automatic: set[str],
    numbers: dict[tuple[str, str, str], str],
    counts: dict[tuple[str, str], int],
) -> str:
    """Return the name of a layer, numbered among those of its kind below the same layer."""
    # The number that Keras gave counts all layers of the process: only their order within the model is kept.
    match = _NUMBERED.match(word)
    kind = match.group(1) if match else word
    if kind not in automatic:
        return word
    # All variables of one layer get the same number.
    if (above, kind, word) not in numbers:
        number = counts[above, kind] = counts.get((above, kind), -1) + 1
        numbers[above, kind, word] = f"{kind}_{number}" if number else kind
    return numbers[above, kind, word]


def _free(path: str, used: set[str]) -> str:
    """Return the path, with a number behind it if another variable has it."""
    number, free = 1, path
    while free in used:
        free, number = f"{path}_{number}", number + 1
    return free


def within(layer: Any, visited: set[int] | None = None) -> Iterator[Any]:
    """Yield a layer and all layers in it, each once."""
    visited = set() if visited is None else visited
    if id(layer) in visited:
        return
    visited.add(id(layer))
    yield layer
    # Layers of a model, and those in the attributes of a layer.
    for value in (*getattr(layer, "layers", ()), *vars(layer).values()):
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, keras.Layer):
                yield from within(part, visited)


def _snake(name: str) -> str:
    """Convert ``BatchNormalization`` to ``batch_normalization``, as Keras names layers."""
    name = re.sub(r"\W+", "", name)
    # The three patterns are those of Keras.
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
