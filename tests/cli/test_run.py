"""The main job with real processes: `hpopt run` from a study file to the answer, through Ctrl-C and kill -9."""

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
from pathlib import Path

import pytest

from hpopt.launch.local import LocalWorkers

HPOPT = [sys.executable, "-m", "hpopt"]
# About a hundred real documents, which are prepared in two seconds.
LARGEST_DOCUMENT = 15_000
STUDY = """
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
eval_steps = {evaluate_every}
eval_tokens = 1024
"""


class Place:
    """A folder in which a user works, with nothing of hpopt in it but a study file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("HPOPT_")}
        self.started: list[subprocess.Popen[str]] = []

    def write_study(self, *, trials=6, steps=36, evaluate_every=4):
        documents = self.folder / "documents"
        documents.mkdir(exist_ok=True)
        for path in Path(sysconfig.get_path("stdlib")).glob("*.py"):
            if path.stat().st_size < LARGEST_DOCUMENT:
                shutil.copy(path, documents / f"{path.stem}.txt")
        text = STUDY.format(trials=trials, steps=steps, evaluate_every=evaluate_every, dataset=documents)
        (self.folder / "small.toml").write_text(text)

    def break_study(self, message):
        """Give the study an objective that raises in every trial; `message` is Python source."""
        (self.folder / "broken.py").write_text(
            "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Config:\n"
            "    learning_rate: float = 0.02\n    momentum: float = 0.9\n    seed: int = 0\n\n"
            f'def train(config: Config, run):\n    raise RuntimeError("{message}")\n'
        )
        study = self.folder / "small.toml"
        text = study.read_text().split("[fixed]")[0]
        study.write_text(text.replace('name = "small"', 'name = "small"\nobjective = "broken:train"'))

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

    def hpopt(self, *arguments):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=100)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def rows(self, query):
        done = self.hpopt("db", "sql", "--json", query)
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    def workers(self):
        """Give the process ids of the workers that this folder's `hpopt run` has started."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                is_ours = f"HPOPT_HOME={self.folder / '.hpopt'}\0".encode() in path.read_bytes()
                command = (path.parent / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if is_ours and b"worker" in command:
                found.append(int(path.parent.name))
        return found

    def wait_for(self, condition, what, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.1)
        raise AssertionError(f"waited {seconds} s in vain for {what}: {self.logs()}")

    def logs(self):
        return "".join(path.read_text() for path in self.folder.glob(".hpopt/logs/small/*.log"))


@pytest.fixture(scope="module")
def shared_place() -> Iterator[Place]:
    """A place in which one study has been run to its end."""
    with _place() as place:
        place.write_study()
        place.done = place.hpopt("run", "small.toml", "--workers", "2")
        assert place.done.returncode == 0, (place.done, place.logs())
        yield place


@pytest.fixture
def place() -> Iterator[Place]:
    with _place() as place:
        yield place


class _place:  # noqa: N801 - a context manager.
    def __enter__(self):
        # Not pytest's own temporary folder, which is closed to the user that a server started by root runs as.
        self.place = Place(Path(tempfile.mkdtemp(prefix="hpopt-run-")))
        self.place.folder.chmod(0o755)
        return self.place

    def __exit__(self, *exc):
        for process in self.place.started:
            if process.poll() is None:
                # What a test that failed has left; the workers of a run end with it.
                process.kill()
                process.wait()
        self.place.hpopt("db", "stop")
        shutil.rmtree(self.place.folder)


def test_run_goes_from_a_study_file_to_the_answer(shared_place):
    trials = shared_place.rows("select * from hpopt.trials")
    assert len(trials) == 6
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert "small: best val_loss" in shared_place.done.stdout
    assert "cost: 6 trials" in shared_place.done.stdout
    assert "[6/6] trial" in shared_place.done.stderr


def test_both_workers_trained(shared_place):
    assert len(shared_place.rows("select distinct worker_id from hpopt.attempt")) == 2


def test_best_is_the_same_from_the_program_and_from_the_database(shared_place):
    from_program = json.loads(shared_place.hpopt("best", "small", "--format", "json").stdout)
    (from_database,) = shared_place.rows("select * from hpopt.best_params")
    assert from_program.pop("findings")
    assert from_program == from_database
    assert list(from_database) == [
        *("study_name", "value", "value_low", "value_high", "n_seeds", "source", "params", "trial", "finished_at")
    ]
    assert (from_database["value_low"], from_database["value_high"], from_database["n_seeds"]) == (None, None, 1)


def test_the_defaults_run_first_and_to_the_end(shared_place):
    (default,) = shared_place.rows("select * from hpopt.trials where trial = 0")
    assert default["params"] == {"learning_rate": 0.02, "momentum": 0.95}
    assert default["state"] == "COMPLETE"


def test_every_evaluation_is_in_the_database(shared_place):
    curve = shared_place.rows("select * from hpopt.learning_curves where trial = 0 order by step")
    assert [point["step"] for point in curve] == list(range(4, 37, 4))
    assert {"val_loss", "train_loss", "learning_rate", "gradient_norm", "tokens_per_second"} <= curve[0][
        "metrics"
    ].keys()
    assert curve[-1]["tokens"] == 36 * 4 * 32


def test_the_database_stops_with_the_command_that_started_it(shared_place):
    assert "was not running" in shared_place.hpopt("db", "stop").stdout


def test_a_finished_study_answers_again_without_training(shared_place):
    again = shared_place.hpopt("run", "small.toml")
    assert again.returncode == 0
    assert again.stdout == shared_place.done.stdout
    assert len(shared_place.rows("select * from hpopt.worker")) == 2


def test_checkpoints_of_ended_trials_are_gone(shared_place):
    assert list(shared_place.folder.glob(".hpopt/runs/small-*")) != []
    assert list(shared_place.folder.glob(".hpopt/runs/small-*/*")) == []


def test_report_writes_its_page(shared_place):
    done = shared_place.hpopt("report", "small", "--output", "out")
    assert done.returncode == 0, done
    assert "small" in (shared_place.folder / "out" / "index.html").read_text()


def test_the_dashboard_shows_the_study_over_http(shared_place):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = shared_place.start("dashboard", "--port", str(port))
    try:

        def studies():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
                    return json.load(answer)["study_summaries"]
            except OSError:
                return None

        (summary,) = shared_place.wait_for(studies, "the dashboard")
        assert summary["study_name"] == "small"
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=20)
    assert server.returncode == 0
    assert "was not running" in shared_place.hpopt("db", "stop").stdout


