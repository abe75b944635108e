"""Pause, resume and stop a study, and enqueue configurations to try next."""

from collections.abc import Collection, Mapping
from itertools import count, islice

import sqlalchemy as sa

from hpopt.errors import InputError
from hpopt.formats import list_values, one_line, storable
from hpopt.hyperparameters import Scalar
from hpopt.storage import budget
from hpopt.storage.configurations import Configuration, Configurations, lock_study
from hpopt.storage.database import Database
from hpopt.storage.progress import BudgetUsage, Enqueued, StudyState
from hpopt.storage.studies import Study, default_seed

# The reason of a state for which none was given.
_MANUALLY = "manually"


def read_state(database: Database, study: Study) -> StudyState:
    """Return the state of a study."""
    with database.begin() as connection:
        return _read_state(connection, study)


def pause(database: Database, study: Study, reason: str | None = None) -> StudyState:
    """Pause a study and its family: workers requeue their trials with a checkpoint and wait.

    A study that is paused already keeps its reason unless another is given. Raises InputError if it is stopped.
    """
    with database.brief() as connection:
        text = None if reason is None else storable(one_line(reason))
        parameters = {"root_id": study.root_id, "reason": text, "default_reason": _MANUALLY}
        connection.execute(_PAUSE, parameters)
        state = _read_state(connection, study)
    if state.state == "stopped":
        raise InputError(f"study '{study.name}' is stopped; `hpopt resume {study.name}` opens it again")
    return state


def resume(database: Database, study: Study) -> StudyState:
    """Open a study that is paused or stopped, and its family."""
    return _set_state(database, study, "open", None)


def stop(database: Database, study: Study) -> StudyState:
    """Stop a study and its family: running trials end at their next evaluation, and workers exit."""
    return _set_state(database, study, "stopped", _MANUALLY)


def enqueue(
    database: Database,
    study: Study,
    params: Mapping[str, Scalar],
    *,
    seed: int | None = None,
    n_fresh_seeds: int | None = None,
) -> Enqueued:
    """Enqueue a configuration unless it was tried or enqueued before; params that are left out are sampled.

    With `n_fresh_seeds` it is enqueued so many times, with the lowest seeds that no trial of it has. Raises InputError
    for a configuration that is no point of a grid.
    """
    with database.brief() as connection:
        if lock_study(connection, study.study_id) is None:
            raise InputError(f"study '{study.name}' was deleted")
        known = Configurations(connection, study.study_id, default_seed(study.file, study.defaults))
        used = known.seeds(params)
        if study.is_enqueued_whole and not used:
            raise InputError(
                f"study '{study.name}' tries a grid, whose points are all enqueued;"
                " write others into [[enqueue]] of its file and `hpopt create` it again"
            )
        fresh = islice((number for number in count() if number not in used), n_fresh_seeds or 0)
        wanted = [Configuration(params=params, seed=number) for number in ([seed] if n_fresh_seeds is None else fresh)]
        existing = [number for one in wanted if (number := known.find(one)) is not None]
        ahead = connection.execute(_AHEAD, {"study_id": study.study_id}).one()
        added = known.enqueue(wanted)
    if not added:
        return Enqueued(trials=tuple(existing), is_new=False)
    blocked_by = _blocked_by(study, budget.read_usage(database, study), ahead.n_enqueued + len(added) - 1)
    seeds = tuple(one.seed for one in wanted if one.seed is not None)
    return Enqueued(trials=tuple(added), seeds=seeds, is_new=True, n_ahead=sum(ahead), blocked_by=blocked_by)


def refuse_arms(study: Study) -> None:
    """Raise InputError for a comparison, which has the runs of its arms alone."""
    if study.file.arms:
        raise InputError(
            f"study '{study.name}' runs its arms; raise seeds in its file and `hpopt create` it again for more pairs"
        )


def params_of(database: Database, study: Study, trial: int) -> dict[str, Scalar]:
    """Return the params of a trial. Raises InputError if there is no such trial, or if it has not started."""
    query = sa.text("select params from hpopt.trials where study_id = :study_id and trial = :trial")
    with database.begin() as connection:
        row = connection.execute(query, {"study_id": study.study_id, "trial": trial}).one_or_none()
    if row is None or not row.params:
        raise InputError(f"study '{study.name}' has no trial {trial} with parameters")
    return {name: row.params[name] for name in sorted(row.params)}


