"""`hpopt pause`, `resume`, `stop` and `enqueue`."""

import json
import re
import shlex
from contextlib import closing

import pytest

from hpopt.cli.control import parse_assignments
from hpopt.errors import InputError
from hpopt.search import sampler
from hpopt.storage import studies
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file


def test_pause_resume_and_stop_print_the_state_however_often_they_are_repeated(created):
    for _ in range(2):
        assert created.output("pause", "answer") == "answer is paused; no trial is running, workers wait\n"
    for _ in range(2):
        assert created.output("resume", "answer") == "answer is open; no trial is running\n"
    for _ in range(2):
        assert created.output("stop", "answer") == "answer is stopped; no trial is running, workers exit\n"
    assert created.output("resume", "answer") == "answer is open; no trial is running\n"


def test_a_stopped_study_cannot_be_paused(created):
    created.output("stop", "answer")
    line = created.refused("pause", "answer")
    assert line == "hpopt: study 'answer' is stopped; `hpopt resume answer` opens it again"


@pytest.mark.parametrize("command", ["pause", "resume", "stop", "enqueue"])
def test_an_unknown_study_is_refused_with_the_nearest_name(command, created):
    arguments = ["learning_rate=0.1"] if command == "enqueue" else []
    assert "did you mean 'answer'?" in created.refused(command, "anwser", *arguments)


def test_the_reason_of_a_pause_is_shown_with_the_state(created):
    created.output("pause", "answer", "--reason", "the nodes are needed")
    assert "paused: the nodes are needed" in created.output("status")
    line = "study 'answer' is paused: the nodes are needed; `hpopt resume answer` resumes it"
    assert line in created.output("status", "answer")
    one = json.loads(created.output("status", "answer", "--json"))
    (same,) = json.loads(created.output("status", "--json"))
    for status in (one, same):
        assert (status["state"], status["state_reason"]) == ("paused", "the nodes are needed")


def test_creating_a_study_again_does_not_resume_it(created, study_file):
    created.output("pause", "answer")
    created.output("create", study_file)
    assert json.loads(created.output("status", "answer", "--json"))["state"] == "paused"


@pytest.fixture
def run(created, study_file, tmp_path):
    """`hpopt run` on the study `answer`, which must not start a worker."""

    def run():
        result = created("run", study_file, "--home", tmp_path / "home")
        assert not (tmp_path / "home" / "logs").exists()
        return result

    return run


def test_a_paused_study_is_not_run_and_the_command_that_resumes_it_is_named(created, run):
    """Its workers would wait for a resume forever."""
    created.output("pause", "answer", "--reason", "the nodes are needed")
    line = "study 'answer' is paused: the nodes are needed; `hpopt resume answer` resumes it"
    assert run() == (1, "", f"hpopt: {line}\n")


def test_a_stopped_study_answers_without_training(created, run):
    created.output("stop", "answer")
    result = run()
    assert result.code == 3, result
    assert "answer: no trial has completed yet" in result.stdout


def test_watching_a_stopped_study_ends(created):
    created.output("stop", "answer")
    assert "stopped: manually" in created("status", "answer", "--watch").stdout


def test_failed_trials_are_named_all_or_by_number(created):
    line = "no trial has failed; answer is open; no trial is running\n"
    assert created.output("retry", "answer", "--failed") == line
    line = "hpopt: study 'answer': trial 0 has not failed; no trial has failed"
    assert created.refused("retry", "answer", "0") == line
    line = "hpopt: study 'answer': there is no trial 99; no trial has failed"
    assert created.refused("retry", "answer", "99") == line
    for arguments in ([], ["3", "--failed"]):
        line = "hpopt: expected the numbers of failed trials, or --failed for all of them"
        assert created.refused("retry", "answer", *arguments) == line


def test_a_configuration_is_enqueued_once(created):
    first = created.output("enqueue", "answer", "learning_rate=5e-2")
    assert first == "trial 1 is enqueued; it is tried after 1 waiting trial\n"
    assert created.output("enqueue", "answer", "learning_rate=0.05") == "already enqueued or tried as trial 1\n"


def test_a_configuration_is_enqueued_with_other_seeds(created):
    created.output("enqueue", "answer", "learning_rate=0.05")
    line = "trial 2 is enqueued with seed 1; it is tried after 2 waiting trials\n"
    assert created.output("enqueue", "answer", "learning_rate=0.05", "seed=1") == line
    again = "already enqueued or tried as trial 2\n"
    assert created.output("enqueue", "answer", "seed=1", "learning_rate=0.05") == again
    line = created.output("enqueue", "answer", "learning_rate=0.05", "--seeds", "2")
    assert line.startswith("trials 3 and 4 are enqueued with seeds 2 and 3, but not all of them will run: ")


