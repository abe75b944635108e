"""The states of attempts under any order of calls by several workers, against a model of what the calls promise."""

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from hpopt.analysis.trials import Outcome
from hpopt.errors import Fenced
from hpopt.storage import attempts, budget, control, studies
from hpopt.storage.attempts import Attempt
from hpopt.study.reading import parse_study_file

N_TRIALS = 3
# After so many losses without a new evaluation a trial has failed.
N_LOSSES = 3
N_WORKERS = 3
FINAL = {"complete", "pruned", "diverged", "failed"}
STUDY = """
name = "states-{number}"
[budget]
trials = {n_trials}
[sampler]
name = "random"
[pruner]
name = "none"
[search_space]
momentum = {{ low = 0.8, high = 0.99 }}
"""
numbers = itertools.count()


@dataclass
class Trial:
    """What is known of a trial: the outcomes of its attempts in order, and its last step."""

    outcomes: list[str | None] = field(default_factory=list)
    last_step: int = 0
    # The number of the attempt that reached it, from 1.
    reached_by: int = 0

    def end(self, outcome: str) -> str:
        """End the running attempt and return its outcome: a trial that is lost too often without progress fails."""
        if outcome == "lost":
            since = [each for each in self.outcomes[self.reached_by :] if each != "preempted"]
            outcome = "failed" if len(since) >= N_LOSSES else "lost"
        self.outcomes[-1] = outcome
        return outcome


@dataclass
class Worker:
    """A worker and the attempt that it believes to hold."""

    worker_id: int
    attempt: Attempt | None = None
    is_started: bool = False
    is_fenced: bool = False


WORKERS = st.integers(0, N_WORKERS - 1)
ENDS = st.sampled_from(["complete", "pruned", "diverged", "failed", "preempted", "lost"])


