"""How long does the dashboard of a large study take: to its first page, to each poll, and in the browser?

Next to the stock command and to optuna-dashboard on a cached storage, all against the same embedded Postgres, in turns.
Prints a page in Markdown; a quarter of an hour, most of it in the browser, which is left out where Debian's chromium
or the package playwright is missing:

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
# The page polls ten seconds after it has drawn the last answer.
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
# The curves are the last figure of the page, ours as well as optuna-dashboard's.
CURVES = ':is(#graph-intermediate-values, [id="user-defined-plot:hpopt-learning-curves"]) .main-svg'
DRAWN = "new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(() => drawn(performance.now()))))"
PROGRAM = "performance.getEntriesByType('navigation')[0]"
FETCHED = "performance.getEntriesByType('resource').find(each => each.name.includes('after=0'))"

MADE = "`python benchmarks/dashboard.py`."
METHOD = f"""\
One study of ours, {N_TRIALS:,} trials with 4 params and 20 evaluations each, a third complete and the others pruned,
in one embedded PostgreSQL 18. The cached side is served by waitress with four threads, as ours is. For each first load
a server is started anew; the sides take turns. An answer is timed as a browser asks for it, over HTTP/1.1 with gzip
allowed. Our figures of a study so large are made after its first answer, and are in the polls. Times are medians in
seconds, the slowest in parentheses; ratios are to ours."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One answer: seconds to its first and its last byte, and bytes on the wire."""

    first_s: float
    whole_s: float
    n_bytes: int


@dataclass(kw_only=True)
class Measured:
    """All that was seen of a side."""

    start_s: list[float] = field(default_factory=list)
    loads: list[Timing] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    polls: dict[int, list[Timing]] = field(default_factory=dict)
    tabs_s: list[float] = field(default_factory=list)
    program_s: list[float] = field(default_factory=list)
    page_bytes_s: list[float] = field(default_factory=list)
    page_drawn_s: list[float] = field(default_factory=list)
    poll_busy_s: list[float] = field(default_factory=list)


Results = dict[str, Measured]


def serve_cached(url: str, port: int) -> None:
    """Serve optuna-dashboard on Optuna's own cached storage."""
    waitress.serve(wsgi(optuna.storages.get_storage(url)), host="127.0.0.1", port=port, threads=4)


def command(side: str, url: str, port: int) -> list[str]:
    """Give the command that serves a side."""
    python = Path(sys.executable)
    return {
        STOCK: [str(python.with_name("optuna-dashboard")), url, "--port", str(port), "--quiet"],
        CACHED: [str(python), __file__, "--serve", url, str(port)],
        OURS: [str(python), "-m", "hpopt", "dashboard", "--storage", url, "--port", str(port)],
    }[side]


class Server:
    """A side that serves, started for this."""

    def __init__(self, side: str, url: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        began = time.perf_counter()
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command(side, url, self.port), stdout=quiet, stderr=quiet)
        while True:
            try:
                self.ask("/api/meta")
            except ConnectionRefusedError:
                if self._process.poll() is not None:
                    raise
                time.sleep(0.02)
            else:
                break
        self.start_s = time.perf_counter() - began

    def ask(self, path: str) -> Timing:
        """Time an answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        began = time.perf_counter()
        connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        answer = connection.getresponse()
        n_bytes = len(answer.read(1))
        first_s = time.perf_counter() - began
        n_bytes += len(answer.read())
        whole_s = time.perf_counter() - began
        connection.close()
        if answer.status != 200:  # noqa: PLR2004 - that of HTTP.
            raise RuntimeError(f"{path}: {answer.status}")
        return Timing(first_s=first_s, whole_s=whole_s, n_bytes=n_bytes)

    def peak_mib(self) -> float:
        """Give the most memory that it has had."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


@contextmanager
def serving(side: str, url: str) -> Iterator[Server]:
    """Serve a side for a while."""
    server = Server(side, url)
    try:
        yield server
    finally:
        server.stop()


