"""Run the training function of a trial: from its config to evaluations, and from decisions to a result.

Training code is imported only when a trial is about to run.
"""

import math
import os
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from hpopt.analysis.trials import Outcome
from hpopt.errors import DISK_ERRNOS, Diverged, Interrupted
from hpopt.formats import one_line, storable
from hpopt.search.conditions import extreme_params
from hpopt.storage.evaluations import Decision
from hpopt.study.file import StudyFile
from hpopt.study.objectives import import_function
from hpopt.training.config import PREPARED_BY
from hpopt.training.run import Evaluation, Run, never
from hpopt.worker.conversion import UnusableError, convert_returned, convert_yielded
from hpopt.worker.isolation import preserved_process

# Characters of a reason; the log has all.
_MAX_REASON = 1_000
_END = object()

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

    `test_metrics` are those of a complete run of a confirmation. With `fault` DEVICE the outcome is lost, with DISK it
    is preempted.
    """

    outcome: Outcome
    value: float | None = None
    reason: str | None = None
    test_metrics: Mapping[str, float] | None = None
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
    configs = [file.config({}, arm=arm) for arm in file.arms] or [file.config(extreme_params(file.search_space, 0))]
    if len({tuple(getattr(config, name) for name in PREPARED_BY) for config in configs}) > 1:
        return None
    from hpopt.training.data import data_fingerprint  # noqa: PLC0415 - it imports torch.

    return data_fingerprint(configs[0], cache, should_stop)


def run_trial(
    load: Callable[[], TrainingFunction],
    metric: str,
    config: Any,  # noqa: ANN401 - the objective's.
    run: Run,
    report: Report,
    *,
    log: Callable[[str], None],
    summarize: Callable[[float | None, float], float] = lambda _value, latest: latest,
) -> TrialResult:
    """Train one trial and return its result. Exceptions of `report` are passed on.

    Whatever the training function that `load` imports raises, yields or leaves behind concerns its own trial only.
    `log` takes a line, and the traceback of a failure. `summarize` returns the value of the trial from its value so
    far, if any, and the latest metric: by default the latest.
    """
    stop = _StopRequest(run.should_stop)
    with preserved_process(log):
        try:
            evaluations = _start(load(), metric, config, replace(run, should_stop=stop))
        except BaseException as error:  # noqa: BLE001 - it ends the trial, not the worker.
            return _end(error, stop, log)
        with _closing(evaluations, log):
            return _follow(evaluations, metric, report, stop=stop, log=log, summarize=summarize)


@dataclass
class _StopRequest:
    """Run.should_stop, and whether it has returned True."""

    should_stop: Callable[[], bool]
    was_requested: bool = False

    def __call__(self) -> bool:
        is_stopping = self.should_stop()
        self.was_requested = self.was_requested or is_stopping
        return is_stopping


def _start(function: TrainingFunction, metric: str, config: Any, run: Run) -> Iterator[Any]:  # noqa: ANN401 - the objective's.
    """Call the training function and return its iterator; that of one evaluation if it returned its value."""
    began = time.monotonic()
    with _forked_child_exits():
        returned = function(config, run)
    if isinstance(returned, Iterator):
        return returned
    return iter([convert_returned(returned, metric, time.monotonic() - began)])


@contextmanager
def _closing(evaluations: Iterator[Any], log: Callable[[str], None]) -> Iterator[None]:
    """Close a generator at the end, so that its `finally` blocks run; their exceptions do not change the result."""
    try:
        yield
    finally:
        try:
            if isinstance(evaluations, Generator):
                evaluations.close()
        except BaseException as error:  # noqa: BLE001 - as above.
            log(f"the training function raised while it was closed: {type(error).__name__}: {_describe(error)}")


def _follow(
    evaluations: Iterator[Any],
    metric: str,
    report: Report,
    *,
    stop: _StopRequest,
    log: Callable[[str], None],
    summarize: Callable[[float | None, float], float],
) -> TrialResult:
    """Train to the end, or to the first decision that ends the trial."""
    warned: set[str] = set()
    result, last_step = TrialResult(outcome=Outcome.FAILED, reason="the objective yielded no evaluation"), -1
    while True:
        try:
            with _forked_child_exits():
                yielded = next(evaluations, _END)
            if yielded is _END:
                return result
            evaluation, warnings = convert_yielded(yielded, metric)
        except BaseException as error:  # noqa: BLE001 - it ends the trial, not the worker.
            return _end(error, stop, log)
        if evaluation.step <= last_step:
            warnings["step"] = f"step {evaluation.step} after step {last_step} is left out: steps must increase"
        for subject in warnings.keys() - warned:
            log(warnings[subject])
        warned |= warnings.keys()
        if evaluation.step > last_step:
            last_step = evaluation.step
            value = summarize(result.value, evaluation.metrics[metric])
            result = TrialResult(outcome=Outcome.COMPLETE, value=value)
            early = _early_result(evaluation, metric, value, report(evaluation))
            if early is not None:
                return early
        if stop() and evaluation.step < evaluation.n_steps:
            return TrialResult(outcome=Outcome.PREEMPTED, reason=f"stopped after step {last_step}")


@contextmanager
def _forked_child_exits() -> Iterator[None]:
    """Exit a child that the training function has forked, where it leaves the function: it is not the worker."""
    worker_pid, code = os.getpid(), 0
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        raise
    finally:
        if os.getpid() != worker_pid:
            os._exit(code)


def _early_result(evaluation: Evaluation, metric: str, value: float, decision: Decision) -> TrialResult | None:
    """Return the result of a trial that an evaluation ends, or None if it goes on."""
    latest = evaluation.metrics[metric]
    if not math.isfinite(latest):
        return TrialResult(outcome=Outcome.DIVERGED, reason=f"{metric} is {latest} at step {evaluation.step}")
    if decision.prune_reason is not None and evaluation.step < evaluation.n_steps:
        return TrialResult(outcome=Outcome.PRUNED, value=value, reason=decision.prune_reason)
    return None


def _end(error: BaseException, stop: _StopRequest, log: Callable[[str], None]) -> TrialResult:
    """Return the result of a training function that raised: asked to stop, diverged, or a failure."""
    if isinstance(error, Interrupted) and stop.was_requested:
        return TrialResult(outcome=Outcome.PREEMPTED, reason=_describe(error))
    if isinstance(error, Diverged):
        return TrialResult(outcome=Outcome.DIVERGED, reason=_describe(error))
    if isinstance(error, UnusableError):
        return TrialResult(outcome=Outcome.FAILED, reason=str(error))
    # The trial has one line; the log of the worker has the traceback.
    log("".join(traceback.format_exception(error)).rstrip())
    reason = f"{type(error).__name__}: {_describe(error)}"
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return TrialResult(outcome=Outcome.PREEMPTED, reason=reason, fault=Fault.DISK)
    if _is_device_error(error):
        return TrialResult(outcome=Outcome.LOST, reason=reason, fault=Fault.DEVICE)
    return TrialResult(outcome=Outcome.FAILED, reason=reason)


def _describe(error: BaseException) -> str:
    """Return the message of an error on one line, also of one whose __str__ fails."""
    try:
        message = storable(one_line(str(error)))
    except Exception:  # noqa: BLE001 - it is code of the user's.
        return "its message cannot be shown"
    return message if len(message) <= _MAX_REASON else f"{message[:_MAX_REASON]}..."


def _is_device_error(error: BaseException) -> bool:
    """Return whether an error leaves the process without a usable device; running out of memory does not."""
    types, message = {kind.__name__ for kind in type(error).__mro__}, _describe(error)
    is_out_of_memory = "OutOfMemoryError" in types or "out of memory" in message
    return not is_out_of_memory and ("AcceleratorError" in types or "CUDA error" in message)
