"""Reserve, start and end the attempts of workers at trials.

Each step of an attempt is one transaction over Optuna's rows and ours, so that a crash leaves nothing half done, and
can be repeated after a lost reply. A reservation locks the row of its study, so that a fleet never starts more trials
than the budget has. Once an attempt was ended by another worker, every write of its own worker raises Fenced.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpopt import __version__
from hpopt.analysis.trials import Outcome
from hpopt.errors import Fenced
from hpopt.formats import one_line, storable, to_json
from hpopt.hyperparameters import Scalar
from hpopt.storage import optuna_write, tables
from hpopt.storage.budget import find_limit_reached
from hpopt.storage.configurations import ARM, SEED, lock_study
from hpopt.storage.database import Database
from hpopt.storage.failures import pause_if_failing
from hpopt.storage.studies import DEFAULT_CONFIGURATION, Study

# A trial that was lost this many times in a row without a new evaluation has failed.
MAX_ATTEMPTS_WITHOUT_PROGRESS = 3


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One execution of a trial by a worker.

    A retry has the params and seed of the attempt before it. A trial that was enqueued has the params that were asked
    for; those missing in `params` are to be sampled. `number` is that of the attempt's Optuna trial. The trial of
    the objective's defaults and those that were enqueued with a seed, as replicates are, cannot be pruned.
    """

    attempt_id: int
    study_id: int
    trial_id: int
    optuna_trial_id: int
    number: int
    attempt_number: int = 1
    seed: int | None = None
    arm: str | None = None
    params: Mapping[str, Scalar]
    can_be_pruned: bool = True


@dataclass(frozen=True, kw_only=True)
class HeartbeatReply:
    """Answer to a heartbeat: whether the attempt is still the worker's, and the state of the study."""

    is_held: bool
    state: str


def register_worker(
    database: Database,
    study: Study,
    *,
    host: str,
    pid: int,
    device: str,
    engine: str = "local",
    job: str | None = None,
    stale_after_s: float = 60.0,
    give_up_after_s: float = 900.0,
) -> int:
    """Add a worker and return its id.

    Other workers end its attempt when its heartbeat is older than `stale_after_s`; it exits after `give_up_after_s`
    without the database.
    """
    row = {
        "study_id": study.study_id,
        "host": host,
        "pid": pid,
        "device": device,
        "engine": engine,
        "job": job,
        "hpopt_version": __version__,
        "stale_after_s": stale_after_s,
        "give_up_after_s": give_up_after_s,
    }
    with database.begin() as connection:
        added = connection.execute(sa.insert(tables.worker).values(row).returning(tables.worker.c.worker_id))
        return int(added.scalar_one())


def end_worker(database: Database, worker_id: int, reason: str) -> None:
    """Record that a worker has stopped, and why."""
    query = """
        update hpopt.worker set stopped_at = now(), heartbeat_at = now(), stop_reason = :reason where worker_id = :id
    """
    with database.begin() as connection:
        connection.execute(sa.text(query), {"reason": storable(one_line(reason)), "id": worker_id})


def reserve(database: Database, study: Study, worker_id: int) -> Attempt | None:
    """Reserve the next attempt: at a trial to be retried, else at an enqueued one, else at a new one.

    Returns None while the study is paused, while other workers hold the rest of the budget, and once it is exhausted. A
    worker has one attempt at a time: repeated after a lost reply, this returns the same attempt.
    """
    parameters: dict[str, Any] = {"study_id": study.study_id, "worker_id": worker_id}
    with database.brief() as connection:
        connection.execute(_RECORD_CONTACT, parameters)
        attempt_id = connection.scalar(_HELD, parameters)
        if attempt_id is None:
            row = lock_study(connection, study.study_id)
            if row is None or row["state"] != "open" or find_limit_reached(connection, study) is not None:
                return None
            attempt_id = _retry(connection, parameters) or _start_trial(connection, study, parameters, row["n_started"])
        return None if attempt_id is None else _read_attempt(connection, attempt_id)


