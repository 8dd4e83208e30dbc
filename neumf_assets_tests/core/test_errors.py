"""Names from files as they are shown: they neither act on a terminal nor turn what is read round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neumf_assets.core.errors import BadInput, BadSettings, printable


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain name.csv", "plain name.csv"),
        ("Zellen_äöü_日本", "Zellen_äöü_日本"),
        ("a\x1b]0;title\x07b", "a\\x1b]0;title\\x07b"),
        ("gnp.\u202evsc", "gnp.\\u202evsc"),
        ("two\nlines\tkept", "two\nlines\tkept"),
        ("back\b\b", "back\\x08\\x08"),
        ("\x9b31m", "\\x9b31m"),
        ("line\u2028end", "line\\u2028end"),
        ("lone\udce4byte", "lone\\udce4byte"),
    ],
)
def test_what_acts_is_written_as_an_escape(text: str, wanted: str) -> None:
    assert printable(text) == wanted


@given(st.text())
def test_nothing_shown_acts_and_it_can_be_encoded(text: str) -> None:
    found = printable(text)
    assert all(one.isprintable() or one in "\n\t" or one.isspace() for one in found)
    found.encode()


def test_errors_are_printable_whatever_stands_in_them() -> None:
    assert str(BadSettings("no study \x1b[31mred")) == "no study \\x1b[31mred"
    error = BadInput("a\x1b[2J.csv", "line 1", "is \x07 wrong", "Mend it")
    assert str(error) == "a\\x1b[2J.csv, line 1: is \\x07 wrong. Mend it"
