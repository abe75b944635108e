"""Owns the life of one worker: one process on one device that pulls trials until the study is over.

Leaves the way to the database to courier.py, the books to storage and the training to objective.py.
"""

import os
import platform
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hpopt import objective
from hpopt.courier import Courier, Manners
from hpopt.delivery import Delivery
from hpopt.errors import ConfigError, DeviceError, Fenced, HpoptError, InputError, Interrupted
from hpopt.hyperparameters import Scalar
from hpopt.objective import Outcome
from hpopt.storage import attempts, books, journal, reaping, studies
from hpopt.storage.attempts import Attempt, Verdict
from hpopt.storage.database import Database, limit_waits
from hpopt.storage.history import History
from hpopt.storage.studies import Study
from hpopt.training.run import Evaluation, Run

# How long a worker waits before it asks again, while others hold the rest of the budget or the study is paused.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 5.0
# How long it waits after its disk was at fault, doubled each time.
_DISK_WAIT_S = 1.0
_MAX_DISK_TROUBLES = 6
_FAREWELL_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a worker keeps its files and how patient it is; `say` takes one line about what happens."""

    home: Path
    device: str = "cpu"
    heartbeat_every_s: float = 15.0
    stale_after_s: float = 60.0
    give_up_after_s: float = 900.0
    say: Callable[[str], None] = print
    stop: threading.Event = field(default_factory=threading.Event)


def work(database: Database, study: Study, settings: Settings) -> str:
    """Pull trials until the study is over, and say why it is.

    Raises Interrupted when stopped before that, DatabaseLostError when the database stays away, DeviceError when the
    device is of no use any more, and InputError for a study of another version or other data.
    """
    studies.require_version(study)
    limit_waits()
    hold = _Hold()
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
            fingerprint = objective.fingerprint_data(study.file, settings.home / "cache")
            courier.call(lambda: studies.require_data(database, study, fingerprint))
            reason = _pull(_Post(database, courier, hold, History(database, study), fingerprint, settings), study)
        except HpoptError as error:
            reason = str(error)
            raise
        finally:
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


@dataclass
class _Hold:
    """What the worker holds, and what its heartbeats brought back about it."""

    worker_id: int = 0
    attempt: Attempt | None = None
    is_fenced: bool = False
    is_paused: bool = False

    def take(self, attempt: Attempt | None) -> None:
        self.attempt, self.is_fenced, self.is_paused = attempt, False, False


@dataclass(frozen=True)
class _Post:
    """What a worker keeps from trial to trial."""

    database: Database
    courier: Courier
    hold: _Hold
    history: History
    fingerprint: str | None
    settings: Settings


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
        host=platform.node(),
        pid=os.getpid(),
        device=settings.device,
        stale_after_s=settings.stale_after_s,
        give_up_after_s=settings.give_up_after_s,
    )


def _say_farewell(database: Database, courier: Courier, hold: _Hold, reason: str) -> None:
    if not courier.is_away:
        wait([courier.send(lambda: attempts.end_worker(database, hold.worker_id, reason))], timeout=_FAREWELL_S)


def _beat(database: Database, study: Study, hold: _Hold) -> None:
    attempt = hold.attempt
    if hold.worker_id:
        standing = attempts.beat(database, study.study_id, hold.worker_id, attempt)
        if attempt is not None and hold.attempt is attempt:
            hold.is_fenced = not standing.is_held
            hold.is_paused = standing.state == "paused"


def _pull(post: _Post, study: Study) -> str:
    settings, wait_s, said, n_troubles = post.settings, _FIRST_WAIT_S, None, 0
    while not settings.stop.is_set():
        offer = post.courier.call(partial(_look_for_work, post, study))
        study = offer.study
        if offer.attempt is not None:
            n_troubles = 0 if _attempt(post, study, offer.attempt) else n_troubles + 1
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


def _look_for_work(post: _Post, study: Study) -> _Offer:
    database, worker_id = post.database, post.hold.worker_id
    study = studies.reload(database, study)
    reaping.reap(database, study, worker_id)
    attempt = attempts.reserve(database, study, worker_id)
    if attempt is not None:
        return _Offer(study=study, attempt=attempt)
    counted = books.read_books(database, study)
    waiting = f"paused: {counted.state_reason or 'by hand'}" if counted.state == "paused" else None
    return _Offer(study=study, attempt=None, over=books.finished(study, counted), waiting=waiting)


def _attempt(post: _Post, study: Study, attempt: Attempt) -> bool:
    """Work on one attempt to its end; False where the disk was at fault."""
    hold, settings = post.hold, post.settings
    hold.take(attempt)
    trial_folder = _trial_folder(post, study, attempt)
    try:
        outcome = _train(post, study, attempt, trial_folder)
    except Fenced as error:
        settings.say(str(error))
        return True
    finally:
        hold.take(None)
    value = "" if outcome.value is None else f" {study.file.metric} {outcome.value:.4f}"
    settings.say(f"trial {attempt.number} {outcome.kind}{value}" + (f": {outcome.reason}" if outcome.reason else ""))
    if outcome.at_fault == "device":
        raise DeviceError(f"trial {attempt.number} is handed back: {outcome.reason}")
    if outcome.kind not in {"preempted", "failed"}:
        shutil.rmtree(trial_folder, ignore_errors=True)
    return outcome.at_fault != "disk"


def _train(post: _Post, study: Study, attempt: Attempt, trial_folder: Path) -> Outcome:
    courier, database = post.courier, post.database
    try:
        folder = _prepare_folder(trial_folder, attempt.go)
    except OSError as error:
        outcome = Outcome(kind="preempted", reason=f"{trial_folder}: {error.strerror or error}", at_fault="disk")
        courier.call(lambda: attempts.finish(database, attempt, kind=outcome.kind, reason=outcome.reason))
        return outcome
    delivery = Delivery(courier, database, study, attempt, folder)
    params = _sample(post, study, attempt)
    outcome = _configure(post, study, attempt, params)
    if not isinstance(outcome, Outcome):
        outcome = _run(post, attempt, outcome, delivery)
    if post.hold.is_fenced:
        raise Fenced(f"trial {attempt.number} was handed on to another worker")
    delivery.end(kind=outcome.kind, value=outcome.value, reason=outcome.reason)
    return outcome


def _sample(post: _Post, study: Study, attempt: Attempt) -> Mapping[str, Scalar]:
    """Give the params of a trial; those that it lacks are sampled."""
    if attempt.params.keys() >= study.file.search_space.keys():
        return attempt.params
    post.courier.call(post.history.refresh)
    return post.history.propose(study, attempt)


def _configure(post: _Post, study: Study, attempt: Attempt, params: Mapping[str, Scalar]) -> Any:  # noqa: ANN401 - the objective's.
    """Build the config of a trial and write it down; a failure where it refuses what somebody enqueued."""
    try:
        config = study.file.config(params, attempt.seed)
        about = {"seed": config.seed, "config": asdict(config)}
    except (ConfigError, TypeError, ValueError) as error:
        config = Outcome(kind="failed", reason=str(error))
        about = {"seed": attempt.seed, "config": None}
    known = {name: value for name, value in params.items() if name in study.file.search_space}
    about |= {"params": known, "data_fingerprint": post.fingerprint}
    post.courier.call(lambda: attempts.start(post.database, study, attempt, **about))
    return config


def _run(post: _Post, attempt: Attempt, config: Any, delivery: Delivery) -> Outcome:  # noqa: ANN401 - the objective's.
    """Train; or only tell what the go before could not, where it had come to its end."""
    hold, courier, settings = post.hold, post.courier, post.settings
    delivery.hand_on()
    if delivery.inherited is not None and delivery.inherited.is_final:
        return Outcome(**(delivery.inherited.end or {}))
    settings.say(f"trial {attempt.number} starts" + (f" (go {attempt.go})" if attempt.go > 1 else ""))
    run = Run(
        folder=delivery.folder,
        cache=settings.home / "cache",
        device=settings.device,
        should_stop=lambda: settings.stop.is_set() or hold.is_fenced or hold.is_paused or courier.has_given_up,
    )

    def judge(evaluation: Evaluation) -> str | None:
        verdict = delivery.evaluation(evaluation)
        if verdict is None:
            return None
        hold.is_paused = hold.is_paused or verdict.is_paused
        return _reason(verdict)

    outcome = objective.run_trial(delivery.study.file, config, run, judge)
    if outcome.kind == "preempted" and hold.is_paused:
        return replace(outcome, reason="the study is paused")
    return outcome


def _reason(verdict: Verdict) -> str | None:
    """Put into words why a trial ends at a step, or None where it goes on."""
    if verdict.is_hopeless:
        return f"not among the best at step {verdict.step}"
    return None if verdict.limit is None else f"the budget ended at step {verdict.step}: {verdict.limit}"


def _trial_folder(post: _Post, study: Study, attempt: Attempt) -> Path:
    """Give the folder of a logical trial; a database that was made anew has other studies of the same name."""
    name = f"{study.name}-{study.created_at:%Y%m%dT%H%M%S}"
    return post.settings.home / "runs" / name / str(attempt.first_trial_id)


def _prepare_folder(trial_folder: Path, go: int) -> Path:
    """Make the folder of this go with what the last go before it left there; that one is read, never written to."""
    folder = trial_folder / str(go)
    # Copied beside and renamed, so that a go that is killed meanwhile leaves nothing half copied to the next.
    copied = trial_folder / f"{go}.copy"
    for earlier in range(go - 1, 0, -1):
        if (trial_folder / str(earlier)).is_dir():
            shutil.rmtree(copied, ignore_errors=True)
            source = trial_folder / str(earlier)
            shutil.copytree(source, copied, copy_function=_copy_if_there, ignore=shutil.ignore_patterns(journal.NAME))
            # Last: with a journal that is older than the checkpoint, evaluations between the two would be lost.
            _copy_if_there(str(source / journal.NAME), str(copied / journal.NAME))
            copied.rename(folder)
            break
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _copy_if_there(source: str, target: str) -> None:
    # A frozen worker that wakes up may replace its files meanwhile.
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)
