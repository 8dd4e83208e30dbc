"""The Dagster UI of a real study, looked at and clicked in a browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from neumf_assets_tests.e2e.conftest import LOCATION, REPOSITORY, STUDY, Server, wait_until

# In one worker where tests are spread by group: the server is started once for all of them.
pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("ui")]

ASSET = f"/assets/{STUDY}"
DATASETS = ("ctrl", "late", "stim")
_DRAWN = """canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
                            .data.some(value => value > 0)"""
_ASSETS = """query Assets($group: AssetGroupSelector!) { assetNodes(group: $group) {
               assetKey { path } description kinds owners { ... on TeamAssetOwner { team } }
               assetMaterializations(limit: 1) { metadataEntries { label } } } }"""
_BACKFILL = """query Backfill { partitionBackfillsOrError(limit: 1) { ... on PartitionBackfills {
                 results { id status } } } }"""
_PARTITIONS = """query Partitions($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
                   assetPartitionStatuses { ... on DefaultPartitionStatuses {
                     materializedPartitions failedPartitions } }
                   assetMaterializations { partition } } } }"""


def partition(page: Page, name: str) -> Locator:
    """The row of a partition in the list on the left."""
    return page.get_by_text(name, exact=True).first


@pytest.fixture(scope="module")
def backfill(server: Server, browser: object) -> str:
    """A backfill of all datasets, one of them broken by now, launched by clicking; its id when it has ended."""
    page: Page = browser.new_page()  # type: ignore[attr-defined]
    page.goto(f"{ASSET}/raw_counts")
    page.get_by_role("button", name=re.compile("Materialize")).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="All", exact=True).click()
    expect(dialog).to_contain_text("3 partitions")
    dialog.get_by_role("button", name=re.compile("Launch")).click()
    expect(page.get_by_text(re.compile("backfill", re.IGNORECASE)).first).to_be_visible()
    page.close()
    found = wait_until(lambda: _ended_backfill(server), "the end of the backfill", 240)
    return str(found["id"])


def _ended_backfill(server: Server) -> dict[str, str] | None:
    results = server.ask(_BACKFILL)["partitionBackfillsOrError"]["results"]
    ended = [one for one in results if one["status"].startswith(("COMPLETED", "FAILED", "CANCELED"))]
    return ended[0] if ended else None


def test_lineage_shows_the_datasets_chain_and_all_three_arms(page: Page) -> None:
    page.goto(f"/locations/{LOCATION}/asset-groups/{STUDY}/lineage")
    nodes = page.locator("foreignObject")
    expect(nodes.filter(has_text="report")).to_be_visible()
    names = [text.strip() for text in nodes.all_text_contents()]
    once = ("raw_counts", "counts", "long_counts", "neumf_model", "dense_counts", "comparison", "integrated")
    assert {name: names.count(name) for name in once} == dict.fromkeys(once, 1)
    arms = {"factors": 2, "model": 1, "cell_embedding": 5, "clusters": 5, "umap": 5, "metrics": 5}
    assert {name: names.count(name) for name in arms} == arms


def test_every_asset_tells_a_newcomer_what_it_is_and_where_its_files_are(server: Server, page: Page) -> None:
    group = {"groupName": STUDY, **REPOSITORY}
    nodes = server.ask(_ASSETS, group=group)["assetNodes"]
    assert len(nodes) == 39
    for node in nodes:
        assert len(node["description"]) > 80, node["assetKey"]
        assert node["kinds"], node["assetKey"]
        assert node["owners"] == [{"team": "single-cell"}], node["assetKey"]
        labels = [entry["label"] for entry in node["assetMaterializations"][0]["metadataEntries"]]
        assert {"files", "seconds", "peak memory (MiB)", "size (MiB)"} <= set(labels), node["assetKey"]
    page.goto(f"{ASSET}/long_counts")
    expect(page.get_by_text("The counts as a long table")).to_be_visible()
    expect(page.get_by_text("count; only non-zero ones are listed")).to_be_visible()
    expect(page.get_by_text("single-cell").first).to_be_visible()
    expect(page.get_by_text(re.compile(r"/storage/tiny/long_counts/")).first).to_be_visible()


def test_asset_page_of_a_model_shows_its_loss_curve(page: Page) -> None:
    page.goto(f"{ASSET}/neumf_model?view=partitions&partition=ctrl")
    curve = page.locator("img[src^='data:image/svg+xml']").first
    expect(curve).to_be_visible()
    assert curve.evaluate("image => image.naturalWidth") > 100
    expect(page.get_by_text("blue: training, orange: validation")).to_be_visible()


@pytest.mark.parametrize(
    ("asset", "title"),
    [("ineumf/umap", "map of the cells"), ("counts?view=partitions&partition=ctrl", "quality control")],
)
def test_asset_page_shows_the_picture(page: Page, asset: str, title: str) -> None:
    page.goto(f"{ASSET}/{asset}")
    row = page.get_by_role("row").filter(has_text=title)
    row.get_by_text("[Show Markdown]").click()
    picture = page.get_by_role("dialog").locator("img[src^='data:image/png']")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 400


def test_scores_are_explained_beside_their_values(page: Page) -> None:
    page.goto(f"{ASSET}/liger/metrics?view=events")
    expect(page.get_by_text("Adjusted Rand index", exact=False).first).to_be_visible()
    page.goto(f"{ASSET}/comparison")
    for arm in ("LIGER", "NeuMF → LIGER", "Integrative NeuMF"):
        expect(page.get_by_role("columnheader", name=arm, exact=True).first).to_be_visible()


def test_checks_say_whether_the_model_beats_the_baselines(page: Page) -> None:
    page.goto(f"{ASSET}/neumf_evaluation?view=checks")
    expect(page.get_by_text("beats_baselines").first).to_be_visible()
    expect(page.get_by_text("The model predicts held-out counts better", exact=False)).to_be_visible()


def test_backfill_launched_by_clicking_finishes_the_healthy_datasets(server: Server, backfill: str) -> None:
    found = server.ask(_PARTITIONS, key={"path": [STUDY, "raw_counts"]})["assetNodeOrError"]
    assert sorted(found["assetPartitionStatuses"]["materializedPartitions"]) == ["ctrl", "stim"]
    assert found["assetPartitionStatuses"]["failedPartitions"] == ["late"]
    made = sorted(one["partition"] for one in found["assetMaterializations"])
    assert made == ["ctrl", "ctrl", "late", "stim", "stim"]


@pytest.mark.usefixtures("backfill")
def test_partition_view_tells_the_failed_dataset_from_the_healthy_ones(page: Page) -> None:
    page.goto(f"{ASSET}/raw_counts?view=partitions")
    expect(page.get_by_text("Failed (1)")).to_be_visible()
    expect(page.get_by_text("Materialized (2)")).to_be_visible()
    for name in DATASETS:
        expect(partition(page, name)).to_be_visible()
    partition(page, "late").click()
    expect(page.get_by_text("failed, and did not materialize this asset")).to_be_visible()
    expect(
        page.get_by_text(re.compile("line 2, column 3.*put 0 where nothing was seen")).first
    ).to_be_visible()
    partition(page, "ctrl").click()
    expect(page.get_by_text("Materialized", exact=True).first).to_be_visible()
    expect(page.get_by_text("SHA-256 of the source")).to_be_visible()


def test_failed_run_names_the_file_the_place_and_the_mend(server: Server, page: Page, backfill: str) -> None:
    runs = server.ask(
        """query Failed { runsOrError(filter: {statuses: [FAILURE]}, limit: 1) {
             ... on Runs { results { runId } } } }"""
    )["runsOrError"]["results"]
    page.goto(f"/runs/{runs[0]['runId']}")
    expect(page.get_by_text(re.compile(r"late\.csv\.gz, line 2, column 3")).first).to_be_visible()
    expect(page.get_by_text(re.compile("put 0 where nothing was seen")).first).to_be_visible()


@pytest.mark.usefixtures("backfill")
def test_numbers_are_plotted_over_several_materialisations(page: Page) -> None:
    page.goto(f"{ASSET}/raw_counts")
    page.get_by_text("Plots", exact=True).click()
    page.get_by_text("Events", exact=True).last.click()
    expect(page.get_by_text("zeros (share)", exact=True)).to_be_visible()
    first = page.locator("canvas").first
    expect(first).to_be_visible()
    wait_until(lambda: first.evaluate(_DRAWN), "a drawn plot", 30)


def test_run_page_shows_progress_of_the_training(server: Server, page: Page) -> None:
    runs = server.ask(
        """query Trained($job: String!) {
             runsOrError(filter: {pipelineName: $job, statuses: [SUCCESS]}) {
               ... on Runs { results { runId tags { key value } } } } }""",
        job=f"{STUDY}_train",
    )["runsOrError"]["results"]
    page.goto(f"/runs/{runs[-1]['runId']}?logs=train%20neumf")
    line = re.compile(r"train neumf \d+/\d+: .*train_loss -?\d")
    expect(page.get_by_text(line).first).to_be_visible()


def test_launchpad_documents_the_settings_and_refuses_unknown_ones(page: Page) -> None:
    page.goto(f"/locations/{LOCATION}/jobs/{STUDY}_train/playground")
    above = f"ops:\n  {STUDY}__neumf_model:\n    config:\n      model:\n        "
    editor = page.locator(".CodeMirror").first
    for setting, said in (
        ("epochz: 5", re.compile("unexpected config entry.*epochz")),
        ("epochs: 5", re.compile("^No errors$")),
    ):
        editor.click()
        page.keyboard.press("Control+A")
        page.keyboard.insert_text(above + setting)
        expect(page.get_by_text(said).first).to_be_visible()
    expect(page.get_by_text(re.compile("Batch normalisation of the hidden layers"))).to_be_visible()
    expect(page.get_by_text(re.compile("Allowed: at least 1, at most")).first).to_be_visible()


def test_automation_page_lists_sensors_and_schedule(page: Page) -> None:
    page.goto("/automation")
    for name in ("arrivals", "automation", "refresh"):
        expect(page.get_by_text(f"{STUDY}_{name}", exact=True)).to_be_visible()
    expect(page.get_by_text("At 03:00 AM UTC")).to_be_visible()
