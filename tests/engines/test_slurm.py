"""`hpopt launch slurm` on a real Slurm."""

import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conformance import NAME, ClusterConformance, Engine, LaunchConformance, first_steps, password_of
from slurm_cluster import NODES

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

GUIDE = Path(__file__).parents[2] / "docs" / "cluster.md"


class Slurm(Engine):
    """A user on a login node of a cluster of six GPUs."""

    name = "slurm"
    n_workers = 6
    launch_options = ("--same-host",)
    cancelled = "6 Slurm tasks"
    # A node that loses power takes its workers along before they can react.
    lost_outcomes = frozenset({"lost"})

    def __init__(self, workplace, cluster):
        super().__init__(workplace)
        self.cluster = cluster
        workplace.environment["SLURM_CONF"] = str(cluster.conf)

    def list_jobs(self):
        return list(self.cluster.list_tasks())

    def read_records(self):
        jobs = {job.partition("_")[0] for job in self.list_jobs()}
        state = [path for path in (self.cluster.folder / "state").rglob("*") if path.is_file()]
        return [
            *(self.cluster.run("scontrol", "show", "job", "--details", job) for job in jobs),
            *(self.cluster.run("scontrol", "write", "batch_script", job, "-") for job in jobs),
            *(path.read_bytes().decode(errors="replace") for path in state),
        ]

    def expected_jobs(self, printed):
        job = printed.removeprefix("Slurm job ").split(";")[0]
        return {f"{job}_{task}" for task in range(1, self.n_workers + 1)}

    def expected_nodes(self):
        return set(NODES)

    def preempt(self, workers):
        """Submit jobs of a partition with a higher priority, each of which holds a GPU until the release."""
        wait = f"while [ -e {self.workplace.hold_file} ]; do sleep 0.2; done"
        for _ in workers:
            self.cluster.run("sbatch", "--partition=urgent", "--gres=gpu:1", "--output=/dev/null", f"--wrap={wait}")

    def lose_node(self, workers):
        self.cluster.lose_node("n2")
        return sum(worker["host"] == "n2" for worker in workers)

    def restore_node(self):
        self.cluster.start_node("n2")


@pytest.fixture
def engine(workplace, slurm):
    """A Slurm with nothing in its queue."""
    slurm.wait_until_idle()
    yield Slurm(workplace, slurm)
    slurm.cancel_all()


class TestSlurm(LaunchConformance, ClusterConformance):
    """The promises of all engines."""


def test_each_worker_has_a_gpu_of_its_own(engine):
    engine.workplace.hold()
    engine.workplace.create(NAME, trials=50, steps=3)
    engine.launch()
    engine.workplace.wait_for_held_trials(NAME, 6, steps=3)
    gpus = Counter((start["node"], start["gpus"]) for start in engine.workplace.starts())
    assert gpus == {(node, str(gpu)): 1 for node in NODES for gpu in (0, 1)}


def test_tasks_of_a_lost_node_are_requeued(engine, slurm):
    engine.workplace.hold()
    engine.workplace.create(NAME, trials=6, steps=3)
    engine.launch()
    engine.workplace.wait_for_held_trials(NAME, 6, steps=3)
    slurm.lose_node("n2")
    try:
        states = {"RUNNING": 4, "PENDING": 2}
        engine.workplace.wait_until(lambda: Counter(slurm.list_tasks().values()) == states)
    finally:
        slurm.start_node("n2")
    # They run again on the node and continue the trials that it lost.
    engine.workplace.wait_until(lambda: first_steps(engine) == [1] * 6 + [3] * 2)
    assert engine.workplace.outcomes(NAME) == {"lost": 2}


def test_cancelled_workers_in_a_long_step_return_their_trials_and_requeue_nothing(engine, slurm):
    """Steps are so far apart that workers have to connect again to return their trials."""
    engine.workplace.create(NAME, trials=100, steps=30, pace=8)
    engine.launch(8)
    engine.workplace.wait_until(lambda: sum(w["step"] is not None for w in engine.workplace.workers(NAME)) == 6)
    assert engine.stop() == f"{NAME}: 8 Slurm tasks cancelled\n"
    assert not engine.workplace.workers(NAME)
    assert engine.workplace.outcomes(NAME) == {"preempted": 6}
    # A batch script would requeue its task before it ends.
    engine.workplace.wait_until(lambda: not any(slurm.processes(node) for node in NODES))
    assert not engine.list_jobs()


