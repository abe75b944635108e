"""Keep the trials of a study as columns for its sampler.

Optuna's storage reads every running trial again for each parameter, and at first all trials with all their values. Here
one query reads what has changed: params, final values, and the last value of a pruned trial.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa
from optuna.distributions import distribution_to_json

from hpopt.hyperparameters import Scalar
from hpopt.search import sampler, tpe
from hpopt.search.sampler import Draw
from hpopt.search.tpe import Observations
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

_FIRST_CAPACITY = 256
# The kind of a trial that the sampler ignores: it was requeued, or stock Optuna ran it and it failed.
_IGNORED = -1


class ObservedTrials:
    """The running, complete, pruned and failed trials of a study that have all of its params."""

    def __init__(self, database: Database, study: Study) -> None:
        self._database = database
        self._study = study
        self._space = sampler.to_distributions(study.file.search_space)
        self._json = [distribution_to_json(distribution) for distribution in self._space.values()]
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
            "distributions": self._json,
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
        return sampler.propose(draw, self._space, self.observations(), attempt.params)

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
        self._rows["values"][position] = [values[name] for name in self._space]
        self._rows["step"][position] = -1 if row["last_step"] is None else row["last_step"]
        self._rows["score"][position] = self._score(row, kind)

    def _kind(self, row: Mapping[str, Any]) -> int:
        # A trial without params, or with those of another space, is ignored.
        if set(row["names"]) != self._space.keys():
            return _IGNORED
        if row["state"] in {"COMPLETE", "PRUNED"} and row["violation"] > 0:
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


def _columns(n_params: int) -> np.dtype[Any]:
    return np.dtype([("kind", np.int8), ("step", np.int64), ("score", np.float64), ("values", np.float64, (n_params,))])


# Trials are added under a lock on their study, so that a higher id is a later trial.
_CHANGED = sa.text(
    """
    select t.trial_id, t.state::text as state,
           case v.value_type when 'FINITE' then v.value when 'INF_POS' then 'inf' when 'INF_NEG' then '-inf' end
               as value,
           p.names, p.internal, l.step as last_step, l.value as last_value,
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
        select coalesce(array_agg(param_name order by param_id), '{}') as names,
               coalesce(array_agg(param_value order by param_id), '{}') as internal
        from public.trial_params
        where trial_id = t.trial_id and distribution_json = any(:distributions)
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
