"""Compare what a study has spent with its budget."""

import sqlalchemy as sa

from hpopt.storage.database import Database
from hpopt.storage.progress import BudgetUsage
from hpopt.storage.studies import Study


def read_usage(database: Database, study: Study) -> BudgetUsage:
    """Return what the study has spent."""
    with database.begin() as connection:
        row = connection.execute(_USAGE, {"study_id": study.study_id}).mappings().one()
    return BudgetUsage(**row)


def limit_reached(database: Database, study: Study) -> str | None:
    """Return the limit in hours or the target that the study has reached, or None.

    Reads the database only if the budget has such a limit.
    """
    budget = study.file.budget
    if budget.gpu_hours is None and budget.wall_hours is None and budget.target is None:
        return None
    with database.begin() as connection:
        return find_limit_reached(connection, study)


def find_limit_reached(connection: sa.Connection, study: Study) -> str | None:
    """Return the limit in hours or the target that the study has reached, or None, within a transaction."""
    budget, parameters = study.file.budget, {"study_id": study.study_id}

    def read(query: sa.TextClause, *, is_limited: bool) -> float | None:
        return connection.scalar(query, parameters) if is_limited else None

    return compare(
        study,
        device_hours=read(_DEVICE_HOURS, is_limited=budget.gpu_hours is not None) or 0.0,
        wall_hours=read(_WALL_HOURS, is_limited=budget.wall_hours is not None) or 0.0,
        best_value=read(_BEST_VALUE, is_limited=budget.target is not None),
    )


def compare(study: Study, *, device_hours: float, wall_hours: float, best_value: float | None) -> str | None:
    """Return the limit in hours or the target that such usage has reached, or None."""
    budget = study.file.budget
    if budget.gpu_hours is not None and device_hours >= budget.gpu_hours:
        return f"gpu_hours budget exhausted ({budget.gpu_hours:g})"
    if budget.wall_hours is not None and wall_hours >= budget.wall_hours:
        return f"wall_hours budget exhausted ({budget.wall_hours:g})"
    if (
        budget.target is not None
        and best_value is not None
        and not study.file.direction.is_better(budget.target, best_value)
    ):
        return f"target {budget.target:g} reached"
    return None


def finished_reason(study: Study, usage: BudgetUsage) -> str | None:
    """Return why the study has finished, or None while a trial is running, can be retried or can be started."""
    limit = compare(
        study, device_hours=usage.device_hours, wall_hours=usage.wall_hours, best_value=usage.best_value
    ) or (f"stopped: {usage.state_reason}" if usage.state == "stopped" else None)
    if limit is not None:
        return limit if usage.n_running == 0 else None
    n_trials = planned_trials(study, usage)
    # A budget that was lowered leaves trials running or waiting beyond it, which still finish.
    if n_trials is not None and usage.n_finished >= n_trials and usage.n_running + usage.n_pending_retry == 0:
        return f"trials budget exhausted ({n_trials})"
    return None


def planned_trials(study: Study, usage: BudgetUsage) -> int | None:
    """Return the number of trials after which the study finishes, or None if only hours or a target end it.

    The trials of a grid are those that were enqueued: its points, and repetitions of them.
    """
    limits = [study.file.budget.trials]
    if study.file.sampler.name == "grid":
        limits.append(usage.n_started + usage.n_enqueued)
    return min((limit for limit in limits if limit is not None), default=None)


_DEVICE_HOURS = sa.text("select device_hours from hpopt.budget_usage where study_id = :study_id")
_WALL_HOURS = sa.text("select wall_hours from hpopt.budget_usage where study_id = :study_id")
_BEST_VALUE = sa.text("select best_value from hpopt.budget_usage where study_id = :study_id")

_USAGE = sa.text(
    """
    select s.state, s.state_reason, counts.*, u.device_hours, u.wall_hours, u.best_value,
           (
               select count(*)::int from public.trials t where t.study_id = s.study_id and t.state = 'WAITING'
           ) as n_enqueued
    from hpopt.study s
    join hpopt.budget_usage u using (study_id)
    cross join lateral (
        select count(*) filter (where outcome is not null and not is_requeued)::int as n_finished,
               count(*) filter (where outcome is null)::int as n_running,
               count(*) filter (where is_requeued and is_last)::int as n_pending_retry
        from hpopt.attempts a
        where a.study_id = s.study_id
    ) counts
    where s.study_id = :study_id
    """
)
