"""Owns the dead: ends attempts that went silent, frees trials that nobody holds. Leaves the living to attempts.py."""

from contextlib import suppress

import optuna
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from hpopt.storage.attempts import STATES, end, give_back
from hpopt.storage.books import ENDED
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

MAX_GOES_WITHOUT_PROGRESS = 3
# An hpopt worker ties a trial to its attempt within milliseconds of asking for it.
_ORPHAN_AFTER_S = 60.0


def reap(database: Database, study: Study, optuna_study: optuna.Study) -> int:
    """End the attempts that were silent for longer than their workers said, and the trials that nobody holds.

    Gives their number. Any worker may do it at any time: each step is done once however often it is tried, and a crash
    between two steps leaves the second to the next worker.
    """
    with database.begin() as connection:
        about = {"study_id": study.study_id, "orphan_after_s": _ORPHAN_AFTER_S}
        silent = connection.execute(_SILENT, about).mappings().all()
        orphans = connection.scalars(_ORPHANS, about).all()
        abandoned = connection.scalars(_ABANDONED, about).all()
        connection.execute(_SILENT_WORKERS, about)
    with database.errors():
        for attempt in silent:
            end(database, attempt["attempt_id"], *_bury(database, attempt))
        for trial_id in abandoned:
            with suppress(UpdateFinishedTrialError):
                database.optuna.set_trial_state_values(trial_id, TrialState.FAIL)
        for trial_id in orphans:
            give_back(database, optuna_study, Trial(optuna_study, trial_id))
    return len(silent) + len(abandoned) + len(orphans)


def _bury(database: Database, attempt: sa.RowMapping) -> tuple[str, str]:
    silent = f"silent for {attempt['stale_after_s']:g} s"
    if attempt["trial_id"] is None:
        return "lost", f"{silent} before it had a trial"
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
    return "lost", silent


_SILENT = sa.text(
    """
    select a.attempt_id, a.trial_id, w.stale_after_s, (
               select count(*) from hpopt.attempt later
               where later.first_trial_id = a.first_trial_id and later.outcome is distinct from 'preempted'
                 and later.go > coalesce((
                     select goes.go from hpopt.attempt goes
                     where goes.first_trial_id = a.first_trial_id and goes.tokens > 0
                     order by goes.tokens desc, goes.go limit 1
                 ), 0)
           ) as n_goes_without_progress
    from hpopt.attempt a
    join hpopt.worker w on w.worker_id = a.worker_id
    where a.study_id = :study_id and a.ended_at is null
      and a.heartbeat_at < now() - make_interval(secs => w.stale_after_s)
    """
)

_SILENT_WORKERS = sa.text(
    """
    update hpopt.worker set stopped_at = seen_at, stop_reason = 'went silent'
    where study_id = :study_id and stopped_at is null
      and seen_at < now() - make_interval(secs => stale_after_s)
    """
)

# Its attempt was ended while the database was away, before Optuna could be told.
_ABANDONED = sa.text(
    """
    select t.trial_id from public.trials t join hpopt.attempt a on a.trial_id = t.trial_id
    where t.study_id = :study_id and t.state = 'RUNNING' and a.ended_at is not null
    """
)

_ORPHANS = sa.text(
    """
    select t.trial_id
    from public.trials t
    where t.study_id = :study_id and t.state = 'RUNNING'
      and t.datetime_start < (now() at time zone 'UTC') - make_interval(secs => :orphan_after_s)
      and not exists (select from hpopt.attempt a where a.trial_id = t.trial_id)
    """
)
