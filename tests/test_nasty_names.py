"""No name reaches a terminal raw, becomes a formula, leaves the folder of its run or is mixed up with another."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loopcore as lc
from loopcore._utils.text import clean
from loopcore.callback import name_of
from loopcore.callbacks import progress
from loopcore.errors import UnknownMetricError
from loopcore.loggers.names import Names, run_folder, run_name, sanitised
from tests.loggers.test_tensorboard import events
from tests.nasty import NASTY

BATCH = (np.ones((4, 1)), np.ones((4, 1)))
BIDI = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
SAFE = re.compile(r"[\w][\w.\-]*(/[\w][\w.\-]*)*")
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FORMULA = tuple("=+-@\t\r")
SCALARS = st.characters(codec="utf-8") | st.characters(categories=("Cc", "Cf", "Cs", "Zl", "Zp", "Zs", "Sm", "Po"))
TEXTS = st.text(SCALARS, max_size=300) | st.sampled_from(sorted(NASTY.values()))


def raw(text: str) -> set[str]:
    """Characters that a terminal would act on."""
    return {c for c in text if c in BIDI or c in "\u2028\u2029" or unicodedata.category(c) in ("Cc", "Cs")} - {"\n"}


def mae(y_pred: Any, ys: Any) -> Any:
    return lc.losses.mae(y_pred, ys)


def train(phase: str, metric: str, *callbacks: lc.Callback, epochs: int = 1) -> lc.Learner:
    class Phase(lc.TrainingPhase):
        data_key = phase or "empty"

    data = {Phase.data_key: [BATCH] * 2}
    learner = lc.Learner(
        (lambda params, x: x * params["w"], {"w": np.zeros(1)}),
        lc.losses.mse,
        *(lc.SGD(0.1), data),
        phases=[Phase()],
        callbacks=[*callbacks, lc.Metrics(lc.Metric(mae, name=metric)), lc.Recorder()],
        default_callbacks=False,
    )
    assert learner.fit(epochs).status == "completed"
    return learner


@contextmanager
def quiet() -> Iterator[None]:
    """Names that become the same are said, which is another test's affair."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the name .* is written as")
        yield


def log_all(logger: lc.loggers.Logger, names: Iterable[str]) -> None:
    with quiet():
        for step, name in enumerate(names):
            logger.log(name, float(step), step)
    logger.close()


def test_there_are_enough_of_them() -> None:
    assert len(set(NASTY.values())) >= 240
    assert {"\x1b", "\0", "\u202e", "\u2028", "\ud800", "="} <= set("".join(NASTY.values()))
    assert raw(NASTY["red"]) == {"\x1b"} and raw(NASTY["within bidi 202E"]) == {"\u202e"}  # the question can fail


# -- the console


