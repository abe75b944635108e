"""A study through PgBouncer in transaction mode, with fewer connections to Postgres than workers.

Transaction mode gives every transaction whichever connection is free: what a session keeps for later is lost, or left
behind for others. Tables are made over the direct URL, as migrations usually are.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg2
import pytest
from pgbouncer import PgBouncer, is_installed, pgbouncer

pytestmark = pytest.mark.skipif(not is_installed(), reason="PgBouncer is not installed: apt-get install pgbouncer")

N_WORKERS = 4
POOL_SIZE = 2
N_TRIALS = 12
LONG_STEP_S = 5.0
# A worker may keep its connection for a while after an evaluation, for the next word.
SETTLED_AFTER_S = 3.0
STUDY = f"""
name = "patient"
objective = "patient:train"
metric = "loss"
[budget]
trials = {N_TRIALS}
[pruner]
name = "none"
[search_space]
x = {{ low = 0.0, high = 1.0 }}
"""
# The first trial of each process takes a long second step.
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


class Look(NamedTuple):
    """The client connections of each worker at a moment."""

    at: float
    n_by_worker: dict[str, int]


class Fleet:
    """A folder, and a study that workers run to its end while somebody looks at their connections."""

    def __init__(self, direct: str, url: str, look, n_workers: int = N_WORKERS) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hpopt-pgbouncer-test-"))
        self.url = url
        (self.folder / "patient.toml").write_text(STUDY)
        (self.folder / "patient.py").write_text(OBJECTIVE.format(long_step_s=LONG_STEP_S))
        self.created = self.hpopt("create", "patient.toml", url=direct)
        self.looks: list[Look] = []
        self._over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(look,))
        watcher.start()
        self.workers = [self._start_worker(f"worker-{i}") for i in range(n_workers)]
        self.said = [worker.communicate(timeout=60)[0] for worker in self.workers]
        self._over.set()
        watcher.join()

    def hpopt(self, *arguments, url=None):
        return subprocess.run(
            [sys.executable, "-m", "hpopt", *arguments],
            cwd=self.folder,
            env=self._environment(url or self.url),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def trains(self):
        """Give the worker, begin and end of each step that was trained."""
        return [json.loads(line) for line in (self.folder / "steps.jsonl").read_text().splitlines()]

    def _start_worker(self, name):
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "hpopt",
                "worker",
                "patient",
                "--device",
                "cpu",
                "--heartbeat-every",
                "30",
                "--stale-after",
                "90",
            ],
            cwd=self.folder,
            env={**self._environment(self.url), "PGAPPNAME": name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _environment(self, url):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HPOPT_")}
        return {**kept, "HPOPT_STORAGE": url, "HPOPT_HOME": str(self.folder / "home")}

    def _watch(self, look):
        while not self._over.wait(0.03):
            counted: dict[str, int] = {}
            for name in look():
                counted[name] = counted.get(name, 0) + 1
            self.looks.append(Look(time.time(), counted))


@contextmanager
def _database(postgres_url):
    name = f"test_pgbouncer_{os.getpid()}_{time.monotonic_ns()}"
    _rows(postgres_url, f"create database {name}")
    yield f"{postgres_url.removesuffix('/hpopt')}/{name}"
    _rows(postgres_url, f"drop database {name} with (force)")


@pytest.fixture(scope="module")
def direct_fleet(postgres_url) -> Iterator[Fleet]:
    with _database(postgres_url) as direct:
        names = "select application_name from pg_stat_activity where datname = current_database()"
        # Of the two that are compared this is the one that needs no crowd.
        fleet = Fleet(
            direct, direct, lambda: [name for (name,) in _rows(direct, names) if name.startswith("worker")], 2
        )
        yield fleet
    shutil.rmtree(fleet.folder)


class Pooled(NamedTuple):
    """A fleet, the PgBouncer that it went through, and the rows of its servers that were seen meanwhile."""

    fleet: Fleet
    bouncer: PgBouncer
    direct: str
    servers: list[list[dict]]


@pytest.fixture(scope="module")
def pooled(postgres_url) -> Iterator[Pooled]:
    with _database(postgres_url) as direct, pgbouncer(direct, pool_size=POOL_SIZE) as bouncer:
        servers = []

        def look():
            servers.append(bouncer.show("servers"))
            clients = [row["application_name"] for row in bouncer.show("clients")]
            return [name for name in clients if name.startswith("worker")]

        fleet = Fleet(direct, bouncer.url, look)
        yield Pooled(fleet, bouncer, direct, servers)
    shutil.rmtree(fleet.folder)


def test_a_study_runs_through_pgbouncer_and_loses_no_trial(pooled):
    assert pooled.fleet.created.returncode == 0, pooled.fleet.created
    assert [worker.returncode for worker in pooled.fleet.workers] == [0] * N_WORKERS, pooled.fleet.said
    outcomes = _rows(pooled.direct, "select outcome, count(*) from hpopt.attempt group by 1")
    assert outcomes == [("complete", N_TRIALS)]
    assert _rows(pooled.direct, "select state, count(*) from public.trials group by 1") == [("COMPLETE", N_TRIALS)]
    assert _rows(pooled.direct, "select count(*), count(distinct trial_id) from hpopt.evaluation") == [(36, N_TRIALS)]
    assert _rows(pooled.direct, "select count(distinct worker_id) from hpopt.attempt") == [(N_WORKERS,)]


def test_pgbouncer_shares_its_pool_among_all_workers(pooled):
    """The test would show nothing if each worker had a connection to Postgres for itself."""
    assert POOL_SIZE < N_WORKERS
    assert max(len(servers) for servers in pooled.servers) <= POOL_SIZE
    assert _seen(pooled.fleet) == {f"worker-{i}" for i in range(N_WORKERS)}


def test_status_best_and_report_answer_through_pgbouncer(pooled):
    fleet = pooled.fleet
    assert f"{N_TRIALS}/{N_TRIALS}" in fleet.hpopt("status", "patient").stdout.replace(" of ", "/")
    best = json.loads(fleet.hpopt("best", "patient", "--format", "json").stdout)
    assert best["value"] == _rows(pooled.direct, "select value from hpopt.best_params")[0][0]
    report = fleet.hpopt("report", "patient", "--output", "out")
    assert report.returncode == 0, report
    assert "patient" in (fleet.folder / "out" / "index.html").read_text()


def test_no_worker_leaves_anything_behind_in_a_session(pooled):
    """In transaction mode the next to use the connection is somebody else."""
    left = "select name, setting from pg_settings where source = 'session' and name <> 'application_name'"
    kept = "select name from pg_prepared_statements union all select name from pg_cursors"
    with ExitStack() as stack:
        sessions = [stack.enter_context(_session(pooled.bouncer.url)) for _ in range(POOL_SIZE)]
        pids = {_ask(session, "select pg_backend_pid()")[0][0] for session in sessions}
        # Each holds one connection of the pool, so these are all of them.
        assert pids == {row["remote_pid"] for row in pooled.bouncer.show("servers")}
        usual = _rows(pooled.direct, left)
        for session in sessions:
            assert _ask(session, left) == usual
            assert _ask(session, kept) == []
    ours = "database = (select oid from pg_database where datname = current_database())"
    locks = f"select count(*) from pg_locks where locktype = 'advisory' and {ours}"
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in %'"
    assert _rows(pooled.direct, locks) == [(0,)]
    assert _rows(pooled.direct, waiting) == [(0,)]


def test_a_worker_has_no_connection_to_pgbouncer_while_it_trains(pooled):
    _require_few_connections(pooled.fleet)


def test_a_worker_has_no_connection_to_postgres_while_it_trains(direct_fleet):
    assert [worker.returncode for worker in direct_fleet.workers] == [0, 0], direct_fleet.said
    _require_few_connections(direct_fleet)


def _require_few_connections(fleet):
    """A fleet trains nearly all of the time: what it holds meanwhile is what the database has to hold."""
    assert max(n for look in fleet.looks for n in look.n_by_worker.values()) <= 2
    long_steps = [step for step in fleet.trains() if step[2] - step[1] >= LONG_STEP_S]
    assert {worker for worker, _, _ in long_steps} == _seen(fleet)
    for worker, began, ended in long_steps:
        settled = [look for look in fleet.looks if began + SETTLED_AFTER_S < look.at < ended]
        assert len(settled) > 3
        assert {look.n_by_worker.get(worker, 0) for look in settled} == {0}


def _seen(fleet):
    """Give the workers that were seen with a connection."""
    return {worker for look in fleet.looks for worker in look.n_by_worker}


@contextmanager
def _session(url):
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        yield connection


def _ask(connection, query):
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def _rows(url, query):
    with _session(url) as connection:
        connection.autocommit = True
        return _ask(connection, query)
