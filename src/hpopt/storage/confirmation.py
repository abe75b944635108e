"""Run the best configurations of a study again with fresh seeds, and record which of them is the answer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from operator import itemgetter
from statistics import fmean
from typing import Any

import sqlalchemy as sa

from hpopt.analysis.answer import Answer, AnswerKind, ConfirmedCandidate
from hpopt.errors import ConfigError, InputError
from hpopt.formats import to_json
from hpopt.hyperparameters import Scalar
from hpopt.search.conditions import find_missing
from hpopt.search.space import Range, as_sampled
from hpopt.storage import optuna_write
from hpopt.storage.budget import finished_reason, read_usage
from hpopt.storage.configurations import Configuration, Configurations, lock_study
from hpopt.storage.database import Database
from hpopt.storage.studies import Study, default_seed, family_of, require_root
from hpopt.study.checks import check_params
from hpopt.study.file import Confirm

# What a confirmation appends to the name of its study.
_SUFFIX = "@confirm"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration that a confirmation repeats: its params, its best trial in the search, and the value of that."""

    params: Mapping[str, Scalar]
    trial: int
    value: float


@dataclass(frozen=True, kw_only=True)
class FamilyEnd:
    """What is left to do in a family: a study whose trials are to be run, or None and the reason why all is done."""

    next_study: Study | None
    reason: str


def continue_family(database: Database, root: Study, reason: str) -> FamilyEnd:
    """Create what follows a root that has finished for a reason, and record the answer once that has finished too.

    A study that was stopped has no successor, nor has one with fewer than two complete configurations.
    """
    confirmation = find_confirmation(database, root)
    if confirmation is None:
        confirmation = _create_due(database, root)
    if confirmation is None:
        return FamilyEnd(next_study=None, reason=reason)
    end = finished_reason(confirmation, read_usage(database, confirmation))
    if end is None:
        return FamilyEnd(next_study=confirmation, reason=reason)
    record_answer(database, root, confirmation)
    return FamilyEnd(next_study=None, reason=f"{reason}; confirmation finished")


def family_finished_reason(database: Database, study: Study) -> str | None:
    """Return why a study has finished, with all that follows it, or None while there is something left to do."""
    reason = finished_reason(study, read_usage(database, study))
    if reason is None or not study.is_root:
        return reason
    confirmation = find_confirmation(database, study)
    if confirmation is None:
        return None if _is_due(database, study) else reason
    return reason if finished_reason(confirmation, read_usage(database, confirmation)) else None


def find_confirmation(database: Database, root: Study) -> Study | None:
    """Return the confirmation of a study, or None."""
    return next((study for study in family_of(database, root) if study.role == "confirm"), None)


def create_confirmation(database: Database, root: Study, section: Confirm) -> Study:
    """Create the confirmation of a study, or add fresh seeds to the configurations that it has.

    Raises InputError while the study goes on, if fewer than two configurations are complete, or if there is another
    study of its name.
    """
    require_root(root)
    usage = read_usage(database, root)
    if finished_reason(root, usage) is None:
        remedy = f"`hpopt {'resume' if usage.state == 'paused' else 'stop'} {root.name}` first"
        raise InputError(f"study '{root.name}' has not finished; {remedy}, or write [confirm] into its file")
    with database.brief() as connection:
        if lock_study(connection, root.study_id) is None:
            raise InputError(f"study '{root.name}' was deleted")
        if not _create(connection, root, section, adds_seeds=True):
            raise InputError(
                f"study '{root.name}' has fewer than two complete configurations; there is nothing to compare"
            )
    found = find_confirmation(database, root)
    assert found is not None  # noqa: S101 - it was created above.
    return found


def record_answer(database: Database, root: Study, confirmation: Study) -> None:
    """Compare the configurations of a finished confirmation, and record the answer of the family.

    A configuration with a run that failed or diverged is left out, and seeds that not all others have completed are.
    There is no answer without two seeds.
    """
    with database.brief() as connection:
        lock_study(connection, root.study_id)
        rows = connection.execute(_RUNS, {"study_id": confirmation.study_id}).mappings().all()
        n_runs = sum(row["value"] is not None for row in rows)
        stored = connection.execute(_CANDIDATES, {"study_id": confirmation.study_id}).one()
        compared = _compared([Candidate(**one) for one in stored.candidates], rows)
        if stored.n_runs == n_runs or not compared or len(compared[0][1]) < 2:  # noqa: PLR2004 - a variance needs two.
            return
        answer = _answer(root, compared)
        parameters = {"study_id": root.study_id, "confirmation_id": confirmation.study_id, "n_runs": n_runs}
        parameters |= {"n_seeds": len(compared[0][1]), **_columns(answer)}
        connection.execute(_RECORD, parameters)


