"""Owns evaluations: writing one down, comparing it at a rung, and saying what is thought of its trial.

Leaves the rest of an attempt's life to attempts.py, and what a rung is to rungs.py.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from hpopt.storage import optuna_write
from hpopt.storage.attempts import CONTACT, Attempt, fenced
from hpopt.storage.budget import limit_reached
from hpopt.storage.database import Database
from hpopt.storage.studies import Study, load_study
from hpopt.study import plan
from hpopt.training.run import Evaluation


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is thought of a trial at a step: that it is hopeless, that a limit of the budget is reached, or neither."""

    step: int
    is_hopeless: bool = False
    limit: str | None = None
    is_paused: bool = False


def record(
    database: Database,
    study: Study,
    attempt: Attempt,
    evaluation: Evaluation,
    rung: float | None = None,
    *,
    is_live: bool = True,
) -> Verdict:
    """Write one evaluation, which reaches `rung` or none, and say what is thought of the trial. Raises Fenced.

    One that is not live is told by a journal, and is no sign of life of its worker.
    """
    value = evaluation.metrics.get(study.file.metric, math.nan)
    row = {
        "attempt_id": attempt.attempt_id,
        "step": evaluation.step,
        "tokens": evaluation.tokens,
        "seconds": evaluation.seconds,
        "metrics": _as_json(evaluation.metrics),
        "peak": evaluation.metrics.get("peak_memory_gib"),
        **optuna_write.intermediate(value),
        "rung": rung if math.isfinite(value) else None,
        "is_live": is_live,
    }
    with database.statement() as connection:
        found = connection.execute(_RECORD[study.file.direction], row).mappings().one_or_none()
    if found is None:
        raise fenced(attempt)
    return Verdict(
        step=evaluation.step,
        is_hopeless=not attempt.is_default and _is_hopeless(study, found),
        limit="it was stopped" if found["state"] == "stopped" else _limit(database, study, found["file_sha256"]),
        is_paused=found["state"] == "paused",
    )


def _limit(database: Database, study: Study, file_sha256: str) -> str | None:
    """Say which limit is reached of the budget as it is now; somebody may have changed it since the trial began."""
    return limit_reached(database, study if study.file_sha256 == file_sha256 else load_study(database, study.name))


def _is_hopeless(study: Study, found: sa.RowMapping) -> bool:
    """Judge a trial where it first reaches a rung; see rungs.Rungs."""
    rungs = plan.rungs_of(study.file)
    return bool(found["is_first"]) and rungs.is_hopeless(n=found["n_others"] + 1, n_better=found["n_better"])


def _as_json(metrics: Mapping[str, float]) -> str:
    """Give the metrics as JSON, one that is not finite as the string that Postgres casts to a double."""
    return json.dumps({k: v if math.isfinite(v) else json.dumps(v) for k, v in metrics.items()})


# A repeated evaluation finds the rows of the first. The rows of this statement are not yet there for its own counts.
_TEMPLATE = """
    with held as (
        update hpopt.attempt a
        set heartbeat_at = now(),
            device_seconds = case when :is_live then extract(epoch from now() - a.started_at) else a.device_seconds end,
            tokens = greatest(a.tokens, :tokens), peak_memory_gib = greatest(a.peak_memory_gib, :peak)
        from public.trials t
        where a.attempt_id = :attempt_id and a.ended_at is null and t.trial_id = a.trial_id and t.state = 'RUNNING'
        returning a.study_id, a.trial_id, a.first_trial_id, a.attempt_id, a.worker_id
    ), seen as (
        {contact} from held where worker.worker_id = held.worker_id and :is_live
    ), evaluated as (
        insert into hpopt.evaluation (trial_id, step, attempt_id, tokens, seconds, metrics)
        select trial_id, :step, attempt_id, :tokens, :seconds, cast(:metrics as jsonb) from held
        on conflict do nothing
    ), reported as (
        insert into public.trial_intermediate_values
            (trial_id, step, intermediate_value, intermediate_value_type)
        select trial_id, :step, :value, cast(:value_type as public.trialintermediatevaluetype) from held
        on conflict (trial_id, step) do update
        set intermediate_value = excluded.intermediate_value,
            intermediate_value_type = excluded.intermediate_value_type
    ), compared as (
        insert into hpopt.rung (first_trial_id, fraction, study_id, step, value)
        select first_trial_id, :rung, study_id, :step, :value from held where :rung is not null
        on conflict do nothing
    )
    select s.state, s.file_sha256,
           :rung is not null and not exists (
               select from hpopt.rung r
               where r.first_trial_id = h.first_trial_id and r.fraction = :rung and r.step <> :step
           ) as is_first,
           (
               select count(*) from hpopt.rung r
               where r.study_id = h.study_id and r.fraction = :rung and r.first_trial_id <> h.first_trial_id
           ) as n_others,
           (
               select count(*) from hpopt.rung r
               where r.study_id = h.study_id and r.fraction = :rung and r.first_trial_id <> h.first_trial_id
                 and r.value {better} :value
           ) as n_better
    from held h join hpopt.study s using (study_id)
    """

_RECORD = {
    direction: sa.text(_TEMPLATE.format(contact=CONTACT, better=better))
    for direction, better in (("minimize", "<"), ("maximize", ">"))
}
