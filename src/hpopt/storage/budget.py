"""Compare what a study has spent with its budget."""

import sqlalchemy as sa

from hpopt.formats import format_amount
from hpopt.storage.database import Database
from hpopt.storage.progress import BudgetUsage
from hpopt.storage.studies import Study


def read_usage(database: Database, study: Study) -> BudgetUsage:
    """Return what the study has spent."""
    with database.begin() as connection:
        row = connection.execute(_USAGE, _parameters(study)).mappings().one()
    return BudgetUsage(**row)


def limit_reached(database: Database, study: Study) -> str | None:
    """Return the limit in hours or tokens or the target that the study has reached, or None.

    Reads the database only if the budget has such a limit.
    """
    budget = study.file.budget
    if all(limit is None for limit in (budget.gpu_hours, budget.wall_hours, budget.tokens, budget.target)):
        return None
    with database.begin() as connection:
        return find_limit_reached(connection, study)


def find_limit_reached(connection: sa.Connection, study: Study) -> str | None:
    """Return the limit in hours or tokens or the target that the study has reached, or None, within a transaction."""
    budget, parameters = study.file.budget, _parameters(study)

    def read(query: sa.TextClause, *, is_limited: bool) -> float | None:
        return connection.scalar(query, parameters) if is_limited else None

    has_hours = budget.gpu_hours is not None or budget.wall_hours is not None
    return compare(
        study,
        device_hours=read(_DEVICE_HOURS, is_limited=has_hours) or 0.0,
        wall_hours=read(_WALL_HOURS, is_limited=budget.wall_hours is not None) or 0.0,
        reserved_hours=read(_RESERVED_HOURS, is_limited=has_hours and bool(parameters["n_reserved"])) or 0.0,
        tokens=read(_TOKENS, is_limited=budget.tokens is not None) or 0,
        reserved_tokens=read(_RESERVED_TOKENS, is_limited=budget.tokens is not None and bool(parameters["n_reserved"]))
        or 0.0,
        best_value=read(_BEST_VALUE, is_limited=budget.target is not None),
    )


def compare(
    study: Study,
    *,
    device_hours: float,
    wall_hours: float,
    reserved_hours: float,
    best_value: float | None,
    tokens: float = 0.0,
    reserved_tokens: float = 0.0,
) -> str | None:
    """Return the limit in hours or tokens or the target that such usage has reached, or None.

    Hours and tokens are those of the family. `reserved_hours`, device hours, and `reserved_tokens` are those that the
    confirmation of a search is expected to take.
    """
    budget = study.file.budget
    parallelism = wall_hours / device_hours if device_hours else 0.0
    for name, limit, used, reserved in (
        ("gpu_hours", budget.gpu_hours, device_hours, reserved_hours),
        ("wall_hours", budget.wall_hours, wall_hours, reserved_hours * parallelism),
        ("tokens", budget.tokens, tokens, reserved_tokens),
    ):
        if limit is not None and used >= limit - reserved:
            kept = f", {format_amount(reserved)} of them for the confirmation" if reserved else ""
            return f"{name} budget exhausted ({limit:g}{kept})"
    if (
        budget.target is not None
        and best_value is not None
        and not study.file.direction.is_better(budget.target, best_value)
    ):
        return f"target {budget.target:g} reached"
    return None


def limit_of(study: Study, usage: BudgetUsage) -> str | None:
    """Return the limit in hours or tokens or the target that a study with this usage has reached, or None."""
    return compare(
        study,
        device_hours=usage.family_hours,
        wall_hours=usage.family_wall_hours,
        reserved_hours=usage.reserved_hours,
        tokens=usage.family_tokens,
        reserved_tokens=usage.reserved_tokens,
        best_value=usage.best_value,
    )


def finished_reason(study: Study, usage: BudgetUsage) -> str | None:
    """Return why the study has finished, or None while a trial is running, can be retried or can be started."""
    limit = limit_of(study, usage) or (f"stopped: {usage.state_reason}" if usage.state == "stopped" else None)
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
    if study.is_enqueued_whole:
        limits.append(usage.n_started + usage.n_enqueued)
    return min((limit for limit in limits if limit is not None), default=None)


def _parameters(study: Study) -> dict[str, int]:
    """Return the parameters of the queries; `n_reserved` is the number of runs of the confirmation of a search."""
    confirm = study.file.confirm if study.is_root else None
    n_reserved = 0 if confirm is None else confirm.top * confirm.seeds
    return {"study_id": study.study_id, "root_id": study.root_id, "n_reserved": n_reserved}


# Hours are those of the whole family.
_DEVICE_HOURS = sa.text(
    """
    select sum(u.device_hours) from hpopt.budget_usage u join hpopt.study s using (study_id)
    where s.root_id = :root_id
    """
)
_WALL_HOURS = sa.text(
    """
    select sum(u.wall_hours) from hpopt.budget_usage u join hpopt.study s using (study_id)
    where s.root_id = :root_id
    """
)
_TOKENS = sa.text(
    """
    select sum(u.tokens) from hpopt.budget_usage u join hpopt.study s using (study_id)
    where s.root_id = :root_id
    """
)
_RESERVED_TOKENS = sa.text(
    """
    select (:n_reserved * avg(tokens))::double precision
    from hpopt.trials where study_id = :study_id and state = 'COMPLETE'
    """
)
_RESERVED_HOURS = sa.text(
    """
    select :n_reserved * avg(device_seconds) / 3600 from hpopt.trials
    where study_id = :study_id and state = 'COMPLETE'
    """
)
_BEST_VALUE = sa.text("select best_value from hpopt.budget_usage where study_id = :study_id")

_USAGE = sa.text(
    """
    select s.state, s.state_reason, counts.*, u.device_hours, u.wall_hours, u.best_value,
           family.device_hours as family_hours, family.wall_hours as family_wall_hours, family.tokens as family_tokens,
           case when :n_reserved > 0 then coalesce((
               select :n_reserved * avg(t.device_seconds) / 3600 from hpopt.trials t
               where t.study_id = s.study_id and t.state = 'COMPLETE'
           ), 0) else 0 end as reserved_hours,
           case when :n_reserved > 0 then coalesce((
               select :n_reserved * avg(t.tokens) from hpopt.trials t
               where t.study_id = s.study_id and t.state = 'COMPLETE'
           ), 0) else 0 end::double precision as reserved_tokens,
           (
               select count(*)::int from public.trials t where t.study_id = s.study_id and t.state = 'WAITING'
           ) as n_enqueued
    from hpopt.study s
    join hpopt.budget_usage u using (study_id)
    cross join lateral (
        select sum(m.device_hours) as device_hours, sum(m.wall_hours) as wall_hours,
               sum(m.tokens)::bigint as tokens
        from hpopt.study member join hpopt.budget_usage m using (study_id)
        where member.root_id = s.root_id
    ) family
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
