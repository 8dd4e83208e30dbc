"""A trained model: storage, predictions, embeddings, the streamed matrix."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from neumf_assets.core.errors import BadInput, BadSettings
from neumf_assets.core.neumf import dense
from neumf_assets.core.neumf.dense import open_dense
from neumf_assets.core.neumf.model import NeuMFModel
from neumf_assets.core.neumf.network import Block, Tower, block_scores
from neumf_assets_tests.core.neumf.problems import changed, low_rank, train


@pytest.fixture(scope="module")
def model() -> NeuMFModel:
    counts, _, dataset = low_rank(n_datasets=2, shift=1.0)
    return train(counts, changed(n_genes=30), dataset=dataset, dataset_names=["ctrl", "stim"])


def test_a_saved_model_is_the_same_model(model: NeuMFModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = NeuMFModel.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(), model.predict())
    np.testing.assert_array_equal(loaded.predict(corrected=True), model.predict(corrected=True))
    np.testing.assert_array_equal(loaded.gene_names, model.gene_names)
    np.testing.assert_array_equal(loaded.cell_names, model.cell_names)
    assert (loaded.settings, loaded.history, loaded.provenance) == (
        model.settings,
        model.history,
        model.provenance,
    )
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]


def test_a_model_with_batch_norm_keeps_its_statistics(tmp_path: Path) -> None:
    counts, _, _ = low_rank()
    model = train(counts, changed(kind="mlp", batch_norm=True, epochs=3))
    model.save(tmp_path)
    np.testing.assert_array_equal(NeuMFModel.load(tmp_path).predict(), model.predict())


def test_a_folder_without_a_whole_model_is_refused(model: NeuMFModel, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no readable model"):
        NeuMFModel.load(tmp_path)
    model.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(BadInput, match="Train the model again"):
        NeuMFModel.load(tmp_path)


def test_genes_are_the_selected_ones_under_their_own_names(model: NeuMFModel) -> None:
    assert model.shape == (120, 30)
    assert model.gene_names.tolist() == [f"g{i}" for i in model.gene_positions]


def test_parts_of_the_prediction_are_parts_of_the_whole(model: NeuMFModel) -> None:
    whole = model.predict()
    np.testing.assert_allclose(model.predict(slice(10, 20)), whole[10:20], rtol=1e-5)
    cells, genes = np.array([7, 3, 99]), [5, 0]
    np.testing.assert_allclose(model.predict(cells, genes), whole[np.ix_(cells, genes)], rtol=1e-5)
    rows, blocks = zip(*model.predict_blocks(50), strict=True)
    assert [(r.start, r.stop) for r in rows] == [(0, 50), (50, 100), (100, 120)]
    np.testing.assert_allclose(np.vstack(blocks), whole, rtol=1e-5)


def test_scales_differ_by_the_size_factor(model: NeuMFModel) -> None:
    ratio = model.predict() / model.predict(scale="normalised")
    np.testing.assert_allclose(ratio, np.exp(model.log_size.numpy())[:, None] * np.ones(30), rtol=1e-4)


def test_corrected_predictions_know_no_dataset() -> None:
    counts, _, dataset = low_rank(n_datasets=2, shift=2.0, cells=400)
    model = train(counts, changed(kind="gmf", epochs=40), dataset=dataset, dataset_names=["ctrl", "stim"])

    def gap(predicted: np.ndarray) -> float:
        shifted = np.log(predicted[:, :5]).mean(axis=1)
        return float(shifted[dataset == 1].mean() - shifted[dataset == 0].mean())

    assert gap(model.predict(scale="normalised")) > 1.0
    assert abs(gap(model.predict(corrected=True, scale="normalised"))) < 0.4


def test_top_genes_are_the_highest_predictions(model: NeuMFModel) -> None:
    row = model.predict([4])[0]
    best = model.top_genes("c4", 3)
    assert [name for name, _ in best] == model.gene_names[np.argsort(-row)[:3]].tolist()
    assert best == model.top_genes(4, 3)
    with pytest.raises(BadSettings, match="not among"):
        model.top_genes("nobody")


def test_the_streamed_matrix_is_the_prediction_with_names(model: NeuMFModel, tmp_path: Path) -> None:
    model.write_dense(tmp_path / "dense.zarr")
    matrix, cells, genes = open_dense(tmp_path / "dense.zarr")
    np.testing.assert_allclose(matrix[:], model.predict(), rtol=1e-5)
    np.testing.assert_array_equal(cells, model.cell_names)
    np.testing.assert_array_equal(genes, model.gene_names)
    opened = anndata.read_zarr(tmp_path / "dense.zarr")
    assert opened.var_names.tolist() == model.gene_names.tolist()
    assert opened.X.dtype == np.float32
    np.testing.assert_array_equal(opened.X, matrix[:])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_matrix_of_several_chunks_is_whole(
    model: NeuMFModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    monkeypatch.setattr(dense, "CHUNK_ENTRIES", 50 * 30)
    (tmp_path / "dense.zarr").mkdir()
    (tmp_path / "dense.zarr" / "left.behind").write_text("by an earlier attempt")
    model.write_dense(tmp_path / "dense.zarr", dtype)
    matrix, _, _ = open_dense(tmp_path / "dense.zarr")
    assert matrix.chunks == (50, 30)
    expected = np.vstack([block for _, block in model.predict_blocks(50)]).astype(dtype)
    np.testing.assert_array_equal(matrix[:], expected)
    np.testing.assert_array_equal(anndata.read_zarr(tmp_path / "dense.zarr").X, expected)
    assert not (tmp_path / "dense.zarr" / "left.behind").exists()


@pytest.mark.parametrize("kind", ["mlp", "neumf"])
def test_prediction_is_as_near_to_float64_as_is_said(kind: str) -> None:
    counts, _, _ = low_rank(cells=300, genes=120)
    sizes = {"gmf_size": 20, "mlp_size": 20, "tower": (64, 32, 16, 8)}
    model = train(counts, changed(kind=kind, epochs=30, pretrain_epochs=30, fusion_epochs=10, **sizes))
    exact = {name: table.double() for name, table in model.tables.items()}
    block = Block(model.layout, exact["cells"], exact["genes"], exact["shifts"][0], exact["tower"])
    log_mean = block_scores(block, Tower(model.layout)) + model.log_size[:, None].double()

    def error(predicted: np.ndarray) -> np.ndarray:
        return np.abs(np.log(predicted.astype(np.float64)) - log_mean.numpy())

    assert error(model.predict(precision="float32")).max() < 1e-5
    trained = error(model.predict())
    assert trained.max() < 0.05
    assert np.sqrt(np.mean(trained**2)) < 0.01


def test_embeddings_in_the_genes_metric_keep_distances_of_scores(model: NeuMFModel) -> None:
    assert model.cell_embedding("gmf").shape == (120, 4)
    assert model.cell_embedding("both").shape == (120, 7)
    out = model.layout.split_tower(model.tables["tower"])["out_gmf"].numpy()
    genes = model.tables["genes"][:, :4].numpy() * out
    scores = model.cell_embedding("gmf") @ (genes - genes.mean(axis=0)).T
    expected = pdist(scores) / np.sqrt(30)  # root mean square over genes
    np.testing.assert_allclose(pdist(model.cell_embedding("gmf", "gene")), expected, rtol=1e-4)


def test_a_branch_that_is_missing_is_refused() -> None:
    counts, _, _ = low_rank(cells=30)
    with pytest.raises(BadSettings, match="no mlp branch"):
        train(counts, changed(kind="gmf", epochs=1)).cell_embedding("mlp")


def test_some_genes_are_written_in_half_precision(tmp_path: Path) -> None:
    counts, _, _ = low_rank(cells=30, genes=20)
    model, genes = train(counts), np.array([2, 3, 11])
    model.write_dense(tmp_path / "dense.zarr", np.float16, genes=genes)
    matrix, cells, names = open_dense(tmp_path / "dense.zarr")
    assert matrix.dtype == np.float16
    np.testing.assert_array_equal(cells, model.cell_names)
    np.testing.assert_array_equal(names, model.gene_names[genes])
    np.testing.assert_allclose(matrix[:], model.predict()[:, genes], rtol=1e-3)


@pytest.mark.filterwarnings("error")
def test_means_beyond_float16_become_its_largest_number(tmp_path: Path) -> None:
    values = np.array([[1e5, 2.5], [7e4, 0.0]], np.float32)
    names = np.array(["a", "b"])
    dense.write_blocks(tmp_path, iter([(slice(0, 2), values)]), names, names, chunk_cells=2, dtype=np.float16)
    np.testing.assert_array_equal(open_dense(tmp_path)[0][:], np.float16([[65504, 2.5], [65504, 0]]))
    assert values.max() == 1e5, "the caller's values stay as they are"
