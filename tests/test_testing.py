"""hpopt.testing finds what a worker would refuse or lose."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from hpopt.errors import Interrupted
from hpopt.testing import check
from hpopt.training.run import Evaluation, Run

STUDY = """
name = "tried"
objective = "{module}:train"
metric = "loss"
[budget]
trials = 2
[search_space]
x = {{ low = 0.0, high = 1.0 }}
"""
MODULE = """
import os
from dataclasses import dataclass
from hpopt.training.run import Evaluation

print("imported")

@dataclass(frozen=True)
class Config:
    x: float = 0.5
    seed: int = 0

def train(config: Config, run):
    for step in (1, 2, 3):
        {statement}
        run.checkpoint.write_text(str(step))
        yield Evaluation(step=step, n_steps=3, tokens=step, seconds=0.0, metrics={{"loss": config.x + 1 / step}})
"""


@dataclass(frozen=True)
class Config:
    """What the functions below take."""

    n_steps: int = 4
    seed: int = 0


def evaluation(config, step, **changes):
    values = {"step": step, "n_steps": config.n_steps, "tokens": step, "seconds": 0.0, "metrics": {"loss": 1 / step}}
    return Evaluation(**{**values, **changes})


def train(config: Config, run: Run):
    """Train as a function should."""
    done = int(run.checkpoint.read_text()) if run.checkpoint.exists() else 0
    for step in range(done + 1, config.n_steps + 1):
        if run.should_stop():
            raise Interrupted(f"stopped after step {step - 1}")
        run.checkpoint.write_text(str(step))
        yield evaluation(config, step)


def score(config: Config, run: Run):
    return 1 / config.n_steps


def forgets_its_checkpoint(config: Config, run: Run):
    for step in range(1, config.n_steps + 1):
        yield evaluation(config, step)


def counts_its_own_steps(config: Config, run: Run):
    yield evaluation(config, 1, n_steps=2)
    yield evaluation(config, 2, n_steps=1)


def reports_text(config: Config, run: Run):
    yield evaluation(config, 1, metrics={"loss": 1.0, "device": "cpu"})


def repeats_its_step(config: Config, run: Run):
    yield evaluation(config, 1)
    yield evaluation(config, 1)


def refuses_to_be_closed(config: Config, run: Run):
    try:
        yield from train(config, run)
    except GeneratorExit:
        raise RuntimeError("not now") from None


def fails(config: Config, run: Run):
    yield evaluation(config, 1)
    raise KeyError("x")


@pytest.mark.parametrize("function", [train, score])
def test_a_function_that_a_worker_can_run_passes(function):
    check(function, metric="loss")


def test_a_function_that_cannot_resume_passes_if_that_is_said():
    check(forgets_its_checkpoint, metric="loss", can_resume=False)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (forgets_its_checkpoint, "a run that was stopped after step 1 begins again and reports step 1: save to run"),
        (counts_its_own_steps, "n_steps differs between evaluations: it is the number of steps of the whole run"),
        (reports_text, "metric 'device' is 'cpu', which is not a number: left out"),
        (repeats_its_step, "step 1 after step 1 is left out: steps must increase"),
        (refuses_to_be_closed, "the training function raised while it was closed: RuntimeError: not now"),
        (fails, "failed: KeyError: 'x'"),
    ],
)
def test_what_a_worker_would_refuse_or_lose_is_said(function, line):
    with pytest.raises(AssertionError) as raised:
        check(function, metric="loss")
    assert str(raised.value).startswith(line)


def test_a_metric_that_is_not_reported_is_named():
    with pytest.raises(AssertionError, match=r"^failed: the objective reports no 'val_loss'; it reports loss"):
        check(train)


def try_study(folder, statement):
    (folder / "tried_module.py").write_text(MODULE.format(statement=statement))
    (folder / "tried.toml").write_text(STUDY.format(module="tried_module"))
    command = [sys.executable, "-m", "hpopt", "check", "tried.toml", "--try", "--device", "cpu"]
    environment = {**os.environ, "HPOPT_STORAGE": "postgresql://nobody@127.0.0.1:1/none"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_check_tries_the_objective_without_a_database(tmp_path):
    done = try_study(tmp_path, "if run.checkpoint.exists() and run.checkpoint.read_text() >= str(step): continue")
    assert done.returncode == 0, done
    assert "imported" not in done.stdout
    assert [line.rpartition(" after ")[0] for line in done.stdout.splitlines()[-2:]] == [
        "tried: step 1 of 3",
        "tried: step 2 of 3",
    ]


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("print(config.y)", "tried.toml: tried_module:train: failed: AttributeError: 'Config' object has no attribute"),
        ("os._exit(0)", "tried.toml: the training function ended its process with exit code 0"),
        ("os.kill(os.getpid(), 11)", "tried.toml: the training function ended its process by SIGSEGV"),
    ],
)
def test_check_says_what_a_fleet_would_meet(tmp_path, statement, line):
    done = try_study(tmp_path, statement)
    assert done.returncode == 2, done
    assert done.stdout.endswith("less with pruning\n")
    assert done.stderr.splitlines()[-1].startswith(f"hpopt: {line}")
