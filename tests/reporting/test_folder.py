import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow
from hpopt.errors import InputError
from hpopt.reporting.folder import write_report
from hpopt.reporting.summary import summarize

MakeTable = Callable[..., StudyTable]
MakeTrial = Callable[..., TrialRow]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")


def test_everything_is_written(table: StudyTable, tmp_path: Path):
    written = write_report(table, summarize(table), tmp_path / "new" / "report")
    assert [path.name for path in written] == [
        "index.html",
        "report.md",
        "history.png",
        "importance.png",
        "sensitivity.png",
        "interactions.png",
        "budget.png",
        "parallel.png",
        "correlations.png",
        "curves.png",
        "summary_table.png",
        "trials.csv",
        "summary_table.csv",
        "insights.json",
    ]
    for path in written:
        assert path.stat().st_size > 0
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")


def test_the_page_tells_in_the_order_in_which_people_ask(table: StudyTable, tmp_path: Path):
    page, text, *_ = write_report(table, summarize(table), tmp_path)
    order = ["Answer", "How sure", "What matters", "Warnings", "Cost", "Method"]
    assert re.findall(r"<h2>(.*?)</h2>", page.read_text()) == order
    assert re.findall(r"^## (.*)$", text.read_text(), re.MULTILINE) == order


class Addresses(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        self.found += [f"{tag} {value}" for name, value in attrs if name in ("src", "href")]


def test_the_page_needs_nothing_else(table: StudyTable, tmp_path: Path):
    """It is sent by mail and opened on trains."""
    addresses = Addresses()
    addresses.feed(write_report(table, summarize(table), tmp_path)[0].read_text())
    assert addresses.found == []


def test_names_and_reasons_cannot_break_out_of_the_page(make_table: MakeTable, make_trial: MakeTrial, tmp_path: Path):
    """A reason is whatever a program printed last."""
    hostile = "</script><img src=x onerror=alert(1)>"
    row = make_trial(0, params={"schedule": hostile})
    failed = make_trial(1, state="FAIL", reason=hostile)
    table = make_table(row, failed, name=hostile, metric=hostile, file_text=hostile, objective=hostile)
    addresses = Addresses()
    addresses.feed(write_report(table, summarize(table), tmp_path)[0].read_text())
    assert addresses.found == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_every_figure(table: StudyTable, tmp_path: Path):
    """14 figures: 4 panels of sensitivity, 4 of the budget, and 6 others."""
    page = write_report(table, summarize(table), tmp_path / "report")[0]
    folder = f"--user-data-dir={tmp_path / 'chromium'}"
    drawn = subprocess.run(
        [str(CHROMIUM), *QUIET, folder, "--virtual-time-budget=8000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    ).stdout
    assert drawn.count('class="main-svg"') >= 14
    assert len(re.findall(r'data-figure="figure-\d+"[^>]*class="js-plotly-plot"', drawn)) == 14


def test_studies_without_much_to_tell_are_told_all_the_same(
    make_table: MakeTable, make_trial: MakeTrial, tmp_path: Path
):
    """People look at a report while the first trial is still running, and after everything went wrong."""
    nan_curve = (
        CurvePoint(step=1, tokens=0, seconds=0.0, value=None),
        CurvePoint(step=2, tokens=0, seconds=1.0, value=math.nan),
    )
    bare = {"params": {}, "curve": (), "started_at": None, "finished_at": None, "seed": None}
    tables = {
        "no trials": make_table(),
        "one": make_table(make_trial(0)),
        "one, bare": make_table(make_trial(0, **bare)),
        "only pruned": make_table(*(make_trial(i, state="PRUNED") for i in range(12))),
        "only running": make_table(make_trial(0, state="RUNNING", value=None, curve=())),
        "only failed": make_table(*(make_trial(i, state="FAIL", value=None, **bare) for i in range(12))),
        "nan": make_table(*(make_trial(i, value=math.nan, curve=nan_curve) for i in range(12))),
        "infinite": make_table(make_trial(0), *(make_trial(i, value=math.inf) for i in range(1, 12))),
        "all equal": make_table(*(make_trial(i, value=0.0) for i in range(12))),
        "no parameters": make_table(*(make_trial(i, params={}) for i in range(12)), search_space={}),
        "huge": make_table(*(make_trial(i, value=i * 1e300) for i in range(12))),
    }
    for name, table in tables.items():
        page, text, *_ = write_report(table, summarize(table), tmp_path / name)
        best = table.best()
        answer = "There is no answer yet" if best is None else f"Trial {best.trial} reached"
        assert answer in page.read_text(), name
        assert answer in text.read_text(), name


def test_a_picture_of_an_older_report_does_not_stay(table: StudyTable, make_table: MakeTable, tmp_path: Path):
    write_report(table, summarize(table), tmp_path)
    write_report(make_table(), summarize(make_table()), tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_the_same_study_gives_the_same_files(table: StudyTable, tmp_path: Path):
    reports = (write_report(table, summarize(table), tmp_path / name) for name in ("a", "b"))
    for first, second in zip(*reports, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_a_folder_that_cannot_be_written_is_told_in_one_line(table: StudyTable, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*no report can be written there") as refusal:
        write_report(table, summarize(table), tmp_path / "file" / "report")
    assert "\n" not in str(refusal.value)


def test_warnings_are_told_with_what_to_do_in_page_text_and_json(make_table, make_trial, tmp_path):
    """A number that is wrong does more harm than none."""
    leaky = make_table(*(make_trial(i, metrics={"train_val_overlap": 0.9}) for i in range(12)))
    page, text, *_, insights = write_report(leaky, summarize(leaky), tmp_path)
    (leak,) = (each for each in json.loads(insights.read_text())["findings"] if each["code"] == "leak")
    assert leak["severity"] == "error"
    assert leak["evidence"]
    for told in (leak["message"], leak["remedy"]):
        assert told in text.read_text()
        assert escape(told) in re.sub("</?code>", "`", page.read_text())
