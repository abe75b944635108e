"""Owns the audit of a study of recurrence.py: what the database says, held against what it must say.

Leaves to chaos.py what happened before. Each check gives one line for each violation, none where all is well.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState
from recurrence import Config, evaluated_steps, expected_outcome, fault_free

from hpopt.storage.database import Database
from hpopt.storage.studies import Study, load_study

ENDED = ("complete", "pruned", "diverged", "failed")
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED}
MAX_LOST_IN_A_ROW = 3

Row = sa.RowMapping

_QUERIES = {
    "attempts": "select * from hpopt.attempt where study_id = :study_id order by first_trial_id, go",
    "evaluations": """
        select e.* from hpopt.evaluation e join hpopt.attempt a using (attempt_id)
        where a.study_id = :study_id order by e.trial_id, e.step
    """,
    "rungs": "select * from hpopt.rung where study_id = :study_id order by first_trial_id, fraction",
    "shown": "select * from hpopt.trials where study_id = :study_id order by trial",
    "curves": "select * from hpopt.learning_curves where study_name = :name order by trial, step",
    "strays": """
        select t.trial_id, t.number, t.state::text as state from public.trials t
        where t.study_id = :study_id and not exists (select from hpopt.attempt a where a.trial_id = t.trial_id)
    """,
}


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All rows of a study, and what stock Optuna reads of it."""

    study: Study
    optuna_trials: Mapping[int, FrozenTrial]
    attempts: list[Row]
    evaluations: list[Row]
    rungs: list[Row]
    shown: list[Row]
    curves: list[Row]
    strays: list[Row]

    @cached_property
    def goes(self) -> dict[int, list[Row]]:
        """The attempts of each logical trial, by go."""
        return _group(self.attempts, "first_trial_id")

    @cached_property
    def evaluations_of(self) -> dict[int, list[Row]]:
        """The evaluations of each attempt, by step."""
        return _group(self.evaluations, "attempt_id")

    def config(self, attempt: Row) -> Config:
        """Build the config of an attempt from its Optuna trial's params and its seed."""
        found = self.study.file.config(self.optuna_trials[attempt["trial_id"]].params, attempt["seed"])
        if not isinstance(found, Config):
            raise TypeError(f"study '{self.study.name}' is not of recurrence.py")
        return found

    def is_known(self, attempt: Row) -> bool:
        """Say whether params and seed of an attempt were ever written; one that ended before has none to compare."""
        params = self.optuna_trials[attempt["trial_id"]].params
        return attempt["seed"] is not None and params.keys() == self.study.file.search_space.keys()

    def steps_of(self, goes: list[Row]) -> set[int]:
        """Give the steps of all evaluations of these attempts."""
        return {evaluation["step"] for go in goes for evaluation in self.evaluations_of.get(go["attempt_id"], ())}

    def is_given_up(self, goes: list[Row]) -> bool:
        """Say whether a trial failed because its workers died too often in a row, as it should."""
        n_dead = _longest_row_of_deaths(self, goes)
        return goes[-1]["outcome"] == "failed" and "without progress" in (goes[-1]["reason"] or "") and n_dead >= 3  # noqa: PLR2004 - hpopt's own limit.


def read_ledger(database: Database, name: str) -> Ledger:
    """Read everything in one snapshot; Optuna reads by itself, with no help of ours."""
    study = load_study(database, name)
    with database.begin() as connection:
        connection.execute(sa.text("set transaction isolation level repeatable read"))
        about = {"study_id": study.study_id, "name": name}
        rows: dict[str, list[Row]] = {
            what: list(connection.execute(sa.text(query), about).mappings()) for what, query in _QUERIES.items()
        }
    stock = optuna.load_study(study_name=name, storage=database.url)
    trials = {trial._trial_id: trial for trial in stock.get_trials(deepcopy=False)}  # noqa: SLF001 - Optuna has no public way to the id.
    return Ledger(study=study, optuna_trials=trials, **rows)


def audit(ledger: Ledger) -> dict[str, list[str]]:
    """Give the violations of each check, by what it holds."""
    return {title: list(check(ledger)) for title, check in CHECKS.items()}


def count_lost(violations: Mapping[str, list[str]]) -> int:
    """Count what was lost: trials without a result, and evaluations that are not there."""
    return sum(len(violations[title]) for title in (BUDGET, RESULTS, STEPS))


