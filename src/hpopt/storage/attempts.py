"""Owns attempts: reserving, fencing, ending and reaping the goes of workers at trials. Leaves training to objective.py.

An attempt is reserved under a lock on its study's row, so that the fleet never starts more than the budget allows. Its
heartbeat is by the server's clock. Whoever finds it silent ends it; from then on its worker can write nothing.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState, create_trial

from hpopt import __version__, strategy, tables
from hpopt.analysis.progress import Books
from hpopt.errors import Fenced
from hpopt.hyperparameters import Scalar
from hpopt.storage.database import Database
from hpopt.storage.studies import Study
from hpopt.training.run import Evaluation

# The outcomes after which a trial is over; the others put it back into the queue.
ENDED = ("complete", "pruned", "diverged", "failed")
MAX_GOES_WITHOUT_PROGRESS = 3

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "preempted": TrialState.FAIL,
    "lost": TrialState.FAIL,
}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One go of a worker at a trial. A retry has the trial of the first go, and the trial and seed of the last."""

    attempt_id: int
    study_id: int
    go: int = 1
    first_trial_id: int | None = None
    seed: int | None = None
    previous_trial_id: int | None = None


def register_worker(database: Database, study: Study, *, host: str, pid: int, device: str) -> int:
    """Write down that a worker is here; gives its id."""
    row = {"study_id": study.study_id, "host": host, "pid": pid, "device": device, "hpopt_version": __version__}
    with database.begin() as connection:
        return connection.execute(
            sa.insert(tables.worker).values(row).returning(tables.worker.c.worker_id)
        ).scalar_one()


def end_worker(database: Database, worker_id: int, reason: str) -> None:
    """Write down that a worker has stopped, and why."""
    query = "update hpopt.worker set stopped_at = now(), seen_at = now(), stop_reason = :reason where worker_id = :id"
    with database.begin() as connection:
        connection.execute(sa.text(query), {"reason": reason, "id": worker_id})


def read_books(database: Database, study: Study) -> Books:
    """Count what the study has spent."""
    with database.begin() as connection:
        return _read_books(connection, study.study_id)


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
        limits.append(len(strategy.grid_points(study.file.search_space)) + len(study.file.enqueue))
    return min((limit for limit in limits if limit is not None), default=None)


def reserve(database: Database, study: Study, worker_id: int) -> Attempt | None:
    """Reserve the next go: of a trial that waits to be retried, else of a new one; None while the budget is held or spent."""
    with database.begin() as connection:
        connection.execute(sa.text("select from hpopt.study where study_id = :id for update"), {"id": study.study_id})
        books = _read_books(connection, study.study_id)
        if spent(study, books) is not None:
            return None
        retry = connection.execute(_WAITING, {"study_id": study.study_id}).mappings().first()
        n_trials = planned_trials(study)
        if retry is None and n_trials is not None and books.n_started >= n_trials:
            return None
        row: dict[str, Any] = {"study_id": study.study_id, "worker_id": worker_id}
        if retry is not None:
            row |= {"first_trial_id": retry["first_trial_id"], "go": retry["go"] + 1, "seed": retry["seed"]}
        added = connection.execute(
            sa.insert(tables.attempt).values(row).returning(tables.attempt.c.attempt_id)
        ).scalar_one()
    if retry is None:
        return Attempt(attempt_id=added, study_id=study.study_id)
    row.pop("worker_id")
    return Attempt(attempt_id=added, previous_trial_id=retry["trial_id"], **row)


def ask(database: Database, study: Study, optuna_study: optuna.Study, attempt: Attempt) -> Trial:
    """Give the Optuna trial of an attempt, sampled outside of any lock, and tie the two together.

    A retry is a new Optuna trial with the parameters of the last go. Raises Fenced when the attempt was reaped meanwhile.
    """
    if attempt.first_trial_id is None:
        trial = optuna_study.ask()
    else:
        trial = _ask_again(database, study, optuna_study, attempt)
    query = """
        update hpopt.attempt set trial_id = :trial_id, first_trial_id = coalesce(first_trial_id, :trial_id), heartbeat_at = now()
        where attempt_id = :attempt_id and ended_at is null
    """
    strategy.suggest(trial, study.file.search_space)
    with database.begin() as connection:
        tied = connection.execute(
            sa.text(query), {"trial_id": trial._trial_id, "attempt_id": attempt.attempt_id}
        ).rowcount  # noqa: SLF001 - Optuna has no public way to the id.
    if not tied:
        _give_back(optuna_study, trial)
        raise Fenced(f"trial {trial.number} was given back: its reservation had run out")
    return trial


