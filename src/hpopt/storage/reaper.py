"""Owns the dead: ends attempts that went silent. Leaves the living, and those who hand back, to attempts.py."""

import sqlalchemy as sa

from hpopt.storage.database import Database
from hpopt.storage.ending import CHARGE, MAX_GOES_WITHOUT_PROGRESS, ended_as
from hpopt.storage.studies import Study


def reap(database: Database, study: Study, worker_id: int) -> int:
    """End the attempts that were silent for longer than their workers said; gives their number.

    Any worker may do it at any time. After a time without the database a worker cannot know who was silent and who was
    cut off as it was: it waits for as long as the silent one would, unless that one must have given up meanwhile.
    """
    about = {"study_id": study.study_id, "worker_id": worker_id, "n_goes": MAX_GOES_WITHOUT_PROGRESS}
    with database.brief() as connection:
        ended = int(connection.execute(_END_SILENT, about).scalar_one())
        connection.execute(_STOP_SILENT_WORKERS, about)
    return ended


_IS_DEAD = """
    {heard} < now() - make_interval(secs => w.stale_after_s)
    and (
        {heard} < now() - make_interval(secs => w.give_up_after_s + w.stale_after_s)
        or exists (
            select from hpopt.worker reaper
            where reaper.worker_id = :worker_id
              and reaper.connected_since < now() - make_interval(secs => w.stale_after_s)
        )
    )
"""

_SILENT = "'silent for ' || w.stale_after_s || ' s'"
_TOO_OFTEN = "'its worker died ' || :n_goes || ' times in a row without progress'"

# Its Optuna trial ends in the same statement. A silent attempt did nothing after its last heartbeat: that is what it
# is charged for.
_END_SILENT = sa.text(
    f"""
    with silent as (
        select a.attempt_id, a.trial_id
        from hpopt.attempt a join hpopt.worker w on w.worker_id = a.worker_id
        where a.study_id = :study_id and a.ended_at is null
          and {_IS_DEAD.format(heard="a.heartbeat_at")}
        for update of a skip locked
    ), failed as (
        update public.trials t
        set state = 'FAIL', datetime_complete = now() at time zone 'UTC'
        from silent where t.trial_id = silent.trial_id and t.state = 'RUNNING'
    ), ended as (
        update hpopt.attempt a
        set ended_at = now(),
            {ended_as(kind="'lost'", reason=_SILENT, too_often=_TOO_OFTEN)}
        from silent
        join public.trials t on t.trial_id = silent.trial_id, hpopt.worker w
        where a.attempt_id = silent.attempt_id and w.worker_id = a.worker_id
        returning a.study_id, a.device_seconds
    ), charged as ({CHARGE})
    select count(*) from ended
    """  # noqa: S608 - what is put in are constants.
)

_STOP_SILENT_WORKERS = sa.text(
    f"""
    update hpopt.worker
    set stopped_at = seen_at, stop_reason = 'went silent'
    where worker_id in (
        select w.worker_id from hpopt.worker w
        where w.study_id = :study_id and w.stopped_at is null and {_IS_DEAD.format(heard="w.seen_at")}
        for update skip locked
    )
    """  # noqa: S608 - what is put in are constants.
)
