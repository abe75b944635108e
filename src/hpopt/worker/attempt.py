"""Run one attempt of a worker at a trial, from its reservation to its result."""

import platform
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from hpopt.analysis.trials import Outcome
from hpopt.errors import DISK_ERRNOS, ConfigError, DeviceError, Fenced, InputError
from hpopt.formats import format_metric
from hpopt.hyperparameters import Scalar
from hpopt.search.conditions import find_missing
from hpopt.storage import attempts
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.evaluations import Decision
from hpopt.storage.folders import forget_folders, keep_folder
from hpopt.storage.observations import ObservedTrials
from hpopt.storage.studies import Study, run_folder
from hpopt.study.checks import check_enqueued_trial
from hpopt.training.run import Evaluation, Run
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
    if result.outcome is Outcome.COMPLETE and study.file.keep:
        _keep_best(context, study, attempt, trial_folder)
    elif result.outcome not in {Outcome.PREEMPTED, Outcome.FAILED}:
        shutil.rmtree(trial_folder, ignore_errors=True)
    return result.fault is not Fault.DISK


def _keep_best(context: WorkerContext, study: Study, attempt: Attempt, trial_folder: Path) -> None:
    """Record the folder of a complete trial, and delete those within reach that are not among the best.

    A folder on another host stays until a worker there completes a trial.
    """
    folder = trial_folder / str(attempt.attempt_number)
    for earlier in trial_folder.iterdir():
        if earlier != folder:
            shutil.rmtree(earlier, ignore_errors=True)
    replaced = context.thread.call(partial(keep_folder, context.database, study, attempt, folder))
    runs, host = context.options.home / "runs", context.options.host
    replaced = [
        each for each in replaced if each.folder.is_relative_to(runs) and (each.host == host or each.folder.exists())
    ]
    for each in replaced:
        shutil.rmtree(each.folder.parent, ignore_errors=True)
    if replaced:
        context.thread.call(partial(forget_folders, context.database, replaced))


def _run(context: WorkerContext, study: Study, attempt: Attempt, trial_folder: Path) -> TrialResult:
    try:
        folder = _prepare_folder(trial_folder, attempt.attempt_number)
    except OSError as error:
        return _end_without_folder(context, attempt, trial_folder, error)
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


def _end_without_folder(context: WorkerContext, attempt: Attempt, folder: Path, error: OSError) -> TrialResult:
    """End a trial whose folder cannot be written: it is retried if the disk failed, else it has failed."""
    reason = f"{error.filename or folder}: {error.strerror or error}"
    result, retry_after_s = TrialResult(outcome=Outcome.FAILED, reason=reason), None
    if error.errno in DISK_ERRNOS:
        result = TrialResult(outcome=Outcome.PREEMPTED, reason=reason, fault=Fault.DISK)
        retry_after_s = context.options.disk_retry_s
    finish = partial(attempts.finish, context.database, attempt, result.outcome, reason=reason)
    context.thread.call(partial(finish, retry_after_s=retry_after_s))
    return result


def _sample(context: WorkerContext, study: Study, attempt: Attempt) -> Mapping[str, Scalar]:
    """Return the params of a trial; those that it lacks are sampled."""
    if not find_missing(study.file.search_space, attempt.params):
        return attempt.params
    context.thread.call(context.observed.refresh)
    return context.observed.propose(study, attempt)


def _start(context: WorkerContext, study: Study, attempt: Attempt, params: Mapping[str, Scalar]) -> Any:  # noqa: ANN401 - the objective's.
    """Build the config of a trial and record it; a failed result if the study or the config refuses its params."""
    fields: dict[str, Any] = {"params": {}, "seed": attempt.seed, "config": None}
    try:
        check_enqueued_trial(study.file, attempt.params)
        fields["arm"] = _arm(study, attempt)
        fields["params"] = {name: value for name, value in params.items() if name in study.file.search_space}
        config = study.file.config(params, attempt.seed, fields["arm"])
        fields |= {"seed": config.seed, "config": asdict(config)}
        fields["derived"] = {name: getattr(config, name) for name in study.file.derive(params, fields["arm"])}
    except (ConfigError, TypeError, ValueError) as error:
        config = TrialResult(outcome=Outcome.FAILED, reason=str(error))
    except Exception as error:  # noqa: BLE001 - a config of the user's can raise anything.
        config = TrialResult(outcome=Outcome.FAILED, reason=f"{type(error).__name__}: {error}")
    start = partial(attempts.start, context.database, study, attempt, data_fingerprint=context.data_fingerprint)
    context.thread.call(partial(start, **fields))
    return config


