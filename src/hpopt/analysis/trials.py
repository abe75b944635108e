"""The immutable table of a study's trials that analysis and reports read."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from statistics import fmean
from typing import Any, Literal

from hpopt.analysis.answer import Answer
from hpopt.formats import list_values
from hpopt.hyperparameters import Scalar
from hpopt.search.direction import Direction
from hpopt.search.pruner import Rungs
from hpopt.search.space import Range

State = Literal["COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING"]
NO_RUNGS = Rungs()
Params = tuple[tuple[str, Scalar], ...]

# Fractions of the schedule at which trials are compared if the study's pruner has no rungs.
DEFAULT_FRACTIONS = (1 / 9, 1 / 3)
# Steps are whole: a third of 100 steps is reached at step 33, as in search/pruner.py.
_ROUNDING = 0.5
# An evaluation at more than this multiple of the wanted step belongs to another budget.
_LATEST = 1.5


class Outcome(StrEnum):
    """How an attempt at a trial ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"
    PREEMPTED = "preempted"
    LOST = "lost"

    @property
    def is_final(self) -> bool:
        """Whether the trial has finished: the trial of a preempted or lost attempt is retried."""
        return self not in {Outcome.PREEMPTED, Outcome.LOST}

    @property
    def optuna_state(self) -> str:
        """The state of the attempt's Optuna trial, as the name of a member of optuna.trial.TrialState."""
        if self is Outcome.COMPLETE:
            return "COMPLETE"
        return "PRUNED" if self in {Outcome.PRUNED, Outcome.DIVERGED} else "FAIL"


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One evaluation: the metric after `step` optimizer steps. `seconds` is training time over all attempts."""

    step: int
    tokens: int
    seconds: float
    value: float | None


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial: its configuration, its state and its learning curve, over all attempts.

    `value` is the metric of a COMPLETE trial and the last reported one of a PRUNED trial. `outcome` is None until the
    trial has finished; a diverged trial is PRUNED. `metrics` are those of the last evaluation, finite or not.
    `is_default` marks the trial that runs the objective's default parameters. A run of a comparison has its `arm`, its
    resolved `config`, and the learning rates at the points of its curve if the objective reports them.
    """

    trial: int
    state: State
    value: float | None
    params: Mapping[str, Scalar]
    seed: int | None = None
    n_attempts: int = 1
    started_at: datetime | None = None
    finished_at: datetime | None = None
    device_seconds: float = 0.0
    tokens: int = 0
    reason: str | None = None
    curve: tuple[CurvePoint, ...] = ()
    outcome: Outcome | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_default: bool = False
    derived: Mapping[str, Scalar] = field(default_factory=dict)
    arm: str | None = None
    config: Mapping[str, Any] | None = None
    learning_rates: tuple[float | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ArmsDesign:
    """The arms of a comparison, by name, the baseline first: their values of the parameters that any of them sets.

    `data` is what chooses the text of each arm. `indifference` is the smallest difference that matters.
    `is_finished` tells whether all runs have finished.
    """

    arms: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, tuple[Any, ...]]
    indifference: float | None = None
    is_finished: bool = True


