"""Owns the worker processes of this machine: starts, restarts and stops them. Leaves what they do to worker.py."""

import fcntl
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

from hpopt.errors import HpoptError, Interrupted

# A worker answers SIGTERM within 10 s; a little more lets the database answer too.
_GRACE_S = 15.0
# On a sick node the driver's program hangs.
_DRIVER_TIMEOUT_S = 10
# Workers that die young this many times in a row have a reason that another start does not mend.
_MAX_RESTARTS = 5
_GOOD_LIFE_S = 60.0
# Who stops early and asks to be run again, for a sick GPU or a lost database, finds it mended after a while or not.
_STOPPED_EARLY = Interrupted.exit_code
_LONGEST_PAUSE_S = 30.0


def count_gpus() -> int:
    """Count the GPUs that the driver shows, without importing torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=_DRIVER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def list_gpus(visible: str | None) -> list[str]:
    """List the GPUs that workers may use: those of CUDA_VISIBLE_DEVICES where it is set, else all."""
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    return [str(number) for number in range(count_gpus())]


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def announced(folder: Path, name: str) -> Iterator[None]:
    """Let `stop_announced` find this process, by a file that it keeps locked for as long as it lives."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{platform.node()}.{os.getpid()}"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def stop_announced(folder: Path, name: str) -> int:
    """Send SIGTERM to the processes of this machine that announced themselves by a name; give their number."""
    n_stopped = 0
    for path in folder.glob(f"{name}.{platform.node()}.*"):
        with path.open() as file:
            try:
                # Whoever had it is dead, and its number may be another's by now.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            except BlockingIOError:
                os.kill(int(path.suffix[1:]), signal.SIGTERM)
                n_stopped += 1
    return n_stopped


class LocalWorkers:
    """The workers that one command runs on this machine; they end with it, however it ends."""

    def __init__(
        self,
        command: Sequence[str],
        n_workers: int,
        environment: Mapping[str, str],
        logs: Path,
        *,
        gpus_per_worker: int = 1,
    ) -> None:
        """Take the arguments of `hpopt`, and the environment, of every worker."""
        self._command = command
        self._environment = dict(environment)
        self.logs = logs
        self._gpus = list_gpus(environment.get("CUDA_VISIBLE_DEVICES")) if gpus_per_worker else []
        self._gpus_per_worker = gpus_per_worker
        self._n_workers = n_workers
        self._n_restarts = 0
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._started: dict[int, float] = {}
        # By place: how often in a row a worker stopped early, and when the next one is started.
        self._n_early: dict[int, int] = {}
        self._due: dict[int, float] = {}
        self._log_starts: dict[int, int] = {}

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        for place in range(self._n_workers):
            self._processes[place] = self._spawn(place)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def preview(self) -> list[str]:
        """Give the command of each worker, with what is its own in its environment."""
        shares = [
            " ".join(f"{name}={value}" for name, value in self._share(place).items())
            for place in range(self._n_workers)
        ]
        return [f"{share} hpopt {shlex.join(self._command)}" for share in shares]

    def tend(self) -> bool:
        """Start dead workers anew; False once all have ended by themselves. Raises HpoptError when they keep dying.

        One that stopped early and asks to be run again is, after a pause that doubles while its lives are short.
        """
        for place, process in list(self._processes.items()):
            code = process.poll()
            if code == 0:
                del self._processes[place]
            elif code == _STOPPED_EARLY:
                self._restart_later(place)
            elif code is not None:
                self._restart(place, code)
        return bool(self._processes)

    def _restart_later(self, place: int) -> None:
        now = time.monotonic()
        if place not in self._due:
            self._n_early[place] = 1 if self._lived_well(place) else self._n_early.get(place, 0) + 1
            self._due[place] = now + min(2.0 ** (self._n_early[place] - 1), _LONGEST_PAUSE_S)
        if now >= self._due[place]:
            del self._due[place]
            self._processes[place] = self._spawn(place)

    def _restart(self, place: int, code: int) -> None:
        self._n_restarts = 1 if self._lived_well(place) else self._n_restarts + 1
        if code in {1, 2} or self._n_restarts > _MAX_RESTARTS:
            raise HpoptError(f"a worker {_describe_end(code)}: {self._last_words(place)}")
        self._processes[place] = self._spawn(place)

    def _lived_well(self, place: int) -> bool:
        return time.monotonic() - self._started[place] > _GOOD_LIFE_S

    def _stop(self) -> None:
        """Ask the workers to hand back their trials and wait for them; those that do not answer are killed."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        try:
            for process in self._processes.values():
                process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also when the user is out of patience: the trials go back to the queue when their heartbeats run out.
            for process in self._processes.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def _spawn(self, place: int) -> subprocess.Popen[bytes]:
        environment = self._environment | self._share(place)
        # Without the parent no one would restart or show them: a closed standard input tells them that it is gone.
        command = [sys.executable, "-m", "hpopt", *self._command, "--stop-with-parent"]
        self._started[place] = time.monotonic()
        with self._log(place, "ab") as log:
            self._log_starts[place] = log.tell()
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def _share(self, place: int) -> dict[str, str]:
        """Give a worker its GPUs, or its part of the processor's cores where the user has not said how many."""
        if self._gpus:
            first = place * self._gpus_per_worker
            mine = {self._gpus[i % len(self._gpus)]: None for i in range(first, first + self._gpus_per_worker)}
            return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
        cores = str(max(1, count_cores() // self._n_workers))
        return {"OMP_NUM_THREADS": self._environment.get("OMP_NUM_THREADS", cores)}

    def _log(self, place: int, mode: str) -> IO[bytes]:
        return (self.logs / f"worker-{place}.log").open(mode)

    def _last_words(self, place: int) -> str:
        with self._log(place, "rb") as log:
            log.seek(self._log_starts[place])
            lines = log.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no output") + f" (log: {self.logs})"


def _describe_end(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed (exit code {code})"