class Screen(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_pipe_gets_no_control_character(encoding: str) -> None:
    for text in NASTY.values():
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")  # strict: what it has not, it refuses
        train(text, text, lc.ProgressPrinter(file=file), lc.MetricsPrinter(file=file))
        file.flush()
        printed = file.buffer.getvalue().decode(encoding)
        assert raw(printed) == set() and printed.count("\n") == 3, text  # two lines of the table, and one of the round


def test_a_terminal_gets_only_what_the_bar_is_drawn_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(progress, "_REDRAW", 0.0)

    def shown(text: str) -> str:
        screen = Screen()
        train(text, text, lc.ProgressPrinter(file=screen), lc.MetricsPrinter(file=screen))
        return screen.getvalue()

    drawn_with = set(SEQUENCE.findall(shown("plain")))
    assert drawn_with
    nasty = {name: text for name, text in NASTY.items() if raw(text) or "[" in text or ":" in text}
    assert len(nasty) > 100
    for name, text in nasty.items():
        printed = shown(text)
        assert set(SEQUENCE.findall(printed)) <= drawn_with, name
        assert raw(SEQUENCE.sub("", printed)) <= {"\r"}, name
    for name in ("rich", "rich wrong closing", "rich link", "rich emoji"):
        assert NASTY[name] in shown(NASTY[name])  # as it is, and no markup


@pytest.mark.parametrize("name", NASTY)
def test_messages_show_no_control_character(name: str) -> None:
    text = NASTY[name]
    assert not raw(clean(text)) and len(clean(text)) <= 80
    assert not raw(str(UnknownMetricError(text, [text, "loss"])))
    try:
        kind = type(text, (lc.StopOnNaNLoss,), {"__doc__": "Named by somebody else."})
    except (ValueError, UnicodeEncodeError):  # no class can be called so
        assert "\0" in text or any(unicodedata.category(c) == "Cs" for c in text)
        kind = lc.StopOnNaNLoss
    learner = train(text, "x", kind())
    assert not raw(learner.explain()) and not raw(name_of(kind()))
    with pytest.warns(UserWarning, match="is left out") as said:
        Nowhere().log(text, lc.loggers.Text("x"), 1)
    assert not raw(str(said[0].message))


class Nowhere(lc.loggers.Logger):
    kinds = ()


def test_a_plot_draws_names_as_they_are(recwarn: pytest.WarningsRecorder) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for text in [NASTY[name] for name in ("wrong math", "underscore", "red", "newlines", "within surrogate D800")]:
        rate = lc.Scheduler({lc.LearningRate: lc.schedules.linear(0.1, 0.0, 4)})
        figure = train(text, text, rate).history.plot()
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        assert [panel.get_title(loc="left") for panel in figure.axes] == ["loss", clean(text), "learning_rate"]
        for panel in figure.axes:
            assert [label.get_text() for label in panel.get_legend().get_texts()] == [clean(text)]
    assert not [str(one.message) for one in recwarn]


# -- files


def test_what_is_logged_is_read_back_under_safe_names(tmp_path: Path) -> None:
    loggers = {
        kind: getattr(lc.loggers, f"{kind}Logger")(tmp_path, kind) for kind in ("CSV", "JSONLines", "TensorBoard")
    }
    memory = lc.loggers.MemoryLogger()
    for logger in (*loggers.values(), memory):
        log_all(logger, NASTY.values())
    names = [name for name, _ in sorted(memory.entries.items(), key=lambda entry: entry[1][0][0])]
    assert len(names) == len(set(NASTY.values())) and all(SAFE.fullmatch(name) for name in names)
    values = {name: entries for name, entries in memory.entries.items()}
    content = loggers["CSV"].path.read_bytes().decode("utf-8")
    rows = list(csv.reader(io.StringIO(content, newline="")))
    found: dict[str, list[Any]] = {}
    for step, name, value in rows[1:]:
        found.setdefault(name, []).append((int(step), float(value)))
    assert found == values and len(rows) == len(NASTY) + 1
    assert not [cell for row in rows for cell in row if cell.startswith(FORMULA)]
    found = {}
    for line in loggers["JSONLines"].path.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        found.setdefault(one["name"], []).append((one["step"], one["value"]))
    assert found == values
    found = {}
    for event in events(loggers["TensorBoard"].path):
        for one in event.summary.value:
            found.setdefault(one.tag, []).append((event.step, one.simple_value))
    assert found == values


def test_no_run_leaves_the_folder_or_meets_another(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "runs"
    made: list[lc.loggers.CSVLogger] = []
    for text in NASTY.values():
        for value in (1.0, 2.0):
            made.append(lc.loggers.CSVLogger(folder, text))
            made[-1].log("x", value, 1)
            made[-1].close()
    assert len({logger.path for logger in made}) == len(made) == 2 * len(NASTY)
    assert all(logger.path.parent.parent == folder for logger in made)
    assert [logger.path.read_text().split()[1] for logger in made] == ["1,x,1.0", "1,x,2.0"] * len(NASTY)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if not path.is_dir()]
    assert len(files) == len(made) and {path.parts[:3] for path in files} == {("a", "b", "runs")}
    assert all(re.fullmatch(r"\w[\w.\-]*", path.parts[3]) for path in files)


def test_text_goes_through_json_and_tensorboard(tmp_path: Path) -> None:
    lines, board = lc.loggers.JSONLinesLogger(tmp_path), lc.loggers.TensorBoardLogger(tmp_path)
    for logger in (lines, board):
        for step, text in enumerate(NASTY.values()):
            logger.log("note", lc.loggers.Text(text), step)
        logger.close()
    found = [json.loads(line)["value"] for line in lines.path.read_text(encoding="utf-8").splitlines()]
    assert found == [text.encode("utf-8", "backslashreplace").decode() for text in NASTY.values()]
    written = [one for event in events(board.path) for one in event.summary.value]
    assert len(written) == len(NASTY)


def test_numbers_that_are_none_leave_a_histogram(tmp_path: Path) -> None:
    board = lc.loggers.TensorBoardLogger(tmp_path)
    board.log("some", lc.loggers.Histogram(np.array([np.nan, 1.0, np.inf])), 1)
    board.log("none", lc.loggers.Histogram(np.array([np.nan])), 1)
    board.close()
    assert {one.tag: one.histo.num for event in events(board.path) for one in event.summary.value} == {"some": 1.0}


# -- names


def test_names_that_become_the_same_are_kept_apart_and_said() -> None:
    logger = lc.loggers.MemoryLogger()
    logger.log("top 1", 1.0, 1)
    with pytest.warns(UserWarning, match="the name top\\?1 is written as top_1-2, since top_1 is what top 1") as said:
        logger.log("top?1", 2.0, 1)
    assert said[0].filename == __file__
    logger.log("top?1", 3.0, 2)  # not said again
    with pytest.warns(UserWarning, match="the name top_1-2 is written as top_1-2-2"):
        logger.log("top_1-2", 4.0, 1)
    logger.log("top 1", 5.0, 2)
    assert logger.entries == {"top_1": [(1, 1.0), (2, 5.0)], "top_1-2": [(1, 2.0), (2, 3.0)], "top_1-2-2": [(1, 4.0)]}


def test_metrics_that_become_the_same_are_kept_apart() -> None:
    logger = lc.loggers.MemoryLogger()
    same = [lc.Metric(lc.losses.mae, "error 1"), lc.Metric(lc.losses.mse, "error/1"), lc.Metric("loss", "error_1")]
    learner = lc.testing.toy_learner([lc.LogMetrics(logger, steps=False), lc.Metrics(*same)], steps=3)
    with pytest.warns(UserWarning, match="the name error_1 is written as error_1-2"):
        learner.fit(1)
    for name, safe in (("error 1", "error_1"), ("error/1", "error/1"), ("error_1", "error_1-2")):
        assert logger.entries[safe] == [(1, learner.history[name][0])]


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_any_names_are_safe_and_apart(texts: list[str]) -> None:
    names = Names()
    with quiet():
        found = [names(text) for text in texts]
        assert found == [names(text) for text in texts]
    assert len(set(found)) == len(set(texts))
    for text, name in zip(texts, found, strict=True):
        assert SAFE.fullmatch(name) and len(name.encode()) < 220 and not raw(name)
        assert SAFE.fullmatch(sanitised(text)) and sanitised(sanitised(text)) == sanitised(text)
        part = run_name(text)
        assert "/" not in part and SAFE.fullmatch(part) and len(part.encode()) <= 100
        assert not raw(clean(text)) and not raw(clean(text, limit=None))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.floats()), max_size=8))
def test_any_names_go_through_files(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, float]]) -> None:
    folder = tmp_path_factory.mktemp("runs")
    table, lines, memory = lc.loggers.CSVLogger(folder), lc.loggers.JSONLinesLogger(folder), lc.loggers.MemoryLogger()
    with quiet():
        for logger in (table, lines, memory):
            for text, value in pairs:
                logger.log(text, value, 1)
            logger.close()
    given = sorted((name, repr(value)) for name, entries in memory.entries.items() for _, value in entries)
    rows = list(csv.reader(io.StringIO(table.path.read_text(encoding="utf-8"), newline="")))[1:]
    assert sorted((name, value) for _, name, value in rows) == given
    assert not [name for _, name, _ in rows if name.startswith(FORMULA)]
    found = [json.loads(line) for line in lines.path.read_text(encoding="utf-8").splitlines()]
    assert sorted((one["name"], repr(float(one["value"]))) for one in found) == given


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")  # hangs in the air
    (tmp_path / "run-2").write_text("mine")
    assert run_folder(tmp_path, "run").name == "run-3"
    assert not (tmp_path / "elsewhere").exists() and (tmp_path / "run-2").read_text() == "mine"
