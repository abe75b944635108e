"""A study is created once, continues with a changed budget, and is read without its training code."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy as sa

from hpopt import __version__
from hpopt.errors import DatabaseError, InputError, StudyFileError
from hpopt.search.design import grid_points
from hpopt.storage import budget, queries, studies
from hpopt.storage.database import Database
from hpopt.storage.studies import create_study, find_study, load_study, reload, require_data
from hpopt.study.reading import parse_study_file

OBJECTIVE = """
import math
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class Config:
    rate: float = 0.1
    limit: float = math.inf
    unknown: float = math.nan
    layers: tuple = (1, 2)
    data: object = Path("/data")
    nothing: object = None
    max_steps: int = 90
    seed: int = 0

def train(config: Config, run): ...
"""

OWN_STUDY = """
name = "own"
objective = "stored_objective:train"
metric = "loss"
[budget]
trials = 4
[search_space]
rate = { low = 0.05, high = 1.0 }
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return the path of the module of an objective of the user, which nothing has imported."""
    path = tmp_path / "stored_objective.py"
    path.write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(tmp_path)
    # Files that are written again within a second would be read from their bytecode.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield path
    sys.modules.pop("stored_objective", None)


@pytest.fixture
def own_study(database, module):
    """A study of the objective, which has been imported for it and is forgotten again."""
    study = create_study(database, parse_study_file(OWN_STUDY, "own.toml"))
    sys.modules.pop("stored_objective")
    return study


def test_creating_the_same_file_again_returns_the_same_study(database, study, study_file):
    assert create_study(database, parse_study_file(study_file, "tiny.toml")).study_id == study.study_id
    assert len(studies.open_optuna(database, study).trials) == 1


def test_a_larger_budget_is_taken_over(database, study, study_file):
    source = parse_study_file(study_file.replace("trials = 4", "trials = 9"), "tiny.toml")
    changed = create_study(database, source)
    assert changed.file.budget.trials == 9
    assert (changed.text, changed.study_id) == (source.text, study.study_id)
    assert reload(database, study) == changed


def test_what_changes_in_a_study_is_logged_and_kept_with_who_and_when(database, study, study_file):
    text = study_file.replace("trials = 4", "trials = 9\ntarget = 2.5").replace('"random"', '"tpe"')
    lines = []
    for _ in range(2):
        create_study(database, parse_study_file(f"{text}[[enqueue]]\nns_steps = 3\n", "tiny.toml"), log=lines.append)
    assert lines == [
        "budget.trials: 9, was 4",
        "budget.target: 2.5, was not given",
        "sampler.name: tpe, was random",
        'enqueue: [{"ns_steps": 3}], was not given',
    ]
    with database.begin() as connection:
        rows = connection.execute(sa.text("select * from hpopt.changes order by key desc")).all()
    assert (rows[0].key, rows[0].old_value, rows[0].new_value) == ("sampler.name", "random", "tpe")
    assert len(rows) == 4
    assert "@" in rows[0].changed_by
    assert rows[0].changed_at > study.created_at


def test_another_version_of_hpopt_is_a_change(database, study, study_file):
    with database.begin() as connection:
        connection.execute(sa.text("""update hpopt.study set versions = jsonb_set(versions, '{hpopt}', '"0.0.1"')"""))
    lines = []
    create_study(database, parse_study_file(study_file, "tiny.toml"), log=lines.append)
    assert lines == [f"hpopt: {__version__}, was 0.0.1"]


def test_another_summary_is_refused(database, study, study_file):
    """The values of its trials would not be comparable."""
    text = study_file.replace('"tiny"', '"tiny"\nsummary = "best"')
    with pytest.raises(InputError, match="another space: summary: best, was last"):
        create_study(database, parse_study_file(text, "tiny.toml"))


def test_an_unchanged_study_is_not_read_again(database, study):
    assert reload(database, study) is study


def test_a_study_that_was_deleted_and_created_again_is_refused_to_its_workers(database, study, study_file):
    optuna.delete_study(study_name="tiny", storage=database.optuna)
    with pytest.raises(InputError, match="no study 'tiny'"):
        reload(database, study)
    create_study(database, parse_study_file(study_file + "\n", "tiny.toml"))
    with pytest.raises(InputError, match=r"^study 'tiny' was deleted and created again; restart the workers$"):
        reload(database, study)


def test_further_configurations_of_the_file_are_enqueued_once(database, study, study_file):
    for _ in range(2):
        create_study(database, parse_study_file(study_file + "[[enqueue]]\nlearning_rate = 0.1\n", "tiny.toml"))
    enqueued = [trial.system_attrs["fixed_params"] for trial in studies.open_optuna(database, study).trials]
    assert enqueued[1:] == [{"learning_rate": 0.1}]


def test_another_space_under_the_same_name_is_refused_with_the_difference(database, study, study_file):
    """One trial with another range makes multivariate TPE drop the parameter without a warning."""
    with pytest.raises(InputError) as refusal:
        create_study(database, parse_study_file(study_file.replace("high = 0.3", "high = 0.5"), "other.toml"))
    assert str(refusal.value) == (
        "other.toml: study 'tiny' exists with another space: search_space.learning_rate: high 0.5, was 0.3; "
        "rename the study, or restore its space"
    )


def test_a_study_that_hpopt_did_not_create_is_not_taken_over(database, study_file):
    theirs = optuna.create_study(storage=database.optuna, study_name="tiny")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(InputError, match="has a study 'tiny' that hpopt did not create; choose another name"):
        create_study(database, parse_study_file(study_file, "tiny.toml"))


def test_a_study_whose_creation_was_interrupted_is_created_by_the_next_call(database, study_file):
    """The process can be killed between the transactions of Optuna and of hpopt."""
    source = parse_study_file(study_file, "tiny.toml")
    studies._create_optuna_study(database, source.file)
    assert find_study(database, "tiny") is None
    study = create_study(database, source)
    assert len(studies.open_optuna(database, study).trials) == 1


def test_an_unknown_study_is_refused_with_the_nearest_name(database, study):
    with pytest.raises(InputError, match=r"no study 'tinny' in .*; did you mean 'tiny'\?"):
        load_study(database, "tinny")


def test_a_worker_with_other_data_is_refused(database, study):
    require_data(database, study, "aaaa")
    require_data(database, study, "aaaa")
    require_data(database, study, None)
    with pytest.raises(InputError, match="trains on data aaaa, this worker has bbbb; their losses are not comparable"):
        require_data(database, study, "bbbb")


def test_a_study_that_is_created_by_several_at_once_has_its_defaults_once(database, study_file):
    connections = [Database(database.url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(lambda one: create_study(one, parse_study_file(study_file, "tiny.toml")), connections))
    assert len({study.study_id for study in created}) == 1
    assert len(database.optuna.get_all_trials(created[0].study_id)) == 1
    for connection in connections:
        connection.close()


def test_every_point_of_a_grid_is_enqueued_once(database):
    text = """
