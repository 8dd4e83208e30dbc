"""The NeuMF network over blocks of cells x genes, with its parameters in four tables.

Parameters live in few flat tables, so that a step gathers, differentiates and updates four tensors rather
than dozens of small ones:

``cells``   [n_cells, gmf | mlp | bias]
``genes``   [n_genes, gmf | mlp | log dispersion], shared by all datasets
``shifts``  [n_datasets, n_genes, gmf | mlp | bias], a gene's part that belongs to one dataset (for a single
            dataset only the bias)
``tower``   everything else, flat: first layer (cell side, gene side), hidden layers, output weights

The first layer separates, ``W [x; y] = Wx x + Wy y``: it costs once for each cell and once for each gene of a
block, and the GMF part is a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, dropout, linear

from neumf_assets.core.neumf.fused.library import MAX_DEPTH
from neumf_assets.core.neumf.fused.tower import Precision, available, best_precision, fused_block_forward
from neumf_assets.core.neumf.settings import NeuMFSettings

DRAWN_CELLS = 1 << 16
"""Cells whose starting values are drawn at once; changing it changes the values that a seed stands for."""

Tables = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the tables.

    Parameters
    ----------
    gmf, mlp
        Embedding sizes (0 where the branch is absent).
    tower
        Hidden layer sizes; empty without the MLP branch.
    n_datasets
        Number of datasets; gene shifts exist for two or more.
    dispersion
        ``none``, or for the objective ``nb`` ``gene`` or ``shared``.
    batch_norm
        Whether hidden layers are normalised.
    shifted
        Whether genes have dataset-specific embeddings.
    """

    gmf: int
    mlp: int
    tower: tuple[int, ...]
    n_datasets: int
    dispersion: str
    batch_norm: bool
    shifted: bool
    pieces: dict[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        pieces: dict[str, tuple[int, ...]] = {}
        if self.gmf:
            pieces["out_gmf"] = (self.gmf,)
        if self.mlp:
            first = self.tower[0]
            pieces |= {"w1_cell": (first, self.mlp), "w1_gene": (first, self.mlp), "b1": (first,)}
            for i, (size_in, size_out) in enumerate(zip(self.tower, self.tower[1:], strict=False), start=2):
                pieces |= {f"w{i}": (size_out, size_in), f"b{i}": (size_out,)}
            if self.batch_norm:
                for i, size in enumerate(self.tower, start=1):
                    pieces |= {f"bn{i}_scale": (size,), f"bn{i}_shift": (size,)}
            pieces["out_mlp"] = (self.tower[-1],)
        if self.dispersion == "shared":
            pieces["log_dispersion"] = (1,)
        object.__setattr__(self, "pieces", pieces)

    @classmethod
    def of(
        cls, settings: NeuMFSettings, n_datasets: int, kind: str | None = None, shifted: bool | None = None
    ) -> Layout:
        """Return the layout of a model of ``settings`` (of ``kind`` where a branch is trained alone)."""
        kind = kind or settings.kind
        has_mlp = kind != "gmf"
        return cls(
            gmf=(settings.gmf_size or 0) if kind != "mlp" else 0,
            mlp=settings.mlp_size if has_mlp else 0,
            tower=settings.tower if has_mlp else (),
            n_datasets=n_datasets,
            dispersion=settings.dispersion if settings.objective == "nb" else "none",
            batch_norm=settings.batch_norm and has_mlp,
            shifted=n_datasets > 1 if shifted is None else shifted,
        )

    @property
    def size(self) -> int:
        """Length of both embeddings together."""
        return self.gmf + self.mlp

    def span(self, branch: str) -> range:
        """Return the columns of a branch's embedding."""
        return range(self.gmf) if branch == "gmf" else range(self.gmf, self.size)

    @property
    def gene_columns(self) -> int:
        """Columns of the table ``genes``."""
        return self.size + int(self.dispersion == "gene")

    @property
    def shift_columns(self) -> int:
        """Columns of the table ``shifts``: the bias last."""
        return (self.size if self.shifted else 0) + 1

    def split_tower(self, flat: Tensor) -> dict[str, Tensor]:
        """Return named views of the flat tower."""
        shapes = list(self.pieces.values())
        parts = flat.split([math.prod(shape) for shape in shapes])
        return {
            name: part.view(shape) for (name, shape), part in zip(self.pieces.items(), parts, strict=True)
        }


def initial_tables(
    layout: Layout,
    n_cells: int,
    gene_bias: Tensor,
    generator: torch.Generator,
    embedding_scale: float = 0.1,
    output_scale: float = 1.0,
    keep: Callable[[Iterator[Tensor]], Tensor] | None = None,
) -> Tables:
    """Draw starting values on the CPU: normal embeddings, layers He-uniform, biases from the data.

    Parameters
    ----------
    layout
        Sizes.
    n_cells
        Number of cells.
    gene_bias
        Scores of the gene means, ``[n_datasets, n_genes]``: training starts from the model that knows only
        them.
    generator
        Seeded CPU generator.
    embedding_scale
        Standard deviation of the embeddings.
    output_scale
        Scale of the MLP's output weights.
    keep
        Takes the cells' values in parts and returns their table; puts them together by default.
    """
    n_datasets, n_genes = gene_bias.shape
    drawn = _drawn_cells(layout, n_cells, generator, embedding_scale)
    cells = keep(drawn) if keep else torch.cat(list(drawn))
    genes = embedding_scale * torch.randn(n_genes, layout.gene_columns, generator=generator)
    if layout.dispersion == "gene":
        genes[:, -1] = 0
    shifts = torch.zeros(n_datasets, n_genes, layout.shift_columns)
    shifts[..., -1] = gene_bias
    tower = torch.zeros(sum(math.prod(shape) for shape in layout.pieces.values()))
    for name, part in layout.split_tower(tower).items():
        if name == "out_gmf" or name.endswith("_scale"):
            part.fill_(1.0)
        elif name == "out_mlp":
            bound = output_scale * math.sqrt(3.0 / part.numel())
            part.copy_(bound * (2 * torch.rand(part.shape, generator=generator) - 1))
        elif name.startswith("w"):
            fan_in = 2 * part.shape[1] if name.startswith("w1_") else part.shape[1]
            bound = math.sqrt(6.0 / fan_in)
            part.copy_(bound * (2 * torch.rand(part.shape, generator=generator) - 1))
    return {"cells": cells, "genes": genes, "shifts": shifts, "tower": tower}


def _drawn_cells(layout: Layout, n_cells: int, generator: torch.Generator, scale: float) -> Iterator[Tensor]:
    for start in range(0, n_cells, DRAWN_CELLS):
        cells = scale * torch.randn(min(DRAWN_CELLS, n_cells - start), layout.size + 1, generator=generator)
        cells[:, -1] = 0
        yield cells


def initial_statistics(layout: Layout) -> Tables:
    """Return running means and variances of the normalised layers (empty without batch norm)."""
    if not layout.batch_norm:
        return {}
    means = {f"bn{i}_mean": torch.zeros(size) for i, size in enumerate(layout.tower, start=1)}
    return means | {f"bn{i}_var": torch.ones(size) for i, size in enumerate(layout.tower, start=1)}


@dataclass
class Block:
    """The parameters that one block of entries uses, and what its score is made of.

    ``cells`` [B, ...], ``genes`` [G, ...], ``shift`` [G, ...] (of the block's dataset), ``tower`` flat.
    """

    layout: Layout
    cells: Tensor
    genes: Tensor
    shift: Tensor
    tower: Tensor

    def __post_init__(self) -> None:
        layout = self.layout
        self.parts = layout.split_tower(self.tower)
        embedding = self.genes[:, : layout.size]
        if layout.shifted:
            embedding = embedding + self.shift[:, :-1]
        self.gene_gmf, self.gene_mlp = embedding.split([layout.gmf, layout.mlp], dim=1)
        self.cell_gmf, self.cell_mlp, cell_bias = self.cells.split([layout.gmf, layout.mlp, 1], dim=1)
        self.cell_bias = cell_bias[:, 0]
        self.gene_bias = self.shift[:, -1]
        self.log_dispersion = self._log_dispersion()

    def _log_dispersion(self) -> Tensor | None:
        if self.layout.dispersion == "gene":
            return self.genes[:, -1]
        if self.layout.dispersion == "shared":
            return self.parts["log_dispersion"].expand(self.genes.shape[0])
        return None

    def tower_matters(self) -> bool:
        """Tell whether the tower's output has to be computed: not where its weights are zero and stay so."""
        if not self.layout.mlp:
            return False
        moves = (
            torch.is_grad_enabled() or self.tower.device.type != "cpu"
        )  # a GPU would have to be waited for
        return moves or bool(self.parts["out_mlp"].any())

    def linear_part(self, out: Tensor | None = None) -> Tensor:
        """Return the GMF part and the biases of all pairs, ``[B, G]`` (in ``out``, without gradients)."""
        if out is not None:
            torch.mm(self.cell_gmf * self.parts.get("out_gmf", 1.0), self.gene_gmf.T, out=out)
            return out.add_(self.cell_bias[:, None]).add_(self.gene_bias)
        bias = self.cell_bias[:, None] + self.gene_bias[None, :]
        if not self.layout.gmf:
            return bias
        return torch.addmm(bias, self.cell_gmf * self.parts["out_gmf"], self.gene_gmf.T)

    def linear_pairs(self, cell: Tensor, gene: Tensor) -> Tensor:
        """Return the GMF part and the biases of single pairs (positions in the block)."""
        bias = self.cell_bias[cell] + self.gene_bias[gene]
        if not self.layout.gmf:
            return bias
        weighted = (self.cell_gmf * self.parts["out_gmf"])[cell]
        return bias + (weighted * self.gene_gmf[gene]).sum(1)

    def first_layer(self) -> tuple[Tensor, Tensor]:
        """Return the first layer's cell side (with its bias) ``[B, h1]`` and gene side ``[G, h1]``."""
        cell_side = linear(self.cell_mlp, self.parts["w1_cell"], self.parts["b1"])
        return cell_side, linear(self.gene_mlp, self.parts["w1_gene"])

    def hidden_layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return weights and biases of the layers after the first."""
        numbers = range(2, len(self.layout.tower) + 1)
        return [self.parts[f"w{i}"] for i in numbers], [self.parts[f"b{i}"] for i in numbers]


@dataclass
class Tower:
    """The MLP above its first layer, in plain torch operations.

    Parameters
    ----------
    layout
        Sizes.
    dropout
        Share of hidden units dropped while training.
    statistics
        Running statistics of the normalised layers, updated in place while training.
    bfloat16
        Whether matrix products run in bfloat16.
    fused
        Precision of the fused kernel for whole blocks; ``None``: plain operations.
    threads
        Threads of the fused kernel; by default as many as torch is set to use when the tower is made.
    """

    layout: Layout
    dropout: float = 0.0
    statistics: Tables = field(default_factory=dict)
    bfloat16: bool = False
    fused: Precision | None = None
    threads: int = field(default_factory=torch.get_num_threads)

    @classmethod
    def of(
        cls,
        layout: Layout,
        settings: NeuMFSettings,
        statistics: Tables,
        device: torch.device,
    ) -> Tower:
        """Return the tower that ``settings`` ask for on this device."""
        bfloat16 = use_bfloat16(settings, device)
        fused = fused_precision(layout, settings, device)
        return cls(layout, settings.dropout, statistics, bfloat16, fused)

    def __call__(self, block: Block, first: Tensor, training: bool) -> Tensor:
        """Return the MLP's output for pre-activations ``first`` ``[..., h1]``."""
        if self.bfloat16:
            first = first.to(torch.bfloat16)
        weights, biases = block.hidden_layers()
        hidden = self._activate(block, first, 1, training)
        for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=2):
            hidden = linear(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype))
            hidden = self._activate(block, hidden, number, training)
        out = block.parts["out_mlp"]
        return (
            torch.mv(hidden.reshape(-1, hidden.shape[-1]), out.to(hidden.dtype))
            .view(hidden.shape[:-1])
            .to(out.dtype)
        )

    def _activate(self, block: Block, hidden: Tensor, number: int, training: bool) -> Tensor:
        if self.layout.batch_norm:
            shape = hidden.shape
            hidden = batch_norm(
                hidden.reshape(-1, shape[-1]),
                self.statistics[f"bn{number}_mean"],
                self.statistics[f"bn{number}_var"],
                block.parts[f"bn{number}_scale"],
                block.parts[f"bn{number}_shift"],
                training=training,
            ).view(shape)
        hidden = hidden.relu()
        return dropout(hidden, self.dropout, training) if self.dropout else hidden


