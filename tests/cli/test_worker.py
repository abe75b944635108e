"""How `hpopt worker` connects to its database, and which options it refuses."""

import signal
import subprocess
import sys
import time

import pytest

from hpopt.cli import run
from hpopt.cli.run import local_workers
from hpopt.storage.database import Database

TIMEOUT_S = 90
UNREACHABLE = "postgresql://me:s3cret@127.0.0.1:1/nowhere"
COMMAND = [sys.executable, "-m", "hpopt", "worker", "x", "--device", "cpu", "--storage"]


@pytest.mark.parametrize("url", ["{host}/not_there", "{host}/{name}"])
def test_a_worker_does_not_retry_a_wrong_database_or_password(url, database_url, hpopt):
    password, address = database_url.split("//")[1].split("@")
    host, name = address.split("/")
    user = password if url == "{host}/not_there" else "hpopt:wrong"
    url = f"postgresql://{user}@{url.format(host=host, name=name)}"
    line = hpopt.refused("worker", "x", "--device", "cpu", "--storage", url)
    assert line.startswith("hpopt: postgresql://")
    assert "waiting" not in line


def test_a_worker_waits_for_an_unreachable_database_until_it_is_stopped():
    worker = subprocess.Popen([*COMMAND, UNREACHABLE], stderr=subprocess.PIPE, text=True)
    line = worker.stderr.readline()
    assert line.startswith("waiting up to 30 s for the database: postgresql://me@127.0.0.1:1/nowhere: ")
    worker.send_signal(signal.SIGTERM)
    _, rest = worker.communicate(timeout=TIMEOUT_S)
    assert worker.returncode == 75
    assert rest.startswith("hpopt: the database is unreachable: postgresql://me@127.0.0.1:1/nowhere: ")
    assert "s3cret" not in line + rest


@pytest.mark.long
def test_a_worker_exits_with_75_when_the_database_stays_unreachable():
    began = time.monotonic()
    done = subprocess.run([*COMMAND, UNREACHABLE], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 75
    assert time.monotonic() - began > 30
    assert done.stderr.count("waiting up to 30 s") == 1
    assert "s3cret" not in done.stderr


def test_a_time_to_expiry_below_three_heartbeats_is_refused(hpopt, study_file):
    line = hpopt.refused("run", study_file, "--stale-after", "5")
    assert line == "hpopt: --stale-after: 5 s is below three heartbeats of 5 s"


@pytest.mark.parametrize("arguments", [["worker", "x"], ["run", "{study_file}"]])
def test_a_process_of_torchrun_is_refused(arguments, hpopt, study_file):
    """Each of its processes would train other trials."""
    arguments = [argument.format(study_file=study_file) for argument in arguments]
    line = hpopt.refused(*arguments, WORLD_SIZE="8", RANK="0")
    assert line.startswith("hpopt: WORLD_SIZE: 8; a worker trains a trial in one process. ")
    assert "`hpopt launch local STUDY`" in line


def test_a_single_process_and_a_task_of_slurm_are_workers(hpopt):
    for variables in ({"WORLD_SIZE": "1"}, {"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}):
        line = hpopt.refused("worker", "x", "--stale-after", "5", **variables)
        assert line == "hpopt: --stale-after: 5 s is below three heartbeats of 15 s"


@pytest.mark.parametrize(("device_file", "options"), [("null", ""), ("no-such-file", " --device cpu")])
def test_workers_are_given_the_cpu_on_a_machine_without_a_device_file_of_a_gpu(
    device_file, options, monkeypatch, tmp_path
):
    """They would import torch to look for a GPU, which takes seconds in each of them."""
    monkeypatch.setattr(run, "_GPU_DEVICE_FILES", (device_file,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    workers = local_workers(Database(UNREACHABLE), ["worker", "x"], tmp_path, n_workers=1)
    assert workers.preview() == [f"OMP_NUM_THREADS=1 hpopt worker x{options}"]
    assert list(tmp_path.iterdir()) == []
