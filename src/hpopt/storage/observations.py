"""Owns what a worker's sampler has seen: the trials of its study as columns, kept in step with the database.

Optuna's own storage reads every running trial again for each parameter, and all trials with all their values at first.
Here one query brings what has changed: params, final values, and of a pruned trial its last value.
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
from hpopt.search.tpe import Observed
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

_FIRST_CAPACITY = 256
# The kind of a trial that tells the sampler nothing: it failed, or was handed back.
_NONE = -1


class History:
    """The trials of a study, as its sampler sees them: running, complete and pruned ones with all their params."""

    def __init__(self, database: Database, study: Study) -> None:
        self._database = database
        self._study = study
        self._space = sampler.to_distributions(study.file.search_space)
        self._json = [distribution_to_json(distribution) for distribution in self._space.values()]
        self._sign = 1.0 if study.file.direction == "minimize" else -1.0
        self._newest = 0
        self._open: set[int] = set()
        # The row of each trial, by its id; ids rise with the numbers.
        self._places: dict[int, int] = {}
        self._rows = np.zeros(_FIRST_CAPACITY, dtype=_columns(len(self._space)))

    def refresh(self) -> None:
        """Take in what has changed in the database since the last time."""
        about = {
            "study_id": self._study.study_id,
            "newest": self._newest,
            "open": list(self._open),
            "distributions": self._json,
        }
        with self._database.statement() as connection:
            for row in connection.execute(_CHANGED, about).mappings():
                self._take_in({**row})

    def observed(self) -> Observed:
        """Give what the sampler learns from."""
        rows = self._rows[: len(self._places)]
        rows = rows[rows["kind"] != _NONE]
        values = {name: rows["values"][:, place] for place, name in enumerate(self._space)}
        return Observed(values=values, kind=rows["kind"], step=rows["step"], score=rows["score"])

    def propose(self, study: Study, attempt: Attempt) -> dict[str, Scalar]:
        """Sample the params of a trial as the study's file asks now; those that it has already stay as they are."""
        section = study.file.sampler
        draw = Draw(
            algorithm=section.name,
            n_startup_trials=section.n_startup_trials,
            seed=section.seed,
            number=attempt.number,
        )
        return sampler.propose(draw, self._space, self.observed(), attempt.params)

    def _take_in(self, row: Mapping[str, Any]) -> None:
        trial_id = row["trial_id"]
        self._newest = max(self._newest, trial_id)
        (self._open.add if row["state"] in {"RUNNING", "WAITING"} else self._open.discard)(trial_id)
        place = self._places.setdefault(trial_id, len(self._places))
        if place == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        kind = self._kind(row)
        self._rows["kind"][place] = kind
        if kind == _NONE:
            return
        values = dict(zip(row["names"], row["internal"], strict=True))
        self._rows["values"][place] = [values[name] for name in self._space]
        self._rows["step"][place] = -1 if row["last_step"] is None else row["last_step"]
        self._rows["score"][place] = self._score(row, kind)

    def _kind(self, row: Mapping[str, Any]) -> int:
        # One that has no params yet, never got any, or has those of another space tells the sampler nothing.
        if set(row["names"]) != self._space.keys():
            return _NONE
        if row["state"] in {"COMPLETE", "PRUNED"} and row["violation"] > 0:
            return tpe.INFEASIBLE
        return {"COMPLETE": tpe.COMPLETE, "PRUNED": tpe.PRUNED, "RUNNING": tpe.RUNNING}.get(row["state"], _NONE)

    def _score(self, row: Mapping[str, Any], kind: int) -> float:
        if kind == tpe.INFEASIBLE:
            return float(row["violation"])
        value = row["value"] if kind == tpe.COMPLETE else row["last_value"]
        if value is None:
            return 0.0
        return math.inf if math.isnan(value) else self._sign * float(value)


def _columns(n_params: int) -> np.dtype[Any]:
    return np.dtype([("kind", np.int8), ("step", np.int64), ("score", np.float64), ("values", np.float64, (n_params,))])


# Trials are added under a lock on their study, so that a higher id is a later one.
_CHANGED = sa.text(
    """
    select t.trial_id, t.state::text as state,
           case v.value_type when 'FINITE' then v.value when 'INF_POS' then 'inf' else '-inf' end as value,
           p.names, p.internal, l.step as last_step, l.value as last_value,
           (
               select coalesce(sum(greatest(c.value_json::double precision, 0)), 0)
               from public.trial_system_attributes c
               where c.trial_id = t.trial_id and c.key like 'constraints:%'
           ) as violation
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
