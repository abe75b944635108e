"""`hpopt create`, `check`, `status` and `best`: what they print, and what they refuse."""

import json
import re
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from finished_trials import make_finished_study

from hpopt.analysis.trials import Outcome
from hpopt.storage import attempts, evaluations, studies
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file
from hpopt.training.run import Evaluation

FIRST_STUDY = Path(__file__).parents[2] / "studies" / "quickstart.toml"
# The first study without its confirmation, which would follow the finished trials.
QUICKSTART = re.sub(r"\[confirm\].*?(?=\[sampler\])", "", FIRST_STUDY.read_text(), flags=re.DOTALL)
LEAK = "93% of the validation text is also training text"


@pytest.fixture
def leaky(migrated, migrated_url):
    """The command line on a finished study whose trials all trained on their validation text."""
    with closing(Database(migrated_url)) as database:
        make_finished_study(database, QUICKSTART, 32, metrics={"train_val_overlap": 0.93})
    return migrated


def test_check_prints_the_plan_and_creates_nothing(hpopt, study_file, tmp_path):
    plan = hpopt.output("check", study_file)
    assert "learning_rate" in plan
    assert "budget: trials 3" in plan
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.toml"]


def test_check_warns_of_a_study_that_trains_on_its_validation_text(hpopt, study_file):
    study_file.write_text(study_file.read_text() + '[fixed]\nsplit = "overlapping_windows"\n')
    assert "leak: " in hpopt.output("check", study_file)


def test_a_wrong_study_file_is_refused_before_a_database_is_created(hpopt, study_file, tmp_path):
    study_file.write_text(study_file.read_text().replace("learning_rate", "learning_rat"))
    line = hpopt.refused("run", study_file, "--home", tmp_path / "home")
    assert line.startswith(f"hpopt: {study_file}: search_space.learning_rat: ")
    assert "did you mean 'learning_rate'?" in line
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("command", ["check", "create", "run"])
def test_a_dataset_that_does_not_exist_is_refused_before_a_database_is_created(command, hpopt, study_file, tmp_path):
    study_file.write_text(f'{study_file.read_text()}\n[fixed]\ndataset = "{tmp_path}/answer.txt"\n')
    line = hpopt.refused(command, study_file, HPOPT_HOME=str(tmp_path / "home"))
    assert line.startswith(f"hpopt: {study_file}: fixed.dataset: '{tmp_path}/answer.txt'")
    assert f"; did you mean '{study_file}'?" in line
    assert not (tmp_path / "home").exists()


def test_an_unreachable_database_is_one_line_without_its_password_and_exit_code_75(hpopt, study_file):
    result = hpopt("run", study_file, HPOPT_STORAGE="postgresql://me:s3cret@127.0.0.1:1/nowhere")
    (line,) = result.stderr.splitlines()
    assert line.startswith("hpopt: postgresql://me@127.0.0.1:1/nowhere: connection to server")
    assert "s3cret" not in line
    assert (result.code, result.stdout) == (75, "")


def test_a_database_without_tables_is_refused_with_the_command_that_creates_them(hpopt, database_url):
    assert "run `hpopt db upgrade`" in hpopt.refused("status", HPOPT_STORAGE=database_url)
    assert hpopt("db", "upgrade", HPOPT_STORAGE=database_url).code == 0
    assert hpopt("status", HPOPT_STORAGE=database_url).code == 0


def test_create_creates_the_tables_and_prints_the_name_of_the_study(hpopt, database_url, study_file):
    assert hpopt("create", study_file, HPOPT_STORAGE=database_url) == (0, "answer\n", "")


def test_an_unknown_study_is_refused_with_the_nearest_name(created):
    line = created.refused("best", "anwser")
    assert "no study 'anwser'" in line
    assert "did you mean 'answer'?" in line


def test_another_space_under_the_same_name_is_refused_with_the_difference(created, study_file):
    study_file.write_text(study_file.read_text().replace("0.3", "0.5"))
    assert "search_space.learning_rate: high 0.5, was 0.3" in created.refused("create", study_file)


