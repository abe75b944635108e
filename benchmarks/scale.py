"""Measure the time of a trial's database calls as the study and the fleet grow, for plain Optuna and for hpopt.

Logical workers are threads that wait where they would train, so that the database is measured and not the cores. Every
call of every logical worker is timed, for both sides on the same PostgreSQL server, one after the other (their calls
are in scale_sides.py, the trials in the database in finished_trials.py). From 64 workers on, both use PgBouncer:

    python benchmarks/scale.py [--quick] [--output FILE]
"""

import argparse
import math
import os
import platform
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from finished_trials import N_STEPS
from pgbouncer import PgBouncer, is_installed, pgbouncer
from scale_sides import HEARTBEAT_EVERY_S, SIDES, Clock, LogicalWorker, Side, sample_params

from hpopt.postgres import server

SIZES = (100, 1_000, 10_000)
WORKERS = (1, 16, 64, 200)
POOLED_FROM = 64
POOL_SIZE = 20
N_PROCESSES = 4
N_EVALUATIONS = 5
# The simulated time between two evaluations, and the real one for each logical worker: a fleet of any size makes the
# same number of calls a second, and 200 workers as many as real ones.
EVALUATE_EVERY_S = 60.0
WAIT_PER_WORKER_S = EVALUATE_EVERY_S / 200
CALLS = {"reap": 1, "ask": 1, "evaluation": N_EVALUATIONS, "tell": 1}
# The heartbeats of a trial with an evaluation a second, and with one a minute: Optuna's thread sends one at the start
# and after every interval, hpopt an interval after its last call.
HEARTBEATS = {"plain Optuna": (1, 21), "hpopt": (0, 18), "hpopt, reconnecting": (0, 18)}
PARTS = (
    *("fail_stale_trials", "ask", "four suggests", "report", "should_prune", "tell", "record_heartbeat"),
    *("connect", "reload", "reap", "reserve", "refresh", "propose", "start", "record", "finish", "heartbeat"),
)
N_COMPOSED = 10_000
N_FIRST_ASKS = 3

_MACHINE_COLUMNS = (
    *("finished trials", "workers", "side", "cores busy", "of Postgres", "of PgBouncer", "WAL, kB/s"),
    *("connections to Postgres", "longest wait for one", "errors"),
)

_OPTUNA, _HPOPT, _RECONNECTING = SIDES

_METHOD = """\
Each side has a database of its own on one PostgreSQL 18 server (the embedded one, with fsync), filled with the same
finished trials: 4 params, 20 evaluations each, a third complete and the others pruned. Logical workers are threads in
four processes that wait where they would train. Whatever their number, together they begin 0.67 trials a second with
five evaluations each and a heartbeat every quarter of the time between two evaluations, as 200 workers with an
evaluation a minute do: the cores are nearly idle (last table), so that the time of a call is its own. Every measurement
begins on a new copy of the filled database. From 64 workers on, both sides use PgBouncer in transaction mode with a
pool of 20.

Plain Optuna is what `Study.optimize` does: `RDBStorage` with `heartbeat_interval=15`, the default `TPESampler`,
`SuccessiveHalvingPruner(min_resource=11, reduction_factor=3)`; fail_stale_trials (reap), ask and four suggests (ask),
report and should_prune (evaluation), tell, record_heartbeat. hpopt is what its worker does, with a budget in trials and
in device hours: reload and reap (reap); reserve, refresh, propose and start (ask); record (evaluation); finish (tell);
heartbeat.

The workers of a process share one cache of finished trials, on both sides. In a fleet each worker has its own, and an
ask reads what all others have finished since the last one: the first ask of a worker without a cache is the time for
all trials.

A whole trial is computed: 10,000 times one reap, ask and tell and five evaluations are drawn from the measured ones and
added up. With an evaluation a second hpopt keeps its connection, and evaluations renew its heartbeats; plain Optuna has
one heartbeat, at the start. With an evaluation a minute hpopt closes its connection each time and has 18 heartbeats;
plain Optuna keeps it and has 21."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement of `seconds`: a side, a number of finished trials and a number of logical workers.

    `n_running` further trials are running and make no calls.
    """

    side: str
    size: int
    n_workers: int
    seconds: float
    n_running: int = 0

    @property
    def wait_s(self) -> float:
        """The mean wait of a logical worker between two evaluations."""
        return self.n_workers * WAIT_PER_WORKER_S


