"""`hpopt launch --on ray` on a real cluster of three nodes: every trial is accounted for when one is lost."""

import time

import pytest

ray_cluster = pytest.importorskip("ray.cluster_utils", reason="SKIPPED: no Ray here; pip install 'hpopt[ray]'")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]


@pytest.fixture
def cluster(monkeypatch):
    """A head without GPUs and two nodes of two pretended ones."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    found = ray_cluster.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        found.nodes = [found.add_node(num_cpus=2, num_gpus=2) for _ in range(2)]
        yield found
    finally:
        found.shutdown()


@pytest.fixture
def user(cluster, workplace):
    """Somebody whose environment names the cluster."""
    workplace.environment |= {"RAY_ADDRESS": cluster.address, "RAY_USAGE_STATS_ENABLED": "0"}
    return workplace


def launch(user, study, *options):
    return user.hpopt("launch", study, "--on", "ray", "--same-host", *user.patience, *options)


def test_a_study_finishes_exactly_its_budget_in_spite_of_a_lost_node(cluster, user):
    user.create("lost", trials=10, steps=60)
    said = launch(user, "lost", "--workers", "4")
    assert "Ray actors hpopt-lost-" in said
    status = user.wait_until("lost", lambda status: status["books"]["n_held"] == 4, seconds=90)
    assert {worker["engine"] for worker in status["workers"]} == {"ray"}
    assert len({worker["job"] for worker in status["workers"]}) == 4
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    user.wait_until("lost", lambda status: status["books"]["n_held"] == 2, seconds=60)
    cluster.add_node(num_cpus=2, num_gpus=2)
    user.wait_until_over("lost", seconds=120)
    assert set(user.outcomes("lost")) <= {"complete", "lost", "preempted"}
    assert user.outcomes("lost").get("complete") == 10
    # Workers whose study is over do not come back.
    time.sleep(3)
    assert "0 cancelled" in user.hpopt("launch", "lost", "--on", "ray", "--stop")


def test_stopped_actors_hand_their_trials_back(user):
    user.create("stopped", trials=100, steps=60)
    launch(user, "stopped", "--workers", "3")
    user.wait_until("stopped", lambda status: status["books"]["n_held"] == 3, seconds=90)
    assert "3 cancelled (actors in Ray)" in user.hpopt("launch", "stopped", "--on", "ray", "--stop")
    status = user.status("stopped")
    assert (status["books"]["n_held"], status["workers"]) == (0, [])
    assert set(user.outcomes("stopped")) <= {"complete", "preempted"}


def test_workers_see_the_gpus_that_ray_gives_them(user):
    user.create("placed", trials=8, steps=20)
    launch(user, "placed", "--workers", "4")
    user.wait_until_over("placed", seconds=90)
    gpus = [line.split()[-1] for line in (user.folder / "places.txt").read_text().splitlines()]
    assert set(gpus) == {"0", "1"}


def test_no_cluster_is_one_line(workplace):
    workplace.create("nowhere", trials=1, steps=1)
    done = workplace.try_hpopt(
        *("launch", "nowhere", "--on", "ray", "--same-host", "--workers", "1", "--address", "127.0.0.1:1")
    )
    assert done.returncode == 2
    assert done.stderr.startswith("hpopt: --on ray: no cluster at 127.0.0.1:1")
    assert done.stderr.count("\n") == 1
