"""Owns attempts: reserving, fencing and ending the goes of workers at trials. Leaves training to objective.py
and the dead to reaping.py.

Each step of an attempt's life is one transaction over Optuna's rows and ours, so that a crash leaves nothing half done,
and each can be repeated after a lost reply. A trial is begun under a lock on its study's row, so that the fleet never
starts more than the budget allows. Whoever finds an attempt silent ends it; from then on its worker can write nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpopt import __version__
from hpopt.errors import Fenced
from hpopt.hyperparameters import Scalar
from hpopt.storage import optuna_write, tables
from hpopt.storage.budget import limit_in, planned_trials
from hpopt.storage.database import Database
from hpopt.storage.ending import CHARGE, MAX_GOES_WITHOUT_PROGRESS, ended_as
from hpopt.storage.studies import DEFAULT_CONFIGURATION, Study

# A run of failures in which no trial survives has a reason that the next trial would share.
_FAILURES_THAT_PAUSE = 5


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One go of a worker at a trial.

    A retry has the params and seed of the go before it, and the steps at which the goes before it were evaluated. A
    trial that somebody enqueued has the params that were asked for; what is missing in `params` is to be sampled.
    """

    attempt_id: int
    study_id: int
    trial_id: int
    first_trial_id: int
    number: int
    go: int = 1
    seed: int | None = None
    params: Mapping[str, Scalar]
    is_default: bool = False
    earlier_steps: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a heartbeat brings back: whether the attempt is still the worker's, and what became of the study."""

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
    """Write down that a worker is here, how long it may be silent, and how long it does without the database."""
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
    """Write down that a worker has stopped, and why."""
    query = "update hpopt.worker set stopped_at = now(), seen_at = now(), stop_reason = :reason where worker_id = :id"
    with database.begin() as connection:
        connection.execute(sa.text(query), {"reason": reason, "id": worker_id})


def reserve(database: Database, study: Study, worker_id: int) -> Attempt | None:
    """Reserve the next go: of a trial that waits to be retried, of one that somebody enqueued, or of a new one.

    None while the study is paused, while others hold what is left of the budget, and when it is spent. A worker has
    one attempt at a time: asked again, for the reply was lost, it is given the same one.
    """
    about: dict[str, Any] = {"study_id": study.study_id, "worker_id": worker_id}
    with database.brief() as connection:
        connection.execute(_SEEN, about)
        attempt_id = connection.scalar(_MINE, about)
        if attempt_id is None:
            started = connection.execute(_LOCK, about).mappings().one()
            if started["state"] != "open" or limit_in(connection, study) is not None:
                return None
            attempt_id = _retry(connection, about) or _begin(connection, study, about, started["n_started"])
        return None if attempt_id is None else _read_attempt(connection, attempt_id)


def start(
    database: Database,
    study: Study,
    attempt: Attempt,
    params: Mapping[str, Scalar],
    *,
    seed: int | None,
    config: Mapping[str, Any] | None,
    data_fingerprint: str | None,
) -> None:
    """Write down the params that were sampled, and what is trained with them; raises Fenced."""
    values = {"seed": seed, "config": _plain(config), "data_fingerprint": data_fingerprint}
    with database.brief() as connection:
        held = sa.update(tables.attempt).where(
            tables.attempt.c.attempt_id == attempt.attempt_id, tables.attempt.c.ended_at.is_(None)
        )
        if connection.execute(held.values({**values, "heartbeat_at": sa.func.now()})).rowcount != 1:
            raise fenced(attempt)
        optuna_write.add_params(connection, attempt.trial_id, params, study.file.search_space)


def beat(database: Database, study_id: int, worker_id: int, attempt: Attempt | None) -> Standing:
    """Renew the heartbeats of the worker and of its attempt."""
    about = {"study_id": study_id, "worker_id": worker_id, "attempt_id": attempt.attempt_id if attempt else None}
    with database.statement() as connection:
        row = connection.execute(_BEAT, about).mappings().one_or_none()
    # Somebody deleted the study.
    return Standing(is_held=False, state="stopped") if row is None else Standing(**row)


