"""Read the best parameters, the progress and the trials of a study."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

import sqlalchemy as sa

from hpopt.analysis.answer import AnswerKind, ConfirmedCandidate
from hpopt.analysis.trials import ArmsDesign, CurvePoint, Outcome, StudyTable, TrialRow
from hpopt.errors import InputError, NoAnswerError
from hpopt.formats import storable, to_json
from hpopt.hyperparameters import Scalar
from hpopt.search.space import Categorical, Range
from hpopt.storage import budget, confirmation
from hpopt.storage.database import Database
from hpopt.storage.observations import find_external
from hpopt.storage.progress import Best, FinishedTrial, Progress, WorkerRow
from hpopt.storage.studies import DEFAULT_CONFIGURATION, Study
from hpopt.study.arms import data_by_arm
from hpopt.study.plan import base_params, rungs_of


def best(database: Database, study: Study) -> Best:
    """Return the best parameters. Raises NoAnswerError while no trial is complete."""
    row = find_best(database, study)
    if row is None and study.file.arms:
        raise NoAnswerError(f"study '{study.name}' has no answer; `hpopt compare {study.name}` says why")
    if row is None:
        raise NoAnswerError(f"study '{study.name}' has no completed trial yet")
    return row


def find_best(database: Database, study: Study) -> Best | None:
    """Return the best parameters, or None while no trial is complete; of arms with unlike data, the first arm's."""
    query = sa.text("select * from hpopt.best_params where study_name = :name")
    with database.begin() as connection:
        rows = connection.execute(query, {"name": study.name}).mappings().all()
    order = {arm: position for position, arm in enumerate(study.file.arms)}
    row = min(rows, key=lambda row: order.get(row["arm"], len(order)), default=None)
    if row is None:
        return None
    candidates = None
    if row["candidates"] is not None:
        candidates = tuple(
            ConfirmedCandidate(**{**one, "params": _in_order(study, one["params"]), "values": tuple(one["values"])})
            for one in row["candidates"]
        )
    fields = {"params": _in_order(study, row["params"]), "answer": AnswerKind(row["answer"]), "candidates": candidates}
    return Best(**{**row, **fields})


def progress(database: Database, study: Study) -> Progress:
    """Return where a study stands."""
    parameters = {
        "study_id": study.study_id,
        "metric": study.file.metric,
        "name": study.name,
        "default_mark": DEFAULT_CONFIGURATION,
    }
    with database.begin() as connection:
        outcomes = connection.execute(_OUTCOMES, parameters).all()
        workers = connection.execute(_WORKERS, parameters).mappings().all()
        default_value = connection.scalar(_DEFAULT_VALUE, parameters)
        state_since = connection.execute(_STATE_SINCE, parameters).scalar_one()
        recent = connection.execute(_RECENT_SECONDS, parameters).scalars().all()
    usage = budget.read_usage(database, study)
    follower = confirmation.find_confirmation(database, study) if study.is_root else None
    return Progress(
        name=study.name,
        metric=study.file.metric,
        state_since=state_since,
        planned_trials=budget.planned_trials(study, usage),
        n_steps=study.n_steps,
        finished_reason=confirmation.family_finished_reason(database, study),
        usage=usage,
        n_by_outcome={outcome: n for outcome, n, _ in outcomes},
        tokens=sum(int(tokens) for _, _, tokens in outcomes),
        workers=tuple(WorkerRow(**row) for row in workers),
        best=find_best(database, study),
        default_value=default_value,
        recent_seconds=tuple(recent),
        external=find_external(database, study),
        confirmation=None if follower is None else progress(database, follower),
        is_comparison=bool(study.file.arms),
    )


def finished_trials(
    database: Database, study: Study, *, after: datetime | None = None, last: int | None = None
) -> list[FinishedTrial]:
    """Return the finished trials in the order in which they finished: all, those after a time, or the last ones."""
    parameters = {"study_id": study.study_id, "after": after, "last": last}
    with database.begin() as connection:
        rows = connection.execute(_FINISHED, parameters).mappings().all()
    return [FinishedTrial(**{**row, "outcome": Outcome(row["outcome"])}) for row in reversed(rows)]


