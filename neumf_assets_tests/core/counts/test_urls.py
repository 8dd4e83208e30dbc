"""Counts by URL: web server, any fsspec store; digests are verified on what arrived."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.settings import ReadSettings
from neumf_assets.core.errors import BadInput
from neumf_assets_tests.core.counts import files
from neumf_assets_tests.core.counts.files import FORMATS, SMALL


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "name", ["tsv.gz with Windows line ends", "GEO triple", "h5ad CSR", "10x HDF5 v3", "loom"]
)
def test_web_server(name: str, server: str, tmp_path: Path) -> None:
    writer, reading = FORMATS[name]
    path = writer(tmp_path, SMALL)
    url = f"{server}/{path.name}"
    there, here = read_counts(url, reading), read_counts(path, reading)
    assert (there.X != here.X).nnz == 0
    assert there.uns["provenance"]["source"] == url
    assert there.uns["provenance"]["sha256"] == here.uns["provenance"]["sha256"]


def test_query_of_a_url_is_no_part_of_the_name(server: str, tmp_path: Path) -> None:
    path = files.csv_genes_by_cells(tmp_path, SMALL)
    adata = read_counts(f"{server}/{path.name}?version=2")
    assert adata.uns["provenance"]["name"] == "ctrl"


def test_wrong_digest_and_missing_file(server: str, tmp_path: Path) -> None:
    files.csv_genes_by_cells(tmp_path, SMALL)
    with pytest.raises(BadInput, match="its SHA-256 is"):
        read_counts(f"{server}/ctrl.csv", ReadSettings(sha256={"ctrl": "0" * 64}))
    with pytest.raises(BadInput, match=r"nowhere\.csv: cannot be fetched"):
        read_counts(f"{server}/nowhere.csv")
    with pytest.raises(BadInput, match=r"labels\.csv: cannot be fetched"):
        read_counts(f"{server}/ctrl.csv", labels=f"{server}/ctrl.labels.csv")


def test_unreachable_and_unknown() -> None:
    with pytest.raises(BadInput, match="cannot be fetched"):
        read_counts("http://127.0.0.1:9/ctrl.csv")
    with pytest.raises(BadInput, match="cannot be fetched"):
        read_counts("nosuchprotocol://x/ctrl.csv")


@pytest.mark.parametrize(
    "name", ["10x v3 folder", "STARsolo folder", "Zarr v2", "Zarr v3", "csv, genes by cells"]
)
def test_folders_in_a_remote_store(name: str, tmp_path: Path) -> None:
    writer, reading = FORMATS[name]
    path = writer(tmp_path, SMALL)
    memory = fsspec.filesystem("memory")
    memory.put(str(path), f"/bucket/{path.name}", recursive=True)
    try:
        there, here = read_counts(f"memory://bucket/{path.name}", reading), read_counts(path, reading)
        assert (there.X != here.X).nnz == 0
        assert there.uns["provenance"]["sha256"] == here.uns["provenance"]["sha256"]
    finally:
        memory.rm("/bucket", recursive=True)
