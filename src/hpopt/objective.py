"""Owns the bridge from a trial to a training run: config, evaluations, report, prune. Leaves the books to storage.

The only file besides training/ that imports the torch wing, and only when a trial is about to run.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from hpopt.errors import DatabaseError, Diverged, Fenced, Interrupted
from hpopt.study.file import StudyFile
from hpopt.study.objectives import import_function
from hpopt.training.run import Evaluation, Run

TrainingFunction = Callable[[Any, Run], Generator[Evaluation]]

# The training functions that come along, by the name a study file gives them.
OBJECTIVES = {"pretrain": "hpopt.training.pretrain:pretrain"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: complete, pruned, diverged, failed or preempted; its value if complete; why, in words."""

    kind: str
    value: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the loop is given besides the trial.

    `record` writes an evaluation down, and `spent` says which limit of the budget is reached, if any. `earlier` holds
    (step, value) of the goes before this one, which are reported again up to where this one resumes.
    """

    record: Callable[[Evaluation], None]
    spent: Callable[[], str | None]
    earlier: Sequence[tuple[int, float]] = ()
    never_prune: bool = False


def load_function(objective: str) -> TrainingFunction:
    """Import the training function of an objective."""
    return import_function(OBJECTIVES.get(objective, objective))


def fingerprint_data(file: StudyFile, cache: Path) -> str | None:
    """Name the data that the study trains on, preparing them if needed; None where the objective keeps its own."""
    if file.objective != "pretrain":
        return None
    from hpopt.training.data import data_fingerprint  # noqa: PLC0415 - torch is imported by those who train.

    return data_fingerprint(file.config({}), cache)


def run_trial(file: StudyFile, trial: Trial, config: Any, run: Run, around: Surroundings) -> Outcome:  # noqa: ANN401 - the objective's.
    """Train one trial and say how it ended; raises Fenced when the trial was handed on meanwhile."""
    try:
        return _train(file, trial, config, run, around)
    except Interrupted as stop:
        return Outcome(kind="preempted", reason=str(stop))
    except Diverged as error:
        return Outcome(kind="diverged", reason=str(error))
    except UpdateFinishedTrialError as error:
        raise Fenced(f"trial {trial.number} was handed on to another worker") from error
    except (Fenced, DatabaseError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a user's objective raises is the end of its trial, not of the worker.
        return Outcome(kind="failed", reason=f"{type(error).__name__}: {error}")


def _train(file: StudyFile, trial: Trial, config: Any, run: Run, around: Surroundings) -> Outcome:  # noqa: ANN401 - the objective's.
    value = None
    with closing(load_function(file.objective)(config, run)) as evaluations:
        for evaluation in evaluations:
            if value is None:
                _report_again(trial, around.earlier, evaluation.step)
            value = _metric(evaluation, file.metric)
            around.record(evaluation)
            if not math.isfinite(value):
                return Outcome(kind="diverged", reason=f"{file.metric} is {value} at step {evaluation.step}")
            trial.report(value, evaluation.step)
            if evaluation.step >= evaluation.n_steps:
                continue
            # The pruner is asked in any case: it takes down the value that others are compared with.
            if trial.should_prune() and not around.never_prune:
                return Outcome(kind="pruned", reason=f"not among the best at step {evaluation.step}")
            limit = around.spent()
            if limit is not None:
                return Outcome(kind="pruned", reason=f"the budget ended at step {evaluation.step}: {limit}")
    if value is None:
        return Outcome(kind="failed", reason="the objective yielded no evaluation")
    return Outcome(kind="complete", value=value)


def _report_again(trial: Trial, earlier: Sequence[tuple[int, float]], resumed_at: int) -> None:
    for step, value in earlier:
        if step < resumed_at:
            trial.report(value, step)


def _metric(evaluation: Evaluation, metric: str) -> float:
    if metric not in evaluation.metrics:
        known = ", ".join(sorted(evaluation.metrics))
        raise KeyError(f"the objective reports no '{metric}'; it reports {known}")
    return float(evaluation.metrics[metric])
