"""Files that cannot be used are refused with one line that names file, place and mend."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from scipy import sparse

from neumf_assets.core.counts.qc import filter_counts
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.settings import QCSettings, ReadSettings
from neumf_assets.core.errors import BadInput
from neumf_assets_tests.core.counts import files
from neumf_assets_tests.core.counts.files import CELLS, COUNTS, FORMATS, GENES, SMALL, Case

Spoil = Callable[[Path], Path]


def table(folder: Path, text: str | bytes, name: str = "ctrl.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(path: Path, *said: str, settings: ReadSettings | None = None) -> str:
    """Reading fails with one line that names the file and says ``said``; the folder stays as it was."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(BadInput) as caught:
        read_counts(path, settings)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert "\n" not in message
    for part in said:
        assert part in message
    assert caught.value.mend
    assert sorted(path.parent.rglob("*")) == before
    return message


# --- damaged files ---


def test_empty_file(tmp_path: Path) -> None:
    for name in ("ctrl.csv", "ctrl.csv.gz", "ctrl.h5", "ctrl.h5ad", "ctrl.loom"):
        refused(table(tmp_path, b"", name), "the file is empty")


def test_gzip_without_content(tmp_path: Path) -> None:
    refused(table(tmp_path, gzip.compress(b""), "ctrl.csv.gz"), "header is empty")


