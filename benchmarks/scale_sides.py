"""The database calls of one trial, with plain Optuna and with hpopt.

Both sides have the same calls. The logical workers of a process share one cache of finished trials; each has its own
connection, and what chooses and prunes its trials.
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
from finished_trials import N_STEPS, RUNGS, SPACE, fill_optuna, fill_optuna_marks, fill_ours
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import Trial, TrialState, create_trial

from hpopt.storage import attempts, evaluations, migrate, reaper, studies
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.observations import ObservedTrials
from hpopt.study import plan
from hpopt.study.reading import parse_study_file
from hpopt.training.config import PRETRAIN_METRICS
from hpopt.training.run import Evaluation

HEARTBEAT_EVERY_S = 15
STUDY = "scale"
# A budget that is never reached, in every unit that costs something to count.
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
_METRICS = {name: math.pi * place for place, name in enumerate(PRETRAIN_METRICS, 1)}

Params = Mapping[str, Any]


class Clock:
    """Takes the milliseconds of a logical worker's calls, and of the parts of each, once it runs."""

    def __init__(self) -> None:
        self.is_running = False
        self.calls: dict[str, list[float]] = {}
        self.parts: dict[str, list[float]] = {}
        self._sum = 0.0

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Take a call: the sum of the parts inside."""
        self._sum = 0.0
        yield
        self._note(self.calls, name, self._sum)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Take a part of a call."""
        started = time.perf_counter()
        yield
        milliseconds = 1000 * (time.perf_counter() - started)
        self._sum += milliseconds
        self._note(self.parts, name, milliseconds)

    def _note(self, table: dict[str, list[float]], name: str, milliseconds: float) -> None:
        if self.is_running:
            table.setdefault(name, []).append(milliseconds)


class LogicalWorker(Protocol):
    """What a trial asks of the database; all of it from one thread."""

    def begin(self, params: Params) -> None:
        """Begin a trial with params that are given, so that nothing is sampled."""

    def sweep(self) -> None:
        """End the trials of workers whose heartbeats expired."""

    def ask(self) -> None:
        """Begin a trial and sample its params."""

    def rest(self) -> None:
        """Train: the next call comes much later than the last."""

    def heartbeat(self) -> None:
        """Record a heartbeat of the trial."""

    def evaluate(self, step: int, value: float) -> bool:
        """Write down an evaluation, ask the pruner, and say whether that spares the next heartbeat."""

    def end(self, value: float, *, is_complete: bool) -> None:
        """End the trial."""


class Side(Protocol):
    """What the logical workers of a process share."""

    def hire(self, seed: int, clock: Clock) -> LogicalWorker:
        """Add a logical worker, whose calls the clock takes."""

    def crowd(self, n_trials: int) -> None:
        """Start trials that keep running without further calls."""


