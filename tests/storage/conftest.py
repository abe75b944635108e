"""A migrated database, a study in it, and workers that act on the study without training."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage

from hpopt.analysis.trials import Outcome
from hpopt.storage import attempts, evaluations, reaper, studies
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.evaluations import Decision
from hpopt.storage.observations import ObservedTrials
from hpopt.storage.studies import Study
from hpopt.study.reading import parse_study_file
from hpopt.training.run import Evaluation

STUDY_FILE = """
name = "tiny"
[budget]
trials = 4
[sampler]
name = "random"
[search_space]
learning_rate = { low = 1e-3, high = 0.3, log = true }
momentum      = { low = 0.8, high = 0.99 }
ns_steps      = { low = 1, high = 9, type = "int" }
optimizer     = { choices = ["muon", "adamw"] }
[fixed]
max_steps = 90
eval_steps = 10
"""

# Its rungs are at steps 10 and 30 of 90.
ASHA_FILE = """
name = "rungs"
[budget]
trials = 40
[sampler]
name = "random"
[pruner]
name = "asha"
[search_space]
momentum = { low = 0.8, high = 0.99 }
[fixed]
max_steps = 90
eval_steps = 10
"""


class Fleet:
    """Workers on one study. Each attempt has a worker of its own unless a test names one."""

    def __init__(self, database: Database, study: Study):
        self.database = database
        self.study = study
        self.observed = ObservedTrials(database, study)
        self.worker_id = self.join()

    def join(self) -> int:
        return attempts.register_worker(self.database, self.study, host="here", pid=1, device="cpu")

    def reserve(self, worker_id: int | None = None) -> Attempt | None:
        return attempts.reserve(self.database, self.study, worker_id or self.join())

    def start(self, worker_id: int | None = None) -> Attempt:
        attempt = self.reserve(worker_id)
        assert attempt is not None
        self.observed.refresh()
        params = self.observed.propose(self.study, attempt)
        seed = attempt.seed if attempt.seed is not None else 7
        values = {"config": params, "derived": self.study.file.derive(params)}
        attempts.start(self.database, self.study, attempt, params, seed=seed, **values, data_fingerprint=None)
        return replace(attempt, params=params)

    def record(self, attempt: Attempt, step: int, loss: float = 1.0, *, is_live: bool = True, **metrics) -> Decision:
        evaluation = Evaluation(
            step=step, n_steps=90, tokens=step * 10, seconds=1.0, metrics={"val_loss": loss, **metrics}
        )
        # A worker leaves the default.
        options = {} if is_live else {"is_live": False}
        return evaluations.record(self.database, self.study, attempt, evaluation, **options)

    def finish(
        self, attempt: Attempt, outcome: str = "complete", value: float | None = None, reason: str | None = None
    ) -> None:
        attempts.finish(self.database, attempt, Outcome(outcome), value=value, reason=reason)

    def heartbeat(self, attempt: Attempt | None, worker_id: int | None = None) -> attempts.HeartbeatReply:
        return attempts.heartbeat(self.database, self.study.study_id, worker_id or self.worker_id, attempt)

    def lose(self, attempt: Attempt) -> int:
        """Let the heartbeat of an attempt expire, and reap it."""
        self.execute(
            f"update hpopt.attempt set heartbeat_at = now() - interval '1 hour' where attempt_id = {attempt.attempt_id}"
        )
        return self.reap()

    def reap(self, worker_id: int | None = None) -> int:
        return reaper.reap(self.database, self.study, worker_id or self.worker_id)

    def execute(self, statement: str) -> None:
        with self.database.begin() as connection:
            connection.execute(sa.text(statement))

    def rows(self, query: str = "select * from hpopt.trials order by trial") -> list[sa.RowMapping]:
        with self.database.begin() as connection:
            return list(connection.execute(sa.text(query)).mappings())

    def stock(self) -> optuna.Study:
        """Return the study as stock Optuna reads it."""
        return optuna.load_study(study_name=self.study.name, storage=RDBStorage(self.database.url))


@pytest.fixture
def database(migrated_url: str) -> Iterator[Database]:
    """A migrated database of the test's own."""
    database = Database(migrated_url)
    yield database
    database.close()


@pytest.fixture
def study_file() -> str:
    """The text of a study of four trials over a space with every kind of parameter."""
    return STUDY_FILE


@pytest.fixture
def study(database: Database) -> Study:
    """A study of four trials over a space with every kind of parameter."""
    return studies.create_study(database, parse_study_file(STUDY_FILE, "tiny.toml"))


@pytest.fixture
def make_fleet(database: Database) -> Callable[..., Fleet]:
    """Return a function that makes a fleet on a study, over a connection of its own if one is given."""

    def make(study: Study, connection: Database = database) -> Fleet:
        return Fleet(connection, study)

    return make


@pytest.fixture
def fleet(database: Database, study: Study) -> Fleet:
    """Workers on the study of four trials."""
    return Fleet(database, study)


@pytest.fixture
def asha_fleet(database: Database) -> Fleet:
    """Workers on a study with the pruner asha, whose rungs are at steps 10 and 30 of 90."""
    return Fleet(database, studies.create_study(database, parse_study_file(ASHA_FILE, "rungs.toml")))
