"""Block and pairwise paths, against each other and against a network written the plain way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from neumf_assets.core.neumf.network import (
    Block,
    Layout,
    Tables,
    Tower,
    block_scores,
    initial_statistics,
    initial_tables,
    pair_scores,
)
from neumf_assets.core.neumf.objectives import entry_loss, ranking_loss
from neumf_assets.core.neumf.settings import NeuMFSettings
from neumf_assets.core.neumf.training.batches import SparseCounts, Step
from neumf_assets.core.neumf.training.preparation import prepare
from neumf_assets.core.neumf.training.stages import initial_state
from neumf_assets.core.neumf.training.state import new_state
from neumf_assets.core.neumf.training.step import Stepper
from neumf_assets_tests.core.neumf.problems import changed, low_rank

CELLS, GENES, DATASETS = 7, 9, 3


def parameters(n_datasets: int, **changes: object) -> tuple[Layout, Tables]:
    layout = Layout.of(changed(**changes), n_datasets)
    generator = torch.Generator().manual_seed(3)
    tables = initial_tables(layout, CELLS, torch.randn(n_datasets, GENES, generator=generator), generator)
    tables = {name: table.double() for name, table in tables.items()}
    tables["shifts"] += 0.3 * torch.randn(tables["shifts"].shape, generator=generator, dtype=torch.float64)
    tables["cells"] *= 5
    tables["genes"] *= 5
    return layout, tables


def block_of(layout: Layout, tables: Tables, dataset: int) -> tuple[Block, Tables]:
    leaves = {name: table.clone() for name, table in tables.items()}
    leaves["shifts"] = leaves["shifts"][dataset]
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    return Block(layout, *(leaves[name] for name in ("cells", "genes", "shifts", "tower"))), leaves


def plain_score(layout: Layout, tables: Tables, dataset: int, cell: int, gene: int) -> float:
    """Return f of one pair as He et al. write it: p o q and an MLP on the joined embeddings."""
    parts = {name: value.numpy() for name, value in layout.split_tower(tables["tower"]).items()}
    own, shift = tables["cells"][cell].numpy(), tables["shifts"][dataset, gene].numpy()
    its = tables["genes"][gene].numpy()[: layout.size]
    if layout.shifted:
        its = its + shift[:-1]
    score = own[-1] + shift[-1]
    if layout.gmf:
        score += parts["out_gmf"] @ (own[: layout.gmf] * its[: layout.gmf])
    if layout.mlp:
        joined = np.concatenate([own[layout.gmf : layout.size], its[layout.gmf :]])
        hidden = np.maximum(np.hstack([parts["w1_cell"], parts["w1_gene"]]) @ joined + parts["b1"], 0)
        for layer in range(2, len(layout.tower) + 1):
            hidden = np.maximum(parts[f"w{layer}"] @ hidden + parts[f"b{layer}"], 0)
        score += parts["out_mlp"] @ hidden
    return float(score)


@pytest.mark.parametrize("n_datasets", [1, DATASETS])
@pytest.mark.parametrize("kind", ["gmf", "mlp", "neumf"])
def test_block_scores_are_those_of_the_plain_network(kind: str, n_datasets: int) -> None:
    layout, tables = parameters(n_datasets, kind=kind)
    block, _ = block_of(layout, tables, n_datasets - 1)
    scores = block_scores(block, Tower(layout)).detach().numpy()
    expected = [
        [plain_score(layout, tables, n_datasets - 1, c, g) for g in range(GENES)] for c in range(CELLS)
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-12)


LOSSES = [
    *(("poisson", link) for link in ("exp", "softplus")),
    *(("nb", link) for link in ("exp", "softplus")),
    *(("mse", link) for link in ("exp", "softplus", "identity")),
    ("bce", "exp"),
]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("objective", "link"), LOSSES)
@pytest.mark.parametrize("kind", ["gmf", "mlp", "neumf"])
def test_block_and_pairs_have_the_same_loss_and_gradients(
    kind: str, objective: str, link: str, batch_norm: bool
) -> None:
    changes = {"kind": kind, "objective": objective, "link": link, "batch_norm": batch_norm}
    chosen = changed(**changes)
    layout, tables = parameters(DATASETS, **changes)
    rng = np.random.default_rng(0)
    y = torch.as_tensor(rng.poisson(1.0, (CELLS, GENES)), dtype=torch.float64)
    log_size = torch.as_tensor(rng.normal(0, 0.3, CELLS))
    cell, gene = (torch.as_tensor(x) for x in np.divmod(rng.permutation(CELLS * GENES), GENES))

    block, leaves = block_of(layout, tables, 1)
    statistics = {name: value.double() for name, value in initial_statistics(layout).items()}
    tower = Tower(layout, statistics=statistics)
    by_block = entry_loss(
        block_scores(block, tower, training=True), log_size[:, None], y, chosen, block.log_dispersion
    ).sum()
    gradients = torch.autograd.grad(by_block, list(leaves.values()), allow_unused=True)

    block, leaves = block_of(layout, tables, 1)
    dispersion = None if block.log_dispersion is None else block.log_dispersion[gene]
    score = pair_scores(block, tower, cell, gene, training=True)
    by_pairs = entry_loss(score, log_size[cell], y[cell, gene], chosen, dispersion).sum()
    torch.testing.assert_close(by_block, by_pairs, rtol=1e-13, atol=1e-13)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(by_pairs, list(leaves.values()), allow_unused=True), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def exact_stepper(chosen: NeuMFSettings) -> Stepper:
    """Return a trainer in float64 on counts of which every cell lacks six genes, two datasets, a fifth held out."""
    rng = np.random.default_rng(1)
    counts = 1 + rng.poisson(1.0, (CELLS, GENES))
    for row in counts:
        row[rng.permutation(GENES)[:6]] = 0
    dataset = np.arange(CELLS) % 2
    factors = np.exp(rng.normal(0, 0.3, CELLS)).astype(np.float32)
    data = prepare(csr_matrix(counts), factors, dataset, chosen, torch.device("cpu"))
    assert data.held_out is not None
    state = initial_state(data, chosen.kind, 0, {})
    tables = {name: table.double() for name, table in state.tables.items()}
    generator = torch.Generator().manual_seed(2)
    for name in ("cells", "genes", "shifts"):
        tables[name] += 0.4 * torch.randn(tables[name].shape, generator=generator, dtype=torch.float64)
    state = new_state(state.layout, tables, {}, [])
    return Stepper(replace(data, log_size=data.log_size.double()), state)


def every_zero(self: SparseCounts, cells: torch.Tensor, draws: int, generator: object) -> torch.Tensor:
    """Stand in for the drawing of zeros: each zero of a cell once."""
    observed = [set(self.entries(cell[None], int(self.lengths[cell]))[1].tolist()) for cell in cells]
    return torch.tensor([sorted(set(range(self.n_genes)) - own) for own in observed])


def loss_pair_by_pair(stepper: Stepper, block: Block, cells: np.ndarray) -> torch.Tensor:
    """Return the loss of the entries that are not held out, each scored by itself."""
    data, chosen = stepper.data, stepper.settings
    index = torch.as_tensor(cells)
    assert data.held_out is not None
    keeps = data.held_out.mask(index, None) > 0
    y = data.counts.dense(index, int(data.counts.observed[cells].sum()))
    place = torch.cartesian_prod(torch.arange(cells.size), torch.arange(GENES))
    score = [pair_scores(block, stepper.tower, c[None], g[None])[0] for c, g in place]
    f, total = torch.stack(score).view(cells.size, GENES), torch.zeros((), dtype=torch.float64)
    for c in range(cells.size):
        if chosen.objective == "bpr":
            seen, unseen = (keeps[c] & (y[c] > 0)).nonzero()[:, 0], (keeps[c] & (y[c] == 0)).nonzero()[:, 0]
            total = total + ranking_loss(f[c, seen][:, None], f[c, unseen][None, :]).sum()
            continue
        for g in keeps[c].nonzero()[:, 0]:
            dispersion = None if block.log_dispersion is None else block.log_dispersion[g]
            total = total + entry_loss(f[c, g], data.log_size[index[c]], y[c, g], chosen, dispersion)
    return total


STEPS = [(*loss, pairs) for loss in LOSSES for pairs in ("full", "full, genes in blocks", "sampled")]


@pytest.mark.parametrize(("objective", "link", "pairs"), [*STEPS, ("bpr", "exp", "sampled")])
@pytest.mark.parametrize("kind", ["gmf", "neumf"])
def test_a_training_steps_loss_and_gradients_are_those_of_its_pairs(
    kind: str, objective: str, link: str, pairs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SparseCounts, "draw_zeros", every_zero)
    chosen = changed(
        kind=kind,
        objective=objective,
        link=link,
        pairs=pairs.split(",")[0],
        num_negatives=6,
        fused="off",
        precision="float32",
        validation_share=0.2,
    )
    stepper = exact_stepper(chosen)
    cells = np.array([5, 1, 3])
    parts = [np.array([8, 0, 3, 6]), np.array([1, 2, 4, 5, 7])] if "blocks" in pairs else [None]
    names, ours = list(stepper.state.optimisers), torch.zeros((), dtype=torch.float64)
    leaves = {name: opt.table.clone().requires_grad_() for name, opt in stepper.state.optimisers.items()}
    for genes in parts:
        step = Step(1, cells, genes)
        index, columns, rows = stepper.locate(step)
        block = stepper.block({name: leaf[rows[name]] for name, leaf in leaves.items()})
        loss = (
            stepper.sampled_loss(block, step, index, torch.Generator())
            if pairs == "sampled"
            else stepper.full_loss(block, step, index, columns)
        )
        ours = ours + loss[0]
    found = torch.autograd.grad(ours, [leaves[name] for name in names])
    _, _, rows = stepper.locate(Step(1, cells, None))
    block = stepper.block({name: leaf[rows[name]] for name, leaf in leaves.items()})
    expected = loss_pair_by_pair(stepper, block, cells)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for gradient, other in zip(
        found, torch.autograd.grad(expected, [leaves[name] for name in names]), strict=True
    ):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)


def test_gene_blocks_add_up_to_the_whole() -> None:
    layout, tables = parameters(DATASETS, kind="neumf")
    block, _ = block_of(layout, tables, 2)
    whole = block_scores(block, Tower(layout))
    for columns in (torch.tensor([0, 3, 8]), torch.tensor([7, 1])):
        part = Block(layout, block.cells, block.genes[columns], block.shift[columns], block.tower)
        torch.testing.assert_close(block_scores(part, Tower(layout)), whole[:, columns])


def test_dropout_acts_in_training_only() -> None:
    layout, tables = parameters(1, kind="mlp")
    block, _ = block_of(layout, tables, 0)
    without, tower = Tower(layout), Tower(layout, dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(block_scores(block, tower), block_scores(block, without))
    assert not torch.equal(block_scores(block, tower, training=True), block_scores(block, without))


def test_batch_norm_uses_the_block_in_training_and_running_statistics_after() -> None:
    layout, tables = parameters(1, kind="mlp", batch_norm=True)
    tables = {name: table.float() for name, table in tables.items()}
    block, _ = block_of(layout, tables, 0)
    tower = Tower(layout, statistics=initial_statistics(layout))
    before = block_scores(block, tower)
    assert torch.equal(before, block_scores(block, tower))  # evaluation leaves the statistics alone
    for _ in range(200):
        trained = block_scores(block, tower, training=True)
    after = block_scores(block, tower)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, trained, rtol=0.1, atol=0.1)  # statistics have come to the block's


@pytest.mark.parametrize("objective", ["poisson", "bce"])
def test_the_sampled_loss_is_unbiased(objective: str) -> None:
    counts, _, dataset = low_rank(cells=12, genes=15)
    counts = csr_matrix(counts.toarray() * (np.random.default_rng(0).random((12, 15)) < 0.4))
    chosen = changed(objective=objective, kind="gmf", pairs="sampled", num_negatives=3, fused="off")
    data = prepare(counts, np.ones(12, np.float32), dataset, chosen, torch.device("cpu"))
    stepper = Stepper(data, initial_state(data, "gmf", 0, {}))
    cells = np.arange(12)
    step = Step(0, cells, None)
    index, _, rows = stepper.locate(step)
    block = stepper.block({name: opt.take(rows[name]) for name, opt in stepper.state.optimisers.items()})
    full = float(stepper.full_loss(block, step, index, None)[0].detach())
    generator = torch.Generator().manual_seed(0)
    draws = [float(stepper.sampled_loss(block, step, index, generator)[0].detach()) for _ in range(600)]
    assert np.mean(draws) == pytest.approx(full, abs=4 * np.std(draws) / np.sqrt(600))
    assert np.std(draws) > 0
