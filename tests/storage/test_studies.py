"""A study is made once, goes on with a new budget, and is refused with another space."""

import optuna
import pytest
import sqlalchemy as sa

from hpopt.errors import DatabaseError, InputError
from hpopt.storage import studies
from hpopt.storage.database import Database
from hpopt.storage.studies import create_study, load_study, require_data
from hpopt.study.reading import parse_study_file


def test_the_same_file_again_is_the_same_study(database, study, study_file):
    assert create_study(database, parse_study_file(study_file, "tiny.toml")).study_id == study.study_id
    assert len(studies.open_optuna(database, study).trials) == 1


def test_a_larger_budget_is_taken_over(database, study, study_file):
    changed = create_study(database, parse_study_file(study_file.replace("trials = 4", "trials = 9")), "tiny.toml")
    assert changed.file.budget.trials == 9


def test_configurations_that_are_new_in_the_file_are_enqueued(database, study, study_file):
    create_study(database, parse_study_file(study_file + "[[enqueue]]\nlearning_rate = 0.1\n", "tiny.toml"))
    create_study(database, parse_study_file(study_file + "[[enqueue]]\nlearning_rate = 0.1\n", "tiny.toml"))
    waiting = [trial.system_attrs["fixed_params"] for trial in studies.open_optuna(database, study).trials]
    assert waiting[1:] == [{"learning_rate": 0.1}]


def test_another_space_under_the_same_name_is_refused_with_the_difference(database, study, study_file):
    """One trial with another range makes multivariate TPE drop the parameter without a word."""
    with pytest.raises(InputError, match=r"study 'tiny' exists with another space: .*learning_rate.*0\.3.*; rename"):
        create_study(database, parse_study_file(study_file.replace("high = 0.3", "high = 0.5")), "tiny.toml")


def test_a_study_that_others_made_is_not_taken_over(database, study_file):
    theirs = optuna.create_study(storage=database.optuna, study_name="tiny")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(InputError, match="a study 'tiny' that hpopt did not make"):
        create_study(database, parse_study_file(study_file, "tiny.toml"))


def test_an_unknown_study_is_named_with_the_nearest(database, study, study_file):
    with pytest.raises(InputError, match=r"no study 'tinny' in .*; did you mean 'tiny'\?"):
        load_study(database, "tinny")


def test_a_child_knows_its_parent_and_role(database, study, study_file):
    child = create_study(
        database, parse_study_file(study_file.replace('"tiny"', '"tiny-confirm"'), "x"), parent="tiny", role="confirm"
    )
    assert (child.parent, child.role) == ("tiny", "confirm")


def test_a_worker_with_other_data_is_refused(database, study, study_file):
    require_data(database, study, "aaaa")
    require_data(database, study, "aaaa")
    with pytest.raises(InputError, match="trains on data aaaa, this worker has bbbb"):
        require_data(database, study, "bbbb")


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
    trials = studies.open_optuna(database, create_study(database, parse_study_file(text, "grid.toml"))).trials
    points = {tuple(sorted(trial.system_attrs["fixed_params"].items())) for trial in trials}
    assert len(trials) == len(points) == 6


def test_an_unreachable_database_is_named_without_its_password():
    database = Database("postgresql://me:s3cr%7Bt@127.0.0.1:1/nowhere")
    with pytest.raises(DatabaseError) as refused:
        studies.study_names(database)
    assert str(refused.value).startswith("postgresql://me@127.0.0.1:1/nowhere: ")
    assert "Connection refused" in str(refused.value)
    assert "s3cr" not in str(refused.value)


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mysql://me:pw@host/db", "nonsense", ""])
def test_what_is_no_postgres_url_is_refused(url):
    with pytest.raises(DatabaseError) as refused:
        Database(url)
    assert "pw" not in str(refused.value)
    assert "postgresql://" in str(refused.value)


def test_braces_and_percents_in_a_password_work(database, database_url):
    """Optuna passes the URL through str.format, where a brace in a password raises KeyError."""
    with database.begin() as connection:
        connection.execute(sa.text("create role braces login superuser password '{odd}%40'"))
    try:
        url = sa.make_url(database_url).set(username="braces", password="{odd}%40")
        odd = Database(url.render_as_string(hide_password=False))
        assert optuna.get_all_study_names(odd.optuna) == []
        odd.close()
    finally:
        with database.begin() as connection:
            connection.execute(sa.text("drop role braces"))
