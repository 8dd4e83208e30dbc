"""The sample sheet: typed columns, errors with line and column, names and places of datasets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neumf_assets.cli import main
from neumf_assets.core.counts.discover import list_datasets
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.readers.read import store_counts
from neumf_assets.core.counts.samples import read_samples
from neumf_assets.core.counts.sheet import find_sheet, load_samples, with_samples
from neumf_assets.core.counts.store import load_counts
from neumf_assets.core.errors import BadInput

COUNTS = ",c1,c2\nACTB,1,2\nCD3D,0,3\nLYZ,4,1\n"


def test_columns_are_typed_and_missing_values_are_left_out() -> None:
    text = "sample,age,rin,donor,smoker,batch,condition\nA,34,7.5,007,yes,1,ctrl\nB,,8,012,no,NA,\n"
    first, second = read_samples(text.encode(), "samples.csv")
    assert first.columns == {
        "age": 34,
        "rin": 7.5,
        "donor": "007",
        "smoker": True,
        "batch": 1,
        "condition": "ctrl",
    }
    assert isinstance(first.columns["age"], int), "whole numbers stay whole"
    assert second.columns == {"rin": 8.0, "donor": "012", "smoker": False}


@pytest.mark.parametrize(
    "content",
    [
        b"sample;condition\nA;ctrl\n",
        "sample\tcondition\r\nA\tctrl\r\n".encode("utf-16"),
        "\ufeffSample,condition\n\nA,ctrl\n\n".encode(),
        b'sample,condition\nA,"ctrl"\n',
    ],
    ids=["semicolons", "UTF-16 with tabs", "BOM and empty lines", "quotes"],
)
def test_a_sheet_as_programmes_save_it(content: bytes) -> None:
    (sample,) = read_samples(content, "samples.csv")
    assert (sample.name, dict(sample.columns)) == ("A", {"condition": "ctrl"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,condition\nA,x\n", "line 1: there is no column 'sample' (there are: 'name', 'condition')"),
        ("", "line 1: there is no column 'sample'"),
        ("sample\n", "lists no sample"),
        ("sample,x\nA,1\n,2\n", "line 3, column 'sample': the sample has no name"),
        ("sample,x\nA,1\nA,2\n", "line 3, column 'sample': 'A' occurs twice (before: line 2)"),
        ("sample,x\nA,1,2\n", "line 2: has 3 fields, the header 2"),
        ("sample,x,x\nA,1,2\n", "line 1: column 3 is there twice"),
        ("sample,dataset\nA,1\n", "line 1: a column may not be called 'dataset'"),
        ("sample,sha256\nA,abc\n", "line 2, column 'sha256': 'abc' is no SHA-256"),
        ("sample,min_genes\nA,many\n", "line 2, column 'min_genes': 'many' is not a whole number from 1 up"),
        ("sample,max_mito\nA,20\n", "line 2, column 'max_mito': '20' is not a number from 0 to 1"),
    ],
)
def test_errors_name_line_and_column(text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_samples(text.encode(), "samples.csv")
    assert said in str(caught.value)
    assert str(caught.value).startswith("samples.csv")


def inbox(folder: Path, sheet: str) -> Path:
    (folder / "in" / "deep").mkdir(parents=True)
    (folder / "elsewhere").mkdir()
    for place in ("in/A.csv", "in/odd name.csv", "in/deep/x.csv", "elsewhere/far.csv"):
        (folder / place).write_text(COUNTS)
    (folder / "in" / "samples.csv").write_text(sheet)
    return folder / "in"


def applied(folder: Path):
    sheet = find_sheet(str(folder), None)
    assert sheet is not None
    return with_samples(list_datasets(folder), load_samples(sheet), sheet)


def test_samples_are_found_by_name_and_by_path_wherever_they_lie(tmp_path: Path) -> None:
    root = inbox(
        tmp_path,
        "sample,path,donor\nA,,1\nB,odd name.csv,2\nC,deep/x.csv,3\nD,../elsewhere/far.csv,4\n"
        f"E,{(tmp_path / 'elsewhere' / 'far.csv').as_uri()},5\n",
    )
    found = applied(root)
    assert [item.name for item in found.datasets] == ["A", "B", "C", "D", "E"]
    assert [item.sample.columns["donor"] for item in found.datasets if item.sample] == [1, 2, 3, 4, 5]
    assert not found.refused, "the folder of C is none of its own"
    for item in found.datasets:
        assert read_counts(item.path, name=item.name).shape == (2, 3)


def test_what_the_sheet_does_not_list_and_what_it_lists_in_vain_is_refused_by_name(tmp_path: Path) -> None:
    root = inbox(tmp_path, "sample,path\nA,\nghost,\nlost,nowhere/y.csv\n")
    (root / "extra.csv").write_text(COUNTS)
    found = applied(root)
    assert [item.name for item in found.datasets] == ["A"]
    said = " ".join(map(str, found.refused))
    assert "line 3: the inbox holds no dataset 'ghost'" in said
    assert "y.csv: cannot be found" in said
    assert "extra.csv: is not listed in the sample sheet samples.csv" in said


def test_the_identity_follows_what_the_sheet_says(tmp_path: Path) -> None:
    root = inbox(tmp_path, "sample,donor\nA,1\n")
    before = applied(root).datasets[0].identity
    assert applied(root).datasets[0].identity == before
    (root / "samples.csv").write_text("sample,donor\nA,2\n")
    assert applied(root).datasets[0].identity != before


def test_a_sheet_is_no_dataset(tmp_path: Path) -> None:
    root = inbox(tmp_path, "sample\nA\n")
    assert "samples" not in {item.name for item in list_datasets(root).datasets}


@pytest.mark.parametrize("budget", [2**40, 1], ids=["at once", "in parts"])
def test_columns_are_carried_to_the_cells(
    tmp_path: Path, budget: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: budget)
    (tmp_path / "A.csv").write_text(COUNTS)
    (tmp_path / "A.labels.csv").write_text("cell,donor\nc1,x\nc2,y\n")
    described = {"donor": "D7", "age": 34, "rin": 7.5, "smoker": True}
    store_counts(tmp_path / "A.csv", tmp_path / "stored", described=described)
    obs = load_counts(tmp_path / "stored").obs
    assert obs["donor"].tolist() == ["D7", "D7"] and "'donor' is taken" in caplog.text
    assert obs["age"].tolist() == [34, 34] and obs["rin"].dtype.kind == "f"
    assert obs["smoker"].tolist() == ["True", "True"]


def test_the_command_writes_a_first_sheet_that_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ctrl.csv", "stim.csv"):
        (tmp_path / name).write_text(COUNTS)
    assert main(["samples", str(tmp_path)]) == 0
    text = (tmp_path / "samples.csv").read_text()
    assert text.startswith("sample,path,donor,condition,expected_cells\nctrl,ctrl.csv,,,\n")
    found = applied(tmp_path)
    assert [item.name for item in found.datasets] == ["ctrl", "stim"] and not found.refused
    assert main(["samples", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_sheet_in_an_object_store_is_found(tmp_path: Path) -> None:
    import fsspec

    root = "memory://sheet-test"
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/sheet-test/A.csv", COUNTS.encode())
    filesystem.pipe_file("/sheet-test/samples.csv", b"sample,path,donor\nX,A.csv,1\n")
    try:
        sheet = find_sheet(root, None)
        assert sheet == f"{root}/samples.csv"
        found = with_samples(list_datasets(root), load_samples(sheet), sheet)
        assert [item.name for item in found.datasets] == ["X"] and not found.refused
        assert read_counts(found.datasets[0].path, name="X").shape == (2, 3)
    finally:
        filesystem.rm("/sheet-test", recursive=True)


def test_a_store_that_does_not_answer_is_not_taken_for_one_without_a_sheet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import fsspec

    def silent(self: object, path: str, **_: object) -> None:
        raise TimeoutError("no answer")

    assert find_sheet("memory://no-sheet-here", None) is None
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", silent)
    with pytest.raises(BadInput, match=r"cannot be looked for \(no answer\)"):
        find_sheet("memory://no-sheet-here", None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_sheet_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_text("sample\nA\n")
    (tmp_path / "samples.csv").chmod(0)
    with pytest.raises(BadInput, match="cannot be read"):
        load_samples(str(tmp_path / "samples.csv"))