def read_table(database: Database, study: Study, *, has_configs: bool = False) -> StudyTable:
    """Return all trials of a study with their learning curves, for analysis and reports.

    Those of a comparison have their resolved configs and learning rates too, others with `has_configs`.
    """
    has_configs = has_configs or bool(study.file.arms)
    parameters = {
        "study_id": study.study_id,
        "metric": study.file.metric,
        "name": study.name,
        "default_mark": DEFAULT_CONFIGURATION,
    }
    with database.begin() as connection:
        trials = connection.execute(_TRIALS, parameters).mappings().all()
        curves = {row.trial: row for row in connection.execute(_CURVES, parameters)}
        details = {row.trial: row for row in connection.execute(_DETAILS, parameters)} if has_configs else {}
    rows = (_trial_row(study, row, curves.get(row["trial"]), details.get(row["trial"])) for row in trials)
    best = find_best(database, study)
    return StudyTable(
        name=study.name,
        metric=study.file.metric,
        direction=study.file.direction,
        objective=study.file.objective,
        file_text=study.text,
        search_space=study.file.search_space,
        trials=tuple(rows),
        rungs=rungs_of(study.file),
        external=find_external(database, study),
        origin=_origin(study),
        answer=None if best is None else best.confirmed,
        design=_design(database, study),
        base=base_params(study.file, study.defaults) if study.file.sampler.name == "one_at_a_time" else None,
    )


def _design(database: Database, study: Study) -> ArmsDesign | None:
    """Return the arms of a comparison, or None for another study."""
    if not study.file.arms:
        return None
    return ArmsDesign(
        arms=study.file.arm_values(study.defaults),
        data=data_by_arm(study.file, study.defaults),
        indifference=study.file.compare.indifference,
        is_finished=budget.finished_reason(study, budget.read_usage(database, study)) is not None,
    )


def _origin(study: Study) -> dict[str, str]:
    """Return what a study was created with: time, file, data and versions."""
    created = f"{study.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    data = {"data fingerprint (first 16)": study.data_fingerprint[:16]} if study.data_fingerprint else {}
    return {"created": created, "study file (SHA-256, first 16)": study.file_sha256[:16], **data, **study.versions}


def _trial_row(
    study: Study, row: sa.RowMapping, curve: sa.Row[Any] | None, details: sa.Row[Any] | None = None
) -> TrialRow:
    outcome = None if row["outcome"] is None else Outcome(row["outcome"])
    of_arm = study.file.arm_values(study.defaults).get(row["arm"], {})
    params = {
        name: to_json(value) if isinstance(value, list | dict) else value
        for name, value in {**of_arm, **_in_order(study, row["params"])}.items()
        if name not in study.file.search_space or _is_analyzable(study.file.search_space[name], value)
    }
    fields: dict[str, Any] = {**row, "params": params, "outcome": outcome}
    if details is not None:
        fields |= {"config": details.config, "learning_rates": tuple(details.learning_rates or ())}
    if curve is None:
        return TrialRow(**fields)
    values = _best_so_far(study, curve.values) if study.file.summary == "best" else curve.values
    points = zip(curve.steps, curve.tokens, curve.seconds, values, strict=True)
    return TrialRow(
        **fields,
        curve=tuple(CurvePoint(step=s, tokens=t, seconds=seconds, value=value) for s, t, seconds, value in points),
        # Metrics that are not finite are strings, since JSON has no such numbers.
        metrics={name: float(value) for name, value in curve.metrics.items() if value is not None},
    )


def may_write(database: Database) -> bool:
    """Return whether the user of the database may change studies."""
    query = (
        "select has_table_privilege('public.studies', 'delete') and current_setting('transaction_read_only') = 'off'"
    )
    with database.begin() as connection:
        return bool(connection.scalar(sa.text(query)))


def _best_so_far(study: Study, values: Sequence[float | None]) -> Iterator[float | None]:
    """Return the value of a trial after each evaluation, where the best one counts."""
    return accumulate(values, lambda *pair: study.file.direction.best(pair, lambda value: value))


def _is_analyzable(searched: Range, value: Any) -> bool:  # noqa: ANN401 - another program can have stored anything.
    """Return whether a value is one of the kind of its range, and small enough to compute with."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number:
        is_log = not isinstance(searched, Categorical) and searched.log
        return math.isfinite(value) and abs(value) <= _LARGEST and (value > 0 or not is_log)
    return isinstance(searched, Categorical) and value is not None


def read_rows(database: Database, query: str) -> tuple[list[str], list[list[Any]]]:
    """Run a query in a read-only transaction and return its column names and rows. Raises InputError if it fails."""
    with database.begin() as connection:
        connection.execute(sa.text("set transaction read only"))
        try:
            connection.execute(_SET_QUERY, {"query": storable(query)})
            connection.execute(_OPEN_QUERY)
            result = connection.execute(sa.text("fetch all from query"))
            return list(result.keys()), [list(row) for row in result]
        except sa.exc.DBAPIError as error:
            if getattr(error.orig, "pgcode", None) == _NO_CURSOR:
                raise InputError("expected one query that returns rows; the transaction is read-only") from error
            raise InputError(str(error.orig).split("\n")[0]) from error
        except ValueError as error:
            # Python's times end with the year 9999.
            raise InputError(f"{error}: a value that Python cannot represent; cast its column to text") from error


def _in_order(study: Study, params: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the params in the order of the study file; jsonb does not keep it."""
    order = {name: position for position, name in enumerate((*study.file.search_space, *study.file.derived))}
    return dict(sorted(params.items(), key=lambda item: order.get(item[0], len(order))))