def test_truncated_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(files.text_bytes(SMALL, True))
    for length in (11, len(whole) // 2, len(whole) - 1):
        refused(table(tmp_path, whole[:length], "ctrl.csv.gz"), "cut short", "Copy or download it again")


def test_damaged_gzip(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(files.text_bytes(SMALL, True)))
    content[-6] ^= 0xFF  # the checksum
    refused(table(tmp_path, bytes(content), "ctrl.csv.gz"), "gzip data are damaged")


@pytest.mark.parametrize("name", ["h5ad CSR", "10x HDF5 v2", "10x HDF5 v3", "loom"])
def test_truncated_hdf5(name: str, tmp_path: Path) -> None:
    writer, reading = FORMATS[name]
    path = writer(tmp_path, SMALL)
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        refused(path, "cut short", "again", settings=reading)


def test_truncated_part_of_a_matrix_folder(tmp_path: Path) -> None:
    folder = files.tenx_v3_folder(tmp_path, SMALL)
    for name in ("matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-9])
        refused(folder, name, "cut short")
        (folder / name).write_bytes(b"")
        refused(folder, name, "the file is empty")
        (folder / name).write_bytes(content)


def test_a_zarr_store_without_a_chunk_folder(tmp_path: Path) -> None:
    path = files.zarr_v2(tmp_path, SMALL)
    shutil.rmtree(path / "X" / "indices")
    refused(path, "damaged or incomplete")


def test_other_formats_under_the_name_of_a_table(tmp_path: Path) -> None:
    for content, said in (
        (b"PK\x03\x04rest of a workbook", "Excel"),
        (b"BZh91AY", "bzip2"),
    ):
        refused(table(tmp_path, content), said, "Save it as text")
    refused(table(tmp_path, b"not hdf5 at all", "ctrl.h5ad"), "is not an HDF5 file")


def test_hdf5_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "ctrl.h5"
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros(3)
    refused(path, "no known kind", "'images'")


# --- bad entries ---


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("-1", "negative"),
        ("nan", "'nan', not a finite number"),
        ("NA", "'NA', not a finite number"),
        ("inf", "'inf', not a finite number"),
        ("1e999", "not a finite number"),
        ("", "is empty"),
        ("abc", "'abc', not a finite number"),
        ("1,5", "has 4 fields"),
        ("1.2.3", "'1.2.3', not a finite number"),
        ("9" * 80, "not a finite number"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_entries_of_a_table_name_line_and_column(entry: str, said: str, ending: str, tmp_path: Path) -> None:
    text = f",AAACATACCAGAAA-1,AAACATACCTCGCT-1\nACTB,0,1\nGAPDH,2,0\nCD3D,0,{entry}\nCD4,0,0\n".encode()
    path = table(tmp_path, gzip.compress(text) if ending else text, f"ctrl.csv{ending}")
    message = refused(path, said)
    if "fields" in said:
        assert "line 4" in message
    elif said == "negative":
        assert "row 4 (gene 'CD3D'), column 3 (cell 'AAACATACCTCGCT-1')" in message
    else:
        assert "line 4, column 3 (row 'CD3D', column 'AAACATACCTCGCT-1')" in message


def test_bad_entry_far_into_a_file(tmp_path: Path) -> None:
    lines = [",AAACATACCAGAAA-1,AAACATACCTCGCT-1", *(f"gene{i},0,1" for i in range(200_000))]
    lines[150_000] = "gene149999,x,1"
    place = "line 150001, column 2 (row 'gene149999', column 'AAACATACCAGAAA-1')"
    refused(table(tmp_path, "\n".join(lines)), place, "'x'")


@pytest.mark.parametrize(("value", "said"), [(-2.0, "-2 is negative"), (np.nan, "NaN"), (np.inf, "infinite")])
@pytest.mark.parametrize("name", ["h5ad CSR", "h5ad CSC", "h5ad dense", "Zarr v2", "Zarr v3", "loom"])
def test_entries_of_a_store_name_row_and_column(name: str, value: float, said: str, tmp_path: Path) -> None:
    counts = COUNTS.astype(np.float32)
    counts[2, 4] = value
    writer, reading = FORMATS[name]
    place = "row 3 (cell 'AAACCGTGGTACGT-1'), column 5 (gene 'MT-CO1')"
    if name == "loom":
        place = "row 5 (gene 'MT-CO1'), column 3 (cell 'AAACCGTGGTACGT-1')"
    refused(writer(tmp_path, Case(counts, CELLS, GENES)), place, said, settings=reading)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("5 4 1\n2 3 -7\n", "row 2 (gene 'RP11.206L10.2'), column 3 (cell 'AAACCGTGGTACGT-1')"),
        ("5 4 1\n2 3 x\n", "matrix.mtx, line 3: 'x' at row 2, column 3 is no number"),
        ("5 4 1\n2 y 1\n", "matrix.mtx, line 3: 'y' is no number"),
    ],
)
def test_entries_of_a_matrix_market_file(body: str, said: str, tmp_path: Path) -> None:
    folder = files.starsolo_folder(tmp_path, SMALL)
    (folder / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n" + body)
    refused(folder, said)


def test_too_large_for_a_count(tmp_path: Path) -> None:
    refused(table(tmp_path, ",c1\ng1,3000000000\n"), "3000000000 is larger than 2147483647")


# --- shapes and names ---


@pytest.mark.parametrize("row", ["g2,1", "g2,1,2,3", "", "g2"])
def test_ragged_rows(row: str, tmp_path: Path) -> None:
    refused(
        table(tmp_path, f",c1,c2\ng1,1,0\n{row}\ng3,0,1\n"), "line 3", "fields, but the lines before have 3"
    )


def test_header_that_does_not_fit(tmp_path: Path) -> None:
    refused(
        table(tmp_path, ",c1,c2,c3,c4\ng1,1,0\n"),
        "line 2 has 3 fields, but the header has 5".replace("2 has", "2: has"),
    )
    refused(table(tmp_path, ",c1,c2\n"), "line 2: is missing")
    refused(table(tmp_path, ",c1,c2\n\ng1,1,0\n"), "line 2: is empty")
    refused(table(tmp_path, "counts\n1\n2\n"), "one field only")


def test_quote_that_is_not_closed(tmp_path: Path) -> None:
    refused(table(tmp_path, ',c1,c2\ng1,1,0\n"g2,1,0\ng3,0,1\n'), "line 3: a quote is not closed")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    refused(table(tmp_path, b",c1,c2\ng1,1,0\n\xff\xfe\xfd,1,0\n"), "line 3: the name is not UTF-8")
    refused(table(tmp_path, b",c1,\xffc2\ng1,1,0\n"), "line 1: is not UTF-8")


def test_empty_names(tmp_path: Path) -> None:
    refused(table(tmp_path, ",c1,\ng1,1,0\n"), "cell 2", "no name", settings=files.BY_GENE)
    refused(table(tmp_path, ",c1,c2\n,1,0\n"), "gene 1", "no name", settings=files.BY_GENE)


@pytest.mark.parametrize("name", FORMATS)
def test_duplicated_cell_names(name: str, tmp_path: Path) -> None:
    writer, reading = FORMATS[name]
    path = writer(tmp_path, Case(COUNTS, [CELLS[0], CELLS[1], CELLS[0], CELLS[3]], GENES))
    refused(path, f"cells 1 and 3: both are called {CELLS[0]!r}", "own name", settings=reading)


@pytest.mark.parametrize("writer", [files.tenx_v2_folder, files.tenx_v3_folder, files.starsolo_folder])
@pytest.mark.parametrize("part", ["barcodes", "features"])
def test_matrix_that_does_not_fit_its_names(writer: files.Writer, part: str, tmp_path: Path) -> None:
    folder = writer(tmp_path, SMALL)
    path = next(
        file for file in folder.iterdir() if file.name.startswith((part, part.replace("features", "genes")))
    )
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    content += content[: content.index(b"\n") + 1]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    genes, cells = (5, 5) if part == "barcodes" else (6, 4)
    refused(
        folder, f"the matrix is 5 × 4, but there are {genes} features and {cells} barcodes", "different runs"
    )


def test_missing_part_of_a_matrix_folder(tmp_path: Path) -> None:
    folder = files.tenx_v3_folder(tmp_path, SMALL)
    (folder / "barcodes.tsv.gz").unlink()
    refused(folder, "barcodes.tsv[.gz] is missing")
    (folder / "matrix.mtx.gz").unlink()
    refused(folder, "holds no matrix.mtx")


def test_two_matrices_in_one_folder(tmp_path: Path) -> None:
    folder = files.tenx_v3_folder(tmp_path, SMALL)
    shutil.copy(folder / "matrix.mtx.gz", folder / "some.mtx.gz")
    (folder / "matrix.mtx.gz").rename(folder / "other.mtx.gz")
    refused(folder, "holds 2 matrices", "its own folder")


@pytest.mark.parametrize("name", ["10x HDF5 v2", "10x HDF5 v3"])
def test_names_of_an_hdf5_file_that_do_not_fit(name: str, tmp_path: Path) -> None:
    writer, _ = FORMATS[name]
    path = writer(tmp_path, SMALL)
    with h5py.File(path, "r+") as file:
        group = file["matrix" if "v3" in name else "GRCh38"]
        del group["barcodes"]
        group["barcodes"] = [b"only one"]
    refused(path, "there are 1 names, but the matrix holds 4 cells")


@pytest.mark.parametrize("part", ["indptr", "indices", "data", "shape"])
def test_sparse_parts_that_contradict_each_other(part: str, tmp_path: Path) -> None:
    path = files.tenx_h5_v3(tmp_path, SMALL)
    with h5py.File(path, "r+") as file:
        values = file["matrix"][part][...]
        del file["matrix"][part]
        file["matrix"][part] = values[:-1] if part != "indices" else values + 1000
    refused(path, "matrix", "again")


def test_no_genes_or_no_cells(tmp_path: Path) -> None:
    for shape in ((0, 3), (3, 0), (0, 0)):
        path = tmp_path / f"x{shape[0]}{shape[1]}.h5ad"
        ad.AnnData(X=sparse.csr_matrix(shape, dtype=np.int32)).write_h5ad(path)
        refused(path, f"holds {shape[0]} cells and {shape[1]} genes")


def test_nothing_left_after_quality_control(tmp_path: Path) -> None:
    adata = read_counts(files.csv_genes_by_cells(tmp_path, SMALL))
    with pytest.raises(
        BadInput, match="nothing is left of 4 cells and 5 genes: 0 cells are empty, 3 have fewer than 200"
    ):
        filter_counts(adata, QCSettings(min_genes=200))


# --- what is promised and what is there ---


def test_headers_that_promise_more_than_the_file_holds(tmp_path: Path) -> None:
    folder = files.starsolo_folder(tmp_path, SMALL)
    for sizes, said in (
        ("5 4 99999999999999", "promises 99999999999999 entries, but holds 1"),
        ("99999999999 4 7", "line 2: promises a matrix of 99999999999 × 4"),
        ("2000000000 2000000000 1", "the matrix is 2000000000 × 2000000000, but there are 5 features"),
        ("5 4", "line 2: does not give rows, columns and entries"),
        ("a b c", "line 2: does not give rows, columns and entries"),
        ("-5 4 3", "line 2: does not give rows, columns and entries"),
    ):
        text = f"%%MatrixMarket matrix coordinate integer general\n{sizes}\n1 1 1\n"
        (folder / "matrix.mtx").write_text(text)
        refused(folder, "matrix.mtx", said)


def test_hdf5_that_claims_more_than_it_stores(tmp_path: Path) -> None:
    path = files.tenx_h5_v3(tmp_path, SMALL)
    with h5py.File(path, "r+") as file:
        del file["matrix/data"]
        file["matrix"].create_dataset(
            "data", shape=(10**11,), dtype="i4", chunks=(10**6,), compression="gzip"
        )
    refused(path, "matrix/data", "claims 372.5 GiB")


def test_zarr_that_claims_more_than_it_stores(tmp_path: Path) -> None:
    path = files.zarr_v2(tmp_path, SMALL)
    metadata = json.loads((path / "X/data/.zarray").read_text())
    (path / "X/data/.zarray").write_text(json.dumps({**metadata, "shape": [10**12]}))
    refused(path, "X/data/.zarray", "claims 1e+12 entries")


def test_values_outside_the_file(tmp_path: Path) -> None:
    (tmp_path / "values.bin").write_bytes(np.arange(8, dtype=np.int32).tobytes())
    path = files.tenx_h5_v3(tmp_path, SMALL)
    with h5py.File(path, "r+") as file:
        del file["matrix/data"]
        external = [(str(tmp_path / "values.bin"), 0, h5py.h5f.UNLIMITED)]
        file["matrix"].create_dataset("data", shape=(8,), dtype="i4", external=external)
    refused(path, "matrix/data", "in another file")


class _Boom:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    import pickle

    path = files.zarr_v2(tmp_path, SMALL)
    metadata = json.loads((path / "obs/_index/.zarray").read_text())
    metadata["filters"] = [{"id": "pickle"}]
    metadata["compressor"] = None
    (path / "obs/_index/.zarray").write_text(json.dumps(metadata).replace("pickle", "\\u0070ickle"))
    (path / "obs/_index/0").write_bytes(pickle.dumps(_Boom(tmp_path / "boom")))
    refused(path, "obs/_index/.zarray", "is pickled, which is never loaded")
    assert not (tmp_path / "boom").exists()


def test_wrong_sha256(tmp_path: Path) -> None:
    for writer in (files.csv_genes_by_cells, files.tenx_v3_folder, files.zarr_v3):
        folder = tmp_path / writer.__name__
        folder.mkdir()
        path = writer(folder, SMALL)
        digest = read_counts(path).uns["provenance"]["sha256"]
        assert read_counts(path, ReadSettings(sha256={"ctrl": digest.upper()})).n_obs == 4
        refused(
            path,
            f"its SHA-256 is {digest}",
            f"{'0' * 64} is expected",
            settings=ReadSettings(sha256={"ctrl": "0" * 64}),
        )


def test_wrong_sha256_is_told_before_parsing(tmp_path: Path) -> None:
    path = table(tmp_path, "this is no matrix at all")
    refused(path, "SHA-256", settings=ReadSettings(sha256={"ctrl": "0" * 64}))


@pytest.mark.parametrize("name", ["-ctrl.csv", "a b.csv", "ä.csv", "x" * 65 + ".csv", ".csv"])
def test_names_that_break_the_rule(name: str, tmp_path: Path) -> None:
    refused(table(tmp_path, ",c1\ng1,1\n", name), "cannot be the name of a dataset", "Rename it")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "ctrl.csv", "does not exist")


# --- normalised data ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c / c.sum(1, keepdims=True) * 1e4,
            "the values are normalised (every cell adds up to 10000)",
        ),
        (
            lambda c: np.log1p(c / c.sum(1, keepdims=True) * 1e4),
            "are log-normalised (every cell adds up to 10000 after expm1)",
        ),
        (lambda c: c * 0.7, "71.4% of the values are no whole numbers"),
    ],
)
def test_normalised_rather_than_counts(
    change: Callable[[np.ndarray], np.ndarray], said: str, tmp_path: Path
) -> None:
    counts = np.array([[10.0, 3, 0], [20, 0, 9], [1, 1, 1]])
    case = Case(change(counts), CELLS[:3], GENES[:3])
    refused(files.csv_genes_by_cells(tmp_path, case), said, "allow_normalised: true")
    refused(files.h5ad_csr(tmp_path, case), said, "allow_normalised: true")


