"""Identify the configurations of a study by arm, params and seed, and enqueue those that it does not have."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from hpopt.hyperparameters import Scalar
from hpopt.storage import optuna_write

Params = frozenset[tuple[str, str]]
# Arm, params and seed.
Key = tuple[str | None, Params, int | None]

# The user attributes of a trial with the seed and the arm that it was enqueued with.
SEED, ARM = "seed", "arm"


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Params, a seed and the arm of a comparison, which identify a trial, and the user attributes of the trial.

    Without a seed it is the one of the objective's config. Params that are left out are sampled.
    """

    params: Mapping[str, Scalar]
    seed: int | None = None
    arm: str | None = None
    user_attrs: Mapping[str, Any] = field(default_factory=dict)


def lock_study(connection: sa.Connection, study_id: int) -> sa.RowMapping | None:
    """Lock a study until the end of the transaction; return its state and number of started trials, None if deleted.

    Every trial is added under this lock, which Optuna takes too.
    """
    return connection.execute(_LOCK_STUDY, {"study_id": study_id}).mappings().one_or_none()


class Configurations:
    """The configurations of a study that is locked: what its trials were enqueued with, and what they ran with."""

    def __init__(self, connection: sa.Connection, study_id: int, default_seed: int | None) -> None:
        """Read the configurations; trials that have no seed yet will run with the default one."""
        self._connection = connection
        self._study_id = study_id
        self._default_seed = default_seed
        self._trials: dict[Key, int] = {}
        for row in connection.execute(_CONFIGURATIONS, {"study_id": study_id}):
            seed = default_seed if row.seed is None else row.seed
            for params in _read_params(row):
                self._trials.setdefault((row.arm, _identity(params), seed), row.trial)

    def find(self, configuration: Configuration) -> int | None:
        """Return the number of the trial of a configuration, or None."""
        return self._trials.get(self._key(configuration))

    def seeds(self, params: Mapping[str, Scalar]) -> set[int | None]:
        """Return the seeds of the trials with these params."""
        return {seed for _, known, seed in self._trials if known == _identity(params)}

    def enqueue(self, configurations: Iterable[Configuration]) -> list[int]:
        """Enqueue those that no trial has, in one statement, and return their numbers. Call this once."""
        new: dict[Key, tuple[Mapping[str, Scalar], dict[str, Any]]] = {}
        for one in configurations:
            if self.find(one) is None:
                _, attributes = new.setdefault(self._key(one), (one.params, {}))
                attributes.update(_user_attrs(one))
        return optuna_write.enqueue(self._connection, self._study_id, list(new.values()))

    def _key(self, configuration: Configuration) -> Key:
        seed = configuration.seed
        return configuration.arm, _identity(configuration.params), self._default_seed if seed is None else seed


def _user_attrs(configuration: Configuration) -> dict[str, Any]:
    given = {SEED: configuration.seed, ARM: configuration.arm}
    return {**configuration.user_attrs, **{name: value for name, value in given.items() if value is not None}}


def _read_params(row: Any) -> Iterator[Mapping[str, Scalar]]:  # noqa: ANN401 - a row of _CONFIGURATIONS.
    """Yield the params that a trial was enqueued with, which can be a part of its params, and its params."""
    if row.fixed_params is not None:
        yield json.loads(row.fixed_params)
    yield row.params


def _identity(params: Mapping[str, Scalar]) -> Params:
    # 1 and 1.0 are one value, true is another one; what a script enqueued can be a list.
    return frozenset(
        (name, json.dumps(float(value) if isinstance(value, int) and not isinstance(value, bool) else value))
        for name, value in params.items()
    )


_LOCK_STUDY = sa.text(
    """
    select h.state, h.n_started from hpopt.study h join public.studies s using (study_id)
    where h.study_id = :study_id for no key update
    """
)

# The enqueued params are kept with the first attempt of a trial.
_CONFIGURATIONS = sa.text(
    """
    select t.trial, t.params, e.value_json as fixed_params,
           coalesce(t.seed, case when u.value_json ~ '^[0-9]{1,18}$' then u.value_json::bigint end) as seed,
           coalesce(t.arm, case when h.role = 'compare' then trim('"' from a.value_json) end) as arm
    from hpopt.trials t
    join hpopt.study h using (study_id)
    left join public.trial_user_attributes a on a.trial_id = t.trial_id and a.key = 'arm'
    left join public.trial_system_attributes e on e.trial_id = t.trial_id and e.key = 'fixed_params'
    left join public.trial_user_attributes u on u.trial_id = t.trial_id and u.key = 'seed'
    where t.study_id = :study_id
    order by t.trial
    """
)
