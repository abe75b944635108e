"""The images and compose.yaml with real containers, which are killed and preempted, and the rendered manifests.

Podman replaces Docker, and podman-compose its compose. Where no registry is reachable, install-containers.sh builds the
base images from Debian's packages: Debian's PostgreSQL replaces the official image. Without systemd, podman runs no
health checks and compose does not wait for them, so the tests do both.
"""

import ast
import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

missing = [program for program in ("podman", "kubectl") if shutil.which(program) is None]
pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        bool(missing), reason=f"SKIPPED: {', '.join(missing)} not here; tests/engines/install-containers.sh installs it"
    ),
]

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
TARGETS = ("pgbouncer", "worker", "service")
PODMAN = {**os.environ, "CONTAINERS_CONF": str(Path(__file__).with_name("containers.conf"))}
# Without it, a build downloads the libraries of CUDA.
TORCH = "--build-arg=TORCH_INDEX_URL=https://pypi.org/simple"
N_TRIALS = 8
# Selects about a hundred real documents, which are prepared in two seconds.
MAX_DOCUMENT_BYTES = 15_000
STUDY = f"""
name = "small"
[budget]
trials = {N_TRIALS}
[pruner]
name = "none"
[search_space]
learning_rate = {{ low = 1e-3, high = 0.3, log = true }}
momentum      = {{ low = 0.8, high = 0.99 }}
[fixed]
dataset = "/studies/documents"
d_model = 32
n_layers = 1
n_heads = 2
d_ff = 64
n_experts = 4
top_k = 2
vocab_size = 300
sequence_length = 32
batch_size = 4
max_steps = 300
eval_steps = 30
eval_tokens = 1024
"""
# The shipped workers mark an attempt as lost after a minute, and use all cores.
HEARTBEAT_OPTIONS = ("--heartbeat-every", "1", "--stale-after", "10")
TEST_WORKER = {"command": ["worker", "${STUDY:-}", *HEARTBEAT_OPTIONS], "environment": {"OMP_NUM_THREADS": "1"}}
# For what must happen sooner or later on a busy machine. pytest's own limit is above it.
WAIT_S = 600


