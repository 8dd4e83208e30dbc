"""Which device is used, and where artifacts go, as the environment says."""

from __future__ import annotations

import uuid
from pathlib import Path

import dagster as dg
import pytest
import torch

from neumf_assets.core.store import Draft
from neumf_assets.running.resources import DeviceResource, StoreResource


@pytest.mark.parametrize(
    ("wanted", "cuda", "used"),
    [
        (None, False, "cpu"),
        (None, True, "cuda"),
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_the_device_is_the_one_that_is_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, wanted: str | None, cuda: bool, used: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    if wanted is not None:
        monkeypatch.setenv("NEUMF_DEVICE", wanted)
    assert DeviceResource().resolve() == used


def test_cuda_that_is_asked_for_and_absent_fails_with_the_mend(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("NEUMF_DEVICE", "cuda")
    with pytest.raises(dg.Failure, match="Set NEUMF_DEVICE=auto or cpu"):
        DeviceResource().resolve()


def test_a_device_of_another_name_is_refused() -> None:
    with pytest.raises(dg.Failure, match=r"'tpu'.*auto, cpu, cuda"):
        DeviceResource(device="tpu").resolve()


def _write(folder: Path) -> None:
    (folder / "a.txt").write_text("1")


@pytest.mark.parametrize("place", ["default", "folder", "url"])
def test_artifacts_go_where_the_environment_says(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    root = {"default": str(home / "storage"), "folder": str(tmp_path / "elsewhere")}.get(
        place, f"memory://{uuid.uuid4().hex}"
    )
    if place != "default":
        monkeypatch.setenv("NEUMF_STORAGE", root)
    key = ("study", "counts", "ctrl")
    StoreResource().open().publish(key, _write, Draft("f"))
    found = StoreResource().open().get(key)
    assert found.location.startswith(root)
    assert (found.path / "a.txt").read_text() == "1"