name = "grid"
[budget]
trials = 100
[sampler]
name = "grid"
[search_space]
ns_steps = { low = 3, high = 7, step = 2, type = "int" }
momentum = { choices = [0.9, 0.95] }
"""
    study = create_study(database, parse_study_file(text, "grid.toml"))
    trials = studies.open_optuna(database, study).trials
    points = {tuple(sorted(trial.system_attrs["fixed_params"].items())) for trial in trials}
    assert len(trials) == len(points) == 6
    assert budget.planned_trials(study, budget.read_usage(database, study)) == 6


def test_a_grid_with_seeds_has_whole_replicates_in_order_and_more_seeds_are_added_to_it(database):
    """An interrupted design then has the same seeds of all configurations, which are compared in pairs."""
    text = """
name = "replicates"
seeds = 2
[budget]
trials = 100
[sampler]
name = "grid"
[search_space]
ns_steps = { low = 3, high = 5, type = "int" }
[fixed]
seed = 7
"""
    study = create_study(database, parse_study_file(text, "grid.toml"))
    create_study(database, parse_study_file(text.replace("seeds = 2", "seeds = 3"), "grid.toml"))
    trials = studies.open_optuna(database, study).trials
    runs = [(trial.user_attrs["seed"], trial.system_attrs["fixed_params"]["ns_steps"]) for trial in trials]
    assert runs == [(seed, steps) for seed in (7, 8, 9) for steps in (3, 4, 5)]
    assert study.file.pruner.name == "none"


def test_an_enqueued_configuration_has_its_seed_and_note(database, study_file):
    entries = """
