"""Fixtures that build study tables for the tests of analysis/."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from hpopt.analysis.trials import Outcome, StudyTable, TrialRow
from hpopt.search.direction import Direction
from hpopt.search.space import Categorical, Float, Int, Range

SPACE: Mapping[str, Range] = {
    "learning_rate": Float(low=1e-3, high=0.1, log=True),
    "ns_steps": Int(low=1, high=9),
    "optimizer": Categorical(choices=("muon", "adamw", "sgd")),
}


def build_table(rows: list[TrialRow], space: Mapping[str, Range] = SPACE, **changes: Any) -> StudyTable:
    fields: dict[str, Any] = {"name": "s", "metric": "loss", "direction": "minimize", "objective": "pretrain"}
    fields |= {"file_text": "", "search_space": space, "trials": tuple(rows), **changes}
    return StudyTable(**{**fields, "direction": Direction(fields["direction"])})


@pytest.fixture
def make_table() -> Callable[..., StudyTable]:
    """Builds a table of given rows."""
    return build_table


@pytest.fixture
def sample_table() -> Callable[..., StudyTable]:
    """Builds a table of random trials whose value is a function of the params plus noise."""

    def sample(value: Callable[[dict[str, Any]], float], n_trials: int = 40, noise: float = 0.01, **changes: Any):
        rng = np.random.default_rng(3)
        rows = []
        for trial in range(n_trials):
            params: dict[str, Any] = {
                "learning_rate": float(10 ** rng.uniform(-3, -1)),
                "ns_steps": int(rng.integers(1, 10)),
                "optimizer": str(rng.choice(["muon", "adamw", "sgd"])),
            }
            loss = value(params) + noise * rng.normal()
            rows.append(TrialRow(trial=trial, state="COMPLETE", value=loss, params=params, outcome=Outcome.COMPLETE))
        return build_table(rows, **changes)

    return sample