def run(*command, check=True, **options) -> subprocess.CompletedProcess[str]:
    """Run a program, and show its output when it fails."""
    completed = subprocess.run(
        [str(word) for word in command],
        env=options.pop("env", PODMAN),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert not check or completed.returncode == 0, f"{command}: {completed.stdout}\n{completed.stderr}"
    return completed


def podman(*arguments, check=True) -> str:
    return run("podman", *arguments, check=check).stdout


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s"
        time.sleep(0.3)


def mount_pip_settings(folder: Path) -> list[str]:
    """Return options that mount the settings of this machine's pip into a build: certificates and package folders."""
    lines = run(sys.executable, "-m", "pip", "config", "list").stdout.splitlines()
    settings = {
        name.rpartition(".")[2]: " ".join(ast.literal_eval(value).split())
        for name, _, value in (line.partition("=") for line in lines)
        if name.startswith(("global.", ":env:."))
    }
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    words = [word for value in settings.values() for word in value.split()]
    # The packages of an index are beside its pages.
    indexes = [Path(word.removeprefix("file://")).parent for word in words if word.startswith("file://")]
    paths = {*indexes, *(Path(word) for word in words if word.startswith("/"))}
    mounts = [f"{path}:{path}:ro" for path in sorted(paths) if path.exists()]
    return [word for mount in (f"{file}:/etc/pip.conf:ro", *mounts) for word in ("--volume", mount)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, str]:
    """The names of the images in compose.yaml, by target."""
    mounts = mount_pip_settings(tmp_path_factory.mktemp("pip"))
    names = {target: f"hpopt-{target}" for target in TARGETS}
    for target, name in names.items():
        files = ("--file", DOCKER / "Dockerfile", "--ignorefile", DOCKER / "Dockerfile.dockerignore")
        # Only Docker's format has health checks.
        podman("build", "--format=docker", *files, TORCH, "--target", target, "--tag", name, *mounts, ROOT)
    return names


class Service:
    """The services of compose.yaml, with passwords, studies and a port of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = f"hpopt-test-{os.getpid()}"
        self.override = folder / "override.yaml"
        self.override.write_text(yaml.safe_dump({"services": {"worker": TEST_WORKER}}))
        self.studies = folder / "studies"
        self.secrets = folder / "secrets"
        run(DOCKER / "secrets.sh", self.secrets)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def compose(self, *arguments, study="small", check=True) -> subprocess.CompletedProcess[str]:
        given = {"STUDY": study, "STUDIES": self.studies, "SECRETS": self.secrets, "DASHBOARD_PORT": self.port}
        environment = {**PODMAN, **{name: str(value) for name, value in given.items()}}
        files = ("--file", DOCKER / "compose.yaml", "--file", self.override)
        program = Path(sys.executable).with_name("podman-compose")
        options = ("--project-name", self.project, *files, "--profile", "worker", "--profile", "command")
        return run(program, *options, *arguments, env=environment, check=check)

    def containers(self, service: str) -> list[str]:
        labels = (f"io.podman.compose.project={self.project}", f"com.docker.compose.service={service}")
        filters = [f"--filter=label={label}" for label in labels]
        return podman("ps", "--all", "--format={{.Names}}", *filters).split()

    def container(self, service: str) -> str:
        (name,) = self.containers(service)
        return name

    def is_healthy(self, service: str) -> bool:
        return run("podman", "healthcheck", "run", self.container(service), check=False).returncode == 0

    def hpopt(self, *arguments) -> str:
        """Run a command of hpopt, and retry where Podman's DNS has lost a name while containers restart."""
        command = ("run", "--rm", "--no-deps", "-T", "hpopt", *arguments)
        while "name resolution" in (completed := self.compose(*command, check=False)).stderr:
            time.sleep(0.5)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    def sql(self, query: str) -> str:
        client = ("psql", "--username=owner", "--dbname=hpopt", "--no-align", "--tuples-only", f"--command={query}")
        return podman("exec", self.container("postgres"), *client).strip()

    def password(self, user: str) -> str:
        return (self.secrets / f"{user}-password").read_text()

    def get(self, path: str, password: str | None = None) -> int:
        credentials = base64.b64encode(f"hpopt:{password}".encode()).decode()
        headers = {} if password is None else {"Authorization": f"Basic {credentials}"}
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status


def write_study(folder: Path) -> None:
    documents = folder / "documents"
    documents.mkdir(parents=True)
    for path in Path(sysconfig.get_path("stdlib")).glob("*.py"):
        if path.stat().st_size < MAX_DOCUMENT_BYTES:
            shutil.copy(path, documents / f"{path.stem}.txt")
    (folder / "small.toml").write_text(STUDY)


@pytest.fixture(scope="module")
def service(images, tmp_path_factory) -> Iterator[Service]:
    """The service, with a finished study of two workers, one of which was killed and the other preempted."""
    service = Service(tmp_path_factory.mktemp("service"))
    write_study(service.studies)
    try:
        for name in ("postgres", "pgbouncer", "migrate", "dashboard"):
            service.compose("up", "--detach", "--no-deps", name)
            if name == "migrate":
                assert podman("wait", service.container(name)).strip() == "0", podman("logs", service.container(name))
            else:
                wait_until(lambda name=name: service.is_healthy(name))
        service.hpopt("create", "small.toml")
        # Both workers begin at the same time, however much longer one of them takes to start.
        service.hpopt("pause", "small")
        service.compose("up", "--detach", "--no-deps", "--scale", "worker=2", "worker")
        wait_until(lambda: service.sql("select count(*) from hpopt.fleet") == "2")
        service.hpopt("resume", "small")
        killed, preempted = service.containers("worker")
        running = "select count(distinct w.host) from hpopt.fleet w where w.step > 0"
        wait_until(lambda: service.sql(running) == "2")
        podman("kill", "--signal=KILL", killed)
        podman("exec", preempted, "sh", "-c", "kill -TERM 1")
        finished = "select count(*) from hpopt.trials where state in ('COMPLETE', 'PRUNED', 'FAIL')"
        wait_until(lambda: service.sql(finished) == str(N_TRIALS))
        service.killed, service.preempted = killed, preempted
        yield service
    finally:
        # pytest shows this when a test failed.
        for name in ("postgres", "pgbouncer", "migrate", "dashboard", "worker"):
            for container in service.containers(name):
                logs = run("podman", "logs", "--timestamps", container, check=False)
                sys.stdout.write(f"\n{container}:\n{logs.stdout}{logs.stderr}")
        # Without the last option, workers beyond the first would stay.
        service.compose("down", "--volumes", "--remove-orphans", check=False)


def test_a_build_gets_only_the_files_that_it_needs(tmp_path):
    """A .git, .hpopt or folder of secrets in a layer stays there, whatever a later layer deletes."""
    lister = tmp_path / "Dockerfile"
    lister.write_text("FROM debian:bookworm-slim\nCOPY . /context\nRUN cd /context && find . -type f\n")
    ignore = ("--ignorefile", DOCKER / "Dockerfile.dockerignore")
    output = podman("build", "--no-cache", "--file", lister, *ignore, ROOT)
    sent = {line for line in output.splitlines() if line.startswith("./")}
    assert {"./pyproject.toml", "./src/hpopt/cli/main.py", "./docker/pgbouncer.sh"} <= sent
    assert {line.split("/")[1] for line in sent} == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "alembic", "src", "docker")
    }
    assert not [line for line in sent if "__pycache__" in line]


def test_the_worker_has_torch_and_the_service_has_not(images):
    import_torch = ("--entrypoint=python3", "--rm")
    assert run("podman", "run", *import_torch, images["service"], "-c", "import torch", check=False).returncode == 1
    podman("run", *import_torch, images["worker"], "-c", "import torch, transformers")


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_does_not_run_as_root(images, target):
    assert podman("run", "--rm", "--entrypoint=id", images[target], "-u").strip() in {"10001", "65534"}
    assert "0:0" not in podman("image", "inspect", "--format={{.User}}", images[target])


