"""Errors that a user can mend: one line that says where, what and how to mend it."""

from __future__ import annotations

import unicodedata
from pathlib import Path

_KEPT = frozenset("\n\t")
_HARMFUL = frozenset({"Cc", "Cs", "Cf", "Co", "Cn", "Zl", "Zp"})
"""Control characters move a terminal's cursor, format characters turn the order of what is read round."""


def printable(text: str) -> str:
    """Return a text from a file (a name, a label) as it may be shown: characters that act are written as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one
        if one in _KEPT or unicodedata.category(one) not in _HARMFUL
        else one.encode("unicode_escape").decode()
        for one in text
    )


class NeumfError(Exception):
    """Base of every error this package raises on purpose; its text is meant for the user."""

    def __str__(self) -> str:
        """The text, whatever names of files and cells stand in it, without characters that act on a terminal."""
        return printable(super().__str__())


class BadInput(NeumfError):
    """An input file cannot be used.

    Parameters
    ----------
    file
        The file (path or URL) at fault.
    place
        Where in the file: a row and column, a data set inside an HDF5 file, or the file as a whole.
    problem
        What is wrong there.
    mend
        What the user can do about it.

    Attributes
    ----------
    identity
        Identity of the content that is at fault (see `DatasetFile.identity`), where it is known; empty where
        the file is not there.
    """

    identity: str | None = None

    def __init__(self, file: str | Path, place: str, problem: str, mend: str) -> None:
        self.file, self.place, self.problem, self.mend = str(file), place, problem, mend
        super().__init__(file, place, problem, mend)

    def __str__(self) -> str:
        where = f"{self.file}, {self.place}" if self.place else self.file
        return printable(" ".join(f"{where}: {self.problem}. {self.mend}".split()))


class BadSettings(NeumfError):
    """A setting is unknown or outside its allowed range."""