def finish(
    database: Database,
    attempt: Attempt,
    *,
    kind: str,
    value: float | None = None,
    reason: str | None = None,
    retry_after_s: float | None = None,
    is_live: bool = True,
) -> None:
    """End the attempt as one of tables.OUTCOMES; raises Fenced when others ended it otherwise.

    One that is lost too often without progress has failed. A trial that was ended in Optuna's tables by other means
    has ended as it did there. One that is handed back waits `retry_after_s` before its next go. What is not live is
    told by a journal: its worker is gone, and it cost what it had cost when it was last heard of.
    """
    about = {
        "attempt_id": attempt.attempt_id,
        "outcome": kind,
        # Postgres has no text with a zero in it.
        "reason": None if reason is None else reason.replace("\0", ""),
        "n_goes": MAX_GOES_WITHOUT_PROGRESS,
        "retry_after_s": retry_after_s,
        "is_live": is_live,
    }
    with database.brief() as connection:
        ended = connection.execute(_END, about).mappings().one_or_none()
        if ended is None:
            # Told again because the reply was lost; what was lost once too often has failed.
            if connection.scalar(_OUTCOME, about) not in {kind, "failed" if kind == "lost" else kind}:
                raise fenced(attempt)
            return
        if ended["is_ours"]:
            optuna_write.end_trial(connection, attempt.trial_id, ended["outcome"], value)
        if ended["outcome"] in {"failed", "lost"}:
            connection.execute(_PAUSE, {"study_id": attempt.study_id, "n_failures": _FAILURES_THAT_PAUSE})


def _begin(connection: sa.Connection, study: Study, about: Mapping[str, Any], n_started: int) -> int | None:
    """Begin a further trial, if the budget has one left."""
    n_trials = planned_trials(study)
    if n_trials is not None and n_started >= n_trials:
        return None
    connection.execute(sa.text("update hpopt.study set n_started = n_started + 1 where study_id = :study_id"), about)
    trial_id = optuna_write.claim_waiting(connection, study.study_id)
    if trial_id is None:
        trial_id = optuna_write.create_trial(connection, study.study_id)
    return int(connection.execute(_ADD, {**about, "trial_id": trial_id}).scalar_one())


def _retry(connection: sa.Connection, about: Mapping[str, Any]) -> int | None:
    """Begin a further go of the trial that waits the longest, if there is one."""
    waiting = connection.execute(_WAITING, about).mappings().first()
    if waiting is None:
        return None
    trial_id = optuna_write.copy_trial(connection, waiting["study_id"], waiting["trial_id"])
    return int(connection.execute(_ADD_RETRY, {**about, **waiting, "new_trial_id": trial_id}).scalar_one())


def _read_attempt(connection: sa.Connection, attempt_id: int) -> Attempt:
    row = connection.execute(_ATTEMPT, {"attempt_id": attempt_id}).mappings().one()
    known = optuna_write.read_known(connection, row["trial_id"])
    seed = known.user_attrs.get("seed") if row["seed"] is None else row["seed"]
    return Attempt(
        **{**row, "seed": seed},
        params=known.params,
        is_default=DEFAULT_CONFIGURATION in known.user_attrs,
        earlier_steps=known.steps,
    )


def _plain(config: Mapping[str, Any] | None) -> Any:  # noqa: ANN401 - JSON.
    """Give a config as Postgres takes it: what JSON has no word for becomes a string."""
    return None if config is None else json.loads(json.dumps(dict(config), default=str), parse_constant=str)


def fenced(attempt: Attempt) -> Fenced:
    """Give the error of an attempt that is no longer its worker's."""
    return Fenced(f"trial {attempt.number} was handed on to another worker")


_LOCK = sa.text(
    """
    select h.state, h.n_started from hpopt.study h join public.studies s using (study_id)
    where h.study_id = :study_id for no key update
    """
)

