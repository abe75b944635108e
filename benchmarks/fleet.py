"""Owns the workers of chaos.py and their supervisor: whoever ends is started again, whatever it ended of.

Leaves what ends them to faults.py. Each has a link of proxy.py to the database, and a log.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Self

from faults import Patience
from proxy import HOST, Link
from sqlalchemy import make_url

HERE = Path(__file__).resolve().parent
# What a worker may end with: its study over, stopped early, and the signals that faults send.
_EXPECTED_EXITS = {0, 75, -signal.SIGKILL, -signal.SIGTERM}
_LAST_WORDS_S = 2.0


class Fleet:
    """The workers, each with a link to the database and a log, and started again whenever it ends."""

    def __init__(self, folder: Path, study: str, storage: str, links: list[Link], patience: Patience) -> None:
        self.exits: Counter[str] = Counter()
        self.troubles: list[str] = []
        self.links = links
        self.processes: list[subprocess.Popen[bytes]] = []
        # The processes that have come as far as a trial.
        self.seasoned: set[int] = set()
        # How often a worker that lived was told that its trial had been handed on.
        self.n_fenced = 0
        self._folder = folder
        self._study = study
        self._storage = storage
        self._patience = patience
        self._budget = 0
        # By process: the budget that it was started for, and the thread that writes its log.
        self._budgets: dict[int, int] = {}
        self._writers: dict[int, threading.Thread] = {}

    def __enter__(self) -> Self:
        (self._folder / "logs").mkdir()
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            _kill(process)

    def start(self, budget: int) -> None:
        """Start every worker that does not run, for a study of this budget."""
        self._budget = budget
        if not self.processes:
            self.processes = [self._spawn(place) for place in range(len(self.links))]
        self.tend()

    def tend(self) -> bool:
        """Start anew whoever has ended, but for those that say the study is over; False when that is all of them."""
        for place, process in enumerate(self.processes):
            code = process.poll()
            if code is None or (code == 0 and self._budgets[process.pid] == self._budget):
                continue
            self._note(place, process)
            self.processes[place] = self._spawn(place)
        return any(process.poll() is None for process in self.processes)

    def end(self) -> None:
        """Write down how the last ones ended."""
        for place, process in enumerate(self.processes):
            if process.poll() is None:
                self.troubles.append(
                    f"worker {place}, process {process.pid}, did not end by itself ({self._log(place)})"
                )
                _kill(process)
            self._note(place, process)

    def n_over(self) -> int:
        """Count the workers that say the study is over."""
        return sum(process.poll() == 0 for process in self.processes)

    def _note(self, place: int, process: subprocess.Popen[bytes]) -> None:
        code = process.returncode
        self.exits[f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"] += 1
        if code not in _EXPECTED_EXITS:
            self._writers[process.pid].join(_LAST_WORDS_S)
            log = self._log(place)
            said = [line for line in log.read_text(errors="replace").splitlines() if f"[{process.pid}]" in line]
            self.troubles.append(f"worker {place} ended with {code}: {said[-1] if said else 'no output'} ({log})")

    def _spawn(self, place: int) -> subprocess.Popen[bytes]:
        url = make_url(self._storage).set(host=HOST, port=self.links[place].port).render_as_string(hide_password=False)
        patience = self._patience
        words = {
            "--home": self._folder / "home",
            "--device": "cpu",
            "--heartbeat-every": patience.heartbeat_every_s,
            "--stale-after": patience.stale_after_s,
            "--give-up-after": patience.give_up_after_s,
        }
        options = [str(word) for option in words.items() for word in option]
        command = [sys.executable, "-m", "hpopt", "worker", self._study, *options, "--stop-with-parent"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HPOPT_", "PG"))}
        paths = os.pathsep.join(filter(None, [str(HERE), inherited.get("PYTHONPATH")]))
        environment = {**inherited, "HPOPT_STORAGE": url, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        # Logs go through a pipe, because a process that may not write to files must still be able to say so.
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
        writer = threading.Thread(target=self._write_log, args=(process, self._log(place)), daemon=True)
        writer.start()
        self._writers[process.pid] = writer
        return process

    def _write_log(self, process: subprocess.Popen[bytes], path: Path) -> None:
        with path.open("ab", buffering=0) as log:
            for line in process.stdout or ():
                log.write(f"{time.strftime('%H:%M:%S')} [{process.pid}] ".encode() + line)
                if b" starts" in line:
                    self.seasoned.add(process.pid)
                self.n_fenced += b"was handed on to another worker" in line

    def _log(self, place: int) -> Path:
        return self._folder / "logs" / f"worker-{place}.log"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process for good, frozen or not."""
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
