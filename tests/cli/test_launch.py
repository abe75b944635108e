"""`hpopt launch`: what it refuses, what it shows beforehand, and workers on this machine. Clusters: tests/engines."""

import os
import signal

import pytest
from workplace import Workplace

from hpopt.cli.run import local_workers
from hpopt.storage.connect import open_database
from hpopt.storage.database import Database
from hpopt.storage.studies import create_study
from hpopt.study.reading import parse_study_file


@pytest.fixture
def user(tmp_path, database_url):
    """Somebody with a study of eight trials of two seconds."""
    user = Workplace(tmp_path, database_url)
    user.write("paced", trials=8, steps=20)
    with open_database(database_url, tmp_path, create=True) as database, pytest.MonkeyPatch.context() as patch:
        # As for the program: the training code stands beside the study file.
        patch.syspath_prepend(tmp_path)
        create_study(database, parse_study_file((tmp_path / "paced.toml").read_text(), "paced.toml"))
    return user


def refusal(user, *options):
    done = user.try_hpopt("launch", "paced", *options)
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--on", "slrum"], "--on: 'slrum' is not one of local, slurm, ray, kubernetes; did you mean 'slurm'?"),
        (["--on", "slurm"], "--workers: say how many workers slurm is to start"),
        (["--partition", "gpu"], "--partition: belongs to --on slurm, not to --on local"),
        (["--on", "ray", "--workers", "1", "--image", "x"], "--image: belongs to --on kubernetes, not to --on ray"),
        (["--on", "kubernetes", "--workers", "1"], "--image: name the image of the worker"),
        (["--on", "slurm", "--workers", "1", "--same-host", "--time", "soon"], "--time: 'soon' is not a duration"),
        (["--on", "slurm", "--workers", "1", "--same-host"], "sbatch is not on this machine: Slurm is asked from a"),
        (["--on", "kubernetes", "--workers", "1", "--image", "x"], "kubectl is not on this machine: it hands the job"),
        (["--stale-after", "20"], "--stale-after: 20 s is below three heartbeats of 15 s"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_line(user, options, line):
    user.environment["PATH"] = str(user.folder)
    assert refusal(user, *options).startswith(f"hpopt: {line}")


@pytest.mark.parametrize("engine", ["slurm", "ray"])
def test_a_database_that_other_nodes_cannot_reach_is_refused_for_an_engine(user, engine):
    line = refusal(user, "--on", engine, "--workers", "2", "--dry-run")
    assert "answers this machine only" in line
    assert "--same-host" in line
    assert user.url.split(":")[2].split("@")[0] not in line


def test_an_unknown_study_is_refused_with_the_nearest(user):
    done = user.try_hpopt("launch", "pased", "--on", "kubernetes", "--workers", "1", "--image", "x")
    assert done.returncode == 2
    assert "no study 'pased'" in done.stderr
    assert "did you mean 'paced'?" in done.stderr


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({}, ["0", "1", "2", "3"]),
        ({"per_gpu": 2}, ["0", "1", "2", "3", "0", "1", "2", "3"]),
        ({"gpus_per_worker": 2}, ["0,1", "2,3"]),
        ({"n_workers": 5}, ["0", "1", "2", "3", "0"]),
    ],
)
def test_workers_of_this_machine_get_its_gpus_in_turn(asked, gpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    database = Database("postgresql://nobody@127.0.0.1/nowhere")
    fleet = local_workers(database, ["worker", "paced"], tmp_path, **{"n_workers": None, **asked})
    assert fleet.preview() == [f"CUDA_VISIBLE_DEVICES={gpu} hpopt worker paced" for gpu in gpus]


def test_a_dry_run_starts_nothing(user):
    lines = user.hpopt("launch", "paced", "--dry-run", "--workers", "2").splitlines()
    assert [line.split(" --")[0].split(" ", 1)[1] for line in lines] == ["hpopt worker paced"] * 2
    assert not user.status("paced")["workers"]


@pytest.mark.long
def test_workers_of_this_machine_are_restarted_when_they_die(user):
    launch = user.start("launch", "paced", "--workers", "2", *user.patience)
    status = user.wait_until("paced", lambda status: status["books"]["n_running"] == 2, seconds=60)
    os.kill(status["workers"][0]["pid"], signal.SIGKILL)
    out, err = launch.communicate(timeout=100)
    assert launch.returncode == 0, (out, err)
    assert "best val_loss" in out
    user.wait_until_over("paced", seconds=1)
    assert user.outcomes("paced") == {"complete": 8, "lost": 1}


def test_a_launch_on_this_machine_is_stopped_from_elsewhere(user):
    launch = user.start("launch", "paced", "--workers", "2", *user.patience)
    user.wait_until("paced", lambda status: status["books"]["n_running"] == 2, seconds=60)
    assert user.hpopt("launch", "paced", "--stop") == "paced: 1 cancelled (launches on this machine)\n"
    launch.communicate(timeout=30)
    assert launch.returncode == 75
    status = user.status("paced")
    assert (status["workers"], status["books"]["n_running"]) == ([], 0)
    assert user.hpopt("launch", "paced", "--stop") == "paced: 0 cancelled (launches on this machine)\n"


def test_an_engine_gets_no_workers_for_a_study_that_is_over(user):
    user.hpopt("stop", "paced")
    line = refusal(user, "--on", "kubernetes", "--workers", "2", "--image", "x")
    assert line.startswith("hpopt: study 'paced' is over: stopped")