# The square of a larger number is not finite.
_LARGEST = 1e150

# The server parses the query: a cursor takes a single statement, wherever there are semicolons in it.
_SET_QUERY = sa.text("select set_config('hpopt.query', :query, true)")
_OPEN_QUERY = sa.text(
    "do $$ declare cursor refcursor := 'query'; begin open cursor for execute current_setting('hpopt.query'); end $$"
).execution_options(no_parameters=True)
# The SQLSTATE of invalid_cursor_definition: several statements, none, or one that returns no rows.
_NO_CURSOR = "42P11"

_OUTCOMES = sa.text(
    """
    select case when state in ('COMPLETE', 'PRUNED', 'FAIL') then coalesce(outcome, lower(state)) else lower(state) end,
           count(*)::int, sum(tokens)
    from hpopt.trials where study_id = :study_id group by 1
    """
)

_STATE_SINCE = sa.text("select state_since from hpopt.study where study_id = :study_id")

_DEFAULT_VALUE = sa.text(
    """
    select t.value
    from hpopt.trials t
    join public.trial_user_attributes u on u.trial_id = t.trial_id and u.key = :default_mark
    where t.study_id = :study_id and t.state = 'COMPLETE' and t.feasible
    order by t.trial limit 1
    """
)

# Of the last ones only, so that durations keep up with the sampler and the pruner.
_RECENT_SECONDS = sa.text(
    """
    select sum(a.device_seconds)
    from (
        select trial_id from hpopt.attempt
        where study_id = :study_id and outcome is not null and not is_requeued
        order by ended_at desc limit 40
    ) finished
    join hpopt.attempt a using (trial_id)
    group by trial_id
    """
)

_FINISHED = sa.text(
    """
    select trial, value, reason, device_seconds, finished_at,
           coalesce(outcome, case state when 'FAIL' then 'failed' else lower(state) end) as outcome
    from hpopt.trials
    where study_id = :study_id and state in ('COMPLETE', 'PRUNED', 'FAIL') and finished_at is not null
      and (cast(:after as timestamptz) is null or finished_at > :after)
    order by finished_at desc, trial desc limit cast(:last as int)
    """
)

_WORKERS = sa.text(
    """
    select f.worker_id, f.host, f.pid, f.engine, f.job, f.device, f.started_at, f.seconds_since_heartbeat,
           f.is_stale, f.device_seconds, f.trial, f.attempt_number, f.trial_started_at,
           extract(epoch from now() - f.trial_started_at)::double precision as seconds,
           t.device_seconds as trial_device_seconds,
           f.step, f.tokens, (e.metrics ->> :metric)::double precision as value, f.tokens_per_second
    from hpopt.fleet f
    left join hpopt.attempt a on a.worker_id = f.worker_id and a.ended_at is null
    left join hpopt.trials t on t.optuna_trial_id = a.optuna_trial_id
    left join hpopt.evaluation e on e.optuna_trial_id = a.optuna_trial_id and e.step = f.step
    where f.study_name = :name and f.stopped_at is null
    order by f.worker_id
    """
)

_TRIALS = sa.text(
    """
    select t.trial, t.state, t.value, t.params, t.seed, t.n_attempts, t.started_at, t.finished_at, t.device_seconds,
           t.tokens, t.reason, t.arm, t.derived,
           case when t.state in ('COMPLETE', 'PRUNED', 'FAIL')
               then coalesce(t.outcome, case t.state when 'FAIL' then 'failed' else lower(t.state) end)
           end as outcome,
           exists (
               select from public.trial_user_attributes u
               where u.trial_id = t.trial_id and u.key = :default_mark
           ) as is_default
    from hpopt.trials t where t.study_id = :study_id order by t.trial
    """
)

# One row for each trial: reading long curves takes time by the row, not by the number.
_CURVES = sa.text(
    """
    select trial, array_agg(step order by step) as steps, array_agg(tokens order by step) as tokens,
           array_agg(seconds order by step) as seconds,
           array_agg((metrics ->> :metric)::double precision order by step) as values,
           (array_agg(metrics order by step desc))[1] as metrics
    from hpopt.learning_curves where study_name = :name group by trial
    """
)

# What only a comparison reads of its runs.
_DETAILS = sa.text(
    """
    select t.trial, t.config, e.learning_rates
    from hpopt.trials t
    left join (
        select trial, array_agg(hpopt.number(metrics ->> 'learning_rate') order by step) as learning_rates
        from hpopt.learning_curves where study_name = :name group by trial
    ) e using (trial)
    where t.study_id = :study_id
    """
)
