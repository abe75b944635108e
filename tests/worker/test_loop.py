"""A worker ends each trial with the right outcome, whatever the training function does, and runs the next one."""

import importlib
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from proxy import Network

from hpopt.errors import DatabaseLostError, DeviceError, InputError, Interrupted
from hpopt.storage import budget, control, queries, studies
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file
from hpopt.worker import outbox
from hpopt.worker.attempt import WorkerOptions
from hpopt.worker.loop import find_device, work

OBJECTIVE = """
import math, pathlib
import numpy as np
from dataclasses import dataclass
from hpopt.errors import Diverged, Interrupted
from hpopt.training.run import Evaluation

STEPS = 9
HOOK = ENTER = None

@dataclass(frozen=True)
class Config:
    x: float = 0.5
    kind: str = "good"
    max_steps: int = STEPS
    seed: int = 0

    def __post_init__(self):
        if self.x > 10:
            raise ValueError("x is above 10")

def train(config: Config, run):
    try:
        if ENTER: ENTER(run.folder)
        for step in range(1, STEPS + 1):
            if HOOK: HOOK(config, step)
            if run.should_stop(): raise Interrupted(f"stopped after step {step - 1}")
            if config.kind == "broken": raise RuntimeError("no such [/file]")
            if config.kind == "number": yield 5
            if config.kind == "empty": return
            if config.kind == "diverged": raise Diverged("loss is nan at step 1")
            loss = math.nan if config.kind == "nan" else config.x + 1 / step
            if config.kind == "word": loss = "low"
            if config.kind == "numpy": loss, step = np.float32(loss), np.int64(step)
            yield Evaluation(step=step, n_steps=STEPS, tokens=step * 100, seconds=step, metrics={"loss": loss})
    finally:
        pathlib.Path(run.cache).mkdir(parents=True, exist_ok=True)
        (pathlib.Path(run.cache) / f"closed-{config.x:g}-{config.kind}").touch()
"""
ALL_KINDS = re.compile('"good".*"numpy"')
STUDY = """
name = "cheap"
objective = "cheap_objective:train"
metric = "loss"
[budget]
trials = 3
[sampler]
name = "random"
[pruner]
name = "none"
[search_space]
x = { low = 0.0, high = 1.0 }
kind = { choices = ["good", "broken", "empty", "diverged", "nan", "number", "word", "numpy"] }
"""
ALL_TRIALS = "trials budget exhausted (3)"
SEARCH = """
name = "search"
objective = "cheap_objective:train"
metric = "loss"
[budget]
trials = 40
[search_space]
x = { choices = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9] }
"""
# Long enough for any event on a busy machine.
TIMEOUT_S = 40


class Sandbox:
    """A database, a cheap objective in a folder, and workers that run in this process."""

    def __init__(self, database: Database, folder: Path, objective) -> None:
        self.database = database
        self.folder = folder
        self.objective = objective
        self.log: list[str] = []
        self.options = self.make_options()

    def make_options(self, **changes):
        times = {"heartbeat_every_s": 0.1, "stale_after_s": 5, "give_up_after_s": 30, "poll_every_s": 0.1}
        return WorkerOptions(home=self.folder, **{"log": self.log.append, **times, **changes})

    def execute(self, statement):
        with self.database.begin() as connection:
            connection.execute(sa.text(statement))

    def rows(self, query):
        return queries.read_rows(self.database, query)[1]

    def steps(self):
        """Return the steps of each trial's learning curve."""
        query = "select trial, array_agg(step order by step) from hpopt.learning_curves group by 1 order by 1"
        return [steps for _, steps in self.rows(query)]

    def create(self, text=STUDY, *enqueued):
        study = studies.create_study(self.database, parse_study_file(text, "cheap.toml"))
        for params in enqueued:
            self.optuna(study).enqueue_trial(params)
        return study

    def optuna(self, study):
        return optuna.load_study(study_name=study.name, storage=self.database.optuna)

    def outcomes(self):
        return [tuple(row) for row in self.rows("select trial, outcome, value, reason from hpopt.trials order by 1")]

    def attempts(self):
        """Return the number and the outcome of each attempt, in the order in which they were started."""
        return self.rows("select attempt_number, outcome from hpopt.attempts order by attempt_id")


