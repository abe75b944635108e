"""Owns steering a study while it runs: pause, resume, stop, and configurations to try next.

Leaves obeying to the workers, and what a configuration may be to study/.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import optuna
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from hpopt.errors import InputError
from hpopt.hyperparameters import Scalar
from hpopt.storage import budget
from hpopt.storage.database import Database
from hpopt.storage.progress import Books
from hpopt.storage.studies import Study

# The reason of a state for which nobody gave one.
_BY_HAND = "by hand"


@dataclass(frozen=True, kw_only=True)
class State:
    """Whether a study is open, paused or stopped, why, since when, and how many trials are running or to be retried."""

    state: str
    reason: str | None
    since: datetime
    n_running: int
    n_to_retry: int


@dataclass(frozen=True, kw_only=True)
class Enqueued:
    """The trial of a configuration, new or known: how many are tried before it, and what ends the study before that."""

    trial: int
    is_new: bool
    n_ahead: int = 0
    ends_before: str | None = None


def find_state(database: Database, study: Study) -> State:
    """Say what holds for a study."""
    with database.begin() as connection:
        return _read_state(connection, study)


def pause(database: Database, study: Study, reason: str | None = None) -> State:
    """Let the workers hand their trials back and wait; raises InputError for a study that is stopped.

    A study that is paused stays so, for the reason it was, unless another is given.
    """
    with database.brief() as connection:
        about = {"study_id": study.study_id, "reason": reason, "otherwise": _BY_HAND}
        connection.execute(_PAUSE, about)
        state = _read_state(connection, study)
    if state.state == "stopped":
        raise InputError(f"study '{study.name}' is stopped; `hpopt resume {study.name}` opens it again")
    return state


def resume(database: Database, study: Study) -> State:
    """Let the workers go on with a study that is paused or stopped."""
    return _turn(database, study, "open", None)


def stop(database: Database, study: Study) -> State:
    """End a study with what it has: running trials end at their next evaluation, and the workers leave."""
    return _turn(database, study, "stopped", _BY_HAND)


def enqueue(database: Database, study: Study, params: Mapping[str, Scalar]) -> Enqueued:
    """Let a configuration be tried next, unless it was or will be; what it leaves out is sampled.

    Two people who enqueue the same one in the same moment get two trials. Raises InputError for a study of a grid.
    """
    if study.file.sampler.name == "grid":
        raise InputError(
            f"study '{study.name}' tries a grid, whose points are all enqueued;"
            " write others into [[enqueue]] of its file and `hpopt create` it again"
        )
    known = _find_configuration(database, study, params)
    if known is not None:
        return Enqueued(trial=known, is_new=False)
    with database.begin() as connection:
        ahead = connection.execute(_AHEAD, {"study_id": study.study_id}).one()
    with database.errors():
        optuna.load_study(study_name=study.name, storage=database.optuna).enqueue_trial(dict(params))
    added = _find_configuration(database, study, params)
    if added is None:
        raise InputError(f"study '{study.name}' was deleted")
    ends_before = _ends_before(study, budget.read_books(database, study), ahead.n_enqueued)
    return Enqueued(trial=added, is_new=True, n_ahead=sum(ahead), ends_before=ends_before)


def _ends_before(study: Study, spent: Books, n_enqueued: int) -> str | None:
    """Say what ends the study before it comes to a trial that has so many enqueued ones before it, or None."""
    hours = {"device_hours": spent.device_hours, "wall_hours": spent.wall_hours}
    limit = budget.spent(study, **hours, best_value=spent.best_value)
    n_trials = budget.planned_trials(study)
    if limit is not None or n_trials is None or spent.n_started + n_enqueued < n_trials:
        return limit
    return f"the budget of {n_trials} trials is " + ("spent" if spent.n_started >= n_trials else "taken")


def _turn(database: Database, study: Study, state: str, reason: str | None) -> State:
    with database.brief() as connection:
        connection.execute(_TURN, {"study_id": study.study_id, "state": state, "reason": reason})
        return _read_state(connection, study)


def _read_state(connection: sa.Connection, study: Study) -> State:
    row = connection.execute(_STATE, {"study_id": study.study_id}).mappings().one_or_none()
    if row is None:
        raise InputError(f"study '{study.name}' was deleted")
    return State(**row)


def _find_configuration(database: Database, study: Study, params: Mapping[str, Scalar]) -> int | None:
    """Give the number of the trial that was asked for with these params, or that has these and no others."""
    with database.begin() as connection:
        rows = connection.execute(_CONFIGURATION, {"study_id": study.study_id, "params": dict(params)})
        return next((int(number) for (number,) in rows), None)


_STATE = sa.text(
    """
    select s.state, s.state_reason as reason, s.state_since as since,
           (select count(*)::int from hpopt.goes g
            where g.study_id = s.study_id and g.ended_at is null) as n_running,
           (select count(*)::int from hpopt.goes g
            where g.study_id = s.study_id and g.is_last and g.outcome in ('lost', 'preempted')) as n_to_retry
    from hpopt.study s where s.study_id = :study_id
    """
)

_PAUSE = sa.text(
    """
    update hpopt.study
    set state_reason = coalesce(:reason, case when state = 'paused' then state_reason end, :otherwise),
        state_since = case when state = 'paused' then state_since else now() end,
        state = 'paused'
    where study_id = :study_id and state <> 'stopped'
    """
).bindparams(sa.bindparam("reason", type_=sa.Text))

_TURN = sa.text(
    """
    update hpopt.study set state = :state, state_reason = :reason, state_since = now()
    where study_id = :study_id and state <> :state
    """
).bindparams(sa.bindparam("reason", type_=sa.Text))

# Trials that wait to be retried come first, then what was enqueued earlier.
_AHEAD = sa.text(
    """
    select count(*) filter (where n_attempts > 0)::int as n_to_retry,
           count(*) filter (where n_attempts = 0)::int as n_enqueued
    from hpopt.trials where study_id = :study_id and state = 'WAITING'
    """
)

# What somebody asked for is kept at the first go of a trial, and may be a part of its params.
_CONFIGURATION = sa.text(
    """
    select t.trial
    from hpopt.trials t
    left join public.trial_system_attributes asked on asked.trial_id = t.first_trial_id and asked.key = 'fixed_params'
    where t.study_id = :study_id and (asked.value_json::jsonb = :params or t.params = :params)
    order by t.trial limit 1
    """
).bindparams(sa.bindparam("params", type_=JSONB))
