"""What a user types and what comes back: exit codes, one line for what is wrong, nothing slow before it is needed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finished_trials import make_finished_study
from hpopt.cli.assignments import read_assignments

from hpopt import __version__
from hpopt.errors import InputError
from hpopt.storage import migrate
from hpopt.storage.connect import open_database
from hpopt.storage.database import Database
from hpopt.storage.studies import create_study
from hpopt.study.reading import parse_study_file

QUICKSTART = (Path(__file__).parents[2] / "studies" / "quickstart.toml").read_text()
STUDY = """
name = "answer"
[budget]
trials = 3
[search_space]
learning_rate = { low = 1e-3, high = 0.3, log = true }
"""


def hpopt(*arguments, **environment):
    """Run the command line as a user does, in an environment without a database of the user's."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HPOPT_")}
    return subprocess.run(
        [sys.executable, "-m", "hpopt", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**inherited, **environment},
    )


def refused(*arguments, **environment):
    """Give the one line with which the input is refused."""
    done = hpopt(*arguments, **environment)
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "answer.toml"
    path.write_text(STUDY)
    return path


@pytest.mark.parametrize("arguments", [["--help"], ["check"]])
def test_help_and_check_start_without_the_heavy_libraries(arguments, study_file):
    """Torch takes seconds to import; a typo in a study file should not."""
    if arguments == ["check"]:
        arguments = ["check", str(study_file)]
    code = f"""
import sys
sys.argv = ["hpopt", *{arguments!r}]
from hpopt.cli.main import main
try: main()
except SystemExit as end: assert end.code == 0, end.code
heavy = {{"torch", "optuna", "sqlalchemy", "transformers", "plotly", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_check_prints_the_plan_and_touches_nothing(study_file, tmp_path):
    done = hpopt("check", study_file)
    assert done.returncode == 0
    assert "learning_rate" in done.stdout
    assert "budget: trials 3" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.toml"]


def test_check_says_when_a_study_measures_what_it_trains_on(study_file):
    """The famous result of the write-up was memorized text; the split that reproduces it must not pass for one."""
    study_file.write_text(STUDY + '[fixed]\nsplit = "overlapping_windows"\n')
    assert "leak: " in hpopt("check", study_file).stdout


def test_a_bad_study_file_is_refused_before_a_database_is_made(study_file, tmp_path):
    study_file.write_text(STUDY.replace("learning_rate", "learning_rat"))
    line = refused("run", study_file, "--home", tmp_path / "home")
    assert line.startswith(f"hpopt: {study_file}: search_space.learning_rat: ")
    assert "did you mean 'learning_rate'?" in line
    assert not (tmp_path / "home").exists()


def test_an_unreachable_database_is_refused_without_its_password(study_file):
    line = refused("run", study_file, HPOPT_STORAGE="postgresql://me:s3cret@127.0.0.1:1/nowhere")
    assert line.startswith("hpopt: postgresql://me@127.0.0.1:1/nowhere: connection to server")
    assert "s3cret" not in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run"], "Missing argument 'file'"),
        (["run", "x.toml", "--workers", "0"], "--workers"),
        (["run", "missing.toml"], "missing.toml: no such file"),
        (["params", "learnig_rate"], "did you mean 'learning_rate'?"),
        (["best", "x", "--format", "jsn"], "--format: 'jsn' is not one of table, json, toml, yaml, env, args"),
        (["status", "--home", "/nonexistent"], "/nonexistent: no database here yet; `hpopt run FILE` makes one"),
    ],
)
def test_what_cannot_be_understood_is_answered_in_one_line(arguments, words):
    assert words in refused(*arguments)


def test_an_unknown_study_names_the_nearest(database_url, study_file):
    hpopt("create", study_file, HPOPT_STORAGE=database_url)
    assert "no study 'anwser'" in (line := refused("best", "anwser", HPOPT_STORAGE=database_url))
    assert "did you mean 'answer'?" in line


def test_a_database_without_tables_is_refused_with_the_remedy(database_url):
    assert "run `hpopt db upgrade`" in refused("status", HPOPT_STORAGE=database_url)
    assert hpopt("db", "upgrade", HPOPT_STORAGE=database_url).returncode == 0
    assert hpopt("status", HPOPT_STORAGE=database_url).returncode == 0


def test_best_has_its_own_exit_code_while_there_is_no_answer(database_url, study_file):
    """A script that waits for the answer must tell `not yet` from `failed`."""
    assert hpopt("create", study_file, HPOPT_STORAGE=database_url).stdout == "answer\n"
    done = hpopt("best", "answer", HPOPT_STORAGE=database_url)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "hpopt: study 'answer' has no completed trial yet\n"


@pytest.fixture
def leaky(database_url):
    """A finished study whose trials all validated on what they trained on."""
    database = Database(database_url)
    migrate.upgrade(database)
    make_finished_study(database, QUICKSTART, 32, metrics={"train_val_overlap": 0.93})
    database.close()
    return {"HPOPT_STORAGE": database_url}


def test_status_of_a_study_that_runs_is_not_kept_waiting_by_an_analysis(leaky):
    """It is asked again and again; what was last found is shown."""
    database = Database(leaky["HPOPT_STORAGE"])
    with database.begin() as connection:
        connection.exec_driver_sql("update public.trials set state = 'RUNNING' where number = 31")
        connection.exec_driver_sql("update hpopt.attempt set outcome = null, ended_at = null where seed = 31")
    database.close()
    assert json.loads(hpopt("status", "quickstart", "--json", **leaky).stdout)["findings"] == []
    hpopt("best", "quickstart", **leaky)
    codes = [each["code"] for each in json.loads(hpopt("status", "quickstart", "--json", **leaky).stdout)["findings"]]
    assert "leak" in codes


LEAK = "93% of the validation text is also training text"


@pytest.mark.parametrize("verb", ["best", "status"])
def test_what_to_be_wary_of_is_shown_with_the_answer(verb, leaky):
    """A number that is wrong does more harm than none."""
    done = hpopt(verb, "quickstart", **leaky)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = (line for line in done.stdout.splitlines() if "leak" in line)
    assert line.startswith("error leak")
    assert LEAK in line
    assert "Split by documents" in " ".join(done.stdout.split())


@pytest.mark.parametrize(("verb", "form"), [("best", ["--format", "json"]), ("status", ["--json"])])
def test_programs_are_told_what_to_be_wary_of(verb, form, leaky):
    told = json.loads(hpopt(verb, "quickstart", *form, **leaky).stdout)
    (leak,) = (each for each in told["findings"] if each["code"] == "leak")
    assert leak["evidence"]["train_val_overlap"] == 0.93


def test_a_training_job_gets_its_arguments_on_one_output_and_errors_on_the_other(leaky):
    """They are put into a command line, where nobody would read a warning."""
    done = hpopt("best", "quickstart", "--format", "args", **leaky)
    assert done.stdout.startswith("--learning_rate ")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {LEAK}")


def test_another_space_under_the_same_name_is_refused_with_the_difference(database_url, study_file):
    hpopt("create", study_file, HPOPT_STORAGE=database_url)
    study_file.write_text(STUDY.replace("0.3", "0.5"))
    line = refused("create", study_file, HPOPT_STORAGE=database_url)
    assert "search_space.learning_rate: high 0.5, was 0.3" in line


def test_status_as_json_is_exact(database_url, study_file):
    hpopt("create", study_file, HPOPT_STORAGE=database_url)
    status = json.loads(hpopt("status", "answer", "--json", HPOPT_STORAGE=database_url).stdout)
    assert (status["name"], status["planned_trials"], status["over"], status["best"]) == ("answer", 3, None, None)


def test_sql_changes_nothing(database_url, study_file):
    hpopt("create", study_file, HPOPT_STORAGE=database_url)
    line = refused("db", "sql", "delete from hpopt.study", HPOPT_STORAGE=database_url)
    assert "read-only" in line
    rows = hpopt("db", "sql", "--json", "select study_name from hpopt.trials", HPOPT_STORAGE=database_url).stdout
    assert json.loads(rows) == [{"study_name": "answer"}]


def test_a_dashboard_that_others_could_reach_is_refused_in_one_line(database_url):
    hpopt("db", "upgrade", HPOPT_STORAGE=database_url)
    assert "needs a password" in refused("dashboard", "--host", "192.168.1.5", HPOPT_STORAGE=database_url)


def test_a_worker_that_would_be_taken_for_dead_between_two_heartbeats_is_refused(study_file):
    line = refused("run", study_file, "--stale-after", "5")
    assert line == "hpopt: --stale-after: 5 s is below three heartbeats of 5 s"


def test_sql_takes_one_query(database_url, study_file):
    """Several in one go could leave the transaction that changes nothing."""
    hpopt("create", study_file, HPOPT_STORAGE=database_url)
    line = refused("db", "sql", "commit; delete from hpopt.study", HPOPT_STORAGE=database_url)
    assert "one query at a time" in line


def test_the_version_is_told():
    assert hpopt("--version").stdout == f"{__version__}\n"


def test_params_explains_one_and_lists_all():
    assert "raising it" in hpopt("params", "learning_rate").stdout
    assert "changing it" in hpopt("params", "optimizer").stdout
    assert "momentum" in hpopt("params").stdout


def test_the_password_is_nowhere_in_what_a_command_prints(database_url, study_file):
    password = database_url.split(":")[2].split("@")[0]
    hpopt("create", study_file, HPOPT_STORAGE=database_url)
    for arguments in (["status"], ["best", "answer"], ["db", "upgrade"], ["db", "sql", "select nonsense"]):
        done = hpopt(*arguments, HPOPT_STORAGE=database_url)
        assert password not in done.stdout + done.stderr


@pytest.mark.parametrize("verb", ["check", "create", "run"])
def test_a_study_of_text_that_is_not_here_is_refused_before_a_database_is_made(verb, study_file, tmp_path):
    """What, where, the value and the nearest, within a second."""
    study_file.write_text(f'{STUDY}\n[fixed]\ndataset = "{tmp_path}/answer.txt"\n')
    line = refused(verb, study_file, HPOPT_HOME=str(tmp_path / "home"))
    assert line.startswith(
        f"hpopt: {study_file}: fixed.dataset: '{tmp_path}/answer.txt' does not exist;"
        f" did you mean '{study_file}'?; known: 'python-stdlib'"
    )
    assert not (tmp_path / "home").exists()


@pytest.fixture
def created(database_url, study_file):
    """Give what runs a verb on a database with the study `answer`, and gives its standard output."""
    with open_database(database_url, study_file.parent, create=True) as database:
        create_study(database, parse_study_file(study_file.read_text(), str(study_file)))

    def run(*arguments):
        done = hpopt(*arguments, HPOPT_STORAGE=database_url)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    run.refused = lambda *arguments: refused(*arguments, HPOPT_STORAGE=database_url)
    run.hpopt = lambda *arguments: hpopt(*arguments, HPOPT_STORAGE=database_url)
    return run


def test_pause_resume_and_stop_say_what_holds_however_often(created):
    for _ in range(2):
        assert created("pause", "answer") == "answer is paused; no trial is running, workers wait\n"
    for _ in range(2):
        assert created("resume", "answer") == "answer is open; no trial is running\n"
    for _ in range(2):
        assert created("stop", "answer") == "answer is stopped; no trial is running, workers leave\n"
    assert created("resume", "answer") == "answer is open; no trial is running\n"


@pytest.mark.parametrize("verb", ["pause", "resume", "stop", "enqueue"])
def test_steering_an_unknown_study_names_the_nearest(verb, created):
    more = ["learning_rate=0.1"] if verb == "enqueue" else []
    assert "did you mean 'answer'?" in created.refused(verb, "anwser", *more)


def test_why_a_study_is_paused_is_told_wherever_it_is_shown(created):
    created("pause", "answer", "--reason", "the nodes are needed")
    assert "paused: the nodes are needed" in created("status")
    assert "study 'answer' is paused: the nodes are needed; `hpopt resume answer`" in created("status", "answer")
    shown = json.loads(created("status", "answer", "--json"))
    assert (shown["state"], shown["state_reason"]) == ("paused", "the nodes are needed")
    (shown,) = json.loads(created("status", "--json"))
    assert (shown["state"], shown["state_reason"]) == ("paused", "the nodes are needed")


def test_creating_a_study_again_does_not_resume_it(created, study_file):
    created("pause", "answer")
    created("create", study_file)
    assert json.loads(created("status", "answer", "--json"))["state"] == "paused"


def test_a_paused_study_is_not_run_and_says_how_to_go_on(created, study_file, tmp_path):
    """It would hang for ever: its workers would wait for a resume."""
    created("pause", "answer", "--reason", "the nodes are needed")
    done = created.hpopt("run", study_file, "--home", tmp_path / "home")
    assert (done.returncode, done.stdout) == (1, "")
    line = "study 'answer' is paused: the nodes are needed; `hpopt resume answer` lets it go on"
    assert done.stderr == f"hpopt: {line}\n"
    assert not (tmp_path / "home" / "logs").exists()


def test_a_stopped_study_answers_without_training(created, study_file, tmp_path):
    created("stop", "answer")
    done = created.hpopt("run", study_file, "--home", tmp_path / "home")
    assert done.returncode == 3, done
    assert "answer: no trial has completed yet" in done.stdout
    assert not (tmp_path / "home" / "logs").exists()


def test_watching_a_stopped_study_ends(created):
    created("stop", "answer")
    assert "stopped: by hand" in created("status", "answer", "--watch")


def test_a_configuration_is_enqueued_once(created):
    assert created("enqueue", "answer", "learning_rate=5e-2") == "enqueued; it is tried after 1 other that waits\n"
    assert created("enqueue", "answer", "learning_rate=0.05") == "already enqueued or tried as trial 1\n"


def test_what_the_budget_does_not_reach_is_told_so(created):
    created("enqueue", "answer", "learning_rate=0.05")
    created("enqueue", "answer", "learning_rate=0.06")
    line = created("enqueue", "answer", "learning_rate=0.07")
    remedy = "raise it in the file and `hpopt create` it again"
    assert line == f"enqueued; the budget of 3 trials is taken: {remedy}\n"


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("learning_rate=0.5", "learning_rate: 0.5 is outside 0.001 to 0.3"),
        ("learning_rate=fast", "learning_rate: 'fast' is not a number"),
        ("learning_rate=[0.1]", "learning_rate: '[0.1]' is not a number"),
        ("learning_rate=0.1\nns_steps=5", r"learning_rate: '0.1\nns_steps=5' is not a number"),
        ("learning_rat=0.1", "learning_rat: not searched; did you mean 'learning_rate'?"),
        ("learning_rate", "'learning_rate' is no NAME=VALUE"),
    ],
)
def test_what_the_space_does_not_hold_is_not_enqueued(typed, line, created):
    assert created.refused("enqueue", "answer", typed) == f"hpopt: {line}"


def test_values_are_typed_as_in_a_study_file_and_words_without_quotes():
    space = """
    learning_rate = { low = 1e-3, high = 0.3 }
    ns_steps = { low = 1, high = 9, type = "int" }
    optimizer = { choices = ["muon", "adamw"] }
    compile = { choices = [true, false] }
    """
    file = parse_study_file(f'name = "typed"\n[budget]\ntrials = 1\n[search_space]\n{space}', "typed.toml")
    typed = ["optimizer=muon", "ns_steps=7", "learning_rate=1e-2", "compile=true"]
    assert read_assignments(typed, file) == {
        "optimizer": "muon",
        "ns_steps": 7,
        "learning_rate": 0.01,
        "compile": True,
    }
    assert read_assignments(['optimizer="adamw"'], file) == {"optimizer": "adamw"}
    with pytest.raises(InputError, match="ns_steps: there twice, as 7 and as 8"):
        read_assignments(["ns_steps=7", "ns_steps=8"], file)
    with pytest.raises(InputError, match=r"ns_steps: 7\.5 is not a whole number"):
        read_assignments(["ns_steps=7.5"], file)


@pytest.mark.parametrize("arguments", [["status"], ["status", "answer", "--json"], ["params"], ["--help"]])
def test_output_that_nobody_reads_ends_the_command_without_a_word(arguments, created, database_url):
    """As `hpopt ... | head` does; a shell shows 141, the number of other programs."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "hpopt", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        env={**os.environ, "HPOPT_STORAGE": database_url},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize("url", ["nowhere..invalid:5432/x", "{host}/not_there", "{host}/{name}"])