@pytest.fixture
def sandbox(migrated_url, tmp_path, monkeypatch):
    (tmp_path / "cheap_objective.py").write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("cheap_objective", None)
    with closing(Database(migrated_url)) as database:
        yield Sandbox(database, tmp_path, importlib.import_module("cheap_objective"))
    sys.modules.pop("cheap_objective", None)


@pytest.fixture
def link(sandbox):
    """A connection to the database that can be cut, with a Database over it."""
    url = sa.make_url(sandbox.database.url)
    with Network(url.port, 1) as network:
        (link,) = network.links
        with closing(Database(url.set(port=link.port).render_as_string(hide_password=False))) as link.database:
            yield link


def in_thread(function):
    """Run a function in a thread, and return a future of its result."""
    future = Future()

    def run():
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - the test raises it again.
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def wait_for(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def raise_at(step_of_error, error):
    def raise_error(_config, step):
        if step == step_of_error:
            raise error

    return raise_error


@pytest.mark.parametrize(
    ("kind", "outcome", "reason"),
    [
        ("good", "complete", None),
        ("broken", "failed", "RuntimeError: no such [/file]"),
        ("number", "failed", "the objective yielded 5, which is not an Evaluation"),
        ("word", "failed", "'loss' is 'low', which is not a number"),
        ("numpy", "complete", None),
        ("empty", "failed", "the objective yielded no evaluation"),
        ("diverged", "diverged", "loss is nan at step 1"),
        ("nan", "diverged", "loss is nan at step 1"),
    ],
)
def test_a_trial_ends_with_its_outcome_and_the_next_one_runs(sandbox, kind, outcome, reason):
    """A configuration that fails is a result; it must not end the worker or the study."""
    study = sandbox.create(STUDY, {"x": 0.25, "kind": kind}, {"x": 0.75, "kind": "good"})
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS
    default, enqueued, after = sandbox.outcomes()
    assert default[1] == after[1] == "complete"
    assert (enqueued[1], enqueued[3]) == (outcome, reason)


def test_a_value_that_the_config_refuses_fails_its_trial_with_the_reason(sandbox):
    study = sandbox.create(STUDY.replace("high = 1.0", "high = 100.0"), {"x": 99.0, "kind": "good"})
    work(sandbox.database, study, sandbox.options)
    assert sandbox.outcomes()[1][1:] == ("failed", None, "x is above 10")


@pytest.mark.parametrize(
    ("enqueued", "reason"),
    [
        ({"x": 99.0, "kind": "good"}, "x: enqueued, but 99.0 is outside 0.0 to 1.0"),
        ({"x": float("nan")}, "x: enqueued, but nan is outside 0.0 to 1.0"),
        ({"x": [1]}, "x: enqueued, but [1] is not a number"),
        ({"x": 10**400}, f"x: enqueued, but {10**400} is outside 0.0 to 1.0"),
        ({"kind": "strange\0\ud800"}, r"kind: enqueued, but 'strange\x00\ud800' is not one of"),
        ({"x": 0.03, "max_steps": 500}, "max_steps: enqueued, but 500 is not its value in [fixed], 9"),
        ({"x": 0.5, "kin": "good"}, "kin: enqueued, but not searched; did you mean 'kind'?"),
        ({"x": 0.5, "$(touch x)\n{}\ud800": 1}, "$(touch x) {}\ufffd: enqueued, but not searched"),
        ({"x": 0.5, "seed": 3}, "seed: enqueued, but not searched"),
    ],
)
def test_stock_optuna_can_enqueue_anything_and_the_next_trial_runs(sandbox, enqueued, reason):
    study = sandbox.create(STUDY + "[fixed]\nmax_steps = 9\n", enqueued, {"x": 0.75, "kind": "good", "max_steps": 9})
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS
    default, refused, after = sandbox.outcomes()
    assert default[1] == after[1] == "complete"
    assert refused[1] == "failed"
    assert refused[3].startswith(reason)


ADD_ATTRIBUTE = "insert into public.trial_{}_attributes (trial_id, key, value_json) values (:id, '{}', '{}')"
ADD_PARAM = "insert into public.trial_params (trial_id, param_name, param_value, distribution_json) values (:id, {})"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (ADD_ATTRIBUTE.format("system", "fixed_params", '{"x'), "fixed_params: enqueued, but not searched"),
        (ADD_ATTRIBUTE.format("system", "fixed_params", "5"), "fixed_params: enqueued, but not searched"),
        (ADD_ATTRIBUTE.format("user", "seed", "1.5"), "seed: enqueued, but not searched"),
        (ADD_ATTRIBUTE.format("user", "seed", '"'), "seed: enqueued, but not searched"),
        (ADD_ATTRIBUTE.format("user", "seed", str(2**63)), "seed: enqueued, but not searched"),
        (ADD_PARAM.format("'x', 0.5, '{\"name\"'"), "x: enqueued, but None is not a number"),
    ],
)
def test_a_damaged_trial_fails_and_the_next_one_runs(sandbox, damage, reason):
    study = sandbox.create(STUDY)
    stock = sandbox.optuna(study)
    stock.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING))
    with sandbox.database.begin() as connection:
        connection.execute(sa.text(damage), {"id": stock.trials[-1]._trial_id})
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS
    default, refused, _ = sandbox.outcomes()
    assert default[1] == "complete"
    assert refused[1] == "failed"
    assert refused[3].startswith(reason)