def test_a_worker_is_asked_to_stop_before_its_time_limit_and_runs_again(engine):
    engine.workplace.hold()
    engine.workplace.create(NAME, trials=1, steps=3)
    engine.workplace.hpopt(*engine.launch_command(1, "--time", "2m"))
    engine.workplace.wait_for_attempts(NAME, preempted=1)
    engine.workplace.release()
    engine.workplace.wait_until_finished(NAME, trials=1, steps=3)
    assert engine.workplace.outcomes(NAME).keys() == {"complete", "preempted"}


def test_the_password_is_in_a_file_that_only_its_owner_reads_and_that_a_stop_deletes(engine):
    engine.workplace.hold()
    engine.workplace.create(NAME, trials=50, steps=3)
    engine.launch()
    engine.wait_until_started()
    files = [path for path in (engine.workplace.folder / "home").rglob("*") if path.is_file()]
    (holder,) = [path for path in files if password_of(engine).encode() in path.read_bytes()]
    assert holder.suffix == ".pgpass"
    assert stat.S_IMODE(holder.stat().st_mode) == 0o600
    engine.stop()
    assert not holder.exists()


def test_on_one_machine_the_embedded_database_suffices(engine):
    """The first worker starts it, and it stops with the last."""
    hpopt = engine.workplace.hpopt
    del engine.workplace.environment["HPOPT_STORAGE"]
    engine.workplace.create(NAME, trials=4, steps=3)
    engine.launch(2)
    engine.workplace.wait_until(lambda: not engine.list_jobs())
    assert '"outcome": "complete"' in (trials := hpopt("db", "sql", "--json", "select outcome from hpopt.trials"))
    assert trials.count("outcome") == trials.count("complete") == 4
    assert hpopt("db", "stop") == "was not running\n"


def test_a_refusal_of_slurm_is_one_line(engine):
    engine.workplace.create(NAME, trials=1, steps=1)
    completed = engine.workplace.try_hpopt(*engine.launch_command(1, "--partition", "nowhere"))
    assert completed.returncode == 2
    assert completed.stderr.count("\n") == 1
    assert "sbatch" in completed.stderr
    assert "partition" in completed.stderr


def test_the_guide_is_followed_word_for_word(engine):
    """Except for the names that stand for the reader's own, and 64 workers."""
    workplace = engine.workplace
    commands = GUIDE.read_text().split("```bash\n")[1].split("```")[0]
    assert commands.count("hpopt launch slurm quickstart") == 2
    own = {
        "postgresql://USER:PASSWORD@HOST/NAME": workplace.url,
        "/shared/hpopt ": f"{workplace.folder}/home ",
        "studies/quickstart.toml": "quickstart.toml",
        "--workers 64": "--workers 3 --same-host",
    }
    for shown, replacement in own.items():
        assert shown in commands
        commands = commands.replace(shown, replacement)
    workplace.write("quickstart", trials=100, steps=30)
    # A reader waits for the workers.
    status = "until hpopt status quickstart | grep -q 'slurm '; do sleep 0.5; done\nhpopt status quickstart"
    commands = commands.replace("hpopt status quickstart ", f"{status} ", 1)
    shell = {**workplace.environment, "PATH": f"{Path(sys.executable).parent}:{workplace.environment['PATH']}"}
    completed = subprocess.run(
        ["bash", "-e"], input=commands, text=True, cwd=workplace.folder, env=shell, capture_output=True, check=False
    )
    assert completed.returncode == 0, completed
    assert "Slurm job" in completed.stdout
    assert "@n1" in completed.stdout
    assert "quickstart: 3 Slurm tasks cancelled" in completed.stdout
    workplace.wait_until(lambda: not workplace.workers("quickstart"))