Runs = Sequence[sa.RowMapping]


def _answer(root: Study, compared: Sequence[tuple[Candidate, Runs]]) -> Answer:
    # It imports scipy, which takes a second.
    from hpopt.analysis.confirmation import confirm, distance_from_center, recommend  # noqa: PLC0415

    candidates, runs = zip(*compared, strict=True)
    direction, space = root.file.direction, root.file.search_space
    result = confirm([[row["value"] for row in own] for own in runs], direction)
    costs = [fmean(row["device_seconds"] for row in own) for own in runs]
    chosen = recommend(result.tied, costs, [distance_from_center(space, one.params) for one in candidates])
    return Answer(
        kind=AnswerKind.CONFIRMED if result.is_confirmed else AnswerKind.TIE,
        trial=candidates[chosen].trial,
        optimism=direction.sign * (result.intervals[0].mean - candidates[0].value),
        noise_std=result.noise_std,
        candidates=tuple(
            ConfirmedCandidate(
                params=candidates[i].params,
                trial=candidates[i].trial,
                search_value=candidates[i].value,
                values=tuple(row["value"] for row in runs[i]),
                is_tied=i in result.tied,
                device_seconds=costs[i],
                **asdict(result.intervals[i]),
            )
            for i in result.order
        ),
        test_metrics=_mean_metrics([row["test_metrics"] or {} for row in runs[chosen]]),
    )


def _columns(answer: Answer) -> dict[str, Any]:
    chosen = answer.chosen
    return {
        "kind": answer.kind,
        "params": to_json(chosen.params),
        "trial": answer.trial,
        "value": chosen.mean,
        "value_low": chosen.low,
        "value_high": chosen.high,
        "optimism": answer.optimism,
        "noise_std": answer.noise_std,
        "candidates": to_json([asdict(one) for one in answer.candidates]),
        "test_metrics": None if answer.test_metrics is None else to_json(answer.test_metrics),
    }


