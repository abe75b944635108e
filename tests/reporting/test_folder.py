import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow
from hpopt.errors import InputError
from hpopt.reporting.charts import CHART_NAMES, draw_charts
from hpopt.reporting.files import write_insights
from hpopt.reporting.folder import write_report
from hpopt.reporting.markdown import render_note, render_text, render_trial_notes
from hpopt.reporting.page import render_page
from hpopt.reporting.summary import Summary, summarize
from hpopt.search.space import Categorical, Float

MakeTable = Callable[..., StudyTable]
MakeTrial = Callable[..., TrialRow]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")


def test_everything_is_written(report: list[Path]):
    assert [path.name for path in report] == [
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
    assert sorted(report) == sorted(report[0].parent.iterdir())
    for path in report:
        assert path.stat().st_size > 0
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report if path.suffix == ".png")


def test_the_same_study_gives_the_same_files(table: StudyTable, report: list[Path], tmp_path: Path):
    """People keep reports under version control."""
    for first, second in zip(report, write_report(table, summarize(table), tmp_path), strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_page_and_text_have_the_same_sections(report: list[Path]):
    page, text, *_ = report
    titles = ["Answer", "Warnings", "Confidence", "Parameter importance", "Cost", "Method"]
    assert re.findall(r"<h2>(.*?)</h2>", page.read_text()) == titles
    assert re.findall(r"^## (.*)$", text.read_text(), re.MULTILINE) == titles


def test_page_and_text_begin_with_the_objective(report: list[Path]):
    for path in report[:2]:
        assert "Minimizing val_loss (objective: pretrain)" in path.read_text()


class Addresses(HTMLParser):
    """Collects the addresses that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        self.loaded += [f"{tag} {value}" for name, value in attrs if name in ("src", "href")]


def addresses_in(page: str) -> list[str]:
    parser = Addresses()
    parser.feed(page)
    return parser.loaded


def test_the_page_loads_nothing(report: list[Path]):
    """It is sent by mail and opened without a network."""
    assert addresses_in(report[0].read_text()) == []


def test_names_and_reasons_cannot_inject_html(make_table: MakeTable, make_trial: MakeTrial):
    """A reason may be the last output of any program."""
    hostile = "</script><img src=x onerror=alert(1)>"
    row = make_trial(0, params={"schedule": hostile})
    failed = make_trial(1, state="FAIL", reason=hostile)
    table = make_table(row, failed, name=hostile, metric=hostile, file_text=hostile, objective=hostile)
    summary = summarize(table)
    assert addresses_in(render_page(table, summary, draw_charts(table, summary.insights))) == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_every_figure(report: list[Path], tmp_path: Path):
    """14 figures: 4 panels of sensitivity, 4 of training length, and 6 others."""
    folder = f"--user-data-dir={tmp_path / 'chromium'}"
    drawn = subprocess.run(
        [str(CHROMIUM), *QUIET, folder, "--virtual-time-budget=8000", "--dump-dom", report[0].as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    ).stdout
    assert drawn.count('class="main-svg"') >= 14
    assert len(re.findall(r'data-figure="figure-\d+"[^>]*class="js-plotly-plot"', drawn)) == 14


NAN_CURVE = (
    CurvePoint(step=1, tokens=0, seconds=0.0, value=None),
    CurvePoint(step=2, tokens=0, seconds=1.0, value=math.nan),
)
BARE: dict[str, Any] = {"params": {}, "curve": (), "started_at": None, "finished_at": None, "seed": None}
TWO_PARAMETERS = {
    "learning_rate": Float(low=1e-3, high=0.3, log=True),
    "schedule": Categorical(choices=("cosine", "linear")),
}


@pytest.mark.parametrize(
    ("changes", "search_space"),
    [
        pytest.param([], TWO_PARAMETERS, id="no trials"),
        pytest.param([{}], TWO_PARAMETERS, id="one trial"),
        pytest.param([BARE], TWO_PARAMETERS, id="one trial without params, times and curve"),
        pytest.param([{"state": "PRUNED"}] * 12, TWO_PARAMETERS, id="only pruned"),
        pytest.param([{"state": "RUNNING", "value": None, "curve": ()}], TWO_PARAMETERS, id="only running"),
        pytest.param([BARE | {"state": "FAIL", "value": None}] * 12, TWO_PARAMETERS, id="only failed"),
        pytest.param([{"value": math.nan, "curve": NAN_CURVE}] * 12, TWO_PARAMETERS, id="only NaN"),
        pytest.param([{}, *[{"value": math.inf}] * 11], TWO_PARAMETERS, id="infinite"),
        pytest.param([{"value": 0.0}] * 12, TWO_PARAMETERS, id="all equal"),
        pytest.param([{"params": {}}] * 12, {}, id="no parameters"),
        pytest.param([{"value": i * 1e300} for i in range(12)], TWO_PARAMETERS, id="huge"),
    ],
)
def test_every_study_has_a_report(
    make_table: MakeTable, make_trial: MakeTrial, tmp_path: Path, changes: list[dict[str, Any]], search_space: Any
):
    """People open reports while the first trial runs, and after all trials failed."""
    table = make_table(*(make_trial(i, **change) for i, change in enumerate(changes)), search_space=search_space)
    page, text, *_ = write_report(table, summarize(table), tmp_path)
    best = table.best()
    answer = "No result yet" if best is None else f"Trial {best.trial} reached"
    assert answer in page.read_text()
    assert answer in text.read_text()


def test_pictures_of_a_previous_report_are_removed(make_table: MakeTable, tmp_path: Path):
    for name in (*CHART_NAMES, "summary_table"):
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "other.png").touch()
    write_report(make_table(), summarize(make_table()), tmp_path)
    assert [path.name for path in tmp_path.glob("*.png")] == ["other.png"]


def test_a_folder_that_cannot_be_written_is_an_error_in_one_line(table: StudyTable, summary: Summary, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*the report cannot be written") as refusal:
        write_report(table, summary, tmp_path / "file" / "report")
    assert "\n" not in str(refusal.value)


def test_findings_are_in_page_text_and_json_with_their_remedies(
    make_table: MakeTable, make_trial: MakeTrial, tmp_path: Path
):
    table = make_table(*(make_trial(i, metrics={"train_val_overlap": 0.9}) for i in range(12)))
    summary = summarize(table)
    write_insights(table, summary, tmp_path / "insights.json")
    findings = json.loads((tmp_path / "insights.json").read_text())["findings"]
    (leak,) = (finding for finding in findings if finding["code"] == "leak")
    assert leak["severity"] == "error"
    assert leak["evidence"]
    page = re.sub("</?code>", "`", render_page(table, summary, {}))
    for sentence in (leak["message"], leak["remedy"]):
        assert sentence in render_text(table, summary, {})
        assert escape(sentence) in page


HOSTILE = "<img src=x onerror=alert(1)>"


class Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def make_hostile(make_table: MakeTable, make_trial: MakeTrial) -> StudyTable:
    """A study whose names, choices, reasons and file were written to be elements of a page."""
    closing = f"</script></pre></code>{HOSTILE}"
    trials = [
        make_trial(
            i,
            params={closing: 0.1 * i, "schedule": (closing, HOSTILE)[i % 2]},
            metrics={closing: 1.0, "train_val_overlap": 0.9},
        )
        for i in range(12)
    ]
    failed = make_trial(12, state="FAIL", value=None, reason=closing, curve=())
    return make_table(
        *trials,
        failed,
        name=closing,
        metric=closing,
        objective=closing,
        file_text=f"# `````\n# {closing}",
        search_space={closing: Float(low=0, high=2), "schedule": Categorical(choices=(closing, HOSTILE))},
        origin={"git commit": closing},
    )


def test_no_name_is_an_element_of_the_page(make_table: MakeTable, make_trial: MakeTrial, tmp_path: Path):
    table = make_hostile(make_table, make_trial)
    page, *_ = write_report(table, summarize(table), tmp_path)
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in page.read_text()
    elements = Elements(page.read_text()).found
    assert "h1" in {tag for tag, _ in elements}
    assert [attributes for tag, attributes in elements if tag == "img" and "onerror" in attributes] == []


def test_no_name_is_an_element_of_a_note(make_table: MakeTable, make_trial: MakeTrial):
    """The dashboard renders HTML within Markdown."""
    table = make_hostile(make_table, make_trial)
    summary = summarize(table)
    for text in (render_text(table, summary, {}), render_note(table, summary), *render_trial_notes(table).values()):
        before, _, fenced = text.partition("``````toml\n")
        file, _, after = fenced.partition("\n``````\n")
        assert file in {"", table.file_text}
        assert "<img" not in before + after
        assert "</" not in before + after
