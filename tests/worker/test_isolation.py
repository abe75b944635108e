"""What a training function does to its process ends its own trial, and the next trial starts in a clean process."""

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import optuna
import psutil
import pytest

from hpopt.storage import migrate, queries, studies
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file

OBJECTIVE = '''
import asyncio, ctypes, json, locale, logging, multiprocessing, os, random, signal, subprocess, sys, threading, time
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
import numpy as np
import torch
from hpopt.errors import Interrupted
from hpopt.training.run import Evaluation, Run

FOLDER = Path(__file__).parent

@dataclass(frozen=True)
class Config:
    kind: str = "plain"
    seed: int = 0

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")

class Abort(BaseException):
    pass

def ev(step, loss=1.0, n_steps=3, tokens=0, seconds=0.0, **metrics):
    return Evaluation(step=step, n_steps=n_steps, tokens=tokens, seconds=seconds, metrics={"loss": loss, **metrics})

def state():
    """What a trial finds when it starts."""
    return {
        "folder": os.getcwd(), "variable": os.environ.get("PLANTED"), "path": sys.path[-1], "arguments": sys.argv[-1],
        "stdout": sys.stdout.fileno(), "is_open": not sys.stdout.closed, "umask": os.umask(0o22),
        "handlers": [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)],
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0], "locale": locale.setlocale(locale.LC_ALL),
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "random": random.random(), "numpy": float(np.random.rand()), "torch": float(torch.rand(())),
        "dtype": str(torch.get_default_dtype()), "threads": torch.get_num_threads(), "grad": torch.is_grad_enabled(),
        "device": str(torch.get_default_device()), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(), "limit": sys.getrecursionlimit(),
        "logging": [logging.root.level, len(logging.root.handlers), logging.root.manager.disable],
        "start_method": multiprocessing.get_start_method(allow_none=True),
        "process_group": torch.distributed.is_initialized(),
    }

def double(x):
    return 2 * x

def train(config: Config, run: Run):
    kind = config.kind
    with (FOLDER / "states.jsonl").open("a") as file:
        file.write(json.dumps({"kind": kind, **state()}) + "\\n")
    if kind == "returns a number": return np.float32(0.25)
    if kind == "returns metrics": return {"loss": Fraction(1, 4), "f1": 0.5}
    if kind == "returns text": return "0.25"
    if kind == "returns a coroutine": return asyncio.sleep(0)
    return body(config, run)

def body(config, run):
    kind = config.kind
    yield ev(1)
    match kind:
        case "raises a BaseException": raise Abort("out")
        case "raises CancelledError": raise asyncio.CancelledError
        case "raises KeyboardInterrupt": raise KeyboardInterrupt
        case "raises GeneratorExit": raise GeneratorExit
        case "raises Interrupted": raise Interrupted("tired")
        case "raises without a text": raise Mute
        case "raises a surrogate": raise RuntimeError("a \\udc80 and \\0 b")
        case "raises a long text": raise RuntimeError("x" * 100_000)
        case "names a surrogate": yield ev(2, **{"a\\udc80\\0": 1.0})
        case "counts too much": yield ev(2, tokens=2**63)
        case "counts far too much": yield ev(2, tokens=10**5000)
        case "counts in floats": yield ev(2.0, tokens=np.float64(3))
        case "counts half": yield ev(1.5)
        case "counts nothing": yield ev(None)
        case "has no steps": yield ev(2, n_steps=0)
        case "is no duration": yield ev(2, seconds=float("nan"))
        case "yields None": yield None
        case "reports no number": yield ev(2, note="cpu", missing=None, vector=torch.ones(2), one=torch.ones(1))
        case "reports decimals": yield ev(2, Decimal("0.5"), big=10**400)
        case "reports None": yield ev(2, None)
        case "repeats a step": yield ev(1, 0.0); yield ev(3, 0.5); yield ev(2, 0.0)
        case "changes the process":
            os.chdir("/"); os.environ["PLANTED"] = "1"; sys.path.append("/planted"); sys.argv.append("--planted")
            os.umask(0o077); locale.setlocale(locale.LC_ALL, "C"); random.seed(5)
            np.random.seed(5); torch.manual_seed(5)
            torch.set_default_dtype(torch.float64); torch.set_num_threads(7); torch.set_grad_enabled(False)
            torch.set_default_device("meta"); torch.use_deterministic_algorithms(True); sys.setrecursionlimit(5000)
            torch.set_float32_matmul_precision("medium"); logging.basicConfig(level=5); logging.disable(50)
            multiprocessing.set_start_method("spawn")
            torch.distributed.init_process_group("gloo", init_method=f"file://{run.folder}/group", rank=0, world_size=1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1): signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
        case "sets an alarm": signal.alarm(1)
        case "closes its output":
            sys.stdout.close(); sys.stderr.close(); os.closerange(0, 3)
            raise RuntimeError("closed")
        case "uses a pool":
            with multiprocessing.get_context("fork").Pool(2) as pool:
                yield ev(2, float(sum(pool.map(double, range(3)))))
        case "forks":
            if os.fork() == 0: sys.exit(0)
        case "leaves processes":
            subprocess.Popen(["sleep", "31337"])
            subprocess.Popen(["bash", "-c", "trap '' TERM; while :; do sleep 31337; done"])
            subprocess.run("setsid sleep 31337 > /dev/null 2>&1 &", shell=True, check=True)
        case "leaves a thread": threading.Thread(target=time.sleep, args=(31337,)).start()
        case "fails in finally":
            try: yield ev(2, float("nan"))
            finally: raise Abort("closing")
        case "deletes its folder": import shutil; shutil.rmtree(run.folder)
    yield ev(3)
'''
COMPLETE, FAILED = ("complete", None), "failed"
# The outcome and reason of each kind.
ENDS = {
    "plain": COMPLETE,
    "raises a BaseException": (FAILED, "Abort: out"),
    "raises CancelledError": (FAILED, "CancelledError: "),
    "raises KeyboardInterrupt": (FAILED, "KeyboardInterrupt: "),
    "raises GeneratorExit": (FAILED, "GeneratorExit: "),
    "raises Interrupted": (FAILED, "Interrupted: tired"),
    "raises without a text": (FAILED, "Mute: its message cannot be shown"),
    "raises a surrogate": (FAILED, "RuntimeError: a \ufffd and  b"),
    "raises a long text": (FAILED, f"RuntimeError: {'x' * 1000}..."),
    "names a surrogate": COMPLETE,
    "counts too much": (FAILED, f"tokens is {2**63}, which is not within 0 and {2**63 - 1}"),
    "counts far too much": (FAILED, f"tokens is a value of type int, which is not within 0 and {2**63 - 1}"),
    "counts in floats": COMPLETE,
    "counts half": (FAILED, "step is 1.5, which is not a whole number"),
    "counts nothing": (FAILED, "step is None, which is not a whole number"),
    "has no steps": (FAILED, f"n_steps is 0, which is not within 1 and {2**63 - 1}"),
    "is no duration": (FAILED, "seconds is nan, which is not a duration in seconds"),
    "yields None": (FAILED, "the objective yielded None, which is not an Evaluation"),
    "reports no number": COMPLETE,
    "reports decimals": COMPLETE,
    "reports None": (FAILED, "'loss' is None, which is not a number"),
    "repeats a step": COMPLETE,
    "returns a number": COMPLETE,
    "returns metrics": COMPLETE,
    "returns text": (FAILED, "the objective returned '0.25': expected Evaluations, or the value of 'loss'"),
    "returns a coroutine": (FAILED, "the objective returned <coroutine object sleep at"),
    "changes the process": COMPLETE,
    "sets an alarm": COMPLETE,
    "closes its output": (FAILED, "RuntimeError: closed"),
    "uses a pool": COMPLETE,
    "forks": COMPLETE,
    "leaves processes": COMPLETE,
    "leaves a thread": COMPLETE,
    "fails in finally": ("diverged", "loss is nan at step 2"),
    "deletes its folder": COMPLETE,
}
STUDY = """
name = "hostile"
objective = "hostile_objective:train"
metric = "loss"
[budget]
trials = {n}
[sampler]
name = "random"
[pruner]
name = "none"
[search_space]
kind = {{ choices = {kinds} }}
"""
TIMEOUT_S = 100


