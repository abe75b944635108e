"""A study through PgBouncer in transaction mode, with fewer connections to PostgreSQL than workers.

In transaction mode each transaction gets any free connection: the state of a session is lost, or left for other
clients. The tables are created over the direct URL, as is usual for migrations.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg2
import pytest
from pgbouncer import PgBouncer, is_installed, pgbouncer

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not is_installed(), reason="PgBouncer is not installed: apt-get install pgbouncer"),
]

TIMEOUT_S = 90
N_WORKERS = 4
POOL_SIZE = 2
N_TRIALS = 12
LONG_STEP_S = 5.0
# A worker keeps its connection for two seconds after an evaluation.
DISCONNECTED_AFTER_S = 3.0
STUDY = f"""
name = "pooled"
objective = "pooled:train"
metric = "loss"
[budget]
trials = {N_TRIALS}
[pruner]
name = "none"
[search_space]
x = {{ low = 0.0, high = 1.0 }}
"""
# The second step of the first trial of each process takes long.
OBJECTIVE = """
import json, os, time
from dataclasses import dataclass
from hpopt.training.run import Evaluation

long_steps = [{long_step_s}]

@dataclass(frozen=True)
class Config:
    x: float = 0.5
    seed: int = 0

def train(config: Config, run):
    for step in (1, 2, 3):
        began = time.time()
        time.sleep(long_steps.pop() if step == 2 and long_steps else 0.1)
        with open("steps.jsonl", "a") as file:
            file.write(json.dumps([os.environ["PGAPPNAME"], began, time.time()]) + "\\n")
        metrics = {{"loss": (config.x - 0.3) ** 2 + 1 / step}}
        yield Evaluation(step=step, n_steps=3, tokens=step, seconds=float(step), metrics=metrics)
