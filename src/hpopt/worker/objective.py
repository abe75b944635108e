"""Run the training function of a trial: from its config to evaluations, and from decisions to a result.

Training code is imported only when a trial is about to run.
"""

import logging
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hpopt.analysis.trials import Outcome
from hpopt.errors import DISK_ERRNOS, Diverged, Interrupted
from hpopt.storage.evaluations import Decision
from hpopt.study.file import POSTGRES_MAX_INT, StudyFile
from hpopt.study.objectives import import_function
from hpopt.training.config import PREPARED_BY
from hpopt.training.run import Evaluation, Run, never

_logger = logging.getLogger(__name__)

TrainingFunction = Callable[[Any, Run], Generator[Evaluation]]

# The training functions of hpopt, by their names in a study file.
OBJECTIVES = {"pretrain": "hpopt.training.pretrain:pretrain"}


class Fault(StrEnum):
    """The part of the machine that failed, where a trial did not end because of its configuration."""

    DEVICE = "device"
    DISK = "disk"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How the training of a trial ended: the outcome, the value of a complete or pruned trial, and the reason.

    With `fault` DEVICE the outcome is lost, with DISK it is preempted.
    """

    outcome: Outcome
    value: float | None = None
    reason: str | None = None
    fault: Fault | None = None


# Reports an evaluation and returns whether the trial goes on.
Report = Callable[[Evaluation], Decision]


def load_function(objective: str) -> TrainingFunction:
    """Import the training function of an objective."""
    return import_function(OBJECTIVES.get(objective, objective))


def fingerprint_data(file: StudyFile, cache: Path, should_stop: Callable[[], bool] = never) -> str | None:
    """Return a fingerprint of the data that all trials of a study share, after preparing them.

    Returns None for an objective of the user's, or if trials have different data. Raises Interrupted if `should_stop`
    returns True.
    """
    if file.objective != "pretrain" or set(PREPARED_BY) & file.search_space.keys():
        return None
    from hpopt.training.data import data_fingerprint  # noqa: PLC0415 - it imports torch.

    any_params = {name: searched.extremes()[0] for name, searched in file.search_space.items()}
    return data_fingerprint(file.config(any_params), cache, should_stop)


def run_trial(file: StudyFile, config: Any, run: Run, report: Report) -> TrialResult:  # noqa: ANN401 - the objective's.
    """Train one trial and return its result. Exceptions of `report` are passed on."""
    evaluations = _start(file.objective, config, run)
    if isinstance(evaluations, TrialResult):
        return evaluations
    with _closing(evaluations):
        value = None
        while True:
            evaluation = _next(evaluations, file.metric)
            if isinstance(evaluation, TrialResult):
                return evaluation
            if evaluation is None:
                return _complete(value)
            latest = evaluation.metrics[file.metric]
            value = latest if value is None or file.summary == "last" else file.direction.best((value, latest), float)
            result = _result(evaluation, latest, value, file.metric, report(evaluation))
            if result is not None:
                return result


def _start(objective: str, config: Any, run: Run) -> Generator[Evaluation] | TrialResult:  # noqa: ANN401 - the objective's.
    try:
        evaluations = load_function(objective)(config, run)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as in _next.
        return _failed(error)
    if not isinstance(evaluations, Generator):
        reason = f"{objective} is not a generator function: it returned {evaluations!r}"
        return TrialResult(outcome=Outcome.FAILED, reason=reason)
    return evaluations


@contextmanager
def _closing(evaluations: Generator[Evaluation]) -> Iterator[None]:
    """Close the generator at the end, so that its `finally` blocks run; their exceptions do not change the result."""
    try:
        yield
    finally:
        with suppress(Exception):
            evaluations.close()


def _next(evaluations: Generator[Evaluation], metric: str) -> Evaluation | TrialResult | None:
    """Train up to the next evaluation; None at the end, a TrialResult if the training function raised."""
    try:
        evaluation = next(evaluations, None)
        return None if evaluation is None else _convert(evaluation, metric)
    except Interrupted as stop:
        return TrialResult(outcome=Outcome.PREEMPTED, reason=str(stop))
    except Diverged as error:
        return TrialResult(outcome=Outcome.DIVERGED, reason=str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it ends the trial, not the worker.
        return _failed(error)


def _convert(evaluation: Evaluation, metric: str) -> Evaluation | TrialResult:
    """Return an evaluation with Python's numbers in place of tensors and NumPy scalars."""
    problem = None
    if not isinstance(evaluation, Evaluation):
        problem = f"the objective yielded {evaluation!r}, which is not an Evaluation"
    elif metric not in evaluation.metrics:
        problem = f"the objective reports no '{metric}'; it reports {', '.join(sorted(evaluation.metrics))}"
    elif not 0 <= evaluation.step <= POSTGRES_MAX_INT:
        problem = f"step {evaluation.step} is not within 0 and {POSTGRES_MAX_INT}"
    if problem is not None:
        return TrialResult(outcome=Outcome.FAILED, reason=problem)
    return Evaluation(
        step=int(evaluation.step),
        n_steps=int(evaluation.n_steps),
        tokens=int(evaluation.tokens),
        seconds=float(evaluation.seconds),
        metrics={name: float(value) for name, value in evaluation.metrics.items()},
    )


def _result(
    evaluation: Evaluation, latest: float, value: float | None, metric: str, decision: Decision
) -> TrialResult | None:
    """Return the result of a trial that ends with an evaluation, or None if it goes on."""
    if not math.isfinite(latest):
        return TrialResult(outcome=Outcome.DIVERGED, reason=f"{metric} is {latest} at step {evaluation.step}")
    if decision.prune_reason is not None and evaluation.step < evaluation.n_steps:
        return TrialResult(outcome=Outcome.PRUNED, value=value, reason=decision.prune_reason)
    return None


def _complete(value: float | None) -> TrialResult:
    if value is None:
        return TrialResult(outcome=Outcome.FAILED, reason="the objective yielded no evaluation")
    return TrialResult(outcome=Outcome.COMPLETE, value=value)


def _failed(error: Exception | SystemExit) -> TrialResult:
    """Return the result of an exception: a failure of the configuration, of the disk or of the device."""
    # The trial has one line; the log of the worker has the traceback.
    _logger.error("the objective failed", exc_info=error)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return TrialResult(outcome=Outcome.PREEMPTED, reason=reason, fault=Fault.DISK)
    if _is_device_error(error):
        return TrialResult(outcome=Outcome.LOST, reason=reason, fault=Fault.DEVICE)
    return TrialResult(outcome=Outcome.FAILED, reason=reason)


def _is_device_error(error: BaseException) -> bool:
    """Return whether an error leaves the process without a usable device; running out of memory does not."""
    types = {kind.__name__ for kind in type(error).__mro__}
    return "OutOfMemoryError" not in types and ("AcceleratorError" in types or "CUDA error" in str(error))
