"""ReadingStorage returns the trials that Optuna's own storage returns, whatever they have."""

import math
import time
import warnings
from collections.abc import Iterator
from datetime import datetime

import optuna
import pytest
import sqlalchemy as sa
from finished_trials import fill_optuna, fill_optuna_marks
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpopt.errors import DatabaseError
from hpopt.storage.database import Database
from hpopt.storage.optuna_read import ReadingStorage

DISTRIBUTIONS = {
    "learning_rate": FloatDistribution(1e-3, 0.3, log=True),
    "momentum": FloatDistribution(0.8, 0.99, step=0.01),
    "ns_steps": IntDistribution(1, 9),
    "width": IntDistribution(64, 1024, log=True),
    "optimizer": CategoricalDistribution(["muon", 'a "quoted" \\ name', 3, 0.5, True, None]),
}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def stock(database: Database) -> Iterator[RDBStorage]:
    """Optuna's own storage on the same database."""
    stock = RDBStorage(database.url)
    yield stock
    stock.remove_session()
    stock.engine.dispose()


@pytest.fixture
def ours(database: Database) -> Iterator[ReadingStorage]:
    ours = ReadingStorage(database.url)
    yield ours
    ours.remove_session()
    ours.engine.dispose()


def read(storage: RDBStorage, study_id: int) -> list[FrozenTrial]:
    return storage.get_all_trials(study_id, deepcopy=False)


def agree(ours: ReadingStorage, stock: RDBStorage, study_id: int) -> bool:
    """Compare the trials as text: nan is not equal to itself, and the dashboard shows attributes in their order."""
    mine, theirs = read(ours, study_id), read(stock, study_id)
    for trial in (*mine, *theirs):
        # Optuna does not order the steps.
        trial.intermediate_values = dict(sorted(trial.intermediate_values.items()))
    assert [repr(trial) for trial in mine] == [repr(trial) for trial in theirs]
    return len(theirs) > 0


def test_trials_of_every_state_with_params_of_every_kind_agree(ours: ReadingStorage, stock: RDBStorage):
    study = optuna.create_study(storage=stock)
    params = {"learning_rate": 0.05, "momentum": 0.87, "ns_steps": 5, "width": 128}
    for state in TrialState:
        for optimizer in DISTRIBUTIONS["optimizer"].choices:
            value = 3.25 if state in {TrialState.COMPLETE, TrialState.PRUNED} else None
            trial = create_trial(
                state=state, value=value, params={**params, "optimizer": optimizer}, distributions=DISTRIBUTIONS
            )
            study.add_trial(trial)
    assert agree(ours, stock, study._study_id)
    trial = read(ours, study._study_id)[0]
    assert {name: type(value) for name, value in trial.params.items()} == {
        "learning_rate": float,
        "momentum": float,
        "ns_steps": int,
        "width": int,
        "optimizer": str,
    }


@pytest.mark.filterwarnings("ignore:UniformDistribution has been deprecated")
def test_params_of_an_older_optuna_agree(ours: ReadingStorage, stock: RDBStorage):
    """A database can be older than the Optuna that reads it, which still reads deprecated distributions."""
    study = optuna.create_study(storage=stock)
    trial = study.ask({"momentum": FloatDistribution(0.8, 0.99)})
    old = '{"name": "UniformDistribution", "attributes": {"low": 0.8, "high": 0.99}}'
    with stock.engine.begin() as connection:
        connection.execute(sa.text("update trial_params set distribution_json = :old"), {"old": old})
    assert agree(ours, stock, study._study_id)
    assert trial.number == 0


@pytest.mark.parametrize("value", [0.1, -1e300, 5e-324, math.inf, -math.inf, 1 / 3])
def test_a_value_is_read_exactly(ours: ReadingStorage, stock: RDBStorage, value: float):
    study = optuna.create_study(storage=stock)
    study.tell(study.ask(), value)
    assert agree(ours, stock, study._study_id)
    assert read(ours, study._study_id)[0].value == value


