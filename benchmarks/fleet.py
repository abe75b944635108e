"""Run the worker processes of chaos.py, each over a link of proxy.py and with a log, and restart those that end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil
from faults import Timeouts
from proxy import HOST, Link
from sqlalchemy import make_url

HERE = Path(__file__).resolve().parent
# The study has finished, the worker was interrupted, and the signals that faults send.
_EXPECTED_EXITS = {0, 75, -signal.SIGKILL, -signal.SIGTERM}
_LOG_TIMEOUT_S = 2.0


class Fleet:
    """The worker processes, each of which is started again when it ends before the study has finished."""

    def __init__(self, folder: Path, study: str, storage: str, links: list[Link], timeouts: Timeouts) -> None:
        self.exits: Counter[str] = Counter()
        self.problems: list[str] = []
        self.links = links
        self.processes: list[subprocess.Popen[bytes]] = []
        # The processes that have started a trial.
        self.pids_with_trials: set[int] = set()
        # How often a running worker found that its trial had been reassigned.
        self.n_fenced = 0
        self._folder = folder
        self._study = study
        self._storage = storage
        self._timeouts = timeouts
        self._budget = 0
        # By process id: the budget that the process was started for, and the thread that writes its log.
        self._budgets: dict[int, int] = {}
        self._writers: dict[int, threading.Thread] = {}

    def __enter__(self) -> Self:
        (self._folder / "logs").mkdir()
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            _kill(process)

    def start(self, budget: int) -> None:
        """Start every worker that is not running, for a study of this budget."""
        self._budget = budget
        if not self.processes:
            self.processes = [self._spawn(number) for number in range(len(self.links))]
        self.supervise()

    def supervise(self) -> bool:
        """Restart workers that ended, except for the study having finished; return whether any is running."""
        for number, process in enumerate(self.processes):
            code = process.poll()
            if code is None or (code == 0 and self._budgets[process.pid] == self._budget):
                continue
            self._record_exit(number, process)
            self.processes[number] = self._spawn(number)
        return any(process.poll() is None for process in self.processes)

    def end(self) -> None:
        """Kill the workers that are still running, and record how each one ended."""
        for number, process in enumerate(self.processes):
            if process.poll() is None:
                self.problems.append(f"worker {number}, process {process.pid}, did not exit ({self._log(number)})")
                _kill(process)
            self._record_exit(number, process)

    def n_finished(self) -> int:
        """Count the workers that exited because the study has finished."""
        return sum(process.poll() == 0 for process in self.processes)

    def _record_exit(self, number: int, process: subprocess.Popen[bytes]) -> None:
        code = process.returncode
        left = _group_of(process.pid)
        if left and code >= 0:
            self.problems.append(f"worker {number}, process {process.pid}, left running: {left} ({self._log(number)})")
        # What a training function leaves is ended by the worker, or by what started a worker that was killed.
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.exits[f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"] += 1
        if code not in _EXPECTED_EXITS:
            self._writers[process.pid].join(_LOG_TIMEOUT_S)
            log = self._log(number)
            lines = [line for line in log.read_text(errors="replace").splitlines() if f"[{process.pid}]" in line]
            self.problems.append(f"worker {number} exited with {code}: {lines[-1] if lines else 'no output'} ({log})")

    def _spawn(self, number: int) -> subprocess.Popen[bytes]:
        link = self.links[number]
        url = make_url(self._storage).set(host=HOST, port=link.port, query=link.query)
        timeouts = self._timeouts
        options = {
            "--home": self._folder / "home",
            "--device": "cpu",
            "--heartbeat-every": timeouts.heartbeat_every_s,
            "--stale-after": timeouts.stale_after_s,
            "--give-up-after": timeouts.give_up_after_s,
        }
        words = [str(word) for option in options.items() for word in option]
        command = [sys.executable, "-m", "hpopt", "worker", self._study, *words, "--stop-with-parent"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HPOPT_", "PG"))}
        paths = os.pathsep.join(filter(None, [str(HERE), inherited.get("PYTHONPATH")]))
        environment = {**inherited, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        environment["HPOPT_STORAGE"] = url.render_as_string(hide_password=False)
        # Logs go through a pipe, because a process that cannot write to files must still be able to log it.
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._budgets[process.pid] = self._budget
        writer = threading.Thread(target=self._write_log, args=(process, self._log(number)), daemon=True)
        writer.start()
        self._writers[process.pid] = writer
        return process

    def _write_log(self, process: subprocess.Popen[bytes], path: Path) -> None:
        with path.open("ab", buffering=0) as log:
            for line in process.stdout or ():
                log.write(f"{time.strftime('%H:%M:%S')} [{process.pid}] ".encode() + line)
                if b" starts" in line:
                    self.pids_with_trials.add(process.pid)
                self.n_fenced += b"was reassigned to another worker" in line

    def _log(self, number: int) -> Path:
        return self._folder / "logs" / f"worker-{number}.log"


def _group_of(pid: int) -> list[int]:
    """Return the running processes of the group that a worker leads, without the worker."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, frozen or not."""
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
