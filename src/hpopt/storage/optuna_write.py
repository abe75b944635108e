"""Owns what hpopt writes into Optuna's tables: trials, their params and their ends, within the transactions of others.

Optuna's own storage commits each of these by itself, so that a crash between two of them leaves a trial that nobody
holds. Leaves creating studies and enqueueing trials to Optuna. A test reads everything back with stock Optuna.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import TrialState

from hpopt.hyperparameters import Scalar
from hpopt.search import sampler
from hpopt.search.space import Range

# The revision of Optuna's tables that is written here, as Optuna stamps it.
REVISION = "v3.2.0.a"

STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "preempted": TrialState.FAIL,
    "lost": TrialState.FAIL,
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """What Optuna's tables know of a trial before it runs."""

    params: Mapping[str, Scalar]
    user_attrs: Mapping[str, Any]
    steps: tuple[int, ...]


def create_trial(connection: sa.Connection, study_id: int) -> int:
    """Add a running trial without params; gives its id. The row of the study must be locked in public.studies."""
    return int(connection.execute(_CREATE, {"study_id": study_id}).scalar_one())


def claim_waiting(connection: sa.Connection, study_id: int) -> int | None:
    """Set the first trial that somebody enqueued running; gives its id, or None if there is none."""
    claimed: int | None = connection.scalar(_CLAIM, {"study_id": study_id})
    return claimed


def copy_trial(connection: sa.Connection, study_id: int, trial_id: int) -> int:
    """Add a running trial with the params, attributes and intermediate values of another; gives its id."""
    new = create_trial(connection, study_id)
    for copy in _COPIES:
        connection.execute(copy, {"old": trial_id, "new": new})
    return new


def add_params(
    connection: sa.Connection, trial_id: int, params: Mapping[str, Scalar], space: Mapping[str, Range]
) -> None:
    """Write the params of a trial that it does not have yet."""
    known = sampler.to_distributions(space)
    rows = [
        {
            "trial_id": trial_id,
            "name": name,
            "value": known[name].to_internal_repr(value),
            "distribution": distribution_to_json(known[name]),
        }
        for name, value in params.items()
    ]
    if rows:
        connection.execute(_ADD_PARAM, rows)


def read_known(connection: sa.Connection, trial_id: int) -> Known:
    """Read what a trial has: params, or else those that somebody asked for, attributes, and the steps reported."""
    about = {"trial_id": trial_id}
    row = connection.execute(_KNOWN, about).mappings().one()
    params: dict[str, Scalar] = json.loads(row["fixed_params"] or "{}")
    for name, value, distribution in row["params"] or ():
        params[name] = json_to_distribution(distribution).to_external_repr(value)
    attributes = {key: json.loads(value) for key, value in row["user_attrs"] or ()}
    return Known(params=params, user_attrs=attributes, steps=tuple(row["steps"] or ()))


def end_trial(connection: sa.Connection, trial_id: int, outcome: str, value: float | None) -> None:
    """End a running trial as one of tables.OUTCOMES; one that diverged violates a constraint of that name."""
    about = {"trial_id": trial_id, "state": STATES[outcome].name}
    connection.execute(_END, about)
    if outcome == "diverged":
        connection.execute(_CONSTRAIN, about)
    # Optuna has no value for nan, and fails a trial that is told one.
    if value is not None and not math.isnan(value):
        kind = "FINITE" if math.isfinite(value) else "INF_POS" if value > 0 else "INF_NEG"
        finite = value if math.isfinite(value) else None
        connection.execute(_ADD_VALUE, {**about, "value": finite, "value_type": kind})


def intermediate(value: float) -> dict[str, float | str | None]:
    """Give value and type of an intermediate value as Optuna stores them."""
    if math.isnan(value):
        return {"value": None, "value_type": "NAN"}
    if math.isinf(value):
        return {"value": None, "value_type": "INF_POS" if value > 0 else "INF_NEG"}
    return {"value": value, "value_type": "FINITE"}


# Numbers count from 0 in each study; the newest trial has the highest.
_CREATE = sa.text(
    """
    insert into public.trials (study_id, number, state, datetime_start)
    values (
        :study_id,
        coalesce((
            select number + 1 from public.trials where study_id = :study_id order by trial_id desc limit 1
        ), 0),
        'RUNNING', now() at time zone 'UTC'
    )
    returning trial_id
    """
)

_CLAIM = sa.text(
    """
    update public.trials set state = 'RUNNING', datetime_start = now() at time zone 'UTC'
    where trial_id = (
        select trial_id from public.trials where study_id = :study_id and state = 'WAITING'
        order by number limit 1 for update skip locked
    )
    returning trial_id
    """
)

_COPIES = tuple(
    map(
        sa.text,
        (
            """
            insert into public.trial_params (trial_id, param_name, param_value, distribution_json)
            select :new, param_name, param_value, distribution_json from public.trial_params where trial_id = :old
            """,
            """
            insert into public.trial_user_attributes (trial_id, key, value_json)
            select :new, key, value_json from public.trial_user_attributes where trial_id = :old
            """,
            """
            insert into public.trial_system_attributes (trial_id, key, value_json)
            select :new, key, value_json from public.trial_system_attributes
            where trial_id = :old and key = 'fixed_params'
            """,
            """
            insert into public.trial_intermediate_values
                (trial_id, step, intermediate_value, intermediate_value_type)
            select :new, step, intermediate_value, intermediate_value_type
            from public.trial_intermediate_values where trial_id = :old
            """,
        ),
    )
)

_ADD_PARAM = sa.text(
    """
    insert into public.trial_params (trial_id, param_name, param_value, distribution_json)
    values (:trial_id, :name, :value, :distribution)
    on conflict do nothing
    """
)

_KNOWN = sa.text(
    """
    select (
               select value_json from public.trial_system_attributes
               where trial_id = :trial_id and key = 'fixed_params'
           ) as fixed_params,
           (
               select jsonb_agg(jsonb_build_array(param_name, param_value, distribution_json))
               from public.trial_params where trial_id = :trial_id
           ) as params,
           (
               select jsonb_agg(jsonb_build_array(key, value_json))
               from public.trial_user_attributes where trial_id = :trial_id
           ) as user_attrs,
           (
               select array_agg(step order by step) from public.trial_intermediate_values where trial_id = :trial_id
           ) as steps
    """
)

_END = sa.text(
    """
    update public.trials
    set state = cast(:state as public.trialstate), datetime_complete = now() at time zone 'UTC'
    where trial_id = :trial_id and state = 'RUNNING'
    """
)

_CONSTRAIN = sa.text(
    """
    insert into public.trial_system_attributes (trial_id, key, value_json)
    values (:trial_id, 'constraints:diverged', '1.0') on conflict do nothing
    """
)

_ADD_VALUE = sa.text(
    """
    insert into public.trial_values (trial_id, objective, value, value_type)
    values (:trial_id, 0, :value, cast(:value_type as public.trialvaluetype))
    on conflict (trial_id, objective) do update set value = excluded.value, value_type = excluded.value_type
    """
)
