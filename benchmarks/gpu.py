"""Training on a GPU: the Triton kernels, plain torch operations, the card's own rates, and the CPU beside it.

Simulated counts of a low rank, 6 % non-zero, made on the card. Everything in one process and in turns; rates are
those of the fastest epoch, end to end (order of the cells, Adam, held-out loss). Under 240 seconds on an H100.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from benchmarks import harness
from neumf_assets.core.neumf.gpu import gmf
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.fit import fit

GENES = 2000
CHUNK = 20_000
WAYS: dict[str, dict[str, Any]] = {"kernels": {"fused": "auto"}, "plain operations": {"fused": "off"}}


def requires() -> str | None:
    """Return why this machine cannot run the benchmark."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    usable, reason = gmf.available(torch.device("cuda"))
    return None if usable else reason


def simulated(cells: int, seed: int = 0) -> csr_matrix:
    """Return counts of rank 10, about 6 % of them not zero, cells x 2,000 genes."""
    made = torch.Generator("cuda").manual_seed(seed)
    genes = 0.6 * torch.randn(10, GENES, device="cuda", generator=made)
    base = torch.randn(GENES, device="cuda", generator=made) - 4.0
    parts = []
    for start in range(0, cells, CHUNK):
        own = torch.randn(min(CHUNK, cells - start), 10, device="cuda", generator=made)
        y = torch.poisson((own @ genes + base).clamp(max=5).exp(), generator=made)
        row, gene = y.nonzero(as_tuple=True)
        indptr = torch.cat([torch.zeros(1, device="cuda"), (y > 0).sum(1).cumsum(0)]).long()
        columns = (y[row, gene].cpu().numpy(), gene.int().cpu().numpy(), indptr.cpu().numpy())
        parts.append(csr_matrix(columns, shape=tuple(y.shape)))
    return vstack(parts, format="csr")


def trained(counts: csr_matrix, device: str, datasets: int = 1, **changes: Any) -> NeuMFModel:
    """Return the model of a short training without pretraining."""
    names = np.arange(max(counts.shape)).astype(np.str_)
    given = {"kind": "gmf", "gmf_size": 50, "epochs": 4, "pretrain": "none", "patience": None} | changes
    return fit(
        counts,
        NeuMFSettings(**given),
        gene_names=names[: counts.shape[1]],
        cell_names=names[: counts.shape[0]],
        dataset=np.arange(counts.shape[0]) * datasets // counts.shape[0],
        device=device,
    )


def rate(counts: csr_matrix, device: str, **changes: Any) -> dict[str, float]:
    """Return pairs per second of the fastest epoch, and the last epoch's loss."""
    history = trained(counts, device, **changes).history
    return {
        "pairs_per_second": harness.significant(max(float(row["pairs_per_second"]) for row in history)),
        "train_loss": harness.significant(float(history[-1]["train_loss"]), 5),
    }


def copy_rate() -> float:
    """Return the bytes per second of copying a gibibyte on the card, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return 2 * source.numel() / harness.seconds_per_call(copy, 0.5)


def main(quick: bool = False) -> dict[str, Any]:
    """Measure all cases in turns."""
    small, middle, large = (3_000, 20_000, 50_000) if quick else (3_000, 100_000, 1_000_000)
    rows: list[dict[str, Any]] = [
        {"case": "card", "way": "matrix product, bfloat16", "flops": _matrix(torch.bfloat16)},
        {"case": "card", "way": "copy", "bytes_per_second": harness.significant(copy_rate())},
    ]
    counts = simulated(small)
    cpu = partial(rate, counts, "cpu", epochs=3)
    rows.append({"case": f"GMF, {small:,} cells", "way": f"CPU, {harness.cores()} cores"} | cpu())
    for size in (small, middle):
        counts = simulated(size)
        for case, changes in {"GMF": {}, "NeuMF": {"kind": "neumf"}}.items():
            for way, how in WAYS.items():
                found = rate(counts, "cuda", **changes, **how)
                rows.append({"case": f"{case}, {size:,} cells", "way": way} | found)
                harness.say(rows[-1])
    counts = simulated(large)
    for way, how in WAYS.items():
        epochs = 8 if way == "kernels" else 2
        found = rate(counts, "cuda", datasets=2, gmf_size=20, epochs=epochs, **how)
        rows.append({"case": f"integrative GMF, k 20, {large:,} cells", "way": way} | found)
        harness.say(rows[-1])
    return {
        "title": "Training on a GPU",
        "rows": rows,
        "ratios": _ratios(rows),
        "repeats_bit_for_bit": _repeats(simulated(small)),
        "study_training_seconds": _study_seconds(simulated(14_000)),
        "deviation_from_float64": harness.significant(gmf._deviation(torch.device("cuda"))),
    }


def _matrix(dtype: torch.dtype) -> float:
    return harness.significant(harness.matrix_rate(dtype, "cuda", shapes=((8192, 8192, 8192),)))


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return how much faster the kernels are than plain operations, by case."""
    by_way = {(row["case"], row["way"]): row.get("pairs_per_second") for row in rows}
    ways = tuple(WAYS)
    return {
        f"{case}, {ways[0]} / {ways[1]}": harness.significant(by_way[case, ways[0]] / by_way[case, ways[1]])
        for case in dict.fromkeys(row["case"] for row in rows)
        if (case, ways[1]) in by_way
    }


def _repeats(counts: csr_matrix) -> bool:
    """Tell whether two trainings of NeuMF with its tower give the same parameters bit for bit."""
    first, second = (trained(counts, "cuda", kind="neumf", gmf_size=10) for _ in range(2))
    return all(torch.equal(first.tables[name], second.tables[name]) for name in first.tables)


def _study_seconds(counts: csr_matrix) -> float:
    """Return the seconds of the default integrative training on two datasets of 7,000 cells."""
    begin = time.perf_counter()
    trained(counts, "cuda", datasets=2, kind="gmf", gmf_size=None, epochs=80)
    return harness.significant(time.perf_counter() - begin)


if __name__ == "__main__":
    harness.script(main)
