"""Fill a study with finished trials, by SQL in Optuna's tables and in those of hpopt.

A third of the trials complete; the others are pruned at a fifth and at two fifths of their schedule. Each has four
params and twenty evaluations.
"""

import json
from collections.abc import Mapping

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution, distribution_to_json

from hpopt.storage.database import Database
from hpopt.storage.studies import Study, create_study
from hpopt.study.reading import parse_study_file

N_STEPS = 100
# Where the pruner compares: steps, and the same as fractions of the schedule.
RUNGS = {11: 1 / 9, 33: 1 / 3}

SPACE: Mapping[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-3, 0.3, log=True),
    "warmup_ratio": FloatDistribution(0.0, 0.2),
    "momentum": FloatDistribution(0.8, 0.99),
    "ns_steps": IntDistribution(1, 9),
}


def make_finished_study(database: Database, text: str, n_trials: int, *, metrics: Mapping[str, float]) -> Study:
    """Create a study from a file with the parameters of SPACE and fill it; each trial has the given `metrics`."""
    study = create_study(database, parse_study_file(text, "filled.toml"))
    with database.begin() as connection:
        # The enqueued defaults would be a waiting trial.
        for table in ("trial_user_attributes", "trial_system_attributes", "trials"):
            connection.execute(sa.text(_DELETE.format(table)), {"study_id": study.study_id})
        fill_optuna(connection, study.study_id, n_trials)
        fill_hpopt(connection, study.study_id, config={}, metrics=metrics)
    return study


def fill_optuna(connection: sa.Connection, study_id: int, n_trials: int, *, seed: float = 0.5) -> None:
    """Write finished trials as Optuna does, with params, intermediate values and values, to an empty study."""
    connection.execute(sa.text("select setseed(:seed)"), {"seed": seed})
    connection.execute(_SAMPLED, {"n_trials": n_trials})
    connection.execute(_TRIALS, {"study_id": study_id})
    connection.execute(_FILLED, {"study_id": study_id})
    for name, distribution in SPACE.items():
        connection.execute(sa.text(_PARAM.format(name)), {"distribution": distribution_to_json(distribution)})
    connection.execute(_CURVES)
    connection.execute(_INTERMEDIATE_VALUES)
    connection.execute(_VALUES)


def fill_optuna_marks(connection: sa.Connection) -> None:
    """Write the rows that Optuna's pruner and heartbeat add to the trials that `fill_optuna` wrote in this session."""
    for number, step in enumerate((*RUNGS, N_STEPS - 1)):
        connection.execute(_COMPLETED_RUNG, {"key": f"completed_rung_{number}", "step": step})
    connection.execute(_HEARTBEATS)


def fill_hpopt(
    connection: sa.Connection, study_id: int, *, config: Mapping[str, object], metrics: Mapping[str, float]
) -> None:
    """Write the attempts, evaluations and rungs of the trials that `fill_optuna` wrote in this session."""
    worker_id = connection.scalar(_WORKER, {"study_id": study_id})
    parameters = {"study_id": study_id, "worker_id": worker_id, "config": json.dumps(dict(config))}
    connection.execute(_ATTEMPTS, parameters)
    connection.execute(_EVALUATIONS, {"metrics": json.dumps(dict(metrics))})
    for step, fraction in RUNGS.items():
        connection.execute(_RUNGS, {"study_id": study_id, "fraction": fraction, "step": step})
    connection.execute(_STARTED, {"study_id": study_id})


_DELETE = """
    delete from public.{0} where trial_id in (select trial_id from public.trials where study_id = :study_id)
"""

# `stride` is the number of steps between two evaluations: a pruned trial has as many evaluations as a complete one.
_SAMPLED = sa.text(
    """
    create temporary table sampled as
    select n as number, exp(ln(0.001) + random() * ln(300)) as learning_rate, 0.2 * random() as warmup_ratio,
           0.8 + 0.19 * random() as momentum, 1 + floor(9 * random()) as ns_steps, 0.02 * random() as noise,
           (array[5, 1, 2])[1 + n % 3] as stride
    from generate_series(0, :n_trials - 1) n
    """
)

