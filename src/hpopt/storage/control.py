"""Pause, resume and stop a study, and enqueue configurations to try next."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import optuna
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from hpopt.errors import InputError
from hpopt.formats import storable
from hpopt.hyperparameters import Scalar
from hpopt.storage import budget
from hpopt.storage.database import Database
from hpopt.storage.progress import BudgetUsage
from hpopt.storage.studies import Study

# The reason of a state for which none was given.
_MANUALLY = "manually"


@dataclass(frozen=True, kw_only=True)
class StudyState:
    """Whether a study is open, paused or stopped, why and since when, and how many trials run or wait for a retry."""

    state: str
    reason: str | None
    since: datetime
    n_running: int
    n_pending_retry: int


@dataclass(frozen=True, kw_only=True)
class EnqueuedTrial:
    """The trial of a configuration: whether it is new, how many come before it, and what ends the study before it."""

    trial: int
    is_new: bool
    n_ahead: int = 0
    blocked_by: str | None = None


def read_state(database: Database, study: Study) -> StudyState:
    """Return the state of a study."""
    with database.begin() as connection:
        return _read_state(connection, study)


def pause(database: Database, study: Study, reason: str | None = None) -> StudyState:
    """Pause a study: workers requeue their trials with a checkpoint and wait. Raises InputError if it is stopped.

    A study that is paused already keeps its reason unless another is given.
    """
    with database.brief() as connection:
        text = None if reason is None else storable(reason)
        parameters = {"study_id": study.study_id, "reason": text, "default_reason": _MANUALLY}
        connection.execute(_PAUSE, parameters)
        state = _read_state(connection, study)
    if state.state == "stopped":
        raise InputError(f"study '{study.name}' is stopped; `hpopt resume {study.name}` opens it again")
    return state


def resume(database: Database, study: Study) -> StudyState:
    """Open a study that is paused or stopped."""
    return _set_state(database, study, "open", None)


def stop(database: Database, study: Study) -> StudyState:
    """Stop a study: running trials end at their next evaluation, and workers exit."""
    return _set_state(database, study, "stopped", _MANUALLY)


def enqueue(database: Database, study: Study, params: Mapping[str, Scalar]) -> EnqueuedTrial:
    """Enqueue a configuration unless it was tried or enqueued before; params that are left out are sampled.

    Two calls with the same configuration at the same moment enqueue two trials. Raises InputError for a grid.
    """
    if study.file.sampler.name == "grid":
        raise InputError(
            f"study '{study.name}' tries a grid, whose points are all enqueued;"
            " write others into [[enqueue]] of its file and `hpopt create` it again"
        )
    existing = _find_configuration(database, study, params)
    if existing is not None:
        return EnqueuedTrial(trial=existing, is_new=False)
    with database.begin() as connection:
        ahead = connection.execute(_AHEAD, {"study_id": study.study_id}).one()
    with database.errors():
        optuna.load_study(study_name=study.name, storage=database.optuna).enqueue_trial(dict(params))
    added = _find_configuration(database, study, params)
    if added is None:
        raise InputError(f"study '{study.name}' was deleted")
    blocked_by = _blocked_by(study, budget.read_usage(database, study), ahead.n_enqueued)
    return EnqueuedTrial(trial=added, is_new=True, n_ahead=sum(ahead), blocked_by=blocked_by)


def _blocked_by(study: Study, usage: BudgetUsage, n_enqueued: int) -> str | None:
    """Return what ends the study before it starts a trial behind n_enqueued others, or None."""
    hours = {"device_hours": usage.device_hours, "wall_hours": usage.wall_hours}
    limit = budget.compare(study, **hours, best_value=usage.best_value)
    n_trials = budget.planned_trials(study)
    if limit is not None or n_trials is None or usage.n_started + n_enqueued < n_trials:
        return limit
    return f"trials budget {'exhausted' if usage.n_started >= n_trials else 'reserved by earlier trials'} ({n_trials})"


def _set_state(database: Database, study: Study, state: str, reason: str | None) -> StudyState:
    with database.brief() as connection:
        connection.execute(_SET_STATE, {"study_id": study.study_id, "state": state, "reason": reason})
        return _read_state(connection, study)


def _read_state(connection: sa.Connection, study: Study) -> StudyState:
    row = connection.execute(_STATE, {"study_id": study.study_id}).mappings().one_or_none()
    if row is None:
        raise InputError(f"study '{study.name}' was deleted")
    return StudyState(**row)


def _find_configuration(database: Database, study: Study, params: Mapping[str, Scalar]) -> int | None:
    """Return the number of the trial that was enqueued with these params, or that has these and no others."""
    with database.begin() as connection:
        rows = connection.execute(_CONFIGURATION, {"study_id": study.study_id, "params": dict(params)})
        return next((int(number) for (number,) in rows), None)


_STATE = sa.text(
    """
    select s.state, s.state_reason as reason, s.state_since as since,
           (select count(*)::int from hpopt.attempts a
            where a.study_id = s.study_id and a.ended_at is null) as n_running,
           (select count(*)::int from hpopt.attempts a
            where a.study_id = s.study_id and a.is_last and a.outcome in ('lost', 'preempted')) as n_pending_retry
    from hpopt.study s where s.study_id = :study_id
    """
)

_PAUSE = sa.text(
    """
    update hpopt.study
    set state_reason = coalesce(:reason, case when state = 'paused' then state_reason end, :default_reason),
        state_since = case when state = 'paused' then state_since else now() end,
        state = 'paused'
    where study_id = :study_id and state <> 'stopped'
    """
).bindparams(sa.bindparam("reason", type_=sa.Text))

_SET_STATE = sa.text(
    """
    update hpopt.study set state = :state, state_reason = :reason, state_since = now()
    where study_id = :study_id and state <> :state
    """
).bindparams(sa.bindparam("reason", type_=sa.Text))

# Trials to be retried come first, then those that were enqueued earlier.
_AHEAD = sa.text(
    """
    select count(*) filter (where n_attempts > 0)::int as n_pending_retry,
           count(*) filter (where n_attempts = 0)::int as n_enqueued
    from hpopt.trials where study_id = :study_id and state = 'WAITING'
    """
)

# The enqueued params are kept with the first attempt of a trial, and can be a part of its params.
_CONFIGURATION = sa.text(
    """
    select t.trial
    from hpopt.trials t
    left join public.trial_system_attributes enqueued
        on enqueued.trial_id = t.trial_id and enqueued.key = 'fixed_params'
    where t.study_id = :study_id and (enqueued.value_json::jsonb = :params or t.params = :params)
    order by t.trial limit 1
    """
).bindparams(sa.bindparam("params", type_=JSONB))