def block_scores(block: Block, tower: Tower, training: bool = False, out: Tensor | None = None) -> Tensor:
    """Return ``f`` of all pairs of a block, ``[B, G]``; without gradients, ``out`` may take it."""
    score = block.linear_part(out)
    if not block.tower_matters():
        return score
    if block.layout.mlp and tower.fused and not torch.is_grad_enabled():
        weights, biases = block.hidden_layers()
        out = block.parts["out_mlp"]
        return fused_block_forward(
            score,
            *block.first_layer(),
            weights,
            biases,
            out,
            precision=tower.fused,
            threads=tower.threads,
            result=score,
        )
    if block.layout.mlp:
        cell_side, gene_side = block.first_layer()
        score = torch.add(
            score, tower(block, cell_side[:, None, :] + gene_side[None, :, :], training), out=out
        )
    return score


def pair_scores(block: Block, tower: Tower, cell: Tensor, gene: Tensor, training: bool = False) -> Tensor:
    """Return ``f`` of single pairs, given by their positions in the block, ``[P]``."""
    score = block.linear_pairs(cell, gene)
    if block.layout.mlp and block.tower_matters():
        cell_side, gene_side = block.first_layer()
        score = score + tower(block, cell_side[cell] + gene_side[gene], training)
    return score


def use_bfloat16(settings: NeuMFSettings, device: torch.device) -> bool:
    """Tell whether the tower's products run in bfloat16."""
    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_plain(layout: Layout, settings: NeuMFSettings) -> bool:
    """Tell whether the tower consists of products and rectifiers alone."""
    return settings.dropout == 0 and not layout.batch_norm and len(layout.tower) > 0


def fused_precision(layout: Layout, settings: NeuMFSettings, device: torch.device) -> Precision | None:
    """Return the precision in which the fused kernel can run this tower here, ``None`` where it cannot."""
    fits = is_plain(layout, settings) and len(layout.tower) <= MAX_DEPTH
    if settings.fused == "off" or device.type != "cpu" or not fits:
        return None
    if settings.precision == "auto":
        return best_precision()
    return settings.precision if available(settings.precision)[0] else None
