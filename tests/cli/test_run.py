"""`hpopt run` and `hpopt worker` with real processes: from a study file to the answer, through Ctrl-C and kill -9."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from hpopt.launch.local import LocalWorkers
from hpopt.storage.database import Database

HPOPT = [sys.executable, "-m", "hpopt"]
# Long enough for any event on a busy machine.
TIMEOUT_S = 90
# A few real documents, which are prepared within a second.
LARGEST_DOCUMENT = 6_000
PRETRAINING = """
name = "small"
[budget]
trials = {trials}
[sampler]
n_startup_trials = 3
[search_space]
learning_rate = {{ low = 1e-3, high = 0.3, log = true }}
momentum      = {{ low = 0.8, high = 0.99 }}
[fixed]
dataset = "{dataset}"
d_model = 32
n_layers = 1
n_heads = 2
d_ff = 64
n_experts = 4
top_k = 2
vocab_size = 300
sequence_length = 32
batch_size = 4
max_steps = {steps}
eval_steps = {eval_steps}
eval_tokens = 1024
"""
# Trials wait after step HELD_AT until the file `released` exists, except for that of the defaults, which is the first.
N_STEPS, HELD_AT = 8, 4
HELD = f"""
name = "small"
objective = "held:train"
metric = "loss"
[budget]
trials = {{trials}}
[sampler]
name = "random"
[pruner]
name = "none"
[search_space]
x = {{{{ low = 0.0, high = 1.0 }}}}
[fixed]
max_steps = {N_STEPS}
held_at = {HELD_AT}
"""
HELD_OBJECTIVE = """
import pathlib, time
from dataclasses import dataclass
from hpopt.errors import Interrupted
from hpopt.training.run import Evaluation

@dataclass(frozen=True)
class Config:
    x: float = 0.5
    max_steps: int = 8
    held_at: int = 4
    seed: int = 0

def train(config: Config, run):
    step = int(run.checkpoint.read_text()) if run.checkpoint.exists() else 0
    while step < config.max_steps:
        is_held = step == config.held_at and config.x != 0.5
        while is_held and not run.should_stop() and not pathlib.Path("released").exists():
            time.sleep(0.01)
        if run.should_stop():
            raise Interrupted(f"stopped after step {step}")
        step += 1
        draft = run.checkpoint.with_suffix(".draft")
        draft.write_text(str(step))
        draft.replace(run.checkpoint)
        metrics = {"loss": (config.x - 0.3) ** 2 + 1 / step}
        yield Evaluation(step=step, n_steps=config.max_steps, tokens=100 * step, seconds=0.0, metrics=metrics)
"""
FAILING_OBJECTIVE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    x: float = 0.5
    max_steps: int = 8
    held_at: int = 4
    seed: int = 0

def train(config: Config, run):
    raise RuntimeError("{message}")
"""
# It neither looks at should_stop nor ends its program; the trial with x = 0.5 ends its worker instead, once.
PROGRAM_OBJECTIVE = """
import itertools, os, pathlib, subprocess
from dataclasses import dataclass
from hpopt.training.run import Evaluation

@dataclass(frozen=True)
class Config:
    x: float = 0.5
    max_steps: int = 8
    held_at: int = 4
    seed: int = 0

def train(config: Config, run):
    if {is_exiting} and config.x == 0.5 and not pathlib.Path("exited").exists():
        pathlib.Path("exited").touch()
        os._exit(1)
    program = subprocess.Popen(["bash", "-c", "while :; do echo; sleep 0.05; done"], stdout=subprocess.PIPE)
    steps = itertools.count(1) if {is_endless} else range(1, 9)
    for step in steps:
        program.stdout.readline()
        yield Evaluation(step=step, n_steps=10**6, tokens=step, seconds=0.0, metrics={{"loss": config.x + 1 / step}})
"""


