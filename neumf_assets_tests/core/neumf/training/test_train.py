"""The trainer: what it learns, that it repeats, survives a kill, and stays within its block's memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.sparse import csr_matrix

from neumf_assets.assets.model import tower_figures
from neumf_assets.core.errors import BadSettings
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.batches import Step
from neumf_assets.core.neumf.training.preparation import prepare
from neumf_assets.core.neumf.training.stages import initial_state
from neumf_assets.core.neumf.training.step import Stepper
from neumf_assets_tests.core.neumf.problems import changed, low_rank, train


def same_tables(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["gmf", "neumf"])
def test_true_means_are_recovered(kind: str) -> None:
    counts, means, _ = low_rank(cells=300, genes=80)
    model = train(counts, changed(kind=kind, epochs=40, pretrain_epochs=40, weight_decay=5.0))
    factors = np.asarray(counts.sum(axis=1)).ravel()
    gene_mean = np.outer(factors / factors.sum(), np.asarray(counts.sum(axis=0)).ravel())

    def error(predicted: np.ndarray) -> float:
        return float(np.abs(np.log(predicted) - np.log(means)).mean())

    assert error(model.predict()) < 0.5 * error(gene_mean)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "mlp"},
        {"objective": "nb"},
        {"objective": "nb", "dispersion": "shared"},
        {"objective": "mse", "link": "identity"},
        {"objective": "bce"},
        {"objective": "bpr", "pairs": "sampled"},
        {"link": "softplus"},
        {"pairs": "sampled"},
        {"pretrain": "both"},
        {"pretrain": "none", "dropout": 0.2, "batch_norm": True},
        {"block_genes": 13},
        {"gradient_clip": 0.01, "schedule": "linear"},
        {"precision": "bfloat16", "fused": "off"},
        {"final_rate": 0.5, "beta1": 0.5, "beta2": 0.9, "epsilon": 0.1, "initial_scale": 0.3},
    ],
    ids=str,
)
def test_every_configuration_learns_and_repeats_bit_for_bit(changes: dict[str, object]) -> None:
    counts, _, _ = low_rank()
    settings = changed(epochs=10, fusion_epochs=8, **changes)
    first, second = train(counts, settings), train(counts, settings)
    assert same_tables(first.tables, second.tables)
    stage = [row for row in first.history if row["stage"] == settings.kind]
    assert stage[-1]["train_loss"] < first.history[0]["train_loss"] or settings.pretrain == "both"
    assert np.isfinite(first.predict()).all()
    assert not same_tables(train(counts, settings.model_copy(update={"seed": 1})).tables, first.tables)


@pytest.mark.parametrize("fused", ["auto", "off"])
def test_a_tower_that_gains_nothing_changes_nothing(fused: str) -> None:
    """Counts of a product, which the GMF branch knows already: a tower that moves fast only does harm."""
    counts, _, _ = low_rank(cells=200, genes=60)
    known: dict[str, Any] = {"epochs": 60, "pretrain_epochs": 60, "weight_decay": 5.0, "fused": fused}
    known |= {"validation_share": 0.2, "pretrained_rate": 0.0, "tower_learning_rate": 0.5}
    model = train(counts, changed(fusion_epochs=2, **known))
    alone = train(counts, changed(kind="gmf", **known))
    np.testing.assert_allclose(model.predict(), alone.predict(), rtol=1e-5)
    assert [row["stage"] for row in model.history[-2:]] == ["neumf", "neumf"]
    assert tower_figures(model.history)["tower_gain"] == pytest.approx(0, abs=1e-6)


def test_a_tower_that_gains_is_kept() -> None:
    """What is no product of four dimensions: ten groups of cells and of genes that find each other."""
    rng = np.random.default_rng(0)
    mean = np.full((400, 100), 0.2)
    for group in range(10):
        mean[group * 40 : group * 40 + 40, group * 10 : group * 10 + 10] = 8.0
    counts = csr_matrix(rng.poisson(mean).astype(np.int32))
    known: dict[str, Any] = {"gmf_size": 1, "mlp_size": 16, "tower": (32, 16), "tower_weight_decay": 0.1}
    known |= {"validation_share": 0.2, "pretrain_epochs": 10, "tower_learning_rate": 0.01}
    model = train(counts, changed(fusion_epochs=40, **known))
    found = tower_figures(model.history)
    assert found["tower_gain"] > 0.05 and found["tower_seconds"] > 0
    validation = [float(row["validation_loss"]) for row in model.history]
    assert min(validation[10:]) < min(validation[:10])


def test_fused_and_plain_training_agree() -> None:
    counts, _, _ = low_rank()
    settings = changed(pretrain="none", precision="float32", epochs=4)
    fused = train(counts, settings)
    plain = train(counts, settings.model_copy(update={"fused": "off"}))
    losses = [[row["train_loss"] for row in model.history] for model in (fused, plain)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    np.testing.assert_allclose(fused.predict(), plain.predict(), rtol=0.02)


def test_training_loss_is_that_of_the_entries_not_held_out() -> None:
    counts, _, dataset = low_rank()
    settings = changed(kind="gmf", validation_share=0.3, epochs=1)
    data = prepare(counts, np.ones(counts.shape[0], np.float32), dataset, settings, torch.device("cpu"))
    stepper = Stepper(data, initial_state(data, "gmf", 0, {}))
    validation = stepper.validation_loss()
    assert data.held_out is not None
    mask = data.held_out.mask(torch.arange(counts.shape[0]), None).numpy()
    tables = {name: table.numpy() for name, table in stepper.state.tables.items()}
    score = (tables["cells"][:, :4] * tables["tower"][:4]) @ tables["genes"][:, :4].T
    score += tables["cells"][:, -1:] + tables["shifts"][0, :, -1]
    loss = np.exp(score) - counts.toarray() * score
    assert validation == pytest.approx(loss[mask == 0].mean(), rel=1e-4)


def test_held_out_entries_do_not_train() -> None:
    counts, _, dataset = low_rank()
    settings = changed(validation_share=0.2, validation_cells=1000)
    held = prepare(counts, np.ones(120, np.float32), dataset, settings, torch.device("cpu")).held_out
    assert held is not None
    mask = held.mask(torch.arange(120), None).numpy()
    altered = counts.toarray()
    cell, gene = np.argwhere((mask == 0) & (altered > 0))[0]
    first = prepare(counts, np.ones(120, np.float32), dataset, settings, torch.device("cpu"))
    altered[cell, gene] += 5
    second = prepare(csr_matrix(altered), np.ones(120, np.float32), dataset, settings, torch.device("cpu"))
    losses = []
    for data in (first, second):
        data = data.__class__(**{**data.__dict__, "gene_bias": first.gene_bias, "held_out": held})
        stepper = Stepper(data, initial_state(data, "neumf", 0, {}))

        losses.append(float(stepper(Step(0, np.arange(120), None), 1.0, torch.Generator())[0]))
    assert losses[0] == losses[1]


def test_patience_stops_early_and_keeps_the_best_epoch() -> None:
    counts, _, _ = low_rank(cells=40)
    settings = changed(
        kind="gmf",
        gmf_size=20,
        epochs=400,
        patience=5,
        weight_decay=0.0,
        schedule="constant",
        validation_share=0.2,
        learning_rate=0.1,
    )
    model = train(counts, settings)
    losses = [float(row["validation_loss"]) for row in model.history]
    assert len(losses) < 400
    assert len(losses) - 1 - int(np.argmin(losses)) == 5
    again = train(counts, settings.model_copy(update={"epochs": 400, "patience": 5}))
    assert same_tables(model.tables, again.tables)


def test_regularisation_shrinks_embeddings() -> None:
    counts, _, _ = low_rank()
    norms = [
        float(train(counts, changed(kind="gmf", epochs=30, weight_decay=w)).tables["genes"].norm())
        for w in (0.1, 30.0)
    ]
    assert norms[1] < norms[0]


def test_pretrained_branches_are_fused_with_alpha() -> None:
    counts, _, dataset = low_rank()
    settings = changed(pretrain="both", alpha=0.3)
    data = prepare(counts, np.ones(120, np.float32), dataset, settings, torch.device("cpu"))
    trained = {kind: initial_state(data, kind, i, {}) for i, kind in enumerate(("gmf", "mlp"))}
    trained["gmf"].tables["shifts"] += 1.0
    fused = initial_state(data, "neumf", 2, trained)
    parts, gmf, mlp = (
        state.layout.split_tower(state.tables["tower"]) for state in (fused, trained["gmf"], trained["mlp"])
    )
    torch.testing.assert_close(parts["out_gmf"], 0.3 * gmf["out_gmf"])
    torch.testing.assert_close(parts["out_mlp"], 0.7 * mlp["out_mlp"])
    torch.testing.assert_close(parts["w2"], mlp["w2"])
    torch.testing.assert_close(fused.tables["cells"][:, :4], trained["gmf"].tables["cells"][:, :4])
    torch.testing.assert_close(fused.tables["cells"][:, 4:7], trained["mlp"].tables["cells"][:, :3])
    torch.testing.assert_close(fused.tables["shifts"][..., -1], data.gene_bias + 0.3)


def test_a_cell_without_counts_and_a_gene_without_counts_do_no_harm() -> None:
    counts, _, _ = low_rank()
    dense = counts.toarray()
    dense[3], dense[:, 5] = 0, 0
    for pairs in ("full", "sampled"):
        assert np.isfinite(train(csr_matrix(dense), changed(pairs=pairs)).predict()).all()


def test_inputs_that_do_not_belong_together_are_refused() -> None:
    counts, _, _ = low_rank()
    with pytest.raises(BadSettings, match="nothing was observed"):
        train(csr_matrix((4, 3)))
    with pytest.raises(BadSettings, match="negative"):
        train(csr_matrix(-counts))
    with pytest.raises(BadSettings, match="indices must run"):
        train(counts, dataset=np.ones(120, int), dataset_names=["a", "b"])


def test_the_notebook_preset_is_the_notebooks() -> None:
    preset = NeuMFSettings(preset="notebook")
    assert (preset.tower, preset.gmf_size, preset.mlp_size) == ((64, 32, 16, 8), 50, 50)
    assert (preset.dropout, preset.batch_norm, preset.objective, preset.link) == (
        0.2,
        True,
        "mse",
        "identity",
    )
    assert (preset.learning_rate, preset.epochs, preset.weight_decay) == (0.001, 20, 0.0)
    assert (preset.size_factors, preset.n_genes, preset.schedule, preset.pretrain) == (
        False,
        None,
        "constant",
        "none",
    )
    assert NeuMFSettings(preset="notebook", epochs=3, dropout=0.0).epochs == 3
    assert NeuMFSettings(**preset.model_dump()) == preset
    counts, _, _ = low_rank()
    history = train(counts, preset.model_copy(update={"epochs": 3, "threads": 1})).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]


RESUMED = """
import sys
import time
from pathlib import Path
import numpy as np
from neumf_assets_tests.core.neumf.problems import changed, low_rank, train
counts, _, _ = low_rank(cells=200)
folder = Path(sys.argv[1])
settings = changed(epochs=30, pretrain_epochs=12, fusion_epochs=30, checkpoint_seconds=0.0, patience=25, dropout=0.1,
                   batch_norm=True)

