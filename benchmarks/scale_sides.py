"""Implement the database calls of one trial for plain Optuna and for hpopt, for scale.py.

Both sides have the same calls. The logical workers of a process share one cache of finished trials; each has its own
connection, sampler and pruner.
"""

import math
import random
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

import optuna
import sqlalchemy as sa
from finished_trials import N_STEPS, RUNGS, SPACE, fill_hpopt, fill_optuna, fill_optuna_marks
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import Trial, TrialState, create_trial

from hpopt.analysis.trials import Outcome
from hpopt.storage import attempts, evaluations, migrate, reaper, studies
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.observations import ObservedTrials
from hpopt.study.reading import parse_study_file
from hpopt.training.config import PRETRAIN_METRICS
from hpopt.training.run import Evaluation

HEARTBEAT_EVERY_S = 15
STUDY = "scale"
# A budget that is never exhausted, with every limit that takes time to compare.
STUDY_FILE = f"""
name = "{STUDY}"
[budget]
trials = 1000000
gpu_hours = 1000000.0
[search_space]
learning_rate = {{ low = 1e-3, high = 0.3, log = true }}
warmup_ratio  = {{ low = 0.0, high = 0.2 }}
momentum      = {{ low = 0.80, high = 0.99 }}
ns_steps      = {{ low = 1, high = 9, type = "int" }}
[fixed]
max_steps = {N_STEPS}
eval_steps = 5
"""
_METRICS = {name: math.pi * number for number, name in enumerate(PRETRAIN_METRICS, 1)}

Params = Mapping[str, Any]


class Clock:
    """Measures the milliseconds of a logical worker's calls, and of the parts of each, once it is running."""

    def __init__(self) -> None:
        self.is_running = False
        self.calls: dict[str, list[float]] = {}
        self.parts: dict[str, list[float]] = {}
        self._sum = 0.0

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Measure a call: the sum of its parts."""
        self._sum = 0.0
        yield
        self._add(self.calls, name, self._sum)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part of a call."""
        started = time.perf_counter()
        yield
        milliseconds = 1000 * (time.perf_counter() - started)
        self._sum += milliseconds
        self._add(self.parts, name, milliseconds)

    def _add(self, table: dict[str, list[float]], name: str, milliseconds: float) -> None:
        if self.is_running:
            table.setdefault(name, []).append(milliseconds)


class LogicalWorker(Protocol):
    """The database calls of a trial, all from one thread."""

    def begin(self, params: Params) -> None:
        """Begin a trial with given params, without sampling."""

    def reap(self) -> None:
        """End the trials of workers whose heartbeat expired."""

    def ask(self) -> None:
        """Begin a trial and sample its params."""

    def train(self) -> None:
        """Train: the next call is much later than the last."""

    def heartbeat(self) -> None:
        """Renew the heartbeat."""

    def evaluate(self, step: int, value: float) -> bool:
        """Record an evaluation, ask the pruner, and return whether this renewed the heartbeat too."""

    def end(self, value: float, *, is_complete: bool) -> None:
        """End the trial."""


class Side(Protocol):
    """What the logical workers of a process share."""

    def add_worker(self, seed: int, clock: Clock) -> LogicalWorker:
        """Add a logical worker, whose calls the clock measures."""

    def begin_trials(self, n_trials: int) -> None:
        """Begin trials that stay running and make no further calls."""


def sample_params(generator: random.Random) -> dict[str, Any]:
    """Sample params uniformly."""
    return {
        "learning_rate": math.exp(generator.uniform(math.log(1e-3), math.log(0.3))),
        "warmup_ratio": generator.uniform(0.0, 0.2),
        "momentum": generator.uniform(0.8, 0.99),
        "ns_steps": generator.randint(1, 9),
    }


