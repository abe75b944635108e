"""Run workers as a Slurm job array: write the batch script, submit it, cancel it.

A task of the array is one worker. Slurm requeues it after a lost node or a preemption. After exit code 75, with which a
worker ends when it is asked to stop before its time limit, the task requeues itself.
"""

import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpopt.errors import InputError
from hpopt.launch.job import JobSpec, run_client, without_secrets, write_passfile

_HINT = "run this on a login node of the cluster"
# A worker handles SIGTERM within 10 s. Slurm checks time limits twice a minute.
_WARNING_S = 90
# Slurm kills a cancelled job KillWait after SIGTERM, 30 s by default.
_CANCEL_TIMEOUT_S = 60
_POLL_EVERY_S = 1.0
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?")
# Slurm's formats: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on.
_SLURM_TIME = re.compile(r"\d+|\d+(:\d+){1,2}|\d+-\d+(:\d+){0,2}")

_SCRIPT = """\
#!/bin/bash
{directives}
{exports}
worker= asked=
trap 'asked=yes; [ -z "$worker" ] || kill -TERM "$worker"' TERM
{command} &
worker=$!
[ -z "$asked" ] || kill -TERM "$worker"
# A signal interrupts `wait`, so wait until the worker has ended; the last `wait` returns its exit code.
while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done
wait "$worker"
code=$?
echo "hpopt: worker exited with code $code"
# 0: the study is finished. 1 and 2: the worker would fail again. Otherwise requeue this task, unless it was cancelled
# or Slurm has requeued it.
case "$code" in
  0 | 1 | 2) ;;
  *)
    state=$(timeout 30 squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")
    [ "$state" = RUNNING ] && timeout 30 scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
exit "$code"
"""


def write_script(job: JobSpec, folder: Path, *, partition: str | None, time_limit: str | None) -> str:
    """Return the batch script that runs a job's workers in `folder`. It contains no password."""
    exports = job.environment(job.passfile)
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {option}" for option in _sbatch_options(job, folder, partition, time_limit)),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        command=shlex.join([sys.executable, "-m", "hpopt", *job.command]),
    )


def submit(job: JobSpec, script: str, sbatch_args: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit a script and return its job id. Raises InputError if Slurm refuses it."""
    write_passfile(job.passfile, job.credentials)
    job.log_folder.mkdir(parents=True, exist_ok=True)
    command = ["sbatch", "--parsable", *sbatch_args]
    return run_client(command, hint=_HINT, stdin=script, environment=without_secrets(environment)).partition(";")[0]


def cancel(job: JobSpec) -> int:
    """Cancel this user's jobs of a study, wait until they have ended, and return the number of their tasks."""
    own_jobs = ["--name", job.name, "--user", str(os.getuid())]

    def count_tasks() -> int:
        return len(run_client(["squeue", "--noheader", "--array", "--format=%i", *own_jobs], hint=_HINT).splitlines())

    n_tasks = n_left = count_tasks()
    if n_tasks:
        run_client(["scancel", *own_jobs], hint=_HINT)
    deadline = time.monotonic() + _CANCEL_TIMEOUT_S
    while n_left and time.monotonic() < deadline:
        time.sleep(_POLL_EVERY_S)
        n_left = count_tasks()
    if not n_left:
        # Workers need the password until they have returned their trials to the queue.
        job.passfile.unlink(missing_ok=True)
    return n_tasks


def parse_time_limit(text: str) -> str:
    """Return a duration such as 4h, 1d12h or 90m in minutes, and one in a format of Slurm as it is.

    Raises InputError for anything else, and for a limit that leaves no time to train before the warning signal.
    """
    duration = _DURATION.fullmatch(text)
    if text and duration:
        days, hours, minutes = (int(part or 0) for part in duration.groups())
        total = (days * 24 + hours) * 60 + minutes
        if total * 60 <= _WARNING_S:
            raise InputError(f"--time: {text} is too short: workers are asked to stop {_WARNING_S} s before the limit")
        return str(total)
    if _SLURM_TIME.fullmatch(text):
        return text
    raise InputError(f"--time: expected a duration such as 4h, 90m, 1d12h or 2-12:00:00, got '{text}'")


def _sbatch_options(job: JobSpec, folder: Path, partition: str | None, time_limit: str | None) -> list[str]:
    return [
        f"--job-name={job.name}",
        f"--array=1-{job.n_workers}",
        "--nodes=1",
        "--ntasks=1",
        *([f"--gres=gpu:{job.gpus_per_worker}"] if job.gpus_per_worker else []),
        *([f"--partition={partition}"] if partition else []),
        *([f"--time={parse_time_limit(time_limit)}"] if time_limit is not None else []),
        f"--signal=B:TERM@{_WARNING_S}",
        "--requeue",
        "--open-mode=append",
        f"--chdir={_quote(str(folder))}",
        f"--output={_quote(str(job.log_folder).replace('%', '%%') + '/slurm-%A_%a.log')}",
    ]


def _quote(path: str) -> str:
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
