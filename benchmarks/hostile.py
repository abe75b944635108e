"""Count how often hpopt answers hostile rows, functions, files and names with anything but an answer or one line.

    python benchmarks/hostile.py --inputs 2000 --output benchmarks/results/hostile.md

Draws inputs with hypothesis, deterministic by seed: trials and attributes that another tool wrote into the database,
training functions, study files, and names on the command line. All verbs that read, all exports, all views and the
pages of the dashboard are asked about rows, in this process, on the embedded PostgreSQL; one worker runs all functions.
"""

import argparse
import asyncio
import contextlib
import csv
import datetime as dt
import io
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import hypothesis
import optuna
import sqlalchemy as sa
import yaml
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from optuna_dashboard import wsgi

from hpopt.cli.main import main as run_command
from hpopt.dashboard.figures import FigureBuilder
from hpopt.dashboard.snapshot import SnapshotReader, StorageWithNotes
from hpopt.errors import Diverged, Interrupted
from hpopt.formats import storable
from hpopt.postgres import server
from hpopt.storage import control, migrate, queries, studies
from hpopt.storage.database import Database
from hpopt.storage.views import VIEWS
from hpopt.study.reading import parse_study_file
from hpopt.training.run import Evaluation, Run
from hpopt.worker.attempt import WorkerOptions
from hpopt.worker.loop import work

STUDY = """
name = "answer"
[budget]
trials = 20
[search_space]
learning_rate = { low = 1e-3, high = 0.3, log = true }
optimizer = { choices = ["muon", "adamw"] }
"""
SPACE = {
    "learning_rate": FloatDistribution(1e-3, 0.3, log=True),
    "optimizer": optuna.distributions.CategoricalDistribution(("muon", "adamw")),
}
# The complete trials of create(), which also enqueues the defaults.
N_TRIALS = 6
# Rows of others are no reason to refuse these; an export can lack a way to write a parameter.
MUST_ANSWER = ("verb", "view", "report")
_FIGURES_TIMEOUT_S = 60.0
FORMATS = ("table", "json", "toml", "yaml", "env", "args")

# What has broken programs before: quotes, shell, markup, format strings, NUL, surrogates, escapes, long names.
TEXTS = (
    st.text(max_size=20)
    | st.sampled_from(
        ["$(exit 7)", "a=1;$(exit 7)", "`id`", "{x}", "{}", "%s", "[/red]", "'\"\\", "a\nb", "\0", "\ud800"]
    )
    | st.sampled_from(["😀", "λ", "x" * 500, "", " ", "-x", "--", "\x1b[31m", "<script>", "../..", "null", "lr", "LR"])
)
NUMBERS = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, -1.0, 2.0**63])
SCALARS = st.none() | st.booleans() | st.integers() | st.sampled_from([2**63, 10**400]) | NUMBERS | TEXTS
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXTS, SCALARS, max_size=2)
# Python's parser of JSON ends at its limit of recursion, PostgreSQL's later at that of its stack.
DEEP = st.sampled_from([1_100, 20_000]).map(lambda depth: "[" * depth + "]" * depth)
JSON_TEXTS = VALUES.map(json.dumps) | TEXTS | st.none() | DEEP
# Of studies, as pairs of a kind and a key; optuna-dashboard parses those that begin with artifacts: and dashboard:.
STUDY_ATTRIBUTES = st.dictionaries(
    st.tuples(
        st.sampled_from(["user", "system"]),
        st.sampled_from(["artifacts:x", "dashboard:artifacts:x", "dashboard:note_ver", "dashboard:note_str:0"])
        | st.sampled_from(["dashboard:0:note_ver", "dashboard:plotly_graph_objects:x:0", "study:metric_names"])
        | TEXTS.map(storable),
    ),
    st.sampled_from(["{}", '{"artifact_id": "x"}', "1e400", '"x"', "[1]"]) | JSON_TEXTS,
    max_size=4,
)
DISTRIBUTIONS = st.one_of(
    st.lists(VALUES, max_size=4).map(
        lambda choices: json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": choices}})
    ),
    st.builds(
        lambda name, low, high, log, step: json.dumps(
            {"name": name, "attributes": {"low": low, "high": high, "log": log, "step": step}}
        ),
        st.sampled_from(["FloatDistribution", "IntDistribution", "UniformDistribution", "NewDistribution"]),
        *(NUMBERS, NUMBERS, st.booleans(), st.none() | NUMBERS),
    ),
    st.sampled_from([optuna.distributions.distribution_to_json(one) for one in SPACE.values()]),
    JSON_TEXTS,
)
TIMES = st.sampled_from(["2026-01-01", "infinity", "-infinity", "4000-01-01 BC", "12000-01-01", None])