def load(measured: Measured, side: str, url: str) -> None:
    """Time the first load from a server that has just been started."""
    with serving(side, url) as server:
        measured.start_s.append(server.start_s)
        measured.loads.append(server.ask("/api/studies/1?after=0"))
        measured.peak_mib.append(server.peak_mib())


def poll(results: Results, url: str, n_running: int, n_polls: int) -> None:
    """Time polls of servers that have answered in full before, and then many tabs at once."""
    path = f"/api/studies/1?after={N_TRIALS - n_running}"
    with ExitStack() as stack:
        servers = {side: stack.enter_context(serving(side, url)) for side in results}
        for server in servers.values():
            server.ask("/api/studies/1?after=0")
        for _ in range(n_polls):
            time.sleep(POLL_EVERY_S)
            for side, server in servers.items():
                results[side].polls.setdefault(n_running, []).append(server.ask(path))
        for side, server in servers.items() if n_running else ():
            with ThreadPoolExecutor(N_TABS) as tabs:
                answers = list(tabs.map(server.ask, ["/api/studies/1?after=0"] * N_TABS))
            results[side].tabs_s.append(max(answer.whole_s for answer in answers))


def draw(measured: Measured, side: str, url: str) -> None:
    """Time the page in a browser that was never there, and how long a poll keeps it busy."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - it need not be there.

    with serving(side, url) as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(BROWSER_OPTIONS))
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.add_init_script(COUNT_LONG_TASKS)
        page.goto(f"http://127.0.0.1:{server.port}/dashboard/studies/1", wait_until="commit")
        with page.expect_response(lambda answer: f"after={N_TRIALS}" in answer.url):
            page.locator(CURVES).first.wait_for(state="attached")
            measured.page_drawn_s.append(page.evaluate(DRAWN) / 1000)
            measured.program_s.append(page.evaluate(f"{PROGRAM}.domContentLoadedEventEnd") / 1000)
            measured.page_bytes_s.append(page.evaluate(f"{FETCHED}.responseStart") / 1000)
            busy_before = page.evaluate("busy")
        # The answer has come; the browser is free again when it has drawn it.
        page.wait_for_timeout(500)
        page.evaluate(DRAWN)
        measured.poll_busy_s.append((page.evaluate("busy") - busy_before) / 1000)
        browser.close()


@contextmanager
def two_studies() -> Iterator[tuple[str, str]]:
    """Give the URLs of a database whose study is at rest, and of one where the last trials are running."""
    home = Path(tempfile.mkdtemp(prefix="hpopt-dashboard-"))
    # Below a folder that the user can enter whom a server started by root runs as.
    home.chmod(0o755)
    try:
        with server.use(home):
            at_rest = sa.make_url(server.start(home))
            running = at_rest.set(database="running")
            with sa.create_engine(at_rest, isolation_level="AUTOCOMMIT").connect() as connection:
                connection.execute(sa.text("create database running"))
            urls = tuple(url.render_as_string(hide_password=False) for url in (at_rest, running))
            fill(urls[0], 0)
            fill(urls[1], N_RUNNING)
            yield urls[0], urls[1]
    finally:
        server.stop(home)
        shutil.rmtree(home)


def fill(url: str, n_running: int) -> None:
    """Make the study, whose last trials are running."""
    database = Database(url)
    migrate.upgrade(database)
    make_finished_study(database, QUICKSTART, N_TRIALS, metrics={"val_perplexity": 20.0})
    with database.begin() as connection:
        for statement in (_UNVALUED, _RUNNING, _HELD):
            connection.execute(statement, {"first": N_TRIALS - n_running})
    with database.begin() as connection:
        connection.execute(sa.text("analyze"))
    database.close()


_UNVALUED = sa.text(
    "delete from public.trial_values where trial_id in (select trial_id from public.trials where number >= :first)"
)
_RUNNING = sa.text("update public.trials set state = 'RUNNING', datetime_complete = null where number >= :first")
_HELD = sa.text(
    """
    update hpopt.attempt set outcome = null, ended_at = null, reason = null
    where trial_id in (select trial_id from public.trials where number >= :first)
    """
)


def measure(n_loads: int, n_polls: int, n_pages: int) -> Results:
    """Measure all sides, in turns."""
    results = {side: Measured() for side in (STOCK, CACHED, OURS)}
    with two_studies() as (at_rest, running):
        take_turns(results, n_loads, load, at_rest)
        for url, n_running in ((at_rest, 0), (running, N_RUNNING)):
            poll(results, url, n_running, n_polls)
            print(f"polled with {n_running} running trials", file=sys.stderr)
        if CHROMIUM and find_spec("playwright"):
            take_turns(results, n_pages, draw, at_rest)
    return results


def take_turns(results: Results, n_turns: int, do: Callable[[Measured, str, str], None], url: str) -> None:
    """Do something with each side, as often as asked."""
    for turn in range(n_turns):
        for side, measured in results.items():
            do(measured, side, url)
            print(f"{do.__name__} {turn}: {side}", file=sys.stderr)


def write_page(results: Results) -> str:
    """Write everything down in Markdown."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("hpopt", "optuna", "optuna-dashboard"))
    load = f"a load of {os.getloadavg()[2]:.1f} in the last quarter of an hour"
    columns = ["", *results, "ratios"]
    table = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    table += [
        f"| {name} | {' | '.join(map(figures, seen))} | {ratios(seen)} |" for name, seen in rows(results) if all(seen)
    ]
    blocks = [
        "# The dashboard of a large study",
        f"{datetime.now(UTC):%Y-%m-%d}; {os.cpu_count()} cores, {load}; {versions}. Made by\n{MADE}",
        METHOD,
        "\n".join(table),
    ]
    return "\n\n".join(blocks) + "\n"


