"""`hpopt launch kubernetes` with the real kubectl, which talks to a stand-in for the API of a cluster."""

import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conformance import NAME, Engine, LaunchConformance

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

_BATCH = {"groupVersion": "batch/v1", "version": "v1"}
_JOBS = {
    "name": "jobs",
    "singularName": "job",
    "namespaced": True,
    "kind": "Job",
    "verbs": ["create", "delete", "list"],
}
# kubectl looks here whether the server refuses unknown fields.
_PATCH = {
    "x-kubernetes-group-version-kind": {"group": "batch", "version": "v1", "kind": "Job"},
    "parameters": [{"name": "fieldValidation", "in": "query"}],
}
_ANSWERS = {
    "/version": {"major": "1", "minor": "33"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [{"name": "batch", "versions": [_BATCH], "preferredVersion": _BATCH}],
    },
    "/apis/batch/v1": {"kind": "APIResourceList", "groupVersion": "batch/v1", "resources": [_JOBS]},
    "/openapi/v3": {"paths": {"apis/batch/v1": {"serverRelativeURL": "/openapi/v3/apis/batch/v1"}}},
    "/openapi/v3/apis/batch/v1": {
        "openapi": "3.0.0",
        "info": {"title": "jobs", "version": "1"},
        "paths": {"/apis/batch/v1/namespaces/{namespace}/jobs/{name}": {"patch": _PATCH}},
    },
}


class _Api(BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path.endswith("/jobs"):
            self.server.queries.append(query)
            self._answer(200, {"kind": "JobList", "apiVersion": "batch/v1", "items": list(self.server.jobs.values())})
        elif path in _ANSWERS:
            self._answer(200, _ANSWERS[path])
        else:
            self._answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})

    def do_POST(self):
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posted.append(self.path.partition("?")[0])
        self.server.jobs[job["metadata"]["name"]] = job
        self._answer(201, job)

    def do_DELETE(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        del self.server.jobs[self.path.partition("?")[0].rpartition("/")[2]]
        self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _answer(self, code, body):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        """Keep requests out of the output of tests."""


class Kubernetes(Engine):
    """A user whose kubectl talks to the stand-in. Nothing runs the pods."""

    name = "kubernetes"
    n_workers = 64
    launch_options = ("--image", "registry.example/hpopt:1", "--namespace", "ml")
    stop_options = ("--namespace", "ml")
    cancelled = "1 Kubernetes job"

    def __init__(self, workplace, api):
        super().__init__(workplace)
        self.api = api

    def wait_until_started(self):
        """Return at once."""

    def list_jobs(self):
        return list(self.api.jobs)

    def read_records(self):
        return [json.dumps(job) for job in self.api.jobs.values()]


@pytest.fixture
def engine(workplace):
    """A kubectl with a context for the stand-in."""
    if shutil.which("kubectl") is None:
        pytest.skip("SKIPPED: no kubectl here; tests/engines/install.sh installs it")
    version = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, check=True).stdout
    if int(json.loads(version)["clientVersion"]["minor"].rstrip("+")) < 27:
        pytest.skip("SKIPPED: this kubectl validates by a schema that only a cluster has")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Api) as server:
        server.jobs, server.posted, server.queries = {}, [], []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
            "current-context": "c",
        }
        path = workplace.folder / "kubeconfig"
        path.write_text(json.dumps(config))
        workplace.environment |= {"KUBECONFIG": str(path), "HOME": str(workplace.folder)}
        yield Kubernetes(workplace, server)
        server.shutdown()


class TestKubernetes(LaunchConformance):
    """The promises of all engines that need no workers."""


def test_a_launch_is_a_job_in_the_namespace_and_a_stop_selects_it_by_its_label(engine):
    engine.workplace.create(NAME, trials=4, steps=3)
    printed = engine.launch()
    assert engine.api.posted == ["/apis/batch/v1/namespaces/ml/jobs"]
    ((name, job),) = engine.api.jobs.items()
    assert printed == (
        f"Kubernetes job.batch/{name}; `hpopt status {NAME}` shows the workers, "
        f"`hpopt launch kubernetes {NAME} --namespace=ml --stop` cancels them\n"
    )
    assert job["spec"]["completions"] == 64
    engine.stop()
    assert engine.api.queries == [f"labelSelector=hpopt%2Fstudy%3D{job['metadata']['labels']['hpopt/study']}"]


def test_an_unreachable_cluster_is_one_line(engine):
    engine.api.shutdown()
    engine.api.server_close()
    engine.workplace.create(NAME, trials=4, steps=3)
    completed = engine.workplace.try_hpopt(*engine.launch_command())
    assert completed.returncode == 2
    assert completed.stderr.count("\n") == 1
    assert "kubectl" in completed.stderr
