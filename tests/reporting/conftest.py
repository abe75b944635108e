import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow
from hpopt.search.direction import Direction
from hpopt.search.space import Categorical, Float, Int

SPACE = {
    "learning_rate": Float(low=1e-3, high=0.3, log=True),
    "momentum": Float(low=0.8, high=0.99),
    "ns_steps": Int(low=1, high=9),
    "schedule": Categorical(choices=("cosine", "linear")),
}
START = datetime(2026, 1, 1, tzinfo=UTC)


def build_trial(number: int, *, state: str = "COMPLETE", **changes: Any) -> TrialRow:
    """A trial of a made-up model: learning rate matters most, then momentum; 10 s of each run are loading."""
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


@pytest.fixture
def make_trial() -> Callable[..., TrialRow]:
    return build_trial


@pytest.fixture
def make_table() -> Callable[..., StudyTable]:
    def make(*trials: TrialRow, **changes: Any) -> StudyTable:
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

    return make


@pytest.fixture
def table(make_table: Callable[..., StudyTable]) -> StudyTable:
    """40 trials, every third pruned, one failed, one diverged."""
    trials = [build_trial(i, state="PRUNED" if i % 3 == 2 else "COMPLETE") for i in range(38)]
    diverged = build_trial(38, state="PRUNED", value=1e9, reason="diverged")
    failed = build_trial(39, state="FAIL", value=None, reason="out of memory: 3 attempts", curve=())
    return make_table(*trials, diverged, failed)
