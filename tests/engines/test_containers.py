"""The images and compose.yaml with real containers: built, brought up, worked in, killed. And the rendered manifests.

Podman stands in for Docker and podman-compose for its compose. Where no registry is reached, install-containers.sh has
made the images that ours are built on out of Debian's packages: Debian's Postgres stands in for the official image.
Without systemd nobody runs health checks, and compose waits for none: both are done here.
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
N_TRIALS = 8
# About a hundred real documents, which are prepared in two seconds.
LARGEST_DOCUMENT = 15_000
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
# The shipped ones wait a minute before they take a silent worker for dead, and take all cores.
PATIENCE = ("--heartbeat-every", "1", "--stale-after", "5")
TEST_WORKER = {"command": ["worker", "${STUDY:-}", *PATIENCE], "environment": {"OMP_NUM_THREADS": "1"}}


def run(*command, check=True, **options) -> subprocess.CompletedProcess[str]:
    """Run a program, and show what it said when it fails."""
    said = subprocess.run(
        [str(word) for word in command],
        env=options.pop("env", PODMAN),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert not check or said.returncode == 0, f"{command}: {said.stdout}\n{said.stderr}"
    return said


def podman(*arguments, check=True) -> str:
    return run("podman", *arguments, check=check).stdout


def wait_until(is_so: Callable[[], object], within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.3)


def pip_as_here(folder: Path) -> list[str]:
    """Mount what this machine's pip is set up with into a build: certificates, and folders of packages."""
    lines = run(sys.executable, "-m", "pip", "config", "list").stdout.splitlines()
    settings = {
        name.rpartition(".")[2]: " ".join(ast.literal_eval(value).split())
        for name, _, value in (line.partition("=") for line in lines)
        if name.startswith(("global.", ":env:."))
    }
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    words = [word for value in settings.values() for word in value.split()]
    # The files of an index lie beside its pages.
    indexes = [Path(word.removeprefix("file://")).parent for word in words if word.startswith("file://")]
    paths = {*indexes, *(Path(word) for word in words if word.startswith("/"))}
    mounts = [f"{path}:{path}:ro" for path in sorted(paths) if path.exists()]
    return [word for mount in (f"{file}:/etc/pip.conf:ro", *mounts) for word in ("--volume", mount)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, str]:
    """The images by target, as compose.yaml calls them."""
    mounts = pip_as_here(tmp_path_factory.mktemp("pip"))
    names = {target: f"hpopt-{target}" for target in TARGETS}
    for target, name in names.items():
        files = ("--file", DOCKER / "Dockerfile", "--ignorefile", DOCKER / "Dockerfile.dockerignore")
        # Docker's format has health checks.
        podman("build", "--format=docker", *files, "--target", target, "--tag", name, *mounts, ROOT)
    return names


class Service:
    """compose.yaml, brought up with passwords, studies and a port of the test's own."""

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
        options = ("--project-name", self.project, *files, "--profile", "worker")
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
        """Run a verb beside the dashboard, again where Podman's DNS lost a name while containers came and went."""
        command = ("podman", "exec", self.container("dashboard"), "hpopt", *arguments)
        while "name resolution" in (said := run(*command, check=False)).stderr:
            time.sleep(0.5)
        assert said.returncode == 0, said.stderr
        return said.stdout

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
        if path.stat().st_size < LARGEST_DOCUMENT:
            shutil.copy(path, documents / f"{path.stem}.txt")
    (folder / "small.toml").write_text(STUDY)


@pytest.fixture(scope="module")
def service(images, tmp_path_factory) -> Iterator[Service]:
    """The service, with a study that two workers have worked on to its end; one was killed, the other preempted."""
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
        # Both begin together, however much longer one of them takes to start.
        service.hpopt("pause", "small")
        service.compose("up", "--detach", "--no-deps", "--scale", "worker=2", "worker")
        wait_until(lambda: service.sql("select count(*) from hpopt.fleet") == "2")
        service.hpopt("resume", "small")
        killed, preempted = service.containers("worker")
        running = "select count(distinct w.host) from hpopt.fleet w where w.step > 0"
        wait_until(lambda: service.sql(running) == "2")
        podman("kill", "--signal=KILL", killed)
        podman("exec", preempted, "sh", "-c", "kill -TERM 1")
        over = "select count(*) from hpopt.trials where state in ('COMPLETE', 'PRUNED', 'FAIL')"
        wait_until(lambda: service.sql(over) == str(N_TRIALS), within_s=300)
        service.killed, service.preempted = killed, preempted
        yield service
    finally:
        # pytest shows it where something failed.
        for name in ("postgres", "pgbouncer", "migrate", "dashboard", "worker"):
            for container in service.containers(name):
                said = run("podman", "logs", "--timestamps", container, check=False)
                sys.stdout.write(f"\n{container}:\n{said.stdout}{said.stderr}")
        # Without the last of these, workers beyond the first would stay.
        service.compose("down", "--volumes", "--remove-orphans", check=False)


def test_only_what_is_named_is_sent_to_a_build(tmp_path):
    """A .git, .hpopt or folder of secrets in a layer stays there, whatever a later layer deletes."""
    lister = tmp_path / "Dockerfile"
    lister.write_text("FROM debian:bookworm-slim\nCOPY . /context\nRUN cd /context && find . -type f\n")
    ignore = ("--ignorefile", DOCKER / "Dockerfile.dockerignore")
    said = podman("build", "--no-cache", "--file", lister, *ignore, ROOT)
    sent = {line for line in said.splitlines() if line.startswith("./")}
    assert {"./pyproject.toml", "./src/hpopt/cli/main.py", "./docker/pgbouncer.sh"} <= sent
    assert {line.split("/")[1] for line in sent} == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "alembic", "src", "docker")
    }
    assert not [line for line in sent if "__pycache__" in line]


