"""Owns attempts: reserving, fencing and ending the goes of workers at trials. Leaves training to objective.py
and the dead to reaping.py.

An attempt is reserved under a lock on its study's row, so that the fleet never starts more than the budget allows. Its
heartbeat is by the server's clock. Whoever finds it silent ends it; from then on its worker can write nothing.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState, create_trial
from sqlalchemy.dialects.postgresql import insert

from hpopt import __version__, strategy, tables
from hpopt.errors import Fenced
from hpopt.hyperparameters import Scalar
from hpopt.storage.books import IS_WAITING, count_books, planned_trials, spent
from hpopt.storage.database import Database
from hpopt.storage.studies import DEFAULT_CONFIGURATION, Study
from hpopt.training.run import Evaluation

# The mark of Optuna's trials that no attempt ever held.
GIVEN_BACK = "hpopt:given_back"

_LOCK_TIMEOUT_S = 10

STATES = {
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


def register_worker(
    database: Database, study: Study, *, host: str, pid: int, device: str, stale_after_s: float = 60.0
) -> int:
    """Write down that a worker is here, and how long it may be silent; gives its id."""
    row = {
        "study_id": study.study_id,
        "host": host,
        "pid": pid,
        "device": device,
        "hpopt_version": __version__,
        "stale_after_s": stale_after_s,
    }
    with database.begin() as connection:
        added = connection.execute(sa.insert(tables.worker).values(row).returning(tables.worker.c.worker_id))
        return int(added.scalar_one())


def end_worker(database: Database, worker_id: int, reason: str) -> None:
    """Write down that a worker has stopped, and why."""
    query = "update hpopt.worker set stopped_at = now(), seen_at = now(), stop_reason = :reason where worker_id = :id"
    with database.begin() as connection:
        connection.execute(sa.text(query), {"reason": reason, "id": worker_id})


def reserve(database: Database, study: Study, worker_id: int) -> Attempt | None:
    """Reserve the next go, of a trial that waits to be retried or else of a new one.

    None while others hold what is left of the budget, and when it is spent.
    """
    with database.begin() as connection:
        # A worker that was frozen between lock and commit must not stop the fleet.
        connection.execute(sa.text(f"set local lock_timeout = '{_LOCK_TIMEOUT_S} s'"))
        connection.execute(sa.text(f"set local idle_in_transaction_session_timeout = '{_LOCK_TIMEOUT_S} s'"))
        connection.execute(sa.text(_SEEN), {"id": worker_id})
        connection.execute(sa.text("select from hpopt.study where study_id = :id for update"), {"id": study.study_id})
        books = count_books(connection, study.study_id)
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

    A retry is a new Optuna trial with the parameters of the last go. Raises Fenced when the attempt was reaped.
    """
    is_new = attempt.first_trial_id is None
    with database.errors():
        trial = optuna_study.ask() if is_new else _ask_again(database, optuna_study, attempt)
        if not _tie(database, attempt, trial):
            give_back(database, optuna_study, trial)
            raise Fenced(f"trial {trial.number} was given back: its reservation had run out")
        with _fenced(trial):
            strategy.suggest(trial, study.file.search_space)
    return trial


def report(database: Database, trial: Trial, step: int, value: float) -> None:
    """Give the pruner a value at a step; raises Fenced when the trial was handed on."""
    with database.errors(), _fenced(trial):
        trial.report(value, step)


def is_hopeless(database: Database, trial: Trial) -> bool:
    """Ask the pruner, which takes down the value that later trials are compared with; never so of the defaults."""
    with database.errors(), _fenced(trial):
        return trial.should_prune() and DEFAULT_CONFIGURATION not in trial.user_attrs


def id_of(trial: Trial) -> int:
    """Give the id of a trial, by which our rows refer to it."""
    return int(trial._trial_id)  # noqa: SLF001 - Optuna has no public way to it.


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
        connection.execute(sa.text(_SEEN), {"id": worker_id})
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
        "trial_id": id_of(trial),
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
        # A second try after a lost reply finds the row of the first.
        connection.execute(insert(tables.evaluation).values(row).on_conflict_do_nothing())


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
    with database.errors():
        try:
            if kind == "diverged":
                trial.set_constraint("diverged", 1.0)
            optuna_study.tell(trial, value, state=STATES[kind])
        except (ValueError, UpdateFinishedTrialError) as error:
            # A tell whose reply was lost is refused when it is repeated, though it was done.
            if database.optuna.get_trial(id_of(trial)).state is not STATES[kind]:
                raise Fenced(f"trial {trial.number} was handed on to another worker") from error
    end(database, attempt.attempt_id, kind, reason)


