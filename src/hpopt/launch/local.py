"""Run worker processes on this machine: start, restart and stop them."""

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self, cast

from filelock import FileLock, Timeout

from hpopt.errors import HpoptError, Interrupted

# A worker handles SIGTERM within 10 s; the rest is for the database.
_STOP_TIMEOUT_S = 15.0
# The driver's program hangs on a node with a broken GPU.
_DRIVER_TIMEOUT_S = 10
# After more short-lived workers in a row than this, another restart would fail too.
_MAX_RESTARTS = 5
_SHORT_LIFE_S = 60.0
# A worker that exits with this code asks to be run again, after a broken GPU or a lost database.
_RUN_AGAIN = Interrupted.exit_code
_MAX_PAUSE_S = 30.0
_POLL_S = 0.05
# With which the command line begins the line of an error.
_ERROR_PREFIX = "hpopt: "


def count_gpus() -> int:
    """Return the number of GPUs that the driver lists, without importing torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listing = subprocess.run(
            [program, "-L"], capture_output=True, text=True, check=False, timeout=_DRIVER_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def list_gpus(visible: str | None) -> list[str]:
    """Return the GPUs that workers may use: those of CUDA_VISIBLE_DEVICES where it is set, else all."""
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    return [str(index) for index in range(count_gpus())]


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def hold_pid_file(folder: Path, name: str) -> Iterator[None]:
    """Keep a locked file with this process's id in its name, so that `stop_by_pid_file` finds the process."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_pid_file_stem(name)}.{os.getpid()}"
    with FileLock(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def stop_by_pid_file(folder: Path, name: str) -> int:
    """Send SIGTERM to this user's processes on this machine that hold a pid file of a name; return their number."""
    n_stopped = 0
    for path in folder.glob(f"{_pid_file_stem(name)}.*"):
        try:
            # The kernel releases a process's locks when it ends. Its id may belong to another process by then.
            with FileLock(path, blocking=False):
                path.unlink(missing_ok=True)
        except Timeout:
            os.kill(int(path.suffix[1:]), signal.SIGTERM)
            n_stopped += 1
    return n_stopped


def _pid_file_stem(name: str) -> str:
    # Machines and users may share the folder.
    return f"{name}-{os.getuid()}.{platform.node()}"


@dataclass(kw_only=True)
class _Worker:
    """The process in a slot.

    Its part of the slot's log begins at `log_offset`. `n_early_exits` counts the slot's workers in a row that asked to
    be run again. Times are those of time.monotonic().
    """

    process: subprocess.Popen[bytes]
    started_at: float
    log_offset: int
    n_early_exits: int
    restart_at: float | None = None

    def is_short_lived(self) -> bool:
        return time.monotonic() - self.started_at <= _SHORT_LIFE_S


class LocalWorkers:
    """The workers that one command runs on this machine, a slot each. They end with it, however it ends."""

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
        self._workers: dict[int, _Worker] = {}

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        for slot in range(self._n_workers):
            self._start(slot)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def preview(self) -> list[str]:
        """Return each worker's command line, preceded by the variables that only this worker has."""
        command = f"hpopt {shlex.join(self._command)}"
        return [
            " ".join([*(f"{name}={value}" for name, value in self._slot_variables(slot).items()), command])
            for slot in range(self._n_workers)
        ]

    def supervise(self) -> bool:
        """Restart workers that ended early; return False once all have finished.

        A worker that exits with 75 is restarted after a pause, which doubles while workers of its slot are short-lived.
        Raises HpoptError if a worker refuses to run with exit code 1 or 2, or if too many short-lived ones in a row
        are killed or exit in any other way, as a training function can make them.
        """
        for slot, worker in list(self._workers.items()):
            code = _poll(worker.process)
            if code == 0:
                del self._workers[slot]
            elif code == _RUN_AGAIN:
                self._restart_after_pause(slot, worker)
            elif code is not None:
                self._restart(slot, worker, code)
        return bool(self._workers)

    def _restart_after_pause(self, slot: int, worker: _Worker) -> None:
        if worker.restart_at is None:
            worker.n_early_exits = worker.n_early_exits + 1 if worker.is_short_lived() else 1
            pause_s = min(2.0 ** (worker.n_early_exits - 1), _MAX_PAUSE_S)
            worker.restart_at = time.monotonic() + pause_s
            self._log(slot, f"{_describe_exit(_RUN_AGAIN)}, restarting in {pause_s:g} s")
        if time.monotonic() >= worker.restart_at:
            self._start(slot, worker.n_early_exits)

    def _restart(self, slot: int, worker: _Worker, code: int) -> None:
        self._n_restarts = self._n_restarts + 1 if worker.is_short_lived() else 1
        last_line = self._log_tail(slot)
        is_refusal = code in {1, 2} and last_line.startswith(_ERROR_PREFIX)
        if is_refusal or self._n_restarts > _MAX_RESTARTS:
            raise HpoptError(f"a {_describe_exit(code)}: {last_line} (log: {self.logs})")
        self._log(slot, f"{_describe_exit(code)}, restarting")
        self._start(slot, worker.n_early_exits)

    def _stop(self) -> None:
        """Ask the workers to return their trials to the queue and wait for them; kill those that take too long."""
        processes = [worker.process for worker in self._workers.values()]
        for process in processes:
            if _poll(process) is None:
                process.send_signal(signal.SIGTERM)
                # A training function can have replaced the handler of SIGTERM. The worker also stops at this.
                with suppress(BrokenPipeError):
                    cast("IO[bytes]", process.stdin).close()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        try:
            while any(_poll(process) is None for process in processes) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        finally:
            # Also after a second Ctrl-C: the trials return to the queue when their heartbeats expire.
            for process in processes:
                if _poll(process) is None:
                    process.kill()
                    process.wait()
                    _kill_group(process)

    def _start(self, slot: int, n_early_exits: int = 0) -> None:
        # Without this process nothing would restart the worker: it stops at the end of its standard input.
        command = [sys.executable, "-m", "hpopt", *self._command, "--stop-with-parent"]
        environment = self._environment | self._slot_variables(slot)
        with self._log_path(slot).open("ab") as log:
            log_offset = log.tell()
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._workers[slot] = _Worker(
            process=process, started_at=time.monotonic(), log_offset=log_offset, n_early_exits=n_early_exits
        )

    def _slot_variables(self, slot: int) -> dict[str, str]:
        """Return a worker's GPUs, or its share of the CPU cores unless the user has set OMP_NUM_THREADS."""
        if self._gpus:
            first = slot * self._gpus_per_worker
            gpus = {self._gpus[i % len(self._gpus)]: None for i in range(first, first + self._gpus_per_worker)}
            return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        n_cores = max(1, count_cores() // self._n_workers)
        return {"OMP_NUM_THREADS": self._environment.get("OMP_NUM_THREADS", str(n_cores))}

    def _log_path(self, slot: int) -> Path:
        return self.logs / f"worker-{slot}.log"

    def _log(self, slot: int, line: str) -> None:
        # A full disk must not end the other workers.
        with suppress(OSError), self._log_path(slot).open("a") as log:
            log.write(f"hpopt: {line}\n")

    def _log_tail(self, slot: int) -> str:
        """Return the last line that the slot's present worker has printed."""
        with self._log_path(slot).open("rb") as log:
            log.seek(self._workers[slot].log_offset)
            lines = log.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no output")


def _poll(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit code of a worker, after killing what its training function left running, or None if it runs."""
    if process.returncode is None and process.poll() is not None:
        _kill_group(process)
    return process.returncode


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _describe_exit(code: int) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    return f"worker {how}"