def describe_trial(ledger: Ledger, first_trial_id: int) -> list[str]:
    """Give the rows of a logical trial, for whoever looks for the cause."""
    lines = []
    for go in ledger.goes.get(first_trial_id, []):
        steps = [evaluation["step"] for evaluation in ledger.evaluations_of.get(go["attempt_id"], [])]
        trial = ledger.optuna_trials.get(go["trial_id"])
        shown = {name: go[name] for name in _SHOWN}
        lines.append(f"{shown} optuna {trial and trial.state.name} {trial and trial.value} steps {steps}")
    return lines


_SHOWN = ("attempt_id", "trial_id", "go", "worker_id", "seed", "started_at", "ended_at", "outcome", "reason", "tokens")


def _check_budget(ledger: Ledger) -> Iterator[str]:
    n_trials = ledger.study.file.budget.trials
    if len(ledger.goes) != n_trials:
        yield f"{len(ledger.goes)} trials were started of a budget of {n_trials}"
    for first_trial_id, goes in ledger.goes.items():
        if goes[-1]["outcome"] not in ENDED:
            yield f"trial {first_trial_id} has not ended: its last go is {goes[-1]['outcome']}"


def _check_results(ledger: Ledger) -> Iterator[str]:
    for first_trial_id, goes in ledger.goes.items():
        ended = [go["go"] for go in goes if go["outcome"] in ENDED]
        if ended != [goes[-1]["go"]]:
            yield f"trial {first_trial_id} has {len(ended)} accepted results, in goes {ended} of {len(goes)}"
        for go in goes:
            state = ledger.optuna_trials[go["trial_id"]].state
            if go["outcome"] is not None and state is not STATES.get(go["outcome"], TrialState.FAIL):
                yield f"trial {first_trial_id} go {go['go']} is {go['outcome']}, and {state.name} in Optuna"


def _check_values(ledger: Ledger) -> Iterator[str]:
    for first_trial_id, goes in ledger.goes.items():
        last = goes[-1]
        trial = ledger.optuna_trials[last["trial_id"]]
        if ledger.is_given_up(goes):
            continue
        if not ledger.is_known(last):
            yield f"trial {first_trial_id} is {last['outcome']} without params or seed"
            continue
        config = ledger.config(last)
        if last["outcome"] not in {expected_outcome(config), "pruned", "lost", "preempted", None}:
            yield f"trial {first_trial_id} is {last['outcome']} ({last['reason']}), not {expected_outcome(config)}"
        answer = fault_free(config, config.max_steps).metrics["val_loss"]
        if last["outcome"] == "complete" and trial.value != answer:
            yield f"trial {first_trial_id} has the value {trial.value}, not {answer}"
        if last["outcome"] == "pruned" and trial.value not in _answers(config, since=_pruned_at(last)):
            yield f"trial {first_trial_id} ({last['reason']}) has the value {trial.value}, of no step since"


def _answers(config: Config, since: int) -> list[float]:
    steps = [step for step in evaluated_steps(config) if step >= since]
    return [fault_free(config, step).metrics["val_loss"] for step in steps]


def _check_curves(ledger: Ledger) -> Iterator[str]:
    attempts = {attempt["attempt_id"]: attempt for attempt in ledger.attempts}
    for row in ledger.evaluations:
        attempt = attempts[row["attempt_id"]]
        where = f"trial {attempt['first_trial_id']} go {attempt['go']} step {row['step']}"
        if not ledger.is_known(attempt):
            yield f"{where}: an evaluation of an attempt without params or seed"
            continue
        found = (row["tokens"], row["seconds"], dict(row["metrics"]))
        answer = fault_free(ledger.config(attempt), row["step"])
        if found != (answer.tokens, answer.seconds, answer.metrics) or row["trial_id"] != attempt["trial_id"]:
            yield f"{where}: {found} of trial {row['trial_id']}, not {answer}"


