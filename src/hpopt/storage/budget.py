"""Owns the books of a study: what it has spent, and whether it is over. Leaves keeping to them to attempts.py."""

import sqlalchemy as sa

from hpopt.search import sampler
from hpopt.storage.database import Database
from hpopt.storage.progress import Books
from hpopt.storage.studies import Study

# The outcomes after which a trial is over; the others put it back into the queue.
ENDED = ("complete", "pruned", "diverged", "failed")


def read_books(database: Database, study: Study) -> Books:
    """Count what the study has spent."""
    about = {"study_id": study.study_id, "ended": ENDED, "sign": _sign(study)}
    with database.begin() as connection:
        row = connection.execute(_BOOKS, about).mappings().one()
    return Books(**row)


def limit_reached(database: Database, study: Study) -> str | None:
    """Say which limit in hours or which target the study has reached; asks only where its budget has one."""
    budget = study.file.budget
    if budget.gpu_hours is None and budget.wall_hours is None and budget.target is None:
        return None
    with database.begin() as connection:
        return limit_in(connection, study)


def limit_in(connection: sa.Connection, study: Study) -> str | None:
    """Say which limit in hours or which target the study has reached; asks only for what its budget limits."""
    budget, about = study.file.budget, {"study_id": study.study_id, "sign": _sign(study)}

    def ask(query: sa.TextClause, *, is_limited: bool) -> float | None:
        return connection.scalar(query, about) if is_limited else None

    return spent(
        study,
        device_hours=ask(_DEVICE_HOURS, is_limited=budget.gpu_hours is not None) or 0.0,
        wall_hours=ask(_WALL_HOURS, is_limited=budget.wall_hours is not None) or 0.0,
        best_value=ask(_BEST_VALUE, is_limited=budget.target is not None),
    )


def spent(study: Study, *, device_hours: float, wall_hours: float, best_value: float | None) -> str | None:
    """Say which limit in hours or which target is reached, or None."""
    budget = study.file.budget
    if budget.gpu_hours is not None and device_hours >= budget.gpu_hours:
        return f"{budget.gpu_hours:g} device hours spent"
    if budget.wall_hours is not None and wall_hours >= budget.wall_hours:
        return f"{budget.wall_hours:g} hours passed"
    if budget.target is not None and best_value is not None:
        sign = _sign(study)
        if sign * best_value <= sign * budget.target:
            return f"target {budget.target:g} reached"
    return None


def finished(study: Study, books: Books) -> str | None:
    """Say why the study is over, or None while a trial is running, waits to be retried or may be started."""
    limit = spent(study, device_hours=books.device_hours, wall_hours=books.wall_hours, best_value=books.best_value) or (
        f"stopped: {books.state_reason}" if books.state == "stopped" else None
    )
    if limit is not None:
        return limit if books.n_held == 0 else None
    n_trials = planned_trials(study)
    # A budget that was lowered leaves trials running or waiting beyond it: they come to their end.
    if n_trials is not None and books.n_ended >= n_trials and books.n_held + books.n_waiting == 0:
        return f"{n_trials} trials done"
    return None


def planned_trials(study: Study) -> int | None:
    """Give the number of trials after which the study ends, or None if only hours or a target end it."""
    limits = [study.file.budget.trials]
    if study.file.sampler.name == "grid":
        points = [*study.file.enqueue, *sampler.grid_points(study.file.search_space)]
        limits.append(len({tuple(sorted(point.items())) for point in points}))
    return min((limit for limit in limits if limit is not None), default=None)


def _sign(study: Study) -> float:
    return 1.0 if study.file.direction == "minimize" else -1.0


_DEVICE_HOURS_QUERY = """
    select (ended.device_seconds + coalesce(
               (select sum(g.device_seconds) from hpopt.goes g where g.study_id = :study_id and g.ended_at is null), 0
           )) / 3600
    from hpopt.study ended where ended.study_id = :study_id
"""
_WALL_HOURS_QUERY = """
    select extract(epoch from now() - min(started_at))::double precision / 3600
    from hpopt.goes where study_id = :study_id
"""
_BEST_VALUE_QUERY = """
    select :sign * min(:sign * v.value)
    from public.trials t join public.trial_values v using (trial_id)
    where t.study_id = :study_id and t.state = 'COMPLETE' and v.objective = 0 and v.value_type = 'FINITE'
      and not exists (
          select from public.trial_system_attributes c
          where c.trial_id = t.trial_id and c.key like 'constraints:%' and c.value_json::double precision > 0
      )
"""

_DEVICE_HOURS = sa.text(_DEVICE_HOURS_QUERY)
_WALL_HOURS = sa.text(_WALL_HOURS_QUERY)
_BEST_VALUE = sa.text(_BEST_VALUE_QUERY)

_BOOKS = sa.text(
    f"""
    select s.state, s.state_reason, counted.*,
           ({_DEVICE_HOURS_QUERY}) as device_hours,
           coalesce(({_WALL_HOURS_QUERY}), 0) as wall_hours,
           ({_BEST_VALUE_QUERY}) as best_value
    from hpopt.study s, (
        select count(*) filter (where outcome in :ended)::int as n_ended,
               count(*) filter (where outcome is null)::int as n_held,
               count(*) filter (where outcome in ('lost', 'preempted') and is_last)::int as n_waiting,
               coalesce(extract(epoch from max(coalesce(ended_at, now())) - min(started_at)), 0)::double precision
                   / 3600 as active_hours
        from hpopt.goes
        where study_id = :study_id
    ) counted
    where s.study_id = :study_id
    """  # noqa: S608 - what is put in are the constants above.
).bindparams(sa.bindparam("ended", expanding=True))