def test_ctrl_c_hands_trials_back_and_the_same_command_goes_on(place):
    """An interrupted study must neither lose a trial nor train one from its start again."""
    place.write_study(trials=3, steps=400, evaluate_every=20)
    run = place.start("run", "small.toml", "--workers", "2")
    place.wait_for(lambda: list(place.folder.glob(".hpopt/runs/small-*/*/1/checkpoint.pt")), "a first checkpoint")
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 75, (out, err, place.logs())
    assert "the same command goes on from here" in err
    assert place.workers() == []
    attempts = place.rows("select outcome, ended_at from hpopt.attempt")
    assert {attempt["outcome"] for attempt in attempts} <= {"preempted", "complete", "pruned"}
    assert "preempted" in {attempt["outcome"] for attempt in attempts}

    again = place.hpopt("run", "small.toml", "--workers", "2")
    assert again.returncode == 0, (again, place.logs())
    trials = place.rows("select * from hpopt.trials")
    assert len(trials) == 3
    assert max(trial["n_attempts"] for trial in trials) == 2
    goes = place.rows(
        """
        select max(e.step) filter (where a.attempt_number = 1) as before, min(e.step) filter (where a.attempt_number = 2) as after
        from hpopt.attempt a join hpopt.evaluation e using (attempt_id) group by a.first_trial_id
        """
    )
    resumed = [(go["before"], go["after"]) for go in goes if go["before"] and go["after"]]
    assert resumed
    # A go that stopped right at an evaluation gives that one again.
    assert all(before <= after <= before + 20 for before, after in resumed)


def test_a_killed_worker_is_replaced_and_its_trial_is_retried(place):
    place.write_study(trials=3, steps=400, evaluate_every=20)
    run = place.start("run", "small.toml", "--workers", "2", "--heartbeat-every", "0.5", "--stale-after", "3")
    place.wait_for(lambda: list(place.folder.glob(".hpopt/runs/small-*/*/1/checkpoint.pt")), "a first checkpoint")
    os.kill(place.workers()[0], signal.SIGKILL)
    out, err = run.communicate(timeout=100)
    assert run.returncode == 0, (out, err, place.logs())
    assert len(place.rows("select * from hpopt.trials")) == 3
    outcomes = [attempt["outcome"] for attempt in place.rows("select outcome from hpopt.attempt")]
    assert outcomes.count("lost") == 1
    assert len(outcomes) == 4


def test_a_database_that_restarts_costs_neither_a_trial_nor_a_worker(place):
    place.write_study(trials=4, steps=300, evaluate_every=10)
    run = place.start("run", "small.toml", "--workers", "2")
    place.wait_for(lambda: list(place.folder.glob(".hpopt/runs/small-*/*/1/checkpoint.pt")), "a first checkpoint")
    place.hpopt("db", "stop")
    time.sleep(2)
    place.hpopt("db", "start")
    out, err = run.communicate(timeout=100)
    assert run.returncode == 0, (out, err, place.logs())
    assert "the database is back after" in place.logs()
    assert len(place.rows("select * from hpopt.worker")) == 2
    attempts = place.rows("select outcome from hpopt.attempt")
    assert len(attempts) == 4
    assert {attempt["outcome"] for attempt in attempts} <= {"complete", "pruned"}