def draw_params(draw: random.Random) -> dict[str, Any]:
    """Draw params at random."""
    return {
        "learning_rate": math.exp(draw.uniform(math.log(1e-3), math.log(0.3))),
        "warmup_ratio": draw.uniform(0.0, 0.2),
        "momentum": draw.uniform(0.8, 0.99),
        "ns_steps": draw.randint(1, 9),
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
        """Make the study with its finished trials in an empty database."""
        storage = RDBStorage(url)
        study = optuna.create_study(storage=storage, study_name=STUDY)
        with storage.engine.begin() as connection:
            fill_optuna(connection, _id_of(study), n_trials)
            fill_optuna_marks(connection)
        storage.remove_session()
        _analyze(storage.engine)

    def hire(self, seed: int, clock: Clock) -> "PlainOptunaWorker":
        """Add a logical worker."""
        study = optuna.load_study(
            study_name=STUDY,
            storage=self._storage,
            sampler=TPESampler(seed=seed),
            pruner=SuccessiveHalvingPruner(min_resource=min(RUNGS), reduction_factor=3),
        )
        return PlainOptunaWorker(study, self._storage, clock)

    def crowd(self, n_trials: int) -> None:
        """Start trials that keep running without further calls."""
        draw = random.Random(n_trials)  # noqa: S311 - no secret.
        worker = self.hire(0, Clock())
        for _ in range(n_trials):
            worker.begin(draw_params(draw))


class PlainOptunaWorker:
    """A logical worker of plain Optuna, whose connection stays open."""

    def __init__(self, study: optuna.Study, storage: _CachedStorage, clock: Clock) -> None:
        self._study = study
        self._storage = storage
        self._clock = clock
        self._trial: Trial

    def begin(self, params: Params) -> None:
        """Begin a trial with params that are given."""
        template = create_trial(state=TrialState.RUNNING, params=dict(params), distributions=dict(SPACE))
        self._trial = Trial(self._study, self._storage.create_new_trial(_id_of(self._study), template))

    def sweep(self) -> None:
        """Fail stale trials, as optimize does before each trial."""
        with self._clock.call("sweep"), self._clock.part("fail_stale_trials"):
            fail_stale_trials(self._study)

    def ask(self) -> None:
        """Ask, then suggest each parameter."""
        # As it is within Study.optimize.
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
        # The heartbeat's thread starts with one.
        self.heartbeat()

    def rest(self) -> None:
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
        """Record the result."""
        with self._clock.call("tell"), self._clock.part("tell"):
            if is_complete:
                self._study.tell(self._trial, value)
            else:
                self._study.tell(self._trial, state=TrialState.PRUNED)


class Hpopt:
    """The functions that a worker of hpopt uses; its connection stays open from one evaluation to the next."""

    closes_connections = False

    def __init__(self, url: str, n_connections: int) -> None:
        del n_connections  # Each logical worker has one of its own.
        self.url = url
        self.database = Database(url)
        self.study = studies.load_study(self.database, STUDY)
        self.rungs = plan.rungs_of(self.study.file)
        self.observed = ObservedTrials(self.database, self.study)
        self.history_lock = threading.Lock()

    @staticmethod
    def fill(url: str, n_trials: int) -> None:
        """Make the study with its finished trials in an empty database."""
        database = Database(url)
        migrate.upgrade(database)
        study = studies.create_study(database, parse_study_file(STUDY_FILE, "benchmarks/scale_sides.py"))
        config = asdict(study.file.config(study.file.default_params() or {}))
        with database.begin() as connection:
            # The defaults, which it has enqueued.
            connection.execute(sa.text("truncate public.trials cascade"))
            fill_optuna(connection, study.study_id, n_trials)
            fill_ours(connection, study.study_id, config=config, metrics=_METRICS)
        _analyze(database.engine)
        database.close()

    def hire(self, seed: int, clock: Clock) -> "HpoptWorker":
        """Add a logical worker."""
        return HpoptWorker(self, Database(self.url), seed, clock)

    def crowd(self, n_trials: int) -> None:
        """Start trials that keep running without further calls."""
        draw = random.Random(n_trials)  # noqa: S311 - no secret.
        for seed in range(n_trials):
            HpoptWorker(self, self.database, seed, Clock(), stale_after_s=3600.0).begin(draw_params(draw))
        self.database.release()


class HpoptIdle(Hpopt):
    """The same, where each wait is so long that the worker closes its connection meanwhile."""

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
        self._step = 0

    def begin(self, params: Params) -> None:
        """Begin a trial with params that are given."""
        self._reserve()
        self._start(params)

    def sweep(self) -> None:
        """Look whether the study's file has changed, and reap, as a worker does before each trial."""
        with self._clock.call("sweep"):
            with self._clock.part("reload"):
                studies.reload(self._database, self._side.study)
            with self._clock.part("reap"):
                reaper.reap(self._database, self._side.study, self._worker_id)

    def ask(self) -> None:
        """Reserve, propose, start."""
        with self._clock.call("ask"):
            with self._clock.part("reserve"):
                self._reserve()
            # A worker has a history to itself: waiting for that of the process is not timed.
            with self._side.history_lock:
                with self._clock.part("refresh"):
                    self._side.observed.refresh()
                with self._clock.part("propose"):
                    params = self._side.observed.propose(self._side.study, self._attempt)
            with self._clock.part("start"):
                self._start(params)

    def rest(self) -> None:
        """Train, with the connection closed where that takes long."""
        if self._side.closes_connections:
            self._database.release()

    def heartbeat(self) -> None:
        """Renew the heartbeats of worker and attempt."""
        with self._clock.call("heartbeat"):
            self._connect()
            with self._clock.part("beat"):
                attempts.heartbeat(self._database, self._side.study.study_id, self._worker_id, self._attempt)

    def evaluate(self, step: int, value: float) -> bool:
        """Record, which also asks the pruner and renews the heartbeats."""
        rung = self._side.rungs.reached(step, N_STEPS, self._step)
        self._step = step
        metrics = {**_METRICS, "val_loss": value}
        evaluation = Evaluation(step=step, n_steps=N_STEPS, tokens=step * 4096, seconds=step * 2.4, metrics=metrics)
        with self._clock.call("evaluation"):
            self._connect()
            with self._clock.part("record"):
                evaluations.record(self._database, self._side.study, self._attempt, evaluation, rung)
        return True

    def end(self, value: float, *, is_complete: bool) -> None:
        """Finish."""
        kind, reason = ("complete", None) if is_complete else ("pruned", "not among the best at step 33")
        with self._clock.call("tell"), self._clock.part("finish"):
            attempts.finish(self._database, self._attempt, kind=kind, value=value, reason=reason)

    def _connect(self) -> None:
        if self._side.closes_connections:
            with self._clock.part("connect"), self._database.engine.connect():
                pass

    def _reserve(self) -> None:
        attempt = attempts.reserve(self._database, self._side.study, self._worker_id)
        if attempt is None:
            raise RuntimeError("nothing was reserved")
        self._attempt = attempt
        self._step = 0

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
    "hpopt, long idle": HpoptIdle,
}