def test_the_remedy_of_a_tie_is_a_command_that_works(created, migrated_url):
    with closing(Database(migrated_url)) as database:
        study = studies.load_study(database, "answer")
        optuna_study = studies.open_optuna(database, study)
        for k in range(3):
            trial = optuna_study.ask(sampler.to_distributions(study.file.search_space))
            optuna_study.tell(trial, 1.0 + k / 1000)
    finding = next(
        f for f in json.loads(created.output("best", "answer", "--format", "json"))["findings"] if f["code"] == "tie"
    )
    created.output("stop", "answer")
    (command,) = re.findall("`hpopt (confirm [^`]*)`", finding["remedy"])
    line = "answer@confirm: 2 configurations with 4 fresh seeds each, 8 runs, are enqueued; "
    assert created.output(*shlex.split(command)).startswith(line)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["learning_rate=0.1", "seed=1.5"], "seed: '1.5' is not a whole number of at least 0"),
        (["learning_rate=0.1", "seed=1", "--seeds", "3"], "--seeds: the seeds are chosen; remove seed or --seeds"),
        (["seed=1"], "expected NAME=VALUE, or --trial"),
        (["--trial", "7"], "study 'answer' has no trial 7 with parameters"),
    ],
)
def test_a_seed_or_trial_that_cannot_be_enqueued_is_refused(arguments, line, created):
    assert created.refused("enqueue", "answer", *arguments) == f"hpopt: {line}"


def test_a_configuration_beyond_the_budget_is_enqueued_with_the_remedy(created):
    created.output("enqueue", "answer", "learning_rate=0.05")
    created.output("enqueue", "answer", "learning_rate=0.06")
    line = created.output("enqueue", "answer", "learning_rate=0.07")
    remedy = "change the budget in the study file and run `hpopt create FILE`"
    assert line == f"trial 3 is enqueued, but will not run: trials budget reserved by earlier trials (3); {remedy}\n"


def test_a_configuration_of_a_stopped_study_is_enqueued_with_the_command_that_opens_it(created):
    created.output("stop", "answer")
    line = created.output("enqueue", "answer", "learning_rate=0.05")
    assert line == "trial 1 is enqueued, but will not run: the study is stopped; run `hpopt resume answer`\n"


def test_the_parameters_that_further_seeds_need_are_named(created, study_file):
    text = study_file.read_text().replace("answer", "two")
    study_file.write_text(text + "momentum = { low = 0.8, high = 0.99 }\nns_steps = { choices = [3, 5] }\n")
    created.output("create", study_file)
    assert created.refused("enqueue", "two", "learning_rate=0.05", "--seeds", "2") == (
        "hpopt: --seeds: momentum would be sampled, so that no two trials have one configuration; "
        "give momentum=VALUE and ns_steps=VALUE too, or all parameters of a trial by --trial"
    )


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("learning_rate=0.5", "learning_rate: 0.5 is outside 0.001 to 0.3"),
        ("learning_rate=fast", "learning_rate: 'fast' is not a number"),
        ("learning_rate=[0.1]", "learning_rate: '[0.1]' is not a number"),
        ("learning_rate=0.1\nns_steps=5", r"learning_rate: '0.1\nns_steps=5' is not a number"),
        ("learning_rat=0.1", "learning_rat: not searched; did you mean 'learning_rate'?"),
        ("learning_rate", "expected NAME=VALUE, got 'learning_rate'"),
    ],
)
def test_a_value_outside_of_the_search_space_is_not_enqueued(assignment, line, created):
    assert created.refused("enqueue", "answer", assignment) == f"hpopt: {line}"


def test_assignments_have_the_types_of_a_study_file_and_words_need_no_quotes():
    text = """
    name = "typed"
    [budget]
    trials = 1
    [search_space]
    learning_rate = { low = 1e-3, high = 0.3 }
    ns_steps = { low = 1, high = 9, type = "int" }
    optimizer = { choices = ["muon", "adamw"] }
    compile = { choices = [true, false] }
    """
    space = parse_study_file(text, "typed.toml").file.search_space
    params = parse_assignments(["optimizer=muon", "ns_steps=7", "learning_rate=1e-2", "compile=true"], space)
    assert params == {"optimizer": "muon", "ns_steps": 7, "learning_rate": 0.01, "compile": True}
    assert [type(value) for value in params.values()] == [str, int, float, bool]
    assert parse_assignments(['optimizer="adamw"'], space) == {"optimizer": "adamw"}
    assert parse_assignments(["learning_rate=.25"], space) == {"learning_rate": 0.25}
    with pytest.raises(InputError, match="ns_steps: given twice, as 7 and as 8"):
        parse_assignments(["ns_steps=7", "ns_steps=8"], space)
    with pytest.raises(InputError, match=r"ns_steps: 7\.5 is not a whole number"):
        parse_assignments(["ns_steps=7.5"], space)
    with pytest.raises(InputError, match=r"optimizer: 'muom' is not one of muon, adamw; did you mean 'muon'\?"):
        parse_assignments(["optimizer=muom"], space)