@pytest.mark.parametrize("name", ["h5ad layer", "h5ad raw"])
def test_a_normalised_matrix_that_is_asked_for_points_to_the_counts_in_the_file(
    name: str, tmp_path: Path
) -> None:
    writer, reading = FORMATS[name]
    refused(
        writer(tmp_path, SMALL),
        f"Set layer: {reading.layer}, which holds whole numbers",
        settings=ReadSettings(layer="X"),
    )


def test_layer_that_is_not_there(tmp_path: Path) -> None:
    refused(
        files.h5ad_layer(tmp_path, SMALL),
        "layers/spliced",
        "'counts'",
        settings=ReadSettings(layer="spliced"),
    )
    refused(files.loom(tmp_path, SMALL), "no layer 'spliced'", settings=ReadSettings(layer="spliced"))
    refused(
        files.h5ad_csr(tmp_path, SMALL),
        "raw/X is missing".replace(" is", ": is"),
        settings=ReadSettings(layer="raw"),
    )


def test_fractions_are_rounded_where_the_study_says_so(tmp_path: Path) -> None:
    """As SoupX leaves them after taking off ambient RNA."""
    path = table(tmp_path, ",c1,c2\nACTB,1.2,0.3\nCD3D,0,3.8\nLYZ,2.6,5\n")
    assert "round_values: true" in refused(path, "are no whole numbers")
    read = read_counts(path, ReadSettings(round_values=True))
    assert read.X.dtype.kind == "i"
    np.testing.assert_array_equal(read.X.toarray(), [[1, 0, 3], [0, 4, 5]])


def test_normalised_values_are_not_offered_rounding(tmp_path: Path) -> None:
    path = table(tmp_path, ",c1,c2\nACTB,4000.5,2500\nCD3D,5999.5,7500\n")
    assert "round_values" not in refused(path, "normalised")