def _check_steps(ledger: Ledger) -> Iterator[str]:
    """No step is missing: not in the whole, not within one go; those that ended by themselves went all the way."""
    for first_trial_id, goes in ledger.goes.items():
        known = [go for go in goes if ledger.is_known(go)]
        if not known:
            continue
        expected = evaluated_steps(ledger.config(known[-1]))
        steps = ledger.steps_of(goes)
        is_cut = goes[-1]["outcome"] in {"pruned", None} or ledger.is_given_up(goes)
        until = max((*steps, _pruned_at(goes[-1]))) if is_cut else max((0, *expected))
        for step in sorted({step for step in expected if step <= until} - steps):
            yield f"trial {first_trial_id} ({goes[-1]['outcome']}) has no evaluation of step {step}"
        for step in sorted(steps - set(expected)):
            yield f"trial {first_trial_id} has an evaluation of step {step}, which no undisturbed run has"
        for go in goes:
            yield from _missing_within(ledger, go, expected)


def _missing_within(ledger: Ledger, go: Row, expected: list[int]) -> Iterator[str]:
    steps = ledger.steps_of([go])
    for step in expected:
        if steps and min(steps) < step < max(steps) and step not in steps:
            yield f"trial {go['first_trial_id']} go {go['go']} has no evaluation of step {step} between others"


def _pruned_at(go: Row) -> int:
    found = re.search(r"at step (\d+)", go["reason"] or "")
    return int(found[1]) if found and go["outcome"] == "pruned" else 0


def _check_shown_curves(ledger: Ledger) -> Iterator[str]:
    n_shown = Counter((row["trial"], row["step"]) for row in ledger.curves)
    for (number, step), n_rows in n_shown.items():
        if n_rows != 1:
            yield f"hpopt.learning_curves shows step {step} of trial {number} {n_rows} times"
    numbers = {row["first_trial_id"]: row["trial"] for row in ledger.shown}
    for first_trial_id, goes in ledger.goes.items():
        number = numbers.get(first_trial_id)
        for step in sorted(ledger.steps_of(goes)):
            if (number, step) not in n_shown:
                yield f"hpopt.learning_curves does not show step {step} of trial {first_trial_id}"


def _check_outcomes(ledger: Ledger) -> Iterator[str]:
    for attempt in ledger.attempts:
        if attempt["outcome"] is None or attempt["ended_at"] is None:
            yield f"attempt {attempt['attempt_id']} of trial {attempt['first_trial_id']} has no outcome"


def _check_goes(ledger: Ledger) -> Iterator[str]:
    for first_trial_id, goes in ledger.goes.items():
        numbers = [go["go"] for go in goes]
        if numbers != list(range(1, len(goes) + 1)):
            yield f"trial {first_trial_id} has the goes {numbers}"
        if goes[0]["trial_id"] != first_trial_id:
            yield f"trial {first_trial_id} has another one, {goes[0]['trial_id']}, as its first go"


def _check_params(ledger: Ledger) -> Iterator[str]:
    for first_trial_id, goes in ledger.goes.items():
        seeds = {go["seed"] for go in goes} - {None}
        params = {str(sorted(ledger.optuna_trials[go["trial_id"]].params.items())) for go in goes} - {"[]"}
        if len(seeds) > 1 or len(params) > 1:
            yield f"trial {first_trial_id} has the seeds {sorted(seeds)} and the params {sorted(params)}"
        for go in goes:
            if go["config"] is not None and go["config"] != asdict(ledger.config(go)):
                yield f"trial {first_trial_id} go {go['go']} has the config {go['config']}, not {ledger.config(go)}"


def _check_rungs(ledger: Ledger) -> Iterator[str]:
    for rung in ledger.rungs:
        goes = ledger.goes.get(rung["first_trial_id"], [])
        known = [go for go in goes if ledger.is_known(go)]
        if not known or rung["step"] not in ledger.steps_of(goes):
            yield f"trial {rung['first_trial_id']} has a rung at step {rung['step']}, but no evaluation there"
            continue
        config = ledger.config(known[-1])
        earlier = [step for step in evaluated_steps(config) if rung["fraction"] * config.max_steps <= step]
        answer = fault_free(config, rung["step"]).metrics["val_loss"]
        if rung["value"] != answer or rung["step"] != earlier[0]:
            place = f"step {rung['step']} for {rung['fraction']:g} of the schedule"
            yield f"trial {rung['first_trial_id']} has {rung['value']} at {place}, not {answer} at {earlier[0]}"


