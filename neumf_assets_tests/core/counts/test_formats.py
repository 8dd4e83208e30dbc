"""Every format, written by independent means, comes back entry by entry and name by name."""

from __future__ import annotations

import gzip
import hashlib
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from neumf_assets.core.counts.readers import hdf5, read_counts
from neumf_assets.core.counts.readers.delimited import read_delimited
from neumf_assets.core.counts.readers.text import BLOCK, line_blocks
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets_tests.core.counts import files
from neumf_assets_tests.core.counts.files import FORMATS, SMALL, Case


def _plain(name: str) -> bool:
    """Not blank, and not in quotes as a whole: these are R's, and no part of the name."""
    return bool(name.strip()) and not (name[0] == name[-1] == '"')


NAMES = st.text("abyzABYZ0189._-,;\"' é→", min_size=1, max_size=8).filter(_plain)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    cells = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    genes = draw(st.lists(NAMES, min_size=1, max_size=7))
    entries = st.one_of(st.just(0), st.integers(0, 12), st.integers(0, 2**31 - 1))
    size = len(cells) * len(genes)
    counts = np.array(draw(st.lists(entries, min_size=size, max_size=size)))
    return Case(counts.reshape(len(cells), len(genes)), cells, genes)


def assert_same(adata, case: Case) -> None:
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.int32
    assert adata.X.has_canonical_format
    assert (adata.X.data != 0).all()
    np.testing.assert_array_equal(adata.X.toarray(), case.counts)
    assert adata.obs_names.tolist() == list(case.cells)
    assert adata.var["original_name"].tolist() == list(case.genes)
    assert adata.var_names.is_unique


@pytest.mark.parametrize("name", FORMATS)
def test_reads_the_same_counts_and_names(name: str, tmp_path: Path) -> None:
    writer, reading = FORMATS[name]
    assert_same(read_counts(writer(tmp_path, SMALL), reading), SMALL)


