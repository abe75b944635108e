"""A worker gets every kind of trial to its right end, and the next one after it."""

import importlib
import os
import re
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from proxy import Network

from hpopt.errors import DatabaseLostError, DeviceError, InputError, Interrupted
from hpopt.storage import budget, migrate, queries, studies
from hpopt.storage.database import Database
from hpopt.worker import attempt, outbox
from hpopt.worker.attempt import WorkerOptions
from hpopt.worker.loop import work

OBJECTIVE = """
import math, pathlib
import numpy as np
from dataclasses import dataclass
from hpopt.errors import Diverged, Interrupted
from hpopt.training.run import Evaluation
from hpopt.study.reading import parse_study_file
from hpopt.study.reading import parse_study_file

STEPS = 9
HOOK = None

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
        for step in range(1, STEPS + 1):
            if HOOK: HOOK(config, step)
            if run.should_stop(): raise Interrupted(f"stopped after step {step - 1}")
            if config.kind == "broken": raise RuntimeError("no such [/file]")
            if config.kind == "odd": yield 5
            if config.kind == "empty": return
            if config.kind == "diverged": raise Diverged("loss is nan at step 1")
            loss = math.nan if config.kind == "nan" else config.x + 1 / step
            if config.kind == "word": loss = "low"
            if config.kind == "numpy": loss, step = np.float32(loss), np.int64(step)
            yield Evaluation(step=step, n_steps=STEPS, tokens=step * 100, seconds=step, metrics={"loss": loss})
    finally:
        (run.folder / "closed").touch()
        pathlib.Path(run.cache).mkdir(parents=True, exist_ok=True)
        (pathlib.Path(run.cache) / f"closed-{config.x:g}-{config.kind}").touch()
"""
ONLY_GOOD = re.compile('"good".*"numpy"')
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
kind = { choices = ["good", "broken", "empty", "diverged", "nan", "odd", "word", "numpy"] }
"""


class Workshop:
    """A database, a cheap objective, and a worker that runs in this process."""

    def __init__(self, database: Database, folder: Path, objective) -> None:
        self.database = database
        self.folder = folder
        self.objective = objective
        self.said: list[str] = []
        self.settings = self.settle()

    def settle(self, **changed):
        patience = {"heartbeat_every_s": 0.1, "stale_after_s": 5, "give_up_after_s": 30, **changed}
        return WorkerOptions(home=self.folder, say=self.said.append, **patience)

    def execute(self, statement):
        with self.database.begin() as connection:
            connection.execute(sa.text(statement))

    def steps(self):
        """The steps of each trial's learning curve."""
        rows = queries.read_rows(
            self.database,
            "select trial, array_agg(step order by step) from hpopt.learning_curves group by 1 order by 1",
        )[1]
        return [steps for _, steps in rows]

    def create(self, text=STUDY, *points):
        study = studies.create_study(self.database, parse_study_file(text, "cheap.toml"))
        enqueue = optuna.load_study(study_name=study.name, storage=self.database.optuna)
        for point in points:
            enqueue.enqueue_trial(point)
        return study

    def outcomes(self):
        with self.database.begin() as connection:
            query = sa.text("select trial, outcome, value, reason from hpopt.trials order by trial")
            return [tuple(row) for row in connection.execute(query)]


@pytest.fixture
def workshop(database_url, tmp_path, monkeypatch):
    (tmp_path / "cheap_objective.py").write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("cheap_objective", None)
    objective = importlib.import_module("cheap_objective")
    database = Database(database_url)
    migrate.upgrade(database)
    yield Workshop(database, tmp_path, objective)
    database.close()
    sys.modules.pop("cheap_objective", None)


@pytest.fixture
def link(workshop):
    """A way to the database that can be cut, and a worker's view of the database over it."""
    url = sa.make_url(workshop.database.url)
    with Network(url.port, 1) as network:
        (link,) = network.links
        link.database = Database(url.set(port=link.port).render_as_string(hide_password=False))
        yield link
        link.database.close()


