"""``neumf-assets samples``: a first sample sheet from what a folder holds."""

from __future__ import annotations

from pathlib import Path

from neumf_assets.core.counts.discover import list_datasets
from neumf_assets.core.counts.samples import SHEETS, sheet_of
from neumf_assets.core.errors import BadSettings
from neumf_assets.core.store import write_atomically


def write_sheet(folder: str) -> int:
    """Write ``samples.csv`` into a folder with a line for each dataset; returns the exit status.

    Raises
    ------
    BadSettings
        When the folder is none, holds no dataset, or has a sheet already.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BadSettings(f"{folder} is no folder. Give the folder that holds the study's count files.")
    if there := next((root / name for name in SHEETS if (root / name).exists()), None):
        raise BadSettings(f"{there} is there already. Edit it, or take it away first.")
    found = list_datasets(root)
    for refused in found.refused:
        print(f"left out: {refused}")
    if not found.datasets:
        raise BadSettings(f"There is no dataset in {folder} to list.")
    sheet = root / SHEETS[0]
    paths = {item.name: Path(item.path).relative_to(root).as_posix() for item in found.datasets}
    write_atomically(sheet, sheet_of(paths).encode())
    print(
        f"{sheet} lists {len(paths)} samples. Fill in donor and condition, add columns as you like, take out those "
        "you do not need, then: neumf-assets run " + folder
    )
    return 1 if found.refused else 0
