"""What the UI shows of an asset holds no link, picture or HTML from names in files."""

from __future__ import annotations

import pytest

from neumf_assets.assets.metadata import as_text, notes_metadata


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("HLA-A * 2_1", "HLA-A * 2_1"),
        ("![x](http://evil.test/p.png)", r"!\[x\](http://evil.test/p.png)"),
        ("[click](javascript:alert(1))", r"\[click\](javascript:alert(1))"),
        ("<img src=x onerror=alert(1)>", r"\<img src=x onerror=alert(1)\>"),
        ("`a`|b\\[c]", r"\`a\`\|b\\\[c\]"),
        ("a\n# heading", "a # heading"),
        ("a\x1b[2J", r"a\\x1b\[2J"),
        ("&lt;b&gt;", r"\&lt;b\&gt;"),
    ],
)
def test_names_are_text(name: str, wanted: str) -> None:
    assert as_text(name) == wanted


def test_notes_are_a_list_of_texts() -> None:
    found = notes_metadata(["one <b>", "two"])["notes"]
    assert found.value == "- one \\<b\\>\n- two"
    assert notes_metadata([]) == {}