def test_wrong_configurations_of_stock_optuna_do_not_pause_the_study(sandbox):
    wrong = [{"x": 0.5, "max_step": 500}] * 6
    study = sandbox.create(STUDY.replace("trials = 3", "trials = 8"), *wrong)
    assert work(sandbox.database, study, sandbox.options) == "trials budget exhausted (8)"


def test_a_running_trial_that_is_ended_in_the_dashboard_keeps_that_result_and_the_next_one_runs(sandbox):
    study = sandbox.create()
    sandbox.objective.HOOK = lambda config, step: (
        sandbox.optuna(study).tell(0, 0.25) if (config.x, step) == (0.5, 5) else None
    )
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS
    assert sandbox.outcomes()[0][1:] == ("complete", 0.25, "ended outside of hpopt")


@pytest.mark.parametrize(
    ("field", "check", "outcome"),
    [
        ("root: pathlib.Path = pathlib.Path('/data')", "True", "complete"),
        ("limit: float = math.inf", "True", "complete"),
        ("limit: float = math.nan", "True", "complete"),
        ("n: int = 0", "1 / self.n", "failed"),
        ("n: int = 0", "self.__dict__['m']", "failed"),
    ],
)
def test_a_config_class_can_have_any_field_and_raise_anything(sandbox, field, check, outcome):
    (sandbox.folder / "odd_config.py").write_text(
        "import math, pathlib\nfrom dataclasses import dataclass\nimport cheap_objective\n"
        f"@dataclass(frozen=True)\nclass Config:\n    x: float = 0.5\n    seed: int = 0\n    {field}\n"
        f"    def __post_init__(self):\n        if self.x == 0.25: {check}\n"
        "def train(config: Config, run):\n"
        "    yield from cheap_objective.train(cheap_objective.Config(x=config.x), run)\n"
    )
    sys.modules.pop("odd_config", None)
    text = STUDY.replace("cheap_objective:train", "odd_config:train").split("kind =")[0]
    study = sandbox.create(text, {"x": 0.25})
    work(sandbox.database, study, sandbox.options)
    assert [row[1] for row in sandbox.outcomes()] == ["complete", outcome, "complete"]


def test_an_objective_that_calls_exit_fails_its_trial_and_the_worker_continues(sandbox):
    study = sandbox.create()
    sandbox.objective.HOOK = raise_at(2, SystemExit(0))
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS
    assert sandbox.outcomes()[0][1:] == ("failed", None, "SystemExit: 0")


def test_a_worker_of_a_deleted_study_raises_an_input_error(sandbox):
    study = sandbox.create()
    sandbox.objective.HOOK = lambda _config, step: (
        optuna.delete_study(study_name=study.name, storage=sandbox.database.optuna) if step == 4 else None
    )
    with pytest.raises(InputError, match="no study 'cheap'"):
        work(sandbox.database, study, sandbox.options)


def test_a_metric_that_is_not_reported_is_named_with_those_that_are(sandbox):
    study = sandbox.create(STUDY.replace('metric = "loss"', 'metric = "accuracy"'))
    work(sandbox.database, study, sandbox.options)
    assert "the objective reports no 'accuracy'; it reports loss" in sandbox.outcomes()[0][3]


