"""Run one worker: a process on one device that runs trials until the study has finished."""

import os
from concurrent.futures import wait
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

from hpopt.errors import DeviceError, HpoptError, InputError, Interrupted
from hpopt.storage import attempts, budget, comparison, confirmation, reaper, studies
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import RESPONSE_TIMEOUT_S, Database
from hpopt.storage.observations import ObservedTrials
from hpopt.storage.studies import Study
from hpopt.study.reading import check_objective
from hpopt.worker import objective
from hpopt.worker.attempt import Lease, WorkerContext, WorkerOptions, require_home, run_attempt
from hpopt.worker.database_thread import DatabaseThread, DatabaseThreadOptions

# While others hold the rest of the budget or the study is paused, a worker looks for work every `poll_every_s`, later
# in intervals up to this many times as long.
_MAX_POLL_FACTOR = 5
# After its disk failed, a worker waits for this part of `disk_retry_s`, doubled each time.
_DISK_WAIT = 0.1
_MAX_DISK_FAULTS = 6
_END_TIMEOUT_S = 2.0


def work(database: Database, study: Study, options: WorkerOptions) -> str:
    """Run trials until the study has finished, and return why it has.

    Raises Interrupted when asked to stop, DatabaseLostError when the database stays unreachable, DeviceError when the
    device fails, and InputError for a study of another version, objective or data.
    """
    studies.require_root(study)
    studies.require_version(study)
    check_objective(study.file, f"study '{study.name}'")
    require_home(options.home)
    database.response_timeout_s = RESPONSE_TIMEOUT_S
    lease = Lease()
    thread_options = DatabaseThreadOptions(
        heartbeat=lambda: _heartbeat(database, study, lease),
        disconnect=database.disconnect,
        log=options.log,
        stop=options.stop,
        heartbeat_every_s=options.heartbeat_every_s,
        give_up_after_s=options.give_up_after_s,
        retry_every_s=options.poll_every_s,
        stop_timeout_s=options.stop_timeout_s,
    )
    with DatabaseThread(thread_options) as thread:
        lease.worker_id = thread.call(lambda: _register(database, study, options))
        reason = "failed"
        try:
            fingerprint = objective.fingerprint_data(study.file, options.home / "cache", options.stop.is_set)
            thread.call(lambda: studies.require_data(database, study, fingerprint))
            observed = ObservedTrials(database, study)
            reason = _pull(WorkerContext(database, thread, lease, observed, fingerprint, options), study)
        except HpoptError as error:
            reason = str(error)
            raise
        finally:
            if not thread.is_unreachable:
                end = partial(attempts.end_worker, database, lease.worker_id, reason)
                wait([thread.submit(end)], timeout=_END_TIMEOUT_S)
    return reason


def find_device(device: str) -> str:
    """Return the device of a name: `auto` is the GPU if there is one. Raises InputError for an unknown one."""
    if find_spec("torch") is None:
        raise InputError("a worker needs torch; pip install 'hpopt[train]'")
    # The import of torch takes seconds, and an objective of the user's can do without.
    if device == "cpu":
        return device
    import torch  # noqa: PLC0415 - as above.

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    n_gpus = torch.cuda.device_count()
    devices = ["cpu", *(["cuda"] if n_gpus else []), *(f"cuda:{i}" for i in range(n_gpus))]
    if device not in devices:
        raise InputError(f"--device: '{device}' is not one of auto, {', '.join(devices)}")
    return device


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What a worker does next: an attempt at a trial of `study`; else `root` has finished, or it waits for a reason."""

    root: Study
    study: Study
    attempt: Attempt | None
    finished_reason: str | None = None
    waiting_reason: str | None = None


def _register(database: Database, study: Study, options: WorkerOptions) -> int:
    return attempts.register_worker(
        database,
        study,
        host=options.host,
        pid=os.getpid(),
        engine=options.engine,
        job=options.job,
        device=options.device,
        stale_after_s=options.stale_after_s,
        give_up_after_s=options.give_up_after_s,
    )


def _heartbeat(database: Database, study: Study, lease: Lease) -> None:
    attempt = lease.attempt
    if lease.worker_id:
        reply = attempts.heartbeat(database, study.study_id, lease.worker_id, attempt)
        if attempt is not None and lease.attempt is attempt:
            lease.is_fenced = not reply.is_held
            lease.is_paused = reply.state == "paused"


def _pull(context: WorkerContext, study: Study) -> str:
    """Run attempts until the study has finished, and return why it has."""
    options, wait_s, logged, n_disk_faults = context.options, context.options.poll_every_s, None, 0
    while not options.stop.is_set():
        work = context.thread.call(partial(_find_work, context, study))
        study = work.root
        if work.attempt is not None:
            n_disk_faults = 0 if run_attempt(context, work.study, work.attempt) else n_disk_faults + 1
            if n_disk_faults > _MAX_DISK_FAULTS:
                raise DeviceError("the disk of this machine has failed; see above")
            wait_s = _DISK_WAIT * options.disk_retry_s * 2 ** (n_disk_faults - 1) if n_disk_faults else 0.0
        elif work.finished_reason is not None:
            return work.finished_reason
        elif work.waiting_reason and work.waiting_reason != logged:
            options.log(work.waiting_reason)
        logged = work.waiting_reason
        options.stop.wait(wait_s)
        wait_s = min(_MAX_POLL_FACTOR * options.poll_every_s, max(options.poll_every_s, 2 * wait_s))
    raise Interrupted("asked to stop")


def _find_work(context: WorkerContext, root: Study) -> _Work:
    """Find an attempt in the family of a study: at a trial of its root, or of what follows it."""
    database = context.database
    root = studies.reload(database, root)
    studies.require_version(root)
    work = _find_attempt(context, root, root)
    if work.finished_reason is None:
        return work
    if root.file.arms:
        comparison.record_comparison(database, root)
    end = confirmation.continue_family(database, root, work.finished_reason)
    if end.next_study is None:
        return replace(work, finished_reason=end.reason)
    # Its last trial may have finished meanwhile, which the next call finds.
    return replace(_find_attempt(context, root, end.next_study), finished_reason=None)


def _find_attempt(context: WorkerContext, root: Study, study: Study) -> _Work:
    database, worker_id = context.database, context.lease.worker_id
    reaper.reap(database, study, worker_id)
    attempt = attempts.reserve(database, study, worker_id)
    if attempt is not None:
        # After a lost reply the attempt can be one of another study of the family.
        family = [study] if attempt.study_id == study.study_id else studies.family_of(database, root)
        return _Work(root=root, study=next(one for one in family if one.study_id == attempt.study_id), attempt=attempt)
    usage = budget.read_usage(database, study)
    return _Work(
        root=root,
        study=study,
        attempt=None,
        finished_reason=budget.finished_reason(study, usage),
        waiting_reason=f"paused: {usage.state_reason}" if usage.state == "paused" else None,
    )