class Workplace:
    """A folder with the objective, a database, and workers that are processes."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        (folder / "hostile_objective.py").write_text(OBJECTIVE)

    def create(self):
        """Create a study with a trial of each kind, in their order; that of the defaults is the first."""
        text = STUDY.format(n=len(ENDS), kinds=json.dumps(list(ENDS)))
        with pytest.MonkeyPatch.context() as patch, closing(Database(self.url)) as database:
            patch.syspath_prepend(self.folder)
            migrate.upgrade(database)
            study = studies.create_study(database, parse_study_file(text, "hostile.toml"))
            for kind in list(ENDS)[1:]:
                optuna.load_study(study_name=study.name, storage=database.optuna).enqueue_trial({"kind": kind})
        del sys.modules["hostile_objective"]

    def start(self, *options):
        environment = {**os.environ, "HPOPT_STORAGE": self.url, "HPOPT_HOME": str(self.folder / "home")}
        return subprocess.Popen(
            [sys.executable, "-m", "hpopt", "worker", "hostile", "--device", "cpu", *options],
            cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def rows(self, query):
        with closing(Database(self.url)) as database:
            return [tuple(row) for row in queries.read_rows(database, query)[1]]

    def wait_for(self, condition):
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if result := condition():
                return result
            time.sleep(0.05)
        raise AssertionError("timed out")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, shared_database_url):
    """A folder in which one worker has run a trial of each kind, and `plain` after each of them."""
    workplace = Workplace(tmp_path_factory.mktemp("hostile"), shared_database_url)
    workplace.create()
    process = workplace.start()
    workplace.output, _ = process.communicate(timeout=TIMEOUT_S)
    workplace.exit_code = process.returncode
    return workplace


def test_the_worker_runs_all_trials_and_exits_with_0(workplace):
    """Also after a thread that does not end."""
    assert workplace.exit_code == 0, workplace.output
    assert workplace.output.endswith(f"finished: trials budget exhausted ({len(ENDS)})\n")
    assert workplace.rows("select count(*) from hpopt.worker") == [(1,)]


@pytest.mark.parametrize("kind", ENDS)
def test_a_trial_has_its_outcome_and_reason(workplace, kind):
    rows = workplace.rows(f"select outcome, reason from hpopt.trials where params->>'kind' = '{kind}'")
    outcome, reason = ENDS[kind]
    assert len(rows) == 1
    assert rows[0][0] == outcome, workplace.output
    assert (rows[0][1] or "").startswith(reason or "")


def test_every_trial_starts_in_the_same_process_state(workplace):
    states = [json.loads(line) for line in (workplace.folder / "states.jsonl").read_text().splitlines()]
    assert [state.pop("kind") for state in states] == list(ENDS)
    assert [state for state in states if state != states[0]] == []
    assert states[0]["is_open"]


def test_no_process_is_left(workplace):
    def is_left(process):
        with process.oneshot():
            return (
                str(workplace.folder) in process.info["environ"].get("HPOPT_HOME", "")
                if process.info["environ"]
                else False
            )

    assert [process.info for process in psutil.process_iter(["environ", "cmdline"]) if is_left(process)] == []


def test_metrics_that_are_no_numbers_are_left_out_with_a_warning_that_names_them(workplace):
    (metrics,) = workplace.rows(
        "select l.metrics from hpopt.learning_curves l join hpopt.trials using (study_name, trial)"
        " where params->>'kind' = 'reports no number' and step = 2"
    )
    assert metrics[0] == {"loss": 1.0, "one": 1.0}
    for line in ("'note' is 'cpu'", "'missing' is None", "'vector' is tensor([1., 1.])"):
        assert f"metric {line}, which is not a number: left out\n" in workplace.output


def test_a_step_counts_once_with_its_first_value(workplace):
    assert "step 1 after step 1 is left out: steps must increase\n" in workplace.output
    steps = workplace.rows(
        "select step, l.metrics->>'loss' from hpopt.learning_curves l join hpopt.trials t using (study_name, trial)"
        " where t.params->>'kind' = 'repeats a step' order by step"
    )
    assert steps == [(1, "1.0"), (3, "0.5")]