def test_a_worker_refuses_at_once_what_waiting_does_not_mend(url, database_url):
    """Host, database and password are typed wrong, not away."""
    secret, address = database_url.split("//")[1].split("@")
    host, name = address.split("/")
    user = secret if url == "{host}/not_there" else "hpopt:wrong"
    line = refused("worker", "x", "--storage", f"postgresql://{user}@{url.format(host=host, name=name)}")
    assert "waiting" not in line


def test_a_worker_waits_for_a_database_that_is_away_until_it_is_stopped():
    command = [sys.executable, "-m", "hpopt", "worker", "x", "--storage", "postgresql://me:s3cret@127.0.0.1:1/nowhere"]
    worker = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    line = worker.stderr.readline()
    assert line.startswith("waiting up to 30 s for the database: postgresql://me@127.0.0.1:1/nowhere: ")
    worker.send_signal(signal.SIGTERM)
    _, rest = worker.communicate(timeout=20)
    assert worker.returncode == 75
    assert rest.startswith("hpopt: the database is away: ")


@pytest.mark.long
def test_a_worker_asks_to_be_run_again_when_the_database_stays_away():
    started = time.monotonic()
    done = hpopt("worker", "x", "--storage", "postgresql://me:s3cret@127.0.0.1:1/nowhere")
    assert done.returncode == 75
    assert 30 < time.monotonic() - started < 60
    assert done.stderr.count("waiting up to 30 s") == 1
    assert "s3cret" not in done.stderr


def test_a_journal_that_is_none_is_refused(created, tmp_path):
    assert created.refused("db", "replay", tmp_path / "none.jsonl") == f"hpopt: {tmp_path}/none.jsonl: no such file"
    (tmp_path / "text.jsonl").write_text("text")
    assert created.refused("db", "replay", tmp_path / "text.jsonl").startswith(f"hpopt: {tmp_path}/text.jsonl: not a")
