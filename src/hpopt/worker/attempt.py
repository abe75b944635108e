"""Owns one go of a worker at a trial, from the reservation to its end. Leaves what comes next to worker.py.

Leaves the way to the database to delivery.py and courier.py, and the training to objective.py.
"""

import platform
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hpopt.errors import ConfigError, DeviceError, Fenced
from hpopt.hyperparameters import Scalar
from hpopt.storage import attempts
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.evaluations import Verdict
from hpopt.storage.observations import History
from hpopt.storage.studies import Study
from hpopt.training.run import Evaluation, Run
from hpopt.worker import objective, outbox
from hpopt.worker.database_thread import Courier
from hpopt.worker.objective import Outcome
from hpopt.worker.reporter import Delivery

# How long a trial waits that a disk was at fault for; other trials go first meanwhile.
_DISK_RETRY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a worker is, where it keeps its files and how patient it is.

    `engine` is what started it and `job` what that calls it; `say` takes one line about what happens.
    """

    home: Path
    host: str = field(default_factory=platform.node)
    engine: str = "local"
    job: str | None = None
    device: str = "cpu"
    heartbeat_every_s: float = 15.0
    stale_after_s: float = 60.0
    give_up_after_s: float = 900.0
    say: Callable[[str], None] = print
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass
class Hold:
    """What the worker holds, and what its heartbeats brought back about it."""

    worker_id: int = 0
    attempt: Attempt | None = None
    is_fenced: bool = False
    is_paused: bool = False

    def take(self, attempt: Attempt | None) -> None:
        """Hold another attempt, or none; what was known about the last one is forgotten."""
        self.attempt, self.is_fenced, self.is_paused = attempt, False, False


@dataclass(frozen=True)
class Post:
    """What a worker keeps from trial to trial."""

    database: Database
    courier: Courier
    hold: Hold
    history: History
    fingerprint: str | None
    settings: Settings


def take(post: Post, study: Study, attempt: Attempt) -> bool:
    """Work on one attempt to its end; False where the disk was at fault."""
    hold, settings = post.hold, post.settings
    hold.take(attempt)
    trial_folder = _trial_folder(post, study, attempt)
    try:
        outcome = _train(post, study, attempt, trial_folder)
    except Fenced as error:
        reason = str(error)
        settings.say(reason)
        # One that was ended in Optuna's tables by other means is still open in ours.
        with suppress(Fenced):
            post.courier.call(lambda: attempts.finish(post.database, attempt, kind="lost", reason=reason))
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


def _train(post: Post, study: Study, attempt: Attempt, trial_folder: Path) -> Outcome:
    courier, database = post.courier, post.database
    try:
        folder = _prepare_folder(trial_folder, attempt.go)
    except OSError as error:
        outcome = Outcome(kind="preempted", reason=f"{trial_folder}: {error.strerror or error}", at_fault="disk")
        finish = partial(attempts.finish, database, attempt, retry_after_s=_DISK_RETRY_S)
        courier.call(lambda: finish(kind=outcome.kind, reason=outcome.reason))
        return outcome
    delivery = Delivery(courier, database, study, attempt, folder)
    params = _sample(post, study, attempt)
    outcome = _configure(post, study, attempt, params)
    if not isinstance(outcome, Outcome):
        outcome = _run(post, attempt, outcome, delivery)
    if post.hold.is_fenced and outcome.at_fault != "device":
        raise Fenced(f"trial {attempt.number} was handed on to another worker")
    retry_after_s = _DISK_RETRY_S if outcome.at_fault == "disk" else None
    try:
        delivery.end(kind=outcome.kind, value=outcome.value, reason=outcome.reason, retry_after_s=retry_after_s)
    except Fenced:
        if outcome.at_fault != "device":
            raise
    return outcome


def _sample(post: Post, study: Study, attempt: Attempt) -> Mapping[str, Scalar]:
    """Give the params of a trial; those that it lacks are sampled."""
    if attempt.params.keys() >= study.file.search_space.keys():
        return attempt.params
    post.courier.call(post.history.refresh)
    return post.history.propose(study, attempt)


def _configure(post: Post, study: Study, attempt: Attempt, params: Mapping[str, Scalar]) -> Any:  # noqa: ANN401 - the objective's.
    """Build the config of a trial and write it down; a failure where somebody enqueued what it or the space refuses."""
    known = {name: value for name, value in params.items() if name in study.file.search_space}
    about: dict[str, Any] = {"params": known, "seed": attempt.seed, "config": None}
    try:
        config = study.file.config(params, attempt.seed)
        about |= {"seed": config.seed, "config": asdict(config)}
    except (ConfigError, TypeError, ValueError) as error:
        config = Outcome(kind="failed", reason=str(error))
    except Exception as error:  # noqa: BLE001 - a config of the user's own may raise anything.
        config = Outcome(kind="failed", reason=f"{type(error).__name__}: {error}")
    start = partial(attempts.start, post.database, study, attempt, data_fingerprint=post.fingerprint)
    try:
        post.courier.call(lambda: start(**about))
    except ValueError as error:
        post.courier.call(lambda: start(**{**about, "params": {}}))
        return Outcome(kind="failed", reason=str(error))
    return config


def _run(post: Post, attempt: Attempt, config: Any, delivery: Delivery) -> Outcome:  # noqa: ANN401 - the objective's.
    """Train; or only tell what the go before could not, where it had come to its end."""
    hold, courier, settings = post.hold, post.courier, post.settings
    delivery.hand_on()
    if delivery.inherited is not None and delivery.inherited.is_final:
        end = delivery.inherited.end or {}
        return Outcome(kind=end["kind"], value=end["value"], reason=end["reason"])
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


def _trial_folder(post: Post, study: Study, attempt: Attempt) -> Path:
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
            shutil.copytree(source, copied, copy_function=_copy_if_there, ignore=shutil.ignore_patterns(outbox.NAME))
            # Last: with a journal that is older than the checkpoint, evaluations between the two would be lost.
            _copy_if_there(str(source / outbox.NAME), str(copied / outbox.NAME))
            copied.rename(folder)
            break
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _copy_if_there(source: str, target: str) -> None:
    # A frozen worker that wakes up may replace its files meanwhile.
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)
