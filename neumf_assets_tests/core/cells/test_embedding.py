from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn import get_config
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier

from neumf_assets.core.cells import embedding as embedding_module
from neumf_assets.core.cells.align import harmony_align
from neumf_assets.core.cells.embedding import _keep_compiled, tsne_embed, umap_bytes, umap_embed
from neumf_assets.core.cells.neighbours import Neighbours, find_neighbours
from neumf_assets.core.cells.scoring.metrics import expected_same_batch_share, same_batch_share
from neumf_assets.core.cells.settings import AlignSettings, UmapSettings
from neumf_assets.core.errors import NeumfError
from neumf_assets_tests.core.cells.data import blobs, noise


def test_umap_keeps_types_apart_and_repeats() -> None:
    data = blobs(per_type=40)
    neighbours = find_neighbours(data.embedding, 90)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first = umap_embed(data.embedding, neighbours)
    assert first.shape == (160, 2)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, umap_embed(data.embedding, neighbours))
    assert not np.array_equal(first, umap_embed(data.embedding, neighbours, UmapSettings(seed=1)))
    assert KNeighborsClassifier(5).fit(first, data.labels).score(first, data.labels) > 0.99


def test_umap_uses_the_given_neighbours() -> None:
    data = blobs(per_type=40)
    layout = umap_embed(noise(160).embedding, find_neighbours(data.embedding, 19))
    assert KNeighborsClassifier(5).fit(layout, data.labels).score(layout, data.labels) > 0.95


COMPILING = """
import numpy as np
from numba.core.event import Listener, install_listener
from neumf_assets.core.cells.embedding import umap_embed
from neumf_assets.core.cells.neighbours import find_neighbours

class Names(Listener):
    def on_start(self, event):
        function = event.data["dispatcher"].py_func
        print(function.__module__, function.__name__)

    def on_end(self, event):
        pass

points = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
neighbours = find_neighbours(points, 19)
print("layout:")
with install_listener("numba:compile", Names()):
    umap_embed(points, neighbours)
"""


def test_umap_is_compiled_by_the_first_process_only() -> None:
    data = blobs(per_type=40)
    umap_embed(data.embedding, find_neighbours(data.embedding, 19))
    done = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled = done.stdout.partition("layout:\n")[2].splitlines()
    assert [name for name in compiled if "tau_rand" not in name] == []  # these two when it is imported


def test_umap_is_compiled_anew_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data = blobs(per_type=40)
    neighbours = find_neighbours(data.embedding, 19)
    layout = umap_embed(data.embedding, neighbours)

    def no_folder(*_: object) -> None:
        raise RuntimeError("no locator available")

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", no_folder)
    _keep_compiled.cache_clear()
    np.testing.assert_array_equal(umap_embed(data.embedding, neighbours), layout)


def test_umap_of_a_sample_places_the_other_cells_among_their_own_kind() -> None:
    data = blobs(per_type=400)
    neighbours = find_neighbours(data.embedding, 19)
    chosen = UmapSettings(sample=1000)
    layout = umap_embed(data.embedding, neighbours, chosen)
    assert layout.shape == (1600, 2)
    assert np.isfinite(layout).all()
    np.testing.assert_array_equal(layout, umap_embed(data.embedding, neighbours, chosen))
    drawn = np.random.default_rng(0).choice(1600, 1000, replace=False)
    rest = np.setdiff1d(np.arange(1600), drawn)
    judge = KNeighborsClassifier(5).fit(layout[drawn], data.labels[drawn])
    assert judge.score(layout[rest], data.labels[rest]) > 0.99
    whole = umap_embed(data.embedding, neighbours, UmapSettings(sample=1600))
    np.testing.assert_array_equal(whole, umap_embed(data.embedding, neighbours))