def test_best_has_exit_code_3_while_no_trial_is_complete(created):
    """A script that waits for the answer must distinguish "not yet" from an error."""
    assert created("best", "answer") == (3, "", "hpopt: study 'answer' has no completed trial yet\n")


def test_status_as_json_has_the_state_and_the_plan(created):
    status = json.loads(created.output("status", "answer", "--json"))
    assert (status["name"], status["planned_trials"], status["state"]) == ("answer", 3, "open")
    assert (status["finished_reason"], status["best"]) == (None, None)


def test_status_of_a_running_study_shows_the_findings_of_the_last_analysis(leaky, migrated_url):
    """It is asked often, so it must not wait for an analysis."""
    with closing(Database(migrated_url)) as database, database.begin() as connection:
        connection.exec_driver_sql("update public.trials set state = 'RUNNING' where number = 31")
        connection.exec_driver_sql("update hpopt.attempt set outcome = null, ended_at = null where seed = 31")
    assert json.loads(leaky.output("status", "quickstart", "--json"))["findings"] == []
    leaky.output("best", "quickstart")
    findings = json.loads(leaky.output("status", "quickstart", "--json"))["findings"]
    assert "leak" in [finding["code"] for finding in findings]


def test_running_a_finished_study_that_is_paused_answers_and_says_so(leaky, tmp_path):
    (tmp_path / "quickstart.toml").write_text(QUICKSTART)
    leaky.output("pause", "quickstart", "--reason", "the nodes are needed")
    result = leaky("run", tmp_path / "quickstart.toml", "--home", tmp_path)
    assert result.code == 0
    assert "cost: 32 trials" in result.stdout
    line = "study 'quickstart' is paused: the nodes are needed; `hpopt resume quickstart` resumes it"
    assert result.stderr == f"{line}\n"


@pytest.mark.parametrize("command", ["best", "status"])
def test_findings_are_shown_below_the_answer(command, leaky):
    output = leaky.output(command, "quickstart")
    (line,) = (line for line in output.splitlines() if "leak" in line)
    assert line.startswith("error leak")
    assert LEAK in line
    assert "Split by documents" in " ".join(output.split())


@pytest.mark.parametrize("command", [("best", "--format", "json"), ("status", "--json")])
def test_json_output_has_the_findings(command, leaky):
    name, *options = command
    findings = json.loads(leaky(name, "quickstart", *options).stdout)["findings"]
    (leak,) = (finding for finding in findings if finding["code"] == "leak")
    assert leak["evidence"]["train_val_overlap"] == 0.93


def test_best_as_arguments_has_them_on_standard_output_and_errors_on_standard_error(leaky):
    """The arguments become part of a command line, where a warning would be lost."""
    result = leaky("best", "quickstart", "--format", "args")
    assert result.code == 0
    assert result.stdout.startswith("--learning_rate ")
    assert len(result.stdout.splitlines()) == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {LEAK}")


def test_the_password_is_not_in_the_output_of_a_command(created, migrated_url):
    password = migrated_url.split(":")[2].split("@")[0]
    for arguments in (["status"], ["best", "answer"], ["db", "upgrade"], ["db", "sql", "select nonsense"]):
        result = created(*arguments)
        assert password not in result.stdout + result.stderr


def test_a_dashboard_that_other_machines_reach_needs_a_password(migrated):
    assert "needs a password" in migrated.refused("dashboard", "--host", "192.168.1.5")


def test_create_prints_what_changes_on_standard_error(created, study_file):
    study_file.write_text(study_file.read_text().replace("trials = 3", "trials = 5"))
    assert created("create", study_file) == (0, "answer\n", "changed: budget.trials: 5, was 3\n")


def rows_of(url):
    """Return the number of rows of each table that has some, except those of the version."""
    with closing(Database(url)) as database, database.begin() as connection:
        names = connection.scalars(
            sa.text(
                "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname in ('public', 'hpopt')"
            )
        ).all()
        counts = {name: connection.scalar(sa.text(f"select count(*) from {name}")) for name in names}
    return {name: n for name, n in counts.items() if n and "version" not in name}


