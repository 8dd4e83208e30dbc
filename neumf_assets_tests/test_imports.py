"""Loading the definitions stays light, and the science stays free of Dagster."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import neumf_assets

PACKAGE = Path(neumf_assets.__file__).parent
HEAVY = ("torch", "umap", "sklearn", "numba", "scanpy", "anndata", "matplotlib", "pandas", "scipy")


def test_definitions_load_nothing_heavy(home: Path) -> None:
    program = (
        "import sys\n"
        "from neumf_assets.definitions import defs\n"
        "loaded = defs()\n"
        "assert len(list(loaded.resolve_asset_graph().get_all_asset_keys())) > 5\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "[]"


def test_core_imports_no_dagster() -> None:
    for path in (PACKAGE / "core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert not name.startswith("dagster"), path
                ours = name.startswith("neumf_assets") and not name.startswith("neumf_assets.core")
                assert not ours, f"{path} imports {name}: core must not know what uses it"


def test_importing_core_does_not_import_dagster() -> None:
    program = "import sys, neumf_assets.core.counts.readers; print('dagster' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["Study", "RegisteredStudies"])
def test_components_are_found_by_their_short_name(name: str) -> None:
    assert getattr(neumf_assets, name).__name__ == name
    assert name in dir(neumf_assets)


def test_unknown_names_are_told() -> None:
    with pytest.raises(AttributeError, match="Studdy"):
        _ = neumf_assets.Studdy