def test_pruning_closes_the_training_function_and_the_defaults_are_not_pruned(sandbox):
    """A generator that is not closed keeps its files, processes and GPU memory."""
    text = STUDY.replace('name = "none"', 'name = "asha"').replace("trials = 3", "trials = 2")
    study = sandbox.create(ALL_KINDS.sub('"good"', text), {"x": 0.9})
    work(sandbox.database, study, sandbox.options)
    default, worse = sandbox.outcomes()
    assert default[1] == "complete"
    assert (worse[1], worse[3]) == ("pruned", "not among the best at step 1")
    assert (sandbox.folder / "cache" / "closed-0.9-good").exists()


def test_the_defaults_are_not_pruned_after_a_better_trial(sandbox):
    """All trials are compared with the defaults, which need a value at the end of the schedule."""
    text = STUDY.replace('name = "none"', 'name = "asha"').replace("trials = 3", "trials = 2")
    study = sandbox.create(text, {"x": 0.1, "kind": "good"})

    def set_state_of_defaults(state):
        sandbox.execute(f"update public.trials set state = '{state}', datetime_start = now() where number = 0")

    set_state_of_defaults("RUNNING")
    sandbox.objective.HOOK = lambda config, step: (
        set_state_of_defaults("WAITING") if (config.x, step) == (0.1, 9) else None
    )
    work(sandbox.database, study, sandbox.options)
    default, better = sandbox.outcomes()
    assert (default[1], better[1]) == ("complete", "complete")
    assert default[2] > better[2]


TWO_HOURS_PASS = "update hpopt.attempt set started_at = now() - interval '2 hours'"


def test_a_limit_in_hours_ends_the_running_trial_at_its_next_evaluation(sandbox):
    study = sandbox.create(STUDY.replace("trials = 3", "wall_hours = 1.0"))
    sandbox.objective.HOOK = lambda _config, step: sandbox.execute(TWO_HOURS_PASS) if step == 4 else None
    assert work(sandbox.database, study, sandbox.options) == "wall_hours budget exhausted (1)"
    (trial,) = [row for row in sandbox.outcomes() if row[1]]
    assert (trial[1], trial[3]) == ("pruned", "wall_hours budget exhausted (1) at step 4")


def test_a_limit_that_is_added_to_a_running_study_ends_the_running_trial(sandbox):
    study = sandbox.create()
    text = STUDY.replace("[sampler]", "wall_hours = 1.0\n[sampler]")

    def add_limit(_config, step):
        if step == 4:
            sandbox.execute(TWO_HOURS_PASS)
            studies.create_study(sandbox.database, parse_study_file(text, "cheap.toml"))

    sandbox.objective.HOOK = add_limit
    assert work(sandbox.database, study, sandbox.options) == "wall_hours budget exhausted (1)"
    assert sandbox.outcomes()[0][3] == "wall_hours budget exhausted (1) at step 4"


def test_a_worker_whose_trial_was_reassigned_logs_it_and_runs_the_next_attempt(sandbox):
    study = sandbox.create()
    fenced_at = []

    def reassign(_config, step):
        if step == 5 and not fenced_at:
            fenced_at.append(step)
            sandbox.execute("update hpopt.attempt set ended_at = now(), outcome = 'lost' where ended_at is null")
            sandbox.execute("update public.trials set state = 'FAIL' where state = 'RUNNING'")

    sandbox.objective.HOOK = reassign
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS
    assert "trial 0 was reassigned to another worker" in sandbox.log
    assert sandbox.attempts()[:2] == [[1, "lost"], [2, "complete"]]


def test_a_worker_that_is_asked_to_stop_returns_its_trial_to_the_queue(sandbox):
    study = sandbox.create()
    options = sandbox.make_options(stop=threading.Event())
    sandbox.objective.HOOK = lambda _config, step: options.stop.set() if step == 5 else None
    with pytest.raises(Interrupted):
        work(sandbox.database, study, options)
    usage = budget.read_usage(sandbox.database, study)
    assert (usage.n_finished, usage.n_running, usage.n_pending_retry) == (0, 0, 1)
    sandbox.objective.HOOK = None
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS
    assert sandbox.steps()[0] == list(range(1, 10))