def rows(results: Results) -> Iterator[tuple[str, list[list[float]]]]:
    """Give the name of each row, and what was seen of each side."""

    def each(get: Callable[[Measured], list[float]]) -> list[list[float]]:
        return [get(measured) for measured in results.values()]

    yield "from the command to the first answer", each(lambda side: side.start_s)
    yield "first answer about the study, first byte", each(lambda side: [one.first_s for one in side.loads])
    yield "**first answer about the study, all of it**", each(lambda side: [one.whole_s for one in side.loads])
    yield "its size in MB", each(lambda side: [one.n_bytes / 1e6 for one in side.loads])
    yield "memory of the server then, at most, in MiB", each(lambda side: side.peak_mib)
    for n_running, what in (
        (0, "**poll of a study at rest**"),
        (N_RUNNING, f"**poll with {N_RUNNING} running trials**"),
    ):
        polls = [measured.polls[n_running] for measured in results.values()]
        yield what, [[one.whole_s for one in seen] for seen in polls]
        yield "its size in kB", [[one.n_bytes / 1e3 for one in seen] for seen in polls]
    yield f"{N_TABS} tabs at once, the last of them", each(lambda side: side.tabs_s)
    yield "in Chromium: the page's program is read", each(lambda side: side.program_s)
    yield "in Chromium: first byte about the study", each(lambda side: side.page_bytes_s)
    yield "**in Chromium: all figures drawn**", each(lambda side: side.page_drawn_s)
    yield "in Chromium: a poll keeps the page busy", each(lambda side: side.poll_busy_s)


def figures(seen: Sequence[float]) -> str:
    """Write the median, and the most."""
    digits = 0 if median(seen) >= 100 else 1 if median(seen) >= 10 else 2  # noqa: PLR2004 - three digits.
    return f"{median(seen):,.{digits}f} ({max(seen):,.{digits}f})"


def ratios(seen: Sequence[Sequence[float]]) -> str:
    """Write how many times ours the medians of the others are."""
    *others, ours = map(median, seen)
    return ", ".join(f"{other / ours:.1f}" for other in others)


def main() -> None:
    """Measure and print, or serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="each once")
    parser.add_argument("--serve", nargs=2, metavar=("URL", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_cached(options.serve[0], int(options.serve[1]))
    else:
        print(write_page(measure(*((1, 1, 1) if options.quick else (5, 5, 3)))), end="")


if __name__ == "__main__":
    main()
