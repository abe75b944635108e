import math
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from planted_studies import TRUTHS, Truth, plant

from hpopt.analysis.insights import compute_insights
from hpopt.analysis.trials import ArmsDesign, CurvePoint, StudyTable, TrialRow
from hpopt.reporting.chart import (
    Annotations,
    Axis,
    Band,
    Bars,
    Chart,
    Heatmap,
    Line,
    Panel,
    Points,
    Style,
    VerticalSpan,
)
from hpopt.reporting.charts import CHART_NAMES, draw_charts
from hpopt.reporting.folder import write_report
from hpopt.reporting.summary import Summary, summarize
from hpopt.search.direction import Direction
from hpopt.search.space import Categorical, Float, Int

ARMS = {"baseline": {"learning_rate": 0.02}, "warm": {"learning_rate": 0.03}, "hot": {"learning_rate": 0.3}}
SPACE = {
    "learning_rate": Float(low=1e-3, high=0.3, log=True),
    "momentum": Float(low=0.8, high=0.99),
    "ns_steps": Int(low=1, high=9),
    "schedule": Categorical(choices=("cosine", "linear")),
}
START = datetime(2026, 1, 1, tzinfo=UTC)


def build_comparison(**changes: Any) -> StudyTable:
    """Three arms with three seeds: the second is a bit better than the first, the third is worse."""
    noise = ((0.0, 0.001, 0.002), (0.02, 0.0, 0.001), (-0.01, 0.002, 0.0))
    rows = []
    for seed, (shared, *own) in enumerate(noise):
        for arm, effect, more in zip(ARMS, (0.0, -0.02, 0.1), (0.0, *own), strict=True):
            value = 3.0 + shared + effect + more
            row = build_trial(len(rows), value=value, arm=arm, seed=seed, params=ARMS[arm], config=ARMS[arm])
            rows.append(replace(row, curve=(*row.curve[:-1], replace(row.curve[-1], value=value))))
    design = ArmsDesign(arms=ARMS, data=dict.fromkeys(ARMS, ("text",)), indifference=0.01)
    fields: dict[str, Any] = {"name": "arms", "metric": "val_loss", "direction": Direction.MINIMIZE}
    fields |= {"objective": "pretrain", "file_text": "", "search_space": {}, "trials": tuple(rows), "design": design}
    return StudyTable(**{**fields, **changes})


def build_trial(number: int, *, state: str = "COMPLETE", **changes: Any) -> TrialRow:
    """A trial of a synthetic model: learning rate has the largest effect, then momentum; each run loads for 10 s."""
    rng = random.Random(number)  # noqa: S311 - no secret.
    params = {
        "learning_rate": 10 ** rng.uniform(-3, -0.52),
        "momentum": rng.uniform(0.8, 0.99),
        "ns_steps": rng.randint(1, 9),
        "schedule": rng.choice(["cosine", "linear"]),
    }
    final = 3.2 + 0.35 * (math.log10(params["learning_rate"]) + 1.4) ** 2 + 4 * (params["momentum"] - 0.93) ** 2
    steps = range(20, 201 if state == "COMPLETE" else 81, 20)
    curve = tuple(
        CurvePoint(step=step, tokens=step * 8192, seconds=10 + step * 0.5, value=final + 5 * math.exp(-step / 40))
        for step in steps
    )
    row: dict[str, Any] = {
        "trial": number,
        "state": state,
        "value": curve[-1].value,
        "params": params,
        "seed": number,
        "started_at": START + timedelta(minutes=number),
        "finished_at": START + timedelta(minutes=number, seconds=curve[-1].seconds),
        "device_seconds": curve[-1].seconds,
        "tokens": curve[-1].tokens,
        "curve": curve,
    }
    return TrialRow(**row | changes)


def build_table(*trials: TrialRow, **changes: Any) -> StudyTable:
    table: dict[str, Any] = {
        "name": "moe-muon",
        "metric": "val_loss",
        "direction": "minimize",
        "objective": "pretrain",
        "file_text": 'name = "moe-muon"\n',
        "search_space": SPACE,
        "trials": trials,
    }
    table |= changes
    return StudyTable(**table | {"direction": Direction(table["direction"])})


@pytest.fixture
def make_trial() -> Callable[..., TrialRow]:
    return build_trial


@pytest.fixture
def make_table() -> Callable[..., StudyTable]:
    return build_table


@pytest.fixture(scope="session")
def table() -> StudyTable:
    """40 trials, every third pruned, one failed, one diverged."""
    trials = [build_trial(i, state="PRUNED" if i % 3 == 2 else "COMPLETE") for i in range(38)]
    diverged = build_trial(38, state="PRUNED", value=1e9, reason="diverged")
    failed = build_trial(39, state="FAIL", value=None, reason="out of memory: 3 attempts", curve=())
    return build_table(*trials, diverged, failed)