def begin(
    database: Database, attempt: Attempt, *, seed: int, config: Mapping[str, Any], data_fingerprint: str | None
) -> None:
    """Record what the attempt is about to train."""
    values = {"seed": seed, "config": dict(config), "data_fingerprint": data_fingerprint}
    with database.begin() as connection:
        connection.execute(
            sa.update(tables.attempt).where(tables.attempt.c.attempt_id == attempt.attempt_id).values(values)
        )


def beat(database: Database, attempt: Attempt, worker_id: int) -> bool:
    """Renew the attempt's heartbeat; False when it was ended by others."""
    with database.begin() as connection:
        connection.execute(sa.text("update hpopt.worker set seen_at = now() where worker_id = :id"), {"id": worker_id})
        return connection.execute(_BEAT, {"attempt_id": attempt.attempt_id}).rowcount == 1


def earlier_values(database: Database, attempt: Attempt, metric: str) -> list[tuple[int, float]]:
    """Give step and metric of the evaluations of the goes before this one, by step."""
    query = """
        select distinct on (e.step) e.step, (e.metrics ->> :metric)::double precision
        from hpopt.attempt a join hpopt.evaluation e on e.trial_id = a.trial_id
        where a.first_trial_id = :first_trial_id and a.go < :go and e.metrics ? :metric
        order by e.step, a.go desc
    """
    about = {"first_trial_id": attempt.first_trial_id, "go": attempt.go, "metric": metric}
    with database.begin() as connection:
        return [(step, value) for step, value in connection.execute(sa.text(query), about)]


def record(database: Database, attempt: Attempt, trial: Trial, evaluation: Evaluation) -> None:
    """Write one evaluation while the attempt lives; raises Fenced when the trial was handed on."""
    metrics = {name: _json_number(value) for name, value in evaluation.metrics.items()}
    row = {
        "trial_id": trial._trial_id,  # noqa: SLF001 - Optuna has no public way to the id.
        "step": evaluation.step,
        "attempt_id": attempt.attempt_id,
        "tokens": evaluation.tokens,
        "seconds": evaluation.seconds,
        "metrics": metrics,
    }
    with database.begin() as connection:
        state = connection.scalar(sa.text("select state from public.trials where trial_id = :trial_id for update"), row)
        progress = {
            "attempt_id": attempt.attempt_id,
            "tokens": evaluation.tokens,
            "peak": evaluation.metrics.get("peak_memory_gib"),
        }
        if state != "RUNNING" or connection.execute(_PROGRESS, progress).rowcount != 1:
            raise Fenced(f"trial {trial.number} was handed on to another worker")
        connection.execute(sa.insert(tables.evaluation).values(row))


def finish(
    database: Database,
    optuna_study: optuna.Study,
    attempt: Attempt,
    trial: Trial,
    *,
    kind: str,
    value: float | None = None,
    reason: str | None = None,
) -> None:
    """End the attempt as one of tables.OUTCOMES: Optuna's trial first, which is the fence, then our row.

    Raises Fenced when it was ended by others.
    """
    if kind == "diverged":
        trial.set_constraint("diverged", 1.0)
    try:
        optuna_study.tell(trial, value, state=_STATES[kind])
    except (ValueError, UpdateFinishedTrialError) as error:
        raise Fenced(f"trial {trial.number} was handed on to another worker") from error
    _end(database, attempt.attempt_id, kind, reason)


def drop(database: Database, attempt: Attempt, reason: str) -> None:
    """End an attempt that never got as far as a trial; a retry's trial goes back to the queue."""
    _end(database, attempt.attempt_id, "lost", reason)


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
    for attempt in silent:
        _end(database, attempt["attempt_id"], *_bury(database, attempt, stale_after_s))
    for trial_id in orphans:
        _give_back(optuna_study, Trial(optuna_study, trial_id))
    return len(silent) + len(orphans)


def _bury(database: Database, attempt: Mapping[str, Any], stale_after_s: float) -> tuple[str, str]:
    if attempt["trial_id"] is None:
        return "lost", f"silent for {stale_after_s:g} s before it had a trial"
    try:
        database.optuna.set_trial_state_values(attempt["trial_id"], TrialState.FAIL)
    except UpdateFinishedTrialError:
        # The worker died between telling Optuna and telling us: what Optuna has counts.
        trial = database.optuna.get_trial(attempt["trial_id"])
        kind = next((kind for kind in ENDED if _STATES[kind] is trial.state), "lost")
        if kind == "pruned" and trial.constraints.get("diverged", 0) > 0:
            kind = "diverged"
        if kind != "failed":
            return kind, "its worker died while ending it"
    if attempt["n_goes_without_progress"] >= MAX_GOES_WITHOUT_PROGRESS:
        return "failed", f"its worker died {MAX_GOES_WITHOUT_PROGRESS} times in a row without progress"
    return "lost", f"silent for {stale_after_s:g} s"


