"""The TensorFlow adapter: arrays in and out."""

from __future__ import annotations

import numpy as np

from loopcore_tensorflow import Backend
from tests.tensorflow_adapter.calls import tf


def test_conversion_keeps_what_fits_and_copies_numpy() -> None:
    backend = Backend()
    host = np.ones((2, 3), "f4")
    batch = {"x": tf.ones((2, 3)), "n": tf.constant([1, 2]), "name": "a", "none": None}
    assert backend.convert(batch) == batch
    found = backend.convert(
        {"x": host, "wide": host.astype("f8"), "flag": np.array([True]), "small": np.array([3], "u1")}
    )
    host[:] = 7
    assert {name: value.dtype.name for name, value in found.items()} == {
        **{"x": "float32", "wide": "float32", "flag": "bool", "small": "uint8"}
    }
    np.testing.assert_array_equal(found["x"], 1)


def test_values_read_out_are_copies_and_fetches_are_counted() -> None:
    backend = Backend()
    tensor = tf.ones(3)
    found = backend.to_host({"a": tensor, "b": [tensor, 2]})
    found["a"][:] = 5
    assert backend.transfers == 2 and float(tensor[0]) == 1 and found["b"][1] == 2