@dataclass(frozen=True, kw_only=True)
class ExternalTrials:
    """The complete and pruned trials that another program added to a study, by number.

    The `sampler` learns from those in `used`; tpe leaves out those with other parameters or ranges than the study's,
    other samplers all.
    """

    used: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()
    sampler: str = "tpe"

    def describe(self) -> str | None:
        """Return a line that names them and says which the sampler uses; None if there are none."""
        parts = []
        if self.used:
            parts.append(f"{list_values(self.used)}, used by the sampler")
        if self.left_out and self.sampler == "tpe":
            parts.append(f"{list_values(self.left_out)}, not used: other parameters or ranges than the study's")
        elif self.left_out:
            parts.append(f"{list_values(self.left_out)}; {self.sampler} uses no trials")
        return f"trials added outside of hpopt: {'; '.join(parts)}" if parts else None


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """A study and all its trials at one point in time.

    `rungs` are the fractions of the schedule at which the study's pruner compares trials. `origin` records when
    and with which file, data and versions the study was created, so that it can be reproduced. `answer` is that of its
    confirmation, `design` the arms of a comparison, `base` the configuration that one_at_a_time varies, with the values
    of inactive parameters. `n_parts` is the number of tables that a study with conditional parameters was split into,
    for which p-values are corrected.
    """

    name: str
    metric: str
    direction: Direction
    objective: str
    file_text: str
    search_space: Mapping[str, Range]
    trials: tuple[TrialRow, ...]
    rungs: Rungs = NO_RUNGS
    external: ExternalTrials = field(default_factory=ExternalTrials)
    origin: Mapping[str, str] = field(default_factory=dict)
    answer: Answer | None = None
    design: ArmsDesign | None = None
    base: Mapping[str, Scalar] | None = None
    n_parts: int = 1

    def complete(self) -> tuple[TrialRow, ...]:
        """Return the COMPLETE trials that have a finite value."""
        return tuple(row for row in self.trials if row.state == "COMPLETE" and is_finite(row.value))

    def pruned(self) -> tuple[TrialRow, ...]:
        """Return the PRUNED trials, with or without a value."""
        return tuple(row for row in self.trials if row.state == "PRUNED")

    def ranked(self) -> tuple[TrialRow, ...]:
        """Return the complete trials, best first; trials of equal value in the order of their numbers."""
        return tuple(sorted(self.complete(), key=lambda row: (self.loss(row.value), row.trial)))

    def best(self) -> TrialRow | None:
        """Return the trial of the answer: of the confirmation, else the best run of the best configuration."""
        if self.answer is not None:
            return next((row for row in self.trials if row.trial == self.answer.trial), None)
        return next((rows[0] for rows in self.replicates().values()), None)

    def replicates(self) -> dict[Params, tuple[TrialRow, ...]]:
        """Group the complete trials by their params, each group in the order of its values.

        The best configuration is the first, as in the view hpopt.best_params: of those with the most seeds, the one
        with the best mean over them. A single run may be better by chance.
        """
        groups: dict[Params, list[TrialRow]] = defaultdict(list)
        for row in self.ranked():
            groups[tuple(sorted(row.params.items()))].append(row)

        def key(item: tuple[Params, list[TrialRow]]) -> tuple[int, float]:
            losses, n_seeds = [self.loss(row.value) for row in item[1]], len({row.seed for row in item[1]})
            return -n_seeds, fmean(losses) if n_seeds > 1 else losses[0]

        return {params: tuple(rows) for params, rows in sorted(groups.items(), key=key)}

    def count_states(self) -> Mapping[State, int]:
        """Count the trials in each state that occurs."""
        return Counter(row.state for row in self.trials)

    def loss(self, value: float | None) -> float:
        """Return a number that is lower for a better value; infinity for values that are not finite."""
        return self.direction.loss(value)


def is_finite(value: float | None) -> bool:
    """Return whether a value is a finite number, which can be drawn and compared."""
    return value is not None and math.isfinite(value)


def comparison_fractions(table: StudyTable) -> tuple[float, ...]:
    """Return the fractions of the schedule at which trials are compared before its end."""
    return table.rungs.fractions or DEFAULT_FRACTIONS


def evaluations_at(table: StudyTable, fraction: float) -> Mapping[int, CurvePoint]:
    """Return, by trial, the first evaluation at a fraction of the schedule, of the trials that reached it.

    The value at half of a schedule is not that of a run half as long, whose learning rate would have decayed by then.
    """
    lengths = {row.curve[-1].step for row in table.complete() if row.curve}
    # The length of a pruned trial's schedule is known only where all complete trials have the same.
    common = lengths.pop() if len(lengths) == 1 else None
    rows = (*table.complete(), *table.pruned())
    points = {row.trial: _evaluation_at(row, fraction, common) for row in rows}
    return {trial: point for trial, point in points.items() if point is not None}


def _evaluation_at(row: TrialRow, fraction: float, common: int | None) -> CurvePoint | None:
    n_steps = row.curve[-1].step if row.state == "COMPLETE" and row.curve else common
    if n_steps is None:
        return None
    reached = (point for point in row.curve if point.step + _ROUNDING >= fraction * n_steps)
    point = next(reached, None)
    if point is None or not is_finite(point.value) or point.step > _LATEST * fraction * n_steps + 1:
        return None
    return point