@dataclass(frozen=True, kw_only=True)
class ForeignTrial:
    """The rows of one trial as another tool writes them; any of them can be damaged."""

    state: str
    times: tuple[str | None, str | None]
    values: tuple[tuple[float | None, str], ...]
    params: Mapping[str, tuple[float | None, str | None]]
    attributes: tuple[tuple[str, str, str | None], ...]
    steps: Mapping[int, tuple[float | None, str]]


TRIALS = st.builds(
    ForeignTrial,
    state=st.sampled_from(["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING"]),
    times=st.tuples(TIMES, TIMES),
    values=st.lists(st.tuples(st.none() | NUMBERS, st.sampled_from(["FINITE", "INF_POS", "INF_NEG"])), max_size=2).map(
        tuple
    ),
    params=st.dictionaries(
        TEXTS.map(storable) | st.sampled_from([*SPACE]), st.tuples(st.none() | NUMBERS, DISTRIBUTIONS), max_size=4
    ),
    attributes=st.lists(
        st.tuples(
            st.sampled_from(["user", "system"]),
            TEXTS
            | st.sampled_from(
                ["constraints:x", "artifacts:x", "fixed_params", "seed", "constraints", "default configuration"]
            ),
            JSON_TEXTS,
        ),
        max_size=4,
    ).map(tuple),
    steps=st.dictionaries(
        st.integers(-(2**31), 2**31 - 1),
        st.tuples(st.none() | NUMBERS, st.sampled_from(["FINITE", "INF_POS", "INF_NEG", "NAN"])),
        max_size=3,
    ),
)


def create(database: Database) -> None:
    """Create the study `answer` with six complete trials."""
    study = studies.create_study(database, parse_study_file(STUDY, "answer.toml"))
    stock = studies.open_optuna(database, study)
    for i in range(N_TRIALS):
        params = {"learning_rate": 0.01 * (i + 1), "optimizer": "muon" if i % 2 else "adamw"}
        stock.add_trial(create_trial(params=params, distributions=SPACE, value=1.0 + i))


def write_trials(database: Database, study_name: str, trials: Sequence[ForeignTrial]) -> None:
    """Write the rows of trials into a study, which is created if there is none."""
    with database.begin() as connection:
        query = sa.text("select study_id from public.studies where study_name = :name")
        study_id = connection.scalar(query, {"name": study_name})
        if study_id is None:
            added = sa.text("insert into public.studies (study_name) values (:name) returning study_id")
            study_id = connection.scalar(added, {"name": study_name})
        for trial in trials:
            _write_trial(connection, study_id, trial)


def write_study_attributes(
    database: Database, study_name: str, attributes: Mapping[tuple[str, str], str | None]
) -> None:
    """Write attributes of a study."""
    with database.begin() as connection:
        for (kind, key), text in attributes.items():
            connection.execute(
                _ADD_STUDY_ATTRIBUTE[kind], {"name": study_name, "key": key, "text": storable(text or "")}
            )


def _write_trial(connection: sa.Connection, study_id: int, trial: ForeignTrial) -> None:
    start, end = trial.times
    row = {"study_id": study_id, "state": trial.state, "start": start, "end": end}
    trial_id = connection.scalar(_ADD_TRIAL, row)
    for objective, (value, kind) in enumerate(trial.values):
        connection.execute(_ADD_VALUE, {"id": trial_id, "objective": objective, "value": value, "kind": kind})
    for name, (value, distribution) in trial.params.items():
        text = None if distribution is None else storable(distribution)
        connection.execute(_ADD_PARAM, {"id": trial_id, "name": name, "value": value, "text": text})
    for kind, key, text in {(kind, storable(key)): (kind, key, text) for kind, key, text in trial.attributes}.values():
        parameters = {"id": trial_id, "key": storable(key), "text": None if text is None else storable(text)}
        connection.execute(_ADD_ATTRIBUTE[kind], parameters)
    for step, (value, kind) in trial.steps.items():
        connection.execute(_ADD_STEP, {"id": trial_id, "step": step, "value": value, "kind": kind})


