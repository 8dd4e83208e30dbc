"""``neumf-assets notebook``: the notebook's configuration beside ours, on a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neumf_assets.cli import main
from neumf_assets_tests.core.neumf.problems import low_rank


def test_the_losses_are_means_over_all_entries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts, _, _ = low_rank(cells=90, genes=60)
    cells, genes = [f"AAACATACCAT{i:03d}-1" for i in range(90)], [f"GENE{i}" for i in range(60)]
    pd.DataFrame(counts.toarray().T, genes, cells).to_csv(tmp_path / "ctrl.csv")
    assert main(["notebook", str(tmp_path / "ctrl.csv")]) == 0
    printed = capsys.readouterr().out
    dense = counts.toarray()
    assert f"60 genes × 90 cells, {(dense == 0).sum():,} zeros" in printed
    figures = {
        line.split("│")[1].strip(): [float(part) for part in line.split("│")[2:6]]
        for line in printed.splitlines()
        if line.count("│") == 6
    }
    constant, _, notebook, default = figures.values()
    assert constant[0] == pytest.approx(np.mean((dense - dense.mean()) ** 2), abs=1e-4)
    assert list(figures)[2:] == ["model.preset: notebook", "default settings"]
    assert default[3] < min(notebook[3], constant[3])


def test_a_file_that_is_absent_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["notebook", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
