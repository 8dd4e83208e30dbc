"""Matrix Market folders: Cell Ranger v2 and v3, STARsolo, and the prefixed triples of GEO."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import polars as pl
from scipy import io as scipy_io
from scipy import sparse

from neumf_assets.core.counts.discover import Triple
from neumf_assets.core.counts.readers.matrix import Names, RawMatrix, check_names
from neumf_assets.core.counts.settings import Orientation
from neumf_assets.core.errors import BadInput

GENE_EXPRESSION = "Gene Expression"
_GZIP = b"\x1f\x8b"
_GZIP_LIMIT = 1032
"""Deflate packs at most this many bytes into one."""
_SHORTEST_ENTRY = 4
_LONGEST_HEADER = 1 << 20
_AGAIN = "Copy or export it again"


def read_market(root: Path, triple: Triple, given: str, orientation: Orientation) -> RawMatrix:
    """Read a Matrix Market matrix with its barcodes and features.

    Parameters
    ----------
    root
        Folder that the names in ``triple`` are relative to.
    triple
        Names of matrix, barcodes and features; each plain or gzipped (recognised by content).
    given
        Path or URL for messages.
    orientation
        Decides only when there are as many genes as cells; ``auto`` then means genes × cells, as 10x writes
        it.

    Returns
    -------
    RawMatrix
        Only features of type ``Gene Expression`` where the features have types.

    Raises
    ------
    BadInput
        When the three do not fit together, or one is damaged.
    """
    cells = _lines(root / triple.barcodes, _file(given, triple.barcodes))[0]
    features = _lines(root / triple.features, _file(given, triple.features))
    accessions, names = features[0], features[min(1, len(features) - 1)]
    matrix_file = _file(given, triple.matrix)
    matrix = _matrix(root / triple.matrix, matrix_file)
    genes_first = _genes_first(matrix.shape, len(names), len(cells), orientation, matrix_file)
    by_cell = sparse.csr_matrix(matrix.T if genes_first else matrix)
    raw = RawMatrix(
        X=by_cell,
        cells=check_names(cells.to_list(), by_cell.shape[0], "cells", matrix_file),
        genes=check_names(names.to_list(), by_cell.shape[1], "genes", matrix_file),
        format="Matrix Market",
        rows="genes" if genes_first else "cells",
        gene_ids=np.asarray(accessions.to_list(), dtype=object) if len(features) > 1 else None,
        notes={"orientation": "genes_by_cells" if genes_first else "cells_by_genes"},
    )
    if len(features) > 2:
        keep_gene_expression(raw, np.asarray(features[2].to_list(), dtype=object), given)
    return raw


def keep_gene_expression(raw: RawMatrix, types: Names, file: str) -> None:
    """Drop features of other types (antibodies, guides, peaks), and note how many.

    Raises
    ------
    BadInput
        When there are types but none is gene expression.
    """
    kept = types == GENE_EXPRESSION
    if kept.all() or not (pl.Series(types, dtype=pl.String).fill_null("") != "").any():
        return
    if not kept.any():
        raise BadInput(
            file,
            "features",
            f"none is of the type {GENE_EXPRESSION!r} (but {types[0]!r})",
            "Give the genes' matrix",
        )
    raw.notes["features_left_out"] = int((~kept).sum())
    raw.X = raw.X[:, kept]
    raw.genes = raw.genes[kept]
    raw.gene_ids = raw.gene_ids[kept] if raw.gene_ids is not None else None


def _file(given: str, name: str) -> str:
    """Path or URL of a file of the triple, for messages."""
    folder = given.rstrip("/")
    if folder.endswith((".mtx", ".mtx.gz")):
        folder = folder.rpartition("/")[0]
    return f"{folder}/{name}" if folder else name


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP
    return cast(IO[bytes], gzip.open(path, "rb") if zipped else path.open("rb"))


def _read_all(path: Path, file: str) -> bytes:
    try:
        with _open(path) as stream:
            return stream.read()
    except EOFError as error:
        raise BadInput(file, "", "the gzip file is cut short", _AGAIN) from error
    except (OSError, zlib.error) as error:
        raise BadInput(file, "", f"the gzip data are damaged ({error})", _AGAIN) from error


def _lines(path: Path, file: str) -> list[pl.Series]:
    """Read the columns of a table without header as text; null becomes ""."""
    content = _read_all(path, file)
    if not content.strip():
        raise BadInput(file, "", "the file is empty", _AGAIN)
    try:
        table = pl.read_csv(
            io.BytesIO(content), separator="\t", has_header=False, quote_char=None, infer_schema=False
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(file, "", f"is no table separated by tabs ({reason})", "Export it again") from error
    return table.fill_null("").with_columns(pl.all().str.strip_chars_end("\r")).get_columns()


def _matrix(path: Path, file: str) -> sparse.coo_array:
    size = path.stat().st_size
    if size == 0:
        raise BadInput(file, "", "the file is empty", _AGAIN)
    try:
        with _open(path) as stream:
            most = size * (_GZIP_LIMIT if isinstance(stream, gzip.GzipFile) else 1)
            _check_header(stream, most, file)
        with _open(path) as stream:
            return scipy_io.mmread(stream, spmatrix=False)
    except EOFError as error:
        raise BadInput(file, "", "the gzip file is cut short", _AGAIN) from error
    except (OSError, zlib.error) as error:
        raise BadInput(file, "", f"the gzip data are damaged ({error})", _AGAIN) from error
    except (ValueError, TypeError, OverflowError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise BadInput(file, "", f"is no Matrix Market file of counts ({reason})", _AGAIN) from error


def _check_header(stream: IO[bytes], most_bytes: int, file: str) -> None:
    """Refuse headers that promise what the file cannot hold, before anything is allocated for it."""
    line, line_number = stream.readline(_LONGEST_HEADER), 1
    words = line.lower().split()
    if len(words) < 5 or words[0] != b"%%matrixmarket" or words[1] != b"matrix" or words[2] != b"coordinate":
        raise BadInput(
            file,
            "line 1",
            "is not the header '%%MatrixMarket matrix coordinate …'",
            "Export the counts as a sparse Matrix Market file",
        )
    if words[3] not in (b"integer", b"real", b"double") or words[4] != b"general":
        kind = b" ".join(words[3:5]).decode("utf-8", "replace")
        raise BadInput(
            file, "line 1", f"the matrix is {kind!r}, not integer or real, general", "Export the counts"
        )
    while (line := stream.readline(_LONGEST_HEADER)) and (line.startswith(b"%") or not line.strip()):
        line_number += 1
    place = f"line {line_number + 1}"
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdigit() and len(size) < 19 for size in sizes):
        raise BadInput(file, place, "does not give rows, columns and entries", _AGAIN)
    rows, columns, entries = map(int, sizes)
    if entries * _SHORTEST_ENTRY > most_bytes or max(rows, columns) >= 2**31:
        raise BadInput(
            file,
            place,
            f"promises {entries} entries of {rows} × {columns}, more than the file can hold",
            _AGAIN,
        )


def _genes_first(shape: tuple[int, int], genes: int, cells: int, orientation: Orientation, file: str) -> bool:
    if shape == (genes, cells) and (genes != cells or orientation != "cells_by_genes"):
        return True
    if shape == (cells, genes):
        return False
    raise BadInput(
        file,
        "",
        f"the matrix is {shape[0]} × {shape[1]}, but there are {genes} features and {cells} barcodes",
        "The three files come from different runs, or one is cut short: export them again together",
    )
