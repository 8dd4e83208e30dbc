"""``neumf-assets notebook``: the original notebook's configuration on its slice of a file, beside ours."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from neumf_assets.commands.terminal import LiveProgress, make_console

_ROWS = {
    "constant": "mean of all entries",
    "gene_mean": "gene mean × size",
    "notebook": "model.preset: notebook",
    "default": "default settings",
}
_COLUMNS = {
    "mse": "squared error",
    "deviance": "deviance",
    "heldout_mse": "held-out sq. error",
    "heldout_deviance": "held-out deviance",
}


def run_notebook(file: str, seed: int = 0, console: Console | None = None) -> int:
    """Train the notebook's configuration and ours on the first 300 genes × 1,000 cells; print their errors.

    Every error is a mean over all entries of the slice, beside that of a constant.

    Raises
    ------
    BadInput
        If the file cannot be read.
    """
    from scipy.sparse import csr_matrix

    from neumf_assets.core.counts.readers import read_counts
    from neumf_assets.core.neumf.evaluation.notebook import NOTEBOOK_CELLS, NOTEBOOK_GENES, compare_notebook

    console = console or make_console()
    counts = csr_matrix(read_counts(file).X)[:NOTEBOOK_CELLS, :NOTEBOOK_GENES]
    with LiveProgress(console) as progress:
        found = compare_notebook(counts, seed=seed, progress=progress)
    zeros = counts.shape[0] * counts.shape[1] - counts.count_nonzero()
    console.print(
        f"{counts.shape[1]:,} genes × {counts.shape[0]:,} cells, {zeros:,} zeros; means over all entries, lower "
        "is better. Held out: a fifth of the molecules, drawn by chance.",
        highlight=False,
    )
    table = Table()
    table.add_column("prediction")
    for title in _COLUMNS.values():
        table.add_column(title, justify="right")
    for name, title in _ROWS.items():
        table.add_row(title, *(f"{found[name][key]:.4f}" for key in _COLUMNS))
    console.print(table)
    return 0