def test_sixteen_workers_run_exactly_the_trials_of_the_budget(sandbox):
    """With Optuna's MaxTrialsCallback, 8 workers ran 27 of 20 trials, and 35 after a restart."""
    study = sandbox.create(ALL_KINDS.sub('"good"', STUDY.replace("trials = 3", "trials = 20")))

    def run_worker(_number):
        with closing(Database(sandbox.database.url)) as database:
            return work(database, study, sandbox.options)

    for _ in range(2):
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(run_worker, range(16))) == {"trials budget exhausted (20)"}
        assert len(sandbox.outcomes()) == 20
        assert {outcome for _, outcome, _, _ in sandbox.outcomes()} == {"complete"}


def test_training_continues_while_the_database_is_unreachable_and_no_evaluation_is_missing(sandbox, link):
    study = sandbox.create(STUDY, {"x": 0.3, "kind": "good"})
    steps_during_outage = []

    def cut_and_restore(config, step):
        if config.x != 0.3:
            return
        if step == 3:
            link.refuse()
        if 3 <= step <= 8:
            steps_during_outage.append(step)
        if step == 9:
            link.accept()

    sandbox.objective.HOOK = cut_and_restore
    assert work(link.database, study, sandbox.options) == ALL_TRIALS
    assert steps_during_outage == [3, 4, 5, 6, 7, 8]
    assert sandbox.steps()[1] == list(range(1, 10))
    assert any("the database is unreachable, training goes on" in line for line in sandbox.log)
    assert any("the database is reachable again after" in line for line in sandbox.log)
    assert not list(sandbox.folder.glob(f"runs/*/*/*/{outbox.NAME}"))


def lose_database(sandbox, link, study, *, at_step):
    """Run a worker that loses the database at a step of its first trial and gives up; return the outbox it leaves."""
    sandbox.objective.HOOK = lambda _config, step: link.refuse() if step == at_step else None
    with pytest.raises(DatabaseLostError):
        work(link.database, study, sandbox.make_options(give_up_after_s=0.5))
    sandbox.objective.HOOK = None
    (path,) = sandbox.folder.glob(f"runs/*/*/1/{outbox.NAME}")
    return path


def test_an_outbox_is_recorded_once_however_often_it_is_replayed(sandbox, link):
    study = sandbox.create()
    path = lose_database(sandbox, link, study, at_step=4)
    # No other worker marked the attempt as lost, and the outbox is replayed the next morning.
    sandbox.execute("update hpopt.attempt set started_at = now() - interval '10 hours'")
    assert outbox.replay(sandbox.database, path) == "trial 0: 6 of 6 evaluations were new; it ended as complete"
    assert outbox.replay(sandbox.database, path) == "trial 0 had ended or was reassigned: nothing was recorded"
    assert sandbox.outcomes()[0][1:3] == ("complete", 0.5 + 1 / 9)
    assert sandbox.steps() == [list(range(1, 10))]
    assert budget.read_usage(sandbox.database, study).device_hours < 0.1
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS


def test_the_next_attempt_sends_the_outbox_of_the_last_one_and_trains_nothing_again(sandbox, link):
    """A training of hours that ended during an outage is not repeated because its result was not sent."""
    study = sandbox.create()
    lose_database(sandbox, link, study, at_step=4)
    sandbox.execute("update hpopt.attempt set heartbeat_at = now() - interval '1 hour'")
    trained = []
    sandbox.objective.HOOK = lambda config, step: trained.append(step) if config.x == 0.5 else None
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS
    assert trained == []
    assert sandbox.attempts()[:2] == [[1, "lost"], [2, "complete"]]
    assert sandbox.steps()[0] == list(range(1, 10))


def test_an_outbox_of_a_reassigned_trial_changes_nothing(sandbox, link):
    study = sandbox.create()
    path = lose_database(sandbox, link, study, at_step=4)
    copy = sandbox.folder / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    sandbox.execute("update hpopt.attempt set heartbeat_at = now() - interval '1 hour'")
    work(sandbox.database, study, sandbox.options)
    all_evaluations = "select * from hpopt.evaluation order by optuna_trial_id, step"
    before = sandbox.rows(all_evaluations)
    line = outbox.replay(sandbox.database, copy)
    assert line == "trial 0 had ended or was reassigned: nothing was recorded"
    assert sandbox.rows(all_evaluations) == before


