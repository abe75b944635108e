"""Record evaluations, compare them at the pruner's rungs, and decide whether their trials go on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import sqlalchemy as sa

from hpopt.formats import to_json
from hpopt.storage import optuna_write
from hpopt.storage.attempts import Attempt, fenced
from hpopt.storage.budget import limit_reached
from hpopt.storage.database import Database
from hpopt.storage.studies import Study, load_study
from hpopt.study import plan
from hpopt.study.file import StudyFile
from hpopt.training.run import Evaluation


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The answer to an evaluation.

    `should_prune` is True at a rung where the trial is not among the best; `limit_reached` names the exhausted limit of
    the budget; `should_pause` requeues the trial because its study is paused.
    """

    step: int = 0
    should_prune: bool = False
    limit_reached: str | None = None
    should_pause: bool = False

    @property
    def prune_reason(self) -> str | None:
        """Why the trial is pruned, or None while it goes on."""
        if self.should_prune:
            return f"not among the best at step {self.step}"
        return None if self.limit_reached is None else f"{self.limit_reached} at step {self.step}"


def record(
    database: Database,
    study: Study,
    attempt: Attempt,
    evaluation: Evaluation,
    *,
    earlier: Sequence[Evaluation] = (),
    is_live: bool = True,
) -> Decision:
    """Record one evaluation and decide whether its trial goes on. Raises Fenced.

    A repeated evaluation of a step changes nothing and has the same decision. The `earlier` ones, of smaller steps, are
    recorded with it; none of them may be the first at a rung. With `is_live` False an outbox is replayed, which renews
    no heartbeat.
    """
    rungs = plan.rungs_of(study.file)
    parameters = {
        "attempt_id": attempt.attempt_id,
        "sign": study.file.direction.sign,
        "is_live": is_live,
        **_columns(study.file, (*earlier, evaluation)),
    }
    with database.statement() as connection:
        row = connection.execute(_RECORD, parameters).one_or_none()
    if row is None:
        raise fenced(attempt)
    return Decision(
        step=evaluation.step,
        should_prune=attempt.can_be_pruned and rungs.should_prune(n_trials=row.n_others + 1, n_better=row.n_better),
        limit_reached="the study was stopped" if row.state == "stopped" else _limit(database, study, row.file_sha256),
        should_pause=row.state == "paused",
    )


def _columns(file: StudyFile, every: Sequence[Evaluation]) -> dict[str, Any]:
    """Return what is recorded of evaluations, and the rung that the last one of them has reached, if any."""
    metric, last = file.metric, every[-1]
    is_finite = math.isfinite(last.metrics.get(metric, math.nan))
    rung = plan.rungs_of(file).reached(last.step, last.n_steps) if is_finite else None
    values = [each for each in (one.metrics.get(metric, math.nan) for one in every) if math.isfinite(each)]
    return {
        "evaluations": to_json([_row(each, metric) for each in every], keep_non_finite=True),
        "step": last.step,
        "tokens": max(each.tokens for each in every),
        "peak": max(
            (each.metrics["peak_memory_gib"] for each in every if "peak_memory_gib" in each.metrics), default=None
        ),
        "value": reduce(file.summarize, values, None),
        "rung": rung,
        "rung_step": None if rung is None else rung * last.n_steps - 0.5,
    }


def _row(evaluation: Evaluation, metric: str) -> dict[str, Any]:
    return {
        "step": evaluation.step,
        "tokens": evaluation.tokens,
        "seconds": evaluation.seconds,
        "metrics": evaluation.metrics,
        **optuna_write.intermediate_value(evaluation.metrics.get(metric, math.nan)),
    }


def _limit(database: Database, study: Study, file_sha256: str) -> str | None:
    """Return the limit reached of the current budget, which may have changed since the trial started."""
    return limit_reached(database, study if study.file_sha256 == file_sha256 else load_study(database, study.name))


# A trial is compared at a rung by the first evaluation at or after it; `arrived` is empty for any other. Of a step that
# is evaluated again, the first value counts; a further attempt replaces the value of the one before. A repeated
# evaluation finds the rows of the first one. The rows that this statement adds are not visible to its own counts.
_RECORD = sa.text(
    """
    with held as (
        update hpopt.attempt a
        set heartbeat_at = now(),
            device_seconds = case when :is_live then extract(epoch from now() - a.started_at) else a.device_seconds end,
            tokens = greatest(a.tokens, :tokens), peak_memory_gib = greatest(a.peak_memory_gib, :peak)
        from public.trials t
        where a.attempt_id = :attempt_id and a.ended_at is null and t.trial_id = a.optuna_trial_id
          and t.state = 'RUNNING'
        returning a.study_id, a.trial_id, a.optuna_trial_id, a.attempt_id, a.worker_id,
                  case when cast(:rung as double precision) is not null
                      then hpopt.summary_value(a.optuna_trial_id, :value) end as rung_value
    ), new as (
        select *
        from jsonb_to_recordset(cast(:evaluations as jsonb)) as evaluation (
            step integer, tokens bigint, seconds double precision, metrics jsonb,
            value double precision, value_type public.trialintermediatevaluetype
        )
    ), evaluated as (
        insert into hpopt.evaluation (optuna_trial_id, step, attempt_id, tokens, seconds, metrics)
        select held.optuna_trial_id, new.step, held.attempt_id, new.tokens, new.seconds, new.metrics
        from held cross join new
        on conflict do nothing
    ), reported as (
        insert into public.trial_intermediate_values
            (trial_id, step, intermediate_value, intermediate_value_type)
        select held.optuna_trial_id, new.step, new.value, new.value_type
        from held cross join new
        where not exists (
            select from hpopt.evaluation e where e.optuna_trial_id = held.optuna_trial_id and e.step = new.step
        )
        on conflict (trial_id, step) do update
        set intermediate_value = excluded.intermediate_value,
            intermediate_value_type = excluded.intermediate_value_type
    ), arrived as (
        select h.study_id, h.trial_id, h.rung_value
        from held h
        where :rung is not null
          and not exists (
              select from hpopt.rung r
              where r.trial_id = h.trial_id and r.fraction = :rung and r.step <> :step
          )
          and not exists (
              select from hpopt.attempt a join hpopt.evaluation e on e.optuna_trial_id = a.optuna_trial_id
              where a.trial_id = h.trial_id and e.step >= :rung_step and e.step < :step
          )
    ), compared as (
        insert into hpopt.rung (trial_id, fraction, study_id, step, value)
        select trial_id, :rung, study_id, :step, rung_value from arrived
        on conflict do nothing
    )
    select s.state, s.file_sha256, others.n_others, others.n_better,
           case when :is_live then hpopt.record_contact(h.worker_id) end
    from held h join hpopt.study s on s.study_id = h.study_id
    cross join lateral (
        select count(*) as n_others, count(*) filter (where :sign * r.value < :sign * h.rung_value) as n_better
        from hpopt.rung r
        where exists (select from arrived)
          and r.study_id = h.study_id and r.fraction = :rung and r.trial_id <> h.trial_id
    ) others
    """
)
