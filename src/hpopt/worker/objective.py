"""Owns the bridge from a trial to a training run: config, evaluations, verdicts. Leaves the books to storage.

The torch wing is imported here alone, and only when a trial is about to run.
"""

import logging
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpopt.errors import DISK_TROUBLE, Diverged, Interrupted
from hpopt.study.file import POSTGRES_MAX_INT, StudyFile
from hpopt.study.objectives import import_function
from hpopt.training.config import PREPARED_BY
from hpopt.training.run import Evaluation, Run, never

_logger = logging.getLogger(__name__)

TrainingFunction = Callable[[Any, Run], Generator[Evaluation]]

# The training functions that come along, by the name a study file gives them.
OBJECTIVES = {"pretrain": "hpopt.training.pretrain:pretrain"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, as one of tables.OUTCOMES; its value, if it was complete or pruned; why, in words.

    `at_fault` is `device` (then it is lost) or `disk` (then it is preempted) where the machine failed, not the trial.
    """

    kind: str
    value: float | None = None
    reason: str | None = None
    at_fault: str | None = None


# Takes an evaluation, and gives a reason to stop the trial there, or None.
Judge = Callable[[Evaluation], str | None]


def load_function(objective: str) -> TrainingFunction:
    """Import the training function of an objective."""
    return import_function(OBJECTIVES.get(objective, objective))


def fingerprint_data(file: StudyFile, cache: Path, should_stop: Callable[[], bool] = never) -> str | None:
    """Name the data that all trials of a study share, preparing them if needed.

    None where the objective keeps its own, or where each trial has another. Raises Interrupted when asked to stop.
    """
    if file.objective != "pretrain" or set(PREPARED_BY) & file.search_space.keys():
        return None
    from hpopt.training.data import data_fingerprint  # noqa: PLC0415 - torch is imported by those who train.

    any_params = {name: searched.extremes()[0] for name, searched in file.search_space.items()}
    return data_fingerprint(file.config(any_params), cache, should_stop)


def run_trial(file: StudyFile, config: Any, run: Run, judge: Judge) -> Outcome:  # noqa: ANN401 - the objective's.
    """Train one trial and say how it ended. What the judge raises is passed on."""
    evaluations = _start(file.objective, config, run)
    if isinstance(evaluations, Outcome):
        return evaluations
    with _closing(evaluations):
        value = None
        while True:
            evaluation = _next(evaluations, file.metric)
            if isinstance(evaluation, Outcome):
                return evaluation
            if evaluation is None:
                return _complete(value)
            value = evaluation.metrics[file.metric]
            outcome = _judge(evaluation, value, file.metric, judge)
            if outcome is not None:
                return outcome


def _start(objective: str, config: Any, run: Run) -> Generator[Evaluation] | Outcome:  # noqa: ANN401 - the objective's.
    try:
        evaluations = load_function(objective)(config, run)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as in _next.
        return _failed(error)
    if not isinstance(evaluations, Generator):
        return Outcome(kind="failed", reason=f"{objective} is no generator function: it returned {evaluations!r}")
    return evaluations


@contextmanager
def _closing(evaluations: Generator[Evaluation]) -> Iterator[None]:
    """Close the generator at the end, so that its `finally` blocks run; what they raise comes too late to matter."""
    try:
        yield
    finally:
        with suppress(Exception):
            evaluations.close()


def _next(evaluations: Generator[Evaluation], metric: str) -> Evaluation | Outcome | None:
    """Train up to the next evaluation: None at the end, an Outcome where the training function gave up."""
    try:
        evaluation = next(evaluations, None)
        return None if evaluation is None else _plain(evaluation, metric)
    except Interrupted as stop:
        return Outcome(kind="preempted", reason=str(stop))
    except Diverged as error:
        return Outcome(kind="diverged", reason=str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the end of the trial, not of the worker.
        return _failed(error)


def _plain(evaluation: Evaluation, metric: str) -> Evaluation | Outcome:
    """Give an evaluation in plain numbers, whatever tensors and NumPy scalars it was made of."""
    if not isinstance(evaluation, Evaluation):
        return Outcome(kind="failed", reason=f"the objective yielded {evaluation!r}, which is no Evaluation")
    if metric not in evaluation.metrics:
        known = ", ".join(sorted(evaluation.metrics))
        return Outcome(kind="failed", reason=f"the objective reports no '{metric}'; it reports {known}")
    if not 0 <= evaluation.step <= POSTGRES_MAX_INT:
        return Outcome(kind="failed", reason=f"step {evaluation.step} is not within 0 and {POSTGRES_MAX_INT}")
    return Evaluation(
        step=int(evaluation.step),
        n_steps=int(evaluation.n_steps),
        tokens=int(evaluation.tokens),
        seconds=float(evaluation.seconds),
        metrics={name: float(value) for name, value in evaluation.metrics.items()},
    )


def _judge(evaluation: Evaluation, value: float, metric: str, judge: Judge) -> Outcome | None:
    reason = judge(evaluation)
    if not math.isfinite(value):
        return Outcome(kind="diverged", reason=f"{metric} is {value} at step {evaluation.step}")
    if reason is not None and evaluation.step < evaluation.n_steps:
        return Outcome(kind="pruned", value=value, reason=reason)
    return None


def _complete(value: float | None) -> Outcome:
    if value is None:
        return Outcome(kind="failed", reason="the objective yielded no evaluation")
    return Outcome(kind="complete", value=value)


def _failed(error: Exception | SystemExit) -> Outcome:
    """Tell a failure of the configuration from one of the machine, which says nothing about the configuration."""
    # The trial gets one line; whoever wrote the objective finds the rest in the worker's log.
    _logger.error("the objective failed", exc_info=error)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
        return Outcome(kind="preempted", reason=reason, at_fault="disk")
    if _is_sticky(error):
        return Outcome(kind="lost", reason=reason, at_fault="device")
    return Outcome(kind="failed", reason=reason)


def _is_sticky(error: BaseException) -> bool:
    """Say whether an error leaves the process without a usable device; running out of memory does not."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return "OutOfMemoryError" not in kinds and ("AcceleratorError" in kinds or "CUDA error" in str(error))