def in_thread(call):
    """Run a worker beside the test; gives a function that waits for what it returned or raised."""
    with_result = Future()

    def run():
        try:
            with_result.set_result(call())
        except Exception as error:  # noqa: BLE001 - the test raises it again.
            with_result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return with_result


@pytest.mark.parametrize(
    ("kind", "outcome", "reason"),
    [
        ("good", "complete", None),
        ("broken", "failed", "RuntimeError: no such [/file]"),
        ("odd", "failed", "the objective yielded 5, which is no Evaluation"),
        ("word", "failed", "ValueError: could not convert string to float: 'low'"),
        ("numpy", "complete", None),
        ("empty", "failed", "the objective yielded no evaluation"),
        ("diverged", "diverged", "loss is nan at step 1"),
        ("nan", "diverged", "loss is nan at step 1"),
    ],
)
def test_a_trial_ends_as_what_it_was_and_the_study_goes_on(workshop, kind, outcome, reason):
    """A configuration that fails is a result; it must not take the worker or the study with it."""
    point = {"x": 0.25, "kind": kind}
    study = workshop.create(STUDY, point, {"x": 0.75, "kind": "good"})
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    default, enqueued, after = workshop.outcomes()
    assert default[1] == after[1] == "complete"
    assert (enqueued[1], enqueued[3]) == (outcome, reason)


def test_a_training_function_that_is_no_generator_fails_with_what_it_gave(workshop):
    (workshop.folder / "plain_objective.py").write_text(
        "from cheap_objective import Config\ndef train(config: Config, run): return 5\n"
    )
    study = workshop.create(STUDY.replace("cheap_objective:train", "plain_objective:train"))
    work(workshop.database, study, workshop.settings)
    assert workshop.outcomes()[0][3] == "plain_objective:train is no generator function: it returned 5"


def test_a_configuration_that_was_enqueued_past_the_study_file_fails_with_its_reason(workshop):
    study = workshop.create(STUDY, {"x": 99.0, "kind": "good"})
    work(workshop.database, study, workshop.settings)
    assert workshop.outcomes()[1][1:] == ("failed", None, "x is above 10")


def test_a_choice_that_was_enqueued_past_the_study_file_fails_with_its_reason(workshop):
    study = workshop.create(STUDY, {"x": 0.5, "kind": "strange"})
    work(workshop.database, study, workshop.settings)
    assert workshop.outcomes()[1][1] == "failed"
    assert "'strange'" in workshop.outcomes()[1][3]


def test_a_trial_that_somebody_ended_meanwhile_is_left_alone_and_the_next_one_taken(workshop):
    """The dashboard lets everybody tell a running trial."""
    study = workshop.create()

    def end_it(config, step):
        if config.x == 0.5 and step == 5:
            optuna.load_study(study_name=study.name, storage=workshop.database.optuna).tell(0, 0.25)

    workshop.objective.HOOK = end_it
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    assert workshop.outcomes()[0][1:] == ("complete", 0.25, "ended outside of hpopt")


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
def test_a_config_of_the_users_own_may_hold_and_raise_anything(workshop, field, check, outcome):
    (workshop.folder / "odd_config.py").write_text(
        "import math, pathlib\nfrom dataclasses import dataclass\nimport cheap_objective\n"
        f"@dataclass(frozen=True)\nclass Config:\n    x: float = 0.5\n    seed: int = 0\n    {field}\n"
        f"    def __post_init__(self):\n        if self.x == 0.25: {check}\n"
        "def train(config: Config, run):\n"
        "    yield from cheap_objective.train(cheap_objective.Config(x=config.x), run)\n"
    )
    sys.modules.pop("odd_config", None)
    text = STUDY.replace("cheap_objective:train", "odd_config:train").split("kind =")[0]
    study = workshop.create(text, {"x": 0.25})
    work(workshop.database, study, workshop.settings)
    assert [row[1] for row in workshop.outcomes()] == ["complete", outcome, "complete"]


