"""What Dagster and the operation of studies cost: overhead, load time, sensor ticks, many partitions.

Each part runs in a fresh process: the run of the example study beside the seconds inside its assets; loading
the definitions; ticks of the arrival sensor over an inbox of 1,000 files; pages and GraphQL queries of a study
with 500 datasets, with a real webserver and, where chromium is installed, in a real browser.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import harness

FILES, QUICK_FILES = 1000, 200
PARTITIONS, QUICK_PARTITIONS = 500, 50
REFUSED_SHARE = 0.1
LOADS = 5
NAME = "busy"
QUICK_STUDY = """\
name: tiny
simulate: {datasets: [[ctrl, 150, control], [stim, 120, stimulated]], genes: 400, seed: 3}
label_column: cell_type
model: {epochs: 3, pretrain_epochs: 2, tower: [16, 8], gmf_size: 8, mlp_size: 8, threads: 1}
ineumf: {kind: gmf, gmf_size: 8, epochs: 4, threads: 1}
evaluation: {baselines: [gene_mean, svd]}
liger: {k: 8, iterations: 10, trial_iterations: 2}
clusters: {resolutions: [0.4, 0.8], default_resolution: 0.4, seeds: [0, 1], hdbscan_min_size: 10}
umap: {n_epochs: 30}
"""
REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "neumf_assets"}
GROUP = {"groupName": NAME, **REPOSITORY}
QUERIES: dict[str, tuple[str, dict[str, Any]]] = {
    "assets of the group": (
        """query($group: AssetGroupSelector!) { assetNodes(group: $group) { id assetKey { path } description
             kinds groupName isPartitioned hasAssetChecks dependencyKeys { path } } }""",
        {"group": GROUP},
    ),
    "partition counts and last runs of all assets": (
        """query($group: AssetGroupSelector!) { assetNodes(group: $group) { id
             partitionStats { numMaterialized numFailed numPartitions numMaterializing }
             assetMaterializations(limit: 1) { timestamp runId } staleStatus freshnessInfo {
             currentMinutesLate } } }""",
        {"group": GROUP},
    ),
    "statuses of all partitions of one asset": (
        """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
             partitionKeysByDimension { name partitionKeys } assetPartitionStatuses { __typename
             ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } } } } }""",
        {"key": {"path": [NAME, "raw_counts"]}},
    ),
    "last materialisation of each of 100 partitions": (
        """query($key: AssetKeyInput!, $names: [String!]) { assetNodeOrError(assetKey: $key) {
             ... on AssetNode { latestMaterializationByPartition(partitions: $names) { timestamp partition
             metadataEntries { label } } } } }""",
        {"key": {"path": [NAME, "raw_counts"]}, "names": [f"d{number:04d}" for number in range(100)]},
    ),
    "staleness of all partitions of one asset": (
        """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
             staleStatusByPartition } } }""",
        {"key": {"path": [NAME, "dense_counts"]}},
    ),
}
OFF_PAGE = {"staleness of all partitions of one asset"}
PAGES = {  # address, and what can be read there once its data have come
    "lineage of the study": (f"/locations/neumf_assets/asset-groups/{NAME}/lineage", "report"),
    "list of the study's assets": (f"/locations/neumf_assets/asset-groups/{NAME}/list", "busy / comparison"),
    "partitions of an asset": (f"/assets/{NAME}/raw_counts?view=partitions", "Materialized ({n:,})"),
    "overview of an asset": (f"/assets/{NAME}/neumf_model?view=overview", "d{last:04d}"),
}
_QUIET_SECONDS = 0.6  # without a query: the page has all that it asked for
PROBE = "_operations_probe.py"
Row = dict[str, Any]


@contextlib.contextmanager
def fresh_home() -> Iterator[Path]:
    """A new home with a Dagster instance of its own, which the environment names meanwhile."""
    from neumf_assets.home import Home

    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="neumf-operations-") as folder:
        root = Path(folder) / "home"
        for name in ("NEUMF_STORAGE", "NEUMF_EXECUTOR"):
            os.environ.pop(name, None)
        os.environ |= {"NEUMF_HOME": str(root), "DAGSTER_HOME": str(root / "dagster"), "NEUMF_DEVICE": "cpu"}
        try:
            Home.from_environment().prepare()
            yield root
        finally:
            os.environ.clear()
            os.environ.update(before)


def ask_probe(part: str, **wanted: Any) -> dict[str, Any]:
    """Measure one part in a fresh process."""
    return harness.run_peer(sys.executable, PROBE, {"part": part, **wanted})


def load_time() -> Row:
    """Seconds until a fresh process has loaded the definitions."""
    with fresh_home():
        found, whole = [], []
        for _ in range(LOADS):
            begin = time.perf_counter()
            found.append(ask_probe("load"))
            whole.append(time.perf_counter() - begin)
    inside = {
        key: round(statistics.median(one[key] for one in found), 2) for key in ("dagster", "definitions")
    }
    return _row("definitions load, fresh process, s", statistics.median(whole), 2.5, f"of which {inside}")


def overhead(quick: bool) -> list[Row]:
    """The whole run of a study beside the seconds inside its assets."""
    with fresh_home() as root:
        if quick:
            (root / "studies" / "tiny.yaml").write_text(QUICK_STUDY)
        found = ask_probe("overhead", study="tiny" if quick else "example")
    if found["status"]:
        raise RuntimeError("the study's run failed")
    whole, inside = found["seconds_run"], found["seconds_in_assets"]
    detail = f"{whole:.1f} s, of which {inside:.1f} s in {found['materialisations']} materialisations"
    each = (whole - inside) / found["materialisations"]
    imported = found["import_dagster"] + found["import_libraries"]
    everything = (whole + imported) / (inside + found["import_libraries"])
    imports = f"dagster {found['import_dagster']:.1f} s, libraries {found['import_libraries']:.1f} s"
    return [
        _row("whole run / sum of seconds inside its assets", whole / inside, 1.5, detail),
        _row("the same with the imports, which the assets need but for Dagster's", everything, 1.5),
        _row("overhead of one materialisation, s", each),
        _row("imports before the run, s", imported, None, imports),
    ]


def sensor(files: int) -> list[Row]:
    """Ticks of the arrival sensor over an inbox of many files."""
    with fresh_home() as root:
        inbox = root / "inbox" / NAME
        inbox.mkdir(parents=True)
        (root / "studies" / f"{NAME}.yaml").write_text(f"name: {NAME}\narrival: {{quiet_seconds: 0}}\n")
        for number in range(files):
            cells = "\n".join(f"c{cell},{number % 7},{cell % 5}" for cell in range(50))
            (inbox / f"d{number:04d}.csv").write_text(f",G0,G1\n{cells}\n")
        found = ask_probe("ticks", study=NAME, refused=round(files * REFUSED_SHARE))
    rows = []
    for what in dict.fromkeys(one["what"] for one in found["ticks"]):
        same = [one for one in found["ticks"] if one["what"] == what]
        seconds = statistics.median(one["seconds"] for one in same)
        more = max(one["more_mib"] for one in same)
        rows.append(_row(f"sensor, {files:,} files: {what}, s", seconds, 1.0, f"{more:+.1f} MiB at most"))
    most = max(one["more_mib"] for one in found["ticks"])
    idle = (
        f"idle with the definitions loaded: {found['idle_mib']:.0f} MiB; cursor {found['cursor_kib']:.0f} KiB"
    )
    return [*rows, _row("sensor: memory above an idle process, MiB", most, 100.0, idle)]


def partitions(number: int) -> tuple[list[Row], str | None]:
    """Automation, queries and pages of a study with many datasets; and why there are no pages, if so."""
    with fresh_home() as root:
        (root / "studies" / f"{NAME}.yaml").write_text(f"name: {NAME}\n")
        (root / "inbox" / NAME).mkdir(parents=True)
        found = ask_probe("partitions", study=NAME, partitions=number)
        rows = [
            _row(
                f"{number} partitions: {one['what']} evaluation of the automation, s",
                one["seconds"],
                None,
                f"{one['more_mib']:+.1f} MiB at most",
            )
            for one in found["evaluations"]
        ]
        with webserver(root) as url:
            rows += [_query(url, what, number) for what in QUERIES]
            missing = None if shutil.which("chromium") else "chromium is not installed"
            if not missing:
                rows += _pages(url, number)
    return rows, missing


@contextlib.contextmanager
def webserver(root: Path) -> Iterator[str]:
    """A webserver on the home that the environment names; its address."""
    from neumf_assets_tests.e2e.servers import BIN, Server, free_port, wait_for

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(BIN / "dagster-webserver"), "-w", str(root / "dagster" / "workspace.yaml")]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT)}
    server = Server(command, root / "webserver.log", env=environment, cwd=root)
    server.start()
    try:
        wait_for(lambda: _loaded(url), "the webserver", 120)
        yield url
    finally:
        server.stop()


def _loaded(url: str) -> bool:
    query = "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }"
    try:
        entries = _ask(url, query, {})["workspaceOrError"]["locationEntries"]
    except OSError:
        return False
    return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)


def _ask(url: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        found = json.load(answer)
    if "errors" in found:
        raise RuntimeError(str(found["errors"])[:500])
    data: dict[str, Any] = found["data"]
    return data


def _query(url: str, what: str, number: int) -> Row:
    query, variables = QUERIES[what]
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        _ask(url, query, variables)
        seconds.append(time.perf_counter() - begin)
    target, said = (None, "no page that was opened asks this") if what in OFF_PAGE else (5.0, "")
    return _row(f"{number} partitions: query, {what}, s", statistics.median(seconds), target, said)


def _pages(url: str, number: int) -> list[Row]:
    """Seconds until a page is complete, opened twice, and its slowest query."""
    from playwright.sync_api import sync_playwright

    from neumf_assets_tests.e2e.conftest import CHROMIUM_FLAGS

    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        try:
            window = browser.new_context(viewport={"width": 1600, "height": 1000}, base_url=url)
            for what, (address, text) in PAGES.items():
                for time_of in ("first", "second"):  # the first time fills the browser's cache with scripts
                    seconds, slowest = _open(
                        window.new_page(), address, text.format(n=number, last=number - 1)
                    )
                    told = f"{number} partitions: page, {what}, {time_of} visit, s"
                    rows.append(_row(told, seconds, 5.0, slowest))
        finally:
            browser.close()
    return rows


def _open(page: Any, address: str, text: str) -> tuple[float, str]:
    """Seconds until a page shows a text and all that it asked for has come; what took longest."""
    started: dict[Any, float] = {}
    times: dict[str, float] = {}
    last = begin = time.perf_counter()

    def began(request: Any) -> None:
        if "/graphql" in request.url and request.method == "POST":
            started[request] = time.perf_counter()

    def ended(request: Any) -> None:
        nonlocal last
        if (at := started.pop(request, None)) is not None:
            last = time.perf_counter()
            name = json.loads(request.post_data or "{}").get("operationName") or "unnamed"
            times[name] = max(times.get(name, 0.0), last - at)

    page.on("request", began)
    page.on("requestfinished", ended)
    page.on("requestfailed", ended)
    page.goto(address, wait_until="commit")
    page.get_by_text(text).locator("visible=true").first.wait_for()
    shown = time.perf_counter()
    while started or time.perf_counter() - max(last, shown) < _QUIET_SECONDS:
        page.wait_for_timeout(50)
    page.close()
    slowest = max(times, key=lambda name: times[name], default="none")
    said = f"text after {shown - begin:.2f} s; {len(times)} queries, slowest {slowest} {times[slowest]:.2f} s"
    return max(shown, last) - begin, said


def _row(what: str, value: float, target: float | None = None, detail: str = "") -> Row:
    row = {"what": what, "value": harness.significant(value, 3), "target": target, "detail": detail}
    if target is not None:
        row["met"] = "yes" if value <= target else "NO"
    harness.say(row)
    return row


def main(quick: bool = False) -> dict[str, Any]:
    """Measure all parts; ``NEUMF_OPERATIONS`` names some of them only."""
    chosen = os.environ.get("NEUMF_OPERATIONS", "load overhead sensor partitions").split()
    rows, skipped = [], {}
    if "load" in chosen:
        rows.append(load_time())
    if "overhead" in chosen:
        rows += overhead(quick)
    if "sensor" in chosen:
        rows += sensor(QUICK_FILES if quick else FILES)
    if "partitions" in chosen:
        found, missing = partitions(QUICK_PARTITIONS if quick else PARTITIONS)
        rows += found
        if missing:
            skipped["pages"] = missing
    missed = [row["what"] for row in rows if row.get("met") == "NO"]
    return {
        "title": f"cost of operation: {'all targets met' if not missed else f'{len(missed)} targets MISSED'}",
        "rows": rows,
        "skipped": skipped,
        "notes": [
            "Seconds inside the assets hold computing and writing; libraries are imported before either is "
            "measured. Memory counts what the process holds at its highest more than after it has loaded the "
            "definitions. A page is complete when what it is about can be read and all that it asked for has come."
        ],
    }


if __name__ == "__main__":
    harness.script(main)
