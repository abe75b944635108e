"""Owns calling the program by which an engine is asked for things: sbatch, squeue, scancel, kubectl."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence

from hpopt.errors import InputError

# With its controller down, Slurm's programs hang for minutes.
_TIMEOUT_S = 60


def ask(command: Sequence[str], *, missing: str, text: str = "", environment: Mapping[str, str] | None = None) -> str:
    """Run a program of an engine on `text` and give what it prints.

    Raises InputError when it is not there, with what to do then, when it hangs, and when it refuses, with its words.
    """
    if shutil.which(command[0]) is None:
        raise InputError(f"{command[0]} is not on this machine: {missing}")
    try:
        done = subprocess.run(
            command, input=text, text=True, capture_output=True, check=False, timeout=_TIMEOUT_S, env=environment
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{command[0]} has not answered for {_TIMEOUT_S} s") from None
    if done.returncode != 0:
        words = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise InputError(words if words.startswith(command[0]) else f"{command[0]}: {words}")
    return done.stdout.strip()