def drop(database: Database, attempt: Attempt, reason: str) -> None:
    """End an attempt that never got as far as a trial; a retry's trial goes back to the queue."""
    end(database, attempt.attempt_id, "lost", reason)


def _ask_again(database: Database, optuna_study: optuna.Study, attempt: Attempt) -> Trial:
    last = attempt.previous_trial_id if attempt.previous_trial_id is not None else attempt.first_trial_id
    before = database.optuna.get_trial(last) if last is not None else None
    if before is None:
        return optuna_study.ask()
    # Its worker may have died before it sampled what somebody had asked for; and rungs that it passed stay passed.
    kept = ("fixed_params", "completed_rung_")
    marks = {key: value for key, value in before.system_attrs.items() if key.startswith(kept)}
    template = create_trial(
        state=TrialState.RUNNING,
        params=before.params,
        distributions=before.distributions,
        user_attrs=before.user_attrs,
        system_attrs=marks,
    )
    return Trial(optuna_study, database.optuna.create_new_trial(optuna_study._study_id, template))  # noqa: SLF001 - Optuna has no public way to the id.


def end(database: Database, attempt_id: int, outcome: str, reason: str | None) -> None:
    """End an attempt that has not ended yet."""
    with database.begin() as connection:
        connection.execute(_END, {"attempt_id": attempt_id, "outcome": outcome, "reason": reason})


def give_back(database: Database, optuna_study: optuna.Study, trial: Trial) -> None:
    """Fail a trial that no attempt holds; a configuration that somebody asked for is enqueued again.

    The trial is marked, so that the views leave it out: nobody ever worked on it.
    """
    storage = database.optuna
    before = storage.get_trial(id_of(trial))
    wanted: dict[str, Scalar] | None = before.system_attrs.get("fixed_params")
    try:
        storage.set_trial_system_attr(id_of(trial), GIVEN_BACK, True)  # noqa: FBT003 - Optuna's signature.
        # Enqueued first: whoever dies in between leaves it to be found again, not lost.
        if wanted and not _is_enqueued(optuna_study, wanted):
            optuna_study.enqueue_trial(wanted, user_attrs=before.user_attrs)
        optuna_study.tell(trial, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):
        return


def _is_enqueued(optuna_study: optuna.Study, params: Mapping[str, Scalar]) -> bool:
    waiting = optuna_study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return any(trial.system_attrs.get("fixed_params") == params for trial in waiting)


def _tie(database: Database, attempt: Attempt, trial: Trial) -> bool:
    """Tie a trial to its attempt while both are alive."""
    about = {"trial_id": id_of(trial), "attempt_id": attempt.attempt_id}
    with database.begin() as connection:
        state = connection.scalar(
            sa.text("select state from public.trials where trial_id = :trial_id for update"), about
        )
        return state == "RUNNING" and connection.execute(_TIE, about).rowcount == 1


@contextmanager
def _fenced(trial: Trial) -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError as error:
        raise Fenced(f"trial {trial.number} was handed on to another worker") from error


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else json.dumps(value)


_WAITING = sa.text(
    f"""
    select a.trial_id, a.first_trial_id, a.go, a.seed
    from hpopt.attempt a
    where a.study_id = :study_id and {IS_WAITING}
    order by a.first_trial_id limit 1
    """  # noqa: S608 - the only thing put in is the constant above.
)

# A worker that was taken for dead is back.
_SEEN = "update hpopt.worker set seen_at = now(), stopped_at = null, stop_reason = null where worker_id = :id"

_TIE = sa.text(
    """
    update hpopt.attempt
    set trial_id = :trial_id, first_trial_id = coalesce(first_trial_id, :trial_id), heartbeat_at = now()
    where attempt_id = :attempt_id and ended_at is null
    """
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
