"""The Job that Kubernetes gets. No cluster was there to take it."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from hpopt.errors import InputError
from hpopt.launch.kubernetes import write_manifest


@pytest.fixture
def job(order):
    """The job of three workers."""
    return yaml.safe_load(write_manifest(order, image="registry.example/hpopt:1", namespace="ml"))


def test_the_job_is_one_that_kubernetes_knows(job):
    kubernetes_validate.validate(job, "1.33", strict=True)


def test_the_job_has_a_pod_a_worker_with_its_gpus(job):
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    (worker,) = spec["template"]["spec"]["containers"]
    assert worker["args"] == ["worker", "tiny", "--stale-after", "60"]
    assert worker["image"] == "registry.example/hpopt:1"
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_exit_codes_and_evictions_mean_what_they_mean_everywhere(job):
    """Being asked to run again counts for nothing, whatever the limit of failures."""
    rules = job["spec"]["podFailurePolicy"]["rules"]
    by_code = {rule["onExitCodes"]["values"][0]: rule["action"] for rule in rules if "onExitCodes" in rule}
    assert by_code == {75: "Ignore", 2: "FailJob"}
    assert [rule["action"] for rule in rules if "onPodConditions" in rule] == ["Ignore"]
    # The policy holds for pods that are not started again in place.
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_database_is_named_by_a_secret_of_the_cluster(job, order):
    text = yaml.safe_dump(job)
    assert order.access.password not in text
    assert "db.example" not in text
    variables = {each["name"]: each for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    reference = variables["HPOPT_STORAGE"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "hpopt-database", "key": "url"}


def test_it_is_the_job_that_is_described_beside_the_service(job):
    """What docker/kubernetes shows to those who write their own."""
    path = Path(__file__).parents[2] / "docker" / "kubernetes" / "worker" / "worker.yaml"
    shown = yaml.safe_load(path.read_text())
    for name in ("completionMode", "backoffLimitPerIndex", "podFailurePolicy"):
        assert job["spec"][name] == shown["spec"][name]
    pod, its_pod = job["spec"]["template"]["spec"], shown["spec"]["template"]["spec"]
    (worker,), (its_worker,) = pod.pop("containers"), its_pod.pop("containers")
    assert pod == its_pod
    for name in ("env", "securityContext", "volumeMounts"):
        assert worker[name] == its_worker[name]
    assert worker["resources"]["limits"] == its_worker["resources"]["limits"]


@pytest.mark.parametrize("namespace", ["", "ML", "a b", "-x", "x" * 64])
def test_what_is_no_namespace_is_refused(order, namespace):
    with pytest.raises(InputError, match="--namespace"):
        write_manifest(order, image="x", namespace=namespace)
