import json
import os
import signal
import subprocess
import sys

import pytest

from hpopt.training.command import run_command
from hpopt.training.config import PretrainConfig
from hpopt.training.pretrain import pretrain

TINY = {
    "vocab_size": 300,
    "d_model": 32,
    "n_layers": 1,
    "n_heads": 2,
    "d_ff": 64,
    "n_experts": 4,
    "sequence_length": 16,
    "batch_size": 4,
    "eval_tokens": 256,
}


@pytest.fixture
def command(dataset, cache, tmp_path):
    """Give the arguments of a tiny run, with others added."""

    def make(*more):
        tiny = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
        places = [
            "--dataset",
            str(dataset),
            "--cache",
            str(cache),
            "--folder",
            str(tmp_path / "run"),
            "--device",
            "cpu",
        ]
        return [*tiny, *places, *more]

    return make


def test_parameters_reach_the_training_and_evaluations_are_lines_of_json(command, capsys):
    """`hpopt best --format args` prints such arguments: the best parameters must be usable as they are."""
    arguments = command("--max_steps", "4", "--eval_steps", "2", "--learning_rate", "0.03", "--warmup_ratio", "0")
    assert run_command(pretrain, PretrainConfig, arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert 0 < lines[0]["learning_rate"] < 0.03
    assert lines[-1]["tokens"] == 4 * 4 * 16


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--learning_rate", "fast"], "hpopt: learning_rate: 'fast' is not a number\n"),
        (["--compile", "yes"], "hpopt: compile: 'yes' is not true or false\n"),
        (["--n_heads", "3"], "hpopt: d_model: 32 is not divisible by n_heads 3\n"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(command, capsys, arguments, line):
    assert run_command(pretrain, PretrainConfig, command(*arguments)) == 2
    assert capsys.readouterr().err == line


def test_sigterm_writes_the_checkpoint_and_the_same_command_goes_on(command, tmp_path):
    """A preempted training loses nothing, with or without a study."""
    arguments = [sys.executable, "-m", "hpopt.training.pretrain", *command("--max_steps", "2000", "--eval_steps", "1")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first = json.loads(process.stdout.readline())
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert err.splitlines()[-1].endswith("; the checkpoint is written")
    last = json.loads(([json.dumps(first), *out.splitlines()])[-1])
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        resumed = json.loads(process.stdout.readline())
        process.kill()
    assert resumed["step"] in (last["step"], last["step"] + 1)
    assert resumed["seconds"] >= last["seconds"]
