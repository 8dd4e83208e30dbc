"""Errors that a user can mend: one line that says where, what and how to mend it."""

from __future__ import annotations

from pathlib import Path


class NeumfError(Exception):
    """Base of every error this package raises on purpose; its text is meant for the user."""


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
        return " ".join(f"{where}: {self.problem}. {self.mend}".split())


class BadSettings(NeumfError):
    """A setting is unknown or outside its allowed range."""