def test_several_values_are_read_in_the_order_of_the_objectives(ours: ReadingStorage, stock: RDBStorage):
    study = optuna.create_study(storage=stock, directions=["minimize", "maximize", "minimize"])
    study.tell(study.ask(), [3.0, math.inf, -2.0])
    with stock.engine.begin() as connection:
        # A row that is written again moves to the end of its table.
        connection.execute(sa.text("update trial_values set value = value where objective = 0"))
    assert agree(ours, stock, study._study_id)
    assert read(ours, study._study_id)[0].values == [3.0, math.inf, -2.0]


def test_intermediate_values_agree_finite_or_not(ours: ReadingStorage, stock: RDBStorage):
    study = optuna.create_study(storage=stock)
    trial = study.ask()
    for step, value in {7: 4.5, 0: math.nan, 3: math.inf, 2**31 - 1: -math.inf, 5: 1 / 3}.items():
        trial.report(value, step)
    assert agree(ours, stock, study._study_id)
    values = read(ours, study._study_id)[0].intermediate_values
    assert list(values) == [0, 3, 5, 7, 2**31 - 1]
    assert math.isnan(values[0])


def test_attributes_and_constraints_agree(ours: ReadingStorage, stock: RDBStorage):
    """Python writes NaN and Infinity as JSON, which jsonb rejects."""
    study = optuna.create_study(storage=stock)
    trial = study.ask()
    for i, value in enumerate([None, True, "text ' \" \\ \u2603", [1, 2.5], {"a": {"b": None}}, math.nan, math.inf]):
        trial.set_user_attr(f"z{9 - i} '\"\\", value)
    trial.set_constraint("diverged", 1.0)
    trial.set_constraint("memory", -0.25)
    study.enqueue_trial({"x": 0.5}, user_attrs={"source": "manual"})
    assert agree(ours, stock, study._study_id)
    assert read(ours, study._study_id)[0].constraints == {"diverged": 1.0, "memory": -0.25}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_studies_their_attributes_and_best_trials_agree(ours: ReadingStorage, stock: RDBStorage, direction: str):
    optuna.create_study(storage=stock, study_name="empty")
    study = optuna.create_study(storage=stock, study_name="a 'b' λ", direction=direction)
    study.set_user_attr("n", math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(["loss"])
    for value in (2.0, 1.0, 3.0, 1.0, 3.0):
        study.tell(study.ask(), value)
    study_id = study._study_id
    assert ours.get_best_trial(study_id) == stock.get_best_trial(study_id)
    for value in (math.inf, -math.inf):
        study.tell(study.ask(), value)
        assert ours.get_best_trial(study_id) == stock.get_best_trial(study_id)
    assert [vars(one) for one in ours.get_all_studies()] == [vars(one) for one in stock.get_all_studies()]
    for read_one in ("get_study_user_attrs", "get_study_system_attrs", "get_study_directions"):
        assert getattr(ours, read_one)(study_id) == getattr(stock, read_one)(study_id)
    with pytest.raises(ValueError, match="No trials are completed yet"):
        ours.get_best_trial(study_id - 1)


def test_a_study_of_several_objectives_has_no_best_trial(ours: ReadingStorage, stock: RDBStorage):
    study = optuna.create_study(storage=stock, directions=["minimize", "maximize"])
    with pytest.raises(RuntimeError, match="single-objective"):
        ours.get_best_trial(study._study_id)


def test_what_another_tool_damaged_is_left_out(ours: ReadingStorage, stock: RDBStorage):
    """Optuna's own storage raises for each of these, and with it every page of the dashboard."""
    study = optuna.create_study(storage=stock)
    study.tell(study.ask({"x": FloatDistribution(0, 1), "choice": CategoricalDistribution(["a", "b"])}), 1.0)
    study.tell(study.ask(), 2.0)
    trial = study.ask()
    trial.set_user_attr("key", "text")
    study.set_user_attr("key", "text")
    with ours.engine.begin() as connection:
        for statement in (
            "update trial_params set distribution_json = '{' where param_name = 'x'",
            "update trial_params set param_value = 7 where param_name = 'choice'",
            "update trial_values set value = 'nan' where value = 2",
            "update trial_user_attributes set value_json = '{\"a'",
            "update study_user_attributes set value_json = null",
            "insert into trial_system_attributes (trial_id, key, value_json) values (3, 'fixed_params', '5')",
            "insert into trial_system_attributes (trial_id, key, value_json) values (3, 'artifacts:x', '{}')",
            "insert into study_system_attributes (study_id, key, value_json) values (1, 'artifacts:x', 'null')",
            "insert into study_system_attributes (study_id, key, value_json) values (1, 'dashboard:note_ver', '[]')",
            "insert into study_system_attributes (study_id, key, value_json) values (1, 'study:metric_names', '{}')",
            "update trials set datetime_start = 'infinity'",
            "insert into study_system_attributes select 9, 1, 'deep', repeat('[', 5000) || repeat(']', 5000)",
        ):
            connection.execute(sa.text(statement))
    first, second, third = read(ours, study._study_id)
    assert (first.state, first.value, first.params, first.datetime_start) == (TrialState.COMPLETE, 1.0, {}, None)
    assert (second.state, second.values) == (TrialState.FAIL, None)
    assert (third.user_attrs, third.system_attrs) == ({"key": '{"a'}, {})
    assert ours.get_best_trial(study._study_id) == first
    (frozen,) = ours.get_all_studies()
    assert frozen.user_attrs == {"key": None}
    assert frozen.system_attrs == {"deep": "[" * 5000 + "]" * 5000}


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone hours from UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_times_are_local_as_those_of_optuna(tokyo: None, ours: ReadingStorage, stock: RDBStorage):
    study = optuna.create_study(storage=stock)
    before = datetime.now()  # noqa: DTZ005 - as Optuna's trials have it.
    study.tell(study.ask(), 1.0)
    (trial,) = read(ours, study._study_id)
    assert before <= trial.datetime_start <= trial.datetime_complete <= datetime.now()  # noqa: DTZ005
    assert agree(ours, stock, study._study_id)


def test_the_trials_of_a_large_study_agree(ours: ReadingStorage, stock: RDBStorage):
    study = optuna.create_study(storage=stock)
    with stock.engine.begin() as connection:
        fill_optuna(connection, study._study_id, 300)
        fill_optuna_marks(connection)
    assert agree(ours, stock, study._study_id)


def test_trials_are_selected_by_state_and_id(ours: ReadingStorage, stock: RDBStorage):
    """Optuna's cache reads the trials after the last finished one, and those before it that had not finished."""
    other, study = (optuna.create_study(storage=stock) for _ in range(2))
    other.tell(other.ask(), 1.0)
    for _ in range(4):
        study.tell(study.ask(), 1.0)
    study.ask()
    first, second, third, *_ = (trial._trial_id for trial in study.trials)
    for states in (None, [TrialState.COMPLETE], (TrialState.RUNNING, TrialState.WAITING), []):
        for included, newest in ((set(), -1), ({first}, third), ({first}, second), (set(), third), ({10**6}, third)):
            arguments = (study._study_id, states, included, newest)
            expected = [trial.number for trial in stock._get_trials(*arguments)]
            assert [trial.number for trial in ours._get_trials(*arguments)] == expected


def test_a_missing_study_raises_the_error_of_optuna(ours: ReadingStorage, stock: RDBStorage):
    study = optuna.create_study(storage=stock)
    assert read(ours, study._study_id) == []
    for storage in (ours, stock):
        with pytest.raises(KeyError):
            storage.get_all_trials(999)


def test_an_unreachable_database_is_reported_by_its_cause(database: Database, postgres_url: str):
    study = optuna.create_study(storage=database.optuna)
    name = database.url.rpartition("/")[2]
    with sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sa.text(f"alter database {name} allow_connections false"))
        connection.execute(
            sa.text("select pg_terminate_backend(pid) from pg_stat_activity where datname = :name"), {"name": name}
        )
        with pytest.raises(DatabaseError, match="not currently accepting connections"), database.errors():
            database.optuna.get_all_trials(study._study_id)
        connection.execute(sa.text(f"alter database {name} allow_connections true"))
    assert database.optuna.get_all_trials(study._study_id) == []