def test_an_objective_that_exits_fails_its_trial_and_not_the_worker(workshop):
    study = workshop.create()
    workshop.objective.HOOK = _raise_at(2, SystemExit(0))
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    assert workshop.outcomes()[0][1:] == ("failed", None, "SystemExit: 0")


def test_a_study_that_is_deleted_ends_its_workers_with_one_line(workshop):
    study = workshop.create()
    delete = lambda: optuna.delete_study(study_name=study.name, storage=workshop.database.optuna)  # noqa: E731
    workshop.objective.HOOK = lambda _config, step: delete() if step == 4 else None
    with pytest.raises(InputError, match="no study 'cheap'"):
        work(workshop.database, study, workshop.settings)


def test_a_limit_that_is_set_meanwhile_ends_the_running_trial(workshop):
    study = workshop.create()

    text = STUDY.replace("[sampler]", "wall_hours = 1.0\n[sampler]")
    workshop.objective.HOOK = lambda _config, step: (
        (
            workshop.execute("update hpopt.attempt set started_at = now() - interval '2 hours'"),
            studies.create_study(workshop.database, parse_study_file(text, "cheap.toml")),
        )
        if step == 4
        else None
    )
    assert work(workshop.database, study, workshop.settings) == "1 hours passed"
    assert workshop.outcomes()[0][3] == "the budget ended at step 4: 1 hours passed"


def test_a_metric_that_is_not_reported_is_named_with_those_that_are(workshop):
    study = workshop.create(STUDY.replace('metric = "loss"', 'metric = "accuracy"'))
    work(workshop.database, study, workshop.settings)
    assert "the objective reports no 'accuracy'; it reports loss" in workshop.outcomes()[0][3]


def test_pruning_closes_the_training_function_and_spares_the_defaults(workshop):
    """A generator that is only dropped leaves its files, processes and GPU memory behind."""
    text = STUDY.replace('name = "none"', 'name = "asha"').replace("trials = 3", "trials = 2")
    study = workshop.create(ONLY_GOOD.sub('"good"', text), {"x": 0.9})
    work(workshop.database, study, workshop.settings)
    default, worse = workshop.outcomes()
    assert default[1] == "complete"
    assert (worse[1], worse[3]) == ("pruned", "not among the best at step 1")
    assert (workshop.folder / "cache" / "closed-0.9-good").exists()


def test_the_defaults_are_not_pruned_by_a_better_trial_before_them(workshop):
    """Everything is measured against them, so they need a value at the end of the schedule."""
    text = STUDY.replace('name = "none"', 'name = "asha"').replace("trials = 3", "trials = 2")
    study = workshop.create(text, {"x": 0.1, "kind": "good"})

    def set_the_defaults_to(state):
        with workshop.database.begin() as connection:
            query = "update public.trials set state = :state, datetime_start = now() where number = 0"
            connection.execute(sa.text(query.replace(":state", f"'{state}'")))

    set_the_defaults_to("RUNNING")
    workshop.objective.HOOK = lambda config, step: (
        set_the_defaults_to("WAITING") if (config.x, step) == (0.1, 9) else None
    )
    work(workshop.database, study, workshop.settings)
    default, better = workshop.outcomes()
    assert (default[1], better[1]) == ("complete", "complete")
    assert default[2] > better[2]


def test_the_hours_are_checked_at_every_evaluation(workshop):
    study = workshop.create(STUDY.replace("trials = 3", "wall_hours = 1.0"))

    def let_an_hour_pass(_config, step):
        if step == 4:
            with workshop.database.begin() as connection:
                connection.execute(sa.text("update hpopt.attempt set started_at = now() - interval '2 hours'"))

    workshop.objective.HOOK = let_an_hour_pass
    assert work(workshop.database, study, workshop.settings) == "1 hours passed"
    (trial,) = [row for row in workshop.outcomes() if row[1]]
    assert (trial[1], trial[3]) == ("pruned", "the budget ended at step 4: 1 hours passed")


