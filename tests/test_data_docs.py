"""Great Expectations' Data Docs of a data set: pages that fetch nothing, show every fault, and take no harm from it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from qualivision.labels import MOS_COLUMNS
from qualivision.settings import ValidateSettings
from qualivision.stages import validate as stage
from qualivision.validation import ValidationReport, write_report
from qualivision.validation.clips import check_clips
from qualivision.validation.rules import check_table
from qualivision.validation.split import check_split
from qualivision.validation.suites import ROWS_SHOWN, Suites
from qualivision.validation.tables import Table
from qualivision.validation.videos import Clip
from qualivision.video import VideoInfo

BOUNDS = ValidateSettings(
    min_frames=2, min_side_px=8, max_side_px=99, max_seconds=9.0, max_prompt_characters=60, small_split_clips=9
)
HOSTILE = "<script>alert(1)</script><img src='https://example.org/x.png'> $x {{7}}"
MANY = 5000


def table(split: str, rows: int) -> Table:
    cells = {
        line: {
            "video_name": f"{split}{line}.mp4",
            "Prompt": f"{split} prompt {line}",
            **dict.fromkeys(MOS_COLUMNS, "3"),
        }
        for line in range(2, 2 + rows)
    }
    return Table(split, f"data/{split}.csv", ("video_name", "Prompt", *MOS_COLUMNS), cells)


class Page(HTMLParser):
    """What a page loads, links to, runs and shows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.parts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "href", "srcset", "data"):
                self.loads.append(value or "")
            elif name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def shows(self) -> str:
        """Its text, a blank between any two pieces and none that is wider."""
        return " ".join(" ".join(self.parts).split())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a data set with faults: a hostile prompt, a bad MOS, thousands of blanks, an unreadable video."""
    folder = tmp_path_factory.mktemp("made") / "reports"
    train, val = table("train", MANY), table("val", 3)
    for row in train.rows.values():
        row["Prompt"] += " "
    train.rows[2]["Prompt"] = HOSTILE
    train.rows[4]["Overall_MOS"] = "7"
    train.rows[6]["Overall_MOS"] = "NaN"
    suites = Suites()
    info = VideoInfo("h264", 16, 64, 64, 8.0, "mov,mp4,m4a,3gp,3g2,mj2", "yuv420p", "")
    clips = [Clip(Path(name), f"data/{name}", None, "error") for name in ("good.mp4", "<b>bad.mp4")]
    findings = [found for one in (train, val) for found in check_table(suites, one, BOUNDS)[0]]
    findings += check_split(suites, [train, val], BOUNDS)[0]
    findings += check_clips(suites, clips, {Path("good.mp4"): info, Path("<b>bad.mp4"): "is empty"}, BOUNDS, "data")[0]
    stale = folder / "data-docs" / "old.html"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier run")
    suites.build_docs(folder / "data-docs")
    write_report(ValidationReport(tuple(findings), {"train": {"rows": MANY, "videos": 0}}), folder)
    return folder


def pages(report: Path) -> dict[str, Page]:
    """By place in the Data Docs, without the time of the run."""
    found = sorted((report / "data-docs").rglob("*.html"))
    return {
        re.sub(r"/validate/.*", "", path.relative_to(report / "data-docs").as_posix()): Page(path) for path in found
    }


def test_there_is_an_index_and_two_pages_for_each_suite_and_nothing_else(report: Path) -> None:
    suites = ["labels-train", "labels-val", "split-drift", "split-prompts", "split-sizes", "videos"]
    expected = [
        "index.html",
        *(f"expectations/{name}.html" for name in suites),
        *(f"validations/{name}" for name in suites),
    ]
    assert sorted(pages(report)) == sorted(expected)
    assert {path.suffix for path in report.rglob("*") if path.is_file()} == {".html", ".json"}
    assert [path.name for path in report.iterdir() if path.name.startswith(".")] == []


def test_no_page_fetches_or_runs_anything(report: Path) -> None:
    for name, page in pages(report).items():
        assert page.loads == [], name
        assert page.handlers == [], name
        assert page.tags.isdisjoint({"script", "link", "img", "iframe", "button"}), name
        assert "default-src 'none'" in page.source
        assert "url(" not in page.source
        assert "@import" not in page.source
        assert str(report.parent) not in page.source
        assert "utm_" not in page.source


def test_every_link_leads_to_a_page_or_a_place_on_it(report: Path) -> None:
    for path in [*(report / "data-docs").rglob("*.html"), report / "validation.html"]:
        page = Page(path)
        for link in page.links:
            if link.startswith("#"):
                assert f'id="{link[1:]}"' in page.source, (path, link)
            else:
                assert (path.parent / unquote(link)).is_file(), (path, link)
    assert "data-docs/index.html" in Page(report / "validation.html").links


def test_failing_rows_are_shown_with_their_lines(report: Path) -> None:
    page = pages(report)["validations/labels-train"]
    assert re.search(
        r"1 unexpected values found[^%]*% of 5000 total rows. Unexpected Value Count line 7.0 1 4 ", page.shows
    )
    assert re.search(r"Unexpected Value Count line null 1 6 ", page.shows)
    assert "mos-range error" in page.shows
    assert "data/<b>bad.mp4" in pages(report)["validations/videos"].shows


def test_of_very_many_bad_rows_some_are_shown_and_all_are_counted(report: Path) -> None:
    page = pages(report)["validations/labels-train"]
    flat = page.shows
    assert f"{MANY - 1} unexpected values found" in flat.replace(",", "")
    assert "Sampled Unexpected Values" in flat
    assert flat.count("train prompt") == ROWS_SHOWN
    assert len(page.source) < 500_000


def test_what_stands_in_the_data_is_text_on_the_page(report: Path) -> None:
    page = pages(report)["validations/labels-train"]
    assert HOSTILE in page.shows


def test_warnings_fail_their_rule_and_not_their_suite(report: Path) -> None:
    found = pages(report)
    assert "Succeeded" in found["validations/labels-val"].shows
    assert "Failed" in found["validations/labels-train"].shows.replace("Failed only", "")
    assert "few-clips warning" in found["validations/split-sizes"].shows


@pytest.mark.parametrize(("screen", "opened"), [("", 0), (":0", 1)])
def test_the_docs_are_opened_where_there_is_a_screen(
    report: Path, monkeypatch: pytest.MonkeyPatch, screen: str, opened: int
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("webbrowser.open", seen.append)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", screen)
    index = stage.open_docs(report)
    assert index.is_file()
    assert seen == [index.as_uri()] * opened