def _ask_again(database: Database, study: Study, optuna_study: optuna.Study, attempt: Attempt) -> Trial:
    last = attempt.previous_trial_id if attempt.previous_trial_id is not None else attempt.first_trial_id
    before = database.optuna.get_trial(last) if last is not None else None
    if before is None:
        return optuna_study.ask()
    template = create_trial(
        state=TrialState.RUNNING, params=before.params, distributions=before.distributions, user_attrs=before.user_attrs
    )
    return Trial(optuna_study, database.optuna.create_new_trial(optuna_study._study_id, template))  # noqa: SLF001 - Optuna has no public way to the id.


def _give_back(optuna_study: optuna.Study, trial: Trial) -> None:
    """Fail a trial that no attempt holds; a configuration that somebody asked for is enqueued again."""
    before = optuna_study._storage.get_trial(trial._trial_id)  # noqa: SLF001 - Optuna has no public way to the id.
    wanted: dict[str, Scalar] | None = before.system_attrs.get("fixed_params")
    try:
        optuna_study.tell(trial, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):
        return
    if wanted:
        optuna_study.enqueue_trial(wanted, user_attrs=before.user_attrs)


def _end(database: Database, attempt_id: int, outcome: str, reason: str | None) -> None:
    with database.begin() as connection:
        connection.execute(_END, {"attempt_id": attempt_id, "outcome": outcome, "reason": reason})


def _read_books(connection: sa.Connection, study_id: int) -> Books:
    row = connection.execute(_BOOKS, {"study_id": study_id, "ended": ENDED}).mappings().one()
    return Books(**row)


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else json.dumps(value)


_IS_WAITING = """
    a.outcome in ('lost', 'preempted') and a.first_trial_id is not null
    and not exists (select from hpopt.attempt later where later.first_trial_id = a.first_trial_id and later.go > a.go)
"""

_BOOKS = sa.text(
    f"""
    select count(*) filter (where a.outcome in :ended)::int as n_ended,
           count(*) filter (where a.outcome is null)::int as n_held,
           count(*) filter (where {_IS_WAITING})::int as n_waiting,
           coalesce(sum(a.device_seconds), 0) / 3600 as device_hours,
           coalesce(extract(epoch from now() - min(a.started_at)), 0)::double precision / 3600 as wall_hours,
           coalesce(extract(epoch from max(coalesce(a.ended_at, now())) - min(a.started_at)), 0)::double precision / 3600
               as active_hours,
           (select l.value from hpopt.leaderboard l where l.study_id = :study_id order by l.rank limit 1) as best_value
    from hpopt.attempt a
    where a.study_id = :study_id
    """  # noqa: S608 - the only thing put in is the constant above.
).bindparams(sa.bindparam("ended", expanding=True))

_WAITING = sa.text(
    f"""
    select a.trial_id, a.first_trial_id, a.go, a.seed
    from hpopt.attempt a
    where a.study_id = :study_id and {_IS_WAITING}
    order by a.first_trial_id limit 1
    """  # noqa: S608 - the only thing put in is the constant above.
)

_BEAT = sa.text(
    """
    update hpopt.attempt
    set heartbeat_at = now(), device_seconds = extract(epoch from now() - started_at)
    where attempt_id = :attempt_id and ended_at is null
    """
)

_PROGRESS = sa.text(
    """
    update hpopt.attempt
    set heartbeat_at = now(), device_seconds = extract(epoch from now() - started_at), tokens = :tokens,
        peak_memory_gib = greatest(peak_memory_gib, :peak)
    where attempt_id = :attempt_id and ended_at is null
    """
)

# A silent attempt did nothing after its last heartbeat: that is what it is charged for.
_END = sa.text(
    """
    update hpopt.attempt
    set ended_at = now(), outcome = :outcome, reason = :reason,
        device_seconds = case when :outcome = 'lost' then device_seconds else extract(epoch from now() - started_at) end
    where attempt_id = :attempt_id and ended_at is null
    """
)

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
    where a.study_id = :study_id and a.ended_at is null and a.heartbeat_at < now() - make_interval(secs => :stale_after_s)
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