def remove_trials(database: Database) -> None:
    """Remove what write_trials wrote: every trial but those of create(), and other studies."""
    with database.begin() as connection:
        for table in ("values", "params", "user_attributes", "system_attributes", "intermediate_values"):
            connection.execute(sa.text(f"delete from public.trial_{table} where trial_id > {N_TRIALS + 1}"))  # noqa: S608
        connection.execute(sa.text(f"delete from public.trials where trial_id > {N_TRIALS + 1}"))  # noqa: S608
        for kind in ("user", "system"):
            query = f"delete from public.study_{kind}_attributes where study_id in (select study_id from public.studies"  # noqa: S608
            connection.execute(sa.text(f"{query} where study_name <> 'answer')"))
        connection.execute(sa.text("delete from public.studies where study_name <> 'answer'"))


_ADD_TRIAL = sa.text(
    """
    insert into public.trials (study_id, number, state, datetime_start, datetime_complete)
    select :study_id, (select count(*) from public.trials where study_id = :study_id),
           cast(:state as public.trialstate), cast(:start as timestamp), cast(:end as timestamp)
    returning trial_id
    """
)
_ADD_VALUE = sa.text(
    "insert into public.trial_values (trial_id, objective, value, value_type) "
    "values (:id, :objective, :value, cast(:kind as public.trialvaluetype))"
)
_ADD_PARAM = sa.text(
    "insert into public.trial_params (trial_id, param_name, param_value, distribution_json) "
    "values (:id, :name, :value, :text)"
)
_ADD_ATTRIBUTE = {
    kind: sa.text(f"insert into public.trial_{kind}_attributes (trial_id, key, value_json) values (:id, :key, :text)")  # noqa: S608
    for kind in ("user", "system")
}
_ADD_STUDY_ATTRIBUTE = {
    kind: sa.text(
        f"insert into public.study_{kind}_attributes (study_id, key, value_json) "  # noqa: S608
        "select study_id, :key, :text from public.studies where study_name = :name on conflict do nothing"
    )
    for kind in ("user", "system")
}
_ADD_STEP = sa.text(
    "insert into public.trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
    "values (:id, :step, :value, cast(:kind as public.trialintermediatevaluetype))"
)


FUNCTIONS_STUDY = """
name = "functions"
objective = "{module}:train"
metric = "loss"
[budget]
trials = {n}
[sampler]
name = "random"
[pruner]
name = "none"
[search_space]
x = {{ low = 0.0, high = 1.0 }}
"""
COUNTS = st.integers(0, 9) | SCALARS
EVALUATIONS = st.builds(
    Evaluation,
    step=COUNTS,
    n_steps=st.just(9) | COUNTS,
    tokens=COUNTS,
    seconds=COUNTS,
    metrics=st.dictionaries(TEXTS, SCALARS, max_size=2).map(lambda metrics: {"loss": 1.0, **metrics})
    | st.dictionaries(st.just("loss"), VALUES)
    | VALUES,
)
ERRORS = st.sampled_from(
    [
        *(ValueError, OSError, MemoryError, AssertionError, KeyError, StopIteration, UnicodeError, RecursionError),
        *(BaseException, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, Interrupted, Diverged),
    ]
)
# What each training function yields, and what it raises at the end, if anything.
FUNCTIONS = st.tuples(
    st.lists(EVALUATIONS | VALUES, max_size=4), st.none() | st.builds(lambda kind, text: kind(text), ERRORS, TEXTS)
)
_OUTCOMES = """
    select outcome, count(*) from hpopt.attempt join public.studies using (study_id)
    where study_name = 'functions' and outcome is not null group by 1
"""


