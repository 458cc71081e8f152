"""Files of TensorBoard have every kind of value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

import loopcore as lc

EVENT: Any = getattr(event_pb2, "Event")  # noqa: B009 - made when it is imported, which no type checker sees


def events(folder: Path) -> list[Any]:
    """All events of an event file, by the format that `RecordWriter` writes."""
    assert RecordWriter is not None
    (path,) = folder.glob("events.*")
    content, place, found = path.read_bytes(), 0, []
    while place < len(content):
        size = int.from_bytes(content[place : place + 8], "little")
        found.append(EVENT.FromString(content[place + 12 : place + 12 + size]))
        place += 12 + size + 4
    return found


def test_tensorboard_has_every_kind(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    logger = lc.loggers.TensorBoardLogger(tmp_path, "run")
    logger.log("a b/loss", 0.5, 3)
    logger.log("note", lc.loggers.Text("words"), 1)
    logger.log("picture", lc.loggers.Image(np.zeros((4, 5, 3))), 1)
    logger.log("grey", lc.loggers.Image(np.zeros((4, 5))), 1)
    logger.log("numbers", lc.loggers.Histogram(np.arange(10.0)), 1)
    logger.log("figure", lc.loggers.Figure(Figure(figsize=(1, 1))), 1)
    logger.close()
    values = {value.tag: (event.step, value) for event in events(tmp_path / "run") for value in event.summary.value}
    assert values["a_b/loss"][0] == 3 and values["a_b/loss"][1].simple_value == 0.5
    assert (values["picture"][1].image.height, values["picture"][1].image.width) == (4, 5)
    assert values["numbers"][1].histo.num == 10 and values["grey"][1].image.height == 4
    assert len([tag for tag in values if tag.startswith("note")]) == 1 and values["figure"][1].image.height > 0