class Workspace:
    """The folder of a user with a study `small`, and the database of `storage`, or the embedded one."""

    def __init__(self, folder: Path, storage: str | None = None) -> None:
        self.folder = folder
        self.storage = storage
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("HPOPT_")}
        if storage is not None:
            self.environment["HPOPT_STORAGE"] = storage
        self.started: list[subprocess.Popen[str]] = []

    def write_pretraining(self, *, trials, steps, eval_steps):
        """Write a study of real trainings of a tiny model."""
        documents = self.folder / "documents"
        documents.mkdir(exist_ok=True)
        for path in Path(sysconfig.get_path("stdlib")).glob("*.py"):
            if path.stat().st_size < LARGEST_DOCUMENT:
                shutil.copy(path, documents / f"{path.stem}.txt")
        text = PRETRAINING.format(trials=trials, steps=steps, eval_steps=eval_steps, dataset=documents)
        (self.folder / "small.toml").write_text(text)

    def write_held(self, *, trials):
        """Write a study whose trials wait after half of their steps until `release`; the first one does not wait."""
        (self.folder / "small.toml").write_text(HELD.format(trials=trials))
        (self.folder / "held.py").write_text(HELD_OBJECTIVE)

    def write_failing(self, message, *, trials):
        """Write a study in which every trial raises; `message` is Python source."""
        self.write_held(trials=trials)
        (self.folder / "held.py").write_text(FAILING_OBJECTIVE.format(message=message))

    def write_program(self, *, trials, is_endless=False, is_exiting=False):
        """Write a study whose trials start a program each and leave it running."""
        self.write_held(trials=trials)
        text = PROGRAM_OBJECTIVE.format(is_endless=is_endless, is_exiting=is_exiting)
        (self.folder / "held.py").write_text(text)

    def programs(self):
        """Return the ids of processes that trials in this folder have started."""
        ids = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                is_ours = f"HPOPT_HOME={self.folder / '.hpopt'}\0".encode() in (path / "environ").read_bytes()
                if is_ours and b"echo; sleep" in (path / "cmdline").read_bytes():
                    ids.append(int(path.name))
        return ids

    def release(self):
        (self.folder / "released").touch()

    def start(self, *arguments):
        process = subprocess.Popen(
            [*HPOPT, *arguments],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def start_server(self):
        """Start the embedded server, for `rows`; later commands neither start nor stop it."""
        assert self.hpopt("db", "start").returncode == 0
        self.storage = self.hpopt("db", "url").stdout.strip()

    def hpopt(self, *arguments):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=TIMEOUT_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def rows(self, query):
        with closing(Database(self.storage)) as database, database.begin() as connection:
            return [dict(row) for row in connection.execute(sa.text(query)).mappings()]

    def outcomes(self):
        return [row["outcome"] for row in self.rows("select outcome from hpopt.attempts order by attempt_id")]

    def n_held(self):
        """Count the workers whose trial waits after step HELD_AT."""
        return len(self.rows(f"select worker_id from hpopt.fleet where trial > 0 and step = {HELD_AT}"))

    def workers(self):
        """Return the process ids of the workers that commands in this folder have started."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                is_ours = f"HPOPT_HOME={self.folder / '.hpopt'}\0".encode() in (path / "environ").read_bytes()
                if is_ours and b"worker" in (path / "cmdline").read_bytes().split(b"\0"):
                    parents[path.name] = read_status(path, "PPid")
        # A child that a worker has just forked has the worker's command line until it starts another program.
        return [int(pid) for pid, parent in parents.items() if parent not in parents]

    def wait_for(self, condition, description):
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            # The command that was started last can be about to create the tables.
            with suppress(sa.exc.ProgrammingError):
                if result := condition():
                    return result
            time.sleep(0.05)
        raise AssertionError(f"no {description} within {TIMEOUT_S} s: {self.logs()}")

    def wait_until_held(self, n_workers):
        self.wait_for(lambda: self.n_held() == n_workers, f"{n_workers} workers with trials that wait")

    def logs(self):
        return "".join(path.read_text() for path in self.folder.glob(".hpopt/logs/small/*.log"))


def read_status(process, key):
    """Return the first word of a line of the status of a process or thread, a folder below /proc."""
    lines = (process / "status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{key}:"))


@contextmanager
def make_workspace(storage=None) -> Iterator[Workspace]:
    # Not pytest's temporary folder, which the user that a server of root runs as cannot enter.
    workspace = Workspace(Path(tempfile.mkdtemp(prefix="hpopt-run-")), storage)
    workspace.folder.chmod(0o755)
    yield workspace
    for process in workspace.started:
        if process.poll() is None:
            # A test that failed; workers end with the command that started them.
            process.kill()
            process.wait()
    if storage is None:
        workspace.hpopt("db", "stop")
    shutil.rmtree(workspace.folder)


@pytest.fixture
def workspace(database_url) -> Iterator[Workspace]:
    """A folder with an empty database on the server of the tests."""
    with make_workspace(database_url) as workspace:
        yield workspace


@pytest.fixture
def embedded() -> Iterator[Workspace]:
    """A folder with nothing in it: commands start the embedded server."""
    with make_workspace() as workspace:
        yield workspace


@pytest.fixture(scope="module")
def finished() -> Iterator[Workspace]:
    """A folder in which a study of real trainings has finished; the embedded server is left running for its readers."""
    with make_workspace() as workspace:
        workspace.write_pretraining(trials=6, steps=36, eval_steps=4)
        workspace.run = workspace.hpopt("run", "small.toml", "--workers", "2")
        assert workspace.run.returncode == 0, (workspace.run, workspace.logs())
        workspace.stop_after_run = workspace.hpopt("db", "stop")
        workspace.start_server()
        yield workspace


def test_run_goes_from_a_study_file_to_the_answer(finished):
    trials = finished.rows("select * from hpopt.trials")
    assert len(trials) == 6
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert "small: best val_loss" in finished.run.stdout
    assert "cost: 6 trials" in finished.run.stdout
    assert "[6/6] trial" in finished.run.stderr


def test_the_embedded_server_stops_with_the_command_that_started_it(finished):
    assert "was not running" in finished.stop_after_run.stdout


def test_both_workers_trained(finished):
    assert len(finished.rows("select distinct worker_id from hpopt.attempt")) == 2


def test_best_is_the_same_from_the_command_and_from_the_database(finished):
    from_command = json.loads(finished.hpopt("best", "small", "--format", "json").stdout)
    (from_database,) = json.loads(finished.hpopt("db", "sql", "--json", "select * from hpopt.best_params").stdout)
    assert from_command.pop("findings")
    assert from_command == from_database
    assert list(from_database) == [
        *("study_name", "value", "value_low", "value_high", "n_seeds", "source", "params", "trial", "finished_at"),
        *("host", "folder", "answer", "optimism", "noise_std", "candidates", "test_metrics", "arm"),
    ]
    assert (from_database["value_low"], from_database["value_high"], from_database["n_seeds"]) == (None, None, 1)


def test_the_defaults_run_first_and_to_the_end(finished):
    (default,) = finished.rows("select * from hpopt.trials where trial = 0")
    assert default["params"] == {"learning_rate": 0.02, "momentum": 0.95}
    assert default["state"] == "COMPLETE"


def test_every_evaluation_is_in_the_database(finished):
    curve = finished.rows("select * from hpopt.learning_curves where trial = 0 order by step")
    assert [point["step"] for point in curve] == list(range(4, 37, 4))
    metrics = {"val_loss", "train_loss", "learning_rate", "gradient_norm", "tokens_per_second"}
    assert metrics <= curve[0]["metrics"].keys()
    assert curve[-1]["tokens"] == 36 * 4 * 32


def test_run_on_a_finished_study_answers_again_without_training(finished):
    again = finished.hpopt("run", "small.toml")
    assert again.returncode == 0
    assert again.stdout == finished.run.stdout
    assert len(finished.rows("select * from hpopt.worker")) == 2


def test_the_checkpoint_of_the_best_trial_is_kept_and_those_of_others_are_deleted(finished):
    (best,) = finished.rows("select * from hpopt.best_params")
    assert [str(path) for path in finished.folder.glob(".hpopt/runs/small-*/*/*")] == [best["folder"]]
    assert Path(best["folder"], "checkpoint.pt").exists()
    assert f"files of trial {best['trial']}: {best['host']}:{best['folder']}" in finished.run.stdout


def test_report_writes_its_page(finished):
    done = finished.hpopt("report", "small", "--output", "out")
    assert done.returncode == 0, done
    assert "small" in (finished.folder / "out" / "index.html").read_text()


def test_the_dashboard_starts_the_embedded_server_shows_the_study_and_stops_the_server(finished):
    assert finished.hpopt("db", "stop").returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dashboard = finished.start("dashboard", "--port", str(port))

    def studies():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as response:
                return json.load(response)["study_summaries"]
        except OSError:
            return None

    try:
        (summary,) = finished.wait_for(studies, "response of the dashboard")
        assert summary["study_name"] == "small"
    finally:
        dashboard.send_signal(signal.SIGTERM)
        dashboard.communicate(timeout=TIMEOUT_S)
    was_running = finished.hpopt("db", "stop").stdout
    finished.hpopt("db", "start")
    assert dashboard.returncode == 0
    assert "was not running" in was_running


def require_resumed(workspace):
    """Require that the second attempts continued after the last evaluations of the first ones."""
    rows = workspace.rows(
        """
        select max(e.step) filter (where a.attempt_number = 1) as last,
               min(e.step) filter (where a.attempt_number = 2) as next
        from hpopt.attempt a join hpopt.evaluation e using (attempt_id)
        group by a.trial_id having max(a.attempt_number) = 2
        """
    )
    assert rows
    return rows


def test_ctrl_c_returns_trials_to_the_queue_and_the_same_command_continues_them(workspace):
    """An interrupted study must neither lose a trial nor train one again from its start."""
    workspace.write_held(trials=3)
    run = workspace.start("run", "small.toml", "--workers", "2")
    workspace.wait_until_held(2)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 75, (out, err, workspace.logs())
    assert "stopped with 1 finished trial; the same command continues" in err
    assert workspace.workers() == []
    assert workspace.outcomes() == ["complete", "preempted", "preempted"]

    workspace.release()
    again = workspace.hpopt("run", "small.toml", "--workers", "1")
    assert again.returncode == 0, (again, workspace.logs())
    trials = workspace.rows("select * from hpopt.trials")
    assert sorted(trial["n_attempts"] for trial in trials) == [1, 2, 2]
    assert {(row["last"], row["next"]) for row in require_resumed(workspace)} == {(HELD_AT, HELD_AT + 1)}


@pytest.mark.long
def test_a_real_training_continues_from_its_checkpoint_after_ctrl_c(embedded):
    embedded.write_pretraining(trials=3, steps=400, eval_steps=20)
    run = embedded.start("run", "small.toml", "--workers", "2")
    embedded.wait_for(lambda: list(embedded.folder.glob(".hpopt/runs/small-*/*/1/checkpoint.pt")), "checkpoint")
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 75, (out, err, embedded.logs())
    assert "was not running" in embedded.hpopt("db", "stop").stdout
    again = embedded.hpopt("run", "small.toml", "--workers", "2")
    assert again.returncode == 0, (again, embedded.logs())
    embedded.start_server()
    assert len(embedded.rows("select * from hpopt.trials")) == 3
    resumed = [(row["last"], row["next"]) for row in require_resumed(embedded) if row["last"] and row["next"]]
    assert resumed
    # An attempt that stopped right at an evaluation repeats that one.
    assert all(last <= next_step <= last + 20 for last, next_step in resumed)


@pytest.mark.long
def test_a_killed_worker_is_replaced_and_its_trial_is_retried(workspace):
    workspace.write_held(trials=3)
    run = workspace.start("run", "small.toml", "--workers", "2", "--heartbeat-every", "0.5", "--stale-after", "2")
    workspace.wait_until_held(2)
    os.kill(workspace.workers()[0], signal.SIGKILL)
    workspace.release()
    out, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, (out, err, workspace.logs())
    assert len(workspace.rows("select * from hpopt.trials")) == 3
    assert sorted(workspace.outcomes()) == ["complete", "complete", "complete", "lost"]
    assert len(workspace.rows("select * from hpopt.worker")) == 3


@pytest.mark.long
def test_a_comparison_that_is_killed_continues_with_its_pairs(workspace):
    """Two workers are killed with the command in the middle of two treatments; the same command finishes."""
    workspace.write_held(trials=1)
    text = (workspace.folder / "small.toml").read_text()
    head, fixed = text.partition("[budget]")[0], text.partition("[fixed]")[2]
    arms = "seeds = 3\n[arms.baseline]\n[arms.treatment]\nx = 0.4\n[fixed]"
    (workspace.folder / "small.toml").write_text(f"{head}{arms}{fixed}")
    noisy = HELD_OBJECTIVE.replace("1 / step}", "(1 + 0.1 * config.seed + 0.01 * config.x * config.seed) / step}")
    (workspace.folder / "held.py").write_text(noisy)
    command = ("run", "small.toml", "--workers", "2", "--heartbeat-every", "0.5", "--stale-after", "2")
    run = workspace.start(*command)
    workspace.wait_until_held(2)
    run.kill()
    run.communicate(timeout=TIMEOUT_S)
    workspace.wait_for(lambda: not workspace.workers(), "end of the workers")
    workspace.release()
    again = workspace.hpopt(*command)
    assert again.returncode == 0, (again, workspace.logs())
    assert "treatment is better than baseline." in again.stdout
    trials = workspace.rows("select arm, seed, state, n_attempts from hpopt.trials order by trial_id")
    assert sorted((row["seed"], row["arm"], row["state"]) for row in trials) == [
        (seed, arm, "COMPLETE") for seed in range(3) for arm in ("baseline", "treatment")
    ]
    assert any(row["n_attempts"] > 1 for row in trials)
    assert len(workspace.rows("select * from hpopt.comparisons")) == 1


@pytest.mark.long
def test_a_design_whose_worker_was_killed_is_resumed_and_its_report_has_every_replicate(workspace):
    workspace.write_held(trials=1)
    path = workspace.folder / "small.toml"
    text = path.read_text()
    for old, new in (
        ("[budget]\ntrials = 1", "seeds = 2"),
        ('name = "random"', 'name = "one_at_a_time"'),
        ("{ low = 0.0, high = 1.0 }", "{ choices = [0.1, 0.5, 0.9] }"),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    timeouts = ("--workers", "2", "--heartbeat-every", "0.5", "--stale-after", "2")
    run = workspace.start("run", "small.toml", *timeouts)
    workspace.wait_until_held(2)
    os.kill(workspace.workers()[0], signal.SIGKILL)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=TIMEOUT_S) != 0
    workspace.release()
    resumed = workspace.hpopt("run", "small.toml", *timeouts)
    assert resumed.returncode == 0, (resumed, workspace.logs())
    assert "one factor at a time" in resumed.stdout
    assert workspace.hpopt("report", "small").returncode == 0
    insights = json.loads((workspace.folder / "report" / "insights.json").read_text())
    (factor,) = insights["one_factor"]["factors"]
    assert [(row["value"], row["n"]) for row in factor["values"]] == [(0.1, 2), (0.5, 2), (0.9, 2)]
    assert (factor["best"], factor["worst"]) == (0.1, 0.9)
    assert factor["cost"]["value"] == pytest.approx(0.36 - 0.04)
    text = (workspace.folder / "report" / "report.md").read_text()
    assert "## One factor at a time" in text
    assert "cannot see interactions" in text


@pytest.mark.long
def test_a_database_that_restarts_costs_neither_a_trial_nor_a_worker(embedded):
    embedded.write_held(trials=3)
    embedded.start_server()
    run = embedded.start("run", "small.toml", "--workers", "2")
    embedded.wait_until_held(2)
    embedded.hpopt("db", "stop")
    embedded.release()
    embedded.wait_for(lambda: "the database is unreachable" in embedded.logs(), "worker that logs the outage")
    embedded.hpopt("db", "start")
    out, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, (out, err, embedded.logs())
    assert "the database is reachable again after" in embedded.logs()
    assert len(embedded.rows("select * from hpopt.worker")) == 2
    assert embedded.outcomes() == ["complete"] * 3


def test_a_second_ctrl_c_ends_everything_at_once(embedded):
    embedded.write_held(trials=50)
    run = embedded.start("run", "small.toml", "--workers", "2")
    workers = embedded.wait_for(lambda: len(embedded.workers()) == 2 and embedded.workers(), "two workers")
    # SIGTERM would kill a process that does not yet handle it, or is not yet frozen.
    embedded.wait_for(lambda: all(lists_sigterm(worker, "SigCgt") for worker in workers), "workers that handle SIGTERM")
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    embedded.wait_for(lambda: all(map(is_frozen, workers)), "two frozen workers")
    run.send_signal(signal.SIGINT)
    # The first Ctrl-C has asked the workers to stop when SIGTERM is pending for the frozen processes.
    embedded.wait_for(lambda: all(lists_sigterm(worker, "ShdPnd") for worker in workers), "SIGTERM at the workers")
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 75
    assert err.endswith("hpopt: stopped at once; running trials return to the queue when their heartbeats expire\n")
    assert embedded.workers() == []
    assert "was not running" in embedded.hpopt("db", "stop").stdout


def is_frozen(pid):
    return all(read_status(path, "State") == "T" for path in Path(f"/proc/{pid}/task").iterdir())


def lists_sigterm(pid, key):
    """Return whether a line of the status of a process, such as ShdPnd for pending signals, has SIGTERM."""
    return bool(int(read_status(Path(f"/proc/{pid}"), key), 16) >> (signal.SIGTERM - 1) & 1)


def test_ctrl_c_stops_a_function_that_never_looks_and_its_program(embedded):
    embedded.write_program(trials=2, is_endless=True)
    embedded.start_server()
    run = embedded.start("run", "small.toml", "--workers", "2")
    embedded.wait_for(lambda: len(embedded.rows("select distinct trial from hpopt.learning_curves")) == 2, "curves")
    assert len(embedded.programs()) == 2
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 75
    assert embedded.outcomes() == ["preempted"] * 2
    assert embedded.programs() == []


@pytest.mark.long
def test_the_program_of_a_killed_worker_is_killed_and_one_that_finished_is_ended(embedded):
    embedded.write_program(trials=1, is_endless=True)
    embedded.start_server()
    run = embedded.start("run", "small.toml", "--workers", "1", "--heartbeat-every", "0.3", "--stale-after", "1")
    embedded.wait_for(lambda: embedded.rows("select * from hpopt.learning_curves"), "an evaluation")
    assert len(embedded.programs()) == 1
    embedded.write_program(trials=1)
    os.kill(embedded.workers()[0], signal.SIGKILL)
    _, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, (err, embedded.logs())
    assert embedded.programs() == []
    assert "ended what the training function had left running: bash" in embedded.logs()


@pytest.mark.long
def test_a_function_that_exits_the_process_costs_its_attempt_and_not_the_run(embedded):
    embedded.write_program(trials=2, is_exiting=True)
    run = embedded.hpopt("run", "small.toml", "--workers", "1", "--heartbeat-every", "0.3", "--stale-after", "1")
    assert run.returncode == 0, (run, embedded.logs())
    embedded.start_server()
    assert sorted(embedded.outcomes()) == ["complete", "complete", "lost"]


def test_a_study_without_a_completed_trial_has_exit_code_3(workspace):
    """A script that continues with the best parameters must notice that there are none."""
    workspace.write_failing("two\\nlines", trials=2)
    done = workspace.hpopt("run", "small.toml", "--workers", "1")
    assert done.returncode == 3, (done, workspace.logs())
    assert "[2/2] trial   1  failed" in done.stderr
    assert "(RuntimeError: two lines)" in done.stderr


def test_workers_end_with_a_command_that_was_killed(workspace):
    """Workers that no command shows or stops would use up the machine."""
    workspace.write_held(trials=50)
    run = workspace.start("run", "small.toml", "--workers", "2")
    workspace.wait_until_held(2)
    run.kill()
    run.communicate()
    workspace.wait_for(lambda: not workspace.workers(), "end of the workers")
    assert workspace.outcomes() == ["complete", "preempted", "preempted"]


def test_a_worker_that_is_terminated_returns_its_trial_and_exits_with_75(workspace):
    """Exit code 75 asks a scheduler to run the worker again; schedulers repeat SIGTERM while they wait."""
    workspace.write_held(trials=2)
    workspace.hpopt("create", "small.toml")
    worker = workspace.start("worker", "small", "--device", "cpu")
    workspace.wait_until_held(1)
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=TIMEOUT_S)
    assert worker.returncode == 75, err
    assert workspace.outcomes() == ["complete", "preempted"]


def test_a_worker_that_fails_at_its_start_ends_the_run_with_the_end_of_its_log(workspace):
    workspace.write_held(trials=2)
    # The command itself imports the objective first.
    guard = (
        'if pathlib.Path("imported").exists(): raise OSError("no such module here")\npathlib.Path("imported").touch()\n'
    )
    (workspace.folder / "held.py").write_text(f"{HELD_OBJECTIVE}\n{guard}")
    done = workspace.hpopt("run", "small.toml", "--workers", "1")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hpopt: a worker exited with code 2: hpopt: study 'small': objective: cannot import held: ")
    assert "OSError: no such module here" in last


def test_pausing_returns_trials_to_the_queue_and_ends_the_run_with_the_command_that_resumes(workspace):
    workspace.write_held(trials=3)
    run = workspace.start("run", "small.toml", "--workers", "2", "--heartbeat-every", "0.5")
    workspace.wait_until_held(2)
    paused = workspace.hpopt("pause", "small", "--reason", "the nodes are needed")
    assert "2 running trials return to the queue with their checkpoints" in paused.stdout
    out, err = run.communicate(timeout=TIMEOUT_S)
    assert (run.returncode, out) == (1, ""), (out, err, workspace.logs())
    line = "study 'small' is paused: the nodes are needed; `hpopt resume small` resumes it"
    assert err.splitlines()[-1] == f"hpopt: {line}"
    assert workspace.workers() == []
    assert workspace.outcomes() == ["complete", "preempted", "preempted"]

    assert "2 trials to be retried first" in workspace.hpopt("resume", "small").stdout
    workspace.release()
    again = workspace.hpopt("run", "small.toml", "--workers", "1")
    assert again.returncode == 0, (again, workspace.logs())
    assert workspace.outcomes() == ["complete", "preempted", "preempted", "complete", "complete"]


@pytest.mark.long
def test_a_worker_and_a_watching_command_wait_during_a_pause_and_continue_after_it(workspace):
    workspace.write_held(trials=2)
    workspace.hpopt("create", "small.toml")
    worker = workspace.start("worker", "small", "--device", "cpu", "--heartbeat-every", "0.5", "--stale-after", "3")
    workspace.wait_until_held(1)
    workspace.hpopt("pause", "small")
    workspace.wait_for(lambda: workspace.outcomes() == ["complete", "preempted"], "preempted attempt")
    watching = workspace.start("status", "small", "--watch")
    assert watching.stderr.readline() == "small continues: 1 finished trial\n"
    assert watching.stderr.readline() == "study 'small' is paused: manually; `hpopt resume small` resumes it\n"
    assert worker.poll() is None
    workspace.release()
    workspace.hpopt("resume", "small")
    out, err = watching.communicate(timeout=TIMEOUT_S)
    assert watching.returncode == 0, (out, err)
    assert err.splitlines()[0] == "small was resumed"
    assert "[2/2] trial" in err
    worker.communicate(timeout=TIMEOUT_S)
    assert worker.returncode == 0
    assert workspace.outcomes() == ["complete", "preempted", "complete"]


def test_stopping_a_study_ends_the_run_with_the_answer_so_far(workspace):
    workspace.write_held(trials=50)
    run = workspace.start("run", "small.toml", "--workers", "1")
    workspace.wait_until_held(1)
    stopped = workspace.hpopt("stop", "small")
    assert stopped.stdout == "small is stopped; its running trial ends at its next evaluation, workers exit\n"
    workspace.release()
    out, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, (out, err, workspace.logs())
    assert "small: best loss" in out
    assert workspace.outcomes() == ["complete", "pruned"]
    again = workspace.hpopt("run", "small.toml")
    assert (again.returncode, again.stdout) == (0, out)


def test_a_run_whose_output_is_closed_returns_its_trials_to_the_queue(workspace):
    """As `hpopt run FILE 2>&1 | head` does; a shell shows 141, as for other programs."""
    workspace.write_held(trials=50)
    run = workspace.start("run", "small.toml", "--workers", "2")
    workspace.wait_until_held(2)
    run.stderr.close()
    run.stdout.close()
    workspace.release()
    assert run.wait(timeout=TIMEOUT_S) == -signal.SIGPIPE
    assert workspace.workers() == []
    assert set(workspace.outcomes()) <= {"complete", "preempted"}


@pytest.mark.long
def test_a_worker_waits_for_a_database_that_is_started_after_it(embedded):
    embedded.write_held(trials=1)
    embedded.release()
    embedded.start_server()
    embedded.hpopt("create", "small.toml")
    embedded.environment["HPOPT_STORAGE"] = embedded.storage
    embedded.hpopt("db", "stop")
    worker = embedded.start("worker", "small", "--device", "cpu")
    assert worker.stderr.readline().startswith("waiting up to 30 s for the database: ")
    assert embedded.hpopt("db", "start").returncode == 0
    out, err = worker.communicate(timeout=TIMEOUT_S)
    assert worker.returncode == 0, (out, err)
    assert "finished: trials budget exhausted (1)" in err


@pytest.mark.long
def test_a_worker_with_exit_code_75_is_restarted_after_delays_that_grow(tmp_path):
    """A node whose GPU failed, or that cannot reach the database, must neither restart in a loop nor end the run."""
    command = ["worker", "x", "--storage", "postgresql://me@127.0.0.1:1/nowhere", "--device", "cpu"]
    log = tmp_path / "worker-0.log"
    delays = []
    with LocalWorkers(command, 1, os.environ, tmp_path) as workers:
        for n_starts in range(1, 4):
            while log.read_text().count("waiting up to") < n_starts:
                assert workers.supervise()
                time.sleep(0.05)
            process = workers._workers[0].process
            process.terminate()
            assert process.wait(timeout=TIMEOUT_S) == 75
            ended = time.monotonic()
            while n_starts < 3 and workers._workers[0].process is process:
                assert workers.supervise()
                time.sleep(0.05)
            delays.append(time.monotonic() - ended)
    assert 1 <= delays[0] < delays[1]
    assert delays[1] >= 2


def test_five_failures_in_a_row_pause_the_study_and_end_the_run_with_their_reason(workspace):
    """A sixth trial would fail too, and somebody has to find out why."""
    workspace.write_failing("the data are gone", trials=50)
    done = workspace.hpopt("run", "small.toml", "--workers", "1")
    assert (done.returncode, done.stdout) == (1, ""), (done, workspace.logs())
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hpopt: study 'small' is paused: 5 trials in a row failed: ")
    assert "the data are gone" in last
    assert last.endswith("`hpopt resume small` resumes it")
    assert workspace.outcomes() == ["failed"] * 5
