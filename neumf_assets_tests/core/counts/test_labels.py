"""Labels come from the labels file or from obs; what does not match is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.errors import BadInput
from neumf_assets_tests.core.counts import files
from neumf_assets_tests.core.counts.files import CELLS, SMALL


def labelled(folder: Path, text: str) -> Path:
    (folder / "ctrl.labels.csv").write_text(text)
    return files.csv_genes_by_cells(folder, SMALL)


def values(column: pd.Series) -> list[object]:
    return [None if pd.isna(value) else value for value in column]


def test_labels_are_put_in_the_order_of_the_cells(tmp_path: Path) -> None:
    lines = ["cell,type,donor", f"{CELLS[2]},T,7", f"{CELLS[0]},NA,8", f"{CELLS[1]},,7", f"{CELLS[3]},B,NA"]
    obs = read_counts(labelled(tmp_path, "\n".join(lines))).obs
    assert obs.index.tolist() == CELLS
    assert values(obs["type"]) == [None, None, "T", "B"]
    assert values(obs["donor"]) == ["8", "7", "7", None]
    assert isinstance(obs["type"].dtype, pd.CategoricalDtype)


def test_cells_without_a_line_are_unlabelled(tmp_path: Path) -> None:
    obs = read_counts(labelled(tmp_path, f"cell,type\n{CELLS[1]},T\n")).obs
    assert values(obs["type"]) == [None, "T", None, None]


def test_labels_given_by_path(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.csv").write_text(f"cell,type\n{CELLS[1]},T\n")
    adata = read_counts(files.csv_genes_by_cells(tmp_path, SMALL), labels=tmp_path / "elsewhere.csv")
    assert values(adata.obs["type"]) == [None, "T", None, None]
    assert adata.uns["provenance"]["labels"] == str(tmp_path / "elsewhere.csv")


def test_without_labels_there_are_no_columns(tmp_path: Path) -> None:
    assert read_counts(files.csv_genes_by_cells(tmp_path, SMALL)).obs.shape == (4, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"cell,type\n{CELLS[0]},T\nother-1,B\nother-2,B\n",
            "line 3: the matrix lacks the cell 'other-1' and 1 others",
        ),
        (f"cell,type\n{CELLS[0]},T\n{CELLS[0]},B\n", f"line 2: the cell {CELLS[0]!r} occurs twice"),
        ("sample,type\nx,T\n", "line 1: the columns are 'sample', 'type'"),
        (f"cell\n{CELLS[0]}\n", "add at least one label column"),
        (f"cell,type\n{CELLS[0]},T\n,B\n", "line 3: the cell has no name"),
        (f"cell,type\n{CELLS[0]},T,more,fields\n", "cannot be read as CSV"),
        ("", "the file is empty"),
    ],
)
def test_labels_that_do_not_match_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = labelled(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        read_counts(path)
    assert str(caught.value).startswith(str(tmp_path / "ctrl.labels.csv"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def annotated_file(folder: Path) -> Path:
    adata = files.annotated(SMALL)
    adata.obs["type"] = pd.Categorical(["T", "NA", None, "B"])
    adata.obs["barcode"] = CELLS
    adata.obs["n_counts"] = np.arange(4)
    adata.obs["share"] = np.linspace(0, 1, 4)
    adata.obs["doublet"] = [True, False, False, True]
    adata.write_h5ad(folder / "ctrl.h5ad")
    return folder / "ctrl.h5ad"


def test_obs_gives_text_categories_yes_no_and_numbers_as_numbers(tmp_path: Path) -> None:
    obs = read_counts(annotated_file(tmp_path)).obs
    assert {"type", "doublet"} <= set(obs.columns)
    assert obs["n_counts"].tolist() == [0, 1, 2, 3] and obs["n_counts"].dtype.kind == "i"
    np.testing.assert_allclose(obs["share"], np.linspace(0, 1, 4))
    assert values(obs["type"]) == ["T", None, None, "B"]
    assert values(obs["doublet"]) == ["True", "False", "False", "True"]


@pytest.mark.parametrize(
    ("texts", "numeric"),
    [(("0.5", "1", "2.25", "NA"), True), (("0", "1", "2", "0"), False), (("0.5", "high", "1", "2"), False)],
)
def test_fractions_in_a_labels_file_are_numbers_and_whole_ones_name_groups(
    texts: tuple[str, ...], numeric: bool, tmp_path: Path
) -> None:
    lines = "".join(f"{cell},{text}\n" for cell, text in zip(CELLS, texts, strict=True))
    read = read_counts(labelled(tmp_path, "cell,value\n" + lines)).obs["value"]
    assert (read.dtype.kind == "f") is numeric


def test_identifiers_are_no_labels(tmp_path: Path) -> None:
    case = files.Case(np.ones((200, 3), int), [f"cell{i}" for i in range(200)], ["ACTB", "CD3D", "CD4"])
    adata = files.annotated(case)
    adata.obs["barcode"] = case.cells
    adata.obs["donor"] = ["a", "b"] * 100
    adata.write_h5ad(tmp_path / "ctrl.h5ad")
    assert read_counts(tmp_path / "ctrl.h5ad").obs.columns.tolist() == ["donor"]


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    path = annotated_file(tmp_path)
    obs = read_counts(path, ReadSettings(label_columns=("type", "n_counts"))).obs
    assert obs.columns.tolist() == ["type", "n_counts"]
    assert values(obs["n_counts"]) == ["0", "1", "2", "3"]
    with pytest.raises(BadInput, match="no label column 'donor' \\(there are: type, barcode, n_counts"):
        read_counts(path, ReadSettings(label_columns=("donor",)))


def test_the_labels_file_counts_before_obs(tmp_path: Path) -> None:
    path = annotated_file(tmp_path)
    (tmp_path / "ctrl.labels.csv").write_text(f"cell,type\n{CELLS[3]},NK\n")
    assert values(read_counts(path).obs["type"]) == [None, None, None, "NK"]


@pytest.mark.parametrize("header", ["cell", "Barcode", "", "Unnamed: 0", "cell_id"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_labels_in_every_way_that_tables_are_written(
    header: str, encoding: str, separator: str, tmp_path: Path
) -> None:
    path = files.csv_genes_by_cells(tmp_path, SMALL)
    rows = [f'"{header}"', '"type"'], [f'"{CELLS[0]}"', '"T größe"'], [f'"{CELLS[1]}"', '"B"']
    text = "".join(separator.join(row) + "\r\n" for row in rows)
    (tmp_path / "ctrl.labels.csv").write_bytes(text.encode(encoding))
    assert read_counts(path).obs["type"].dropna().to_dict() == {CELLS[0]: "T größe", CELLS[1]: "B"}


@pytest.mark.parametrize("value", ["NA", "n/a", "NaN", "None", "null", "Unknown", "unassigned", " "])
def test_words_for_no_label_are_none(value: str, tmp_path: Path) -> None:
    path = labelled(tmp_path, f"cell,type\n{CELLS[0]},{value}\n{CELLS[1]},B\n")
    assert read_counts(path).obs["type"].dropna().to_dict() == {CELLS[1]: "B"}
    kept = read_counts(path, ReadSettings(unlabelled=()))
    assert kept.obs["type"].notna().sum() == (1 if value == " " else 2)


def test_names_of_label_columns_that_files_cannot_hold_are_changed_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = labelled(tmp_path, f"cell,G2/M,_index,G2_M\n{CELLS[0]},a,b,c\n")
    read = read_counts(path)
    assert read.obs.iloc[0].to_dict() == {"G2_M": "a", "label_index": "b", "G2_M_": "c"}
    read.write_h5ad(tmp_path / "out.h5ad")
    assert "the label column 'G2/M' is called 'G2_M' from here on" in caplog.text
