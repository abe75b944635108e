"""Write Optuna's trials, params and values within our own transactions.

Optuna's storage commits each of these writes separately, so that a crash between two of them leaves a trial without a
worker. A test reads everything back with stock Optuna.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.distributions import distribution_to_json, json_to_distribution

from hpopt.analysis.trials import Outcome
from hpopt.hyperparameters import Scalar
from hpopt.search import sampler
from hpopt.search.direction import Direction
from hpopt.search.space import Range

# The revision of Optuna's tables that is written here, as Optuna stamps it.
REVISION = "v3.2.0.a"


@dataclass(frozen=True, kw_only=True)
class QueuedTrial:
    """A trial before it runs: its params, or those that it was enqueued with, and its user attributes."""

    params: Mapping[str, Scalar]
    user_attrs: Mapping[str, Any]


def create_study(connection: sa.Connection, name: str, direction: Direction, metric: str) -> int | None:
    """Add a study and return its id, or None if there is one of this name."""
    parameters = {"name": name, "direction": direction.name, "metric_names": json.dumps([metric])}
    created: int | None = connection.scalar(_CREATE_STUDY, parameters)
    return created


def create_trial(connection: sa.Connection, study_id: int) -> int:
    """Add a running trial without params and return its id. The study must be locked in public.studies."""
    return int(connection.execute(_CREATE, {"study_id": study_id}).scalar_one())


def enqueue(
    connection: sa.Connection, study_id: int, trials: Sequence[tuple[Mapping[str, Scalar], Mapping[str, Any]]]
) -> list[int]:
    """Add waiting trials with given params and user attributes, in one statement, and return their numbers.

    The study must be locked in public.studies.
    """
    params, user_attrs = ([json.dumps(trial[part]) for trial in trials] for part in (0, 1))
    rows = {"study_id": study_id, "params": params, "user_attrs": user_attrs}
    return list(connection.scalars(_ENQUEUE, rows)) if trials else []


def claim_waiting(connection: sa.Connection, study_id: int) -> int | None:
    """Start the first enqueued trial and return its id, or None if there is none."""
    claimed: int | None = connection.scalar(_CLAIM, {"study_id": study_id})
    return claimed


def copy_trial(connection: sa.Connection, study_id: int, trial_id: int) -> int:
    """Add a running trial with the params, attributes and intermediate values of another, and return its id."""
    new = create_trial(connection, study_id)
    for copy in _COPIES:
        connection.execute(copy, {"old": trial_id, "new": new})
    return new


def add_params(
    connection: sa.Connection, trial_id: int, params: Mapping[str, Scalar], space: Mapping[str, Range]
) -> None:
    """Add the params that a trial does not have. Raises ValueError for a value outside of its range."""
    distributions = sampler.to_distributions(space)
    rows = [
        {
            "trial_id": trial_id,
            "name": name,
            "value": distributions[name].to_internal_repr(value),
            "distribution": distribution_to_json(distributions[name]),
        }
        for name, value in params.items()
    ]
    if rows:
        connection.execute(_ADD_PARAM, rows)


def read_queued(connection: sa.Connection, trial_id: int) -> QueuedTrial:
    """Return what a trial has before it runs.

    What another tool damaged is read as params that no search space takes, and as the text of an attribute.
    """
    row = connection.execute(_QUEUED, {"trial_id": trial_id}).mappings().one()
    fixed = _parse_or_text(row["fixed_params"] or "{}")
    params = fixed if isinstance(fixed, dict) else {"fixed_params": fixed}
    for name, value, distribution in row["params"] or ():
        try:
            params[name] = json_to_distribution(distribution).to_external_repr(value)
        except Exception:  # noqa: BLE001 - Optuna raises many kinds for a damaged distribution.
            params[name] = None
    attributes = {key: _parse_or_text(value) for key, value in row["user_attrs"] or ()}
    return QueuedTrial(params=params, user_attrs=attributes)


def _parse_or_text(text: str) -> Any:  # noqa: ANN401 - whatever an attribute is.
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return text


def end_trial(connection: sa.Connection, trial_id: int, outcome: Outcome, value: float | None) -> None:
    """End a running trial; one that diverged violates the constraint `diverged`.

    Its value is that of its last evaluation, or the best of all attempts, as the study file says.
    """
    parameters = {"trial_id": trial_id, "state": outcome.optuna_state}
    connection.execute(_END, parameters)
    if outcome is Outcome.DIVERGED:
        connection.execute(_ADD_CONSTRAINT, parameters)
    # Optuna has no type for nan, and fails a trial with that value.
    if value is not None and not math.isnan(value):
        connection.execute(_ADD_VALUE, {**parameters, **intermediate_value(value)})


def intermediate_value(value: float) -> dict[str, float | str | None]:
    """Return `value` and `value_type` of a value as Optuna stores them."""
    if math.isnan(value):
        return {"value": None, "value_type": "NAN"}
    if math.isinf(value):
        return {"value": None, "value_type": "INF_POS" if value > 0 else "INF_NEG"}
    return {"value": value, "value_type": "FINITE"}


# The last is what Study.set_metric_names stores.
_CREATE_STUDY = sa.text(
    """
    with created as (
        insert into public.studies (study_name) values (:name) on conflict do nothing returning study_id
    ), with_direction as (
        insert into public.study_directions (study_id, objective, direction)
        select study_id, 0, cast(:direction as public.studydirection) from created
    ), with_metric as (
        insert into public.study_system_attributes (study_id, key, value_json)
        select study_id, 'study:metric_names', :metric_names from created
    )
    select study_id from created
    """
)

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

_ENQUEUE = sa.text(
    """
    with queued as (
        select coalesce((
                   select number from public.trials where study_id = :study_id order by trial_id desc limit 1
               ), -1) + q.position as number, q.params, q.user_attrs
        from unnest(cast(:params as text[]), cast(:user_attrs as text[]))
            with ordinality q (params, user_attrs, position)
    ), added as (
        insert into public.trials (study_id, number, state)
        select :study_id, number, 'WAITING' from queued order by number
        returning trial_id, number
    ), with_params as (
        insert into public.trial_system_attributes (trial_id, key, value_json)
        select a.trial_id, 'fixed_params', q.params from added a join queued q using (number)
    ), with_attributes as (
        insert into public.trial_user_attributes (trial_id, key, value_json)
        select a.trial_id, u.key, u.value::text
        from added a join queued q using (number) cross join json_each(q.user_attrs::json) u
    )
    select number from added order by number
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

_QUEUED = sa.text(
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
           ) as user_attrs
    """
)

_END = sa.text(
    """
    update public.trials
    set state = cast(:state as public.trialstate), datetime_complete = now() at time zone 'UTC'
    where trial_id = :trial_id and state = 'RUNNING'
    """
)

_ADD_CONSTRAINT = sa.text(
    """
    insert into public.trial_system_attributes (trial_id, key, value_json)
    values (:trial_id, 'constraints:diverged', '1.0') on conflict do nothing
    """
)

_ADD_VALUE = sa.text(
    """
    insert into public.trial_values (trial_id, objective, value, value_type)
    select :trial_id, 0, case when :value_type = 'FINITE' then s.value end, cast(:value_type as public.trialvaluetype)
    from hpopt.summary_value(:trial_id, :value) s (value)
    on conflict (trial_id, objective) do update set value = excluded.value, value_type = excluded.value_type
    """
)