def test_a_worker_whose_trial_was_handed_on_says_so_and_takes_the_next(workshop):
    study = workshop.create()
    fenced = []

    def hand_it_on(_config, step):
        if step == 5 and not fenced:
            fenced.append(step)
            with workshop.database.begin() as connection:
                ended = "update hpopt.attempt set ended_at = now(), outcome = 'lost' where ended_at is null"
                connection.execute(sa.text(ended))
                connection.execute(sa.text("update public.trials set state = 'FAIL' where state = 'RUNNING'"))

    workshop.objective.HOOK = hand_it_on
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    assert "trial 0 was handed on to another worker" in workshop.said
    goes = queries.read_rows(workshop.database, "select go, outcome from hpopt.attempt order by attempt_id")[1]
    assert goes[:2] == [[1, "lost"], [2, "complete"]]


def test_a_stopped_worker_hands_its_trial_back(workshop):
    study = workshop.create()
    stop = threading.Event()
    workshop.objective.HOOK = lambda _config, step: stop.set() if step == 5 else None
    settings = WorkerOptions(home=workshop.folder, say=workshop.said.append, stop=stop)
    with pytest.raises(Interrupted):
        work(workshop.database, study, settings)
    counted = budget.read_usage(workshop.database, study)
    assert (counted.n_finished, counted.n_running, counted.n_waiting) == (0, 0, 1)
    workshop.objective.HOOK = None
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    curve = queries.read_table(workshop.database, study).trials[0].curve
    assert [point.step for point in curve] == list(range(1, 10))


def test_sixteen_workers_make_as_many_trials_as_the_budget_has(workshop):
    """Optuna's own MaxTrialsCallback made 27 of 20 with 8 workers, and 35 when it was started again."""
    study = workshop.create(ONLY_GOOD.sub('"good"', STUDY.replace("trials = 3", "trials = 20")))

    def run_one(_place):
        database = Database(workshop.database.url)
        try:
            return work(database, study, workshop.settings)
        finally:
            database.close()

    for _ in range(2):
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(run_one, range(16))) == {"20 trials done"}
        assert len(workshop.outcomes()) == 20
        assert {outcome for _, outcome, _, _ in workshop.outcomes()} == {"complete"}


def test_training_goes_on_while_the_database_is_away_and_nothing_is_missing_afterwards(workshop, link):
    study = workshop.create(STUDY, {"x": 0.3, "kind": "good"})
    steps_meanwhile = []

    def cut_and_mend(config, step):
        if config.x == 0.3 and step == 3:
            link.refuse()
        if config.x == 0.3 and 3 <= step <= 8:
            steps_meanwhile.append(step)
        if config.x == 0.3 and step == 9:
            link.accept()

    workshop.objective.HOOK = cut_and_mend
    assert work(link.database, study, workshop.settings) == "3 trials done"
    assert steps_meanwhile == [3, 4, 5, 6, 7, 8]
    assert workshop.steps()[1] == list(range(1, 10))
    assert any("the database is away, going on without it" in line for line in workshop.said)
    assert any("the database is back after" in line for line in workshop.said)
    assert not list(workshop.folder.glob(f"runs/*/*/*/{outbox.NAME}"))


def give_up_on(workshop, link, study, *, at_step):
    """Let a worker lose the database at a step of its first trial for good; gives the journal it leaves."""
    workshop.objective.HOOK = lambda _config, step: link.refuse() if step == at_step else None
    with pytest.raises(DatabaseLostError):
        work(link.database, study, workshop.settle(give_up_after_s=1.5))
    workshop.objective.HOOK = None
    (left,) = workshop.folder.glob(f"runs/*/*/1/{outbox.NAME}")
    return left