class Attempts(RuleBasedStateMachine):
    """Workers of one study, each of which calls what a worker calls, in any order."""

    make_fleet = None
    database = None

    def __init__(self):
        super().__init__()
        text = STUDY.format(number=next(numbers), n_trials=N_TRIALS)
        study = studies.create_study(self.database, parse_study_file(text, "states.toml"))
        self.fleet = self.make_fleet(study)
        self.workers = [Worker(self.fleet.join()) for _ in range(N_WORKERS)]
        self.trials: dict[int, Trial] = {}
        self.is_open = True
        self.words = map("".join, itertools.product("abcdefghij", repeat=4))

    def holding(self, *, is_fenced=None):
        """Return the workers that believe to hold an attempt."""
        holding = [worker for worker in self.workers if worker.attempt is not None]
        return holding if is_fenced is None else [worker for worker in holding if worker.is_fenced == is_fenced]

    def has_holding(self):
        return bool(self.holding())

    def has_held(self):
        return bool(self.holding(is_fenced=False))

    def has_free(self):
        return len(self.holding(is_fenced=False)) < N_WORKERS

    @precondition(has_held)
    @rule(index=WORKERS)
    def reserve_again(self, index):
        """A reservation is repeated after a lost reply."""
        held = self.holding(is_fenced=False)
        worker = held[index % len(held)]
        assert self.fleet.reserve(worker.worker_id).attempt_id == worker.attempt.attempt_id

    @precondition(has_free)
    @rule(index=WORKERS)
    def reserve(self, index):
        free = [worker for worker in self.workers if worker.attempt is None or worker.is_fenced]
        worker = free[index % len(free)]
        reserved = self.fleet.reserve(worker.worker_id)
        waiting = [
            trial_id for trial_id in sorted(self.trials) if self.trials[trial_id].outcomes[-1] in {"lost", "preempted"}
        ]
        if not self.is_open or not (waiting or len(self.trials) < N_TRIALS):
            assert reserved is None
            return
        assert reserved is not None
        if waiting:
            assert reserved.trial_id == waiting[0]
        else:
            assert reserved.trial_id not in self.trials
        trial = self.trials.setdefault(reserved.trial_id, Trial())
        trial.outcomes.append(None)
        assert reserved.attempt_number == len(trial.outcomes)
        worker.attempt, worker.is_started, worker.is_fenced = reserved, False, False

    @precondition(has_holding)
    @rule(index=WORKERS, n_steps=st.integers(1, 3))
    def train(self, index, n_steps):
        """Start the attempt if it has not started, and record evaluations, each of them twice."""
        holding = self.holding()
        worker = holding[index % len(holding)]
        trial = self.trials[worker.attempt.trial_id]
        for _ in range(n_steps):
            try:
                if not worker.is_started:
                    self.start(worker.attempt)
                    assert not worker.is_fenced
                step = trial.last_step + 1
                assert self.fleet.record(worker.attempt, step) == self.fleet.record(worker.attempt, step)
            except Fenced:
                assert worker.is_fenced
                return
            assert not worker.is_fenced
            worker.is_started = True
            trial.last_step, trial.reached_by = step, len(trial.outcomes)

    def start(self, attempt):
        attempts.start(
            self.database, self.fleet.study, attempt, {"momentum": 0.9}, seed=1, config={}, data_fingerprint=None
        )

    @precondition(has_holding)
    @rule(index=WORKERS, outcome=ENDS)
    def finish(self, index, outcome):
        """Also repeated after a lost reply."""
        holding = self.holding()
        worker = holding[index % len(holding)]
        value = 1.0 if outcome in {"complete", "pruned"} else None
        # Five failures for one reason would pause the study.
        reason = next(self.words) if outcome in {"failed", "lost"} else None
        try:
            for _ in range(2):
                self.fleet.finish(worker.attempt, outcome, value, reason)
        except Fenced:
            assert worker.is_fenced
        else:
            if worker.is_fenced:
                # What another worker has written is what this one wanted to.
                assert outcome in {"lost", "failed"}
            else:
                self.trials[worker.attempt.trial_id].end(outcome)
        worker.attempt, worker.is_fenced = None, False

    @precondition(has_held)
    @rule(index=WORKERS)
    def lose(self, index):
        """Let the heartbeat of a worker expire, and another one reap its attempt."""
        held = self.holding(is_fenced=False)
        worker = held[index % len(held)]
        assert self.fleet.lose(worker.attempt) == 1
        self.trials[worker.attempt.trial_id].end("lost")
        worker.is_fenced = True

    @rule(index=WORKERS)
    def heartbeat(self, index):
        """Heartbeats say who holds an attempt, and none of them has expired."""
        worker = self.workers[index]
        assert self.fleet.reap() == 0
        reply = self.fleet.heartbeat(worker.attempt, worker.worker_id)
        assert reply.is_held == (worker.attempt is not None and not worker.is_fenced)
        assert reply.state == ("open" if self.is_open else "paused")

    @rule()
    def pause_or_resume(self):
        change = control.pause if self.is_open else control.resume
        change(self.database, self.fleet.study)
        self.is_open = not self.is_open

    @invariant()
    def the_database_agrees(self):
        study_id = self.fleet.study.study_id
        rows = self.fleet.rows(
            f"select trial_id, outcome from hpopt.attempt where study_id = {study_id} order by trial_id, attempt_number"
        )
        outcomes = {
            trial_id: [row.outcome for row in group]
            for trial_id, group in itertools.groupby(rows, key=lambda row: row.trial_id)
        }
        assert outcomes == {trial_id: trial.outcomes for trial_id, trial in self.trials.items()}
        for trial in self.trials.values():
            assert not FINAL & {*trial.outcomes[:-1]}
            assert None not in trial.outcomes[:-1]
        steps = self.fleet.rows(
            f"select a.trial_id, max(e.step) as step, count(distinct e.step) as n from hpopt.evaluation e"
            f" join hpopt.attempt a using (attempt_id) where a.study_id = {study_id} group by 1"
        )
        assert {row.trial_id: (row.step, row.n) for row in steps} == {
            trial_id: (trial.last_step, trial.last_step) for trial_id, trial in self.trials.items() if trial.last_step
        }

    @invariant()
    def the_budget_is_exact(self):
        usage = budget.read_usage(self.database, self.fleet.study)
        last = [trial.outcomes[-1] for trial in self.trials.values()]
        assert len(last) <= N_TRIALS
        assert usage.n_finished == sum(outcome in FINAL for outcome in last)
        assert usage.n_running == last.count(None)
        assert usage.n_pending_retry == last.count("lost") + last.count("preempted")

    @invariant()
    def stock_optuna_sees_the_same_states(self):
        rows = self.fleet.rows(
            "select a.outcome, t.state::text as state from hpopt.attempt a"
            f" join public.trials t on t.trial_id = a.optuna_trial_id where a.study_id = {self.fleet.study.study_id}"
        )
        for row in rows:
            assert row.state == ("RUNNING" if row.outcome is None else Outcome(row.outcome).optuna_state)


def run(database, make_fleet, n_examples, n_steps):
    machine = type("Machine", (Attempts,), {"make_fleet": staticmethod(make_fleet), "database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=n_examples,
            stateful_step_count=n_steps,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_order_of_calls_keeps_the_budget_and_one_outcome_for_each_trial(database, make_fleet):
    run(database, make_fleet, n_examples=12, n_steps=40)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_any_longer_order_of_calls_keeps_the_budget_and_one_outcome_for_each_trial(database, make_fleet):
    run(database, make_fleet, n_examples=100, n_steps=60)
