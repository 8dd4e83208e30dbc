"""A trained NeuMF: its parameters and names, storage, cell embeddings and predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.sparse import csr_matrix
from torch import Tensor

from neumf_assets.core.errors import BadInput, BadSettings
from neumf_assets.core.neumf.checkpoint import data_hash, publish
from neumf_assets.core.neumf.network import Block, Layout, Tables, Tower, block_scores
from neumf_assets.core.neumf.objectives import MAX_LOG_MEAN, mean
from neumf_assets.core.neumf.settings import NeuMFSettings

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
BLOCK_PAIRS = 262_144
BLOCK_ENTRIES = 1 << 22
SAFETENSORS_TYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}

Part = Literal["gmf", "mlp", "both"]
Cells = slice | NDArray[np.intp] | list[int]
Arithmetic = Literal["trained", "float32"]


def provenance(
    counts: csr_matrix | str, settings: NeuMFSettings, device: str
) -> dict[str, str | int | float]:
    """Return what a result must carry to be repeated: versions, seed, hash of the data (or its matrix), device."""
    versions = {f"{name}_version": version(name) for name in ("torch", "numpy", "scipy", "neumf-assets")}
    sha256 = counts if isinstance(counts, str) else data_hash(counts)
    return {**versions, "seed": settings.seed, "device": device, "data_sha256": sha256}


def write_tensors(tensors: Tables, path: Path) -> None:
    """Write a safetensors file a block at a time; the library's own function copies all tensors first."""
    header, offset = {}, 0
    for name, value in tensors.items():
        size = value.numel() * value.element_size()
        header[name] = {
            "dtype": SAFETENSORS_TYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    with path.open("wb") as file:
        file.write(len(described).to_bytes(8, "little") + described)
        for value in tensors.values():
            flat = value.reshape(-1)
            for start in range(0, flat.numel(), BLOCK_ENTRIES):
                file.write(flat[start : start + BLOCK_ENTRIES].cpu().numpy().tobytes())


@dataclass
class NeuMFModel:
    """A trained model of one dataset or several.

    Parameters
    ----------
    settings
        What it was trained with.
    layout, tables, statistics
        Parameters (see :mod:`neumf_assets.core.neumf.network`).
    log_size
        Log size factor of each cell.
    dataset, dataset_names
        Dataset index of each cell, and the datasets' names.
    median_total
        Total count of a cell of size factor 1.
    cell_names, gene_names
        Names of the cells, and of the genes that the model saw.
    gene_positions
        Columns of the training matrix that these genes were.
    reference_bias
        Gene biases of the corrected prediction: the mean over the datasets trained together.
    history
        One row per epoch: ``stage``, ``epoch``, ``train_loss``, ``validation_loss`` (where entries were held
        out), ``seconds``, ``pairs_per_second``, ``learning_rate``.
    provenance
        Versions, seed, device, hash of the counts.
    """

    settings: NeuMFSettings
    layout: Layout
    tables: Tables
    statistics: Tables
    log_size: Tensor
    dataset: NDArray[np.intp]
    dataset_names: list[str]
    median_total: float
    cell_names: NDArray[np.str_]
    gene_names: NDArray[np.str_]
    gene_positions: NDArray[np.intp]
    reference_bias: Tensor
    history: list[dict[str, float | str]]
    provenance: dict[str, str | int | float]

    @property
    def shape(self) -> tuple[int, int]:
        """Cells x genes."""
        return self.cell_names.size, self.gene_names.size

    # ---------------------------------------------------------------- storage

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` (last) into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = self.tables | {f"statistics.{name}": value for name, value in self.statistics.items()}
        tensors |= {
            "log_size": self.log_size,
            "reference_bias": self.reference_bias,
            "dataset": torch.as_tensor(self.dataset),
            "gene_positions": torch.as_tensor(self.gene_positions),
        }
        unfinished = folder / f".{WEIGHTS}"
        write_tensors(tensors, unfinished)
        publish(unfinished, folder / WEIGHTS)
        described = {
            "settings": self.settings.model_dump(mode="json"),
            "kind": self.settings.kind,
            "n_datasets": self.layout.n_datasets,
            "shifted": self.layout.shifted,
            "provenance": self.provenance,
            "history": self.history,
            "dataset_names": self.dataset_names,
            "median_total": self.median_total,
            "gene_names": self.gene_names.tolist(),
            "cell_names": self.cell_names.tolist(),
        }
        unfinished = folder / f".{DESCRIPTION}"
        unfinished.write_text(json.dumps(described))
        publish(unfinished, folder / DESCRIPTION)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> NeuMFModel:
        """Read a model that :meth:`save` wrote.

        Raises
        ------
        BadInput
            Where the files are missing or don't belong together.
        """
        try:
            described = json.loads((folder / DESCRIPTION).read_text())
            tensors = load_file(folder / WEIGHTS, device=device)
        except (OSError, ValueError, SafetensorError) as error:
            raise BadInput(folder, "", f"no readable model ({error})", "Train the model again") from error
        settings = NeuMFSettings(**described["settings"])
        layout = Layout.of(settings, described["n_datasets"], shifted=described["shifted"])
        statistics = {
            name.removeprefix("statistics."): tensors.pop(name)
            for name in list(tensors)
            if name.startswith("statistics.")
        }
        return cls(
            settings=settings,
            layout=layout,
            log_size=tensors.pop("log_size"),
            reference_bias=tensors.pop("reference_bias"),
            dataset=tensors.pop("dataset").cpu().numpy().astype(np.intp),
            gene_positions=tensors.pop("gene_positions").cpu().numpy().astype(np.intp),
            tables=tensors,
            statistics=statistics,
            dataset_names=described["dataset_names"],
            median_total=described["median_total"],
            cell_names=np.asarray(described["cell_names"], dtype=np.str_),
            gene_names=np.asarray(described["gene_names"], dtype=np.str_),
            history=described["history"],
            provenance=described["provenance"],
        )

    # ---------------------------------------------------------------- embeddings

    def cell_embedding(
        self, part: Part = "both", metric: Literal["raw", "gene"] = "raw"
    ) -> NDArray[np.float32]:
        """Return the cells' embedding in their common space.

        Parameters
        ----------
        part
            ``gmf``, ``mlp`` or both side by side (those that the model has).
        metric
            ``raw``: as learnt. ``gene``: Euclidean distance is the distance of the cells' predictions. For
            the GMF part that of their corrected scores over all genes (root mean square), by the principal
            axes of the shared gene embeddings; for the MLP part that of the cells' side of the first layer.

        Returns
        -------
        ``[n_cells, size]`` float32.
        """
        layout = self.layout
        sizes = {"gmf": layout.gmf, "mlp": layout.mlp}
        wanted = [name for name in ("gmf", "mlp") if sizes[name] and part in (name, "both")]
        if not wanted:
            raise BadSettings(f"part: this model has no {part} branch")
        spans = {"gmf": slice(0, layout.gmf), "mlp": slice(layout.gmf, layout.size)}
        found = []
        for name in wanted:
            cells = self.tables["cells"][:, spans[name]].double()
            if metric == "gene":
                cells = cells @ self._metric(name, spans[name])
            found.append(cells.float().cpu().numpy())
        return np.hstack(found)

    def _metric(self, part: str, span: slice) -> Tensor:
        tower = self.layout.split_tower(self.tables["tower"])
        if part == "mlp":
            return tower["w1_cell"].double().T
        genes = self.tables["genes"][:, span].double() * tower["out_gmf"].double()
        _, singular, axes = torch.linalg.svd(genes - genes.mean(0), full_matrices=False)
        return axes.T * singular / np.sqrt(genes.shape[0])

    # ---------------------------------------------------------------- prediction

    def predict(
        self,
        cells: Cells = slice(None),
        genes: NDArray[np.intp] | list[int] | None = None,
        *,
        corrected: bool = False,
        scale: Literal["counts", "normalised"] = "counts",
        precision: Arithmetic = "trained",
    ) -> NDArray[np.float32]:
        """Return predicted means (``bce``: probabilities of being observed; ``bpr``: scores).

        Parameters
        ----------
        cells, genes
            Positions in the model's cells and genes; all by default.
        corrected
            Without the dataset-specific part of the genes, and with their mean bias.
        scale
            ``counts``: at each cell's own size factor; ``normalised``: at size factor 1.
        precision
            Arithmetic of the tower. ``trained``: as in training, which may be bfloat16. On 2,000 control cells
            of Kang et al. 2018 that moved a mean by 0.0001 % (root mean square) with default settings, by 0.006 %
            (0.2 % at most) after 15 + 5 epochs, by 0.2 % (2 %) with a tower trained from the start.
            ``float32``: within 0.001 % of float64, about five times slower where the hardware multiplies bfloat16.

        Returns
        -------
        ``[cells, genes]`` float32.
        """
        if isinstance(cells, slice):
            positions = np.arange(*cells.indices(self.shape[0]))
        else:
            positions = np.arange(self.shape[0])[np.asarray(cells, np.intp)]
        columns = (
            None
            if genes is None
            else torch.as_tensor(np.asarray(genes, np.intp), device=self.log_size.device)
        )
        width = self.shape[1] if columns is None else columns.numel()
        result = np.empty((positions.size, width), np.float32)
        pairs = BLOCK_PAIRS if self.log_size.device.type == "cpu" else 16 * BLOCK_PAIRS
        step = max(1, pairs // max(width, 1))
        for start in range(0, positions.size, step):
            block = positions[start : start + step]
            part = result[start : start + block.size]
            self._predict(block, columns, corrected, scale, precision, part)
        return result

    def predict_blocks(
        self,
        block_cells: int | None = None,
        genes: NDArray[np.intp] | None = None,
        *,
        corrected: bool = False,
        scale: Literal["counts", "normalised"] = "counts",
        precision: Arithmetic = "trained",
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the prediction for all cells as (rows, block), at most ``block_cells`` cells at a time."""
        n_cells, n_genes = self.shape[0], self.shape[1] if genes is None else max(genes.size, 1)
        step = block_cells or max(1, BLOCK_PAIRS // n_genes)
        for start in range(0, n_cells, step):
            rows = slice(start, min(start + step, n_cells))
            yield rows, self.predict(rows, genes, corrected=corrected, scale=scale, precision=precision)

    def write_dense(
        self,
        folder: Path,
        dtype: DTypeLike = np.float32,
        *,
        genes: NDArray[np.intp] | None = None,
        corrected: bool = False,
        scale: Literal["counts", "normalised"] = "counts",
        precision: Arithmetic = "trained",
        original_names: Mapping[str, str] | None = None,
    ) -> None:
        """Stream the prediction to an AnnData-Zarr store, one block of rows in memory at a time.

        ``genes`` are positions in the model's genes, all by default. ``original_names`` gives the genes' names
        as the source has them, by the model's unique ones. The rest is as for :meth:`predict`.
        """
        from neumf_assets.core.neumf import (
            dense,
        )  # anndata and pandas take a second that training can do without

        names = self.gene_names if genes is None else self.gene_names[genes]
        rows = dense.rows_per_chunk(names.size)
        blocks = self.predict_blocks(rows, genes, corrected=corrected, scale=scale, precision=precision)
        given = None if original_names is None else [original_names[str(name)] for name in names]
        dense.write_blocks(
            folder, blocks, self.cell_names, names, chunk_cells=rows, dtype=dtype, original_names=given
        )

    def top_genes(self, cell: int | str, k: int = 10) -> list[tuple[str, float]]:
        """Return the ``k`` genes of a cell (name or position) with the highest prediction, best first."""
        position = self._cell(cell)
        row = self.predict([position])[0]
        best = np.argsort(-row, kind="stable")[:k]
        return [(str(self.gene_names[g]), float(row[g])) for g in best]

    def _cell(self, cell: int | str) -> int:
        if isinstance(cell, int):
            if not 0 <= cell < self.shape[0]:
                raise BadSettings(f"cell: {cell} is not among the {self.shape[0]} cells")
            return cell
        found = np.flatnonzero(self.cell_names == cell)
        if not found.size:
            raise BadSettings(f"cell: {cell} is not among the cells of this model")
        return int(found[0])

    @torch.no_grad()
    def _predict(
        self,
        cells: NDArray[np.intp],
        genes: Tensor | None,
        corrected: bool,
        scale: str,
        precision: Arithmetic,
        result: NDArray[np.float32],
    ) -> None:
        """Write the prediction of some cells into ``result``, ``[cells, genes]``."""
        device = self.log_size.device
        settings = self.settings
        if precision == "float32":
            settings = settings.model_copy(update={"precision": "float32"})
        tower = Tower.of(self.layout, settings, self.statistics, device)
        table = self.tables["genes"]
        datasets = np.zeros_like(cells) if corrected else self.dataset[cells]
        for d in np.unique(datasets):
            own = datasets == d
            index = torch.as_tensor(cells[own], device=device)
            shift = torch.zeros_like(self.tables["shifts"][0]) if corrected else self.tables["shifts"][int(d)]
            if corrected:
                shift[:, -1] = self.reference_bias
            block = Block(
                self.layout,
                self.tables["cells"][index],
                table if genes is None else table[genes],
                shift if genes is None else shift[genes],
                self.tables["tower"],
            )
            size = self.log_size[index] if scale == "counts" else torch.zeros_like(self.log_size[index])
            at_once = torch.from_numpy(result) if own.all() and device.type == "cpu" else None
            outcome = self._outcome(block_scores(block, tower, out=at_once), size)
            if outcome is not at_once:
                result[own] = outcome.cpu().numpy()

    def _outcome(self, score: Tensor, log_size: Tensor) -> Tensor:
        """Return what is predicted from scores that nobody else needs."""
        if self.settings.objective == "bce":
            return score.sigmoid_()
        if self.settings.objective == "bpr":
            return score
        if self.settings.link == "exp":  # in place: passes over memory cost as much as the GMF part
            return score.add_(log_size[:, None]).clamp_(max=MAX_LOG_MEAN).exp_()
        return mean(score, log_size[:, None], self.settings.link)
