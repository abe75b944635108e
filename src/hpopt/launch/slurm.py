"""Owns workers as a job array of Slurm: the script, handing it in, cancelling it. Leaves what they do to worker.py.

A task of the array is one worker. Slurm starts it again after a lost node or a preemption; after exit code 75, which a
worker gives when it is asked to stop before its time limit, the task puts itself back into the queue.
"""

import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpopt.errors import InputError
from hpopt.launch.client import ask
from hpopt.launch.job import Order, without_secrets, write_passfile

_MISSING = "Slurm is asked from a login node of its cluster"
# A worker answers SIGTERM within 10 s. Slurm looks at time limits twice a minute.
_WARNING_S = 90
# Sites let processes go on for half a minute after SIGTERM, as a rule.
_GONE_AFTER_S = 60
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?")
# Slurm's own: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on.
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
# A signal ends a wait early, so wait until the worker is gone; the last wait gives its exit code.
while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done
wait "$worker"
code=$?
# 0: the study is over. 1 and 2: another go would end the same. Else this task runs again, unless it was cancelled or
# Slurm has put it back by itself.
case "$code" in
  0 | 1 | 2) ;;
  *)
    state=$(timeout 30 squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")
    [ "$state" = RUNNING ] && timeout 30 scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
exit "$code"
"""


def write_script(order: Order, folder: Path, *, partition: str | None, limit: str | None) -> str:
    """Give the batch script of an order, to be run in `folder`; there is no password in it."""
    exports = order.environment(order.passfile)
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {each}" for each in _directives(order, folder, partition, limit)),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        command=shlex.join([sys.executable, "-m", "hpopt", *order.command]),
    )


def submit(order: Order, script: str, extra: Sequence[str], environment: Mapping[str, str]) -> str:
    """Hand in a script and give the number of its job. Raises InputError when Slurm refuses it."""
    write_passfile(order.passfile, order.access)
    order.logs.mkdir(parents=True, exist_ok=True)
    handed = without_secrets(environment)
    return ask(["sbatch", "--parsable", *extra], missing=_MISSING, text=script, environment=handed).partition(";")[0]


def cancel(order: Order) -> int:
    """Cancel the jobs of a study that this user has, wait until they are gone, and give the number of their tasks."""
    mine = ["--name", order.name, "--user", str(os.getuid())]

    def count() -> int:
        listed = ask(["squeue", "--noheader", "--array", "--format=%i", *mine], missing=_MISSING)
        return len(listed.splitlines())

    n_tasks = count()
    if n_tasks:
        ask(["scancel", *mine], missing=_MISSING)
    deadline = time.monotonic() + _GONE_AFTER_S
    while (n_left := count()) and time.monotonic() < deadline:
        time.sleep(1.0)
    if not n_left:
        # Until then workers may need it to hand their trials back.
        order.passfile.unlink(missing_ok=True)
    return n_tasks


def _directives(order: Order, folder: Path, partition: str | None, limit: str | None) -> list[str]:
    return [
        f"--job-name={order.name}",
        f"--array=1-{order.n_workers}",
        "--nodes=1",
        "--ntasks=1",
        *([f"--gres=gpu:{order.gpus_per_worker}"] if order.gpus_per_worker else []),
        *([f"--partition={partition}"] if partition else []),
        *([f"--time={slurm_time(limit)}"] if limit else []),
        f"--signal=B:TERM@{_WARNING_S}",
        "--requeue",
        "--open-mode=append",
        f"--chdir={_quoted(str(folder))}",
        f"--output={_quoted(str(order.logs).replace('%', '%%') + '/slurm-%A_%a.log')}",
    ]


def _quoted(path: str) -> str:
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def slurm_time(text: str) -> str:
    """Give a duration such as 4h, 1d12h or 90m as minutes, and one in Slurm's own words as it is.

    Raises InputError for anything else, and where it leaves no time to train before the warning.
    """
    spelled = _DURATION.fullmatch(text)
    if text and spelled:
        days, hours, minutes = (int(part or 0) for part in spelled.groups())
        total = (days * 24 + hours) * 60 + minutes
        if total * 60 <= _WARNING_S:
            raise InputError(f"--time: {text} is too short; workers are asked to stop {_WARNING_S} s before the end")
        return str(total)
    if _SLURM_TIME.fullmatch(text):
        return text
    raise InputError(f"--time: '{text}' is not a duration such as 4h, 90m, 1d12h or 2-12:00:00")
