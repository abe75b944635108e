"""An objective of the user is checked by the dataclass that it takes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpopt.errors import StudyFileError
from hpopt.study.objectives import config_class, import_function
from hpopt.study.reading import parse_study_file

OBJECTIVE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    data: str
    rate: float = 0.1
    depth: int = 2
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.depth * self.rate > 10:
            raise ValueError("depth times rate is above 10")

@dataclass
class Mutable:
    seed: int = 0

@dataclass(frozen=True)
class Seedless:
    rate: float = 0.1

def train(config: Config, run): ...
def train_mutable(config: Mutable, run): ...
def train_seedless(config: Seedless, run): ...
def train_untyped(config, run): ...
def train_unresolved(config: "Nowhere", run): ...
def train_nothing(): ...
"""

OWN_STUDY = """
name = "own"
objective = "own_objective:train"
metric = "reward"

[budget]
trials = 4

[search_space]
rate = { low = 0.1, high = 1.0 }

[fixed]
data = "here"
"""


@pytest.fixture
def own_objective(tmp_path, monkeypatch):
    (tmp_path / "own_objective.py").write_text(OBJECTIVE)
    (tmp_path / "broken_objective.py").write_text("raise RuntimeError('no\\nlicence')")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_objective", None)


def test_a_config_of_the_user_is_built_with_its_types(own_objective):
    study = parse_study_file(OWN_STUDY, "s.toml").file
    assert config_class(study.objective).__name__ == "Config"
    config = study.config({"rate": 1}, seed=3)
    assert (config.data, config.rate, config.seed) == ("here", 1.0, 3)
    assert type(config.rate) is float


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rate = {", "rat = {", "search_space.rat: own_objective:train does not take it; did you mean 'rate'?"),
        (
            "rate = { low = 0.1, high = 1.0 }",
            "depth = { low = 1, high = 2 }",
            'search_space.depth: takes whole numbers; add type = "int"',
        ),
        ('data = "here"', "", "fixed.data: missing; Config has no default for it"),
        ('data = "here"', "data = 3", "fixed.data: 3 is not a string"),
        ('data = "here"', 'data = "here"\nshuffle = 1', "fixed.shuffle: 1 is not true or false"),
        ('data = "here"', 'data = "here"\ndepth = 101', "fixed.depth: depth times rate is above 10"),
        (
            "own_objective:train",
            "broken_objective:train",
            "objective: cannot import broken_objective: RuntimeError: no licence",
        ),
        (
            "own_objective:train",
            "own_objective:trian",
            "objective: own_objective has no function trian; did you mean 'train'?",
        ),
        (
            "own_objective:train",
            "own_objective:train_mutable",
            "objective: own_objective:train_mutable: its first parameter is not annotated with a frozen dataclass",
        ),
        (
            "own_objective:train",
            "own_objective:train_untyped",
            "objective: own_objective:train_untyped: its first parameter is not annotated with a frozen dataclass",
        ),
        (
            "own_objective:train",
            "own_objective:train_nothing",
            "objective: own_objective:train_nothing: its first parameter is not annotated with a frozen dataclass",
        ),
        (
            "own_objective:train",
            "own_objective:train_seedless",
            (
                "objective: own_objective:train_seedless: "
                "Seedless has no field seed; a trial is a configuration and a seed"
            ),
        ),
        (
            "own_objective:train",
            "own_objective:train_unresolved",
            (
                "objective: own_objective:train_unresolved: "
                "an annotation cannot be resolved: name 'Nowhere' is not defined"
            ),
        ),
    ],
)
def test_a_file_that_does_not_match_the_objective_is_refused(own_objective, old, new, message):
    assert old in OWN_STUDY
    with pytest.raises(StudyFileError) as refusal:
        parse_study_file(OWN_STUDY.replace(old, new), "s.toml")
    assert str(refusal.value) == f"s.toml: {message}"


def test_what_an_import_prints_is_not_part_of_the_answer(tmp_path, monkeypatch, capsys):
    """Programs read the standard output of `hpopt best --format json`."""
    (tmp_path / "loud_objective.py").write_text("print('loading')\n" + OBJECTIVE)
    monkeypatch.syspath_prepend(tmp_path)
    parse_study_file(OWN_STUDY.replace("own_objective", "loud_objective"), "s.toml")
    sys.modules.pop("loud_objective")
    assert capsys.readouterr() == ("", "loading\n")


def test_a_script_that_exits_when_it_is_imported_is_refused(tmp_path, monkeypatch):
    (tmp_path / "script_objective.py").write_text("import sys; sys.exit(2)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StudyFileError, match=r"^s\.toml: objective: cannot import script_objective: SystemExit: 2$"):
        parse_study_file(OWN_STUDY.replace("own_objective", "script_objective"), "s.toml")


SCRIPT = """
import argparse, os, signal
from dataclasses import dataclass

parser = argparse.ArgumentParser()
parser.add_argument("--out_dir", default="out")
arguments = parser.parse_args()
os.chdir("/")
signal.signal(signal.SIGTERM, signal.SIG_IGN)

@dataclass(frozen=True)
class Config:
    x: float = 0.5
    seed: int = 0

def train(config: Config, run):
    yield
"""


def run_check(folder, objective):
    (folder / "s.toml").write_text(
        f'name = "s"\nobjective = "{objective}:train"\nmetric = "loss"\n'
        "[budget]\ntrials = 1\n[search_space]\nx = { low = 0.0, high = 1.0 }\n"
    )
    command = [sys.executable, "-m", "hpopt", "check", "s.toml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_script_that_parses_arguments_and_changes_its_process_can_be_imported(tmp_path, monkeypatch):
    (tmp_path / "script_of_mine.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hpopt", "check", "s.toml"])
    before = signal.getsignal(signal.SIGTERM)
    import_function("script_of_mine:train")
    assert (Path.cwd(), sys.argv, signal.getsignal(signal.SIGTERM)) == (tmp_path, ["hpopt", "check", "s.toml"], before)
    del sys.modules["script_of_mine"]


@pytest.mark.parametrize("name", ["rich", "typer", "optuna", "pydantic", "scipy"])
def test_files_of_the_current_folder_do_not_shadow_libraries(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('not the library')")
    (tmp_path / "script_of_mine.py").write_text(SCRIPT)
    done = run_check(tmp_path, "script_of_mine")
    assert done.returncode == 0, done.stderr


def test_an_objective_of_the_current_folder_is_preferred_to_an_installed_package_of_its_name(tmp_path):
    (tmp_path / "peft.py").write_text(SCRIPT)
    done = run_check(tmp_path, "peft")
    assert done.returncode == 0, done.stderr