def slow(stage, done, total, **figures):
    print(stage, done, flush=True)
    time.sleep(float(sys.argv[3]))

model = train(counts, settings, checkpoint_dir=folder / "checkpoint", progress=slow)
model.save(folder / sys.argv[2])
"""


def resumable(folder: Path, name: str, pause: float) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RESUMED, str(folder), name, str(pause)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


def epoch_of(file: Path) -> int:
    if not file.exists():
        return 0
    with safe_open(file, "pt") as handle:
        return int(handle.metadata()["progress"].split('"epoch": ')[1].split(",")[0])


@pytest.mark.parametrize(("stage", "epoch"), [(0, 5), (1, 7)])
def test_a_killed_training_continues_to_the_same_result(tmp_path: Path, stage: int, epoch: int) -> None:
    whole = resumable(tmp_path / "whole", "model", 0.0)
    killed = resumable(tmp_path / "killed", "model", 0.15)
    file = tmp_path / "killed" / "checkpoint" / f"stage-{stage}.safetensors"
    deadline = time.monotonic() + 120
    while epoch_of(file) < epoch and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    reached = epoch_of(file)
    assert epoch <= reached < 30
    continued = resumable(tmp_path / "killed", "model", 0.0)
    epochs = continued.communicate()[0].decode().splitlines()
    following = {0: f"train gmf {reached + 1}" if reached < 12 else "train neumf 1"}
    assert epochs[0] == following.get(stage, f"train neumf {reached + 1}")  # not from the start
    assert continued.returncode == 0
    whole.communicate()
    assert whole.returncode == 0
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert list((tmp_path / "killed" / "checkpoint").iterdir()) == []


def test_a_checkpoint_of_another_training_is_ignored(tmp_path: Path) -> None:
    counts, _, _ = low_rank()
    (tmp_path / "stage-0.safetensors").write_bytes(b"torn")
    reference = train(counts)
    assert same_tables(train(counts, checkpoint_dir=tmp_path).tables, reference.tables)
    assert list(tmp_path.iterdir()) == []


PEAK = r"""
import re, sys
import numpy as np
from scipy.sparse import csr_matrix
from neumf_assets_tests.core.neumf.problems import changed, train
cells = int(sys.argv[1])
genes = np.sort(np.random.default_rng(0).integers(4000, size=(cells, 8), dtype=np.int32), axis=1)
counts = csr_matrix((np.ones(8 * cells, np.int32), genes.ravel(), np.arange(cells + 1) * 8), (cells, 4000))
settings = changed(kind=sys.argv[2], epochs=1, pretrain="none", block_cells=32, validation_cells=100)
train(counts, settings)
print(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1])
"""


@pytest.mark.parametrize("kind", ["gmf", "neumf"])
def test_memory_is_bounded_by_the_block_while_cells_double(kind: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "OMP_NUM_THREADS": "1"}
    peaks = []
    for cells in (4000, 8000):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(cells), kind], env=environment, capture_output=True, check=True
        )
        peaks.append(int(done.stdout))
    dense_growth = 4000 * 4000 * 4 / 1024  # KiB of the further cells as a dense float32 matrix
    assert peaks[1] - peaks[0] < 0.25 * dense_growth


def test_threads_and_random_state_of_the_caller_are_left_alone() -> None:
    counts, _, _ = low_rank()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = torch.get_num_threads()
    train(counts, changed(dropout=0.2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == before


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["gmf", "mlp", "neumf"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_gpu_agrees_with_the_cpu(kind: str) -> None:
    counts, _, _ = low_rank(cells=400, genes=100)
    settings = changed(kind=kind, precision="float32", epochs=15)
    cpu, gpu = train(counts, settings), train(counts, settings, device="cuda")
    assert gpu.history[-1]["train_loss"] == pytest.approx(cpu.history[-1]["train_loss"], rel=0.01)
    assert np.corrcoef(np.log(cpu.predict()).ravel(), np.log(gpu.predict()).ravel())[0, 1] > 0.99
    half = train(counts, settings.model_copy(update={"precision": "bfloat16"}), device="cuda")
    assert half.history[-1]["train_loss"] == pytest.approx(cpu.history[-1]["train_loss"], rel=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_drift_between_repeats_on_a_gpu_is_bounded() -> None:
    counts, _, _ = low_rank(cells=400, genes=100)
    first, second = (train(counts, device="cuda").predict() for _ in range(2))
    assert np.abs(np.log(first) - np.log(second)).max() < 0.05


@pytest.mark.parametrize("kind", ["gmf", "neumf"])
def test_the_prior_keeps_genes_that_were_never_seen_near_their_expected_mean(kind: str) -> None:
    counts, _, _ = low_rank(cells=200, genes=30)
    unseen = np.arange(3)
    seen = csr_matrix(counts.toarray() * ~np.isin(np.arange(30), unseen))
    means = {
        prior: train(seen, changed(kind=kind, epochs=60, learning_rate=0.1, bias_prior=prior)).predict()
        for prior in (0.0, 1.0)
    }
    log_expected = np.log(0.1 / 200)  # of a gene without counts in 200 cells
    assert np.log(means[1.0][:, unseen].mean()) == pytest.approx(log_expected, abs=0.5)
    assert np.log(means[0.0][:, unseen].mean()) < log_expected - 1
    np.testing.assert_allclose(means[1.0][:, 3:].mean(0), means[0.0][:, 3:].mean(0), rtol=0.1)