def test_what_a_worker_could_not_deliver_is_taken_in_once(workshop, link):
    study = workshop.create()
    left = give_up_on(workshop, link, study, at_step=4)
    # Nobody was there to reap it, and whoever replays it comes the next morning.
    workshop.execute("update hpopt.attempt set started_at = now() - interval '10 hours'")
    assert outbox.replay(workshop.database, left) == "trial 0: 6 of 6 evaluations were new; it ended as complete"
    assert outbox.replay(workshop.database, left) == "trial 0 was ended or handed on before: nothing was taken in"
    assert workshop.outcomes()[0][1:3] == ("complete", 0.5 + 1 / 9)
    assert workshop.steps() == [list(range(1, 10))]
    assert budget.read_usage(workshop.database, study).device_hours < 0.1
    assert work(workshop.database, study, workshop.settings) == "3 trials done"


def test_the_next_go_tells_what_the_last_could_not_and_trains_nothing_again(workshop, link):
    """A training of hours that ended while the database was away is not repeated for want of a message."""
    study = workshop.create()
    give_up_on(workshop, link, study, at_step=4)
    workshop.execute("update hpopt.attempt set heartbeat_at = now() - interval '1 hour'")
    trained = []
    workshop.objective.HOOK = lambda config, step: trained.append(step) if config.x == 0.5 else None
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    assert trained == []
    goes = queries.read_rows(workshop.database, "select go, outcome from hpopt.attempts order by attempt_id")[1]
    assert goes[:2] == [[1, "lost"], [2, "complete"]]
    assert workshop.steps()[0] == list(range(1, 10))


def test_a_journal_of_a_trial_that_was_handed_on_changes_nothing(workshop, link):
    study = workshop.create()
    left = give_up_on(workshop, link, study, at_step=4)
    kept = workshop.folder / "kept.jsonl"
    kept.write_bytes(left.read_bytes())
    workshop.execute("update hpopt.attempt set heartbeat_at = now() - interval '1 hour'")
    work(workshop.database, study, workshop.settings)
    before = queries.read_rows(workshop.database, "select * from hpopt.evaluation order by trial_id, step")
    said = outbox.replay(workshop.database, kept)
    assert said == "trial 0 was ended or handed on before: nothing was taken in"
    assert queries.read_rows(workshop.database, "select * from hpopt.evaluation order by trial_id, step") == before


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"study": "cheap"}\n'])
def test_a_file_that_is_no_journal_is_refused(workshop, text):
    path = workshop.folder / "odd.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match="not a journal of hpopt"):
        outbox.replay(workshop.database, path)


def test_a_worker_is_stopped_within_ten_seconds_while_the_database_hangs(workshop, link):
    """A server that keeps its connection and says nothing must not hold up a preemption."""
    study = workshop.create()
    stop = threading.Event()
    stalled = threading.Event()

    def stall(_config, step):
        if step == 4:
            link.stall(replies_only=False)
            stalled.set()
        time.sleep(0.05)

    workshop.objective.HOOK = stall
    settings = WorkerOptions(home=workshop.folder, say=workshop.said.append, stop=stop)
    running = in_thread(lambda: work(link.database, study, settings))
    assert stalled.wait(20)
    began = time.monotonic()
    stop.set()
    with pytest.raises(DatabaseLostError):
        running.result(timeout=15)
    assert time.monotonic() - began < 10
    assert list(workshop.folder.glob(f"runs/*/*/1/{outbox.NAME}"))


def test_an_outage_that_cut_off_all_workers_hands_no_trial_on(workshop, link):
    """Each would take the others for dead when it is the first to come back."""
    study = workshop.create(STUDY.replace("trials = 3", "trials = 2"))
    started = threading.Barrier(3)
    go_on = threading.Event()

    def wait_at_the_start(_config, step):
        if step == 1:
            started.wait(20)
            go_on.wait(20)

    workshop.objective.HOOK = wait_at_the_start
    patience = {"heartbeat_every_s": 0.2, "stale_after_s": 3.0}
    other = Database(link.database.url)
    running = [in_thread(lambda d=d: work(d, study, workshop.settle(**patience))) for d in (link.database, other)]
    started.wait(20)
    link.refuse()
    time.sleep(4.0)
    link.accept()
    go_on.set()
    assert [worker.result(timeout=40) for worker in running] == ["2 trials done"] * 2
    goes = queries.read_rows(workshop.database, "select go from hpopt.attempts")[1]
    assert goes == [[1], [1]]
    other.close()


