"""Measure how long the dashboard of a large study takes: for the first page, for a poll, and in the browser.

Compared with the `optuna-dashboard` command and with optuna-dashboard on a cached storage, alternating, on the same
embedded Postgres. Prints a page in Markdown. Takes a quarter of an hour, most of it in the browser, which is skipped if
Debian's chromium or the package playwright is not installed:

    python benchmarks/dashboard.py [--quick] > benchmarks/results/dashboard.md
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPConnection
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import optuna
import sqlalchemy as sa
import waitress
from finished_trials import make_finished_study
from optuna_dashboard import wsgi

from hpopt.postgres import server
from hpopt.storage import migrate
from hpopt.storage.database import Database

QUICKSTART = (Path(__file__).parents[1] / "studies" / "quickstart.toml").read_text()
N_TRIALS = 5_000
N_RUNNING = 64
N_TABS = 10
# The page polls ten seconds after it has drawn the last response.
POLL_EVERY_S = 11.0
STOCK, CACHED, OURS = "`optuna-dashboard URL`", "`wsgi(get_storage(URL))`", "`hpopt dashboard`"
CHROMIUM = shutil.which("chromium")
BROWSER_OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
COUNT_LONG_TASKS = """
window.busy = 0;
const count = list => list.getEntries().forEach(task => { busy += task.duration });
new PerformanceObserver(count).observe({type: "longtask"});
"""
# The learning curves are the last figure of the page, in hpopt as in optuna-dashboard.
CURVES = ':is(#graph-intermediate-values, [id="user-defined-plot:hpopt-learning-curves"]) .main-svg'
DRAWN = "new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(() => drawn(performance.now()))))"
PROGRAM = "performance.getEntriesByType('navigation')[0]"
FETCHED = "performance.getEntriesByType('resource').find(entry => entry.name.includes('after=0'))"

WRITTEN_BY = "Written by `python benchmarks/dashboard.py`."
METHOD = f"""\
One hpopt study, {N_TRIALS:,} trials with 4 params and 20 evaluations each, a third complete and the others pruned, in
one embedded PostgreSQL 18. The cached storage is served by waitress with four threads, like `hpopt dashboard`. A new
server is started for each first load; the sides alternate. Responses are requested as by a browser, over HTTP/1.1 with
gzip accepted. The figures of hpopt for a study of this size are built after its first response, and are in the polls.
Times are medians in seconds, with maxima in parentheses; ratios are to `hpopt dashboard`."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One response: seconds to its first and its last byte, and its size as transferred."""

    first_s: float
    whole_s: float
    n_bytes: int


@dataclass(kw_only=True)
class Measurements:
    """All measurements of a side.

    `program_s`, `page_bytes_s` and `page_drawn_s` are counted from the start of the navigation in the browser;
    `poll_busy_s` is the time that the browser's main thread is busy with a poll.
    """

    start_s: list[float] = field(default_factory=list)
    loads: list[Timing] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    polls: dict[int, list[Timing]] = field(default_factory=dict)
    tabs_s: list[float] = field(default_factory=list)
    program_s: list[float] = field(default_factory=list)
    page_bytes_s: list[float] = field(default_factory=list)
    page_drawn_s: list[float] = field(default_factory=list)
    poll_busy_s: list[float] = field(default_factory=list)


Results = dict[str, Measurements]


def serve_cached(url: str, port: int) -> None:
    """Serve optuna-dashboard on Optuna's own cached storage."""
    waitress.serve(wsgi(optuna.storages.get_storage(url)), host="127.0.0.1", port=port, threads=4)


def command(side: str, url: str, port: int) -> list[str]:
    """Return the command that serves a side."""
    python = Path(sys.executable)
    return {
        STOCK: [str(python.with_name("optuna-dashboard")), url, "--port", str(port), "--quiet"],
        CACHED: [str(python), __file__, "--serve", url, str(port)],
        OURS: [str(python), "-m", "hpopt", "dashboard", "--storage", url, "--port", str(port)],
    }[side]


class Server:
    """A server process of a side, ready for requests."""

    def __init__(self, side: str, url: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        started_s = time.perf_counter()
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command(side, url, self.port), stdout=quiet, stderr=quiet)
        while True:
            try:
                self.request("/api/meta")
            except ConnectionRefusedError:
                if self._process.poll() is not None:
                    raise
                time.sleep(0.02)
            else:
                break
        self.start_s = time.perf_counter() - started_s

    def request(self, path: str) -> Timing:
        """Time a response."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        started_s = time.perf_counter()
        connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        response = connection.getresponse()
        n_bytes = len(response.read(1))
        first_s = time.perf_counter() - started_s
        n_bytes += len(response.read())
        whole_s = time.perf_counter() - started_s
        connection.close()
        if response.status != HTTPStatus.OK:
            raise RuntimeError(f"{path}: {response.status}")
        return Timing(first_s=first_s, whole_s=whole_s, n_bytes=n_bytes)

    def peak_mib(self) -> float:
        """Return the peak resident memory of the process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()


