"""The study of the README, from the first trial to the answer."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[1] / "studies" / "quickstart.toml"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_quickstart_beats_the_defaults_by_more_than_the_noise_of_seeds():
    """Three seeds of one configuration differ by a standard deviation of about 0.01 nats."""
    with tempfile.TemporaryDirectory(prefix="hpopt-quickstart-", ignore_cleanup_errors=True) as home:
        Path(home).chmod(0o755)

        def hpopt(*arguments):
            command = [sys.executable, "-m", "hpopt", *arguments, "--home", home]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done
            return done.stdout

        hpopt("run", STUDY, "--workers", "2")
        query = "select trial, state, value from hpopt.trials where study_name = 'quickstart'"
        rows = json.loads(hpopt("db", "sql", "--json", query))
        (best,) = json.loads(hpopt("db", "sql", "--json", "select value, n_seeds, answer from hpopt.best_params"))
        hpopt("db", "stop")
    states = [row["state"] for row in rows]
    assert states.count("PRUNED") >= 5
    assert states.count("COMPLETE") >= 5
    assert len(states) == 24
    assert best["answer"] in {"confirmed", "tie"}
    assert best["n_seeds"] == 3
    (default,) = (row["value"] for row in rows if row["trial"] == 0)
    assert default - best["value"] > 0.1