"""


class Sample(NamedTuple):
    """The number of connections of each worker at a moment between two times."""

    after: float
    before: float
    n_by_worker: dict[str, int]


class Fleet:
    """A finished study in a folder, and samples of the connections of its workers while they ran it."""

    def __init__(self, direct: str, url: str, list_connections, n_workers: int = N_WORKERS) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hpopt-pgbouncer-test-"))
        self.url = url
        (self.folder / "pooled.toml").write_text(STUDY)
        (self.folder / "pooled.py").write_text(OBJECTIVE.format(long_step_s=LONG_STEP_S))
        self.created = self.hpopt("create", "pooled.toml", url=direct)
        self.samples: list[Sample] = []
        self._has_finished = threading.Event()
        sampling = threading.Thread(target=self._sample, args=(list_connections,))
        sampling.start()
        self.workers = [self._start_worker(f"worker-{i}") for i in range(n_workers)]
        self.logs = [worker.communicate(timeout=TIMEOUT_S)[0] for worker in self.workers]
        self._has_finished.set()
        sampling.join()

    def hpopt(self, *arguments, url=None):
        return subprocess.run(
            [sys.executable, "-m", "hpopt", *arguments],
            cwd=self.folder,
            env=self._environment(url or self.url),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def steps(self):
        """Return the worker, begin and end of each training step."""
        return [json.loads(line) for line in (self.folder / "steps.jsonl").read_text().splitlines()]

    def _start_worker(self, name):
        # Without heartbeats, which would open a connection during the long steps.
        times = ["--heartbeat-every", "30", "--stale-after", "90"]
        return subprocess.Popen(
            [sys.executable, "-m", "hpopt", "worker", "pooled", "--device", "cpu", *times],
            cwd=self.folder,
            env={**self._environment(self.url), "PGAPPNAME": name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _environment(self, url):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HPOPT_")}
        return {**inherited, "HPOPT_STORAGE": url, "HPOPT_HOME": str(self.folder / "home")}

    def _sample(self, list_connections):
        while not self._has_finished.wait(0.03):
            after = time.time()
            n_by_worker = Counter(list_connections())
            self.samples.append(Sample(after, time.time(), n_by_worker))


@contextmanager
def _database(postgres_url):
    name = f"test_pgbouncer_{os.getpid()}_{time.monotonic_ns()}"
    _rows(postgres_url, f"create database {name}")
    yield f"{postgres_url.removesuffix('/hpopt')}/{name}"
    _rows(postgres_url, f"drop database {name} with (force)")


@pytest.fixture(scope="module")
def direct_fleet(postgres_url) -> Iterator[Fleet]:
    with _database(postgres_url) as direct:
        query = """
            select application_name from pg_stat_activity
            where datname = current_database() and application_name like 'worker%'
        """
        fleet = Fleet(direct, direct, lambda: [name for (name,) in _rows(direct, query)], n_workers=2)
        yield fleet
    shutil.rmtree(fleet.folder)


class Pooled(NamedTuple):
    """A fleet, the PgBouncer that it went through, and samples of the connections of PgBouncer to PostgreSQL."""

    fleet: Fleet
    bouncer: PgBouncer
    direct: str
    servers: list[list[dict]]


@pytest.fixture(scope="module")
def pooled(postgres_url) -> Iterator[Pooled]:
    with _database(postgres_url) as direct, pgbouncer(direct, pool_size=POOL_SIZE) as bouncer:
        servers = []

        def list_connections():
            servers.append(bouncer.show("servers"))
            clients = [row["application_name"] for row in bouncer.show("clients")]
            return [name for name in clients if name.startswith("worker")]

        fleet = Fleet(direct, bouncer.url, list_connections)
        yield Pooled(fleet, bouncer, direct, servers)
    shutil.rmtree(fleet.folder)


def test_a_study_runs_through_pgbouncer_and_loses_no_trial(pooled):
    assert pooled.fleet.created.returncode == 0, pooled.fleet.created
    assert [worker.returncode for worker in pooled.fleet.workers] == [0] * N_WORKERS, pooled.fleet.logs
    outcomes = _rows(pooled.direct, "select outcome, count(*) from hpopt.attempt group by 1")
    assert outcomes == [("complete", N_TRIALS)]
    assert _rows(pooled.direct, "select state, count(*) from public.trials group by 1") == [("COMPLETE", N_TRIALS)]
    assert _rows(pooled.direct, "select count(*), count(distinct optuna_trial_id) from hpopt.evaluation") == [
        (36, N_TRIALS)
    ]
    assert _rows(pooled.direct, "select count(distinct worker_id) from hpopt.attempt") == [(N_WORKERS,)]


def test_pgbouncer_shares_its_pool_among_all_workers(pooled):
    """With a connection to PostgreSQL for each worker, these tests would show nothing."""
    assert POOL_SIZE < N_WORKERS
    assert max(len(servers) for servers in pooled.servers) <= POOL_SIZE
    assert _connected_workers(pooled.fleet) == {f"worker-{i}" for i in range(N_WORKERS)}


def test_status_best_and_report_work_through_pgbouncer(pooled):
    fleet = pooled.fleet
    assert f"{N_TRIALS}/{N_TRIALS}" in fleet.hpopt("status", "pooled").stdout
    best = json.loads(fleet.hpopt("best", "pooled", "--format", "json").stdout)
    assert best["value"] == _rows(pooled.direct, "select value from hpopt.best_params")[0][0]
    report = fleet.hpopt("report", "pooled", "--output", "out")
    assert report.returncode == 0, report
    assert "pooled" in (fleet.folder / "out" / "index.html").read_text()


def test_workers_leave_no_state_in_a_session(pooled):
    """In transaction mode another client uses the connection next."""
    settings = "select name, setting from pg_settings where source = 'session' and name <> 'application_name'"
    statements = "select name from pg_prepared_statements union all select name from pg_cursors"
    with ExitStack() as stack:
        sessions = [stack.enter_context(_session(pooled.bouncer.url)) for _ in range(POOL_SIZE)]
        pids = {_fetch(session, "select pg_backend_pid()")[0][0] for session in sessions}
        # Each session has a connection of the pool, so these are all of its connections.
        assert pids == {row["remote_pid"] for row in pooled.bouncer.show("servers")}
        defaults = _rows(pooled.direct, settings)
        for session in sessions:
            assert _fetch(session, settings) == defaults
            assert _fetch(session, statements) == []
    is_ours = "database = (select oid from pg_database where datname = current_database())"
    locks = f"select count(*) from pg_locks where locktype = 'advisory' and {is_ours}"
    open_transactions = """
        select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in %'
    """
    assert _rows(pooled.direct, locks) == [(0,)]
    assert _rows(pooled.direct, open_transactions) == [(0,)]


def test_a_worker_has_no_connection_to_pgbouncer_while_it_trains(pooled):
    _require_few_connections(pooled.fleet)


def test_a_worker_has_no_connection_to_postgres_while_it_trains(direct_fleet):
    assert [worker.returncode for worker in direct_fleet.workers] == [0, 0], direct_fleet.logs
    _require_few_connections(direct_fleet)


def _require_few_connections(fleet):
    """A fleet trains nearly all of the time, so these are the connections that the database must have."""
    assert max(n for sample in fleet.samples for n in sample.n_by_worker.values()) <= 2
    long_steps = [step for step in fleet.steps() if step[2] - step[1] >= LONG_STEP_S]
    assert {worker for worker, _, _ in long_steps} == _connected_workers(fleet)
    for worker, began, ended in long_steps:
        first = began + DISCONNECTED_AFTER_S
        samples = [sample for sample in fleet.samples if first < sample.after and sample.before < ended]
        assert len(samples) > 3
        assert {sample.n_by_worker[worker] for sample in samples} == {0}


def _connected_workers(fleet):
    """Return the workers that had a connection in any sample."""
    return {worker for sample in fleet.samples for worker in sample.n_by_worker}


@contextmanager
def _session(url):
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        yield connection


def _fetch(connection, query):
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def _rows(url, query):
    with _session(url) as connection:
        connection.autocommit = True
        return _fetch(connection, query)
