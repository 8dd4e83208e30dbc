"""The memory budget: sizes, the environment, and what is said when it is exceeded."""

from __future__ import annotations

import logging

import pytest

from neumf_assets.core import memory
from neumf_assets.core.errors import BadSettings


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("12GiB", 12 << 30),
        ("12g", 12 << 30),
        (" 1.5 GiB ", 3 << 29),
        ("800MB", 800_000_000),
        ("512 MiB", 512 << 20),
        ("2T", 2 << 40),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1GiB", "12 GiBs", "1e9", "GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match="no size of memory"):
        memory.parse_size(text)


def test_the_environment_sets_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUMF_MEMORY", "12GiB")
    assert memory.budget() == 12 << 30
    monkeypatch.setenv("NEUMF_MEMORY", "12 apples")
    with pytest.raises(BadSettings, match="NEUMF_MEMORY"):
        memory.budget()
    monkeypatch.setenv("NEUMF_MEMORY", "10MiB")
    with pytest.raises(BadSettings, match="at least 256MiB"):
        memory.budget()


def test_without_a_setting_it_is_half_of_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUMF_MEMORY", raising=False)
    monkeypatch.setattr(memory, "memory_limit", lambda: 1 << 30)
    assert memory.budget() == 1 << 29
    monkeypatch.setattr(memory, "memory_limit", lambda: None)
    assert memory.budget() == memory.available() // 2 > 1 << 29


def test_a_working_set_above_the_budget_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NEUMF_MEMORY", "1GiB")
    with caplog.at_level(logging.INFO, "neumf_assets"):
        assert not memory.exceeds(1 << 30, "training", "streaming")
        assert not caplog.records
        assert memory.exceeds((1 << 30) + 1, "training", "cells are read from disk")
    assert "training would take about 1.0 GiB" in caplog.text
    assert "cells are read from disk" in caplog.text


def test_what_cannot_be_cut_into_parts_warns_and_names_the_mend(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NEUMF_MEMORY", "1GiB")
    assert not memory.warn_if_exceeds(1 << 30, "reading", "split the file")
    assert not caplog.records
    assert memory.warn_if_exceeds(3 << 30, "reading", "Split the file")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "reading would take about 3.0 GiB" in caplog.text
    assert "at once all the same. Split the file" in caplog.text


def test_what_was_asked_for_bounds_the_budget_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NEUMF_MEMORY", raising=False)
    monkeypatch.setattr(memory, "available", lambda: 64 << 30)
    with memory.asked_for(2 << 30):
        assert memory.budget() == 1 << 30
        assert memory.warn_if_exceeds(2 << 30, "reading", "")
        assert "half of what it asks for in requests, or NEUMF_MEMORY" in caplog.text
        monkeypatch.setenv("NEUMF_MEMORY", "12GiB")
        assert memory.budget() == 12 << 30
        monkeypatch.delenv("NEUMF_MEMORY")
    assert memory.budget() == 32 << 30
    with memory.asked_for(128 << 30):
        assert memory.budget() == 32 << 30
