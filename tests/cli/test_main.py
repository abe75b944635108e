"""Exit codes, one line for each error, and no import before it is needed."""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing

import psycopg2
import pytest

from hpopt import __version__


@pytest.mark.parametrize("arguments", [["--help"], ["check"]])
def test_help_and_check_do_not_import_the_large_libraries(arguments, study_file):
    """Torch takes seconds to import; the message about a typo in a study file should not."""
    if arguments == ["check"]:
        arguments = ["check", str(study_file)]
    code = f"""
import sys
sys.argv = ["hpopt", *{arguments!r}]
from hpopt.cli.main import main
try: main()
except SystemExit as end: assert end.code == 0, end.code
imported = {{"torch", "optuna", "sqlalchemy", "transformers", "plotly", "matplotlib"}} & set(sys.modules)
assert not imported, imported
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run"], "Missing argument 'file'"),
        (["run", "x.toml", "--workers", "0"], "--workers"),
        (["run", "missing.toml"], "missing.toml: no such file"),
        (["params", "learnig_rate"], "did you mean 'learning_rate'?"),
        (["best", "x", "--format", "jsn"], "--format: 'jsn' is not one of table, json, toml, yaml, env, args"),
        (["status", "--watch"], "--watch: name the study to follow"),
        (
            ["status", "--home", "/nonexistent"],
            "/nonexistent: no database here yet; `hpopt run FILE` creates one, --storage names another",
        ),
    ],
)
def test_a_wrong_command_line_is_refused_with_one_line(hpopt, arguments, words):
    assert words in hpopt.refused(*arguments)


def test_columns_give_the_width_of_what_is_printed_to_a_pipe():
    command = [sys.executable, "-m", "hpopt", "params"]
    done = subprocess.run(command, env={**os.environ, "COLUMNS": "100"}, capture_output=True, text=True, check=True)
    assert {len(line) for line in done.stdout.splitlines()} <= set(range(101))


@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_long_import_is_announced_and_ctrl_c_ends_it_with_one_line(verb, study_file, tmp_path):
    (tmp_path / "slow.py").write_text("import threading\nthreading.Event().wait()")
    study_file.write_text('objective = "slow:train"\n' + study_file.read_text())
    # The children of a shell's background job ignore SIGINT.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from hpopt.study import objectives; objectives.SLOW_IMPORT_S = 0; from hpopt.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, verb, str(study_file), "--home", "home"]
    with subprocess.Popen(
        command[: -2 if verb == "check" else None], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr.readline() == "hpopt: the import of slow is still running\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "hpopt: interrupted\n"
    assert process.returncode == 130


def test_the_version_is_printed(hpopt):
    assert hpopt.output("--version") == f"{__version__}\n"


def test_a_command_without_arguments_prints_its_help_and_has_exit_code_2(hpopt):
    result = hpopt()
    assert result.code == 2
    assert result.stderr.startswith("Usage: ")


def test_debug_shows_the_traceback_of_an_error(hpopt):
    result = hpopt("run", "missing.toml", "--debug")
    assert result.code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("hpopt: missing.toml: no such file")


def test_params_explains_one_parameter_and_lists_all(hpopt):
    assert "raising it" in hpopt.output("params", "learning_rate")
    assert "changing it" in hpopt.output("params", "optimizer")
    assert "momentum" in hpopt.output("params")


@pytest.mark.parametrize("arguments", [["status"], ["status", "answer", "--json"], ["params"], ["--help"]])
def test_a_command_whose_output_is_closed_ends_by_sigpipe_without_a_message(arguments, created):
    """As `hpopt ... | head` does; a shell shows 141, as for other programs."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "hpopt", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        env={**os.environ, **created.environment},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


HOSTILE = "red\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\u202e"


@pytest.mark.parametrize("arguments", [["status"], ["status", "answer"], ["best", "answer"], ["worker", "answer"]])
def test_what_others_wrote_does_not_control_the_terminal(created, migrated_url, arguments):
    with closing(psycopg2.connect(migrated_url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
        cursor.execute(
            "update hpopt.study set state = 'stopped', state_reason = %s, versions = versions || %s::jsonb",
            [HOSTILE, json.dumps({"hpopt": HOSTILE} if arguments[0] == "worker" else {})],
        )
        connection.commit()
    result = created(*arguments)
    shown = result.stdout + result.stderr
    assert "red" in shown or arguments == ["best", "answer"]
    assert [character for character in shown if not character.isprintable() and character != "\n"] == []


def test_an_unknown_name_with_control_characters_is_refused_without_them(created):
    assert created.refused("best", HOSTILE).isprintable()