@dataclass
class Questions:
    """The questions that were asked, by kind, and those that were answered with anything but an answer or one line."""

    url: str
    n_asked: Counter[str] = field(default_factory=Counter)
    n_failed: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def ask(self, kind: str, *arguments: str, read: Callable[[str], Any] = str) -> None:
        """Run a command: it must answer with what `read` can parse, or refuse with one line."""
        self.n_asked[kind] += 1
        problem = None
        code, stdout, stderr = run(arguments, self.url)
        lines = stderr.splitlines()
        if code == 0:
            try:
                read(stdout)
            except Exception as error:  # noqa: BLE001 - whatever a parser raises.
                problem = f"not readable: {type(error).__name__}: {error}: {stdout[:200]!r}"
        elif code != 2 or len(lines) != 1 or "a bug in hpopt" in stderr or kind in MUST_ANSWER:  # noqa: PLR2004
            problem = f"exit code {code}: {stderr[-500:]}"
        if problem is not None:
            self.n_failed[kind] += 1
            self.failures.append(f"{' '.join(map(repr, arguments))[:200]}: {problem}")

    def call(self, kind: str, name: str, function: Callable[[], Any]) -> None:
        """Call a function, which must return."""
        self.n_asked[kind] += 1
        try:
            function()
        except Exception as error:  # noqa: BLE001 - it is counted.
            self.n_failed[kind] += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.failures.append(f"{name}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})")


def run(arguments: Sequence[str], url: str) -> tuple[int, str, str]:
    """Run a command in this process and return its exit code and its output, as they reach a terminal."""
    # Python's own error handlers of the two: a name can have bytes that are no UTF-8.
    stdout, stderr = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, newline="")
        for errors in ("strict", "backslashreplace")
    )
    before = sys.argv, list(sys.path)
    sys.argv = ["hpopt", *arguments]
    os.environ["HPOPT_STORAGE"] = url
    code: Any = 1
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            run_command()
    except SystemExit as end:
        code = end.code
    except BaseException as error:  # noqa: BLE001 - it is counted.
        stderr.write(f"{type(error).__name__}: {error}\nnot an exit")
    finally:
        sys.argv, sys.path[:] = before
        for stream in (stdout, stderr):
            stream.flush()
    return int(code or 0), *(stream.buffer.getvalue().decode() for stream in (stdout, stderr))  # type: ignore[attr-defined]


def read_json(text: str) -> Any:  # noqa: ANN401 - any JSON.
    """Parse JSON without the constants that only Python knows. Raises ValueError."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def read_env(text: str) -> None:
    """Source variables in a shell. Raises CalledProcessError."""
    subprocess.run(["sh", "-euc", text], check=True, capture_output=True, env={})  # noqa: S607


def read_args(text: str) -> None:
    """Pass arguments to a program in a shell. Raises CalledProcessError."""
    subprocess.run(["sh", "-euc", f"printf %s {text.rstrip()}"], check=True, capture_output=True, env={})  # noqa: S607


READERS: Mapping[str, Callable[[str], Any]] = {
    "table": str,
    "json": read_json,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "env": read_env,
    "args": read_args,
}


def ask_about_rows(questions: Questions, database: Database, folder: Path, *, with_report: bool) -> None:
    """Ask every reading verb, export, view and page about the studies of a database."""
    questions.ask("verb", "status")
    questions.ask("export", "status", "--json", read=read_json)
    questions.ask("verb", "status", "answer")
    questions.ask("export", "status", "answer", "--json", read=read_json)
    for name in FORMATS:
        questions.ask("export", "best", "answer", "--format", name, read=READERS[name])
    for view in VIEWS:
        questions.ask("view", "db", "sql", f"select * from hpopt.{view}")  # noqa: S608
        questions.ask("view", "db", "sql", f"select * from hpopt.{view}", "--json", read=read_json)  # noqa: S608
    if with_report:
        questions.ask("report", "report", "answer", "--output", str(folder))
        questions.call("report", "trials.csv", lambda: list(csv.reader((folder / "trials.csv").open(newline=""))))
        questions.call("report", "insights.json", lambda: read_json((folder / "insights.json").read_text()))
    if with_report:
        (folder / "another.toml").write_text(STUDY.replace('"answer"', '"another"'))
        questions.ask("verb", "create", str(folder / "another.toml"))
        questions.ask("verb", "delete", "another", "--yes")
        questions.call("figures", "answer", lambda: draw_figures(database))
    for status, body in get_pages(database):
        questions.call("page", body[:60].decode(errors="replace"), lambda: check_page(status, body))  # noqa: B023


def draw_figures(database: Database) -> None:
    """Draw the figures and notes that the dashboard shows for the study. Raises what it only logs."""
    lines: list[str] = []
    builder = FigureBuilder(database, lines.append, wait_s=_FIGURES_TIMEOUT_S)
    snapshots = SnapshotReader(database.uncached_optuna)
    study_id = studies.load_study(database, "answer").study_id
    snapshot = snapshots.read(study_id)
    if snapshot is None or not builder.get(snapshot).figures:
        raise ValueError(f"no figures: {lines}")
    builder.close()


def check_page(status: str, body: bytes) -> None:
    """Raise ValueError unless a page of the dashboard is JSON with status 200."""
    if not status.startswith("200 "):
        raise ValueError(f"{status}: {body[-300:]!r}")
    read_json(body.decode())


def get_pages(database: Database) -> Iterator[tuple[str, bytes]]:
    """Yield status and body of the dashboard's list of studies and of each study, without figures."""
    app = wsgi(StorageWithNotes(database.uncached_optuna, lambda study_id: {}))  # noqa: ARG005
    ids = [study._study_id for study in database.uncached_optuna.get_all_studies()]  # noqa: SLF001
    for path in ("/api/studies", *(f"/api/studies/{study_id}" for study_id in ids)):
        statuses: list[str] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "after=0", "wsgi.errors": io.StringIO()}
        environ |= {"SERVER_NAME": "x", "SERVER_PORT": "1", "wsgi.input": io.BytesIO(), "wsgi.url_scheme": "http"}
        body = b"".join(app(environ, lambda status, headers, error=None: statuses.append(status)))  # noqa: ARG005, B023
        yield statuses[-1], body