@contextmanager
def start_server(side: str, url: str) -> Iterator[Server]:
    """Run the server of a side."""
    server = Server(side, url)
    try:
        yield server
    finally:
        server.stop()


def load(measurements: Measurements, side: str, url: str) -> None:
    """Measure the start of a server and its first response about the study."""
    with start_server(side, url) as server:
        measurements.start_s.append(server.start_s)
        measurements.loads.append(server.request("/api/studies/1?after=0"))
        measurements.peak_mib.append(server.peak_mib())


def poll(results: Results, url: str, n_running: int, n_polls: int) -> None:
    """Measure polls after a first full response, and then simultaneous requests of many tabs."""
    path = f"/api/studies/1?after={N_TRIALS - n_running}"
    with ExitStack() as stack:
        servers = {side: stack.enter_context(start_server(side, url)) for side in results}
        for server in servers.values():
            server.request("/api/studies/1?after=0")
        for _ in range(n_polls):
            time.sleep(POLL_EVERY_S)
            for side, server in servers.items():
                results[side].polls.setdefault(n_running, []).append(server.request(path))
        for side, server in servers.items() if n_running else ():
            with ThreadPoolExecutor(N_TABS) as tabs:
                timings = list(tabs.map(server.request, ["/api/studies/1?after=0"] * N_TABS))
            results[side].tabs_s.append(max(timing.whole_s for timing in timings))


def draw(measurements: Measurements, side: str, url: str) -> None:
    """Measure the page in a browser with an empty cache, and how long a poll keeps it busy."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - optional.

    with start_server(side, url) as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(BROWSER_OPTIONS))
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.add_init_script(COUNT_LONG_TASKS)
        page.goto(f"http://127.0.0.1:{server.port}/dashboard/studies/1", wait_until="commit")
        with page.expect_response(lambda response: f"after={N_TRIALS}" in response.url):
            page.locator(CURVES).first.wait_for(state="attached")
            measurements.page_drawn_s.append(page.evaluate(DRAWN) / 1000)
            measurements.program_s.append(page.evaluate(f"{PROGRAM}.domContentLoadedEventEnd") / 1000)
            measurements.page_bytes_s.append(page.evaluate(f"{FETCHED}.responseStart") / 1000)
            busy_before = page.evaluate("busy")
        # The response has arrived; drawing it begins within this time and ends before the next frame.
        page.wait_for_timeout(500)
        page.evaluate(DRAWN)
        measurements.poll_busy_s.append((page.evaluate("busy") - busy_before) / 1000)
        browser.close()


@contextmanager
def two_studies() -> Iterator[tuple[str, str]]:
    """Yield the URLs of a database with a finished study, and of one with a study whose last trials are running."""
    home = Path(tempfile.mkdtemp(prefix="hpopt-dashboard-"))
    # The user that the server of root runs as must be able to enter it.
    home.chmod(0o755)
    try:
        with server.use(home):
            finished = sa.make_url(server.start(home))
            running = finished.set(database="running")
            with sa.create_engine(finished, isolation_level="AUTOCOMMIT").connect() as connection:
                connection.execute(sa.text("create database running"))
            urls = tuple(url.render_as_string(hide_password=False) for url in (finished, running))
            fill(urls[0], 0)
            fill(urls[1], N_RUNNING)
            yield urls[0], urls[1]
    finally:
        server.stop(home)
        shutil.rmtree(home)


def fill(url: str, n_running: int) -> None:
    """Create the study, whose last `n_running` trials are running."""
    database = Database(url)
    migrate.upgrade(database)
    make_finished_study(database, QUICKSTART, N_TRIALS, metrics={"val_perplexity": 20.0})
    with database.begin() as connection:
        for statement in (_DELETE_VALUES, _SET_RUNNING, _REOPEN_ATTEMPTS):
            connection.execute(statement, {"first": N_TRIALS - n_running})
    with database.begin() as connection:
        connection.execute(sa.text("analyze"))
    database.close()


_DELETE_VALUES = sa.text(
    "delete from public.trial_values where trial_id in (select trial_id from public.trials where number >= :first)"
)
_SET_RUNNING = sa.text("update public.trials set state = 'RUNNING', datetime_complete = null where number >= :first")
_REOPEN_ATTEMPTS = sa.text(
    """
    update hpopt.attempt set outcome = null, ended_at = null, reason = null
    where trial_id in (select trial_id from public.trials where number >= :first)
    """
)


def measure(n_loads: int, n_polls: int, n_pages: int) -> Results:
    """Measure all sides."""
    results = {side: Measurements() for side in (STOCK, CACHED, OURS)}
    with two_studies() as (finished, running):
        alternate(results, n_loads, load, finished)
        for url, n_running in ((finished, 0), (running, N_RUNNING)):
            poll(results, url, n_running, n_polls)
            print(f"polled with {n_running} running trials", file=sys.stderr)
        if CHROMIUM and find_spec("playwright"):
            alternate(results, n_pages, draw, finished)
    return results


def alternate(results: Results, n_rounds: int, measure: Callable[[Measurements, str, str], None], url: str) -> None:
    """Measure every side in each round."""
    for i in range(n_rounds):
        for side, measurements in results.items():
            measure(measurements, side, url)
            print(f"{measure.__name__} {i}: {side}", file=sys.stderr)


def write_page(results: Results) -> str:
    """Return the page in Markdown."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("hpopt", "optuna", "optuna-dashboard"))
    load = f"load average {os.getloadavg()[2]:.1f} over 15 minutes"
    columns = ["", *results, "ratios"]
    table = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    table += [
        f"| {name} | {' | '.join(map(format_cell, sides))} | {format_ratios(sides)} |"
        for name, sides in rows(results)
        if all(sides)
    ]
    blocks = [
        "# The dashboard of a large study",
        f"{datetime.now(UTC):%Y-%m-%d}; {os.cpu_count()} cores, {load}; {versions}.\n{WRITTEN_BY}",
        METHOD,
        "\n".join(table),
    ]
    return "\n\n".join(blocks) + "\n"


