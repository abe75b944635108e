"""Owns the dead: ends attempts that went silent, frees trials that nobody holds. Leaves the living to attempts.py."""

import optuna
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from hpopt.storage.attempts import STATES, end, give_back
from hpopt.storage.books import ENDED
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

MAX_GOES_WITHOUT_PROGRESS = 3


def reap(database: Database, study: Study, optuna_study: optuna.Study, stale_after_s: float) -> int:
    """End the attempts that have been silent for too long, and the trials that nobody holds; gives their number.

    Any worker may do it at any time: each step is done once however often it is tried, and a crash between two steps
    leaves the second to the next worker.
    """
    with database.begin() as connection:
        silent = (
            connection.execute(_SILENT, {"study_id": study.study_id, "stale_after_s": stale_after_s}).mappings().all()
        )
        orphans = connection.scalars(_ORPHANS, {"study_id": study.study_id, "stale_after_s": stale_after_s}).all()
        connection.execute(_SILENT_WORKERS, {"study_id": study.study_id, "stale_after_s": stale_after_s})
    with database.errors():
        for attempt in silent:
            end(database, attempt["attempt_id"], *_bury(database, attempt, stale_after_s))
        for trial_id in orphans:
            give_back(database, optuna_study, Trial(optuna_study, trial_id))
    return len(silent) + len(orphans)


def _bury(database: Database, attempt: sa.RowMapping, stale_after_s: float) -> tuple[str, str]:
    if attempt["trial_id"] is None:
        return "lost", f"silent for {stale_after_s:g} s before it had a trial"
    try:
        database.optuna.set_trial_state_values(attempt["trial_id"], TrialState.FAIL)
    except UpdateFinishedTrialError:
        # The worker died between telling Optuna and telling us: what Optuna has counts.
        trial = database.optuna.get_trial(attempt["trial_id"])
        kind = next((kind for kind in ENDED if STATES[kind] is trial.state), "lost")
        if kind == "pruned" and trial.constraints.get("diverged", 0) > 0:
            kind = "diverged"
        if kind != "failed":
            return kind, "its worker died while ending it"
    if attempt["n_goes_without_progress"] >= MAX_GOES_WITHOUT_PROGRESS:
        return "failed", f"its worker died {MAX_GOES_WITHOUT_PROGRESS} times in a row without progress"
    return "lost", f"silent for {stale_after_s:g} s"


_SILENT = sa.text(
    """
    select a.attempt_id, a.trial_id, (
               select count(*) from hpopt.attempt later
               where later.first_trial_id = a.first_trial_id and later.outcome is distinct from 'preempted'
                 and later.go > coalesce((
                     select goes.go from hpopt.attempt goes
                     where goes.first_trial_id = a.first_trial_id and goes.tokens > 0
                     order by goes.tokens desc, goes.go limit 1
                 ), 0)
           ) as n_goes_without_progress
    from hpopt.attempt a
    where a.study_id = :study_id and a.ended_at is null
      and a.heartbeat_at < now() - make_interval(secs => :stale_after_s)
    """
)

_SILENT_WORKERS = sa.text(
    """
    update hpopt.worker set stopped_at = seen_at, stop_reason = 'went silent'
    where study_id = :study_id and stopped_at is null
      and seen_at < now() - make_interval(secs => :stale_after_s)
    """
)

_ORPHANS = sa.text(
    """
    select t.trial_id
    from public.trials t
    where t.study_id = :study_id and t.state = 'RUNNING'
      and t.datetime_start < (now() at time zone 'UTC') - make_interval(secs => :stale_after_s)
      and not exists (select from hpopt.attempt a where a.trial_id = t.trial_id)
    """
)