[[enqueue]]
params = { learning_rate = 0.1 }
seed = 7
note = "the paper's"
[[enqueue]]
learning_rate = 0.1
"""
    study = create_study(database, parse_study_file(study_file + entries, "s.toml"))
    trials = studies.open_optuna(database, study).trials[-2:]
    assert [trial.system_attrs["fixed_params"] for trial in trials] == [{"learning_rate": 0.1}] * 2
    assert [trial.user_attrs for trial in trials] == [{"note": "the paper's", "seed": 7}, {}]


def test_the_base_has_what_an_enqueued_configuration_of_one_at_a_time_leaves_out(database):
    text = """
name = "ofat"
seeds = 2
[sampler]
name = "one_at_a_time"
base = { ns_steps = 4 }
[search_space]
ns_steps = { low = 3, high = 5, type = "int" }
momentum = { low = 0.9, high = 0.98, num = 3 }
[[enqueue]]
params = { momentum = 0.97 }
note = "beyond"
"""
    study = create_study(database, parse_study_file(text, "s.toml"))
    trials = studies.open_optuna(database, study).trials
    runs = [(trial.user_attrs.get("seed"), *trial.system_attrs["fixed_params"].values()) for trial in trials]
    points = [(4, 0.95), (3, 0.95), (5, 0.95), (4, 0.9), (4, 0.94), (4, 0.98)]
    assert runs == [(None, 4, 0.97), *((seed, *point) for seed in (0, 1) for point in points)]


def test_an_enqueued_configuration_that_is_a_point_of_the_grid_is_counted_once(database):
    """0.0 + 3 * 0.1 is not 0.3 in binary arithmetic, and the budget would have a trial too many."""
    text = """
name = "grid"
[budget]
trials = 100
[sampler]
name = "grid"
[search_space]
dropout = { low = 0.0, high = 0.4, step = 0.1 }
[[enqueue]]
dropout = 0.3
"""
    study = create_study(database, parse_study_file(text, "grid.toml"))
    enqueued = [trial.system_attrs["fixed_params"] for trial in studies.open_optuna(database, study).trials]
    assert [params["dropout"] for params in enqueued] == [0.3, 0.0, 0.1, 0.2, 0.4]
    assert budget.planned_trials(study, budget.read_usage(database, study)) == 5


def test_a_grid_of_a_thousand_points_is_enqueued_in_their_order(database):
    text = """
