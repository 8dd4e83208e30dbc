"""What the genes of a matrix are and what they are called, whatever the format says in whatever place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from neumf_assets.core import memory
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.readers.read import store_counts
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.errors import BadInput
from neumf_assets_tests.core.counts.files import Case, text_bytes

CELLS = [f"{a}{b}{c}AAACCCTTTGGG-1" for a in "ACG" for b in "ACGT" for c in "AG"]
SYMBOLS = ["ACTB", "B2M", "CD3D", "GAPDH", "MT-CO1", "LYZ"]
ACCESSIONS = [f"ENSG{number:011d}" for number in range(1, 7)]
COUNTS = np.random.default_rng(0).poisson(1.5, (len(CELLS), len(SYMBOLS) + 3))
"""Three columns more than genes, for what is none."""


def h5ad(path: Path, X: np.ndarray, var: pd.DataFrame) -> Path:
    ad.AnnData(sparse.csr_matrix(X), obs=pd.DataFrame(index=CELLS), var=var).write_h5ad(path)
    return path


def tenx(path: Path, names: list[str], ids: list[str], types: list[str]) -> Path:
    with h5py.File(path, "w") as file:
        group, X = file.create_group("matrix"), sparse.csr_matrix(COUNTS[:, : len(names)])
        for key, value in (("data", X.data), ("indices", X.indices), ("indptr", X.indptr)):
            group[key] = value
        group["shape"], group["barcodes"] = [len(names), len(CELLS)], np.array(CELLS, "S")
        for key, texts in (("name", names), ("id", ids), ("feature_type", types)):
            group[f"features/{key}"] = np.array(texts, "S")
    return path


def folder(path: Path, features: list[tuple[str, ...]], barcodes: list[str] = CELLS, quote: str = "") -> Path:
    path.mkdir()
    X = sparse.coo_matrix(COUNTS[:, : len(features)].T)
    entries = "".join(f"{g + 1} {c + 1} {v}\n" for g, c, v in zip(X.row, X.col, X.data, strict=True))
    head = f"%%MatrixMarket matrix coordinate integer general\n%\n{X.shape[0]} {X.shape[1]} {X.nnz}\n"
    (path / "matrix.mtx").write_text(head + entries)
    (path / "barcodes.tsv").write_text("".join(f"{quote}{name}{quote}\n" for name in barcodes))
    lines = ("\t".join(f"{quote}{text}{quote}" for text in feature) for feature in features)
    (path / "features.tsv").write_text("".join(f"{line}\n" for line in lines))
    return path


def table(path: Path, X: np.ndarray, genes: list[str], cells: list[str] = CELLS) -> Path:
    path.write_bytes(text_bytes(Case(X, cells, genes), True))
    return path


OTHERS = ["CD4_TotalSeqB", "HTO1", "guide-1"]
TYPES = ["Gene Expression"] * 6 + ["Antibody Capture", "Multiplexing Capture", "CRISPR Guide Capture"]
IDS = [*ACCESSIONS, "ADT1", "HTO1", "G1"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: tenx(path / "a.h5", SYMBOLS + OTHERS, IDS, TYPES),
        lambda path: folder(path / "a", list(zip(IDS, SYMBOLS + OTHERS, TYPES, strict=True))),
        lambda path: h5ad(
            path / "a.h5ad",
            COUNTS,
            pd.DataFrame({"gene_ids": IDS, "feature_types": TYPES}, index=SYMBOLS + OTHERS),
        ),
    ],
    ids=["10x HDF5", "10x folder", "h5ad"],
)
@pytest.mark.parametrize("budget", [2**30, 100], ids=["at once", "in parts"])
def test_only_gene_expression_counts_in_every_format(
    write: Callable[[Path], Path],
    budget: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(memory, "budget", lambda: budget)
    store_counts(write(tmp_path), tmp_path / "stored")
    read = load_counts(tmp_path / "stored")
    assert list(read.var_names) == SYMBOLS
    assert list(read.var["gene_id"]) == ACCESSIONS
    np.testing.assert_array_equal(read.X.toarray(), COUNTS[:, :6])
    assert read.uns["provenance"]["features_left_out"] == 3
    for kind in ("Antibody Capture", "Multiplexing Capture", "CRISPR Guide Capture"):
        assert f"1 of the type '{kind}'" in caplog.text


def test_nothing_but_other_features_is_refused_by_their_types(tmp_path: Path) -> None:
    path = tenx(tmp_path / "a.h5", OTHERS, OTHERS, ["Antibody Capture", "Antibody Capture", "Peaks"])
    with pytest.raises(BadInput, match=r"2 of the type 'Antibody Capture', 1 of the type 'Peaks'"):
        read_counts(path)


def test_tags_without_types_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "umi_count", [("CD3-ACGTACGTACGT",), ("CD4-GGGTACGTACGA",), ("unmapped",)])
    with pytest.raises(BadInput, match="antibody tags and no genes"):
        read_counts(path)


def test_what_counting_programmes_write_among_genes_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = ["__no_feature", "N_unmapped", "__ambiguous"]
    order = [6, 0, 1, 7, 2, 3, 4, 5, 8]
    names = np.array(SYMBOLS + others, dtype=object)[order].tolist()
    read = read_counts(table(tmp_path / "a.csv", COUNTS[:, order], names))
    assert list(read.var_names) == SYMBOLS
    np.testing.assert_array_equal(read.X.toarray(), COUNTS[:, :6])
    assert "no genes: __no_feature, N_unmapped, __ambiguous" in caplog.text


def test_places_in_messages_are_those_of_the_file(tmp_path: Path) -> None:
    X = COUNTS.astype(object)
    X[2, 1] = -1
    path = table(tmp_path / "a.csv", X[:, [6, 0, 1]], ["__no_feature", "ACTB", "B2M"])
    with pytest.raises(BadInput, match=r"row 4 \(gene 'B2M'\), column 4"):
        read_counts(path)


def test_genomes_are_taken_off_the_names_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["GRCh38_ACTB", "GRCh38_MT-CO1", "mm10___Actb", "mm10___mt-Co1"]
    ids = [
        f"GRCh38_{ACCESSIONS[0]}",
        f"GRCh38_{ACCESSIONS[1]}",
        "mm10___ENSMUSG00000000001",
        "mm10___ENSMUSG2",
    ]
    read = read_counts(tenx(tmp_path / "a.h5", names, ids, ["Gene Expression"] * 4))
    assert list(read.var_names) == ["ACTB", "MT-CO1", "Actb", "mt-Co1"]
    assert read.var["gene_id"].iloc[0] == ACCESSIONS[0]
    assert "genes of 2 genomes (GRCh38, mm10)" in caplog.text


def test_an_accession_stands_in_for_a_missing_symbol(tmp_path: Path) -> None:
    features = [(ACCESSIONS[0], ""), *zip(ACCESSIONS[1:], SYMBOLS[1:], strict=True)]
    assert list(read_counts(folder(tmp_path / "a", features)).var_names) == [ACCESSIONS[0], *SYMBOLS[1:]]


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("headers", [False, True])
def test_quotes_and_headers_of_r_are_no_names(tmp_path: Path, quote: str, headers: bool) -> None:
    features = list(zip(ACCESSIONS, SYMBOLS, strict=True))
    path = folder(tmp_path / "a", features, CELLS, quote)
    if headers:
        for name, line in (("barcodes.tsv", ["x"]), ("features.tsv", ["id", "symbol"])):
            text = (path / name).read_text()
            (path / name).write_text("\t".join(f"{quote}{word}{quote}" for word in line) + "\n" + text)
    read = read_counts(path)
    assert list(read.obs_names) == CELLS
    assert list(read.var_names) == SYMBOLS


VERSIONED = [f"{accession}.{version}" for version, accession in enumerate(ACCESSIONS, 1)]


@pytest.mark.parametrize(
    "features",
    [
        list(zip(VERSIONED, SYMBOLS, strict=True)),
        list(zip(SYMBOLS, VERSIONED, strict=True)),
        [(f"{a}_{s}",) for a, s in zip(VERSIONED, SYMBOLS, strict=True)],
        [(f"{s}_{a}",) for a, s in zip(VERSIONED, SYMBOLS, strict=True)],
        [(f"{a}|{s}",) for a, s in zip(VERSIONED, SYMBOLS, strict=True)],
    ],
    ids=["two columns", "changed places", "one name", "symbol first", "with a bar"],
)
def test_accession_and_symbol_are_told_wherever_they_stand(
    features: list[tuple[str, ...]], tmp_path: Path
) -> None:
    read = read_counts(folder(tmp_path / "a", features))
    assert list(read.var_names) == SYMBOLS
    assert list(read.var["gene_symbol"]) == SYMBOLS
    assert list(read.var["gene_id"]) == ACCESSIONS
    assert list(read.var["gene_id_original"]) == VERSIONED
    assert read.uns["provenance"]["species"] == "human"
    assert read.uns["provenance"]["species_from"] == "accessions or genome"


def test_identifiers_that_are_no_accessions_are_kept_as_they_are(tmp_path: Path) -> None:
    numbers = [str(7000 + number) for number in range(6)]
    read = read_counts(folder(tmp_path / "a", list(zip(numbers, SYMBOLS, strict=True))))
    assert "gene_id" not in read.var
    assert list(read.var["gene_id_original"]) == numbers
    assert read.uns["provenance"]["species_from"] == "symbols"


def test_names_that_excel_made_dates_of_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["1-Mar", "Sep-02", "2019-09-02", "MARCH1", "ACTB", "2.31E+12"]
    read = read_counts(table(tmp_path / "a.csv", COUNTS[:, :6], names))
    assert list(read.var_names) == names
    assert "4 gene names look like dates that Excel has made" in caplog.text
    assert "'1-Mar'" in caplog.text and "'MARCH1'" not in caplog.text


NUMBERS = [str(number) for number in range(6)]


@pytest.mark.parametrize(
    ("index", "columns", "names", "ids"),
    [
        (ACCESSIONS, {"feature_name": SYMBOLS}, SYMBOLS, ACCESSIONS),
        (ACCESSIONS, {"Symbol": SYMBOLS}, SYMBOLS, ACCESSIONS),
        (SYMBOLS, {"gene_ids": ACCESSIONS}, SYMBOLS, ACCESSIONS),
        (SYMBOLS, {"features": SYMBOLS}, SYMBOLS, None),
        (NUMBERS, {"features": SYMBOLS}, SYMBOLS, None),
        (NUMBERS, {"gene_name": SYMBOLS, "gene_id": ACCESSIONS}, SYMBOLS, ACCESSIONS),
        (NUMBERS, {"id": ACCESSIONS}, ACCESSIONS, ACCESSIONS),
        (ACCESSIONS, {"gene_name": ACCESSIONS}, ACCESSIONS, ACCESSIONS),
        (ACCESSIONS, {}, ACCESSIONS, ACCESSIONS),
    ],
)
def test_names_come_from_whatever_column_holds_them(
    index: list[str], columns: dict[str, list[str]], names: list[str], ids: list[str] | None, tmp_path: Path
) -> None:
    read = read_counts(h5ad(tmp_path / "a.h5ad", COUNTS[:, :6], pd.DataFrame(columns, index=index)))
    assert list(read.var_names) == names
    assert (list(read.var["gene_id"]) if "gene_id" in read.var else None) == ids


def test_running_numbers_in_place_of_names_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_counts(h5ad(tmp_path / "a.h5ad", COUNTS[:, :6], pd.DataFrame(index=NUMBERS)))
    assert "running numbers in place of gene names" in caplog.text


@pytest.mark.parametrize(
    ("attributes", "names", "ids"),
    [
        ({"Gene": SYMBOLS, "Accession": ACCESSIONS}, SYMBOLS, ACCESSIONS),
        ({"gene_name": SYMBOLS, "gene_id": ACCESSIONS}, SYMBOLS, ACCESSIONS),
        ({"Gene": ACCESSIONS, "Symbol": SYMBOLS}, SYMBOLS, ACCESSIONS),
        ({"ensembl_ids": ACCESSIONS}, ACCESSIONS, ACCESSIONS),
    ],
)
def test_names_of_loom_files(
    attributes: dict[str, list[str]], names: list[str], ids: list[str] | None, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["matrix"] = COUNTS[:, :6].T.astype(np.float32)
        file["col_attrs/CellID"] = np.arange(len(CELLS))
        for name, values in attributes.items():
            file[f"row_attrs/{name}"] = np.array(values, "S")
    read = read_counts(tmp_path / "a.loom")
    assert list(read.var_names) == names
    assert (list(read.var["gene_id"]) if "gene_id" in read.var else None) == ids
    assert list(read.obs_names)[:2] == ["0", "1"]


def test_a_file_of_anndata_before_0_7(tmp_path: Path) -> None:
    X = sparse.csr_matrix(COUNTS[:, :6].astype(np.float32))
    obs = np.zeros(len(CELLS), [("index", "S30"), ("cell_type", "i1"), ("n_counts", "f4")])
    obs["index"], obs["cell_type"] = CELLS, np.arange(len(CELLS)) % 2
    var = np.zeros(6, [("index", "S20"), ("n_cells", "i8")])
    var["index"] = SYMBOLS
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        group = file.create_group("X")
        group["data"], group["indices"], group["indptr"] = X.data, X.indices, X.indptr
        group.attrs.update({"h5sparse_format": "csr", "h5sparse_shape": X.shape})
        file["obs"], file["var"] = obs, var
        file["uns/cell_type_categories"] = np.array(["B", "T"], "S5")
    read = read_counts(tmp_path / "a.h5ad")
    assert list(read.obs_names) == CELLS and list(read.var_names) == SYMBOLS
    assert read.obs["cell_type"].value_counts().to_dict() == {"B": 12, "T": 12}
    np.testing.assert_array_equal(read.X.toarray(), COUNTS[:, :6])


def test_rounding_is_no_fraction_and_a_fraction_is_told_with_enough_digits(tmp_path: Path) -> None:
    path = h5ad(
        tmp_path / "a.h5ad", (COUNTS[:, :6] * (1 + 1e-7)).astype(np.float32), pd.DataFrame(index=SYMBOLS)
    )
    np.testing.assert_array_equal(read_counts(path).X.toarray(), COUNTS[:, :6])
    path = h5ad(tmp_path / "b.h5ad", COUNTS[:, :6] + 1.0001, pd.DataFrame(index=SYMBOLS))
    with pytest.raises(BadInput, match=r"the entry is \d\.0001: "):
        read_counts(path)


def test_the_layer_with_whole_numbers_is_named_for_scaled_values(tmp_path: Path) -> None:
    scaled = ad.AnnData(COUNTS[:, :6] - 1.5, obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(index=SYMBOLS))
    scaled.layers["umis"] = sparse.csr_matrix(COUNTS[:, :6])
    scaled.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(BadInput, match=r"is negative\. Set layer: umis, which holds whole numbers"):
        read_counts(tmp_path / "a.h5ad", ReadSettings(layer="X"))
    read = read_counts(tmp_path / "a.h5ad", ReadSettings(layer="umis"))
    np.testing.assert_array_equal(read.X.toarray(), COUNTS[:, :6])


@pytest.mark.parametrize("budget", [2**40, 100], ids=["at once", "in parts"])
def test_a_raw_droplet_matrix_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, budget: int
) -> None:
    monkeypatch.setattr(memory, "budget", lambda: budget)
    X = sparse.lil_matrix((6000, 30), dtype=np.int32)
    X[:100] = np.random.default_rng(0).poisson(5, (100, 30))
    X[100:, 0] = 1
    names = [f"G{number}" for number in range(30)]
    obs = pd.DataFrame(index=[f"c{number}" for number in range(6000)])
    ad.AnnData(X.tocsr(), obs=obs, var=pd.DataFrame(index=names)).write_h5ad(tmp_path / "a.h5ad")
    store_counts(tmp_path / "a.h5ad", tmp_path / "stored")
    assert "unfiltered droplet matrix: 5900 of 6000 barcodes" in caplog.text