_TRIALS = sa.text(
    """
    insert into public.trials (number, study_id, state, datetime_start, datetime_complete)
    select number, :study_id, (case when stride = 5 then 'COMPLETE' else 'PRUNED' end)::trialstate,
           (now() at time zone 'UTC') - interval '1 day' + number * interval '5 s',
           (now() at time zone 'UTC') - interval '1 day' + number * interval '5 s' + interval '4 minutes'
    from sampled order by number
    """
)

_FILLED = sa.text(
    """
    create temporary table filled as
    select t.trial_id, s.*, 3.8 + 0.1 * (ln(learning_rate) - ln(0.08)) ^ 2 + 2 * (momentum - 0.9) ^ 2 + noise as loss
    from sampled s join public.trials t on t.study_id = :study_id and t.number = s.number
    order by t.trial_id
    """
)

_PARAM = """
    insert into public.trial_params (trial_id, param_name, param_value, distribution_json)
    select trial_id, '{0}', {0}, :distribution from filled order by trial_id
"""

_CURVES = sa.text(
    """
    create temporary table curves as
    select trial_id, k * stride as step, loss + 2 * exp(- k * stride / 30.0) as value
    from filled, generate_series(1, 20) k
    order by trial_id, k
    """
)

_INTERMEDIATE_VALUES = sa.text(
    """
    insert into public.trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    select trial_id, step, value, 'FINITE' from curves
    """
)

# In Optuna the value of a pruned trial is its last intermediate value.
_VALUES = sa.text(
    """
    insert into public.trial_values (trial_id, objective, value, value_type)
    select distinct on (trial_id) trial_id, 0, value, 'FINITE'::trialvaluetype from curves order by trial_id, step desc
    """
)

_COMPLETED_RUNG = sa.text(
    """
    insert into public.trial_system_attributes (trial_id, key, value_json)
    select distinct on (trial_id) trial_id, :key, value::text from curves where step >= :step order by trial_id, step
    """
)

_HEARTBEATS = sa.text("insert into public.trial_heartbeats (trial_id, heartbeat) select trial_id, now() from filled")

_WORKER = sa.text(
    """
    insert into hpopt.worker
        (study_id, host, pid, device, hpopt_version, started_at, heartbeat_at, stopped_at, stop_reason)
    values (:study_id, 'filled', 1, 'cpu', '0', now() - interval '1 day', now() - interval '1 hour',
            now() - interval '1 hour', 'filled')
    returning worker_id
    """
)

_ATTEMPTS = sa.text(
    """
    insert into hpopt.attempt (study_id, worker_id, optuna_trial_id, trial_id, attempt_number, seed, started_at,
                               heartbeat_at, ended_at, outcome, reason, device_seconds, tokens, peak_memory_gib,
                               config)
    select :study_id, :worker_id, trial_id, trial_id, 1, number, started_at, ended_at, ended_at,
           case when stride = 5 then 'complete' else 'pruned' end,
           case when stride = 5 then null else 'not among the best at step ' || 20 * stride end,
           240, 20 * stride * 4096, 1.5, cast(:config as jsonb)
    from filled, lateral (
        select now() - interval '1 day' + number * interval '5 s' as started_at,
               now() - interval '1 day' + number * interval '5 s' + interval '4 minutes' as ended_at
    ) times
    order by trial_id
    """
)

_EVALUATIONS = sa.text(
    """
    insert into hpopt.evaluation (optuna_trial_id, step, attempt_id, tokens, seconds, metrics, recorded_at)
    select c.trial_id, c.step, a.attempt_id, c.step * 4096, c.step * 2.4,
           cast(:metrics as jsonb) || jsonb_build_object('val_loss', c.value),
           a.started_at + c.step * interval '2.4 s'
    from curves c join hpopt.attempt a on a.optuna_trial_id = c.trial_id
    """
)

_RUNGS = sa.text(
    """
    insert into hpopt.rung (trial_id, fraction, study_id, step, value)
    select distinct on (trial_id) trial_id, :fraction, :study_id, step, value
    from curves where step >= :step order by trial_id, step
    """
)

_STARTED = sa.text(
    """
    update hpopt.study
    set n_started = n_trials, device_seconds = seconds
    from (select count(*) as n_trials, sum(device_seconds) as seconds from hpopt.attempt where study_id = :study_id) a
    where study_id = :study_id
    """
)
