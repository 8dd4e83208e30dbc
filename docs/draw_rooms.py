"""Draws the rooms of the package and the imports between them, from the code, as the diagram of architecture.md.

python docs/draw_rooms.py           writes it into the page
python docs/draw_rooms.py --check   exits with 1 where the page shows another
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
INNER = {"core": ("counts", "neumf", "liger", "cells", "report")}
"""Rooms that are drawn with the rooms inside of them."""


def room_of(parts: tuple[str, ...]) -> str | None:
    """The room that a module stands in; none where it stands at the top of the package."""
    if len(parts) < 2:
        return None
    inner = INNER.get(parts[0], ())
    return f"{parts[0]}.{parts[1]}" if parts[1] in inner else parts[0]


def imports_between_rooms() -> set[tuple[str, str]]:
    """Which room imports from which."""
    package, found = ROOT / "neumf_assets", set()
    for path in sorted(package.rglob("*.py")):
        own = room_of(path.relative_to(package).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("neumf_assets."):
                continue
            other = room_of((*(node.module or "").split(".")[1:], "names"))
            if own and other and own != other:
                found.add((own, other))
    return found


def diagram() -> str:
    """The rooms and their imports in Mermaid's words; an arrow points to what is imported."""
    lines = ["flowchart BT"]
    imports = imports_between_rooms()
    rooms = sorted({room for pair in imports for room in pair})
    for outer in INNER:
        lines.append(f"  subgraph {outer}")
        inner = [room for room in rooms if room.startswith(f"{outer}.")]
        lines += [f"    {name_of(room)}[{room.partition('.')[2]}]" for room in inner]
        lines += [f"    {outer}_shared[what they share]"] if outer in rooms else []
        lines.append("  end")
    for own, other in sorted(imports):
        lines.append(f"  {name_of(own)} --> {name_of(other)}")
    return "\n".join(lines)


def name_of(room: str) -> str:
    """The name of a room in the diagram, where dots have a meaning of their own."""
    return f"{room}_shared" if room in INNER else room.replace(".", "_")


def main(arguments: list[str]) -> int:
    """Write or check the page."""
    text = PAGE.read_text(encoding="utf-8")
    drawn = re.sub(r"```mermaid\n.*?\n```", lambda _: f"```mermaid\n{diagram()}\n```", text, flags=re.DOTALL)
    if "--check" in arguments:
        return int(drawn != text)
    PAGE.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
