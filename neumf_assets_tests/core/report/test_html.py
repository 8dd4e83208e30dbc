"""The report as a browser would read it: complete, self-contained, safe, and silent about what is missing."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from neumf_assets.core.report.content import (
    ArmResult,
    Comparison,
    Curves,
    DatasetEvaluation,
    DatasetSummary,
    FactorGenes,
    MarkerGene,
    Provenance,
    ReportContent,
    SweepRow,
)
from neumf_assets.core.report.html.page import render_report, report_html
from neumf_assets.core.report.plots.scores import RunScore
from neumf_assets.core.report.wording import headline, match_in_words, number, percent

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects what a page holds and insists that its elements nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text_of: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self._sections: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"unclosed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "section":
            self._sections.append(dict(attrs)["id"])
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self._sections.pop()

    def handle_data(self, data):
        where = self._sections[-1] if self._sections else ""
        self.text_of[where] = self.text_of.get(where, "") + data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def row(self, first: str) -> list[str]:
        return next(row for table in self.tables for row in table if row and row[0].startswith(first))

    @property
    def sections(self) -> list[str]:
        return [a["id"] or "" for tag, a in self.tags if tag == "section"]

    @property
    def images(self) -> list[dict[str, str | None]]:
        return [a for tag, a in self.tags if tag == "img"]


def arm(name: str, seed: int, factors: tuple[FactorGenes, ...] = ()) -> ArmResult:
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, 3, 120)
    label = np.array(["B", "T", "NK"], dtype=object)[cluster]
    label[:10] = np.nan
    return ArmResult(
        name=name,
        coordinates=rng.normal(size=(120, 2)) + 5 * cluster[:, None],
        dataset=np.array(["ctrl", "stim"])[rng.integers(0, 2, 120)],
        label=label,
        cluster=cluster,
        factors=factors,
    )


def full() -> ReportContent:
    rng = np.random.default_rng(0)
    predicted = rng.gamma(1, 1, 500)
    scores = {
        name: {
            "ari_mean": [base, base + 0.02, base - 0.02],
            "ami": [base + 0.1] * 3,
            "same_batch_neighbours": [share] * 3,
            "expected_same_batch": [0.5] * 3,
            "cross_batch_label_accuracy": [0.9, 0.9, 0.9],
            "seconds": [seconds] * 3,
            "own_score": [0.25] * 3,
        }
        for name, base, share, seconds in (("liger", 0.55, 0.6, 10.0), ("ineumf", 0.75, 0.49, 60.0))
    }
    return ReportContent(
        study="kang",
        title="Blood cells and interferon",
        description="A study.",
        created="2025-01-02 03:04 UTC",
        datasets=[
            DatasetSummary(
                name=name,
                cells=1200 + i,
                genes=900,
                zero_fraction=0.95,
                cells_read=1300,
                genes_read=1000,
                removed={"too few genes": 99},
                source=f"s3://bucket/{name}.h5ad",
                sha256=f"{i}abc" * 16,
                total_counts=rng.poisson(800, 100),
                genes_per_cell=rng.poisson(400, 100),
                mito_share=rng.beta(2, 30, 100),
            )
            for i, name in enumerate(("ctrl", "stim"))
        ],
        qc_thresholds={"genes_per_cell": 200},
        arms=[arm("liger", 0, (FactorGenes("1", ["ISG15"], {"stim": ["CXCL10"]}),)), arm("ineumf", 1)],
        comparison=Comparison(
            scores=scores,
            runs=[RunScore(a, r, s, {"ari": 0.5}) for a in scores for r in (0.2, 0.8) for s in (0, 1)],
            chance={"ari_mean": 0.001},
            best_arm="ineumf",
            rule="highest mean ARI.",
        ),
        curves=[
            Curves("ctrl", {"train": [3, 2, 1], "validation": [3.5, 2.5, 2]}),
            Curves("liger", {"objective": [9, 8, 7]}, kind="objective"),
        ],
        evaluations=[
            DatasetEvaluation(
                "ctrl",
                {"gene_mean": 0.26, "svd": 0.19, "neumf": 0.178},
                "neumf",
                {"neumf": {"HR@10": 0.8}, "popularity": {"HR@10": 0.7}},
                predicted,
                rng.poisson(predicted),
            )
        ],
        sweep=[SweepRow("k", k, 5.0, 9e5 - k, 0.1 * k, 1.5) for k in (10, 20)],
        markers={"10": [MarkerGene("GNLY", 4.2, 1e-9, 0.9, 0.1)], "2": [MarkerGene("MS4A1", 3.1)]},
        markers_arm="ineumf",
        warnings=["Some cells have no label."],
        provenance=Provenance(
            versions={"torch": "2.13.0"},
            seeds={"study": 7},
            settings={"model": {"tower": [64, 32]}},
            facts={"device": "cpu", "seconds": 12.5},
        ),
    )


def light() -> ReportContent:
    """All sections, few pictures."""
    content = full()
    assert content.comparison
    return replace(
        content,
        datasets=[replace(d, total_counts=None) for d in content.datasets],
        arms=[replace(content.arms[0], label=None, cluster=[0] * 120)],
        comparison=replace(content.comparison, runs=()),
        curves=content.curves[1:],
        evaluations=[replace(content.evaluations[0], predicted=None)],
    )


ALL_SECTIONS = [
    "in-short",
    "warnings",
    "data",
    "maps",
    "comparison",
    "scores-explained",
    "denoising",
    "training",
    "clusters",
    "markers",
    "factors",
    "sweep",
    "provenance",
]


@pytest.fixture(scope="module")
def html() -> str:
    return report_html(full())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_all_sections_are_there_and_in_the_table_of_contents(page):
    assert page.sections == ALL_SECTIONS
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert [f"#{s}" for s in ALL_SECTIONS if s != "warnings"] == links[: len(ALL_SECTIONS) - 1]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)) and {link[1:] for link in links} <= set(ids)


def test_nothing_is_loaded_from_outside(html, page):
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "srcset", "poster", "action", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#"))
        assert not any(name.startswith("on") for name in attributes)
    without_images = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?://|//[a-z]|@import|url\(", without_images.replace("s3://bucket", ""))
    policy = next(a for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy["content"].startswith("default-src 'none'")


def test_pictures_are_real_described_and_of_known_width(page):
    # histograms and violins, 3 colourings of 2 arms, comparison, calibration, loss, objective, heat map
    assert len(page.images) == 2 + 6 + 1 + 1 + 2 + 1
    for image in page.images:
        assert base64.b64decode(image["src"].split(",")[1]).startswith(b"\x89PNG")
        assert len(image["alt"]) > 10
        assert 100 < int(image["width"]) < 1300


def test_headline_says_in_words_what_was_found(page):
    text = " ".join(page.text_of["in-short"].split())
    assert "Best way to integrate this study: Integrative NeuMF" in text
    assert "match the given cell labels well: ARI, mean 0.75" in text and "LIGER 0.55" in text
    assert "49 % come from its own dataset" in text and "mixed as if they were one" in text
    assert "better than every simpler method, by 6.3 %" in text  # 1 - 0.178 / 0.19


def test_tables_hold_the_figures(page):
    assert page.row("ctrl")[1] == "1,200of 1,300"
    assert page.row("ARI, mean") == [
        "ARI, mean",
        "0.5500.530 to 0.570",
        "0.7500.730 to 0.770",
        "0.001",
    ]
    assert "Shuffled data: the scores of LIGER" in page.text_of["comparison"]
    assert page.row("20") == ["20", "899,980", "2.000", "1.5"]
    assert "Penalty" not in page.text_of["sweep"]  # lambda was not varied
    assert page.row("SVD of log counts") == ["SVD of log counts", "0.1900"]
    assert page.row("Popularity") == ["Popularity", "0.700"]
    assert ["1", "ISG15", "CXCL10"] in [row for table in page.tables for row in table]
    assert page.row("own score")[1:3] == ["0.250", "0.250"]
    assert page.row("torch") == ["torch", "2.13.0"]
    assert page.row("seed: study") == ["seed: study", "7"]
    assert "0abc" * 16 in page.text_of["provenance"] and '"tower"' in page.text_of["provenance"]


def test_best_values_are_stressed_by_each_scores_own_rule(html):
    def best_of(first: str) -> list[bool]:
        row = re.search(rf'<th scope="row">{first}.*?</tr>', html, re.DOTALL)
        assert row
        return ["best" in c for c in re.findall(r'<td class="([^"]*)"', row[0])]

    assert best_of("ARI, mean") == [False, True, False]
    assert best_of("Same-dataset neighbours") == [False, True, False]  # 0.49 is nearer to 0.5 than 0.6
    assert best_of("Seconds") == [True, False, False]  # lower is better
    assert best_of("AMI") == [False, True, False]
    assert best_of("Label accuracy across datasets") == [True, True, False]  # a tie
    assert best_of("own score") == [False, False, False]  # unknown: no judgement
    assert best_of("NeuMF") == [True]


def test_clusters_are_in_natural_order_with_their_markers(page):
    table = next(t for t in page.tables if t[0] == ["Cluster", "Marker genes"])
    assert [row[0] for row in table[1:]] == ["2", "10"]
    assert "GNLY" in table[2][1] and "4.2" in table[2][1]


def test_the_same_content_gives_the_same_page(html):
    assert report_html(full()) == html


def test_names_are_escaped_everywhere():
    evil = "<script>alert('x')</script>\"&$"
    content = full()
    content = replace(
        content,
        study=evil,
        title=evil,
        description=evil,
        created=evil,
        datasets=[
            replace(d, name=evil, source=evil, sha256=evil, removed={evil: 1}) for d in content.datasets
        ],
        arms=[
            replace(a, name=evil, factors=[FactorGenes(evil, [evil], {evil: [evil]})])
            for a in content.arms[:1]
        ],
        comparison=Comparison(
            {evil: {evil: [0.5]}}, [RunScore(evil, 1, 0, {"ari": 1})], {evil: 0}, evil, evil
        ),
        curves=[Curves(evil, {evil: [1, 2]})],
        evaluations=[DatasetEvaluation(evil, {evil: 1.0}, evil, {evil: {evil: 1.0}}, [1], [1])],
        markers={evil: [MarkerGene(evil, 1)]},
        markers_arm=evil,
        warnings=[evil],
        provenance=Provenance({evil: evil}, {evil: 1}, {evil: evil}, {evil: evil}),
    )
    labels = np.array([evil] * 120, dtype=object)
    content = replace(content, arms=[replace(content.arms[0], dataset=labels, label=labels, cluster=labels)])
    html = report_html(content)
    page = Page(html)
    assert "<script" not in html.lower()
    assert not any(tag == "script" for tag, _ in page.tags)
    assert evil in page.text_of["warnings"]
    assert page.sections[0] == "in-short"


def test_empty_study_is_a_valid_page_without_sections():
    page = Page(report_html(ReportContent(study="empty")))
    assert page.sections == [] and page.images == []
    assert "empty" in page.text_of[""]
    assert not any(tag == "nav" for tag, _ in page.tags)


@pytest.mark.parametrize(
    ("without", "gone"),
    [
        ({"comparison": None}, {"in-short", "comparison", "scores-explained"}),
        ({"datasets": []}, {"data"}),
        ({"evaluations": []}, {"denoising"}),
        ({"curves": []}, {"training"}),
        ({"markers": {}}, {"markers"}),
        ({"sweep": []}, {"sweep"}),
        ({"arms": []}, {"maps", "clusters", "factors"}),
        ({"warnings": []}, {"warnings"}),
        ({"provenance": None, "datasets": []}, {"provenance", "data"}),
    ],
)
def test_sections_without_data_are_left_out(without, gone):
    page = Page(report_html(replace(light(), **without)))
    assert set(ALL_SECTIONS) - set(page.sections) == gone
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert not links & {f"#{name}" for name in gone}


def test_study_without_labels_shows_no_label_views_or_scores():
    content = full()
    comparison = Comparison(
        {
            "liger": {
                "ari": [None],
                "ami": [None],
                "same_batch_neighbours": [0.55],
                "expected_same_batch": [0.5],
            }
        },
        [RunScore("liger", 0.5, 0, {"ari": None})],
    )
    arms = [replace(content.arms[0], label=None), replace(content.arms[1], label=[None] * 120)]
    page = Page(report_html(replace(content, comparison=comparison, arms=arms)))
    assert "By cell label" not in page.text_of["maps"] and "By dataset" in page.text_of["maps"]
    assert "ARI" not in page.text_of["comparison"] and "ARI" not in page.text_of["scores-explained"]
    assert "labels" not in page.text_of["in-short"] and "mixed" in page.text_of["in-short"]
    assert "Most frequent label" not in page.text_of["clusters"]
    assert "best" not in page.text_of["comparison"]


def test_one_dataset_and_one_arm_are_not_compared():
    content = full()
    only = replace(content.arms[0], dataset=["ctrl"] * 120)
    page = Page(
        report_html(
            replace(
                content,
                datasets=content.datasets[:1],
                arms=[only],
                comparison=Comparison({"liger": {"ari": [0.6]}}),
            )
        )
    )
    assert "By dataset" not in page.text_of["maps"]
    assert "Comparison" not in page.text_of["comparison"]
    assert "fairly well" in page.text_of["in-short"] and "Best way" not in page.text_of["in-short"]
    assert page.row("Cluster") == ["Cluster", "Cells", "Most frequent label"]


def test_losing_to_a_simple_method_is_said():
    alike = DatasetEvaluation("ctrl", {"svd": 0.19, "gmf": 0.18, "neumf": 0.18}, "neumf", part="gmf")
    text = " ".join(Page(report_html(replace(full(), evaluations=[alike]))).text_of["in-short"].split())
    assert "better than every simpler method, by 5.3 %" in text
    lost = DatasetEvaluation("ctrl", {"svd": 0.17, "neumf": 0.18}, "neumf")
    page = Page(report_html(replace(full(), evaluations=[lost])))
    assert "In 1 of 1 datasets a simpler method" in " ".join(page.text_of["in-short"].split())


def test_file_is_replaced_atomically(tmp_path: Path, monkeypatch):
    path = tmp_path / "deep" / "report.html"
    assert render_report(ReportContent(study="first"), path) == path
    before = path.read_text()
    assert "first" in before

    def dies(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(OSError, match="disk full"):
        render_report(ReportContent(study="second"), path)
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_words_for_numbers():
    assert number(1234567) == "1,234,567"
    assert number(None) == number(float("nan")) == "–"
    assert number(0.12345) == "0.123" and number(123.456) == "123.5" and number(12345.6) == "12,346"
    assert percent(0.4567) == "45.7\N{NO-BREAK SPACE}%" and percent(None) == "–"
    assert [match_in_words(x) for x in (0.95, 0.05)] == ["almost perfectly", "hardly better than chance"]


def test_headline_needs_a_chosen_or_single_arm():
    scores = {"a": {"ari": 0.5}, "b": {"ari": 0.6}}
    assert headline(None, scores) == []
    assert headline("missing", scores) == []
    assert len(headline("b", scores)) == 1
    apart = headline("a", {"a": {"same_batch_neighbours": 0.9, "expected_same_batch": 0.5}})
    assert "still lie apart" in apart[0]