class PlainOptuna:
    """Stock Optuna on RDBStorage, as Study.optimize uses it."""

    def __init__(self, url: str, n_connections: int) -> None:
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pool = {"pool_size": n_connections, "max_overflow": n_connections}
        storage = RDBStorage(url, engine_kwargs=pool, heartbeat_interval=HEARTBEAT_EVERY_S)
        self._storage = _CachedStorage(storage)

    @staticmethod
    def fill(url: str, n_trials: int) -> None:
        """Create the study with its finished trials in an empty database."""
        storage = RDBStorage(url)
        study = optuna.create_study(storage=storage, study_name=STUDY)
        with storage.engine.begin() as connection:
            fill_optuna(connection, _id_of(study), n_trials)
            fill_optuna_marks(connection)
        storage.remove_session()
        _analyze(storage.engine)

    def add_worker(self, seed: int, clock: Clock) -> "PlainOptunaWorker":
        """Add a logical worker."""
        study = optuna.load_study(
            study_name=STUDY,
            storage=self._storage,
            sampler=TPESampler(seed=seed),
            pruner=SuccessiveHalvingPruner(min_resource=min(RUNGS), reduction_factor=3),
        )
        return PlainOptunaWorker(study, self._storage, clock)

    def begin_trials(self, n_trials: int) -> None:
        """Begin trials that stay running and make no further calls."""
        generator = random.Random(n_trials)  # noqa: S311 - not used for security.
        worker = self.add_worker(0, Clock())
        for _ in range(n_trials):
            worker.begin(sample_params(generator))


class PlainOptunaWorker:
    """A logical worker of plain Optuna, whose connection stays open."""

    def __init__(self, study: optuna.Study, storage: _CachedStorage, clock: Clock) -> None:
        self._study = study
        self._storage = storage
        self._clock = clock
        self._trial: Trial

    def begin(self, params: Params) -> None:
        """Begin a trial with given params."""
        template = create_trial(state=TrialState.RUNNING, params=dict(params), distributions=dict(SPACE))
        self._trial = Trial(self._study, self._storage.create_new_trial(_id_of(self._study), template))

    def reap(self) -> None:
        """Fail stale trials, as optimize does before each trial."""
        with self._clock.call("reap"), self._clock.part("fail_stale_trials"):
            fail_stale_trials(self._study)

    def ask(self) -> None:
        """Ask, then suggest each parameter."""
        # As within Study.optimize.
        self._study._thread_local.in_optimize_loop = True  # noqa: SLF001
        with self._clock.call("ask"):
            with self._clock.part("ask"):
                trial = self._study.ask()
            with self._clock.part("four suggests"):
                trial.suggest_float("learning_rate", 1e-3, 0.3, log=True)
                trial.suggest_float("warmup_ratio", 0.0, 0.2)
                trial.suggest_float("momentum", 0.8, 0.99)
                trial.suggest_int("ns_steps", 1, 9)
        self._trial = trial
        # The thread of the heartbeat starts with one.
        self.heartbeat()

    def train(self) -> None:
        """Train."""

    def heartbeat(self) -> None:
        """Record a heartbeat, as the thread of optimize does."""
        with self._clock.call("heartbeat"), self._clock.part("record_heartbeat"):
            self._storage.record_heartbeat(self._trial._trial_id)  # noqa: SLF001

    def evaluate(self, step: int, value: float) -> bool:
        """Report, then ask the pruner."""
        with self._clock.call("evaluation"):
            with self._clock.part("report"):
                self._trial.report(value, step)
            with self._clock.part("should_prune"):
                self._trial.should_prune()
        return False

    def end(self, value: float, *, is_complete: bool) -> None:
        """Tell."""
        with self._clock.call("tell"), self._clock.part("tell"):
            if is_complete:
                self._study.tell(self._trial, value)
            else:
                self._study.tell(self._trial, state=TrialState.PRUNED)


class Hpopt:
    """The functions that a worker of hpopt calls; its connection stays open from one evaluation to the next."""

    closes_connections = False

    def __init__(self, url: str, n_connections: int) -> None:
        del n_connections  # Each logical worker has one of its own.
        self.url = url
        self.database = Database(url)
        self.study = studies.load_study(self.database, STUDY)
        self.observed = ObservedTrials(self.database, self.study)
        self.lock = threading.Lock()

    @staticmethod
    def fill(url: str, n_trials: int) -> None:
        """Create the study with its finished trials in an empty database."""
        database = Database(url)
        migrate.upgrade(database)
        study = studies.create_study(database, parse_study_file(STUDY_FILE, "benchmarks/scale_sides.py"))
        config = asdict(study.file.config(study.file.default_params() or {}))
        with database.begin() as connection:
            # The enqueued defaults would be a waiting trial.
            connection.execute(sa.text("truncate public.trials cascade"))
            fill_optuna(connection, study.study_id, n_trials)
            fill_hpopt(connection, study.study_id, config=config, metrics=_METRICS)
        _analyze(database.engine)
        database.close()

    def add_worker(self, seed: int, clock: Clock) -> "HpoptWorker":
        """Add a logical worker."""
        return HpoptWorker(self, Database(self.url), seed, clock)

    def begin_trials(self, n_trials: int) -> None:
        """Begin trials that stay running and make no further calls."""
        generator = random.Random(n_trials)  # noqa: S311 - not used for security.
        for seed in range(n_trials):
            HpoptWorker(self, self.database, seed, Clock(), stale_after_s=3600.0).begin(sample_params(generator))
        self.database.disconnect()


