"""Programs read the parameters and the progress of a study."""

import json
import os
import shlex
import subprocess
import tomllib
from datetime import UTC, datetime
from decimal import Decimal

import hostile
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hpopt.errors import InputError
from hpopt.findings.finding import Finding
from hpopt.formats import storable, to_json
from hpopt.storage.progress import Best, BudgetUsage, Progress
from hpopt.terminal.exports import PARAMS_AS, best_as_json, progress_as_json, rows_as_json

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
PARAMS = {"learning_rate": 1e-05, "ns_steps": 5, "tied": True, "name": 'it\'s $HOME & "more"'}
FINDING = Finding(code="leak", severity="error", message="It leaks.", evidence={"overlap": 0.9}, remedy="Split.")


def best(value=3.25):
    return Best(
        study_name="small",
        value=value,
        value_low=None,
        value_high=None,
        n_seeds=1,
        source="search",
        params=PARAMS,
        trial=7,
        finished_at=NOON,
    )


def progress():
    usage = BudgetUsage(
        state="paused",
        state_reason="manually",
        n_finished=3,
        n_running=1,
        n_pending_retry=0,
        n_enqueued=0,
        device_hours=1.5,
        wall_hours=1.0,
        best_value=float("inf"),
    )
    return Progress(
        name="small",
        metric="val_loss",
        state_since=NOON,
        planned_trials=40,
        n_steps=90,
        finished_reason=None,
        usage=usage,
        n_by_outcome={"complete": 3, "running": 1},
        tokens=1000,
        workers=(),
        best=best(),
        default_value=None,
    )


def test_toml_and_yaml_return_the_params_in_their_order():
    for read, name in ((tomllib.loads, "toml"), (yaml.safe_load, "yaml")):
        params = read(PARAMS_AS[name](PARAMS))
        # YAML 1.1 reads 1e-05 as a string.
        assert {**params, "learning_rate": float(params["learning_rate"])} == PARAMS
        assert list(params) == list(PARAMS)


def test_a_shell_reads_environment_variables_and_arguments_as_they_are():
    script = PARAMS_AS["env"](PARAMS) + '\nprintf \'%s\\n\' "$LEARNING_RATE" "$NS_STEPS" "$TIED" "$NAME"'
    done = subprocess.run(["sh", "-c", script], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1e-05", "5", "true", PARAMS["name"]]
    assert shlex.split(PARAMS_AS["args"](PARAMS)) == [
        *("--learning_rate", "1e-05"),
        *("--ns_steps", "5"),
        *("--tied", "true"),
        *("--name", PARAMS["name"]),
    ]


@pytest.mark.parametrize("name", ["a=1;$(touch x)", "a b", "λ", "", "-x", "'", "a\nb", "1a"])
def test_a_name_that_is_no_identifier_is_quoted_or_refused(name, tmp_path):
    script = f"printf '%s\\0' {PARAMS_AS['args']({name: 1})}"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\0") == [f"--{name}", "1", ""]
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="environment variable"):
        PARAMS_AS["env"]({name: 1})


def test_two_parameters_of_one_environment_variable_are_refused():
    with pytest.raises(InputError, match="'lr': not the name of one environment variable"):
        PARAMS_AS["env"]({"lr": 1, "LR": 2})


def test_a_format_without_null_refuses_it():
    with pytest.raises(InputError, match="TOML cannot have"):
        PARAMS_AS["toml"]({"schedule": None})
    assert json.loads(PARAMS_AS["args"]({"schedule": None}).split()[-1]) is None


@given(st.dictionaries(hostile.TEXTS.map(storable), hostile.VALUES, max_size=3).map(to_json).map(json.loads))
@settings(max_examples=50)
def test_every_export_of_any_parameters_is_refused_or_read_back(params):
    """As the database has them: what JSON has no type for is a string or null."""
    args = ["--" + name if i == 0 else as_text(value) for name, value in params.items() for i in range(2)]
    variables = {name.upper(): as_text(value) for name, value in params.items()}
    for name, read, expected in (
        ("toml", tomllib.loads, params),
        ("yaml", yaml.safe_load, params),
        ("args", lambda text: in_shell(f"printf '%s\\0' {text}", n=len(args)), args),
        ("env", lambda text: in_shell(f"{text}\nprintf '%s\\0' {as_variables(params)}", n=len(params)), variables),
    ):
        try:
            exported = PARAMS_AS[name](params)
        except InputError as error:
            assert name in {"toml", "env"}
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - as above.
        else:
            found = read(exported)
            assert found == (list(expected.values()) if name == "env" else expected)


def as_text(value):
    return value if isinstance(value, str) else json.dumps(value)


def as_variables(params):
    return " ".join(f'"${name.upper()}"' for name in params)


def in_shell(script, n):
    """Run a script that prints n texts, each with a NUL behind it, and return them."""
    done = subprocess.run(["sh", "-euc", script], capture_output=True, env={}, check=True)
    return done.stdout.decode().split("\0")[:n]


@pytest.mark.parametrize("name", ["λ", "a b", "", "😀", "{x}"])
def test_any_name_and_choice_is_read_back_from_toml_and_yaml(name):
    params = {name: "😀\n\"'\\ {y} \x07"}
    assert tomllib.loads(PARAMS_AS["toml"](params)) == params
    assert yaml.safe_load(PARAMS_AS["yaml"](params)) == params


def test_the_best_is_exported_with_its_findings():
    exported = json.loads(best_as_json(best(), [FINDING]))
    assert (exported["value"], exported["value_low"], exported["params"]) == (3.25, None, PARAMS)
    assert exported["finished_at"] == "2026-11-22T12:00:00+00:00"
    assert [finding["code"] for finding in exported["findings"]] == ["leak"]


def test_progress_is_exported_with_its_state_first_and_no_number_that_is_not_json():
    text = progress_as_json(progress(), [FINDING])
    exported = json.loads(text, parse_constant=lambda constant: constant)
    assert list(exported)[:4] == ["name", "state", "state_reason", "state_since"]
    assert (exported["state"], exported["state_reason"], exported["n_steps"]) == ("paused", "manually", 90)
    assert exported["usage"]["best_value"] is None
    assert "state" not in exported["usage"]
    assert exported["findings"][0]["remedy"] == "Split."
    assert "findings" not in json.loads(progress_as_json(progress()))


def test_rows_are_exported_as_objects():
    assert json.loads(rows_as_json(["trial", "at"], [[1, NOON], [2, None]])) == [
        {"trial": 1, "at": "2026-11-22T12:00:00+00:00"},
        {"trial": 2, "at": None},
    ]


def test_numbers_of_any_type_are_exported_as_numbers_and_nan_as_null():
    values = [Decimal(120), Decimal("0.5"), 2**40, float("nan"), memoryview(b"\1")]
    exported = json.loads(rows_as_json(list("abcde"), [values]))
    assert exported == [{"a": 120, "b": 0.5, "c": 2**40, "d": None, "e": "\\x01"}]


def test_two_columns_of_one_name_are_refused_as_json():
    with pytest.raises(InputError, match="two of them called 'n'"):
        rows_as_json(["n", "m", "n"], [[1, 2, 3]])
