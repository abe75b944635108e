"""Owns what a worker's sampler has seen: an Optuna study in memory, kept in step with the one in the database.

Optuna's own storage reads every running trial again for each parameter, and all trials with all their values at first.
Here one query brings what has changed: params, final values, and of a pruned trial its last value.
"""

import math
from collections.abc import Mapping
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from hpopt import strategy
from hpopt.hyperparameters import Scalar
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

_MOST_TRIALS = 2_000
_N_BEST, _N_OTHERS = 200, 800
_DIVERGED = "constraints:diverged"


class History:
    """The trials of a study, as its sampler sees them: running, complete and pruned ones with all their params.

    Of more than `_MOST_TRIALS` it keeps the best and an even sample of the rest. TPE takes the 25 best for good and
    all others for the background, which a thousand of them describe as well as ten thousand do, in a tenth of the time.
    """

    def __init__(self, database: Database, study: Study) -> None:
        self._database = database
        self._study = study
        self._space = strategy.distributions(study.file.search_space)
        self._json = [distribution_to_json(distribution) for distribution in self._space.values()]
        self._newest = 0
        self._open: set[int] = set()
        self._rows: dict[int, Mapping[str, Any]] = {}
        self._forget()

    def _forget(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.memory = optuna.create_study(storage=InMemoryStorage(), direction=self._study.file.direction)
        # The ids in memory of trials, by those in the database.
        self._in_memory: dict[int, int] = {}

    def refresh(self) -> None:
        """Take in what has changed in the database since the last time."""
        about = {
            "study_id": self._study.study_id,
            "newest": self._newest,
            "open": list(self._open),
            "distributions": self._json,
        }
        with self._database.statement() as connection:
            changed: list[Mapping[str, Any]] = [{**row} for row in connection.execute(_CHANGED, about).mappings()]
        for row in changed:
            self._note(row)
        if len(self._rows) > _MOST_TRIALS:
            self._rows = self._thin()
            self._forget()
            changed = list(self._rows.values())
        for row in changed:
            self._show(row)

    def propose(self, study: Study, attempt: Attempt) -> dict[str, Scalar]:
        """Sample the params of a trial with the sampler of the study; those that it has already stay as they are."""
        file, memory = study.file, self.memory
        memory.sampler = strategy.build_sampler(
            file.sampler.name,
            self._space,
            seed=file.sampler.seed,
            number=attempt.number,
            n_startup_trials=file.sampler.n_startup_trials,
        )
        if attempt.params:
            memory.enqueue_trial(dict(attempt.params))
        trial = memory.ask(self._space)
        # The trial itself is in the database, and comes from there.
        memory.tell(trial, state=TrialState.FAIL)
        return dict(trial.params)

    def _note(self, row: Mapping[str, Any]) -> None:
        trial_id, state = row["trial_id"], TrialState[row["state"]]
        self._newest = max(self._newest, trial_id)
        (self._open.discard if state.is_finished() else self._open.add)(trial_id)
        # One that has no params yet, never got any, or has those of another space tells the sampler nothing.
        if len(row["names"]) == len(self._space) and state is not TrialState.FAIL:
            self._rows[trial_id] = row
        else:
            self._rows.pop(trial_id, None)

    def _thin(self) -> dict[int, Mapping[str, Any]]:
        sign = 1.0 if self._study.file.direction == "minimize" else -1.0
        complete = [row for row in self._rows.values() if row["state"] == "COMPLETE"]
        best = {row["trial_id"] for row in sorted(complete, key=lambda row: sign * row["value"])[:_N_BEST]}
        rest = [trial_id for trial_id in self._rows if trial_id not in best and trial_id not in self._open]
        kept = best | self._open | set(rest[:: math.ceil(len(rest) / _N_OTHERS)])
        return {trial_id: row for trial_id, row in self._rows.items() if trial_id in kept}

    def _show(self, row: Mapping[str, Any]) -> None:
        """Bring the study in memory to what a row says."""
        known = self._in_memory.get(row["trial_id"])
        if known is not None:
            self._end(known, row)
        elif row["trial_id"] in self._rows:
            self._in_memory[row["trial_id"]] = self._add(row)

    def _add(self, row: Mapping[str, Any]) -> int:
        storage, study = self.memory._storage, self.memory  # noqa: SLF001 - a study of our own in memory.
        pairs = zip(row["names"], row["internal"], strict=True)
        state = TrialState[row["state"]]
        trial = create_trial(
            state=state,
            value=row["value"] if state is TrialState.COMPLETE else None,
            params={name: self._space[name].to_external_repr(value) for name, value in pairs},
            distributions={name: self._space[name] for name in row["names"]},
            system_attrs={_DIVERGED: 1.0} if row["is_infeasible"] else {},
            intermediate_values=_last_value(row),
        )
        return int(storage.create_new_trial(study._study_id, trial))  # noqa: SLF001

    def _end(self, known: int, row: Mapping[str, Any]) -> None:
        storage, state = self.memory._storage, TrialState[row["state"]]  # noqa: SLF001
        if not state.is_finished():
            return
        if row["is_infeasible"]:
            storage.set_trial_system_attr(known, _DIVERGED, 1.0)
        for step, value in _last_value(row).items():
            storage.set_trial_intermediate_value(known, step, value)
        storage.set_trial_state_values(known, state, [row["value"]] if state is TrialState.COMPLETE else None)


def _last_value(row: Mapping[str, Any]) -> dict[int, float]:
    return {} if row["last_step"] is None else {row["last_step"]: row["last_value"]}


# Trials are added under a lock on their study, so that a higher id is a later one.
_CHANGED = sa.text(
    """
    select t.trial_id, t.state::text as state,
           case v.value_type when 'FINITE' then v.value when 'INF_POS' then 'inf' else '-inf' end as value,
           p.names, p.internal, l.step as last_step, l.value as last_value,
           exists (
               select from public.trial_system_attributes c
               where c.trial_id = t.trial_id and c.key like 'constraints:%' and c.value_json::double precision > 0
           ) as is_infeasible
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
