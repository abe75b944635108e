"""Owns the books of a study: what it has spent, and whether it is over. Leaves keeping to them to attempts.py."""

import sqlalchemy as sa

from hpopt import strategy
from hpopt.analysis.progress import Books
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

# The outcomes after which a trial is over; the others put it back into the queue.
ENDED = ("complete", "pruned", "diverged", "failed")

# Attempts whose trial waits to be retried, by the last go of each.
IS_WAITING = """
    a.outcome in ('lost', 'preempted') and a.first_trial_id is not null
    and not exists (select from hpopt.attempt later where later.first_trial_id = a.first_trial_id and later.go > a.go)
"""


def read_books(database: Database, study: Study) -> Books:
    """Count what the study has spent."""
    with database.begin() as connection:
        return count_books(connection, study.study_id)


def limit_reached(database: Database, study: Study) -> str | None:
    """Say which limit in hours or which target the study has reached; asks only where the budget has one."""
    budget = study.file.budget
    if budget.gpu_hours is None and budget.wall_hours is None and budget.target is None:
        return None
    return spent(study, read_books(database, study))


def spent(study: Study, books: Books) -> str | None:
    """Say which limit in hours or which target the study has reached, or None."""
    budget = study.file.budget
    if budget.gpu_hours is not None and books.device_hours >= budget.gpu_hours:
        return f"{budget.gpu_hours:g} device hours spent"
    if budget.wall_hours is not None and books.wall_hours >= budget.wall_hours:
        return f"{budget.wall_hours:g} hours passed"
    if budget.target is not None and books.best_value is not None:
        better = (
            books.best_value <= budget.target
            if study.file.direction == "minimize"
            else books.best_value >= budget.target
        )
        if better:
            return f"target {budget.target:g} reached"
    return None


def finished(study: Study, books: Books) -> str | None:
    """Say why the study is over, or None while a trial is running, waits to be retried or may be started."""
    limit = spent(study, books)
    if limit is not None:
        return limit if books.n_held == 0 else None
    n_trials = planned_trials(study)
    if n_trials is not None and books.n_ended >= n_trials:
        return f"{n_trials} trials done"
    return None


def planned_trials(study: Study) -> int | None:
    """Give the number of trials after which the study ends, or None if only hours or a target end it."""
    limits = [study.file.budget.trials]
    if study.file.sampler.name == "grid":
        points = [*study.file.enqueue, *strategy.grid_points(study.file.search_space)]
        limits.append(len({tuple(sorted(point.items())) for point in points}))
    return min((limit for limit in limits if limit is not None), default=None)


def count_books(connection: sa.Connection, study_id: int) -> Books:
    """Count within a transaction that holds the study's row, so that nobody reserves in between."""
    row = connection.execute(_BOOKS, {"study_id": study_id, "ended": ENDED}).mappings().one()
    return Books(**row)


_BOOKS = sa.text(
    f"""
    select count(*) filter (where a.outcome in :ended)::int as n_ended,
           count(*) filter (where a.outcome is null)::int as n_held,
           count(*) filter (where {IS_WAITING})::int as n_waiting,
           coalesce(sum(a.device_seconds), 0) / 3600 as device_hours,
           coalesce(extract(epoch from now() - min(a.started_at)), 0)::double precision / 3600 as wall_hours,
           coalesce(extract(epoch from max(coalesce(a.ended_at, now())) - min(a.started_at)), 0)::double precision
               / 3600 as active_hours,
           (select l.value from hpopt.leaderboard l where l.study_id = :study_id order by l.rank limit 1) as best_value
    from hpopt.attempt a
    where a.study_id = :study_id
    """  # noqa: S608 - the only thing put in is the constant above.
).bindparams(sa.bindparam("ended", expanding=True))
