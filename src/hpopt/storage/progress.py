"""Owns the records that say where a study stands. Leaves filling them to storage/ and showing them to report/."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hpopt.hyperparameters import Scalar


@dataclass(frozen=True, kw_only=True)
class Books:
    """What a study has spent: logical trials, device hours, hours since its first attempt, and its best value.

    `active_hours` end with the last attempt, `wall_hours` go on. `state` is one of open, paused and stopped.
    """

    state: str
    state_reason: str | None
    n_ended: int
    n_held: int
    n_waiting: int
    device_hours: float
    wall_hours: float
    active_hours: float
    best_value: float | None

    @property
    def n_started(self) -> int:
        """Trials that were begun, whether they ended or not."""
        return self.n_ended + self.n_held + self.n_waiting


@dataclass(frozen=True, kw_only=True)
class Best:
    """One row of the view hpopt.best_params. The interval is empty and n_seeds 1 until replicates confirm the value."""

    study_name: str
    value: float
    value_low: float | None
    value_high: float | None
    n_seeds: int
    source: str
    params: Mapping[str, Scalar]
    trial: int
    finished_at: datetime


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """A worker of the fleet and what it last reported; the trial's fields are None between trials.

    `engine` started it, on the node `host`, as `job`, which is None on this machine. `seconds` are those of this go at
    the trial, `trial_device_seconds` those of all its goes, on any worker.
    """

    worker_id: int
    host: str
    pid: int
    engine: str
    job: str | None
    device: str
    started_at: datetime
    silent_seconds: float
    is_silent: bool
    device_seconds: float | None
    trial: int | None
    go: int | None
    trial_started_at: datetime | None
    seconds: float | None
    trial_device_seconds: float | None
    step: int | None
    tokens: int | None
    value: float | None
    tokens_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class EndedTrial:
    """A trial that is over: how it ended, with what value and why."""

    trial: int
    outcome: str
    value: float | None
    reason: str | None
    device_seconds: float
    finished_at: datetime


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a study stands: what it spent, how its trials ended, its workers, and its best against the defaults."""

    name: str
    metric: str
    state_since: datetime
    planned_trials: int | None
    over: str | None
    books: Books
    n_by_outcome: Mapping[str, int]
    tokens: int
    workers: tuple[WorkerRow, ...]
    best: Best | None
    default_value: float | None