@pytest.fixture
def trusted_hdf5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the trial in a process of its own, for tests that read many sound files."""
    monkeypatch.setattr(hdf5, "trouble", lambda path: "")


@pytest.mark.usefixtures("trusted_hdf5")
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_round_trip_of_any_counts(name: str, case: Case) -> None:
    if "h5ad dense" in name or "loom" in name:  # float32 in the file
        case = Case(np.minimum(case.counts, 2**24), case.cells, case.genes)
    writer, reading = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder:
        assert_same(read_counts(writer(Path(folder), case), reading), case)


def test_provenance_tells_where_the_counts_come_from(tmp_path: Path) -> None:
    path = files.csv_genes_by_cells(tmp_path, SMALL)
    provenance = read_counts(path).uns["provenance"]
    assert provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance["source"] == str(path)
    assert provenance["bytes"] == path.stat().st_size
    assert (provenance["cells"], provenance["genes"]) == (4, 5)
    assert provenance["gene_names_made_unique"] == 1
    assert provenance["orientation"] == "genes_by_cells"
    assert all(isinstance(value, str | int | float) for value in provenance.values())


def test_digest_of_a_folder_is_that_of_its_sha256sum_listing(tmp_path: Path) -> None:
    folder = files.tenx_v3_folder(tmp_path, SMALL)
    listing = "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir())
    )
    expected = hashlib.sha256(listing.encode()).hexdigest()
    assert read_counts(folder).uns["provenance"]["sha256"] == expected


def test_gene_names_are_made_unique_and_kept(tmp_path: Path) -> None:
    adata = read_counts(files.csv_genes_by_cells(tmp_path, SMALL))
    assert adata.var_names.tolist() == ["ACTB", "RP11.206L10.2", "Y_RNA", "Y_RNA-1", "MT-CO1"]
    assert adata.var["original_name"].tolist() == files.GENES


@pytest.mark.parametrize("name", ["10x v2 folder", "10x v3 folder", "10x HDF5 v2", "10x HDF5 v3"])
def test_accessions_are_kept(name: str, tmp_path: Path) -> None:
    writer, reading = FORMATS[name]
    assert read_counts(writer(tmp_path, SMALL), reading).var["gene_id"].iloc[2] == "ENSG00000000002"


def test_antibodies_are_left_out(tmp_path: Path) -> None:
    path = files.tenx_h5_v3(tmp_path, SMALL)
    with h5py.File(path, "r+") as file:
        file["matrix/features/feature_type"][1] = b"Antibody Captur"
    adata = read_counts(path)
    assert adata.var["original_name"].tolist() == [*files.GENES[:1], *files.GENES[2:]]
    np.testing.assert_array_equal(adata.X.toarray(), files.COUNTS[:, [0, 2, 3, 4]])
    assert adata.uns["provenance"]["features_left_out"] == 1


def test_genomes_of_one_v2_file_are_joined(tmp_path: Path) -> None:
    path = files.tenx_h5_v2(tmp_path, SMALL)
    with h5py.File(path, "r+") as file:
        file.copy("GRCh38", "mm10")
    adata = read_counts(path)
    np.testing.assert_array_equal(adata.X.toarray(), np.hstack([files.COUNTS, files.COUNTS]))


def test_repeated_entries_of_a_sparse_file_add_up(tmp_path: Path) -> None:
    folder = files.starsolo_folder(tmp_path, SMALL)
    (folder / "matrix.mtx").write_text(
        "%%MatrixMarket matrix coordinate integer general\n%\n5 4 3\n1 1 2\n1 1 3\n5 4 0\n"
    )
    adata = read_counts(folder)
    assert adata.X.nnz == 1
    assert adata.X[0, 0] == 5


def test_repeated_entries_may_outgrow_the_type_in_the_file(tmp_path: Path) -> None:
    path = files.tenx_h5_v3(tmp_path, SMALL)
    with h5py.File(path, "r+") as file:
        for name, values in {"data": [100, 100, 1], "indices": [2, 2, 0], "indptr": [0, 2, 2, 2, 3]}.items():
            del file["matrix"][name]
            file["matrix"][name] = np.array(values, np.int8)
    adata = read_counts(path)
    assert adata.X[0, 2] == 200
    assert adata.X.nnz == 2


def test_cell_ranger_output_is_found_inside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run" / "outs").mkdir(parents=True)
    files.tenx_v3_folder(tmp_path, SMALL).rename(tmp_path / "run" / "outs" / "filtered_feature_bc_matrix")
    assert_same(read_counts(tmp_path / "run"), SMALL)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("1e+05", 100000), ("7.0", 7), (" 3", 3), ('"4"', 4), ("0.000", 0), ("00012", 12), ("2.", 2)],
)
def test_numbers_as_other_programs_write_them(entry: str, value: int, tmp_path: Path) -> None:
    path = tmp_path / "ctrl.csv"
    path.write_text(f",c1,c2\ng1,0,{entry}\ng2,{entry},1\n")
    adata = read_counts(path, files.BY_GENE)
    np.testing.assert_array_equal(adata.X.toarray(), [[0, value], [value, 1]])


@settings(max_examples=200, deadline=None)
@given(
    numbers=st.lists(
        st.one_of(
            st.floats(0, 1e12, allow_subnormal=False),
            st.decimals(0, 10**9, places=4).map(float),
            st.integers(0, 2**50),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_decimals_are_read_to_the_nearest_double(numbers: list[float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_text(
            "," + ",".join(f"c{i}" for i in range(len(numbers))) + "\ng," + ",".join(map(repr, numbers))
        )
        raw = read_delimited(path, "x", "genes_by_cells", None)
        assert raw.X.toarray().ravel().tolist() == [float(number) for number in numbers]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_blocks_hold_whole_lines_and_lose_nothing(line_end: bytes, tmp_path: Path) -> None:
    lines = [b"%d,%s" % (i, b"x" * (i % 997)) for i in range(6000)]
    for ending in (b"", line_end, line_end * 3):
        (tmp_path / "t.csv").write_bytes(line_end.join(lines) + ending)
        blocks = list(line_blocks(tmp_path / "t.csv", "t.csv"))
        assert len(blocks) > 2
        assert all(block.endswith(b"\n") for block in blocks)
        assert b"".join(blocks).replace(b"\r\n", b"\n") == b"\n".join(lines) + b"\n"


def test_lines_longer_than_a_block(tmp_path: Path) -> None:
    width = BLOCK // 3
    rng = np.random.default_rng(0)
    counts = sparse.random(
        3, width, density=0.01, format="csr", random_state=rng, data_rvs=lambda n: np.full(n, 7)
    )
    path = tmp_path / "ctrl.csv.gz"
    header = "," + ",".join(f"c{i}" for i in range(width))
    rows = [f"g{i}," + ",".join(map(str, counts[i].toarray().ravel().astype(int).tolist())) for i in range(3)]
    path.write_bytes(gzip.compress("\n".join([header, *rows]).encode(), 1))
    adata = read_counts(path, files.BY_GENE)
    assert adata.shape == (width, 3)
    assert abs(adata.X - counts.T.astype(int)).nnz == 0


def test_wide_header_and_spaces_in_names(tmp_path: Path) -> None:
    cells = [f"sample number {i}" for i in range(20_000)]
    case = Case(np.arange(40_000).reshape(-1, 2) % 5, cells, ["ACTB", "heat shock, 90"])
    (tmp_path / "ctrl.csv").write_bytes(files.text_bytes(case, True))
    assert_same(read_counts(tmp_path / "ctrl.csv", files.BY_GENE), case)


def test_joined_gzip_members_are_read_on(tmp_path: Path) -> None:
    content = files.text_bytes(SMALL, True)
    (tmp_path / "ctrl.csv.gz").write_bytes(gzip.compress(content[:50]) + gzip.compress(content[50:]))
    assert_same(read_counts(tmp_path / "ctrl.csv.gz"), SMALL)


def test_quick_run_draws_the_same_part_for_the_same_seed(tmp_path: Path) -> None:
    path = files.csv_genes_by_cells(tmp_path, SMALL)
    draws = [
        read_counts(path, ReadSettings(max_cells=2, max_genes=3, seed=seed)) for seed in (1, 1, 2, 3, 4, 5)
    ]
    assert all(draw.shape == (2, 3) for draw in draws)
    assert draws[0].obs_names.equals(draws[1].obs_names)
    assert draws[0].var_names.equals(draws[1].var_names)
    assert len({(*draw.obs_names, *draw.var_names) for draw in draws}) > 1
    whole = read_counts(path)
    np.testing.assert_array_equal(
        draws[0].X.toarray(), whole[draws[0].obs_names, draws[0].var_names].X.toarray()
    )


def test_normalised_values_are_read_when_the_study_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ctrl.csv"
    path.write_text(",c1,c2\ng1,0.5,1\ng2,2.25,0\n")
    adata = read_counts(path, ReadSettings(allow_normalised=True, orientation="genes_by_cells"))
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), [[0.5, 2.25], [1, 0]])
