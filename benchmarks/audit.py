"""Audit a study of recurrence.py: compare the rows of its database with the results that it must have.

Each check yields one line for each violation. What it expects is written here, independently of hpopt.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import optuna
import sqlalchemy as sa
from foreign import MARK
from optuna.trial import FrozenTrial, TrialState
from recurrence import Config, evaluated_steps, expected_outcome, fault_free

from hpopt.storage.database import Database
from hpopt.storage.studies import Study, load_study

FINAL_OUTCOMES = ("complete", "pruned", "diverged", "failed")
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED}
MAX_LOST_IN_A_ROW = 3

Row = sa.RowMapping

_QUERIES = {
    "attempts": "select * from hpopt.attempt where study_id = :study_id order by trial_id, attempt_number",
    "evaluations": """
        select e.* from hpopt.evaluation e join hpopt.attempt a using (attempt_id)
        where a.study_id = :study_id order by e.optuna_trial_id, e.step
    """,
    "rungs": "select * from hpopt.rung where study_id = :study_id order by trial_id, fraction",
    "trials": "select * from hpopt.trials where study_id = :study_id order by trial",
    "curves": "select * from hpopt.learning_curves where study_name = :name order by trial, step",
    "trials_without_attempt": """
        select t.trial_id as optuna_trial_id, t.number, t.state::text as state from public.trials t
        where t.study_id = :study_id and not exists (select from hpopt.attempt a where a.optuna_trial_id = t.trial_id)
    """,
}


@dataclass(frozen=True, kw_only=True)
class StudyRecords:
    """All rows of a study, and what stock Optuna reads of it, without the finished trials that others have added.

    `trials` and `curves` are the views hpopt.trials and hpopt.learning_curves, the others are tables. The keys of
    `optuna_trials` are Optuna's ids; the id of a trial is that of its first attempt.
    """

    study: Study
    optuna_trials: Mapping[int, FrozenTrial]
    attempts: list[Row]
    evaluations: list[Row]
    rungs: list[Row]
    trials: list[Row]
    curves: list[Row]
    trials_without_attempt: list[Row]

    @cached_property
    def attempts_of(self) -> dict[int, list[Row]]:
        """The attempts at each trial, in order."""
        return _group(self.attempts, "trial_id")

    @cached_property
    def evaluations_of(self) -> dict[int, list[Row]]:
        """The evaluations of each attempt, by step."""
        return _group(self.evaluations, "attempt_id")

    def config(self, attempt: Row) -> Config:
        """Build the config of an attempt from the params of its Optuna trial and its seed."""
        config = self.study.file.config(self.optuna_trials[attempt["optuna_trial_id"]].params, attempt["seed"])
        if not isinstance(config, Config):
            raise TypeError(f"study '{self.study.name}' is not one of recurrence.py")
        return config

    def count_endings(self) -> Counter[int]:
        """Count the trials that were started by their `ending`."""
        last = (attempts[-1] for attempts in self.attempts_of.values())
        return Counter(self.config(attempt).ending for attempt in last if self.has_config(attempt))

    def has_config(self, attempt: Row) -> bool:
        """Return whether params and seed of an attempt were recorded; it can have ended before."""
        params = self.optuna_trials[attempt["optuna_trial_id"]].params
        return attempt["seed"] is not None and params.keys() == self.study.file.search_space.keys()

    def steps_of(self, attempts: list[Row]) -> set[int]:
        """Return the steps of all evaluations of these attempts."""
        return {row["step"] for attempt in attempts for row in self.evaluations_of.get(attempt["attempt_id"], ())}

    def has_made_no_progress(self, attempts: list[Row]) -> bool:
        """Return whether a trial failed because it was lost too often in a row, as it should."""
        last, n_lost = attempts[-1], _most_lost_in_a_row(self, attempts)
        is_reason = "without progress" in (last["reason"] or "")
        return last["outcome"] == "failed" and is_reason and n_lost >= MAX_LOST_IN_A_ROW


def read_records(database: Database, name: str) -> StudyRecords:
    """Read a study in one snapshot; Optuna reads its trials without any code of hpopt."""
    study = load_study(database, name)
    with database.begin() as connection:
        connection.execute(sa.text("set transaction isolation level repeatable read"))
        parameters = {"study_id": study.study_id, "name": name}
        rows: dict[str, list[Row]] = {
            table: list(connection.execute(sa.text(query), parameters).mappings()) for table, query in _QUERIES.items()
        }
    stock = optuna.load_study(study_name=name, storage=database.url)
    trials = {trial._trial_id: trial for trial in stock.get_trials(deepcopy=False)}  # noqa: SLF001 - Optuna has no public way to the id.
    own = {attempt["optuna_trial_id"] for attempt in rows["attempts"]}
    others = {trial_id for trial_id, trial in trials.items() if MARK in trial.user_attrs} - own
    for table in ("trials", "trials_without_attempt"):
        rows[table] = [row for row in rows[table] if row["optuna_trial_id"] not in others]
    trials = {trial_id: trial for trial_id, trial in trials.items() if trial_id not in others}
    return StudyRecords(study=study, optuna_trials=trials, **rows)


def audit(records: StudyRecords) -> dict[str, list[str]]:
    """Return the violations of each check."""
    return {title: list(check(records)) for title, check in CHECKS.items()}


def count_lost(violations: Mapping[str, list[str]]) -> int:
    """Count what was lost: trials without a result, and missing evaluations."""
    return sum(len(violations[title]) for title in (BUDGET, RESULTS, STEPS))


def describe_trial(records: StudyRecords, trial_id: int) -> list[str]:
    """Return the rows of a trial, to look for the cause of a violation."""
    lines = []
    for attempt in records.attempts_of.get(trial_id, []):
        steps = [row["step"] for row in records.evaluations_of.get(attempt["attempt_id"], [])]
        trial = records.optuna_trials.get(attempt["optuna_trial_id"])
        columns = {name: attempt[name] for name in _COLUMNS}
        lines.append(f"{columns} optuna {trial and trial.state.name} {trial and trial.value} steps {steps}")
    return lines


_COLUMNS = (
    *("attempt_id", "optuna_trial_id", "attempt_number", "worker_id", "seed", "started_at", "ended_at", "outcome"),
    *("reason", "tokens"),
)


def _check_budget(records: StudyRecords) -> Iterator[str]:
    n_trials = records.study.file.budget.trials
    if len(records.attempts_of) != n_trials:
        yield f"{len(records.attempts_of)} trials were started with a budget of {n_trials}"
    for trial_id, attempts in records.attempts_of.items():
        if attempts[-1]["outcome"] not in FINAL_OUTCOMES:
            yield f"trial {trial_id} has not finished: its last attempt is {attempts[-1]['outcome']}"


def _check_results(records: StudyRecords) -> Iterator[str]:
    for trial_id, attempts in records.attempts_of.items():
        final = [attempt["attempt_number"] for attempt in attempts if attempt["outcome"] in FINAL_OUTCOMES]
        if final != [attempts[-1]["attempt_number"]]:
            yield f"trial {trial_id} has {len(final)} results, of attempts {final} of {len(attempts)}"
        for attempt in attempts:
            number, outcome = attempt["attempt_number"], attempt["outcome"]
            state = records.optuna_trials[attempt["optuna_trial_id"]].state
            if outcome is not None and state is not STATES.get(outcome, TrialState.FAIL):
                yield f"trial {trial_id} attempt {number} is {outcome}, and {state.name} in Optuna"


def _check_values(records: StudyRecords) -> Iterator[str]:
    for trial_id, attempts in records.attempts_of.items():
        last = attempts[-1]
        trial = records.optuna_trials[last["optuna_trial_id"]]
        if records.has_made_no_progress(attempts) or _is_refused(last, trial):
            continue
        if not records.has_config(last):
            yield f"trial {trial_id} is {last['outcome']} without params or seed"
            continue
        config = records.config(last)
        if last["outcome"] not in {expected_outcome(config), "pruned", "lost", "preempted", None}:
            yield f"trial {trial_id} is {last['outcome']} ({last['reason']}), not {expected_outcome(config)}"
        expected = fault_free(config, config.n_steps).metrics["val_loss"]
        if last["outcome"] == "complete" and trial.value != expected:
            yield f"trial {trial_id} has the value {trial.value}, not {expected}"
        if last["outcome"] == "pruned" and trial.value not in _values_from(config, _pruned_at(last)):
            yield f"trial {trial_id} ({last['reason']}) has the value {trial.value}, of no step from there on"


def _is_refused(attempt: Row, trial: FrozenTrial) -> bool:
    """Return whether a trial failed because another program enqueued it with params that the study does not search."""
    return MARK in trial.user_attrs and attempt["outcome"] == "failed" and "enqueued, but" in attempt["reason"]


def _values_from(config: Config, first_step: int) -> list[float]:
    steps = [step for step in evaluated_steps(config) if step >= first_step]
    return [fault_free(config, step).metrics["val_loss"] for step in steps]


def _check_evaluations(records: StudyRecords) -> Iterator[str]:
    attempts = {attempt["attempt_id"]: attempt for attempt in records.attempts}
    for row in records.evaluations:
        attempt = attempts[row["attempt_id"]]
        name = f"trial {attempt['trial_id']} attempt {attempt['attempt_number']} step {row['step']}"
        if not records.has_config(attempt):
            yield f"{name}: an evaluation of an attempt without params or seed"
            continue
        recorded = (row["tokens"], row["seconds"], dict(row["metrics"]))
        expected = fault_free(records.config(attempt), row["step"])
        is_own = row["optuna_trial_id"] == attempt["optuna_trial_id"]
        if recorded != (expected.tokens, expected.seconds, expected.metrics) or not is_own:
            yield f"{name}: {recorded} of Optuna's trial {row['optuna_trial_id']}, not {expected}"


def _check_steps(records: StudyRecords) -> Iterator[str]:
    """No step is missing: not of a trial, not within an attempt; trials that were not stopped have all steps."""
    for trial_id, attempts in records.attempts_of.items():
        with_config = [attempt for attempt in attempts if records.has_config(attempt)]
        if not with_config:
            continue
        expected = evaluated_steps(records.config(with_config[-1]))
        steps = records.steps_of(attempts)
        is_stopped = attempts[-1]["outcome"] in {"pruned", None} or records.has_made_no_progress(attempts)
        last_step = max((*steps, _pruned_at(attempts[-1]))) if is_stopped else max((0, *expected))
        for step in sorted({step for step in expected if step <= last_step} - steps):
            yield f"trial {trial_id} ({attempts[-1]['outcome']}) has no evaluation of step {step}"
        for step in sorted(steps - set(expected)):
            yield f"trial {trial_id} has an evaluation of step {step}, which no run without faults has"
        for attempt in attempts:
            yield from _missing_within(records, attempt, expected)


def _missing_within(records: StudyRecords, attempt: Row, expected: list[int]) -> Iterator[str]:
    steps = records.steps_of([attempt])
    for step in expected:
        if steps and min(steps) < step < max(steps) and step not in steps:
            name = f"trial {attempt['trial_id']} attempt {attempt['attempt_number']}"
            yield f"{name} has no evaluation of step {step} between others"


def _pruned_at(attempt: Row) -> int:
    step = re.search(r"at step (\d+)", attempt["reason"] or "")
    return int(step[1]) if step and attempt["outcome"] == "pruned" else 0


def _check_curves(records: StudyRecords) -> Iterator[str]:
    n_rows_of = Counter((row["trial"], row["step"]) for row in records.curves)
    for (number, step), n_rows in n_rows_of.items():
        if n_rows != 1:
            yield f"hpopt.learning_curves has step {step} of trial number {number} {n_rows} times"
    numbers = {row["trial_id"]: row["trial"] for row in records.trials}
    for trial_id, attempts in records.attempts_of.items():
        for step in sorted(records.steps_of(attempts)):
            if (numbers.get(trial_id), step) not in n_rows_of:
                yield f"hpopt.learning_curves does not have step {step} of trial {trial_id}"


def _check_outcomes(records: StudyRecords) -> Iterator[str]:
    for attempt in records.attempts:
        if attempt["outcome"] is None or attempt["ended_at"] is None:
            yield f"attempt {attempt['attempt_id']} at trial {attempt['trial_id']} has no outcome"


def _check_attempt_numbers(records: StudyRecords) -> Iterator[str]:
    for trial_id, attempts in records.attempts_of.items():
        numbers = [attempt["attempt_number"] for attempt in attempts]
        if numbers != list(range(1, len(attempts) + 1)):
            yield f"trial {trial_id} has the attempts {numbers}"
        if attempts[0]["optuna_trial_id"] != trial_id:
            yield f"trial {trial_id} has another first attempt, {attempts[0]['optuna_trial_id']}"


def _check_params(records: StudyRecords) -> Iterator[str]:
    for trial_id, attempts in records.attempts_of.items():
        trials = [records.optuna_trials[attempt["optuna_trial_id"]] for attempt in attempts]
        seeds = {attempt["seed"] for attempt in attempts} - {None}
        params = {str(sorted(trial.params.items())) for trial in trials} - {"[]"}
        if len(seeds) > 1 or len(params) > 1:
            yield f"trial {trial_id} has the seeds {sorted(seeds)} and the params {sorted(params)}"
        for attempt in attempts:
            if attempt["config"] is not None and attempt["config"] != asdict(records.config(attempt)):
                name = f"trial {trial_id} attempt {attempt['attempt_number']}"
                yield f"{name} has the config {attempt['config']}, not {records.config(attempt)}"


def _check_rungs(records: StudyRecords) -> Iterator[str]:
    for rung in records.rungs:
        attempts = records.attempts_of.get(rung["trial_id"], [])
        with_config = [attempt for attempt in attempts if records.has_config(attempt)]
        if not with_config or rung["step"] not in records.steps_of(attempts):
            yield f"trial {rung['trial_id']} has a rung at step {rung['step']}, but no evaluation there"
            continue
        config = records.config(with_config[-1])
        steps = [step for step in evaluated_steps(config) if rung["fraction"] * config.n_steps <= step]
        expected = fault_free(config, rung["step"]).metrics["val_loss"]
        if rung["value"] != expected or rung["step"] != steps[0]:
            place = f"step {rung['step']} for {rung['fraction']:g} of the schedule"
            yield f"trial {rung['trial_id']} has {rung['value']} at {place}, not {expected} at {steps[0]}"


def _check_lost_in_a_row(records: StudyRecords) -> Iterator[str]:
    for trial_id, attempts in records.attempts_of.items():
        n_lost = _most_lost_in_a_row(records, attempts)
        if n_lost > MAX_LOST_IN_A_ROW:
            yield f"trial {trial_id} was lost {n_lost} times in a row without progress"


def _most_lost_in_a_row(records: StudyRecords, attempts: list[Row]) -> int:
    """Count the attempts in a row that were lost without a further step than before; preempted ones do not count."""
    most = n_lost = furthest = 0
    for attempt in attempts:
        steps = records.steps_of([attempt])
        if steps and max(steps) > furthest:
            furthest, n_lost = max(steps), 0
        elif attempt["outcome"] != "preempted":
            n_lost += attempt["outcome"] in {"lost", "failed"}
        most = max(most, n_lost)
    return most


def _check_running(records: StudyRecords) -> Iterator[str]:
    for trial in records.optuna_trials.values():
        if not trial.state.is_finished():
            yield f"Optuna's trial {trial.number} is {trial.state.name}"
    for row in records.trials:
        if row["state"] in {"RUNNING", "WAITING"}:
            yield f"hpopt.trials has trial {row['trial']} as {row['state']}"


def _check_stock(records: StudyRecords) -> Iterator[str]:
    """Stock Optuna has the trials of the attempts and no others, and its completed trials are those of hpopt.trials."""
    for row in records.trials_without_attempt:
        yield f"Optuna's trial {row['number']} ({row['state']}) belongs to no attempt"
    rows = [*records.attempts, *records.trials_without_attempt]
    if sorted(records.optuna_trials) != sorted(row["optuna_trial_id"] for row in rows):
        yield "Optuna's trials are not those of the attempts"
    complete = [trial for trial in records.optuna_trials.values() if trial.state is TrialState.COMPLETE]
    in_optuna = {trial.number: (trial.value, trial.params) for trial in complete}
    in_view = {row["trial"]: (row["value"], row["params"]) for row in records.trials if row["state"] == "COMPLETE"}
    for number in sorted(in_optuna.keys() | in_view.keys()):
        if in_optuna.get(number) != in_view.get(number):
            yield f"trial {number} is {in_optuna.get(number)} in Optuna, {in_view.get(number)} in hpopt.trials"


def _check_intermediate_values(records: StudyRecords) -> Iterator[str]:
    """The intermediate values in Optuna are those of the evaluations, and each attempt has all of its own."""
    attempts = {attempt["optuna_trial_id"]: attempt for attempt in records.attempts}
    for optuna_trial_id, trial in records.optuna_trials.items():
        attempt = attempts.get(optuna_trial_id)
        if attempt is None or not records.has_config(attempt):
            continue
        config = records.config(attempt)
        name = f"trial {attempt['trial_id']} attempt {attempt['attempt_number']}"
        for step, value in trial.intermediate_values.items():
            if value != fault_free(config, step).metrics["val_loss"]:
                yield f"{name} has {value} at step {step} in Optuna"
        for step in sorted(records.steps_of([attempt]) - trial.intermediate_values.keys()):
            yield f"{name} has no value at step {step} in Optuna"


def _group(rows: list[Row], key: str) -> dict[int, list[Row]]:
    grouped: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row[key]].append(row)
    return dict(grouped)


BUDGET = "exactly the trials of the budget have finished"
RESULTS = "each trial has one result, that of its last attempt, also in Optuna"
STEPS = "no evaluation is missing"

CHECKS: dict[str, Callable[[StudyRecords], Iterator[str]]] = {
    BUDGET: _check_budget,
    RESULTS: _check_results,
    "each result is that of a run without faults": _check_values,
    "each evaluation is that of a run without faults": _check_evaluations,
    STEPS: _check_steps,
    "the learning curves have each evaluation once": _check_curves,
    "each attempt has an outcome": _check_outcomes,
    "attempts are numbered 1 to n": _check_attempt_numbers,
    "the attempts at a trial share params and seed": _check_params,
    "each rung has the value of a run without faults": _check_rungs,
    "no trial is lost more than 3 times in a row without progress": _check_lost_in_a_row,
    "nothing is left running": _check_running,
    "stock Optuna reads the same completed trials": _check_stock,
    "Optuna has each evaluation as an intermediate value": _check_intermediate_values,
}
