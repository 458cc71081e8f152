"""A refusal: the kind of an error, and the words that its message has to contain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def refused(kind: type[BaseException], *words: str, action: Callable[[], Any]) -> BaseException:
    """Assert that an action is refused with exactly this class, and that the message has all the words."""
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
    return caught.value
