"""The batch script of a job. tests/engines runs it in Slurm."""

import shlex
import subprocess

import pytest

from hpopt.errors import InputError
from hpopt.launch.slurm import parse_time_limit, write_script


def test_the_script_asks_for_the_workers_and_their_gpus(job_spec, tmp_path):
    lines = write_script(job_spec, tmp_path, partition="a100", time_limit="4h").splitlines()
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--job-name=hpopt-tiny-0123abcd", "--array=1-3", "--gres=gpu:1", "--requeue"} <= set(directives)
    assert {"--partition=a100", "--time=240", f'--chdir="{tmp_path}"'} <= set(directives)


def test_the_script_has_no_password_but_the_path_of_its_file(job_spec, tmp_path):
    script = write_script(job_spec, tmp_path, partition=None, time_limit=None)
    assert job_spec.credentials.password not in script
    assert f"export PGPASSFILE={shlex.quote(str(job_spec.passfile))}" in script.splitlines()
    assert "export HPOPT_STORAGE='postgresql+psycopg2://ann@db.example:5432/studies?sslmode=require'" in script


@pytest.mark.parametrize(
    ("code", "state", "is_requeued"),
    [
        (0, "RUNNING", False),
        (1, "RUNNING", False),
        (2, "RUNNING", False),
        (75, "RUNNING", True),
        (137, "RUNNING", True),
        (75, "COMPLETING", False),
    ],
)
def test_a_task_requeues_itself_if_its_worker_was_interrupted(job_spec, tmp_path, code, state, is_requeued):
    """A cancelled task must not: Slurm would run it again."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {"squeue": f"echo {state}", "scontrol": 'echo "$@" >> "$CALLS"'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    script = write_script(job_spec, tmp_path, partition=None, time_limit=None)
    command = next(line for line in script.splitlines() if line.endswith("&"))
    calls = tmp_path / "calls"
    completed = subprocess.run(
        ["bash"],
        input=script.replace(command, f"(exit {code}) &"),
        text=True,
        stdout=subprocess.PIPE,
        check=False,
        env={"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "CALLS": str(calls)},
    )
    assert completed.returncode == code
    assert completed.stdout == f"hpopt: worker exited with code {code}\n"
    assert calls.exists() is is_requeued
    assert not is_requeued or calls.read_text() == "requeue 7\n"


def test_sigterm_reaches_the_worker_and_its_exit_code_is_kept(job_spec, tmp_path):
    script = write_script(job_spec, tmp_path, partition=None, time_limit=None)
    command = next(line for line in script.splitlines() if line.endswith("&"))
    handler_of_sigterm = """bash -c 'trap "sleep 0.5; exit 2" TERM; echo ready; while :; do sleep 0.1; done' &"""
    path = tmp_path / "script"
    path.write_text(script.replace(command, handler_of_sigterm))
    with subprocess.Popen(["bash", path], text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=20) == 2


@pytest.mark.parametrize(
    ("text", "minutes"), [("4h", "240"), ("90m", "90"), ("1d12h", "2160"), ("120", "120"), ("2-12:00:00", "2-12:00:00")]
)
def test_time_limits_are_durations_or_in_a_format_of_slurm(text, minutes):
    assert parse_time_limit(text) == minutes


@pytest.mark.parametrize("text", ["", "4 hours", "h", "1m", "0h", "-3h", "4h30"])
def test_other_time_limits_are_refused(text):
    with pytest.raises(InputError, match="--time"):
        parse_time_limit(text)