_MINE = sa.text("select attempt_id from hpopt.attempt where worker_id = :worker_id and ended_at is null")

_ATTEMPT = sa.text(
    """
    select a.attempt_id, a.study_id, a.trial_id, a.first_trial_id, t.number, a.go, a.seed
    from hpopt.attempt a join public.trials t using (trial_id)
    where a.attempt_id = :attempt_id
    """
)

_WAITING = sa.text(
    """
    select study_id, trial_id, first_trial_id, go, seed from hpopt.goes
    where study_id = :study_id and outcome in ('lost', 'preempted') and is_last
      and coalesce(retry_at, '-infinity') <= now()
    order by first_trial_id limit 1
    """
)

_ADD = sa.text(
    """
    insert into hpopt.attempt (study_id, worker_id, trial_id, first_trial_id)
    values (:study_id, :worker_id, :trial_id, :trial_id) returning attempt_id
    """
)

_ADD_RETRY = sa.text(
    """
    insert into hpopt.attempt (study_id, worker_id, trial_id, first_trial_id, go, seed)
    values (:study_id, :worker_id, :new_trial_id, :first_trial_id, :go + 1, :seed) returning attempt_id
    """
)

# A worker that was taken for dead is back. One that was away for half of what it takes to be taken for dead cannot
# say who else was silent meanwhile.
CONTACT = """
    update hpopt.worker
    set connected_since = case
            when seen_at < now() - make_interval(secs => stale_after_s / 2) then now() else connected_since
        end,
        seen_at = now(), stopped_at = null, stop_reason = null
"""

_SEEN = sa.text(f"{CONTACT} where worker_id = :worker_id")

_BEAT = sa.text(
    f"""
    with held as (
        update hpopt.attempt
        set heartbeat_at = now(), device_seconds = extract(epoch from now() - started_at)
        where attempt_id = :attempt_id and ended_at is null
        returning attempt_id
    ), seen as ({CONTACT} where worker_id = :worker_id returning worker_id)
    select exists (select from held) as is_held, state
    from hpopt.study where study_id = :study_id and exists (select from seen)
    """  # noqa: S608 - the only thing put in is the constant above.
)


_TOO_OFTEN = ":reason || ' (' || :n_goes || ' times in a row without progress)'"

_END = sa.text(
    f"""
    with ended as (
        update hpopt.attempt a
        set ended_at = now(), retry_at = now() + make_interval(secs => :retry_after_s),
            device_seconds = case when :is_live then extract(epoch from now() - a.started_at) else a.device_seconds end,
            {ended_as(kind=":outcome", reason=":reason", too_often=_TOO_OFTEN)}
        from public.trials t
        where a.attempt_id = :attempt_id and a.ended_at is null and t.trial_id = a.trial_id
        returning a.outcome, t.state = 'RUNNING' as is_ours, a.study_id, a.device_seconds
    ), charged as ({CHARGE})
    select outcome, is_ours from ended
    """  # noqa: S608 - what is put in are the constants above.
)

_OUTCOME = sa.text("select outcome from hpopt.attempt where attempt_id = :attempt_id")

# Figures in a reason differ from trial to trial. What was silent for too long has no reason in common.
_PAUSE = sa.text(
    """
    update hpopt.study s
    set state = 'paused', state_since = now(), state_reason = :n_failures || ' trials in a row failed: ' || f.reason
    from (
        select min(last.reason) as reason
        from (
            select g.first_trial_id, g.outcome, g.reason
            from hpopt.goes g join hpopt.study h using (study_id)
            where g.study_id = :study_id and g.ended_at > h.state_since and g.outcome <> 'preempted'
            order by g.ended_at desc limit :n_failures
        ) last
        having count(distinct last.first_trial_id) = :n_failures
           and count(distinct regexp_replace(last.reason, '[0-9.]+', '0', 'g')) = 1
           and bool_and(last.outcome in ('failed', 'lost') and last.reason not like 'silent for %')
    ) f
    where s.study_id = :study_id and s.state = 'open'
    """
)