@pytest.mark.parametrize("text", ["", "{}", "text", '{"study": "cheap"}\n'])
def test_a_file_that_is_not_an_outbox_is_refused(sandbox, text):
    path = sandbox.folder / "other.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match="not an outbox of hpopt"):
        outbox.replay(sandbox.database, path)


def test_a_worker_stops_while_the_database_does_not_respond(sandbox, link):
    """A server that keeps its connections open and does not respond must not delay a preemption."""
    study = sandbox.create()
    stalled = threading.Event()
    options = sandbox.make_options(stop=threading.Event(), stop_timeout_s=0.3, give_up_after_s=900)

    def stall(_config, step):
        if step == 4:
            link.stall(replies_only=False)
            stalled.set()
            options.stop.wait(TIMEOUT_S)

    sandbox.objective.HOOK = stall
    running = in_thread(lambda: work(link.database, study, options))
    assert stalled.wait(TIMEOUT_S)
    options.stop.set()
    with pytest.raises(DatabaseLostError):
        running.result(TIMEOUT_S)
    assert list(sandbox.folder.glob(f"runs/*/*/1/{outbox.NAME}"))


def test_an_outage_of_all_workers_marks_no_attempt_as_lost(sandbox, link):
    """The first worker to be reachable again cannot tell which heartbeats stopped because of the outage."""
    study = sandbox.create(STUDY.replace("trials = 3", "trials = 2"))
    started, resume = threading.Barrier(3), threading.Event()

    def wait_at_start(_config, step):
        if step == 1:
            started.wait(TIMEOUT_S)
            resume.wait(TIMEOUT_S)

    sandbox.objective.HOOK = wait_at_start
    options = sandbox.make_options(stale_after_s=3)
    n_expired = "select count(*) from hpopt.attempt where ended_at is null and heartbeat_at < now() - interval '3.1 s'"
    with closing(Database(link.database.url)) as other:
        running = [in_thread(lambda d=d: work(d, study, options)) for d in (link.database, other)]
        started.wait(TIMEOUT_S)
        link.refuse()
        wait_for(lambda: sandbox.rows(n_expired) == [[2]])
        link.accept()
        resume.set()
        assert [worker.result(TIMEOUT_S) for worker in running] == ["trials budget exhausted (2)"] * 2
    assert [number for number, _ in sandbox.attempts()] == [1, 1]