name = "grid"
[budget]
trials = 10000
[sampler]
name = "grid"
[search_space]
ns_steps = { low = 1, high = 20, type = "int" }
momentum = { low = 0.5, high = 0.99, step = 0.01 }
"""
    study = create_study(database, parse_study_file(text, "grid.toml"))
    with database.begin() as connection:
        rows = connection.execute(
            sa.text(
                "select number, value_json from public.trials join public.trial_system_attributes using (trial_id) "
                "order by trial_id"
            )
        ).all()
    assert [number for number, _ in rows] == list(range(1000))
    assert [json.loads(params) for _, params in rows] == list(grid_points(study.file.search_space))


def test_defaults_and_steps_are_those_of_the_objective_when_the_study_was_created(own_study):
    assert own_study.n_steps == 90
    assert own_study.defaults == {
        "rate": 0.1,
        "limit": "Infinity",
        "unknown": "NaN",
        "layers": [1, 2],
        "data": "/data",
        "nothing": None,
        "max_steps": 90,
        "seed": 0,
    }


@pytest.mark.parametrize("change", ["removed", "renamed field", "broken"])
def test_a_study_is_read_without_its_objective(database, own_study, module, make_fleet, change):
    """Its module can be on another machine, or can have changed since the study was created."""
    fleet = make_fleet(own_study)
    fleet.finish(fleet.start(), value=1.5)
    if change == "removed":
        module.unlink()
    else:
        module.write_text(OBJECTIVE.replace("rate:", "speed:") if change == "renamed field" else "raise ValueError")
    assert find_study(database, "own") == own_study
    study = load_study(database, "own")
    assert (study.defaults["rate"], study.n_steps) == (0.1, 90)
    progress = queries.progress(database, study)
    assert (progress.n_steps, progress.best.params) == (90, {"rate": 0.1})
    assert [row.value for row in queries.read_table(database, study).trials] == [1.5]
    assert "stored_objective" not in sys.modules
    with pytest.raises(StudyFileError):
        parse_study_file(study.text, "own.toml")


def test_defaults_and_steps_are_updated_when_the_study_is_created_again(database, own_study, module):
    module.write_text(OBJECTIVE.replace("max_steps: int = 90", "max_steps: int = 60").replace("0.1", "0.2"))
    study = create_study(database, parse_study_file(OWN_STUDY, "own.toml"))
    assert (study.study_id, study.n_steps, study.defaults["rate"]) == (own_study.study_id, 60, 0.2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('name = "tiny"\n[budget', "not TOML: "),
        ('name = "tiny"\n[budget]\ntrials = "4"\n', "budget.trials: '4' is not a whole number"),
        ('name = "tiny"\nnew_key = 1\n', "new_key: unknown key"),
    ],
)
def test_a_stored_file_that_cannot_be_read_is_refused_in_one_line(database, study, text, problem):
    """A later version can have written it."""
    with database.begin() as connection:
        connection.execute(sa.text("update hpopt.study set file = :text"), {"text": text})
    with pytest.raises(StudyFileError) as refusal:
        load_study(database, "tiny")
    assert str(refusal.value).startswith(f"study 'tiny': {problem}")
    assert "\n" not in str(refusal.value)


def test_an_unreachable_database_is_reported_without_its_password():
    database = Database("postgresql://me:s3cr%7Bt@127.0.0.1:1/nowhere")
    with pytest.raises(DatabaseError) as refusal:
        studies.study_names(database)
    assert str(refusal.value).startswith("postgresql://me@127.0.0.1:1/nowhere: ")
    assert "Connection refused" in str(refusal.value)
    assert "s3cr" not in str(refusal.value)


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mysql://me:pw@host/db", "nonsense", ""])
def test_a_url_of_another_database_is_refused(url):
    with pytest.raises(DatabaseError) as refusal:
        Database(url)
    assert "pw" not in str(refusal.value)
    assert "postgresql://" in str(refusal.value)


def test_braces_and_percents_in_a_password_work(database):
    """Optuna passes the URL through str.format, where a brace in a password raises KeyError."""
    with database.begin() as connection:
        connection.execute(sa.text("create role braces login password '{odd}%40' in role hpopt_reader"))
    try:
        url = sa.make_url(database.url).set(username="braces", password="{odd}%40")
        odd = Database(url.render_as_string(hide_password=False))
        assert optuna.get_all_study_names(odd.optuna) == []
        odd.close()
    finally:
        with database.begin() as connection:
            connection.execute(sa.text("drop role braces"))


def test_a_study_is_run_by_the_version_that_created_it_last(database, study, study_file):
    """Another version could have another result for the same trial."""
    with database.begin() as connection:
        connection.execute(sa.text("""update hpopt.study set versions = '{"hpopt": "0.0.1"}'"""))
    older = load_study(database, "tiny")
    with pytest.raises(
        InputError, match=r"^study 'tiny' is run by hpopt 0\.0\.1, this is .*; install that version, or"
    ):
        studies.require_version(older)
    studies.require_version(create_study(database, parse_study_file(study_file, "tiny.toml")))