def test_a_layout_that_exceeds_the_budget_is_that_of_a_sample(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = blobs(per_type=300)
    neighbours = find_neighbours(data.embedding, 19)
    wanted = [
        lay_out(data.embedding, neighbours, UmapSettings(sample=1000)) for lay_out in (umap_embed, _tsne)
    ]
    monkeypatch.setattr("neumf_assets.core.memory.budget", lambda: 1000)
    monkeypatch.setattr(embedding_module, "SAMPLE", 1000)
    with caplog.at_level(logging.INFO, "neumf_assets"):
        found = [lay_out(data.embedding, neighbours, UmapSettings()) for lay_out in (umap_embed, _tsne)]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "UMAP of 1200 cells would take" in caplog.text and "t-SNE of 1200 cells would take" in caplog.text
    assert caplog.text.count("1000 of them are laid out") == 2 and "umap.sample" in caplog.text


def _tsne(points: np.ndarray, neighbours: Neighbours, settings: UmapSettings) -> np.ndarray:
    return tsne_embed(points, settings, neighbours.metric)


def test_what_umap_takes_grows_faster_than_the_cells() -> None:
    assert 8 * 2**30 < umap_bytes(1_000_000, 20) < 12 * 2**30
    assert umap_bytes(100_000, 20) < 2**29


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_umap_of_few_cells_is_finite(n: int) -> None:
    points = noise(n).embedding
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        layout = umap_embed(points, find_neighbours(points, 90))
    assert layout.shape == (n, 2)
    assert np.isfinite(layout).all()


def test_tsne_keeps_types_apart_and_repeats() -> None:
    data = blobs(per_type=12)
    first = tsne_embed(data.embedding, UmapSettings(perplexity=8))
    np.testing.assert_array_equal(first, tsne_embed(data.embedding, UmapSettings(perplexity=8)))
    assert KNeighborsClassifier(5).fit(first, data.labels).score(first, data.labels) > 0.99


def test_tsne_of_a_sample_places_the_other_cells_among_their_own_kind() -> None:
    data = blobs(per_type=300)
    layout = tsne_embed(data.embedding, UmapSettings(sample=1000))
    drawn = np.random.default_rng(0).choice(1200, 1000, replace=False)
    rest = np.setdiff1d(np.arange(1200), drawn)
    judge = KNeighborsClassifier(5).fit(layout[drawn], data.labels[drawn])
    assert judge.score(layout[rest], data.labels[rest]) > 0.99


def test_tsne_computes_distances_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def fit(self: TSNE, points: np.ndarray) -> np.ndarray:
        used.append(get_config()["working_memory"])
        return points[:, :2]

    monkeypatch.setattr(TSNE, "fit_transform", fit)
    tsne_embed(noise(20).embedding)
    assert used == [64], "MiB; a GiB by default, whatever the budget"
    assert get_config()["working_memory"] != 64


def test_harmony_mixes_shifted_datasets_and_keeps_types() -> None:
    data = blobs(per_type=150, shift=4.0)
    codes = (data.dataset == "b").astype(int)
    before = same_batch_share(find_neighbours(data.embedding, 20), codes)
    aligned = harmony_align(data.embedding, data.dataset).embedding
    after = same_batch_share(find_neighbours(aligned, 20), codes)
    assert before > 0.9
    assert after < expected_same_batch_share(codes) + 0.1
    assert KNeighborsClassifier(5).fit(aligned, data.labels).score(aligned, data.labels) > 0.99


def groups_apart(
    kinds: list[tuple[int, str, int]], shift: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, kinds and datasets of groups (kind, dataset, cells) in ten dimensions; ``shift`` moves dataset ``b``."""
    rng = np.random.default_rng(seed)
    centres = 4 * np.random.default_rng(1).normal(size=(8, 10)) / np.sqrt(10)
    labels = np.repeat([kind for kind, _, _ in kinds], [cells for _, _, cells in kinds])
    dataset = np.repeat([name for _, name, _ in kinds], [cells for _, _, cells in kinds])
    points = centres[labels] + 0.7 * rng.normal(size=(len(labels), 10))
    points[dataset == "b"] += shift / np.sqrt(10)
    return points - points.mean(0), labels, dataset


def purity(points: np.ndarray, labels: np.ndarray) -> float:
    near = find_neighbours(points, 20).indices
    return float((labels[near] == labels[:, None]).mean())


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_datasets_without_a_kind_in_common_are_not_pushed_together(shift: float) -> None:
    kinds = [(kind, "a" if kind < 4 else "b", 200) for kind in range(8)]
    points, labels, dataset = groups_apart(kinds, shift)
    loose = harmony_align(points, dataset, AlignSettings(guarded=False))
    guarded = harmony_align(points, dataset)
    before = purity(points, labels)
    assert loose.passes == AlignSettings().passes
    assert purity(guarded.embedding, labels) > before - 0.02
    assert purity(guarded.embedding, labels) > purity(loose.embedding, labels) + 0.02
    assert guarded.passes < len(guarded.same_dataset) == len(guarded.own_kept)


def test_an_effect_of_the_dataset_is_taken_out_where_kinds_are_shared_and_some_are_not() -> None:
    kinds = [(kind, name, 200) for kind in range(6) for name in "ab"] + [(6, "a", 200), (7, "b", 200)]
    points, labels, dataset = groups_apart(kinds, 3.0)
    found = harmony_align(points, dataset)
    codes = (dataset == "b").astype(int)
    shared = labels < 6
    share = [
        same_batch_share(find_neighbours(part[shared], 20), codes[shared])
        for part in (points, found.embedding)
    ]
    assert found.passes
    assert share[1] < share[0] - 0.2
    assert purity(found.embedding, labels) > purity(points, labels) - 0.05


def test_harmony_of_a_sample_moves_the_other_cells_along() -> None:
    data = blobs(per_type=300, shift=3.0)
    whole = harmony_align(data.embedding, data.dataset, AlignSettings(n_clusters=8)).embedding
    chosen = AlignSettings(n_clusters=8, max_cells=400)
    found = harmony_align(data.embedding, data.dataset, chosen).embedding
    np.testing.assert_array_equal(found, harmony_align(data.embedding, data.dataset, chosen).embedding)
    batch = np.unique(data.dataset, return_inverse=True)[1]
    before, mixed, mixed_whole = (
        same_batch_share(find_neighbours(points, 20, metric="euclidean"), batch)
        for points in (data.embedding, found, whole)
    )
    assert mixed_whole < before and mixed < mixed_whole + 0.1
    votes = KNeighborsClassifier(5).fit(found, data.labels)
    assert votes.score(found, data.labels) > 0.99


def test_harmony_of_a_sample_keeps_a_dataset_of_few_cells() -> None:
    data = blobs(per_type=100)
    dataset = np.where(np.arange(400) < 3, "rare", data.dataset)
    found = harmony_align(data.embedding, dataset, AlignSettings(n_clusters=4, max_cells=100)).embedding
    assert np.isfinite(found).all() and found.shape == data.embedding.shape


def test_harmony_repeats_and_does_not_care_how_datasets_are_named() -> None:
    data = blobs(shift=3.0)
    first = harmony_align(data.embedding, data.dataset, AlignSettings(seed=5)).embedding
    np.testing.assert_array_equal(
        first, harmony_align(data.embedding, data.dataset, AlignSettings(seed=5)).embedding
    )
    codes = (data.dataset == "b").astype(int)
    np.testing.assert_array_equal(
        first, harmony_align(data.embedding, codes, AlignSettings(seed=5)).embedding
    )


def test_harmony_of_one_dataset_changes_nothing() -> None:
    data = blobs()
    np.testing.assert_array_equal(
        harmony_align(data.embedding, np.zeros(len(data.labels))).embedding, data.embedding
    )


def test_harmony_takes_as_many_cells_as_dimensions() -> None:
    data = noise(8, dims=8)
    codes = np.arange(8) % 2
    assert harmony_align(data.embedding, codes).embedding.shape == (8, 8)


def test_harmony_refuses_what_does_not_fit() -> None:
    data = noise(20)
    with pytest.raises(NeumfError, match="do not fit"):
        harmony_align(data.embedding, data.dataset[:-1])
    data.embedding[0, 0] = np.inf
    with pytest.raises(NeumfError, match="not finite"):
        harmony_align(data.embedding, data.dataset)
