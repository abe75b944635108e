"""The public API: hpopt.connect, best, trials, create, run, and the names for training functions."""

import subprocess
import sys

import pytest

import hpopt
from hpopt.errors import DatabaseError, InputError, NoAnswerError, StudyFileError

OBJECTIVE = """
from dataclasses import dataclass
import hpopt

@dataclass(frozen=True)
class Config:
    learning_rate: float = 0.1
    seed: int = 0

def train(config: Config, run: hpopt.Run):
    for step in range(1, 6):
        loss = (config.learning_rate - 0.03) ** 2 + 1 / step
        yield hpopt.Evaluation(step=step, n_steps=5, tokens=step, seconds=0.0, metrics={"loss": loss})
"""
STUDY = """
name = "toy"
objective = "toy_objective:train"
metric = "loss"
[budget]
trials = 4
[pruner]
name = "none"
[search_space]
learning_rate = { low = 1e-3, high = 0.3, log = true }
"""


@pytest.fixture
def folder(tmp_path, database_url, monkeypatch):
    """A folder with an objective and a study file, and the URL of a database in the environment."""
    (tmp_path / "toy_objective.py").write_text(OBJECTIVE)
    (tmp_path / "toy.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HPOPT_STORAGE", database_url)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield tmp_path
    sys.modules.pop("toy_objective", None)


def test_a_study_runs_and_is_read_from_any_folder(folder, tmp_path_factory, monkeypatch):
    answer = hpopt.run("toy.toml", workers=1)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    (folder / "toy_objective.py").unlink()
    with hpopt.connect() as database:
        assert hpopt.best("toy", storage=database) == answer
        frame = hpopt.trials("toy", storage=database)
    assert answer.params.keys() == {"learning_rate"}
    assert list(frame["outcome"]) == ["complete"] * 4
    assert frame["value"].min() == answer.value
    assert frame.set_index("trial").loc[answer.trial, "params_learning_rate"] == answer.params["learning_rate"]


def test_a_study_that_has_finished_runs_no_further_trial(folder):
    first = hpopt.run("toy.toml", workers=1)
    assert hpopt.run("toy.toml", workers=1) == first
    assert len(hpopt.trials("toy")) == 4


def test_a_study_without_trials_has_no_answer_and_an_empty_frame(folder):
    assert hpopt.create("toy.toml") == "toy"
    with pytest.raises(NoAnswerError, match="no completed trial yet"):
        hpopt.best("toy")
    frame = hpopt.trials("toy")
    assert list(frame["state"]) == ["WAITING"]
    assert "params_learning_rate" in frame.columns


def test_errors_name_the_nearest_study_and_the_missing_database(folder, monkeypatch):
    hpopt.create("toy.toml")
    with pytest.raises(InputError, match=r"no study 'tay' .*did you mean 'toy'"):
        hpopt.best("tay")
    with pytest.raises(StudyFileError, match=r"tpy\.toml: no such file; did you mean 'toy\.toml'"):
        hpopt.create("tpy.toml")
    monkeypatch.delenv("HPOPT_STORAGE")
    with pytest.raises(DatabaseError, match="no database here yet"), hpopt.connect(home=folder / "empty"):
        pass


def test_importing_hpopt_imports_nothing_heavy():
    """A notebook and every command begin with this import."""
    code = "import sys, hpopt; print([m for m in ('optuna', 'torch', 'sqlalchemy', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_can_be_imported():
    assert {name: getattr(hpopt, name).__name__ for name in hpopt.__all__} == {name: name for name in hpopt.__all__}
    with pytest.raises(AttributeError, match="module 'hpopt' has no attribute 'optimise'"):
        hpopt.optimise  # noqa: B018