FILES = st.one_of(
    TEXTS,
    st.builds(
        lambda key, value: f"{STUDY}{json.dumps(storable(key))} = {json.dumps(value) if value is not None else ''}",
        TEXTS,
        VALUES,
    ),
    st.builds(
        lambda old, new: STUDY.replace(old, storable(new)),
        st.sampled_from(['"answer"', "20", "1e-3", "0.3", "true", '"muon"', "learning_rate", "[budget]", "trials"]),
        TEXTS
        | VALUES.map(json.dumps)
        | st.sampled_from(["inf", "nan", "1e400", "0x7fffffffffffffffffff", "1979-05-27"]),
    ),
    st.builds(lambda name, value: f"{STUDY}[fixed]\n{json.dumps(storable(name))} = {json.dumps(value)}", TEXTS, VALUES),
    st.builds(lambda name: STUDY.replace("learning_rate", json.dumps(storable(name))) + 'objective = "a:b"\n', TEXTS),
)
# The system passes any bytes but NUL.
ARGUMENTS = (TEXTS.map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=8)).map(
    lambda argument: os.fsdecode(argument.replace(b"\0", b""))
)


def ask_about_file(questions: Questions, text: str, folder: Path) -> None:
    """Ask for the plan of a study file."""
    path = folder / "study.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    questions.ask("file", "check", str(path))


def ask_about_name(questions: Questions, name: str) -> None:
    """Use a name for a study, a parameter, its value, a format and a query."""
    questions.ask("name", "status", "--", name)
    questions.ask("name", "best", "--", name)
    questions.ask("name", "best", "answer", f"--format={name}")
    questions.ask("name", "report", "--", name)
    questions.ask("name", "pause", f"--reason={name}", "--", "answer")
    questions.ask("name", "resume", "answer")
    questions.ask("name", "enqueue", "--", "answer", f"{name}=1")
    questions.ask("name", "enqueue", "--", "answer", f"optimizer={name}")
    questions.ask("name", "db", "sql", "--", name)
    questions.ask("name", "params", "--", name)


@dataclass(frozen=True)
class Config:
    """What the hostile training function takes."""

    x: float = 0.5
    seed: int = 0