@dataclass(kw_only=True)
class Result:
    """The milliseconds of all calls and of their parts, and the use of the machine."""

    calls: dict[str, list[float]] = field(default_factory=dict)
    parts: dict[str, list[float]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    cores: dict[str, float] = field(default_factory=dict)
    wal_kb_per_s: float = 0.0
    n_connections: int = 0
    longest_wait_s: float = 0.0

    def add(self, other: "Result") -> None:
        """Add the calls of another process."""
        for target, source in ((self.calls, other.calls), (self.parts, other.parts)):
            for name, milliseconds in source.items():
                target.setdefault(name, []).extend(milliseconds)
        self.errors.update(other.errors)

    def trial(self, n_heartbeats: int) -> list[float]:
        """Compose whole trials of calls drawn at random; none if a call was not measured."""
        n_calls = {**CALLS, "heartbeat": n_heartbeats}
        if not self.calls.keys() >= n_calls.keys():
            return []
        generator = np.random.default_rng(0)
        total = np.zeros(N_COMPOSED)
        for name, n in n_calls.items():
            total += generator.choice(np.array(self.calls[name]), size=(N_COMPOSED, n)).sum(axis=1)
        return [float(milliseconds) for milliseconds in total]


@dataclass(kw_only=True)
class Base:
    """A filled database: its size, and the seconds of the first ask of a worker without a cache."""

    n_bytes: int
    first_ask_s: list[float] = field(default_factory=list)


# By finished trials, logical workers and side; and by finished trials and side.
Results = dict[tuple[int, int, str], Result]
Filled = dict[tuple[int, str], Base]


@dataclass(kw_only=True)
class Measured:
    """All measurements; `among_running` has one worker beside many running trials, by side."""

    results: Results = field(default_factory=dict)
    filled: Filled = field(default_factory=dict)
    among_running: dict[str, Result] = field(default_factory=dict)


class WorkerLoop:
    """The loop of a logical worker: it waits as long as training would take, and makes its calls."""

    def __init__(self, cell: Cell, side: Side, seed: int, stop: threading.Event) -> None:
        self.clock = Clock()
        self.errors: Counter[str] = Counter()
        self._stop = stop
        self._wait_s = cell.wait_s
        self._heartbeat_every_s = cell.wait_s * HEARTBEAT_EVERY_S / EVALUATE_EVERY_S
        self._heartbeat_at = 0.0
        self._random = random.Random(seed)  # noqa: S311 - not used for security.
        self._worker = side.add_worker(seed, self.clock)
        _warm_up(self._worker, self._random)

    def run(self) -> None:
        """Continue the running trial at a random evaluation, and then run others."""
        self.clock.is_running = True
        self._worker.train()
        self._heartbeat_at = time.monotonic() + self._random.uniform(0.0, self._heartbeat_every_s)
        first, wait_s = self._random.randrange(N_EVALUATIONS), self._random.uniform(0.0, self._wait_s)
        while not self._stop.is_set():
            try:
                self._run_trial(first, wait_s)
                if not self._stop.is_set():
                    self._worker.reap()
                    self._worker.ask()
            except Exception as error:  # noqa: BLE001 - errors are counted and reported.
                self.errors[f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"] += 1
                self._stop.wait(1.0)
            first, wait_s = 0, self._draw_wait()

    def _run_trial(self, first: int, wait_s: float) -> None:
        level = self._random.uniform(3.8, 4.6)
        for evaluation in range(first + 1, N_EVALUATIONS + 1):
            self._train(wait_s)
            if self._stop.is_set():
                return
            step = evaluation * N_STEPS // N_EVALUATIONS
            if self._worker.evaluate(step, level + 2 * math.exp(-step / 30)):
                self._heartbeat_at = time.monotonic() + self._heartbeat_every_s
            wait_s = self._draw_wait()
        self._worker.end(level, is_complete=self._random.random() < 1 / 3)

    def _train(self, wait_s: float) -> None:
        until = time.monotonic() + wait_s
        self._worker.train()
        while self._heartbeat_at < until:
            if self._stop.wait(max(0.0, self._heartbeat_at - time.monotonic())):
                return
            self._worker.heartbeat()
            self._worker.train()
            self._heartbeat_at += self._heartbeat_every_s
        self._stop.wait(max(0.0, until - time.monotonic()))

    def _draw_wait(self) -> float:
        return self._random.uniform(0.5, 1.5) * self._wait_s


def _warm_up(worker: LogicalWorker, generator: random.Random) -> None:
    """Make each call once, and begin the trial that is running when the measurement begins."""
    worker.begin(sample_params(generator))
    worker.evaluate(N_STEPS // N_EVALUATIONS, 5.0)
    worker.heartbeat()
    worker.end(5.0, is_complete=False)
    worker.begin(sample_params(generator))


def run_workers(connection: Connection, cell: Cell, url: str, n_workers: int, seed: int) -> None:
    """Run the logical workers of a process: warm up, send `ready`, run after the reply, send the measurements."""
    side = SIDES[cell.side](url, n_workers)
    side.begin_trials(cell.n_running)
    # An ask fills the cache that they share.
    first = side.add_worker(seed * 1000 + 999, Clock())
    first.ask()
    first.end(5.0, is_complete=False)
    stop = threading.Event()
    loops = [WorkerLoop(cell, side, seed * 1000 + number, stop) for number in range(n_workers)]
    threads = [threading.Thread(target=loop.run, daemon=True) for loop in loops]
    connection.send("ready")
    connection.recv()
    for thread in threads:
        thread.start()
    time.sleep(cell.seconds)
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    result = Result()
    for loop in loops:
        result.add(Result(calls=loop.clock.calls, parts=loop.clock.parts, errors=loop.errors))
    connection.send(result)


def run_first_ask(connection: Connection, side: str, url: str) -> None:
    """Send the seconds of the first ask of a worker without a cache."""
    began = time.perf_counter()
    SIDES[side](url, 1).add_worker(0, Clock()).ask()
    connection.send(time.perf_counter() - began)


def measure(cell: Cell, direct: str) -> Result:
    """Run the logical workers of a cell in their processes, and measure the use of the machine meanwhile."""
    with ExitStack() as stack:
        bouncer = None
        if cell.n_workers >= POOLED_FROM:
            bouncer = stack.enter_context(pgbouncer(direct, pool_size=POOL_SIZE))
        url = bouncer.url if bouncer else direct
        n_processes = min(N_PROCESSES, cell.n_workers)
        connections = [
            stack.enter_context(_process(run_workers, cell, url, cell.n_workers // n_processes, seed))
            for seed in range(1, n_processes + 1)
        ]
        for connection in connections:
            connection.recv()
        for connection in connections:
            connection.send("start")
        result = _measure_machine(cell.seconds, direct, bouncer)
        for connection in connections:
            result.add(connection.recv())
    return result


def measure_first_ask(side: str, url: str) -> float:
    """Return the seconds of the first ask of a worker without a cache."""
    with _process(run_first_ask, side, url) as connection:
        return float(connection.recv())


@contextmanager
def _process(target: Any, *arguments: Any) -> Iterator[Connection]:  # noqa: ANN401 - any process, any arguments.
    context = get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=target, args=(child, *arguments))
    process.start()
    child.close()
    try:
        yield parent
    finally:
        process.join(timeout=30)
        process.kill()
        process.join()


def _measure_machine(seconds: float, direct: str, bouncer: PgBouncer | None) -> Result:
    """Measure the use of the cores, the connections and the write-ahead log for some seconds."""
    result = Result()
    engine = sa.create_engine(direct)
    began, before = time.monotonic(), _read_counters(engine, bouncer)
    while (left_s := began + seconds - time.monotonic()) > 0:
        result.n_connections = max(result.n_connections, int(_read(engine, _CONNECTIONS)))
        if bouncer:
            waits = [row["maxwait"] + row["maxwait_us"] / 1e6 for row in bouncer.show("pools")]
            result.longest_wait_s = max(result.longest_wait_s, *waits)
        time.sleep(min(1.0, left_s))
    passed_s = time.monotonic() - began
    rates = {name: (value - before[name]) / passed_s for name, value in _read_counters(engine, bouncer).items()}
    engine.dispose()
    result.wal_kb_per_s = rates.pop("wal") / 1000
    result.cores = {"all": (os.cpu_count() or 1) - rates.pop("idle"), **rates}
    return result


_CONNECTIONS = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


def _read_counters(engine: sa.Engine, bouncer: PgBouncer | None) -> dict[str, float]:
    """Return the seconds of processor time and the bytes of write-ahead log so far."""
    idle = Path("/proc/stat").read_text().splitlines()[0].split()[4:6]
    backend = int(_read(engine, "select pg_backend_pid()"))
    postmaster = int(_process_fields(backend)[1])
    return {
        "idle": sum(map(int, idle)) / os.sysconf("SC_CLK_TCK"),
        "Postgres": _processor_s(postmaster),
        "PgBouncer": _processor_s(bouncer.pid) if bouncer else 0.0,
        "wal": float(_read(engine, "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn")),
    }


def _processor_s(pid: int) -> float:
    """Return the processor seconds of a process and of its children, exited ones included."""
    ticks = sum(map(int, _process_fields(pid)[11:15]))
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        # It can have exited meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            ticks += sum(map(int, _process_fields(int(child))[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _process_fields(pid: int) -> list[str]:
    # The name before the last parenthesis can have spaces.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _read(engine: sa.Engine, query: str) -> Any:  # noqa: ANN401 - any value of a query.
    with engine.connect() as connection:
        return connection.scalar(sa.text(query))


class Server:
    """A PostgreSQL server with a filled database for each side and size."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._admin = sa.create_engine(self._url.set(database="postgres"), isolation_level="AUTOCOMMIT")

    def fill(self, side: str, size: int) -> None:
        """Create the database of a side and a size."""
        self._execute(f"create database {_name(side, size)}")
        SIDES[side].fill(self._url_of(_name(side, size)), size)

    def count_bytes(self, side: str, size: int) -> int:
        """Return the size on disk of the database of a side and a size."""
        with self._admin.connect() as connection:
            return int(connection.scalar(sa.text("select pg_database_size(:name)"), {"name": _name(side, size)}) or 0)

    @contextmanager
    def copy(self, side: str, size: int) -> Iterator[str]:
        """Yield the URL of a copy, so that every measurement begins with the same rows."""
        self._execute(f"create database measured template {_name(side, size)}")
        self._execute("checkpoint")
        try:
            yield self._url_of("measured")
        finally:
            self._execute("drop database measured with (force)")

    def _url_of(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)

    def _execute(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(sa.text(statement))


def _name(side: str, size: int) -> str:
    return f"{side.replace(' ', '_').lower()}_{size}"


@contextmanager
def _server() -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="hpopt-scale-"))
    # The user that a server started by root runs as must be able to enter the folder.
    home.chmod(0o755)
    try:
        with server.use(home):
            yield Server(server.start(home))
    finally:
        server.stop(home)
        shutil.rmtree(home)


def run(sizes: Sequence[int], workers: Sequence[int], seconds: float, n_running: int) -> Measured:
    """Measure every cell and every filled database; the sides alternate."""
    measured = Measured()
    with _server() as server:
        for size in sizes:
            for side in (_OPTUNA, _HPOPT):
                server.fill(side, size)
                measured.filled[size, side] = Base(n_bytes=server.count_bytes(side, size))
            for _, side in product(range(N_FIRST_ASKS), (_OPTUNA, _HPOPT)):
                with server.copy(side, size) as url:
                    measured.filled[size, side].first_ask_s.append(measure_first_ask(side, url))
            # The time of a connection does not depend on the size.
            sides = SIDES if size == max(sizes) else (_OPTUNA, _HPOPT)
            for n_workers, side in product(workers, sides):
                cell = Cell(side=side, size=size, n_workers=n_workers, seconds=seconds)
                measured.results[size, n_workers, side] = _measure_copy(server, cell)
        for side in (_OPTUNA, _HPOPT) if n_running else ():
            cell = Cell(side=side, size=max(sizes), n_workers=1, seconds=seconds, n_running=n_running)
            measured.among_running[side] = _measure_copy(server, cell)
    return measured


def _measure_copy(server: Server, cell: Cell) -> Result:
    with server.copy(_OPTUNA if cell.side == _OPTUNA else _HPOPT, cell.size) as url:
        result = measure(cell, url)
    print(_summary(cell, result), file=sys.stderr, flush=True)
    return result


def _summary(cell: Cell, result: Result) -> str:
    calls = [f"{name} {_figures(result.calls.get(name, []))}" for name in (*CALLS, "heartbeat")]
    return (
        f"{cell.size:,} trials, {cell.n_workers} workers, {cell.n_running} others, {cell.side}: {'; '.join(calls)} ms; "
        f"{result.cores['all']:.2f} cores busy{', ' + str(dict(result.errors)) if result.errors else ''}"
    )


def _figures(milliseconds: Sequence[float]) -> str:
    if not milliseconds:
        return "-"
    return f"{np.median(milliseconds):,.1f} / {np.percentile(milliseconds, 99):,.1f}"


def write_page(measured: Measured, n_running: int) -> str:
    """Render the measurements as Markdown."""
    results, filled = measured.results, measured.filled
    both = ("plain Optuna", "hpopt", "ratio")
    blocks = [
        "# What a trial costs in the database",
        f"{datetime.now(UTC):%Y-%m-%d}; {_processor()}, {os.cpu_count()} cores. Made by `python benchmarks/scale.py`.",
        _METHOD,
        "## A call, and a whole trial with an evaluation a second: median / 99th percentile, in milliseconds",
        _table(("finished trials", "workers", "call", *both, "calls measured"), _call_rows(results)),
        "## How the time of such a trial grows: median, in milliseconds",
        _table(("from", "to", "plain Optuna", "hpopt", "hpopt without the sampler"), _growth_rows(results)),
        "## A whole trial with an evaluation a minute: median / 99th percentile, in milliseconds",
        _table(("finished trials", "workers", "call", *both), _reconnecting_rows(results)),
        f"## One worker, while {n_running:,} other trials are running: median / 99th percentile, in milliseconds",
        _table(("call", *both, "calls measured"), _among_running_rows(measured.among_running)),
        "## The first ask of a worker without a cache, in seconds",
        _table(("finished trials", *both), _first_ask_rows(filled)),
        "## On disk, with 20 evaluations a trial, in kB a trial",
        _table(("finished trials", *both), _disk_rows(filled)),
        "## The parts of the calls: median / 99th percentile, in milliseconds",
        _table(("finished trials", "workers", "side", "part", "milliseconds"), _part_rows(measured, n_running)),
        "## The use of the machine",
        _table(_MACHINE_COLUMNS, _machine_rows(results)),
    ]
    return "\n\n".join(blocks) + "\n"


def _call_rows(results: Results) -> Iterator[Sequence[str]]:
    for size, n_workers in dict.fromkeys((size, n_workers) for size, n_workers, _ in results):
        plain, hpopt = (results[size, n_workers, side] for side in (_OPTUNA, _HPOPT))
        for name in (*CALLS, "heartbeat"):
            both = [side.calls.get(name, []) for side in (plain, hpopt)]
            n_calls = ", ".join(str(len(values)) for values in both)
            yield f"{size:,}", str(n_workers), name, *map(_figures, both), _ratio(*both), n_calls
        both = [_fast_trial(results, size, n_workers, side) for side in (_OPTUNA, _HPOPT)]
        yield f"{size:,}", str(n_workers), "**whole trial**", *map(_figures, both), _ratio(*both), ""


def _fast_trial(results: Results, size: int, n_workers: int, side: str) -> list[float]:
    return results[size, n_workers, side].trial(HEARTBEATS[side][0])


def _growth_rows(results: Results) -> Iterator[Sequence[str]]:
    sizes = sorted({size for size, _, _ in results})
    fleets = sorted({n_workers for _, n_workers, _ in results})
    more_trials = [((sizes[0], n_workers), (sizes[-1], n_workers)) for n_workers in fleets]
    more_workers = [((size, fleets[0]), (size, fleets[-1])) for size in sizes]
    for ends in more_trials + more_workers:
        trials = {side: [_fast_trial(results, *end, side) for end in ends] for side in (_OPTUNA, _HPOPT)}
        if all(trials[_OPTUNA]) and all(trials[_HPOPT]):
            medians = [[float(np.median(trial)) for trial in trials[side]] for side in (_OPTUNA, _HPOPT)]
            sampling = [float(np.median(results[(*end, _HPOPT)].parts["propose"])) for end in ends]
            medians.append([whole - part for whole, part in zip(medians[1], sampling, strict=True)])
            growth = [f"{one:,.1f} to {other:,.1f}, {other / one:.2f} times" for one, other in medians]
            yield *(f"{size:,} trials, {n_workers} workers" for size, n_workers in ends), *growth


def _reconnecting_rows(results: Results) -> Iterator[Sequence[str]]:
    for size, n_workers in ((size, n_workers) for size, n_workers, side in results if side == _RECONNECTING):
        plain, hpopt = (results[size, n_workers, side] for side in (_OPTUNA, _RECONNECTING))
        columns = f"{size:,}", str(n_workers)
        for name in ("evaluation", "heartbeat"):
            both = [side.calls.get(name, []) for side in (plain, hpopt)]
            yield *columns, name, *map(_figures, both), _ratio(*both)
        yield *columns, "connect", "", _figures(hpopt.parts.get("connect", [])), ""
        trials = [plain.trial(HEARTBEATS[_OPTUNA][1]), hpopt.trial(HEARTBEATS[_RECONNECTING][1])]
        yield *columns, "**whole trial**", *map(_figures, trials), _ratio(*trials)


def _first_ask_rows(filled: Filled) -> Iterator[Sequence[str]]:
    for size in dict.fromkeys(size for size, _ in filled):
        both = [filled[size, side].first_ask_s for side in (_OPTUNA, _HPOPT)]
        yield f"{size:,}", *(", ".join(f"{seconds:.2f}" for seconds in values) for values in both), _ratio(*both)


def _disk_rows(filled: Filled) -> Iterator[Sequence[str]]:
    """Yield the growth from the smallest to the largest database, without the size of an empty one."""
    sizes = sorted({size for size, _ in filled})
    if len(sizes) > 1:
        small, large = sizes[0], sizes[-1]
        both = [
            [(filled[large, side].n_bytes - filled[small, side].n_bytes) / 1000 / (large - small)]
            for side in (_OPTUNA, _HPOPT)
        ]
        yield f"{small:,} to {large:,}", *(f"{kilobytes:.1f}" for (kilobytes,) in both), _ratio(*both)


def _among_running_rows(among_running: dict[str, Result]) -> Iterator[Sequence[str]]:
    if among_running:
        plain, hpopt = (among_running[side] for side in (_OPTUNA, _HPOPT))
        for name in (*CALLS, "heartbeat"):
            both = [side.calls.get(name, []) for side in (plain, hpopt)]
            yield name, *map(_figures, both), _ratio(*both), ", ".join(str(len(values)) for values in both)
        trials = [among_running[side].trial(HEARTBEATS[side][0]) for side in (_OPTUNA, _HPOPT)]
        yield "**whole trial**", *map(_figures, trials), _ratio(*trials), ""


def _part_rows(measured: Measured, n_running: int) -> Iterator[Sequence[str]]:
    """Yield the parts for the fewest and the most trials and workers; the others are between."""
    results = measured.results
    ends = [{key[position] for key in results} for position in (0, 1)]
    for (size, n_workers, side), result in results.items():
        if size in {min(ends[0]), max(ends[0])} and n_workers in {min(ends[1]), max(ends[1])}:
            for part in (part for part in PARTS if part in result.parts):
                yield f"{size:,}", str(n_workers), side, part, _figures(result.parts[part])
    for side, result in measured.among_running.items():
        for part in (part for part in PARTS if part in result.parts):
            yield f"{max(ends[0]):,}", f"1 and {n_running:,}", side, part, _figures(result.parts[part])


def _machine_rows(results: Results) -> Iterator[Sequence[str]]:
    for (size, n_workers, side), result in results.items():
        is_pooled = n_workers >= POOLED_FROM
        yield (
            f"{size:,}",
            str(n_workers),
            side,
            *(f"{cores:.3f}" for cores in result.cores.values()),
            f"{result.wal_kb_per_s:.1f}",
            f"{result.n_connections}" + (f" of {POOL_SIZE}" if is_pooled else ""),
            f"{result.longest_wait_s:.2f} s" if is_pooled else "",
            "; ".join(f"{n} x {error}" for error, n in result.errors.items()) or "none",
        )


def _ratio(one: Sequence[float], other: Sequence[float]) -> str:
    if not one or not other:
        return "-"
    return f"{np.median(one) / np.median(other):.2f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of each measurement")
    parser.add_argument("--running", type=int, default=2000, help="number of running trials in the last measurements")
    parser.add_argument("--quick", action="store_true", help="a minute: 100 finished trials, 1 and 16 workers")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.workers, options.seconds, options.running = (100,), (1, 16), 5.0, 50
    if max(options.workers) >= POOLED_FROM and not is_installed():
        parser.error(f"{POOLED_FROM} workers and more need PgBouncer: apt-get install pgbouncer")
    page = write_page(run(options.sizes, options.workers, options.seconds, options.running), options.running)
    print(page)
    if options.output:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
