"""The line of the user's that an error comes from."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from loopcore._utils.user_lines import of_lines
from loopcore.testing.conformance import test_losses


@pytest.mark.parametrize("folder", ["torch", "jax", "numpy", "loopcore", "project"])
def test_a_line_in_a_folder_with_the_name_of_a_framework_is_the_users(tmp_path: Path, folder: str) -> None:
    script = tmp_path / folder / "script.py"
    script.parent.mkdir()
    script.write_text("first\nsecond\n")
    assert of_lines([(np.__file__, 1), (str(script), 2), (contextlib.__file__, 3)]) == f"{script}:2: second: "


def test_lines_of_frameworks_and_of_loopcore_are_passed_over() -> None:
    assert (
        of_lines([(np.__file__, 1), (str(Path(np.__file__).parent / "linalg" / "x.py"), 1), (_file_of("state"), 2)])
        == ""
    )


def test_a_line_of_the_conformance_suite_counts_as_the_users() -> None:
    assert of_lines([(test_losses.__file__, 1), (_file_of("state"), 2)]).startswith(f"{test_losses.__file__}:1: ")


def _file_of(name: str) -> str:
    import loopcore

    return str(Path(loopcore.__file__).parent / f"{name}.py")