def test_a_device_error_ends_the_worker_and_its_trial_is_retried(sandbox):
    """After a sticky CUDA error every further call of the process fails; a new process can continue."""
    study = sandbox.create()
    sandbox.objective.HOOK = raise_at(4, RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(DeviceError) as raised:
        work(sandbox.database, study, sandbox.options)
    assert raised.value.exit_code == 75
    assert sandbox.outcomes()[0][1] == "lost"
    sandbox.objective.HOOK = None
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS
    assert sandbox.outcomes()[-1][1] == "complete"


def test_running_out_of_memory_is_a_failure_of_the_configuration(sandbox):
    class OutOfMemoryError(RuntimeError):
        pass

    study = sandbox.create()
    sandbox.objective.HOOK = raise_at(4, OutOfMemoryError("CUDA error: out of memory"))
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS
    assert sandbox.outcomes()[0][1] == "failed"


def test_a_full_disk_delays_its_trial_and_fails_none(sandbox):
    """Other trials run meanwhile: a trial whose files cannot be read must not hold up the study."""
    study = sandbox.create()
    n_left = [2]

    def fill_disk(_config, step):
        if step == 4 and n_left[0]:
            n_left[0] -= 1
            descriptor = os.open("/dev/full", os.O_WRONLY)
            try:
                os.write(descriptor, b"checkpoint")
            finally:
                os.close(descriptor)

    sandbox.objective.HOOK = fill_disk
    assert work(sandbox.database, study, sandbox.make_options(disk_retry_s=2.0)) == ALL_TRIALS
    rows = sandbox.rows("select attempt_number, outcome, reason from hpopt.attempts order by attempt_id")
    preempted = [reason for _, outcome, reason in rows if outcome == "preempted"]
    assert len(preempted) == 2
    assert all("No space left on device" in reason for reason in preempted)
    # The second attempt is the first one at another trial.
    assert rows[1][0] == 1
    assert "preempted" not in {outcome for _, outcome, _, _ in sandbox.outcomes()}


def test_a_trial_of_a_paused_study_returns_to_the_queue_and_continues_after_resume(sandbox):
    study = sandbox.create()
    paused = threading.Event()

    def pause(_config, step):
        if step == 4 and not paused.is_set():
            sandbox.execute("update hpopt.study set state = 'paused', state_reason = 'lunch'")
            paused.set()

    sandbox.objective.HOOK = pause
    running = in_thread(lambda: work(sandbox.database, study, sandbox.options))
    wait_for(lambda: "paused: lunch" in sandbox.log)
    usage = budget.read_usage(sandbox.database, study)
    assert (usage.n_running, usage.n_pending_retry) == (0, 1)
    sandbox.execute("update hpopt.study set state = 'open'")
    assert running.result(TIMEOUT_S) == ALL_TRIALS
    assert "trial 0 preempted: the study is paused" in sandbox.log
    assert sandbox.steps()[0] == list(range(1, 10))


def test_a_stopped_study_ends_its_trials_at_their_next_evaluation(sandbox):
    study = sandbox.create()
    stop = "update hpopt.study set state = 'stopped', state_reason = 'enough'"
    sandbox.objective.HOOK = lambda _config, step: sandbox.execute(stop) if step == 4 else None
    assert work(sandbox.database, study, sandbox.options) == "stopped: enough"
    assert sandbox.outcomes()[0][1:] == ("pruned", 0.75, "the study was stopped at step 4")


def test_an_unknown_device_is_refused_with_the_valid_ones():
    with pytest.raises(InputError, match=r"--device: 'gpu' is not one of auto, cpu"):
        find_device("gpu")


def test_a_worker_on_the_cpu_does_not_import_torch():
    """The import takes seconds in each process, and an objective of the user's may not need it."""
    code = "import sys; from hpopt.worker.loop import find_device; print(find_device('cpu'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "cpu False\n"


def test_a_home_that_cannot_be_written_is_refused_before_a_trial_is_reserved(sandbox):
    (sandbox.folder / "runs").write_text("a file")
    with pytest.raises(InputError, match=r"^--home: .*/runs cannot be written: File exists$"):
        work(sandbox.database, sandbox.create(), sandbox.options)
    assert sandbox.rows("select * from hpopt.worker") == []


def test_a_run_folder_that_cannot_be_made_fails_its_trial_and_is_no_broken_disk(sandbox):
    study = sandbox.create()
    runs = sandbox.folder / "runs" / f"cheap-{study.created_at:%Y%m%dT%H%M%S}"
    runs.mkdir(parents=True)
    (first,) = sandbox.rows("select min(trial_id) from public.trials")[0]
    (runs / str(first)).write_text("a file")
    assert work(sandbox.database, study, sandbox.options) == ALL_TRIALS
    assert sandbox.outcomes()[0][1:] == ("failed", None, f"{runs}/{first}/1: Not a directory")
    assert {outcome for _, outcome, *_ in sandbox.outcomes()[1:]} <= {"complete", "failed", "diverged"}
    assert tuple(sandbox.attempts()[0]) == (1, "failed")


def test_pipes_sockets_and_links_in_a_run_folder_do_not_prevent_the_next_attempt(sandbox):
    study = sandbox.create(ALL_KINDS.sub('"good"', STUDY).replace("trials = 3", "trials = 1"))
    starts = []

    def leave_files(_config, step):
        if step == 1:
            starts.append(sorted(path.name for path in Path().glob("*")))
        if step == 2 and len(starts) == 1:
            os.mkfifo("pipe")
            Path("link").symlink_to("nowhere")
            Path("part").mkdir()
            Path("part/file").write_text("x")
            sandbox.options.stop.set()

    def enter(run_folder):
        os.chdir(run_folder)

    sandbox.objective.HOOK = leave_files
    sandbox.objective.ENTER = enter
    with pytest.raises(Interrupted):
        work(sandbox.database, study, sandbox.options)
    assert work(sandbox.database, study, sandbox.make_options()) == "trials budget exhausted (1)"
    assert starts == [[], ["link", "part"]]


def test_a_flood_of_evaluations_is_recorded_whole_and_compared_at_the_first_step_of_each_rung(sandbox):
    """Those that wait for the database share a statement, which compares the trial by its last evaluation."""
    text = ALL_KINDS.sub('"good"', STUDY).replace('name = "none"', 'name = "asha"\nmin_fraction = 0.1')
    study = sandbox.create(text.replace("trials = 3", "trials = 1"))
    sandbox.objective.STEPS = 2_000
    n_before = n_transactions(sandbox)
    work(sandbox.database, study, sandbox.options)
    assert sandbox.steps() == [list(range(1, 2_001))]
    assert [tuple(row) for row in sandbox.rows("select fraction, step from hpopt.rung order by 1")] == [
        (0.1, 200), (pytest.approx(0.3), 600), (pytest.approx(0.9), 1800)
    ]  # fmt: skip
    stock = sandbox.optuna(study).trials[0]
    assert list(stock.intermediate_values) == list(range(1, 2_001))
    assert n_transactions(sandbox) - n_before < 1_900


def n_transactions(sandbox):
    sandbox.execute("select pg_stat_force_next_flush()")
    (row,) = sandbox.rows("select xact_commit from pg_stat_database where datname = current_database()")
    return row[0]


def test_a_study_whose_region_runs_out_of_memory_reaches_its_budget_with_few_failures(sandbox):
    """Seven of nine choices, the defaults among them, do not fit: those that fail teach the sampler to avoid them."""
    sandbox.objective.STEPS = 1

    def allocate(config, _step):
        if config.x > 0.25:
            raise RuntimeError(f"CUDA out of memory. Tried to allocate {100 * config.x:.2f} GiB")

    sandbox.objective.HOOK = allocate
    assert work(sandbox.database, sandbox.create(SEARCH), sandbox.options) == "trials budget exhausted (40)"
    n_failed = sum(outcome == "failed" for _, outcome, _, _ in sandbox.outcomes())
    assert 3 <= n_failed <= 15


def test_a_function_with_an_error_pauses_the_study_and_is_run_again_when_it_is_mended(sandbox):
    """Its failures do not use up the budget."""
    sandbox.objective.STEPS = 1
    study = sandbox.create(SEARCH.replace("40", "6"))
    sandbox.objective.HOOK = lambda config, _step: config.missing

    def mend(line):
        if line.startswith("paused: 5 trials in a row failed: AttributeError"):
            sandbox.objective.HOOK = None
            assert control.retry(sandbox.database, study)[1].n_pending_retry == 5
            control.resume(sandbox.database, study)

    assert work(sandbox.database, study, sandbox.make_options(log=mend)) == "trials budget exhausted (6)"
    assert [outcome for _, outcome, _, _ in sandbox.outcomes()] == ["complete"] * 6
    assert [outcome for _, outcome in sandbox.attempts()] == ["failed"] * 5 + ["complete"] * 6


def test_the_folders_of_the_best_trials_are_kept_and_recorded(sandbox):
    text = ALL_KINDS.sub('"good"', STUDY).replace("[budget]", "keep = 2\n[budget]").replace("trials = 3", "trials = 5")
    study = sandbox.create(text, *({"x": x, "kind": "good"} for x in (0.9, 0.1, 0.3, 0.2)))
    sandbox.objective.ENTER = lambda folder: (folder / "model").write_text("weights")
    work(sandbox.database, study, sandbox.options)
    kept = sandbox.rows("select params->>'x', folder from hpopt.trials where folder is not null order by value")
    assert [x for x, _ in kept] == ["0.1", "0.2"]
    assert sorted(sandbox.folder.glob("runs/*/*/*/model")) == sorted(Path(folder, "model") for _, folder in kept)


def test_a_study_that_keeps_no_folder_deletes_all(sandbox):
    study = sandbox.create(ALL_KINDS.sub('"good"', STUDY).replace("[budget]", "keep = 0\n[budget]"))
    work(sandbox.database, study, sandbox.options)
    assert list(sandbox.folder.glob("runs/*/*")) == []


def test_the_best_evaluation_is_the_value_where_the_study_says_so(sandbox):
    """Its last value is worse: the metric passes through its best at the first step."""
    text = SEARCH.replace('metric = "loss"', 'metric = "loss"\ndirection = "maximize"\nsummary = "best"').replace(
        "40", "1"
    )
    work(sandbox.database, sandbox.create(text), sandbox.options)
    assert sandbox.outcomes()[0][2] == 1.5
    assert "trial 0 complete loss 1.5000" in sandbox.log