def test_a_second_ctrl_c_ends_everything_at_once(place):
    place.write_study(trials=50, steps=400)
    run = place.start("run", "small.toml", "--workers", "2")
    place.wait_for(lambda: len(place.workers()) == 2, "two workers")
    for worker in place.workers():
        os.kill(worker, signal.SIGSTOP)
    run.send_signal(signal.SIGINT)
    time.sleep(1)
    run.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, err = run.communicate(timeout=20)
    assert run.returncode == 75
    assert err == "hpopt: ended at once; what was running goes back to the queue\n"
    assert time.monotonic() - asked < 10
    assert place.workers() == []
    assert "was not running" in place.hpopt("db", "stop").stdout


def test_a_study_without_a_completed_trial_ends_without_an_answer(place):
    """A script that goes on with the best parameters must notice that there are none."""
    place.write_study(trials=2)
    place.break_study("two\\nlines")
    done = place.hpopt("run", "small.toml")
    assert done.returncode == 3, (done, place.logs())
    assert "[2/2] trial   1  failed" in done.stderr
    assert "(RuntimeError: two lines)" in done.stderr


def test_workers_end_with_a_command_that_was_killed(place):
    """Workers that nobody shows or stops would go on spending the machine."""
    place.write_study(trials=50, steps=400)
    run = place.start("run", "small.toml", "--workers", "2")
    place.wait_for(lambda: len(place.workers()) == 2, "two workers")
    run.kill()
    run.communicate()
    place.wait_for(lambda: not place.workers(), "the workers to end", seconds=20)


def test_a_worker_that_is_terminated_asks_to_be_run_again(place):
    place.write_study(trials=2, steps=400)
    place.hpopt("create", "small.toml")
    worker = place.start("worker", "small")
    place.wait_for(lambda: list(place.folder.glob(".hpopt/runs/small-*/*/1/checkpoint.pt")), "a first checkpoint")
    worker.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    _, err = worker.communicate(timeout=10)
    assert worker.returncode == 75, err
    assert time.monotonic() - asked < 10


def test_a_worker_that_fails_at_once_ends_the_run_with_its_last_words(place):
    place.write_study()
    study = place.folder / "small.toml"
    (place.folder / "empty").mkdir()
    study.write_text(study.read_text().replace(str(place.folder / "documents"), str(place.folder / "empty")))
    done = place.hpopt("run", "small.toml")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("hpopt: a worker exited with code 2: hpopt: dataset: ")


def a_first_checkpoint(place):
    return list(place.folder.glob(".hpopt/runs/small-*/*/1/checkpoint.pt"))


@pytest.mark.long
def test_pausing_hands_trials_back_and_ends_the_run_with_the_way_to_go_on(place):
    place.write_study(trials=2, steps=200, evaluate_every=20)
    run = place.start("run", "small.toml", "--workers", "2")
    place.wait_for(lambda: a_first_checkpoint(place), "a first checkpoint")
    paused = place.hpopt("pause", "small", "--reason", "the nodes are needed")
    assert "handed back" in paused.stdout
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out) == (1, ""), (out, err, place.logs())
    line = "study 'small' is paused: the nodes are needed; `hpopt resume small` lets it go on"
    assert err.splitlines()[-1] == f"hpopt: {line}"
    assert place.workers() == []
    attempts = place.rows("select outcome from hpopt.attempt")
    assert {attempt["outcome"] for attempt in attempts} <= {"preempted", "complete", "pruned"}

    assert "go on first" in place.hpopt("resume", "small").stdout
    again = place.hpopt("run", "small.toml", "--workers", "2")
    assert again.returncode == 0, (again, place.logs())
    assert len(place.rows("select * from hpopt.trials")) == 2


