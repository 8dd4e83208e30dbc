"""The original notebook's training loop: batches of 20 pairs, one embedding lookup for each pair.

Our own minimal renderings of the same network (four embeddings of 50, tower 64-32-16-8 with batch
normalisation and dropout, squared error, Adam) in PyTorch, and as a TensorFlow 1 graph with a feed dictionary
where ``tensorflow-cpu`` 2.15.1 is installed, in this environment or in the one whose Python the environment
variable ``NEUMF_TENSORFLOW_PYTHON`` names.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import harness

CELLS, GENES, BATCH = 1000, 300, 20
TOWER = (64, 32, 16, 8)
SIZE = 50


class NotebookNetwork(nn.Module):
    """The notebook's NeuMF over single pairs."""

    def __init__(self, cells: int, genes: int, plain: bool = False) -> None:
        super().__init__()
        tables = [nn.Embedding(n, SIZE) for n in (cells, genes, cells, genes)]
        for table in tables:
            nn.init.uniform_(table.weight)
        self.tables = nn.ModuleList(tables)
        layers: list[nn.Module] = []
        for size_in, size_out in zip((2 * SIZE, *TOWER), TOWER, strict=False):
            extra = () if plain else (nn.BatchNorm1d(size_out), nn.Dropout(0.2))
            layers += [nn.Linear(size_in, size_out), nn.ReLU(), *extra]
        self.tower = nn.Sequential(*layers)
        self.out = nn.Linear(SIZE + TOWER[-1], 1)

    def forward(self, cell: Tensor, gene: Tensor) -> Tensor:
        """Return the prediction for each pair."""
        gmf_cell, gmf_gene, mlp_cell, mlp_gene = self.tables
        hidden = self.tower(torch.cat([mlp_cell(cell), mlp_gene(gene)], dim=1))
        return self.out(torch.cat([gmf_cell(cell) * gmf_gene(gene), hidden], dim=1))[:, 0]


def pairwise_rate(
    seconds: float, batch: int, cells: int = CELLS, genes: int = GENES, plain: bool = False
) -> float:
    """Return the pairs per second of pairwise training with Adam.

    Parameters
    ----------
    seconds
        How long to train, after ten steps to warm up.
    batch
        Pairs in a batch.
    cells, genes
        Size of the matrix.
    plain
        Without batch normalisation and dropout.
    """
    torch.manual_seed(0)
    network = NotebookNetwork(cells, genes, plain)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    cell, gene = torch.randint(cells, (64, batch)), torch.randint(genes, (64, batch))
    count = torch.rand(64, batch).lt(0.05).float()

    def step(i: int) -> None:
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(network(cell[i % 64], gene[i % 64]), count[i % 64])
        loss.backward()
        optimiser.step()

    warm_up = 10 if batch < 1000 else 2
    for i in range(warm_up):
        step(i)
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        step(steps)
        steps += 1
    return steps * batch / (time.perf_counter() - begin)


def best_rate(
    seconds: float, batch: int, cells: int = CELLS, genes: int = GENES, plain: bool = False
) -> float:
    """Return the better of :func:`pairwise_rate` with one thread and with all."""
    threads = torch.get_num_threads()
    rates = []
    for used in {1, threads}:
        torch.set_num_threads(used)
        rates.append(pairwise_rate(seconds / 2, batch, cells, genes, plain))
    torch.set_num_threads(threads)
    return max(rates)


def tensorflow_rate(seconds: float) -> tuple[float | None, str]:
    """Return pairs per second of the TensorFlow 1 loop and its version, or ``None`` and why there is none."""
    python = harness.interpreter_with("tensorflow", "NEUMF_TENSORFLOW_PYTHON")
    if python is None:
        return (
            None,
            "tensorflow-cpu==2.15.1 is not installed (NEUMF_TENSORFLOW_PYTHON can name a Python with it)",
        )
    sizes = {"cells": CELLS, "genes": GENES, "batch": BATCH, "tower": TOWER, "size": SIZE}
    found = harness.run_peer(python, "_tensorflow_loop.py", {"seconds": seconds, **sizes})
    return found["pairs_per_second"], found["version"]


def measure(seconds: float) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return rows of the loop in PyTorch and TensorFlow, and what was skipped."""
    rows: list[dict[str, Any]] = [
        {
            "method": f"notebook's loop, PyTorch, batches of {BATCH}",
            "pairs_per_second": harness.significant(best_rate(seconds, BATCH)),
        }
    ]
    rate, told = tensorflow_rate(seconds)
    if rate is None:
        return rows, {"notebook's loop, TensorFlow": told}
    method = f"notebook's loop, TensorFlow {told}, batches of {BATCH}"
    return [*rows, {"method": method, "pairs_per_second": harness.significant(rate)}], {}


def main(quick: bool = False) -> dict[str, Any]:
    rows, skipped = measure(2.0 if quick else 10.0)
    return {
        "title": f"the notebook's loop, {CELLS:,} cells x {GENES} genes",
        "rows": rows,
        "skipped": skipped,
        "notes": ["Random pairs and counts: the rate does not depend on them."],
    }


if __name__ == "__main__":
    harness.script(main)
