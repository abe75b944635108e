"""Owns the life of one worker: one process on one device that pulls trials until the study is over.

Leaves one go at a trial to go.py, the way to the database to courier.py and the books to storage.
"""

import os
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial

from hpopt.errors import DeviceError, HpoptError, InputError, Interrupted
from hpopt.storage import attempts, budget, reaper, studies
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database, limit_waits
from hpopt.storage.observations import History
from hpopt.storage.studies import Study
from hpopt.worker import objective
from hpopt.worker.attempt import Hold, Post, Settings, take
from hpopt.worker.database_thread import Courier, Manners

# How long a worker waits before it asks again, while others hold the rest of the budget or the study is paused.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 5.0
# How long it waits after its disk was at fault, doubled each time.
_DISK_WAIT_S = 1.0
_MAX_DISK_TROUBLES = 6
_FAREWELL_S = 2.0


def work(database: Database, study: Study, settings: Settings) -> str:
    """Pull trials until the study is over, and say why it is.

    Raises Interrupted when stopped before that, DatabaseLostError when the database stays away, DeviceError when the
    device is of no use any more, and InputError for a study of another version or other data.
    """
    studies.require_version(study)
    limit_waits()
    hold = Hold()
    manners = Manners(
        beat=lambda: _beat(database, study, hold),
        release=database.release,
        say=settings.say,
        stop=settings.stop,
        heartbeat_every_s=settings.heartbeat_every_s,
        give_up_after_s=settings.give_up_after_s,
    )
    with Courier(manners) as courier:
        hold.worker_id = courier.call(lambda: _register(database, study, settings))
        reason = "failed"
        try:
            fingerprint = objective.fingerprint_data(study.file, settings.home / "cache", settings.stop.is_set)
            courier.call(lambda: studies.require_data(database, study, fingerprint))
            reason = _pull(Post(database, courier, hold, History(database, study), fingerprint, settings), study)
        except HpoptError as error:
            reason = str(error)
            raise
        finally:
            if not courier.is_away:
                _say_farewell(database, courier, hold, reason)
    return reason


def find_device(device: str) -> str:
    """Give the device that a name stands for: `auto` is the GPU where there is one. Raises InputError for others."""
    try:
        import torch  # noqa: PLC0415 - `hpopt worker` alone needs it.
    except ImportError:
        raise InputError("a worker needs torch; pip install 'hpopt[train]'") from None
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    n_gpus = torch.cuda.device_count()
    known = ["cpu", *(["cuda"] if n_gpus else []), *(f"cuda:{i}" for i in range(n_gpus))]
    if device not in known:
        raise InputError(f"--device: '{device}' is not one of auto, {', '.join(known)}")
    return device


@dataclass(frozen=True, kw_only=True)
class _Offer:
    """What there is to do: an attempt, or a reason why the study is over, or one why it waits."""

    study: Study
    attempt: Attempt | None
    over: str | None = None
    waiting: str | None = None


def _register(database: Database, study: Study, settings: Settings) -> int:
    return attempts.register_worker(
        database,
        study,
        host=settings.host,
        pid=os.getpid(),
        engine=settings.engine,
        job=settings.job,
        device=settings.device,
        stale_after_s=settings.stale_after_s,
        give_up_after_s=settings.give_up_after_s,
    )


def _say_farewell(database: Database, courier: Courier, hold: Hold, reason: str) -> None:
    wait([courier.send(lambda: attempts.end_worker(database, hold.worker_id, reason))], timeout=_FAREWELL_S)


def _beat(database: Database, study: Study, hold: Hold) -> None:
    attempt = hold.attempt
    if hold.worker_id:
        standing = attempts.beat(database, study.study_id, hold.worker_id, attempt)
        if attempt is not None and hold.attempt is attempt:
            hold.is_fenced = not standing.is_held
            hold.is_paused = standing.state == "paused"


def _pull(post: Post, study: Study) -> str:
    settings, wait_s, said, n_troubles = post.settings, _FIRST_WAIT_S, None, 0
    while not settings.stop.is_set():
        offer = post.courier.call(partial(_look_for_work, post, study))
        study = offer.study
        if offer.attempt is not None:
            n_troubles = 0 if take(post, study, offer.attempt) else n_troubles + 1
            if n_troubles > _MAX_DISK_TROUBLES:
                raise DeviceError("the disk of this machine is at fault; see above")
            wait_s = _DISK_WAIT_S * 2 ** (n_troubles - 1) if n_troubles else 0.0
        elif offer.over is not None:
            return offer.over
        elif offer.waiting and offer.waiting != said:
            settings.say(offer.waiting)
        said = offer.waiting
        settings.stop.wait(wait_s)
        wait_s = min(_LONGEST_WAIT_S, max(_FIRST_WAIT_S, 2 * wait_s))
    raise Interrupted("asked to stop")


def _look_for_work(post: Post, study: Study) -> _Offer:
    database, worker_id = post.database, post.hold.worker_id
    study = studies.reload(database, study)
    studies.require_version(study)
    reaper.reap(database, study, worker_id)
    attempt = attempts.reserve(database, study, worker_id)
    if attempt is not None:
        return _Offer(study=study, attempt=attempt)
    counted = budget.read_books(database, study)
    waiting = f"paused: {counted.state_reason}" if counted.state == "paused" else None
    return _Offer(study=study, attempt=None, over=budget.finished(study, counted), waiting=waiting)