def test_delete_leaves_nothing_of_a_study_and_the_others_as_they_are(created, migrated_url, study_file, tmp_path):
    other = rows_of(migrated_url)
    with closing(Database(migrated_url)) as database:
        text = study_file.read_text().replace('"answer"', '"old"')
        study = studies.create_study(database, parse_study_file(text, "old.toml"))
        folder = studies.run_folder(tmp_path, "old", study.created_at)
        worker_id = attempts.register_worker(database, study, host="here", pid=1, device="cpu")
        attempt = attempts.reserve(database, study, worker_id)
        params = {"learning_rate": 0.02}
        attempts.start(database, study, attempt, params, seed=1, config={}, data_fingerprint=None)
        evaluation = Evaluation(step=1, n_steps=9, tokens=1, seconds=1.0, metrics={"val_loss": 1.0})
        evaluations.record(database, study, attempt, evaluation)
        attempts.finish(database, attempt, Outcome.COMPLETE, value=1.0)
    (folder / "1").mkdir(parents=True)
    line = created.refused("delete", "old", "--yes", "--home", tmp_path)
    assert line == "hpopt: study 'old' has 1 running worker; `hpopt stop old` ends them, or pass --force"
    line = created.refused("delete", "old", "--force", "--home", tmp_path)
    assert line.startswith(
        "hpopt: --yes: required where nobody can be asked; deletes study 'old' with 1 trial and 1 running worker in"
    )
    assert rows_of(migrated_url) != other
    with closing(Database(migrated_url)) as database:
        attempts.end_worker(database, worker_id, "done")
    line = created.output("delete", "old", "--force", "--yes", "--home", tmp_path)
    assert line.startswith("deleted study 'old' with 1 trial in ")
    assert str(folder) in line
    assert (rows_of(migrated_url), folder.exists()) == (other, False)


def test_deleting_an_unknown_study_is_refused_with_the_nearest_name(created):
    assert "did you mean 'answer'?" in created.refused("delete", "anwser", "--yes")


def test_a_study_whose_file_cannot_be_read_can_be_deleted(created, migrated_url):
    with closing(Database(migrated_url)) as database, database.begin() as connection:
        connection.execute(sa.text("update hpopt.study set file = 'broken'"))
    assert created.output("delete", "answer", "--yes").startswith("deleted study 'answer' with 1 trial in")


@pytest.fixture
def reader(leaky, migrated_url, new_login):
    """The command line of a user who may only read, on the finished study `quickstart`."""
    leaky.environment = {"HPOPT_STORAGE": new_login(migrated_url, "hpopt_reader")}
    return leaky


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["status", "quickstart"],
        ["status", "quickstart", "--json"],
        ["best", "quickstart"],
        ["best", "quickstart", "--format", "toml"],
        ["db", "sql", "select * from hpopt.learning_curves"],
        ["db", "url", "--libpq"],
    ],
    ids=" ".join,
)
def test_a_reader_can_run_every_command_that_reads(reader, command):
    result = reader(*command)
    assert result.code == 0, result
    assert "permission denied" not in result.stderr


def test_a_reader_can_write_a_report(reader, tmp_path):
    assert reader("report", "quickstart", "--output", tmp_path).code == 0
    assert (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["pause", "quickstart"],
        ["stop", "quickstart"],
        ["resume", "quickstart"],
        ["enqueue", "quickstart", "learning_rate=0.02"],
        ["create", "{study_file}"],
        ["run", "{study_file}"],
        ["worker", "quickstart", "--device", "cpu"],
    ],
    ids=" ".join,
)
def test_a_reader_is_refused_what_writes_in_one_line(reader, command, study_file):
    result = reader(*(word.format(study_file=study_file) for word in command))
    assert (result.code, result.stdout) == (2, ""), result
    assert "permission denied" in result.stderr.splitlines()[-1]
    assert "a bug in hpopt" not in result.stderr
