"""Counts by URL: web server, any fsspec store; digests are verified on what arrived."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from neumf_assets.core.counts.discover import list_datasets
from neumf_assets.core.counts.readers import read_counts
from neumf_assets.core.counts.readers.contents.validate import validated
from neumf_assets.core.counts.readers.read import store_counts
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


def test_what_is_fetched_to_be_stored_lies_where_it_is_stored(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FORMATS["h5ad CSR"][0](tmp_path, SMALL)
    folder, seen = tmp_path / "stored", []
    (folder / "neumf-killed").mkdir(parents=True)
    (folder / "neumf-killed" / "half of a file").write_text("…")

    def noted(*given: Any) -> Any:
        seen.extend(entry.name.startswith("neumf-") for entry in folder.iterdir())
        return validated(*given)

    monkeypatch.setattr("neumf_assets.core.counts.readers.read.validated", noted)
    assert store_counts(f"{server}/{path.name}", folder).shape == SMALL.counts.shape
    assert seen == [True]
    assert [entry.name for entry in folder.iterdir()] == ["counts.h5ad"]


def test_an_inbox_on_a_web_server(server: str, tmp_path: Path) -> None:
    table = files.csv_genes_by_cells(tmp_path, SMALL)
    (tmp_path / "ctrl.labels.csv").write_text(f"cell,type\n{files.CELLS[0]},T\n")
    files.tenx_v3_folder(tmp_path, SMALL).rename(tmp_path / "stim")
    datasets, refused = list_datasets(server)
    assert refused == []
    assert [dataset.name for dataset in datasets] == ["ctrl", "stim"]
    for dataset in datasets:
        assert read_counts(dataset.path, name=dataset.name, labels=dataset.labels).shape == (4, 5)
    assert [one.identity for one in list_datasets(f"{server}/").datasets] == [
        one.identity for one in datasets
    ]
    table.write_bytes(files.text_bytes(SMALL, True).replace(b"12", b"123"))
    assert list_datasets(server).datasets[0].identity != datasets[0].identity


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an empty bucket ``counts``, which s3fs finds through the environment."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="counts")
    yield client
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def test_object_storage_is_looked_at_anew_each_time(bucket: Any, tmp_path: Path) -> None:
    """s3fs remembers listings; a daemon that lives for weeks has to see what arrives and what changes."""

    def put(name: str, content: bytes) -> None:
        bucket.put_object(Bucket="counts", Key=f"inbox/{name}", Body=content)

    content = files.text_bytes(SMALL, True)
    put("ctrl.csv", content)
    (first,) = list_datasets("s3://counts/inbox").datasets
    there = read_counts(first.path, ReadSettings(sha256={"ctrl": hashlib.sha256(content).hexdigest()}))
    assert first.path == there.uns["provenance"]["source"] == "s3://counts/inbox/ctrl.csv"
    changed = content.replace(b"12", b"12345")
    put("ctrl.csv", changed)
    put("stim.csv", content)
    again = list_datasets("s3://counts/inbox").datasets
    assert [dataset.name for dataset in again] == ["ctrl", "stim"]
    assert again[0].identity != first.identity
    assert read_counts(first.path).uns["provenance"]["sha256"] == hashlib.sha256(changed).hexdigest()


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