def _mean_metrics(runs: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Return the means of the metrics that all runs have, or None without one."""
    names = set.intersection(*(set(metrics) for metrics in runs))
    return {name: fmean(float(metrics[name]) for metrics in runs) for name in sorted(names)} or None


def _compared(candidates: Sequence[Candidate], rows: Runs) -> list[tuple[Candidate, Runs]]:
    """Return the configurations without a failed run, and their runs with the seeds that all of them completed."""
    runs = [(one, [row for row in rows if row["params"] == one.params]) for one in candidates]
    kept = [(one, own) for one, own in runs if not any(row["outcome"] in {"failed", "diverged"} for row in own)]
    completed = [{row["seed"] for row in own if row["value"] is not None} for _, own in kept]
    seeds = set.intersection(*completed) if completed else set()
    return [(one, sorted((row for row in own if row["seed"] in seeds), key=itemgetter("seed"))) for one, own in kept]


def _create_due(database: Database, root: Study) -> Study | None:
    """Create the confirmation that the study file asks for, unless another worker has; None if there is none."""
    if root.file.confirm is None:
        return None
    with database.brief() as connection:
        row = lock_study(connection, root.study_id)
        if row is not None and row["state"] == "open":
            _create(connection, root, root.file.confirm, adds_seeds=False)
    return find_confirmation(database, root)


def _is_due(database: Database, root: Study) -> bool:
    if root.file.confirm is None:
        return False
    with database.begin() as connection:
        row = connection.execute(_STATE, {"study_id": root.study_id}).one_or_none()
        return row is not None and row.state == "open" and len(_best(connection, root, root.file.confirm)) > 1


def _create(connection: sa.Connection, root: Study, section: Confirm, *, adds_seeds: bool) -> bool:
    """Create the confirmation of a locked study, or add seeds to it; return whether there is one."""
    parameters = {"root_id": root.study_id}
    row = connection.execute(_CONFIRMATION, parameters).one_or_none()
    if row is not None and not adds_seeds:
        return True
    candidates = [Candidate(**one) for one in row.candidates] if row else _best(connection, root, section)
    if len(candidates) < 2:  # noqa: PLR2004 - a comparison needs two.
        return False
    used = set(connection.scalars(_USED_SEEDS, parameters))
    seeds = list(islice((seed for seed in count() if seed not in used), section.seeds))
    study_id = row.study_id if row else _insert_study(connection, root, candidates)
    lock_study(connection, study_id)
    space = root.file.search_space
    params = [{name: as_sampled(space[name], value) for name, value in one.params.items()} for one in candidates]
    runs = (Configuration(params=each, seed=seed) for seed in seeds for each in params)
    Configurations(connection, study_id, default_seed(root.file, root.defaults)).enqueue(runs)
    return True


def _insert_study(connection: sa.Connection, root: Study, candidates: Iterable[Candidate]) -> int:
    name = f"{root.name}{_SUFFIX}"
    study_id = optuna_write.create_study(connection, name, root.file.direction, root.file.metric)
    if study_id is None:
        raise InputError(f"the database has a study '{name}' that hpopt did not create; rename it, or delete it")
    parameters = {"study_id": study_id, "root_id": root.study_id}
    connection.execute(_INSERT, {**parameters, "candidates": to_json([asdict(one) for one in candidates])})
    return study_id


def _best(connection: sa.Connection, root: Study, section: Confirm) -> list[Candidate]:
    """Return the best configurations of a search; those of other programs count if they are in its space."""
    parameters = {"study_id": root.study_id, "sign": root.file.direction.sign}
    space = root.file.search_space
    rows = connection.execute(_RANKED, parameters).mappings()
    return list(islice((Candidate(**row) for row in rows if _is_in_space(space, row["params"])), section.top))


def _is_in_space(space: Mapping[str, Range], params: Mapping[str, Any]) -> bool:
    try:
        check_params(space, {name: as_sampled(space[name], value) for name, value in params.items()})
    except (ConfigError, KeyError, TypeError, ValueError, StopIteration):
        return False
    return not find_missing(space, params)


_STATE = sa.text("select state from hpopt.study where study_id = :study_id")

_CONFIRMATION = sa.text("select study_id, candidates from hpopt.study where root_id = :root_id and role = 'confirm'")

_CANDIDATES = sa.text(
    """
    select s.candidates, a.n_runs
    from hpopt.study s left join hpopt.answer a on a.confirmation_id = s.study_id
    where s.study_id = :study_id
    """
)

# The findings of an analysis before the answer are outdated.
_RECORD = sa.text(
    """
    with recorded as (
        insert into hpopt.answer (
            study_id, confirmation_id, n_runs, kind, params, trial, value, value_low, value_high, n_seeds, optimism,
            noise_std, candidates, test_metrics
        )
        values (
            :study_id, :confirmation_id, :n_runs, :kind, cast(:params as jsonb), :trial, :value, :value_low,
            :value_high, :n_seeds, :optimism, :noise_std, cast(:candidates as jsonb), cast(:test_metrics as jsonb)
        )
        on conflict (study_id, arm) do update
        set confirmation_id = excluded.confirmation_id, n_runs = excluded.n_runs, kind = excluded.kind,
            params = excluded.params, trial = excluded.trial, value = excluded.value,
            value_low = excluded.value_low, value_high = excluded.value_high, n_seeds = excluded.n_seeds,
            optimism = excluded.optimism, noise_std = excluded.noise_std, candidates = excluded.candidates,
            test_metrics = excluded.test_metrics, answered_at = now()
    )
    update hpopt.study set n_analyzed = null where study_id = :study_id
    """
)

# The configurations of a search, the best first by their means over seeds as in hpopt.best_params; the trial is the
# best run of each.
_RANKED = sa.text(
    """
    select params, (array_agg(trial order by :sign * value, trial))[1] as trial,
           :sign * min(:sign * value) as value
    from hpopt.trials
    where study_id = :study_id and state = 'COMPLETE' and feasible and value is not null
    group by params
    order by :sign * sum(value / 4096) / count(*), min(trial)
    """
)

_USED_SEEDS = sa.text(
    """
    select a.seed from hpopt.attempt a join hpopt.study s using (study_id)
    where s.root_id = :root_id and a.seed is not null
    union
    select hpopt.number(u.value_json)::bigint
    from hpopt.study s
    join public.trials t using (study_id)
    join public.trial_user_attributes u on u.trial_id = t.trial_id and u.key = 'seed'
    where s.root_id = :root_id and hpopt.number(u.value_json) between 0 and 1e15
    """
)

_INSERT = sa.text(
    """
    insert into hpopt.study (
        study_id, parent_id, root_id, role, candidates, file, file_sha256, created_by, git_commit, versions,
        data_fingerprint, summary, defaults, n_steps, not_taken
    )
    select :study_id, study_id, root_id, 'confirm', cast(:candidates as jsonb), file, file_sha256, created_by,
           git_commit, versions, data_fingerprint, summary, defaults, n_steps, not_taken
    from hpopt.study where study_id = :root_id
    """
)

# The finished runs of a confirmation; the value of one that is not complete is null.
_RUNS = sa.text(
    """
    select t.params, t.seed, t.outcome, case when t.state = 'COMPLETE' and t.feasible then t.value end as value,
           t.device_seconds, a.test_metrics
    from hpopt.trials t join hpopt.attempt a using (optuna_trial_id)
    where t.study_id = :study_id and t.state in ('COMPLETE', 'PRUNED', 'FAIL')
    order by t.trial
    """
)