class Functions:
    """Training functions, one for each trial of a study: what each yields, and what it does at the end."""

    MODULE = "hostile_functions"

    def __init__(self) -> None:
        self.functions: list[tuple[list[Any], Any]] = []

    def train(self, _config: Config, _run: Run) -> Iterator[Any]:
        """Do what the next function does."""
        yielded, end = self.functions[self.n_called]
        self.n_called += 1
        yield from yielded
        if isinstance(end, BaseException):
            raise end

    def ask(self, questions: Questions, database: Database, home: Path) -> None:
        """Run a trial of each function with one worker, which must give each of them one outcome."""
        self.n_called = 0
        module = types.ModuleType(self.MODULE)
        module.Config = Config  # type: ignore[attr-defined]

        def train(config: Config, run: Run) -> Iterator[Any]:
            return self.train(config, run)

        module.train = train  # type: ignore[attr-defined]
        sys.modules[self.MODULE] = module
        text = FUNCTIONS_STUDY.format(n=len(self.functions), module=self.MODULE)
        study = studies.create_study(database, parse_study_file(text, "functions.toml"))

        def log(line: str) -> None:
            # Five functions in a row can fail for one reason.
            if line.startswith("paused:"):
                control.resume(database, study)

        questions.call("function", "work", lambda: work(database, study, WorkerOptions(home=home, log=log)))
        rows = queries.read_rows(database, _OUTCOMES)[1]
        n_ended = sum(n for _, n in rows)
        questions.n_asked["function"] += len(self.functions)
        for problem in range(abs(len(self.functions) - n_ended)):
            questions.n_failed["function"] += 1
            questions.failures.append(f"function {problem}: no outcome, or two")


def draw(strategy: st.SearchStrategy[Any], n: int, seed: int, use: Callable[[Any], None]) -> None:
    """Draw n inputs, the same for the same seed."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=n, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(strategy)
    def use_each(value: Any) -> None:  # noqa: ANN401 - any input.
        use(value)

    use_each()


def ask_everything(url: str, n: int, seed: int, folder: Path) -> tuple[Counter[str], Questions]:
    """Ask about n inputs: half rows, a fifth functions and files each, the rest names; return the number of each."""
    tried: Counter[str] = Counter()
    questions = Questions(url)
    with closing(Database(url)) as database:
        migrate.upgrade(database)
        create(database)

        def try_rows(drawn: tuple[list[ForeignTrial], Mapping[tuple[str, str], str | None]]) -> None:
            trials, attributes = drawn
            write_trials(database, "answer", trials)
            write_trials(database, "foreign", trials)
            write_study_attributes(database, "foreign", attributes)
            tried["rows"] += len(trials)
            ask_about_rows(questions, database, folder / "report", with_report=tried["rows"] % 10 == 0)
            remove_trials(database)

        def try_file(text: str) -> None:
            tried["files"] += 1
            ask_about_file(questions, text, folder)

        def try_name(name: str) -> None:
            tried["names"] += 1
            ask_about_name(questions, name)

        draw(st.tuples(st.lists(TRIALS, min_size=5, max_size=5), STUDY_ATTRIBUTES), n // 10, seed, try_rows)
        draw(FILES, n // 5, seed, try_file)
        draw(ARGUMENTS, n // 10, seed, try_name)
        functions = Functions()
        draw(FUNCTIONS, n // 5, seed, functions.functions.append)
        tried["functions"] = len(functions.functions)
        functions.ask(questions, database, folder)
    return tried, questions


def write_results(n: int, seed: int) -> Iterator[str]:
    """Yield the lines of the results."""
    with tempfile.TemporaryDirectory() as folder, server.use(Path(folder, "home")):
        url = server.start(Path(folder, "home"))
        try:
            tried, questions = ask_everything(url, n, seed, Path(folder))
        finally:
            server.stop(Path(folder, "home"))
    yield f"Seed {seed}: {tried.total()} inputs ({', '.join(f'{k} {kind}' for kind, k in tried.items())}),"
    yield f"{questions.n_asked.total()} questions about them. Target: 0 that get neither an answer nor one line.\n"
    yield "| questions | asked | neither an answer nor one line |\n|---|---|---|"
    yield from (f"| {kind} | {k} | {questions.n_failed[kind]} |" for kind, k in sorted(questions.n_asked.items()))
    yield f"| all | {questions.n_asked.total()} | **{len(questions.failures)}** |\n"
    yield from (f"    {' '.join(failure.split())[:400]}" for failure in questions.failures[:20])


def main() -> None:
    """Run the benchmark, print its results and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("hpopt", "optuna", "hypothesis"))
    lines = [
        "# Hostile rows, functions, files and names\n",
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}; {versions}; Python {platform.python_version()}. Made by",
        f"`python benchmarks/hostile.py --inputs {options.inputs} --seed {options.seed}`.\n",
    ]
    lines += write_results(options.inputs, options.seed)
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