def rows(results: Results) -> Iterator[tuple[str, list[list[float]]]]:
    """Yield the name of each row and the values of each side."""

    def collect(get: Callable[[Measurements], list[float]]) -> list[list[float]]:
        return [get(measurements) for measurements in results.values()]

    yield "from the command to the first response", collect(lambda side: side.start_s)
    yield "first response about the study, first byte", collect(lambda side: [timing.first_s for timing in side.loads])
    yield (
        "**first response about the study, complete**",
        collect(lambda side: [timing.whole_s for timing in side.loads]),
    )
    yield "its size in MB", collect(lambda side: [timing.n_bytes / 1e6 for timing in side.loads])
    yield "peak memory of the server then, in MiB", collect(lambda side: side.peak_mib)
    for n_running, name in (
        (0, "**poll of a finished study**"),
        (N_RUNNING, f"**poll with {N_RUNNING} running trials**"),
    ):
        polls = [measurements.polls[n_running] for measurements in results.values()]
        yield name, [[timing.whole_s for timing in timings] for timings in polls]
        yield "its size in kB", [[timing.n_bytes / 1e3 for timing in timings] for timings in polls]
    yield f"{N_TABS} tabs at once, the slowest", collect(lambda side: side.tabs_s)
    yield "in Chromium: the page's script is loaded", collect(lambda side: side.program_s)
    yield "in Chromium: first byte about the study", collect(lambda side: side.page_bytes_s)
    yield "**in Chromium: all figures drawn**", collect(lambda side: side.page_drawn_s)
    yield "in Chromium: a poll keeps the page busy", collect(lambda side: side.poll_busy_s)


def format_cell(values: Sequence[float]) -> str:
    """Format the median and the maximum, with three digits of the median."""
    digits = 0 if median(values) >= 100 else 1 if median(values) >= 10 else 2  # noqa: PLR2004
    return f"{median(values):,.{digits}f} ({max(values):,.{digits}f})"


def format_ratios(sides: Sequence[Sequence[float]]) -> str:
    """Format the medians of the other sides as multiples of that of hpopt."""
    *others, ours = map(median, sides)
    return ", ".join(f"{other / ours:.1f}" for other in others)


def main() -> None:
    """Measure and print, or serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure once")
    parser.add_argument("--serve", nargs=2, metavar=("URL", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_cached(options.serve[0], int(options.serve[1]))
    else:
        print(write_page(measure(*((1, 1, 1) if options.quick else (5, 5, 3)))), end="")


if __name__ == "__main__":
    main()