def start(
    database: Database,
    study: Study,
    attempt: Attempt,
    params: Mapping[str, Scalar],
    *,
    seed: int | None,
    config: Mapping[str, Any] | None,
    derived: Mapping[str, Any] | None = None,
    data_fingerprint: str | None,
    arm: str | None = None,
) -> None:
    """Record the sampled params of a trial, and the arm, config and data that it trains with. Raises Fenced."""
    parameters = {
        "attempt_id": attempt.attempt_id,
        "seed": seed,
        "arm": arm,
        "config": None if config is None else to_json(config, keep_non_finite=True),
        "derived": to_json(derived) if derived else None,
        "data_fingerprint": data_fingerprint,
    }
    with database.brief() as connection:
        if connection.execute(_START, parameters).rowcount != 1:
            raise fenced(attempt)
        optuna_write.add_params(connection, attempt.optuna_trial_id, params, study.file.search_space)


def heartbeat(database: Database, study_id: int, worker_id: int, attempt: Attempt | None) -> HeartbeatReply:
    """Renew the heartbeats of a worker and of its attempt."""
    parameters = {"study_id": study_id, "worker_id": worker_id, "attempt_id": attempt.attempt_id if attempt else None}
    with database.statement() as connection:
        row = connection.execute(_HEARTBEAT, parameters).mappings().one_or_none()
    # There is no row after the study was deleted.
    return HeartbeatReply(is_held=False, state="stopped") if row is None else HeartbeatReply(**row)


def finish(
    database: Database,
    attempt: Attempt,
    outcome: Outcome,
    *,
    value: float | None = None,
    reason: str | None = None,
    test_metrics: Mapping[str, float] | None = None,
    retry_after_s: float | None = None,
    is_live: bool = True,
) -> None:
    """End an attempt. Raises Fenced if another worker ended it with another outcome.

    A trial that was lost too often without progress has failed; one whose Optuna trial was ended outside of hpopt has
    the outcome that it has there. A requeued trial waits `retry_after_s` before its next attempt. With `is_live` False
    an outbox is replayed after its worker exited: the device time is that of the last heartbeat.
    """
    parameters = {
        "attempt_id": attempt.attempt_id,
        "outcome": outcome,
        "reason": None if reason is None else storable(one_line(reason)),
        "is_live": is_live,
        "retry_after_s": retry_after_s,
        "max_attempts": MAX_ATTEMPTS_WITHOUT_PROGRESS,
    }
    with database.brief() as connection:
        row = connection.execute(_END, parameters).one_or_none()
        if row is None:
            # Repeated after a lost reply; a trial that was lost too often has failed.
            repeated = {outcome, Outcome.FAILED} if outcome is Outcome.LOST else {outcome}
            if connection.scalar(_OUTCOME, parameters) not in repeated:
                raise fenced(attempt)
            return
        if row.is_running:
            optuna_write.end_trial(connection, attempt.optuna_trial_id, Outcome(row.outcome), value)
        if test_metrics is not None:
            tested = to_json(test_metrics, keep_non_finite=True)
            connection.execute(_SET_TEST_METRICS, {"attempt_id": attempt.attempt_id, "test_metrics": tested})
        if row.outcome in {Outcome.FAILED, Outcome.LOST}:
            pause_if_failing(connection, attempt.study_id)


def fenced(attempt: Attempt) -> Fenced:
    """Return the error of an attempt that no longer belongs to its worker."""
    return Fenced(f"trial {attempt.number} was reassigned to another worker")


def _start_trial(connection: sa.Connection, study: Study, parameters: Mapping[str, Any], n_started: int) -> int | None:
    """Start a further trial if the budget has one left, and return the id of its attempt."""
    n_trials = study.file.budget.trials
    if n_trials is not None and n_started >= n_trials:
        return None
    optuna_trial_id = optuna_write.claim_waiting(connection, study.study_id)
    if optuna_trial_id is None:
        if study.is_enqueued_whole:
            return None
        optuna_trial_id = optuna_write.create_trial(connection, study.study_id)
    connection.execute(_COUNT_STARTED, parameters)
    return int(connection.execute(_ADD_ATTEMPT, {**parameters, "optuna_trial_id": optuna_trial_id}).scalar_one())


