"""The manifest of a Job, checked by the schemas of Kubernetes. No cluster has run it."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from hpopt.errors import InputError
from hpopt.launch.kubernetes import write_manifest


@pytest.fixture
def manifest(job_spec):
    """The Job of three workers."""
    return yaml.safe_load(write_manifest(job_spec, image="registry.example/hpopt:1", namespace="ml"))


def test_the_manifest_is_valid(manifest):
    kubernetes_validate.validate(manifest, "1.33", strict=True)


def test_the_job_has_a_pod_a_worker_with_its_gpus(manifest):
    spec = manifest["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    (worker,) = spec["template"]["spec"]["containers"]
    assert worker["args"] == ["worker", "tiny", "--stale-after", "60"]
    assert worker["image"] == "registry.example/hpopt:1"
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_code_75_and_evictions_do_not_count_as_failures_and_code_2_fails_the_job(manifest):
    rules = manifest["spec"]["podFailurePolicy"]["rules"]
    by_code = {rule["onExitCodes"]["values"][0]: rule["action"] for rule in rules if "onExitCodes" in rule}
    assert by_code == {75: "Ignore", 2: "FailJob"}
    assert [rule["action"] for rule in rules if "onPodConditions" in rule] == ["Ignore"]
    # Kubernetes applies the policy only to pods that are not restarted in place.
    assert manifest["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_database_url_comes_from_a_secret_of_the_cluster(manifest, job_spec):
    text = yaml.safe_dump(manifest)
    assert job_spec.credentials.password not in text
    assert "db.example" not in text
    variables = {
        variable["name"]: variable for variable in manifest["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    reference = variables["HPOPT_STORAGE"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "hpopt-worker", "key": "url"}


def test_the_manifest_equals_the_one_in_docker_kubernetes(manifest):
    path = Path(__file__).parents[2] / "docker" / "kubernetes" / "worker" / "worker.yaml"
    shown = yaml.safe_load(path.read_text())
    for name in ("completionMode", "backoffLimitPerIndex", "podFailurePolicy"):
        assert manifest["spec"][name] == shown["spec"][name]
    pod, shown_pod = manifest["spec"]["template"]["spec"], shown["spec"]["template"]["spec"]
    (worker,), (shown_worker,) = pod.pop("containers"), shown_pod.pop("containers")
    assert pod == shown_pod
    for name in ("env", "securityContext", "volumeMounts"):
        assert worker[name] == shown_worker[name]
    assert worker["resources"]["limits"] == shown_worker["resources"]["limits"]


@pytest.mark.parametrize("namespace", ["", "ML", "a b", "-x", "x" * 64])
def test_an_invalid_namespace_is_refused(job_spec, namespace):
    with pytest.raises(InputError, match="--namespace"):
        write_manifest(job_spec, image="x", namespace=namespace)