def test_a_device_that_is_of_no_use_any_more_ends_the_worker_and_not_the_trial(workshop):
    """After a sticky CUDA error every further call of the process fails; a new process goes on."""
    study = workshop.create()
    workshop.objective.HOOK = _raise_at(4, RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(DeviceError) as ended:
        work(workshop.database, study, workshop.settings)
    assert ended.value.exit_code == 75
    assert workshop.outcomes()[0][1] == "lost"
    workshop.objective.HOOK = None
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    assert workshop.outcomes()[-1][1] == "complete"


def test_running_out_of_memory_is_a_failure_of_the_configuration(workshop):
    class OutOfMemoryError(RuntimeError):
        pass

    study = workshop.create()
    workshop.objective.HOOK = _raise_at(4, OutOfMemoryError("CUDA error: out of memory"))
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    assert workshop.outcomes()[0][1] == "failed"


def test_a_full_disk_is_waited_for_and_fails_no_trial(workshop, monkeypatch):
    """Other trials go first meanwhile: one whose files cannot be read must not hold up the study."""
    monkeypatch.setattr(attempt, "_DISK_RETRY_S", 2.0)
    study = workshop.create()
    n_left = [2]

    def fill_the_disk(_config, step):
        if step == 4 and n_left[0]:
            n_left[0] -= 1
            descriptor = os.open("/dev/full", os.O_WRONLY)
            try:
                os.write(descriptor, b"checkpoint")
            finally:
                os.close(descriptor)

    workshop.objective.HOOK = fill_the_disk
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    goes = queries.read_rows(workshop.database, "select go, outcome, reason from hpopt.attempts order by attempt_id")[1]
    sent_back = [reason for _, outcome, reason in goes if outcome == "preempted"]
    assert len(sent_back) == 2
    assert all("No space left on device" in reason for reason in sent_back)
    # The second go is one at another trial.
    assert goes[1][0] == 1
    assert "preempted" not in {outcome for _, outcome, _, _ in workshop.outcomes()}


def test_a_paused_study_gets_its_trial_back_and_goes_on_when_it_is_resumed(workshop):
    study = workshop.create()
    paused = threading.Event()

    def pause(_config, step):
        if step == 4 and not paused.is_set():
            workshop.execute("update hpopt.study set state = 'paused', state_reason = 'lunch'")
            paused.set()

    workshop.objective.HOOK = pause
    running = in_thread(lambda: work(workshop.database, study, workshop.settings))
    assert paused.wait(20)
    deadline = time.monotonic() + 20
    while "paused: lunch" not in workshop.said and time.monotonic() < deadline:
        time.sleep(0.05)
    counted = budget.read_usage(workshop.database, study)
    assert (counted.n_running, counted.n_waiting) == (0, 1)
    workshop.execute("update hpopt.study set state = 'open'")
    assert running.result(timeout=30) == "3 trials done"
    assert "trial 0 preempted: the study is paused" in workshop.said
    assert workshop.steps()[0] == list(range(1, 10))


def test_a_stopped_study_ends_its_trials_at_their_next_evaluation(workshop):
    study = workshop.create()
    stopped = "update hpopt.study set state = 'stopped', state_reason = 'enough'"
    workshop.objective.HOOK = lambda _config, step: workshop.execute(stopped) if step == 4 else None
    assert work(workshop.database, study, workshop.settings) == "stopped: enough"
    assert workshop.outcomes()[0][1:] == ("pruned", 0.75, "the budget ended at step 4: it was stopped")


def _raise_at(step_of_fault, error):
    def raise_there(_config, step):
        if step == step_of_fault:
            raise error

    return raise_there
