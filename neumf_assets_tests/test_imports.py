"""Loading the definitions stays light, and the science stays free of Dagster."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Mapping
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


# A room imports those before it; `home` and what is not in a room are told apart below.
ROOMS = (
    "core",
    "scverse",
    "home",
    "dagster_internals",
    "study",
    "assets",
    "freshness",
    "intake",
    "running",
    "triggers",
    "definitions",
    "commands",
)


IN_CORE = ("counts", "cells", "annotation", "conditions", "neumf", "liger", "report")
"""Rooms of ``core``, in the same order; what stands beside them may be imported by all and imports none of them."""


def test_the_rooms_of_core_import_in_one_direction() -> None:
    wrong = []
    for path in sorted((PACKAGE / "core").rglob("*.py")):
        room = path.relative_to(PACKAGE / "core").with_suffix("").parts[0]
        before = IN_CORE[: IN_CORE.index(room) + 1] if room in IN_CORE else ()
        for name in imports_of(path):
            other = name.removeprefix("core.").split(".")[0]
            if other in IN_CORE and other not in before:
                wrong.append(f"core/{path.relative_to(PACKAGE / 'core')} imports {name}")
    assert not wrong, "against the direction " + " -> ".join(IN_CORE) + ": " + "; ".join(wrong)


def test_the_architectures_diagram_is_that_of_the_code() -> None:
    script = PACKAGE.parent / "docs" / "draw_rooms.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert done.returncode == 0, f"draw it anew: python {script}"


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a module imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.removeprefix("neumf_assets.") for name in found if name.startswith("neumf_assets.")}


def test_rooms_import_in_one_direction() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room not in ROOMS:
            continue  # the command's entry, which opens the rooms, and instances of studies
        for name in imports_of(path):
            other = name.split(".")[0]
            if other not in ROOMS[: ROOMS.index(room) + 1] and (room, other) != ("definitions", "defs"):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "against the direction " + " -> ".join(ROOMS) + ": " + "; ".join(wrong)


def test_modules_import_each_other_in_no_circle() -> None:
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = {of for of in (name_of(one, modules) for one in imports_of(path)) if of and of != name}
        graph[name] = found | {room for of in found for room in opened(name, of, modules)}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def opened(name: str, imported: str, modules: Mapping[str, Path]) -> set[str]:
    """The packages whose own code runs when a module of another package imports from them."""
    parts = imported.split(".")[:-1]
    packages = [".".join(parts[: length + 1]) for length in range(len(parts))]
    return {
        f"{package}.__init__"
        for package in packages
        if f"{package}.__init__" in modules and not name.startswith(f"{package}.")
    }


def name_of(imported: str, modules: Mapping[str, Path]) -> str | None:
    """The module that an imported name is, or stands in."""
    parent = imported.rpartition(".")[0]
    return next((name for name in (imported, parent) if name in modules), None)


def test_rooms_are_small_and_say_what_belongs_in_them() -> None:
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 13, (
            f"{folder.relative_to(PACKAGE)} holds {len(modules)} modules: make rooms of them"
        )
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


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
