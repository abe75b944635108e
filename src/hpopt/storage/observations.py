"""Keep the trials of a study as columns for its sampler.

Optuna's storage reads every running trial again for each parameter, and at first all trials with all their values. Here
one query reads what has changed: params, final values, and the last value of a pruned trial.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json

from hpopt.analysis.trials import ExternalTrials
from hpopt.formats import to_json
from hpopt.hyperparameters import Scalar
from hpopt.search import sampler, tpe
from hpopt.search.conditions import Condition, find_conditions, is_active
from hpopt.search.sampler import Draw
from hpopt.search.tpe import Observations
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

_FIRST_CAPACITY = 256
# The kind of a trial that the sampler ignores: it was requeued, or stock Optuna ran it and it failed.
_IGNORED = -1


class ObservedTrials:
    """The running, complete, pruned and failed trials of a study that have its active params and no others."""

    def __init__(self, database: Database, study: Study) -> None:
        self._database = database
        self._study = study
        self._space = sampler.to_distributions(study.file.search_space)
        self._conditions = find_conditions(study.file.search_space)
        self._sign = study.file.direction.sign
        self._newest = 0
        self._open: set[int] = set()
        # The row of each trial by its id; ids ascend with the numbers.
        self._positions: dict[int, int] = {}
        self._rows = np.zeros(_FIRST_CAPACITY, dtype=_columns(len(self._space)))

    def refresh(self) -> None:
        """Read what has changed in the database since the last call."""
        parameters = {
            "study_id": self._study.study_id,
            "newest": self._newest,
            "open": list(self._open),
            "space": _space_as_json(self._space),
        }
        with self._database.statement() as connection:
            for row in connection.execute(_CHANGED, parameters).mappings():
                self._update({**row})

    def observations(self) -> Observations:
        """Return what the sampler learns from."""
        rows = self._rows[: len(self._positions)]
        rows = rows[rows["kind"] != _IGNORED]
        values = {name: rows["values"][:, position] for position, name in enumerate(self._space)}
        return Observations(values=values, kind=rows["kind"], step=rows["step"], score=rows["score"])

    def propose(self, study: Study, attempt: Attempt) -> dict[str, Scalar]:
        """Sample the params that a trial lacks, with the sampler of the current study file."""
        section = study.file.sampler
        draw = Draw(
            algorithm=section.name,
            n_startup_trials=section.n_startup_trials,
            seed=section.seed,
            number=attempt.number,
        )
        return sampler.propose(draw, self._space, self.observations(), attempt.params, self._conditions)

    def _update(self, row: Mapping[str, Any]) -> None:
        trial_id = row["trial_id"]
        self._newest = max(self._newest, trial_id)
        # A failed trial can be requeued.
        is_open = row["state"] in {"RUNNING", "WAITING"} or row["has_failed"]
        (self._open.add if is_open else self._open.discard)(trial_id)
        position = self._positions.setdefault(trial_id, len(self._positions))
        if position == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        kind = self._kind(row)
        self._rows["kind"][position] = kind
        if kind == _IGNORED:
            return
        values = dict(zip(row["names"], row["internal"], strict=True))
        self._rows["values"][position] = [values.get(name, np.nan) for name in self._space]
        self._rows["step"][position] = -1 if row["last_step"] is None else row["last_step"]
        self._rows["score"][position] = self._score(row, kind)

    def _kind(self, row: Mapping[str, Any]) -> int:
        if not _is_in_space(self._space, self._conditions, row):
            return _IGNORED
        # A violation that is nan is above 0 for PostgreSQL.
        if row["state"] in {"COMPLETE", "PRUNED"} and not row["violation"] <= 0:
            return tpe.INFEASIBLE
        if row["has_failed"]:
            return tpe.FAILED
        return {"COMPLETE": tpe.COMPLETE, "PRUNED": tpe.PRUNED, "RUNNING": tpe.RUNNING}.get(row["state"], _IGNORED)

    def _score(self, row: Mapping[str, Any], kind: int) -> float:
        if kind == tpe.INFEASIBLE:
            return float(row["violation"])
        # A pruned trial of stock Optuna can have no value.
        value = row["last_value"] if row["value"] is None else row["value"]
        if value is None:
            return 0.0
        return math.inf if math.isnan(value) else self._sign * float(value)


def find_external(database: Database, study: Study) -> ExternalTrials:
    """Return the trials of a study that finished without an attempt of a worker, and which of them the sampler uses."""
    space = sampler.to_distributions(study.file.search_space)
    conditions = find_conditions(study.file.search_space)
    parameters = {"study_id": study.study_id, "space": _space_as_json(space)}
    with database.begin() as connection:
        rows = connection.execute(_EXTERNAL, parameters).mappings().all()
    is_learning = study.file.sampler.name == "tpe"
    used = {row["number"] for row in rows if is_learning and _is_in_space(space, conditions, {**row})}
    return ExternalTrials(
        used=tuple(row["number"] for row in rows if row["number"] in used),
        left_out=tuple(row["number"] for row in rows if row["number"] not in used),
        sampler=study.file.sampler.name,
    )


def _space_as_json(space: Mapping[str, BaseDistribution]) -> str:
    return to_json({name: distribution_to_json(distribution) for name, distribution in space.items()})


def _is_in_space(
    space: Mapping[str, BaseDistribution], conditions: Mapping[str, Condition], row: Mapping[str, Any]
) -> bool:
    """Return whether a trial has the params that are active in a space and no others, within its ranges."""
    if not row["has_ranges"] or not set(row["names"]) <= space.keys():
        return False
    values = dict(zip(row["names"], row["internal"], strict=True))
    if not all(
        value is not None and math.isfinite(value) and space[name]._contains(value)  # noqa: SLF001 - Optuna has no other.
        for name, value in values.items()
    ):
        return False
    params = {name: space[name].to_external_repr(value) for name, value in values.items()}
    return params.keys() == {name for name, condition in conditions.items() if is_active(condition, params)}


def _columns(n_params: int) -> np.dtype[Any]:
    return np.dtype([("kind", np.int8), ("step", np.int64), ("score", np.float64), ("values", np.float64, (n_params,))])


# Trials are added under a lock on their study, so that a higher id is a later trial.
_CHANGED = sa.text(
    """
    select t.trial_id, t.state::text as state,
           case v.value_type when 'FINITE' then v.value when 'INF_POS' then 'inf' when 'INF_NEG' then '-inf' end
               as value,
           p.names, p.internal, p.has_ranges, l.step as last_step, l.value as last_value,
           coalesce((
               select c.violation from hpopt.constraint_violations c where c.optuna_trial_id = t.trial_id
           ), 0) as violation,
           exists (
               select from hpopt.attempt a
               where a.optuna_trial_id = t.trial_id and a.outcome = 'failed' and not a.is_requeued
           ) as has_failed
    from public.trials t
    left join public.trial_values v on v.trial_id = t.trial_id and v.objective = 0
    cross join lateral (
        select array_agg(param_name) as names, array_agg(param_value) as internal,
               coalesce(bool_and(distribution_json = cast(:space as jsonb) ->> param_name), false) as has_ranges
        from public.trial_params where trial_id = t.trial_id
    ) p
    left join lateral (
        select i.step,
               case i.intermediate_value_type when 'FINITE' then i.intermediate_value when 'INF_POS' then 'inf'
                    when 'INF_NEG' then '-inf' else 'nan' end as value
        from public.trial_intermediate_values i
        where i.trial_id = t.trial_id
        order by i.step desc limit 1
    ) l on t.state = 'PRUNED'
    where t.study_id = :study_id and (t.trial_id > :newest or t.trial_id = any(:open))
    order by t.trial_id
    """
)

_EXTERNAL = sa.text(
    """
    select t.number, p.names, p.internal, p.has_ranges
    from public.trials t
    cross join lateral (
        select array_agg(param_name) as names, array_agg(param_value) as internal,
               coalesce(bool_and(distribution_json = cast(:space as jsonb) ->> param_name), false) as has_ranges
        from public.trial_params where trial_id = t.trial_id
    ) p
    where t.study_id = :study_id and t.state in ('COMPLETE', 'PRUNED')
      and not exists (select from hpopt.attempt a where a.optuna_trial_id = t.trial_id)
    order by t.number
    """
)
