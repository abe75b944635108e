"""`hpopt launch`: what each engine's command refuses. tests/engines launches workers."""

import pytest
from workplace import Workplace

from hpopt.cli.run import local_workers
from hpopt.storage.database import Database

NAME = "paced"
SLURM = ("slurm", NAME, "--workers", "1", "--same-host")
KUBERNETES = ("kubernetes", NAME, "--workers", "1")


@pytest.fixture(scope="module")
def user(tmp_path_factory, shared_database_url):
    """A user with a study and without sbatch, kubectl and ray."""
    folder = tmp_path_factory.mktemp("user")
    user = Workplace(folder, shared_database_url)
    user.create(NAME, trials=8, steps=3)
    user.environment["PATH"] = str(folder)
    return user


def refusal(user, *arguments):
    completed = user.try_hpopt("launch", *arguments)
    assert completed.returncode == 2, completed
    assert completed.stderr.count("\n") == 1
    return completed.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["slurm", NAME], "--workers: required, the number of workers that slurm starts"),
        (["kubernetes", NAME], "--workers: required, the number of workers that kubernetes starts"),
        (KUBERNETES, "--image: required; docker/Dockerfile builds it as target `worker`"),
        ([*KUBERNETES, "--image", "x", "--namespace", "M L"], "--namespace: expected lower-case letters, digits and"),
        ([*SLURM, "--time", "soon"], "--time: expected a duration such as 4h, 90m, 1d12h or 2-12:00:00, got 'soon'"),
        (SLURM, "sbatch is not installed on this machine: run this on a login node of the cluster"),
        (["slurm", NAME, "--stop"], "squeue is not installed on this machine"),
        ([*KUBERNETES, "--image", "x"], "kubectl is not installed on this machine: --dry-run prints the job without"),
        (["local", NAME, "--stale-after", "20"], "--stale-after: 20 s is below three heartbeats of 15 s"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_line(user, arguments, line):
    assert refusal(user, *arguments).startswith(f"hpopt: {line}")


@pytest.mark.parametrize("engine", ["local", "slurm --same-host", "ray --same-host", "kubernetes --image x"])
def test_a_finished_study_is_refused_also_with_dry_run(engine, created):
    created.output("stop", "answer")
    line = created.refused("launch", *engine.split(), "answer", "--workers", "1", "--dry-run")
    assert line == "hpopt: study 'answer' is finished: stopped: manually; `hpopt resume answer` continues it"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["slrum", NAME], "No such command 'slrum'. Did you mean 'slurm'?"),
        ([NAME, "--workers", "1"], "No such command 'paced'."),
        (["--on", "slurm", NAME], "No such option: --on"),
        (["local", NAME, "--partition", "gpu"], "No such option: --partition"),
        (["ray", NAME, "--image", "x"], "No such option: --image"),
        (["slurm"], "Missing argument 'study'"),
        (["slurm", NAME, "--workers", "0"], "Invalid value for '--workers'"),
    ],
)
def test_an_unknown_engine_and_the_options_of_another_one_are_refused_in_one_line(tmp_path, arguments, line):
    assert refusal(Workplace(tmp_path, "postgresql://nobody@127.0.0.1:1/x"), *arguments).startswith(f"hpopt: {line}")


def test_an_unknown_study_is_refused_with_the_nearest(user):
    line = refusal(user, "kubernetes", "pased", "--workers", "1", "--image", "x")
    assert line.startswith("hpopt: no study 'pased'")
    assert "did you mean 'paced'?" in line


@pytest.mark.parametrize("engine", ["slurm", "ray"])
def test_a_database_that_other_nodes_cannot_reach_is_refused(user, engine):
    line = refusal(user, engine, NAME, "--workers", "2", "--dry-run")
    assert line.startswith("hpopt: --storage: only this machine reaches the database postgresql://")
    assert "--same-host" in line
    assert user.url.split(":")[2].split("@")[0] not in line


def test_a_command_without_an_engine_lists_the_engines(tmp_path):
    completed = Workplace(tmp_path, "postgresql://nobody@127.0.0.1:1/x").try_hpopt("launch")
    assert completed.returncode == 2
    assert all(f"\n  {engine} " in completed.stderr for engine in ("local", "slurm", "ray", "kubernetes"))


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({}, ["0", "1", "2", "3"]),
        ({"per_gpu": 2}, ["0", "1", "2", "3", "0", "1", "2", "3"]),
        ({"gpus_per_worker": 2}, ["0,1", "2,3"]),
        ({"n_workers": 5}, ["0", "1", "2", "3", "0"]),
    ],
)
def test_workers_of_this_machine_get_its_gpus_in_turn(options, gpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    database = Database("postgresql://nobody@127.0.0.1/nowhere")
    workers = local_workers(database, ["worker", "paced"], tmp_path, **{"n_workers": None, **options})
    assert workers.preview() == [f"CUDA_VISIBLE_DEVICES={gpu} hpopt worker paced" for gpu in gpus]


def test_a_dry_run_on_this_machine_prints_a_command_line_for_each_worker(user, monkeypatch):
    options = ("--dry-run", "--workers", "4", "--workers-per-gpu", "2")
    monkeypatch.setitem(user.environment, "CUDA_VISIBLE_DEVICES", "0,1")
    lines = user.hpopt("launch", "local", NAME, *options).splitlines()
    assert [line.split(" --")[0] for line in lines] == [
        f"CUDA_VISIBLE_DEVICES={gpu} hpopt worker paced" for gpu in "0101"
    ]
