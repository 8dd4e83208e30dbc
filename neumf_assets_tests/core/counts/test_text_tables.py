"""Tables of text as programmes and people really write them."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neumf_assets.core import memory
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.readers.read import store_counts
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.errors import BadInput

CELLS = [f"{a}{b}{c}AAACCCTTTGGG-1" for a in "ACG" for b in "AC" for c in "AG"]
GENES = ["ACTB", "B2M", "CD3D", "GAPDH", "MT-CO1", "LYZ", "VIM"]
COUNTS = np.random.default_rng(0).poisson(1.0, (len(CELLS), len(GENES)))


def lines(separator: str = ",") -> list[str]:
    """The table, genes × cells, line by line."""
    rows = [[gene, *map(str, column)] for gene, column in zip(GENES, COUNTS.T, strict=True)]
    return [separator.join(row) for row in [["", *CELLS], *rows]]


def assert_read(path: Path) -> None:
    read = read_counts(path)
    assert list(read.obs_names) == CELLS
    assert list(read.var_names) == GENES
    np.testing.assert_array_equal(read.X.toarray(), COUNTS)


def test_utf_16_old_line_ends_and_marks_are_read(tmp_path: Path) -> None:
    text = "\n".join(lines()) + "\n"
    for name, content in (
        ("a.csv", text.encode("utf-16")),
        ("b.csv", text.encode("utf-16-be").join([b"\xfe\xff", b""])),
        ("c.csv", text.replace("\n", "\r").encode()),
        ("d.csv", text.encode("utf-8-sig")),
        ("e.csv.gz", gzip.compress(text.replace("\n", "\r").encode())),
        ("f.csv", text.replace("\n", "\r\n").encode()),
    ):
        (tmp_path / name).write_bytes(content)
        assert_read(tmp_path / name)


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("above", ["## made by a pipeline\n", '# Program:x v2; Command:"a" "b"\n#second\n'])
def test_remarks_above_the_header_are_read_past(tmp_path: Path, separator: str, above: str) -> None:
    (tmp_path / "a.tsv").write_text(above + "\n".join(lines(separator)) + "\n")
    assert_read(tmp_path / "a.tsv")


def test_a_header_may_begin_with_a_sign(tmp_path: Path) -> None:
    table = lines()
    (tmp_path / "a.csv").write_text("\n".join(["#gene" + table[0], *table[1:]]) + "\n")
    assert_read(tmp_path / "a.csv")


def test_lines_are_counted_with_the_remarks(tmp_path: Path) -> None:
    table = lines()
    table[3] = table[3].rpartition(",")[0] + ",x"
    (tmp_path / "a.csv").write_text("##one\n##two\n" + "\n".join(table) + "\n")
    with pytest.raises(BadInput, match="line 6, column 13"):
        read_counts(tmp_path / "a.csv")


@pytest.mark.parametrize("where", ["everywhere", "rows", "header"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_separator_at_the_end_of_lines_is_no_column(tmp_path: Path, where: str, ending: str) -> None:
    table = lines("\t")
    ends = [where != "rows", *[where != "header"] * len(GENES)]
    text = ending.join(line + "\t" * end for line, end in zip(table, ends, strict=True)) + ending
    (tmp_path / "a.tsv").write_bytes(text.encode())
    assert_read(tmp_path / "a.tsv")


def test_a_line_with_something_behind_the_last_separator_is_refused(tmp_path: Path) -> None:
    table = [line + "\t" for line in lines("\t")]
    table[4] += "7"
    (tmp_path / "a.tsv").write_text("\n".join(table) + "\n")
    with pytest.raises(BadInput, match="line 5: has 14 fields, but the first line leaves the last one empty"):
        read_counts(tmp_path / "a.tsv")


def test_a_missing_last_count_is_still_refused(tmp_path: Path) -> None:
    table = lines("\t")
    table[1] = table[1].rpartition("\t")[0] + "\t"
    (tmp_path / "a.tsv").write_text("\n".join(table) + "\n")
    with pytest.raises(BadInput, match="the entry is empty"):
        read_counts(tmp_path / "a.tsv")


@pytest.mark.parametrize("budget", [2**40, 100], ids=["at once", "in parts"])
def test_columns_that_hold_no_counts_are_no_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, budget: int
) -> None:
    monkeypatch.setattr(memory, "budget", lambda: budget)
    frame = pd.DataFrame(COUNTS.T, index=GENES, columns=CELLS)
    frame.insert(0, "Chr", ["chr1;chr1", *["chrX"] * 6])
    frame.insert(1, "Start", range(1, 8))
    frame.insert(2, "Length", 900)
    frame["gene_biotype"] = 'protein coding, "so"'
    frame.to_csv(tmp_path / "a.tsv", sep="\t", index_label="Geneid")
    store_counts(tmp_path / "a.tsv", tmp_path / "stored")
    read = load_counts(tmp_path / "stored")
    assert list(read.obs_names) == CELLS
    np.testing.assert_array_equal(read.X.toarray(), COUNTS)
    assert "hold no counts: Chr, Start, Length, gene_biotype" in caplog.text


def test_quality_columns_beside_genes_are_no_genes(tmp_path: Path) -> None:
    frame = pd.DataFrame(COUNTS, index=CELLS, columns=GENES)
    frame.insert(0, "n_genes", 5)
    frame.insert(3, "total_counts", 99)
    frame.to_csv(tmp_path / "a.csv")
    assert_read(tmp_path / "a.csv")


def test_an_index_that_pandas_wrote_twice_is_no_cell(tmp_path: Path) -> None:
    frame = pd.DataFrame(COUNTS.T, columns=CELLS)
    frame.insert(0, "gene", GENES)
    frame.insert(1, "Unnamed: 0", range(len(GENES)))
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert_read(tmp_path / "a.csv")


@pytest.mark.parametrize("columns", [("gene", "cell", "count"), ("barcode", "gene_id", "umis")])
def test_a_long_table_is_read(tmp_path: Path, columns: tuple[str, str, str]) -> None:
    cells, genes = np.nonzero(COUNTS)
    values = {"gene": np.array(GENES)[genes], "cell": np.array(CELLS)[cells], "count": COUNTS[cells, genes]}
    kinds = ("gene", "cell", "count") if columns[0] == "gene" else ("cell", "gene", "count")
    frame = pd.DataFrame({name: values[kind] for name, kind in zip(columns, kinds, strict=True)})
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "a.tsv.gz", sep="\t", index=False)
    read = read_counts(tmp_path / "a.tsv.gz")
    seen = COUNTS[:, COUNTS.any(axis=0)]
    ordered = read[CELLS, [gene for gene, any_ in zip(GENES, COUNTS.any(axis=0), strict=True) if any_]]
    np.testing.assert_array_equal(ordered.X.toarray(), seen)


def test_a_long_table_with_a_word_for_a_count_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("gene\tcell\tcount\nACTB\tc1\t3\nB2M\tc1\tmany\n")
    with pytest.raises(BadInput, match=r"line 3, column 'count': the entry 'many' is no number"):
        read_counts(tmp_path / "a.tsv")


def test_a_guess_at_the_orientation_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame(np.ones((3, 9), int), index=list("abc"), columns=[f"x{i}" for i in range(9)])
    frame.to_csv(tmp_path / "a.csv")
    read_counts(tmp_path / "a.csv")
    assert "which way round the table lies is a guess" in caplog.text
    assert "set orientation: genes_by_cells" in caplog.text
    caplog.clear()
    pd.DataFrame(COUNTS.T, index=GENES, columns=CELLS).to_csv(tmp_path / "b.csv")
    read_counts(tmp_path / "b.csv")
    assert "guess" not in caplog.text


def test_an_archive_under_the_name_of_a_table_is_called_so(tmp_path: Path) -> None:
    content = "\n".join(lines()).encode()
    with tarfile.open(tmp_path / "a.csv.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("a.csv")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(BadInput, match=r"is a tar archive, not text\. Unpack it"):
        read_counts(tmp_path / "a.csv.gz")
    (tmp_path / "b.csv").write_bytes(bz2.compress(content))
    with pytest.raises(BadInput, match="compressed with bzip2"):
        read_counts(tmp_path / "b.csv")


def test_what_is_left_out_is_said_as_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame(COUNTS.T, index=GENES, columns=CELLS)
    frame.insert(0, "Length", 900)
    frame.to_csv(tmp_path / "a.csv")
    read_counts(tmp_path / "a.csv")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_last_line_without_an_end_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "a.csv").write_text("\n".join(lines()) + "\n")
    assert_read(tmp_path / "a.csv")
    assert "the last line has no end" not in caplog.text
    (tmp_path / "b.csv").write_text("\n".join(lines()))
    assert_read(tmp_path / "b.csv")
    assert "the last line has no end; if the file was cut short there" in caplog.text


@pytest.mark.parametrize("times", [1, 2, 3])
def test_text_that_was_zipped_again_is_read(times: int, tmp_path: Path) -> None:
    content = b",c1,c2\nACTB,1,2\nCD3D,0,3\nLYZ,4,1\n"
    for _ in range(times):
        content = gzip.compress(content)
    (tmp_path / "a.csv.gz").write_bytes(content)
    np.testing.assert_array_equal(read_counts(tmp_path / "a.csv.gz").X.toarray(), [[1, 0, 4], [2, 3, 1]])
