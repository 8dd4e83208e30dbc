"""Exports for tools that read neither AnnData nor Zarr: the notebook's CSV and 10x Matrix Market."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np
import pandas as pd
import polars as pl

from neumf_assets.core.counts.stored import BLOCK_CELLS, StoredCounts
from neumf_assets.core.errors import NeumfError

_BYTES_AT_ONCE = 256 * 2**20
_FORMULA = re.compile(r"[=@\t\r]|[+-](?!\d*\.?\d*$)")
_ENDS = re.compile(r"[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")


class Matrix(Protocol):
    """A cells × genes array that can be sliced, such as a Zarr array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells, genes."""

    def __getitem__(self, key: Any) -> Any:
        """Read a part."""


def export_csv(
    dense: Matrix,
    cells: Sequence[str],
    genes: Sequence[str],
    path: str | Path,
    *,
    bytes_at_once: int = _BYTES_AT_ONCE,
) -> Path:
    """Write a cells × genes array as gene × cell CSV with names, the form of the original notebook.

    Read and written in blocks of genes, as many as fit ``bytes_at_once``, so that the matrix is never whole
    in memory. Appears under its name only when it is complete.

    Parameters
    ----------
    path
        Ends in ``.csv``, or ``.csv.gz`` to compress.

    Raises
    ------
    NeumfError
        The names do not fit the array.
    """
    _check_names(tuple(dense.shape), cells, genes)
    path = Path(path)
    block = max(1, bytes_at_once // (4 * max(1, len(cells))))
    with _replacing(path) as temporary, _open(temporary, compressed=path.suffix == ".gz") as file:
        # unnamed corner, as R and the notebook's own input have it
        header = pl.DataFrame(schema={"": pl.String} | dict.fromkeys(_unique(harmless(cells)), pl.Float32))
        file.write(header.write_csv().encode())
        for start in range(0, len(genes), block):
            part = np.asarray(dense[:, start : start + block], dtype=np.float32)
            table = pl.from_numpy(np.ascontiguousarray(part.T), schema=header.columns[1:], orient="row")
            names = pl.Series("", harmless(genes[start : start + block]))
            file.write(table.insert_column(0, names).write_csv(include_header=False).encode())
    return path


def export_mtx(counts: StoredCounts, folder: str | Path) -> Path:
    """Write a dataset's counts as a 10x (Cell Ranger 3) folder: Matrix Market, features, barcodes.

    As 10x does, the matrix is genes × cells. The counts are read and written some cells at a time.

    The folder appears under its name only when it is complete, and takes the place of an earlier export.

    Raises
    ------
    NeumfError
        The folder exists and is not such an export.
    """
    folder = Path(folder)
    names = {"matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"}
    if folder.exists() and not {entry.name for entry in folder.iterdir()} <= names:
        raise NeumfError(f"{folder} holds other files; name a new folder for the export.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _open(temporary / "matrix.mtx.gz", compressed=True) as file:
            _write_entries(file, counts)
        with _open(temporary / "features.tsv.gz", compressed=True) as file:
            names_shown = [_one_field(gene) for gene in counts.var_names]
            file.writelines(f"{gene}\t{gene}\tGene Expression\n".encode() for gene in names_shown)
        with _open(temporary / "barcodes.tsv.gz", compressed=True) as file:
            file.writelines(f"{_one_field(cell)}\n".encode() for cell in counts.obs_names)
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_entries(file: IO[bytes], counts: StoredCounts) -> None:
    """Write Matrix Market: one line ``gene cell value`` for each entry, both counted from 1."""
    cells, genes = counts.shape
    kind = "integer" if counts.whole else "real"
    file.write(f"%%MatrixMarket matrix coordinate {kind} general\n%\n{genes} {cells} {counts.nnz}\n".encode())
    for start in range(0, cells, BLOCK_CELLS):
        part = counts.rows(start, min(start + BLOCK_CELLS, cells)).tocoo()
        entries = {"gene": part.col + 1, "cell": part.row + (start + 1), "value": part.data}
        file.write(pl.DataFrame(entries).write_csv(include_header=False, separator=" ").encode())


def save_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table of results; its text is harmless in a spreadsheet."""
    shown = table.copy()
    for name in shown:
        if not pd.api.types.is_numeric_dtype(shown[name].dtype):
            shown[name] = harmless(shown[name].astype(object).where(shown[name].notna(), "").tolist())
    shown.to_csv(path, index=False)


def harmless(names: Sequence[str]) -> list[str]:
    """Return names for a table that may be opened by a spreadsheet: what it would take for a formula begins with ``'``.

    Numbers with a sign are no formulas.
    """
    return [f"'{name}" if _FORMULA.match(name) else name for name in map(str, names)]


def _one_field(name: str) -> str:
    """Return a name without what would end its field or line."""
    return _ENDS.sub(" ", str(name))


def _check_names(shape: tuple[int, ...], cells: Sequence[str], genes: Sequence[str]) -> None:
    if tuple(shape) != (len(cells), len(genes)):
        raise NeumfError(f"{len(cells)} cells and {len(genes)} genes do not fit a matrix of {tuple(shape)}.")


def _unique(cells: Sequence[str]) -> list[str]:
    if len(set(cells)) != len(cells):
        raise NeumfError("Cell names repeat; a CSV needs one name per column.")
    return list(cells)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside the path and rename it when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _open(path: Path, *, compressed: bool) -> Iterator[IO[bytes]]:
    """Open for writing, sync at the end; compressed files hold no time: equal content, equal bytes."""
    with path.open("wb") as raw:
        if compressed:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=raw, mtime=0) as packed:
                yield cast(IO[bytes], packed)
        else:
            yield raw
        raw.flush()
        os.fsync(raw.fileno())