def test_the_service_is_there_without_torch_and_the_worker_with_it(images):
    import_torch = ("--entrypoint=python3", "--rm")
    assert run("podman", "run", *import_torch, images["service"], "-c", "import torch", check=False).returncode == 1
    podman("run", *import_torch, images["worker"], "-c", "import torch, transformers")


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_nobody_who_matters(images, target):
    assert podman("run", "--rm", "--entrypoint=id", images[target], "-u").strip() in {"10001", "65534"}
    assert "0:0" not in podman("image", "inspect", "--format={{.User}}", images[target])


def test_the_budget_is_kept_through_a_kill_and_a_preemption(service):
    assert service.sql("select count(*), count(*) filter (where state = 'COMPLETE') from hpopt.trials") == (
        f"{N_TRIALS}|{N_TRIALS}"
    )
    ends = service.sql("select string_agg(distinct outcome, ' ' order by outcome) from hpopt.attempt")
    assert ends == "complete lost preempted"


def test_a_preempted_worker_is_run_again_and_one_whose_study_is_over_is_not(service):
    wait_until(lambda: podman("inspect", "--format={{.State.Status}}", service.preempted).strip() == "exited")
    assert podman("inspect", "--format={{.State.ExitCode}} {{.RestartCount}}", service.preempted).split() == ["0", "1"]
    assert "over: " in run("podman", "logs", service.preempted).stderr


def test_the_best_parameters_are_read_from_the_service_and_from_its_database(service):
    best = json.loads(service.hpopt("best", "small", "--format", "json"))
    row = json.loads(service.sql("select row_to_json(b) from hpopt.best_params b where study_name = 'small'"))
    assert best["params"] == row["params"]
    assert set(best["params"]) == {"learning_rate", "momentum"}


def test_the_dashboard_asks_for_its_password(service):
    assert service.get("/dashboard/") == 401
    assert service.get("/dashboard/", "wrong") == 401
    assert service.get("/api/studies") == 401
    assert service.get("/dashboard/", service.password("dashboard")) == 200
    assert service.get("/healthz") == 200


def test_health_follows_the_database(service):
    wait_until(lambda: service.is_healthy("dashboard"), within_s=10)
    podman("stop", service.container("pgbouncer"))
    assert not service.is_healthy("dashboard")
    podman("start", service.container("pgbouncer"))
    wait_until(lambda: service.is_healthy("dashboard"))


def test_a_worker_may_not_change_tables(service):
    """Whoever breaks into a training job reaches the rows, and no more."""
    connect = "import os, psycopg2; connection = psycopg2.connect(os.environ['HPOPT_STORAGE'])"
    asked = f"{connect}; connection.cursor().execute('drop table hpopt.rung')"
    command = ("podman", "exec", service.container("dashboard"), "python3", "-c", asked)
    wait_until(lambda: "must be owner of table rung" in run(*command, check=False).stderr, within_s=10)


def test_no_password_is_in_an_image_an_environment_a_command_line_a_log_or_the_configuration(service, images):
    seen = [service.compose("config").stdout]
    for image in images.values():
        seen += [podman("history", "--no-trunc", image), podman("image", "inspect", image)]
    for name in ("postgres", "pgbouncer", "migrate", "dashboard", "worker"):
        for container in service.containers(name):
            logs = run("podman", "logs", container)
            seen += [podman("inspect", container), logs.stdout, logs.stderr]
    look = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; true"
    for name, user in (("postgres", "postgres"), ("pgbouncer", "nobody"), ("dashboard", "hpopt")):
        seen.append(podman("exec", "--user", user, service.container(name), "sh", "-c", look))
    # They are looked for where something is.
    assert "POSTGRES_PASSWORD_FILE" in seen[0]
    assert "worker@pgbouncer" in seen[-1]
    for user in ("owner", "worker", "dashboard"):
        assert not [text for text in seen if service.password(user) in text]


def test_a_worker_that_is_refused_is_not_run_again(service):
    podman("rm", "--force", *service.containers("worker"))
    service.compose("up", "--detach", "--no-deps", "worker", study="smal")
    name = service.container("worker")
    wait_until(lambda: podman("inspect", "--format={{.State.Status}}", name).strip() == "exited")
    time.sleep(2)
    assert podman("inspect", "--format={{.State.ExitCode}} {{.RestartCount}}", name).split() == ["0", "0"]
    assert "no study 'smal' in" in run("podman", "logs", name).stderr


@pytest.mark.parametrize("folder", ["kubernetes", "kubernetes/worker"])
def test_kustomize_renders_what_a_cluster_takes(folder):
    rendered = list(yaml.safe_load_all(run("kubectl", "kustomize", DOCKER / folder).stdout))
    assert rendered
    for thing in rendered:
        kubernetes_validate.validate(thing, "1.33", strict=True)
        assert "hpopt" in {thing["metadata"]["name"], thing["metadata"].get("namespace")}
        if "template" in thing.get("spec", {}):
            (box,) = thing["spec"]["template"]["spec"]["containers"]
            assert re.fullmatch(r"hpopt-(service|worker):\d+\.\d+\.\d+", box["image"])
