"""Owns the life of one worker: one process on one device that pulls trials until the study is over.

Leaves the books to storage and the training to objective.py.
"""

import os
import platform
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import optuna
from optuna.trial import Trial

from hpopt import objective
from hpopt.errors import ConfigError, DatabaseError, Fenced, HpoptError, InputError, Interrupted
from hpopt.objective import Outcome, Surroundings
from hpopt.storage import attempts, books, reaping, studies
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.studies import Study
from hpopt.training.run import Run

# How long a worker waits before it asks again, while others hold what is left of the budget.
_POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a worker keeps its files and how patient it is; `say` takes one line about what happens."""

    home: Path
    device: str = "cpu"
    heartbeat_every_s: float = 15.0
    stale_after_s: float = 60.0
    say: Callable[[str], None] = print
    stop: threading.Event = field(default_factory=threading.Event)


def work(database: Database, study: Study, settings: Settings) -> str:
    """Pull trials until the study is over, and say why it is. Raises Interrupted when stopped before that."""
    worker_id = attempts.register_worker(database, study, host=platform.node(), pid=os.getpid(), device=settings.device)
    reason = "failed"
    try:
        fingerprint = objective.fingerprint_data(study.file, settings.home / "cache")
        studies.require_data(database, study, fingerprint)
        optuna_study = studies.open_optuna(database, study)
        reason = _pull(_Post(database, study, optuna_study, worker_id, fingerprint, settings))
    except Interrupted as stop:
        reason = str(stop)
        raise
    except DatabaseError as error:
        raise HpoptError(f"lost the database: {error}") from error
    finally:
        with suppress(DatabaseError):
            attempts.end_worker(database, worker_id, reason)
    return reason


def find_device(device: str) -> str:
    """Give the device that a name stands for: `auto` is the GPU where there is one. Raises InputError for others."""
    try:
        import torch  # noqa: PLC0415 - `hpopt worker` alone needs it.
    except ImportError:
        raise InputError("a worker needs torch; pip install 'hpopt[train]'") from None
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"--device: '{device}' is no device; auto, cpu or cuda") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device: '{device}' was asked for, but torch finds no GPU here")
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
    while not post.settings.stop.is_set():
        reaping.reap(post.database, post.study, post.optuna_study, post.settings.stale_after_s)
        attempt = attempts.reserve(post.database, post.study, post.worker_id)
        if attempt is not None:
            _attempt(post, attempt)
            continue
        over = books.finished(post.study, books.read_books(post.database, post.study))
        if over is not None:
            return over
        post.settings.stop.wait(_POLL_S)
    raise Interrupted("asked to stop")


def _attempt(post: _Post, attempt: Attempt) -> None:
    with _Heartbeat(post, attempt) as heartbeat:
        try:
            trial = attempts.ask(post.database, post.study, post.optuna_study, attempt)
            outcome = _train(post, attempt, trial, heartbeat)
            attempts.finish(post.database, post.optuna_study, attempt, trial, **asdict(outcome))
        except Fenced as fenced:
            attempts.drop(post.database, attempt, str(fenced))
            post.settings.say(str(fenced))
            return
    value = "" if outcome.value is None else f" {post.study.file.metric} {outcome.value:.4f}"
    post.settings.say(f"trial {trial.number} {outcome.kind}{value}" + (f": {outcome.reason}" if outcome.reason else ""))
    if outcome.kind not in {"preempted", "failed"}:
        shutil.rmtree(_trial_folder(post, trial, attempt), ignore_errors=True)


def _train(post: _Post, attempt: Attempt, trial: Trial, heartbeat: "_Heartbeat") -> Outcome:
    file = post.study.file
    seed = attempt.seed if attempt.seed is not None else trial.user_attrs.get("seed")
    try:
        config = file.config(trial.params, seed)
    except (ConfigError, TypeError, ValueError) as error:
        # Somebody enqueued it past the study file.
        return Outcome(kind="failed", reason=str(error))
    attempts.begin(post.database, attempt, seed=config.seed, config=asdict(config), data_fingerprint=post.fingerprint)
    run = Run(
        folder=_prepare_folder(_trial_folder(post, trial, attempt), attempt.go),
        cache=post.settings.home / "cache",
        device=post.settings.device,
        should_stop=lambda: post.settings.stop.is_set() or heartbeat.fenced.is_set(),
    )
    around = Surroundings(
        record=lambda evaluation: attempts.record(post.database, attempt, trial, evaluation),
        spent=lambda: books.spent(post.study, books.read_books(post.database, post.study)),
        earlier=attempts.earlier_values(post.database, attempt, file.metric) if attempt.go > 1 else (),
        never_prune=studies.DEFAULT_CONFIGURATION in trial.user_attrs,
    )
    post.settings.say(f"trial {trial.number} starts" + (f" (go {attempt.go})" if attempt.go > 1 else ""))
    outcome = objective.run_trial(file, trial, config, run, around)
    if heartbeat.fenced.is_set():
        raise Fenced(f"trial {trial.number} was handed on to another worker")
    return outcome


def _trial_folder(post: _Post, trial: Trial, attempt: Attempt) -> Path:
    first = attempt.first_trial_id or attempts.id_of(trial)
    return post.settings.home / "runs" / post.study.name / str(first)


def _prepare_folder(trial_folder: Path, go: int) -> Path:
    """Make the folder of this go with what the last go before it left there; that one is read, never written to."""
    folder = trial_folder / str(go)
    for earlier in range(go - 1, 0, -1):
        if (trial_folder / str(earlier)).is_dir():
            shutil.copytree(trial_folder / str(earlier), folder, dirs_exist_ok=True)
            break
    folder.mkdir(parents=True, exist_ok=True)
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