def _arm(study: Study, attempt: Attempt) -> str | None:
    """Return the arm of an attempt, None in a search. Raises ConfigError for a trial that another program added."""
    if not study.file.arms or attempt.arm in study.file.arms:
        return attempt.arm if study.file.arms else None
    raise ConfigError("arm", f"enqueued, but {attempt.arm!r} is not one of {', '.join(study.file.arms)}")


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
        study=reporter.study.name,
        trial=attempt.number,
        arm=(attempt.arm or "") if reporter.study.file.arms else "",
        should_stop=lambda: options.stop.is_set() or lease.is_fenced or lease.is_paused or thread.has_given_up,
        evaluates_test=not reporter.study.is_root,
    )
    file = reporter.study.file
    load = partial(objective.load_function, file.objective)
    report = _TestSplit(reporter.report, file.metric) if run.evaluates_test else reporter.report
    result = objective.run_trial(load, file.metric, config, run, report, log=options.log, summarize=file.summarize)
    if isinstance(report, _TestSplit) and result.outcome is Outcome.COMPLETE:
        return replace(result, test_metrics=report.test_metrics)
    if result.outcome is Outcome.PREEMPTED and lease.is_paused:
        return replace(result, reason="the study is paused")
    return result


@dataclass
class _TestSplit:
    """Reports evaluations without their metrics of the test split, and keeps the last ones."""

    report: objective.Report
    metric: str
    test_metrics: Mapping[str, float] | None = None

    def __call__(self, evaluation: Evaluation) -> Decision:
        metrics = evaluation.metrics
        tested = {name: metrics[name] for name in metrics if name.startswith("test_") and name != self.metric}
        self.test_metrics = tested or self.test_metrics
        shown = {name: value for name, value in metrics.items() if name not in tested}
        return self.report(replace(evaluation, metrics=shown))


def _result_line(study: Study, attempt: Attempt, result: TrialResult) -> str:
    value = "" if result.value is None else f" {study.file.metric} {format_metric(result.value)}"
    reason = f": {result.reason}" if result.reason else ""
    return f"trial {attempt.number} {result.outcome}{value}{reason}"


def _trial_folder(context: WorkerContext, study: Study, attempt: Attempt) -> Path:
    return run_folder(context.options.home, study.name, study.created_at) / str(attempt.trial_id)


def require_home(home: Path) -> None:
    """Raise InputError if the folders of trials cannot be written, DeviceError if the disk is full or broken."""
    runs = home / "runs"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=runs) as file:
            file.write(b"0")
    except OSError as error:
        kind = DeviceError if error.errno in DISK_ERRNOS else InputError
        raise kind(f"--home: {runs} cannot be written: {error.strerror}") from error


def _prepare_folder(trial_folder: Path, attempt_number: int) -> Path:
    """Create the folder of an attempt with the files of the last attempt before it, whose folder is only read."""
    folder = trial_folder / str(attempt_number)
    # Copied and renamed, so that an attempt that is killed meanwhile leaves no half copy to the next.
    copy = trial_folder / f"{attempt_number}.copy"
    for earlier in range(attempt_number - 1, 0, -1):
        source = trial_folder / str(earlier)
        if source.is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            _copy_tree(source, copy)
            copy.rename(folder)
            break
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _copy_tree(source: Path, target: Path) -> None:
    """Copy files, links and folders; sockets and pipes of a training function are left out."""
    target.mkdir()
    # The outbox last: with one that is older than the checkpoint, the evaluations between the two would be lost.
    for path in sorted(source.iterdir(), key=lambda path: path.name == outbox.NAME):
        # A frozen worker that resumes can replace its files meanwhile.
        with suppress(FileNotFoundError):
            if path.is_symlink():
                (target / path.name).symlink_to(path.readlink())
            elif path.is_dir():
                _copy_tree(path, target / path.name)
            elif path.is_file():
                shutil.copy2(path, target / path.name)
