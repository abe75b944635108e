"""`hpopt launch ray` on a real cluster of three nodes."""

import platform
import re
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conformance import NAME, ClusterConformance, Engine, LaunchConformance

ray = pytest.importorskip("ray", reason="SKIPPED: no Ray here; pip install 'hpopt[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

GPUS_PER_NODE = 2


class Ray(Engine):
    """A user whose environment names a cluster of four GPUs."""

    name = "ray"
    n_workers = 4
    launch_options = ("--same-host",)
    cancelled = "4 Ray actors"
    # A worker notices that the actor above it is gone, and has time to return its trial.
    lost_outcomes = frozenset({"lost", "preempted"})

    def __init__(self, workplace, cluster):
        super().__init__(workplace)
        self.cluster = cluster
        workplace.environment |= {"RAY_ADDRESS": cluster.address, "RAY_USAGE_STATS_ENABLED": "0"}

    def list_jobs(self):
        return ray.util.list_named_actors()

    def read_records(self):
        """Return the logs of the head and of all nodes and actors."""
        folder = Path(self.cluster.head_node.get_logs_dir_path())
        return [path.read_text(errors="replace") for path in folder.iterdir() if path.is_file()]

    def expected_jobs(self, printed):
        return set(re.findall(r"hpopt-[\w-]+-\d+", printed.partition(";")[0]))

    def expected_nodes(self):
        return {platform.node()}

    def lose_node(self, workers):
        self.cluster.remove_node(self.cluster.workers.pop(), allow_graceful=False)
        # They run on this machine and outlive their node until they notice.
        self.workplace.wait_until(lambda: sum(is_running(worker["pid"]) for worker in workers) == GPUS_PER_NODE)
        return GPUS_PER_NODE

    def restore_node(self):
        self.cluster.workers.append(self.cluster.add_node(num_cpus=2, num_gpus=GPUS_PER_NODE))


def is_running(pid):
    """Return whether a process has not ended; one that nobody has waited for yet has."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def cluster():
    """A head without GPUs, and two nodes of two simulated ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
        try:
            cluster.workers = [cluster.add_node(num_cpus=2, num_gpus=GPUS_PER_NODE) for _ in range(2)]
            ray.init(address=cluster.address, namespace="hpopt", log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def engine(workplace, cluster):
    """A Ray cluster without actors."""
    engine = Ray(workplace, cluster)
    yield engine
    while names := engine.list_jobs():
        for name in names:
            # Raised for an actor that has ended meanwhile.
            with suppress(ValueError):
                ray.kill(ray.get_actor(name))
        time.sleep(0.5)
    while ray.available_resources().get("GPU") != GPUS_PER_NODE * len(cluster.workers):
        time.sleep(0.5)


class TestRay(LaunchConformance, ClusterConformance):
    """The promises of all engines."""


def test_workers_see_the_gpus_that_ray_assigns_to_them(engine):
    engine.workplace.hold()
    engine.workplace.create(NAME, trials=50, steps=3)
    engine.launch()
    engine.workplace.wait_for_held_trials(NAME, 4, steps=3)
    assert sorted(start["gpus"] for start in engine.workplace.starts()) == ["0", "0", "1", "1"]


def test_an_unreachable_cluster_is_one_line(workplace):
    workplace.create(NAME, trials=1, steps=1)
    options = ("--same-host", "--workers", "1", "--address", "127.0.0.1:1")
    completed = workplace.try_hpopt("launch", "ray", NAME, *options)
    assert completed.returncode == 2
    assert completed.stderr == "hpopt: --address: no Ray cluster at 127.0.0.1:1: Connection refused\n"