def test_the_budget_is_kept_through_a_kill_and_a_preemption(service):
    assert service.sql("select count(*), count(*) filter (where state = 'COMPLETE') from hpopt.trials") == (
        f"{N_TRIALS}|{N_TRIALS}"
    )
    outcomes = service.sql("select string_agg(distinct outcome, ' ' order by outcome) from hpopt.attempt")
    assert outcomes == "complete lost preempted"


def test_a_preempted_worker_is_run_again_and_one_whose_study_is_finished_is_not(service):
    wait_until(lambda: podman("inspect", "--format={{.State.Status}}", service.preempted).strip() == "exited")
    assert podman("inspect", "--format={{.State.ExitCode}} {{.RestartCount}}", service.preempted).split() == ["0", "1"]
    assert "finished: " in run("podman", "logs", service.preempted).stderr


def test_the_best_parameters_are_read_from_the_service_and_from_its_database(service):
    best = json.loads(service.hpopt("best", "small", "--format", "json"))
    row = json.loads(service.sql("select row_to_json(b) from hpopt.best_params b where study_name = 'small'"))
    assert best["params"] == row["params"]
    assert set(best["params"]) == {"learning_rate", "momentum"}


def test_the_dashboard_requires_its_password(service):
    assert service.get("/dashboard/") == 401
    assert service.get("/dashboard/", "wrong") == 401
    assert service.get("/api/studies") == 401
    assert service.get("/dashboard/", service.password("dashboard")) == 200
    assert service.get("/healthz") == 200


def test_the_dashboard_is_unhealthy_while_the_database_is_unreachable(service):
    wait_until(lambda: service.is_healthy("dashboard"))
    podman("stop", service.container("pgbouncer"))
    assert not service.is_healthy("dashboard")
    podman("start", service.container("pgbouncer"))
    wait_until(lambda: service.is_healthy("dashboard"))


@pytest.mark.parametrize(
    ("login", "statement", "refusal"),
    [
        ("worker", "drop table hpopt.rung", "must be owner of table rung"),
        ("worker", "delete from hpopt.alembic_version", "permission denied"),
        ("reader", "delete from public.studies", "permission denied"),
    ],
)
def test_who_breaks_into_a_container_reaches_what_its_role_may(service, login, statement, refusal):
    assert service.sql(f"set session authorization {login}; select count(*) from hpopt.trials") == f"SET\n{N_TRIALS}"
    client = ("psql", "--username=owner", "--dbname=hpopt", f"--command=set session authorization {login}; {statement}")
    completed = run("podman", "exec", service.container("postgres"), *client, check=False)
    assert refusal in completed.stderr


def test_the_dashboard_has_the_login_of_a_reader(service):
    environment = podman("exec", service.container("dashboard"), "env")
    assert "HPOPT_STORAGE=postgresql://reader@pgbouncer" in environment


def test_no_password_is_in_an_image_an_environment_a_command_line_a_log_or_the_configuration(service, images):
    texts = [service.compose("config").stdout]
    for image in images.values():
        texts += [podman("history", "--no-trunc", image), podman("image", "inspect", image)]
    for name in ("postgres", "pgbouncer", "migrate", "dashboard", "worker"):
        for container in service.containers(name):
            logs = run("podman", "logs", container)
            texts += [podman("inspect", container), logs.stdout, logs.stderr]
    read = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; true"
    for name, user in (("postgres", "postgres"), ("pgbouncer", "nobody"), ("dashboard", "hpopt")):
        texts.append(podman("exec", "--user", user, service.container(name), "sh", "-c", read))
    # The texts are those of this service.
    assert "POSTGRES_PASSWORD_FILE" in texts[0]
    assert "reader@pgbouncer" in texts[-1]
    for user in ("owner", "worker", "reader", "dashboard"):
        assert not [text for text in texts if service.password(user) in text]


def test_a_worker_that_is_refused_is_not_run_again(service):
    podman("rm", "--force", *service.containers("worker"))
    service.compose("up", "--detach", "--no-deps", "worker", study="smal")
    name = service.container("worker")
    wait_until(lambda: podman("inspect", "--format={{.State.Status}}", name).strip() == "exited")
    assert podman("inspect", "--format={{.State.ExitCode}} {{.RestartCount}}", name).split() == ["0", "0"]
    assert "no study 'smal' in" in run("podman", "logs", name).stderr


@pytest.mark.parametrize("folder", ["kubernetes", "kubernetes/create", "kubernetes/worker"])
def test_kustomize_renders_valid_manifests(folder):
    rendered = list(yaml.safe_load_all(run("kubectl", "kustomize", DOCKER / folder).stdout))
    assert rendered
    for manifest in rendered:
        kubernetes_validate.validate(manifest, "1.33", strict=True)
        assert "hpopt" in {manifest["metadata"]["name"], manifest["metadata"].get("namespace")}
        if "template" in manifest.get("spec", {}):
            (container,) = manifest["spec"]["template"]["spec"]["containers"]
            assert re.fullmatch(r"hpopt-(service|worker):\d+\.\d+\.\d+", container["image"])
