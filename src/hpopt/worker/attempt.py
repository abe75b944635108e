"""Run one attempt of a worker at a trial, from its reservation to its result."""

import platform
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hpopt.analysis.trials import Outcome
from hpopt.errors import ConfigError, DeviceError, Fenced
from hpopt.formats import format_metric
from hpopt.hyperparameters import Scalar
from hpopt.storage import attempts
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.observations import ObservedTrials
from hpopt.storage.studies import Study, run_folder
from hpopt.training.run import Run
from hpopt.worker import objective, outbox
from hpopt.worker.database_thread import DatabaseThread
from hpopt.worker.objective import Fault, TrialResult
from hpopt.worker.reporter import TrialReporter


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Where a worker runs, where its files are, and its times.

    `engine` started it as `job`; `home` has the cache and the folders of trials; `log` takes a line; `stop` is set to
    ask the worker to stop. Other workers end its attempt `stale_after_s` after its last heartbeat; it exits after
    `give_up_after_s` without the database, or `stop_timeout_s` if it was asked to stop; a trial is retried
    `disk_retry_s` after a disk failed. `poll_every_s` is the interval in which it tries to reach an unreachable
    database and, growing to five times as much, in which it looks for work.
    """

    home: Path
    host: str = field(default_factory=platform.node)
    engine: str = "local"
    job: str | None = None
    device: str = "cpu"
    heartbeat_every_s: float = 15.0
    stale_after_s: float = 60.0
    give_up_after_s: float = 900.0
    stop_timeout_s: float = 3.0
    disk_retry_s: float = 10.0
    poll_every_s: float = 1.0
    log: Callable[[str], None] = print
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass
class Lease:
    """The attempt that a worker holds, and what its heartbeats have returned about it."""

    worker_id: int = 0
    attempt: Attempt | None = None
    is_fenced: bool = False
    is_paused: bool = False

    def hold(self, attempt: Attempt | None) -> None:
        """Hold another attempt, or none."""
        self.attempt, self.is_fenced, self.is_paused = attempt, False, False

    def pause(self) -> None:
        """Let the training function stop because the study is paused."""
        self.is_paused = True


@dataclass(frozen=True)
class WorkerContext:
    """What a worker keeps from trial to trial."""

    database: Database
    thread: DatabaseThread
    lease: Lease
    observed: ObservedTrials
    data_fingerprint: str | None
    options: WorkerOptions


def run_attempt(context: WorkerContext, study: Study, attempt: Attempt) -> bool:
    """Run one attempt to its result, and return False if a disk failed. Raises DeviceError if the device failed."""
    lease, log = context.lease, context.options.log
    lease.hold(attempt)
    trial_folder = _trial_folder(context, study, attempt)
    try:
        result = _run(context, study, attempt, trial_folder)
    except Fenced as error:
        reason = str(error)
        log(reason)
        # An attempt whose Optuna trial was ended outside of hpopt is still to be ended.
        with suppress(Fenced):
            context.thread.call(partial(attempts.finish, context.database, attempt, Outcome.LOST, reason=reason))
        return True
    finally:
        lease.hold(None)
    log(_result_line(study, attempt, result))
    if result.fault is Fault.DEVICE:
        raise DeviceError(f"trial {attempt.number} was returned to the queue: {result.reason}")
    if result.outcome not in {Outcome.PREEMPTED, Outcome.FAILED}:
        shutil.rmtree(trial_folder, ignore_errors=True)
    return result.fault is not Fault.DISK


def _run(context: WorkerContext, study: Study, attempt: Attempt, trial_folder: Path) -> TrialResult:
    try:
        folder = _prepare_folder(trial_folder, attempt.attempt_number)
    except OSError as error:
        return _requeue(context, attempt, f"{trial_folder}: {error.strerror or error}")
    lease = context.lease
    reporter = TrialReporter(context.thread, context.database, study, attempt, folder, on_pause=lease.pause)
    config = _start(context, study, attempt, _sample(context, study, attempt))
    result = config if isinstance(config, TrialResult) else _train(context, attempt, config, reporter)
    if lease.is_fenced and result.fault is not Fault.DEVICE:
        raise attempts.fenced(attempt)
    try:
        retry_after_s = context.options.disk_retry_s if result.fault is Fault.DISK else None
        reporter.finish(result, retry_after_s=retry_after_s)
    except Fenced:
        if result.fault is not Fault.DEVICE:
            raise
    return result


def _requeue(context: WorkerContext, attempt: Attempt, reason: str) -> TrialResult:
    """Return a trial to the queue whose folder cannot be written."""
    result = TrialResult(outcome=Outcome.PREEMPTED, reason=reason, fault=Fault.DISK)
    finish = partial(attempts.finish, context.database, attempt, result.outcome, reason=reason)
    context.thread.call(partial(finish, retry_after_s=context.options.disk_retry_s))
    return result


def _sample(context: WorkerContext, study: Study, attempt: Attempt) -> Mapping[str, Scalar]:
    """Return the params of a trial; those that it lacks are sampled."""
    if attempt.params.keys() >= study.file.search_space.keys():
        return attempt.params
    context.thread.call(context.observed.refresh)
    return context.observed.propose(study, attempt)


def _start(context: WorkerContext, study: Study, attempt: Attempt, params: Mapping[str, Scalar]) -> Any:  # noqa: ANN401 - the objective's.
    """Build the config of a trial and record it; a failed result if the config or the space refuses its params."""
    searched = {name: value for name, value in params.items() if name in study.file.search_space}
    fields: dict[str, Any] = {"params": searched, "seed": attempt.seed, "config": None}
    try:
        config = study.file.config(params, attempt.seed)
        fields |= {"seed": config.seed, "config": asdict(config)}
    except (ConfigError, TypeError, ValueError) as error:
        config = TrialResult(outcome=Outcome.FAILED, reason=str(error))
    except Exception as error:  # noqa: BLE001 - a config of the user's can raise anything.
        config = TrialResult(outcome=Outcome.FAILED, reason=f"{type(error).__name__}: {error}")
    start = partial(attempts.start, context.database, study, attempt, data_fingerprint=context.data_fingerprint)
    try:
        context.thread.call(partial(start, **fields))
    except ValueError as error:
        context.thread.call(partial(start, **{**fields, "params": {}}))
        return TrialResult(outcome=Outcome.FAILED, reason=str(error))
    return config


def _train(context: WorkerContext, attempt: Attempt, config: Any, reporter: TrialReporter) -> TrialResult:  # noqa: ANN401 - the objective's.
    """Train; or only resend what the previous attempt could not, if the trial had finished with it."""
    lease, thread, options = context.lease, context.thread, context.options
    result = reporter.resend()
    if result is not None:
        return result
    again = f" (attempt {attempt.attempt_number})" if attempt.attempt_number > 1 else ""
    options.log(f"trial {attempt.number} starts{again}")
    run = Run(
        folder=reporter.folder,
        cache=options.home / "cache",
        device=options.device,
        should_stop=lambda: options.stop.is_set() or lease.is_fenced or lease.is_paused or thread.has_given_up,
    )
    result = objective.run_trial(reporter.study.file, config, run, reporter.report)
    if result.outcome is Outcome.PREEMPTED and lease.is_paused:
        return replace(result, reason="the study is paused")
    return result


def _result_line(study: Study, attempt: Attempt, result: TrialResult) -> str:
    value = "" if result.value is None else f" {study.file.metric} {format_metric(result.value)}"
    reason = f": {result.reason}" if result.reason else ""
    return f"trial {attempt.number} {result.outcome}{value}{reason}"


def _trial_folder(context: WorkerContext, study: Study, attempt: Attempt) -> Path:
    return run_folder(context.options.home, study.name, study.created_at) / str(attempt.trial_id)


def _prepare_folder(trial_folder: Path, attempt_number: int) -> Path:
    """Create the folder of an attempt with the files of the last attempt before it, whose folder is only read."""
    folder = trial_folder / str(attempt_number)
    # Copied and renamed, so that an attempt that is killed meanwhile leaves no half copy to the next.
    copy = trial_folder / f"{attempt_number}.copy"
    for earlier in range(attempt_number - 1, 0, -1):
        if (trial_folder / str(earlier)).is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            source = trial_folder / str(earlier)
            shutil.copytree(source, copy, copy_function=_copy_if_exists, ignore=shutil.ignore_patterns(outbox.NAME))
            # Last: with an outbox older than the checkpoint, the evaluations between the two would be lost.
            _copy_if_exists(str(source / outbox.NAME), str(copy / outbox.NAME))
            copy.rename(folder)
            break
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _copy_if_exists(source: str, target: str) -> None:
    # A frozen worker that resumes can replace its files meanwhile.
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)
