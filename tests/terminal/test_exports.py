"""Programs read the parameters and the progress of a study."""

import json
import os
import shlex
import subprocess
import tomllib
from datetime import UTC, datetime

import yaml

from hpopt.findings.finding import Finding
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