def retry(database: Database, study: Study, trials: Collection[int] | None = None) -> tuple[int, StudyState]:
    """Requeue the failed trials of these numbers, or all of them, with their params and seeds; return how many.

    Each counts once in the budget. Raises InputError for a number that is not that of a failed trial.
    """
    parameters = {"study_id": study.study_id, "trials": None if trials is None else list(trials)}
    with database.brief() as connection:
        lock_study(connection, study.study_id)
        failed = connection.scalars(_FAILED, parameters).all()
        others = sorted(set(trials or ()) - set(failed))
        if others:
            is_known = others[0] in connection.scalars(_NUMBERS, parameters).all()
            wrong = f"trial {others[0]} has not failed" if is_known else f"there is no trial {others[0]}"
            remedy = f"failed: {list_values(failed)}" if failed else "no trial has failed"
            raise InputError(f"study '{study.name}': {wrong}; {remedy}")
        return connection.execute(_RETRY, parameters).rowcount, _read_state(connection, study)


def _blocked_by(study: Study, usage: BudgetUsage, n_enqueued: int) -> str | None:
    """Return what ends the study before it starts a trial behind n_enqueued others, or None."""
    limit = budget.limit_of(study, usage)
    n_trials = study.file.budget.trials
    if limit is not None or n_trials is None or usage.n_started + n_enqueued < n_trials:
        return limit
    return f"trials budget {'exhausted' if usage.n_started >= n_trials else 'reserved by earlier trials'} ({n_trials})"


def _set_state(database: Database, study: Study, state: str, reason: str | None) -> StudyState:
    with database.brief() as connection:
        connection.execute(_SET_STATE, {"root_id": study.root_id, "state": state, "reason": reason})
        return _read_state(connection, study)


def _read_state(connection: sa.Connection, study: Study) -> StudyState:
    row = connection.execute(_STATE, {"study_id": study.study_id}).mappings().one_or_none()
    if row is None:
        raise InputError(f"study '{study.name}' was deleted")
    return StudyState(**row)


_STATE = sa.text(
    """
    select s.state, s.state_reason as reason, s.state_since as since,
           (select count(*)::int from hpopt.attempts a
            where a.study_id = s.study_id and a.ended_at is null) as n_running,
           (select count(*)::int from hpopt.attempts a
            where a.study_id = s.study_id and a.is_last and a.is_requeued) as n_pending_retry,
           (select count(*)::int from hpopt.attempts a
            where a.study_id = s.study_id and a.outcome = 'failed' and not a.is_requeued) as n_failed
    from hpopt.study s where s.study_id = :study_id
    """
)

_PAUSE = sa.text(
    """
    update hpopt.study
    set state_reason = coalesce(:reason, case when state = 'paused' then state_reason end, :default_reason),
        state_since = case when state = 'paused' then state_since else now() end,
        state = 'paused'
    where root_id = :root_id and state <> 'stopped'
    """
).bindparams(sa.bindparam("reason", type_=sa.Text))

_SET_STATE = sa.text(
    """
    update hpopt.study set state = :state, state_reason = :reason, state_since = now()
    where root_id = :root_id and state <> :state
    """
).bindparams(sa.bindparam("reason", type_=sa.Text))

_NUMBERS = sa.text("select trial from hpopt.trials where study_id = :study_id")

_FAILED = sa.text(
    """
    select trial from hpopt.attempts join hpopt.trials using (trial_id)
    where attempts.study_id = :study_id and attempts.outcome = 'failed' and not is_requeued
    order by trial
    """
)

_RETRY = sa.text(
    """
    update hpopt.attempt a set retry_at = now()
    from public.trials t
    where a.study_id = :study_id and a.outcome = 'failed' and not a.is_requeued and t.trial_id = a.optuna_trial_id
      and (cast(:trials as integer[]) is null or t.number = any(:trials))
    """
)

# Trials to be retried come first, then those that were enqueued earlier.
_AHEAD = sa.text(
    """
    select count(*) filter (where n_attempts > 0)::int as n_pending_retry,
           count(*) filter (where n_attempts = 0)::int as n_enqueued
    from hpopt.trials where study_id = :study_id and state = 'WAITING'
    """
)
