from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hpopt.analysis.cost import sum_cost
from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow
from hpopt.search.direction import Direction

START = datetime(2026, 1, 1, tzinfo=UTC)


def row(state: str, last_step: int, *, pace: float = 1.0, loading: float = 0.0, **changes: Any) -> TrialRow:
    """A trial with an evaluation every 10 steps, after `loading` seconds and then `pace` seconds per step."""
    curve = tuple(
        CurvePoint(step=step, tokens=step, seconds=loading + pace * step, value=1.0)
        for step in range(10, last_step + 1, 10)
    )
    seconds = curve[-1].seconds if curve else 0.0
    fields: dict[str, Any] = {"trial": 0, "value": 1.0, "params": {}, "device_seconds": seconds, "tokens": last_step}
    return TrialRow(state=state, curve=curve, **fields | changes)  # type: ignore[arg-type]


def table(*rows: TrialRow) -> StudyTable:
    fields: dict[str, Any] = {"name": "s", "metric": "loss", "direction": Direction.MINIMIZE, "objective": "pretrain"}
    return StudyTable(**fields, file_text="", search_space={}, trials=rows)


def test_hours_are_summed_by_the_state_of_the_trial():
    cost = sum_cost(
        table(
            row("COMPLETE", 100, device_seconds=3600),
            row("PRUNED", 20, device_seconds=1800),
            row("FAIL", 0, device_seconds=900),
            row("RUNNING", 0, device_seconds=900),
        )
    )
    assert (cost.complete_hours, cost.pruned_hours, cost.other_hours, cost.device_hours) == (1, 0.5, 0.5, 2)
    assert cost.tokens == 120


def test_a_pruned_trial_saves_its_remaining_steps_at_its_own_speed():
    """80 steps of 2 s and 50 of 1 s are saved, although a complete trial takes 9 s per step."""
    cost = sum_cost(table(row("COMPLETE", 100, pace=9), row("PRUNED", 20, pace=2), row("PRUNED", 50, pace=1)))
    assert cost.saved_hours == pytest.approx((80 * 2 + 50 * 1) / 3600)


def test_loading_is_excluded_from_the_speed():
    """With it, a trial pruned after a minute of compiling and 20 s of steps would save four times too much."""
    cost = sum_cost(table(row("COMPLETE", 100), row("PRUNED", 20, loading=60)))
    assert cost.saved_hours == pytest.approx(80 / 3600)


def test_the_time_of_all_devices_of_a_worker_is_saved():
    times = {"started_at": START, "finished_at": START + timedelta(seconds=20)}
    cost = sum_cost(table(row("COMPLETE", 100), row("PRUNED", 20, device_seconds=80, **times)))
    assert cost.saved_hours == pytest.approx(4 * 80 / 3600)


def test_without_a_complete_trial_the_saving_is_unknown():
    """The length of a full schedule is unknown."""
    assert sum_cost(table(row("PRUNED", 20))).saved_hours is None


@pytest.mark.parametrize("pruned", [row("PRUNED", 0), row("PRUNED", 100), row("PRUNED", 10)])
def test_pruned_trials_without_remaining_steps_save_nothing(pruned: TrialRow):
    saved = sum_cost(table(row("COMPLETE", 100), pruned)).saved_hours
    assert saved == pytest.approx(90 / 3600 if len(pruned.curve) == 1 else 0)