@pytest.fixture(scope="session")
def summary(table: StudyTable) -> Summary:
    return summarize(table)


@pytest.fixture(scope="session")
def charts(table: StudyTable, summary: Summary) -> dict[str, Chart]:
    return draw_charts(table, summary.insights)


@pytest.fixture(scope="session")
def report(table: StudyTable, summary: Summary, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of a report, in a folder that did not exist."""
    return write_report(table, summary, tmp_path_factory.mktemp("reports") / "new" / "report")


@pytest.fixture(scope="session")
def planted() -> StudyTable:
    """80 trials with every finding that a chart shows: learning rate and momentum interact, a high rate diverges."""
    truth = Truth(effect=TRUTHS["interaction"].effect, diverges=TRUTHS["cliff"].diverges)
    return plant(truth, 80, seed=0)


@pytest.fixture(scope="session")
def planted_summary(planted: StudyTable) -> Summary:
    return summarize(planted)


@pytest.fixture(scope="session")
def planted_charts(planted: StudyTable, planted_summary: Summary) -> dict[str, Chart]:
    """The charts of a search, and those of a comparison and of one factor at a time."""
    compared = draw_charts(build_comparison(), compute_insights(build_comparison()))
    one_factor = draw_charts(make_one_factor(3), compute_insights(make_one_factor(3)))
    charts = {"comparison": compared["comparison"], "one_factor": one_factor["one_factor"]}
    charts |= draw_charts(planted, planted_summary.insights)
    return {name: charts[name] for name in CHART_NAMES if name in charts}


@pytest.fixture(scope="session")
def comparison() -> StudyTable:
    return build_comparison()


@pytest.fixture(scope="session")
def every_mark() -> Chart:
    """A chart with one mark of each kind, on linear and logarithmic axes and on axes with categories."""
    style = Style(color="#d55e00", label="x")
    marks = (
        Points(x=("b",), y=(1.0,), intervals=((0.5, 1.75),), style=style),
        Line(x=("a", "b"), y=(1.0, 2.0), style=style, ends_in_cross=True),
        Band(x=("a", "b"), low=(1.0, 1.5), high=(2.0, 3.0), style=style),
        Annotations(x=("b",), y=(1.0,), texts=("low",), position="below"),
    )
    bars = Bars(lengths={"q": 0.5}, intervals={"q": (0.2, 0.7)}, style=style, is_hatched=True)
    heatmap = Heatmap(x=("a",), y=("p", "q"), values=((0.5,), (None,)), texts=(("+0.50",), ("",)))
    span = VerticalSpan(low=0.2, high=0.4, style=style)
    return Chart(
        name="all",
        title="all",
        panels=(
            Panel(x=Axis(categories=("a", "b")), y=Axis(is_log=True, limits=(0.1, 10.0)), marks=marks),
            Panel(x=Axis(format="percent"), y=Axis(categories=("p", "q")), marks=(bars,)),
            Panel(x=Axis(categories=("a",)), y=Axis(categories=("p", "q")), marks=(heatmap,)),
            Panel(x=Axis(limits=(0, 1)), y=Axis(limits=(0, 1)), marks=(span,)),
        ),
    )


ONE_FACTOR_BASE = {"learning_rate": 0.01, "optimizer": "muon"}
ONE_FACTOR_LOSSES = {
    (0.001, "muon"): (4.0, 4.1, 4.0),
    (0.01, "muon"): (3.0, 3.1, 3.2),
    (0.1, "muon"): (2.5, 2.6, 2.6),
    (0.01, "adamw"): (3.2, 3.0, 3.2),
}


def make_one_factor(n_seeds: int) -> StudyTable:
    rows = [
        TrialRow(
            trial=len(ONE_FACTOR_LOSSES) * seed + i,
            state="COMPLETE",
            value=values[seed],
            params=dict(zip(ONE_FACTOR_BASE, point, strict=True)),
            seed=seed,
            metrics={"val_accuracy": 0.5, "val_loss": values[seed]},
            device_seconds=60.0,
        )
        for seed in range(n_seeds)
        for i, (point, values) in enumerate(ONE_FACTOR_LOSSES.items())
    ]
    space = {
        "learning_rate": Float(low=0.001, high=0.1, log=True, num=3),
        "optimizer": Categorical(choices=("muon", "adamw")),
    }
    return StudyTable(
        name="s",
        metric="val_loss",
        direction=Direction.MINIMIZE,
        objective="pretrain",
        file_text="",
        search_space=space,
        trials=tuple(rows),
        base=ONE_FACTOR_BASE,
    )


@pytest.fixture
def one_factor_table() -> Callable[[int], StudyTable]:
    """Builds the table of a one_at_a_time study of four configurations with a number of seeds."""
    return make_one_factor
