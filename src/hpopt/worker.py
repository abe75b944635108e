"""Owns the life of one worker: one process on one device that pulls trials until the study is over.

Leaves the books to storage and the training to objective.py.
"""

import os
import platform
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self, TypeVar

import optuna
from optuna.trial import Trial

from hpopt import objective
from hpopt.errors import ConfigError, DatabaseError, DatabaseLostError, Fenced, HpoptError, InputError, Interrupted
from hpopt.objective import Outcome, Surroundings
from hpopt.storage import attempts, books, reaping, studies
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.studies import Study
from hpopt.training.run import Run

T = TypeVar("T")

# How long a worker waits before it asks again, while others hold what is left of the budget.
_POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a worker keeps its files and how patient it is; `say` takes one line about what happens."""

    home: Path
    device: str = "cpu"
    heartbeat_every_s: float = 15.0
    stale_after_s: float = 60.0
    give_up_after_s: float = 300.0
    say: Callable[[str], None] = print
    stop: threading.Event = field(default_factory=threading.Event)


def work(database: Database, study: Study, settings: Settings) -> str:
    """Pull trials until the study is over, and say why it is. Raises Interrupted when stopped before that."""
    worker_id = _insist(settings, lambda: _register(database, study, settings))
    reason = "failed"
    try:
        fingerprint = objective.fingerprint_data(study.file, settings.home / "cache")
        _insist(settings, lambda: studies.require_data(database, study, fingerprint))
        optuna_study = _insist(settings, lambda: studies.open_optuna(database, study))
        reason = _pull(_Post(database, study, optuna_study, worker_id, fingerprint, settings))
    except Interrupted as stop:
        reason = str(stop)
        raise
    except DatabaseError as error:
        raise DatabaseLostError(f"lost the database: {error}") from error
    finally:
        with suppress(DatabaseError):
            attempts.end_worker(database, worker_id, reason)
    return reason


def _register(database: Database, study: Study, settings: Settings) -> int:
    return attempts.register_worker(
        database,
        study,
        host=platform.node(),
        pid=os.getpid(),
        device=settings.device,
        stale_after_s=settings.stale_after_s,
    )


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


@dataclass(frozen=True)
class _Post:
    """What a worker holds on to from trial to trial."""

    database: Database
    study: Study
    optuna_study: optuna.Study
    worker_id: int
    fingerprint: str | None
    settings: Settings


def _pull(post: _Post) -> str:
    database, study, settings = post.database, post.study, post.settings
    while not settings.stop.is_set():
        _insist(settings, lambda: reaping.reap(database, study, post.optuna_study))
        attempt = _insist(settings, lambda: attempts.reserve(database, study, post.worker_id))
        if attempt is not None:
            _attempt(post, attempt)
            continue
        over = books.finished(study, _insist(settings, lambda: books.read_books(database, study)))
        if over is not None:
            return over
        settings.stop.wait(_POLL_S)
    raise Interrupted("asked to stop")


def _insist(settings: Settings, call: Callable[[], T]) -> T:
    """Repeat a call until the database answers; every call given here can be repeated without harm.

    Raises DatabaseLostError when it stays away for too long, or when the worker is asked to stop meanwhile.
    """
    deadline = time.monotonic() + settings.give_up_after_s
    is_told = False
    while True:
        try:
            return call()
        except DatabaseError as error:
            if settings.stop.is_set() or time.monotonic() > deadline:
                raise DatabaseLostError(f"lost the database: {error}") from error
            if not is_told:
                settings.say(f"waiting for the database: {error}")
                is_told = True
        settings.stop.wait(_POLL_S)


def _attempt(post: _Post, attempt: Attempt) -> None:
    database, settings = post.database, post.settings
    with _Heartbeat(post, attempt) as heartbeat:
        try:
            trial = attempts.ask(database, post.study, post.optuna_study, attempt)
            outcome = _train(post, attempt, trial, heartbeat)
            end = asdict(outcome)
            _insist(settings, lambda: attempts.finish(database, post.optuna_study, attempt, trial, **end))
        except (Fenced, DatabaseError) as error:
            reason = str(error)
            _insist(settings, lambda: attempts.drop(database, attempt, reason))
            settings.say(reason)
            return
    value = "" if outcome.value is None else f" {post.study.file.metric} {outcome.value:.4f}"
    settings.say(f"trial {trial.number} {outcome.kind}{value}" + (f": {outcome.reason}" if outcome.reason else ""))
    if outcome.kind not in {"preempted", "failed"}:
        shutil.rmtree(_trial_folder(post, trial, attempt), ignore_errors=True)


def _train(post: _Post, attempt: Attempt, trial: Trial, heartbeat: "_Heartbeat") -> Outcome:
    database, file, settings = post.database, post.study.file, post.settings
    seed = attempt.seed if attempt.seed is not None else trial.user_attrs.get("seed")
    try:
        config = file.config(trial.params, seed)
    except (ConfigError, TypeError, ValueError) as error:
        # Somebody enqueued it past the study file.
        return Outcome(kind="failed", reason=str(error))
    about = {"seed": config.seed, "config": asdict(config), "data_fingerprint": post.fingerprint}
    _insist(settings, lambda: attempts.begin(database, attempt, **about))
    run = Run(
        folder=_prepare_folder(_trial_folder(post, trial, attempt), attempt.go),
        cache=settings.home / "cache",
        device=settings.device,
        should_stop=lambda: settings.stop.is_set() or heartbeat.fenced.is_set(),
    )
    settings.say(f"trial {trial.number} starts" + (f" (go {attempt.go})" if attempt.go > 1 else ""))
    outcome = objective.run_trial(file, config, run, _surroundings(post, attempt, trial))
    if heartbeat.fenced.is_set():
        raise Fenced(f"trial {trial.number} was handed on to another worker")
    return outcome


def _surroundings(post: _Post, attempt: Attempt, trial: Trial) -> Surroundings:
    database, study, settings = post.database, post.study, post.settings

    def insist(call: Callable[[], T]) -> T:
        return _insist(settings, call)

    return Surroundings(
        record=lambda evaluation: insist(lambda: attempts.record(database, attempt, trial, evaluation)),
        report=lambda step, value: insist(lambda: attempts.report(database, trial, step, value)),
        is_hopeless=lambda: insist(lambda: attempts.is_hopeless(database, trial)),
        spent=lambda: insist(lambda: books.limit_reached(database, study)),
        earlier=insist(lambda: attempts.earlier_values(database, attempt, study.file.metric)),
    )


def _trial_folder(post: _Post, trial: Trial, attempt: Attempt) -> Path:
    """Give the folder of a logical trial; a database that was made anew has other studies of the same name."""
    study = f"{post.study.name}-{post.study.created_at:%Y%m%dT%H%M%S}"
    first = attempt.first_trial_id or attempts.id_of(trial)
    return post.settings.home / "runs" / study / str(first)


def _prepare_folder(trial_folder: Path, go: int) -> Path:
    """Make the folder of this go with what the last go before it left there; that one is read, never written to."""
    folder = trial_folder / str(go)
    # Copied beside and renamed, so that a go that is killed meanwhile leaves nothing half copied to the next.
    copied = trial_folder / f"{go}.copy"
    try:
        for earlier in range(go - 1, 0, -1):
            if (trial_folder / str(earlier)).is_dir():
                shutil.copytree(trial_folder / str(earlier), copied, dirs_exist_ok=True)
                copied.rename(folder)
                break
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HpoptError(f"{folder}: {error.strerror or error}") from error
    return folder


class _Heartbeat:
    """Renews an attempt's heartbeat from a thread of its own, and knows when others have ended the attempt."""

    def __init__(self, post: _Post, attempt: Attempt) -> None:
        self.fenced = threading.Event()
        self._post = post
        self._attempt = attempt
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{attempt.attempt_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(self._post.settings.heartbeat_every_s):
            try:
                alive = attempts.beat(self._post.database, self._attempt, self._post.worker_id)
            except DatabaseError as error:
                # A database that is away for a while is no reason to stop training; the next beat tries again.
                self._post.settings.say(f"heartbeat missed: {error}")
                continue
            if not alive:
                self.fenced.set()
                return
