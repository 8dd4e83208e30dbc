"""Runs the benchmarks, each as its own process: ``python -m benchmarks [NAME …] [--quick]``."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.harness import ROOT, say

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"


def benchmarks() -> dict[str, str]:
    """Return name and first docstring line of every module of this folder that defines ``main``."""
    found = {}
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or path.stem).splitlines()[0]
    return found


def run(name: str, quick: bool) -> dict[str, Any]:
    """Run one benchmark in a process of its own and return its JSON document."""
    requires = getattr(importlib.import_module(f"benchmarks.{name}"), "requires", None)
    reason = requires() if requires else None
    if reason:
        return {"benchmark": name, "quick": quick, "skipped": {name: reason}}
    command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"benchmark": name, "quick": quick, "error": f"ended with status {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table; a column for every key, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |"]
    lines.append("|" + "---|" * len(columns))
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def section(document: dict[str, Any]) -> str:
    """Return one benchmark's result as Markdown."""
    lines = [f"## {document['benchmark']}: {document.get('title', 'not run')}", ""]
    if document.get("error"):
        return "\n".join([*lines, f"Failed: {document['error']}", ""])
    if document.get("rows"):
        lines += [table(document["rows"]), ""]
    lines += [f"- {name}: **{_cell(value)}**" for name, value in document.get("ratios", {}).items()]
    lines += [f"- skipped {name}: {reason}" for name, reason in document.get("skipped", {}).items()]
    lines += [f"- {note}" for note in document.get("notes", [])]
    machine = document.get("machine")
    if machine:
        where = ", ".join(f"{key} {value}" for key, value in machine.items())
        lines.append(f"- {document['seconds']} s, peak {document['peak_rss_mib']} MiB; {where}")
    return "\n".join([*lines, ""])


def write_summary(quick: bool) -> Path:
    """Write all results at hand into one Markdown file and return its path."""
    paths = sorted(path for path in RESULTS.glob("*.json") if path.name.endswith(".quick.json") == quick)
    sections = [section(json.loads(path.read_text())) for path in paths]
    summary = RESULTS / ("summary.quick.md" if quick else "summary.md")
    summary.write_text("# Benchmarks\n\n" + "\n".join(sections))
    return summary


def main() -> int:
    """Run the chosen benchmarks; return how many failed."""
    known = benchmarks()
    listed = "; ".join(f"{name}: {what}" for name, what in known.items())
    parser = argparse.ArgumentParser(prog="python -m benchmarks", epilog=listed)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, about 30 seconds each")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(known))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    RESULTS.mkdir(exist_ok=True)
    failed = 0
    for name in chosen.names or known:
        say(f"{name}: {known[name]}")
        document = run(name, chosen.quick)
        failed += "error" in document
        path = RESULTS / f"{name}{'.quick' if chosen.quick else ''}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        Console().print(Markdown(section(document)))
    say(f"written: {write_summary(chosen.quick).relative_to(ROOT)}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
