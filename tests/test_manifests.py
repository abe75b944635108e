"""The files in docker/: linted, validated against Kubernetes schemas, and compared with each other; nothing is run."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DOCKER = Path(__file__).parents[1] / "docker"
COMPOSE_FILES = sorted(DOCKER.glob("compose*.yaml"))
KUSTOMIZATIONS = sorted(DOCKER.glob("kubernetes/**/kustomization.yaml"))
MANIFESTS = sorted(set(DOCKER.glob("kubernetes/**/*.yaml")) - set(KUSTOMIZATIONS))
# The first version in which backoffLimitPerIndex is stable.
KUBERNETES_VERSION = "1.33"


def read_all(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def read_kind(kind: str) -> list[dict]:
    manifests = [manifest for path in MANIFESTS for manifest in read_all(path) if manifest["kind"] == kind]
    assert manifests
    return manifests


def pod_of(manifest: dict) -> dict:
    return manifest["spec"]["template"]["spec"]


def pods() -> list[dict]:
    return [pod_of(manifest) for kind in ("Job", "Deployment") for manifest in read_kind(kind)]


def worker_job() -> dict:
    (job,) = [job for job in read_kind("Job") if job["metadata"]["name"] == "hpopt-worker"]
    return job


def compose() -> dict:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_hadolint_has_no_warnings():
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def read_lock(name: str) -> dict[str, str]:
    """Return the versions of a lock file by package, of which each has a hash."""
    requirements = (DOCKER / f"{name}.lock").read_text().replace("\\\n", " ").splitlines()
    assert [line for line in requirements if "--hash=sha256:" not in line] == []
    return dict(line.split()[0].split("==") for line in requirements)


def test_the_images_have_the_dependencies_of_hpopt_in_tested_versions_with_hashes():
    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]
    core, train = read_lock("core"), {**read_lock("core"), **read_lock("torch"), **read_lock("train")}
    constraints = [
        Requirement(line)
        for line in (DOCKER.parent / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    for locked, texts in ((core, project["dependencies"]), (train, project["optional-dependencies"]["train"])):
        required = [Requirement(text) for text in texts]
        names = {canonicalize_name(requirement.name) for requirement in required}
        assert names <= locked.keys()
        for requirement in (*required, *constraints):
            version = locked.get(canonicalize_name(requirement.name))
            assert version is None or version in requirement.specifier
    assert "hatchling" in read_lock("build")
    assert "torch" not in core


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_valid(path):
    """A cluster ignores a misspelled key."""
    for manifest in read_all(path):
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_a_kustomization_lists_every_file_of_its_folder(path):
    others = {file.name for file in path.parent.glob("*.yaml")} - {path.name}
    assert set(yaml.safe_load(path.read_text())["resources"]) == others


def test_a_kustomization_sets_the_version_of_every_image():
    for path in KUSTOMIZATIONS:
        kustomization = yaml.safe_load(path.read_text())
        manifests = [manifest for name in kustomization["resources"] for manifest in read_all(path.parent / name)]
        pods = [pod_of(manifest) for manifest in manifests if "template" in manifest.get("spec", {})]
        used = {container["image"] for pod in pods for container in containers_of(pod)}
        assert used == {image["name"] for image in kustomization["images"]}


def containers_of(pod: dict) -> list[dict]:
    return [*pod["containers"], *pod.get("initContainers", [])]


def test_no_file_holds_a_secret():
    """Neither a Secret, nor a URL, nor the value of an environment variable."""
    for path in MANIFESTS:
        assert "Secret" not in {manifest["kind"] for manifest in read_all(path)}
    for path in (*MANIFESTS, *COMPOSE_FILES):
        assert not re.findall(r"://[^@\s/:]+:[^@\s]+@", without_comments(path))
    containers = [container for pod in pods() for container in containers_of(pod)]
    names = [variable["name"] for container in containers for variable in container["env"] if "value" in variable]
    names += [
        name
        for path in COMPOSE_FILES
        for service in yaml.safe_load(path.read_text())["services"].values()
        for name in service.get("environment", {})
        if not name.endswith("_FILE")
    ]
    assert not [name for name in names if re.search("PASS|SECRET|TOKEN|KEY", name)]


def without_comments(path: Path) -> str:
    return re.sub(r"#.*", "", path.read_text())


def test_pods_have_no_rights_that_they_do_not_need():
    """The Pod Security Standard of the namespace enforces all of these but the last two."""
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers_of(pod):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"]
        assert pod["automountServiceAccountToken"] is False


def test_the_network_policy_selects_every_pod():
    (policy,) = [policy for policy in read_kind("NetworkPolicy") if policy["metadata"]["name"] == "hpopt"]
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in policy["spec"]
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    for kind in ("Job", "Deployment"):
        for manifest in read_kind(kind):
            assert selected <= manifest["spec"]["template"]["metadata"]["labels"].items()


def test_the_worker_job_restarts_interrupted_workers_and_fails_when_one_is_refused():
    """By the exit codes of `hpopt worker`: 75 is not counted as a failure, and all other pods would exit with 2 too."""
    spec = worker_job()["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["backoffLimitPerIndex"] > 0
    assert spec["parallelism"] == spec["completions"]
    assert pod_of(worker_job())["restartPolicy"] == "Never"

    def has_exit_code(code: int) -> dict:
        return {"containerName": "worker", "operator": "In", "values": [code]}

    assert spec["podFailurePolicy"]["rules"] == [
        {"action": "Ignore", "onExitCodes": has_exit_code(75)},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": has_exit_code(2)},
    ]


def test_a_worker_pod_has_a_gpu_a_shared_home_and_time_to_write_a_checkpoint():
    pod = pod_of(worker_job())
    (worker,) = pod["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["terminationGracePeriodSeconds"] >= 30
    homes = {mount["name"] for mount in worker["volumeMounts"] if mount["mountPath"] == "/var/lib/hpopt"}
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if volume["name"] in homes]
    (claim,) = read_kind("PersistentVolumeClaim")
    assert claims == [claim["metadata"]["name"]] == ["hpopt-home"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_every_pod_has_the_login_of_the_role_that_it_needs():
    """With one secret for all, everybody who reaches a pod could drop the tables."""
    logins = {}
    for pod in pods():
        (container,) = containers_of(pod)
        (storage,) = [variable for variable in container["env"] if variable["name"] == "HPOPT_STORAGE"]
        assert storage["valueFrom"]["secretKeyRef"]["key"] == "url"
        logins[container["name"]] = storage["valueFrom"]["secretKeyRef"]["name"]
    assert logins == {
        "migrate": "hpopt-owner",
        "create": "hpopt-worker",
        "worker": "hpopt-worker",
        "dashboard": "hpopt-reader",
    }


def test_secrets_sh_writes_every_secret_of_compose(tmp_path):
    subprocess.run([DOCKER / "secrets.sh", tmp_path / "secrets"], check=True)
    written = {f"${{SECRETS:-./secrets}}/{path.name}" for path in (tmp_path / "secrets").iterdir()}
    assert {secret["file"] for secret in compose()["secrets"].values()} == written
    for service in compose()["services"].values():
        assert set(service.get("secrets", ())) <= set(compose()["secrets"])


def test_passwords_differ_are_not_overwritten_and_only_their_owner_can_read_them(tmp_path):
    folder = tmp_path / "secrets"
    subprocess.run([DOCKER / "secrets.sh", folder], check=True)
    written = {path.name: path.read_text() for path in folder.iterdir()}
    passwords = {written[f"{user}-password"] for user in ("owner", "worker", "reader", "dashboard")}
    assert len(passwords) == 4
    assert {len(password) for password in passwords} == {48}
    assert written["worker-service"] == f"[hpopt]\npassword={written['worker-password']}\n"
    assert folder.stat().st_mode & 0o777 == 0o700
    subprocess.run([DOCKER / "secrets.sh", folder], check=True)
    assert {path.name: path.read_text() for path in folder.iterdir()} == written


def test_compose_publishes_ports_on_this_machine_only():
    """Docker publishes ports past the firewall."""
    published = [port for service in compose()["services"].values() for port in service.get("ports", ())]
    assert published == ["${DASHBOARD_ADDRESS:-127.0.0.1}:${DASHBOARD_PORT:-8080}:8080"]
