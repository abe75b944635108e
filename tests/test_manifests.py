"""The files in docker/, read as Docker, hadolint and a Kubernetes cluster would, without any of them running."""

import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

DOCKER = Path(__file__).parents[1] / "docker"
COMPOSE_FILES = sorted(DOCKER.glob("compose*.yaml"))
KUSTOMIZATIONS = sorted(DOCKER.glob("kubernetes/**/kustomization.yaml"))
MANIFESTS = sorted(set(DOCKER.glob("kubernetes/**/*.yaml")) - set(KUSTOMIZATIONS))
# The oldest with a stable backoffLimitPerIndex.
KUBERNETES = "1.33"


def read_all(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def read_kind(kind: str) -> list[dict]:
    found = [thing for path in MANIFESTS for thing in read_all(path) if thing["kind"] == kind]
    assert found
    return found


def pod_of(thing: dict) -> dict:
    return thing["spec"]["template"]["spec"]


def pods() -> list[dict]:
    return [pod_of(thing) for kind in ("Job", "Deployment") for thing in read_kind(kind)]


def worker_job() -> dict:
    (job,) = [job for job in read_kind("Job") if job["metadata"]["name"] == "hpopt-worker"]
    return job


def compose() -> dict:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_the_dockerfile_is_clean():
    hadolint = Path(sys.executable).with_name("hadolint")
    said = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_what_the_cluster_knows(path):
    """A misspelled key is ignored by a cluster, and with it what it should have held."""
    for thing in read_all(path):
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_a_kustomization_lists_every_file_of_its_folder(path):
    beside = {file.name for file in path.parent.glob("*.yaml")} - {path.name}
    assert set(yaml.safe_load(path.read_text())["resources"]) == beside


def test_every_image_of_a_manifest_is_given_its_version_by_its_kustomization():
    for path in KUSTOMIZATIONS:
        kustomization = yaml.safe_load(path.read_text())
        things = [thing for name in kustomization["resources"] for thing in read_all(path.parent / name)]
        used = {box["image"] for thing in things if "template" in thing.get("spec", {}) for box in boxes(pod_of(thing))}
        assert used == {image["name"] for image in kustomization["images"]}


def boxes(pod: dict) -> list[dict]:
    return [*pod["containers"], *pod.get("initContainers", [])]


def test_no_file_holds_a_secret():
    """Neither as a Secret, nor in a URL, nor as the value of a variable."""
    for path in MANIFESTS:
        assert "Secret" not in {thing["kind"] for thing in read_all(path)}
    for path in (*MANIFESTS, *COMPOSE_FILES):
        assert not re.findall(r"://[^@\s/:]+:[^@\s]+@", without_comments(path))
    given = [variable["name"] for pod in pods() for box in boxes(pod) for variable in box["env"] if "value" in variable]
    given += [
        name
        for path in COMPOSE_FILES
        for service in yaml.safe_load(path.read_text())["services"].values()
        for name in service.get("environment", {})
        if not name.endswith("_FILE")
    ]
    assert not [name for name in given if re.search("PASS|SECRET|TOKEN|KEY", name)]


def without_comments(path: Path) -> str:
    return re.sub(r"#.*", "", path.read_text())


def test_pods_have_no_rights_that_they_do_not_need():
    """Pod Security of the namespace refuses all but the last two of these."""
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for box in boxes(pod):
            assert box["securityContext"]["allowPrivilegeEscalation"] is False
            assert box["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert box["securityContext"]["readOnlyRootFilesystem"]
        assert pod["automountServiceAccountToken"] is False


def test_every_pod_is_behind_the_network_policy():
    (policy,) = [policy for policy in read_kind("NetworkPolicy") if policy["metadata"]["name"] == "hpopt"]
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in policy["spec"]
    wanted = policy["spec"]["podSelector"]["matchLabels"].items()
    for kind in ("Job", "Deployment"):
        for thing in read_kind(kind):
            assert wanted <= thing["spec"]["template"]["metadata"]["labels"].items()


def test_the_worker_job_runs_again_what_was_interrupted_and_gives_up_what_is_refused():
    """By the exit codes of `hpopt worker`: 75 is no failure, and 2 is the answer to every other pod too."""
    spec = worker_job()["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["backoffLimitPerIndex"] > 0
    assert spec["parallelism"] == spec["completions"]
    assert pod_of(worker_job())["restartPolicy"] == "Never"

    def by_code(code: int) -> dict:
        return {"containerName": "worker", "operator": "In", "values": [code]}

    assert spec["podFailurePolicy"]["rules"] == [
        {"action": "Ignore", "onExitCodes": by_code(75)},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": by_code(2)},
    ]


def test_a_worker_pod_has_a_gpu_a_shared_home_and_time_to_write_its_checkpoint():
    pod = pod_of(worker_job())
    (worker,) = pod["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["terminationGracePeriodSeconds"] >= 30
    homes = {mount["name"] for mount in worker["volumeMounts"] if mount["mountPath"] == "/var/lib/hpopt"}
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if volume["name"] in homes]
    (claim,) = read_kind("PersistentVolumeClaim")
    assert claims == [claim["metadata"]["name"]] == ["hpopt-home"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_url_comes_from_the_secret_in_every_pod():
    for pod in pods():
        (box,) = boxes(pod)
        (storage,) = [variable for variable in box["env"] if variable["name"] == "HPOPT_STORAGE"]
        assert storage["valueFrom"] == {"secretKeyRef": {"name": "hpopt-database", "key": "url"}}


def test_every_secret_of_compose_is_a_file_that_its_script_makes(tmp_path):
    subprocess.run([DOCKER / "secrets.sh", tmp_path / "secrets"], check=True)
    made = {f"${{SECRETS:-./secrets}}/{path.name}" for path in (tmp_path / "secrets").iterdir()}
    assert {secret["file"] for secret in compose()["secrets"].values()} == made
    for service in compose()["services"].values():
        assert set(service.get("secrets", ())) <= set(compose()["secrets"])


def test_passwords_differ_are_kept_and_are_closed_to_other_users(tmp_path):
    folder = tmp_path / "secrets"
    subprocess.run([DOCKER / "secrets.sh", folder], check=True)
    made = {path.name: path.read_text() for path in folder.iterdir()}
    passwords = {made[f"{user}-password"] for user in ("owner", "worker", "dashboard")}
    assert len(passwords) == 3
    assert {len(password) for password in passwords} == {48}
    assert made["worker-service"] == f"[hpopt]\npassword={made['worker-password']}\n"
    assert folder.stat().st_mode & 0o777 == 0o700
    subprocess.run([DOCKER / "secrets.sh", folder], check=True)
    assert {path.name: path.read_text() for path in folder.iterdir()} == made


def test_only_this_machine_reaches_what_compose_publishes():
    """The rest of the world would otherwise reach it past the firewall, which Docker goes around."""
    published = [port for service in compose()["services"].values() for port in service.get("ports", ())]
    assert published == ["${DASHBOARD_ADDRESS:-127.0.0.1}:${DASHBOARD_PORT:-8080}:8080"]