@pytest.mark.long
def test_a_worker_waits_through_a_pause_and_watching_it_goes_on_too(place):
    place.write_study(trials=1, steps=200, evaluate_every=20)
    place.environment["OMP_NUM_THREADS"] = "1"
    place.hpopt("create", "small.toml")
    worker = place.start("worker", "small", "--heartbeat-every", "0.5", "--stale-after", "3")
    place.wait_for(lambda: a_first_checkpoint(place), "a first checkpoint")
    place.hpopt("pause", "small")

    def handed_back():
        return place.rows("select * from hpopt.attempt where outcome = 'preempted'")

    place.wait_for(handed_back, "the trial to be handed back")
    watching = place.start("status", "small", "--watch")
    assert watching.stderr.readline() == "study 'small' is paused: by hand; `hpopt resume small` lets it go on\n"
    assert worker.poll() is None
    place.hpopt("resume", "small")
    out, err = watching.communicate(timeout=100)
    assert watching.returncode == 0, (out, err)
    assert err.splitlines()[0] == "small goes on"
    assert "[1/1] trial" in err
    worker.communicate(timeout=20)
    assert worker.returncode == 0
    assert [row["outcome"] for row in place.rows("select outcome from hpopt.attempt order by go")] == [
        "preempted",
        "complete",
    ]


@pytest.mark.long
def test_stopping_ends_the_run_with_the_answer_it_has(place):
    place.write_study(trials=500)
    run = place.start("run", "small.toml", "--workers", "2")
    place.wait_for(lambda: a_first_checkpoint(place), "a first checkpoint")
    place.wait_for(lambda: place.rows("select * from hpopt.best_params"), "a first answer")
    assert "is stopped" in place.hpopt("stop", "small").stdout
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, (out, err, place.logs())
    assert "small: best val_loss" in out
    assert {row["outcome"] for row in place.rows("select outcome from hpopt.attempt")} <= {"complete", "pruned"}
    again = place.hpopt("run", "small.toml")
    assert (again.returncode, again.stdout) == (0, out)


@pytest.mark.long
def test_a_run_whose_output_nobody_reads_hands_its_trials_back(place):
    """As `hpopt run FILE 2>&1 | head` does."""
    place.write_study(trials=50, steps=40)
    run = place.start("run", "small.toml", "--workers", "1")
    place.wait_for(place.workers, "a worker")
    run.stderr.close()
    run.stdout.close()
    assert run.wait(timeout=60) == -signal.SIGPIPE
    assert place.workers() == []
    assert "was not running" in place.hpopt("db", "stop").stdout


@pytest.mark.long
def test_a_worker_waits_for_a_database_that_is_started_after_it(place):
    place.write_study(trials=1)
    place.hpopt("create", "small.toml")
    place.hpopt("db", "start")
    place.environment["HPOPT_STORAGE"] = place.hpopt("db", "url").stdout.strip()
    place.hpopt("db", "stop")
    worker = place.start("worker", "small")
    assert worker.stderr.readline().startswith("waiting up to 30 s for the database: ")
    assert place.hpopt("db", "start").returncode == 0
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == 0, (out, err)
    assert "over: 1 trials done" in err


@pytest.mark.long
def test_a_worker_that_asks_to_be_run_again_is_after_pauses_that_grow(tmp_path):
    """A node whose GPU is sick, or that cannot reach the database, must neither spin nor end the run."""
    command = ["worker", "x", "--storage", "postgresql://me@127.0.0.1:1/nowhere", "--device", "cpu"]
    log = tmp_path / "worker-0.log"
    pauses = []
    with LocalWorkers(command, 1, os.environ, tmp_path) as fleet:
        for n_starts in range(1, 4):
            while log.read_text().count("waiting up to") < n_starts:
                assert fleet.supervise()
                time.sleep(0.05)
            process = fleet._workers[0].process
            process.terminate()
            assert process.wait(timeout=20) == 75
            ended = time.monotonic()
            while n_starts < 3 and fleet._workers[0].process is process:
                assert fleet.supervise()
                time.sleep(0.05)
            pauses.append(time.monotonic() - ended)
    assert 1 <= pauses[0] < 2 <= pauses[1] < 3


@pytest.mark.long
def test_a_second_sigterm_does_not_cut_a_checkpoint_short(place):
    """Schedulers send it again while they wait."""
    place.write_study(trials=2, steps=200)
    place.environment["OMP_NUM_THREADS"] = "1"
    place.hpopt("create", "small.toml")
    worker = place.start("worker", "small")
    place.wait_for(lambda: a_first_checkpoint(place), "a first checkpoint")
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=10)
    assert worker.returncode == 75, err
    assert [row["outcome"] for row in place.rows("select outcome from hpopt.attempt")] == ["preempted"]


def test_a_run_of_failures_ends_with_their_reason(place):
    """What fails five times in a row would fail for the rest of the budget, and somebody has to look at it."""
    place.write_study(trials=50)
    place.break_study("the data are gone")
    done = place.hpopt("run", "small.toml", "--workers", "1")
    assert (done.returncode, done.stdout) == (1, ""), (done, place.logs())
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hpopt: study 'small' is paused: ")
    assert "the data are gone" in last
    assert last.endswith("`hpopt resume small` lets it go on")