def _retry(connection: sa.Connection, parameters: Mapping[str, Any]) -> int | None:
    """Start a further attempt at the trial that has waited the longest, and return the id of the attempt."""
    last = connection.execute(_NEXT_RETRY, parameters).mappings().first()
    if last is None:
        return None
    optuna_trial_id = optuna_write.copy_trial(connection, last["study_id"], last["optuna_trial_id"])
    row = {**parameters, **last, "optuna_trial_id": optuna_trial_id}
    return int(connection.execute(_ADD_RETRY, row).scalar_one())


def _read_attempt(connection: sa.Connection, attempt_id: int) -> Attempt:
    row = connection.execute(_ATTEMPT, {"attempt_id": attempt_id}).mappings().one()
    trial = optuna_write.read_queued(connection, row["optuna_trial_id"])
    params: Mapping[str, Any] = trial.params
    seed = trial.user_attrs.get(SEED) if row["seed"] is None else row["seed"]
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
        # No study searches the seed, so that the trial fails with it.
        seed, params = None, {**params, "seed": seed}
    # The defaults are what all others are compared with, and a replicate that was pruned would be none.
    can_be_pruned = not {DEFAULT_CONFIGURATION, SEED} & trial.user_attrs.keys()
    arm = trial.user_attrs.get(ARM)
    return Attempt(
        **{**row, "seed": seed},
        arm=arm if isinstance(arm, str) else None,
        params=params,
        can_be_pruned=can_be_pruned,
    )


_RECORD_CONTACT = sa.text("select hpopt.record_contact(:worker_id)")

_HELD = sa.text("select attempt_id from hpopt.attempt where worker_id = :worker_id and ended_at is null")

_COUNT_STARTED = sa.text("update hpopt.study set n_started = n_started + 1 where study_id = :study_id")

_ATTEMPT = sa.text(
    """
    select a.attempt_id, a.study_id, a.trial_id, a.optuna_trial_id, t.number, a.attempt_number, a.seed
    from hpopt.attempt a join public.trials t on t.trial_id = a.optuna_trial_id
    where a.attempt_id = :attempt_id
    """
)

_NEXT_RETRY = sa.text(
    """
    select study_id, trial_id, optuna_trial_id, attempt_number, seed, arm from hpopt.attempts
    where study_id = :study_id and is_requeued and is_last
      and coalesce(retry_at, '-infinity') <= now()
    order by trial_id limit 1
    """
)

_ADD_ATTEMPT = sa.text(
    """
    insert into hpopt.attempt (study_id, worker_id, optuna_trial_id, trial_id)
    values (:study_id, :worker_id, :optuna_trial_id, :optuna_trial_id) returning attempt_id
    """
)

_ADD_RETRY = sa.text(
    """
    insert into hpopt.attempt (study_id, worker_id, optuna_trial_id, trial_id, attempt_number, seed, arm)
    values (:study_id, :worker_id, :optuna_trial_id, :trial_id, :attempt_number + 1, :seed, :arm) returning attempt_id
    """
)

_START = sa.text(
    """
    update hpopt.attempt
    set seed = :seed, arm = :arm, config = cast(:config as jsonb), derived = cast(:derived as jsonb),
        data_fingerprint = :data_fingerprint, heartbeat_at = now()
    where attempt_id = :attempt_id and ended_at is null
    """
)

_HEARTBEAT = sa.text(
    """
    with held as (
        update hpopt.attempt
        set heartbeat_at = now(), device_seconds = extract(epoch from now() - started_at)
        where attempt_id = :attempt_id and ended_at is null
        returning attempt_id
    )
    select exists (select from held) as is_held, s.state
    from hpopt.study s cross join hpopt.record_contact(:worker_id) contact (worker_id)
    where s.study_id = :study_id and contact.worker_id is not null
    """
)

_END = sa.text(
    """
    select outcome, is_running
    from hpopt.end_attempt(:attempt_id, :outcome, :reason, :is_live, :retry_after_s, :max_attempts)
    """
)

_SET_TEST_METRICS = sa.text(
    "update hpopt.attempt set test_metrics = cast(:test_metrics as jsonb) where attempt_id = :attempt_id"
)

_OUTCOME = sa.text("select outcome from hpopt.attempt where attempt_id = :attempt_id")
