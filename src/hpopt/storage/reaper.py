"""Mark attempts whose heartbeat expired as lost, which requeues their trials."""

import sqlalchemy as sa

from hpopt.analysis.trials import Outcome
from hpopt.storage import optuna_write
from hpopt.storage.attempts import MAX_ATTEMPTS_WITHOUT_PROGRESS
from hpopt.storage.database import Database
from hpopt.storage.studies import Study


def reap(database: Database, study: Study, worker_id: int) -> int:
    """End the attempts whose heartbeat is older than the `stale_after_s` of their workers, and return their number.

    Any worker can do this at any time. After an outage a worker cannot tell which heartbeats stopped and which were cut
    off like its own: it waits for the `stale_after_s` of the other worker, unless that one must have given up.
    """
    parameters = {
        "study_id": study.study_id,
        "worker_id": worker_id,
        "max_attempts": MAX_ATTEMPTS_WITHOUT_PROGRESS,
    }
    with database.brief() as connection:
        ended = connection.execute(_END_EXPIRED_ATTEMPTS, parameters).all()
        for row in ended:
            if row.is_running:
                optuna_write.end_trial(connection, row.optuna_trial_id, Outcome(row.outcome), None)
        connection.execute(_STOP_EXPIRED_WORKERS, parameters)
    return len(ended)


# An attempt did nothing after its last heartbeat, so its device time ends there.
_END_EXPIRED_ATTEMPTS = sa.text(
    """
    with reaper as materialized (
        select connected_since from hpopt.worker where worker_id = :worker_id
    ), expired as materialized (
        select a.attempt_id, w.stale_after_s
        from hpopt.attempt a join hpopt.worker w on w.worker_id = a.worker_id
        where a.study_id = :study_id and a.ended_at is null
          and a.heartbeat_at < now() - make_interval(secs => w.stale_after_s)
          and (
              a.heartbeat_at < now() - make_interval(secs => w.give_up_after_s + w.stale_after_s)
              or exists (
                  select from reaper where connected_since < now() - make_interval(secs => w.stale_after_s)
              )
          )
        for update of a skip locked
    )
    select ended.outcome, ended.is_running, ended.optuna_trial_id
    from expired
    cross join lateral hpopt.end_attempt(
        expired.attempt_id, 'lost', 'heartbeat expired after ' || expired.stale_after_s || ' s', false, null,
        :max_attempts
    ) ended
    """
)

_STOP_EXPIRED_WORKERS = sa.text(
    """
    update hpopt.worker
    set stopped_at = heartbeat_at, stop_reason = 'heartbeat expired'
    where worker_id in (
        select w.worker_id from hpopt.worker w
        where w.study_id = :study_id and w.stopped_at is null
          and w.heartbeat_at < now() - make_interval(secs => w.stale_after_s)
          and (
              w.heartbeat_at < now() - make_interval(secs => w.give_up_after_s + w.stale_after_s)
              or exists (
                  select from hpopt.worker reaper
                  where reaper.worker_id = :worker_id
                    and reaper.connected_since < now() - make_interval(secs => w.stale_after_s)
              )
          )
        for update skip locked
    )
    """
)
