"""Text for a terminal has no control characters."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from loopcore._utils.text import clean


@given(st.text(st.characters(), max_size=100))
@example("\u202e")
def test_clean_text_has_no_control_characters(text: str) -> None:
    shown = clean(text)
    assert len(shown) <= 80 and shown == clean(shown)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]", shown)
    shown.encode("utf-8")