def _check_lost_in_a_row(ledger: Ledger) -> Iterator[str]:
    for first_trial_id, goes in ledger.goes.items():
        n_lost = _longest_row_of_deaths(ledger, goes)
        if n_lost > MAX_LOST_IN_A_ROW:
            yield f"trial {first_trial_id} was lost {n_lost} times in a row without progress"


def _longest_row_of_deaths(ledger: Ledger, goes: list[Row]) -> int:
    """Count the goes in a row whose workers died and that got no further than those before; preempted ones are none."""
    longest = n_dead = best = 0
    for go in goes:
        steps = ledger.steps_of([go])
        if steps and max(steps) > best:
            best, n_dead = max(steps), 0
        elif go["outcome"] != "preempted":
            n_dead += go["outcome"] in {"lost", "failed"}
        longest = max(longest, n_dead)
    return longest


def _check_running(ledger: Ledger) -> Iterator[str]:
    for trial in ledger.optuna_trials.values():
        if not trial.state.is_finished():
            yield f"Optuna's trial {trial.number} is {trial.state.name}"
    for row in ledger.shown:
        if row["state"] in {"RUNNING", "WAITING"}:
            yield f"hpopt.trials shows trial {row['trial']} as {row['state']}"


def _check_stock(ledger: Ledger) -> Iterator[str]:
    """Stock Optuna knows the goes and nothing else, and its completed trials are those of our view."""
    for stray in ledger.strays:
        yield f"Optuna's trial {stray['number']} ({stray['state']}) belongs to no attempt"
    if sorted(ledger.optuna_trials) != sorted([a["trial_id"] for a in ledger.attempts] + _ids(ledger.strays)):
        yield "Optuna's trials are not those of the attempts"
    theirs = {t.number: (t.value, t.params) for t in ledger.optuna_trials.values() if t.state is TrialState.COMPLETE}
    ours = {row["trial"]: (row["value"], row["params"]) for row in ledger.shown if row["state"] == "COMPLETE"}
    for number in sorted(theirs.keys() | ours.keys()):
        if theirs.get(number) != ours.get(number):
            yield f"trial {number} is {theirs.get(number)} in Optuna, {ours.get(number)} in hpopt.trials"


def _check_intermediate(ledger: Ledger) -> Iterator[str]:
    """What Optuna was told of a trial on the way is what its evaluations say, and its last go has all of its own."""
    attempts = {attempt["trial_id"]: attempt for attempt in ledger.attempts}
    for trial_id, trial in ledger.optuna_trials.items():
        attempt = attempts.get(trial_id)
        if attempt is None or not ledger.is_known(attempt):
            continue
        config = ledger.config(attempt)
        for step, value in trial.intermediate_values.items():
            if value != fault_free(config, step).metrics["val_loss"]:
                yield f"trial {attempt['first_trial_id']} go {attempt['go']} reported {value} at step {step}"
        for step in sorted(ledger.steps_of([attempt]) - trial.intermediate_values.keys()):
            yield f"trial {attempt['first_trial_id']} go {attempt['go']} did not report step {step} to Optuna"


def _ids(rows: list[Row]) -> list[int]:
    return [row["trial_id"] for row in rows]


def _group(rows: list[Row], key: str) -> dict[int, list[Row]]:
    grouped: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row[key]].append(row)
    return dict(grouped)


BUDGET = "the budgeted trials ended, no more and no less"
RESULTS = "each trial has one accepted result, that of its last go, in Optuna too"
STEPS = "no evaluation is missing"

CHECKS: dict[str, Callable[[Ledger], Iterator[str]]] = {
    BUDGET: _check_budget,
    RESULTS: _check_results,
    "each result is the fault-free one": _check_values,
    "each evaluation is the fault-free one": _check_curves,
    STEPS: _check_steps,
    "the learning curves show each evaluation once": _check_shown_curves,
    "each attempt has an outcome": _check_outcomes,
    "goes are numbered 1 to n": _check_goes,
    "the goes of a trial share params and seed": _check_params,
    "each rung holds the fault-free value": _check_rungs,
    "no trial is lost more than 3 times in a row without progress": _check_lost_in_a_row,
    "nothing is left running": _check_running,
    "stock Optuna reads the same completed trials": _check_stock,
    "Optuna was told every evaluation": _check_intermediate,
}
