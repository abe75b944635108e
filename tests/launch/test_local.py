"""Worker processes of this machine, and the pid files by which another process stops them."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpopt.errors import HpoptError
from hpopt.launch.local import LocalWorkers, stop_by_pid_file

HOLD = """
import signal, sys
from pathlib import Path
from hpopt.launch.local import hold_pid_file
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
with hold_pid_file(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    signal.pause()
"""


def hold(folder: Path, name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, name], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_processes_that_hold_a_pid_file_are_asked_to_stop(tmp_path):
    with hold(tmp_path, "a") as first, hold(tmp_path, "a") as second, hold(tmp_path, "b") as other:
        assert stop_by_pid_file(tmp_path, "a") == 2
        assert (first.wait(timeout=20), second.wait(timeout=20)) == (75, 75)
        assert stop_by_pid_file(tmp_path, "a") == 0
        assert other.poll() is None
        assert stop_by_pid_file(tmp_path, "b") == 1
    assert not list(tmp_path.iterdir())


def test_a_pid_file_of_a_killed_process_is_removed_and_signals_nobody(tmp_path):
    """The process id may belong to somebody else by then."""
    with hold(tmp_path, "a") as killed:
        killed.kill()
    (left,) = tmp_path.iterdir()
    with subprocess.Popen(["sleep", "600"]) as bystander:
        left.rename(left.with_suffix(f".{bystander.pid}"))
        assert stop_by_pid_file(tmp_path, "a") == 0
        assert bystander.poll() is None
        bystander.kill()
    assert not list(tmp_path.iterdir())


def test_a_pid_file_names_the_user_and_the_machine(tmp_path):
    with hold(tmp_path, "a") as process:
        (path,) = tmp_path.iterdir()
        assert path.name == f"a-{os.getuid()}.{platform.node()}.{process.pid}"
        process.terminate()


def test_a_worker_that_is_refused_ends_the_command_with_its_last_line(tmp_path):
    with LocalWorkers(["worker"], 1, os.environ, tmp_path) as workers:
        assert workers._workers[0].process.wait(timeout=60) == 2
        with pytest.raises(HpoptError, match=r"^a worker exited with code 2: hpopt: Missing argument 'study'"):
            workers.supervise()


def test_a_worker_that_is_killed_is_restarted_and_its_log_says_so(tmp_path):
    command = ["worker", "x", "--storage", "postgresql://me@127.0.0.1:1/x", "--device", "cpu"]
    with LocalWorkers(command, 1, os.environ, tmp_path) as workers:
        first = workers._workers[0].process
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=20)
        assert workers.supervise()
        assert workers._workers[0].process.pid != first.pid
    assert (tmp_path / "worker-0.log").read_text().startswith("hpopt: worker was killed by SIGKILL, restarting\n")