class HpoptReconnecting(Hpopt):
    """The same with evaluations so far apart that the worker closes its connection between them."""

    closes_connections = True


class HpoptWorker:
    """A logical worker of hpopt, with a connection of its own."""

    def __init__(
        self, side: Hpopt, database: Database, seed: int, clock: Clock, *, stale_after_s: float = 60.0
    ) -> None:
        self._side = side
        self._clock = clock
        self._database = database
        self._worker_id = attempts.register_worker(
            database, side.study, host="scale", pid=seed, device="cpu", stale_after_s=stale_after_s
        )
        self._attempt: Attempt

    def begin(self, params: Params) -> None:
        """Begin a trial with given params."""
        self._reserve()
        self._start(params)

    def reap(self) -> None:
        """Read the study again if its file has changed, and reap, as a worker does before each trial."""
        with self._clock.call("reap"):
            with self._clock.part("reload"):
                studies.reload(self._database, self._side.study)
            with self._clock.part("reap"):
                reaper.reap(self._database, self._side.study, self._worker_id)

    def ask(self) -> None:
        """Reserve, propose, start."""
        with self._clock.call("ask"):
            with self._clock.part("reserve"):
                self._reserve()
            # In a fleet each worker has observations of its own: the wait for those of the process is not measured.
            with self._side.lock:
                with self._clock.part("refresh"):
                    self._side.observed.refresh()
                with self._clock.part("propose"):
                    params = self._side.observed.propose(self._side.study, self._attempt)
            with self._clock.part("start"):
                self._start(params)

    def train(self) -> None:
        """Train, with the connection closed if this takes long."""
        if self._side.closes_connections:
            self._database.disconnect()

    def heartbeat(self) -> None:
        """Renew the heartbeats of worker and attempt."""
        with self._clock.call("heartbeat"):
            self._connect()
            with self._clock.part("heartbeat"):
                attempts.heartbeat(self._database, self._side.study.study_id, self._worker_id, self._attempt)

    def evaluate(self, step: int, value: float) -> bool:
        """Record the evaluation, which also asks the pruner and renews the heartbeats."""
        metrics = {**_METRICS, "val_loss": value}
        evaluation = Evaluation(step=step, n_steps=N_STEPS, tokens=step * 4096, seconds=step * 2.4, metrics=metrics)
        with self._clock.call("evaluation"):
            self._connect()
            with self._clock.part("record"):
                evaluations.record(self._database, self._side.study, self._attempt, evaluation)
        return True

    def end(self, value: float, *, is_complete: bool) -> None:
        """Finish the attempt."""
        outcome = Outcome.COMPLETE if is_complete else Outcome.PRUNED
        reason = None if is_complete else "not among the best at step 33"
        with self._clock.call("tell"), self._clock.part("finish"):
            attempts.finish(self._database, self._attempt, outcome, value=value, reason=reason)

    def _connect(self) -> None:
        if self._side.closes_connections:
            with self._clock.part("connect"), self._database.engine.connect():
                pass

    def _reserve(self) -> None:
        attempt = attempts.reserve(self._database, self._side.study, self._worker_id)
        if attempt is None:
            raise RuntimeError("nothing was reserved")
        self._attempt = attempt

    def _start(self, params: Params) -> None:
        side, number = self._side, self._attempt.number
        config = asdict(side.study.file.config(params, number))
        attempts.start(
            self._database, side.study, self._attempt, params, seed=number, config=config, data_fingerprint=None
        )


def _id_of(study: optuna.Study) -> int:
    return study._study_id  # noqa: SLF001


def _analyze(engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("vacuum analyze"))
    engine.dispose()


SIDES: Mapping[str, type[PlainOptuna] | type[Hpopt]] = {
    "plain Optuna": PlainOptuna,
    "hpopt": Hpopt,
    "hpopt, reconnecting": HpoptReconnecting,
}
