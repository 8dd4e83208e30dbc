"""What is done from disk or in parts holds no more in memory when the cells double."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, multiprocessing, sys
from pathlib import Path
import anndata as ad
import numpy as np
import pandas as pd
import polars as pl
from scipy.sparse import csr_matrix
from neumf_assets.core import memory
from neumf_assets.core.cells.files.integrated import describe_integrated, write_integrated
from neumf_assets.core.cells.neighbours import Neighbours, cell_graph, merged_cells
from neumf_assets.core.counts.readers import parts
from neumf_assets.core.counts.readers.read import store_counts
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.counts.store import FILE, CountsWriter
from neumf_assets.core.counts.stored import SomeCells, StoredCounts
from neumf_assets.core.measure import measured

ENTRIES, GENES = 100, 400
genes = pd.DataFrame(index=[f"g{i}" for i in range(GENES)])

def drawn(cells):
    columns = (np.arange(ENTRIES * cells, dtype=np.int32) * 4 + np.arange(ENTRIES * cells) // ENTRIES % 4) % GENES
    pointers = np.arange(0, ENTRIES * cells + 1, ENTRIES)
    X = csr_matrix((np.ones(ENTRIES * cells, np.int32), columns, pointers), shape=(cells, GENES))
    X.sort_indices()
    return X

def make_integrated(cells, folder):
    with CountsWriter(folder / FILE) as writer:
        for start in range(0, cells, 1000):
            names = [f"c{i}" for i in range(start, start + 1000)]
            writer.add(ad.AnnData(drawn(1000), obs=pd.DataFrame(index=names), var=genes))

def integrated(cells, folder):
    with StoredCounts(folder) as counts:
        some = {"a": SomeCells(counts, np.arange(cells))}
        write_integrated(describe_integrated(some, {}), some, folder / "integrated.h5ad")

def make_market(cells, folder):
    head = f"%%MatrixMarket matrix coordinate integer general\\n{GENES} {cells} {ENTRIES * cells}\\n"
    with (folder / "matrix.mtx").open("wb") as file:
        file.write(head.encode())
        for start in range(0, cells, 1000):
            X = drawn(1000).tocoo()
            table = pl.DataFrame({"row": X.col + 1, "column": X.row + start + 1, "value": X.data})
            table.write_csv(file, include_header=False, separator=" ")
    (folder / "barcodes.tsv").write_text("".join(f"c{i}\\n" for i in range(cells)))
    (folder / "features.tsv").write_text("".join(f"g{i}\\n" for i in range(GENES)))

def market(cells, folder):
    store_counts(folder, folder / "out")

def make_text(cells, folder):
    names = [f"c{i}" for i in range(cells)]
    table = pl.DataFrame({"": [f"g{i}" for i in range(GENES)]}).hstack(pl.from_numpy(drawn(cells).toarray().T, names))
    table.write_csv(folder / "a.csv")

def text(cells, folder):
    store_counts(folder / "a.csv", folder / "out", ReadSettings(orientation="genes_by_cells"))

def make_graph(cells, folder):
    near = (np.arange(cells)[:, None] + np.r_[-10:0, 1:11]) % cells
    distances = np.tile(np.abs(np.r_[-10:0, 1:11]) / 100, (cells, 1)).astype(np.float32)
    np.savez(folder / "found.npz", near.astype(np.int32), distances)

def graph(cells, folder):
    found = Neighbours(*np.load(folder / "found.npz").values(), "cosine")
    cell_graph(found, None, merged_cells(found, 2000))

memory.budget = lambda: 1 << 20
parts.BLOCK_CELLS = 1024
forks = multiprocessing.get_context("fork")
peaks = forks.SimpleQueue()

def measure(work, cells, folder):
    with measured() as cost:
        work(cells, folder)
    peaks.put(cost.peak_mib)

def in_a_process_of_its_own(work, *given):
    # What an allocator keeps of other work, for as long as it likes, is no memory of this work.
    process = forks.Process(target=work, args=given)
    process.start()
    process.join()
    assert process.exitcode == 0

work, folder = sys.argv[1], Path(sys.argv[2])
for cells in map(int, sys.argv[3:]):
    (folder / str(cells)).mkdir()
    in_a_process_of_its_own(globals()["make_" + work], cells, folder / str(cells))
    in_a_process_of_its_own(measure, globals()[work], cells, folder / str(cells))
print(json.dumps([peaks.get() for _ in sys.argv[3:]]))
"""


@pytest.mark.parametrize(
    ("work", "bytes_per_cell"),
    [
        ("integrated", 100 * 16),  # counts and their logarithms, both with their columns
        ("market", 100 * 24),  # the entries, as read and as checked
        ("text", 400 * 8 + 100 * 12),  # the table as it is read, and its counts
        ("graph", 1500),  # the graph of the cells
    ],
)
def test_memory_does_not_grow_with_the_cells(tmp_path: Path, work: str, bytes_per_cell: int) -> None:
    sizes = (10_000, 20_000, 40_000)
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, work, str(tmp_path), *map(str, sizes)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    _, smaller, larger = json.loads(run.stdout.splitlines()[-1])
    in_memory = (sizes[2] - sizes[1]) * bytes_per_cell / 2**20
    assert larger - smaller < 0.5 * in_memory, (smaller, larger, in_memory)
