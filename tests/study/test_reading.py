"""A study file is read with its text; each error is one line with the file, the key and the value."""

import subprocess
import sys
from pathlib import Path

import pytest

from hpopt.errors import StudyFileError
from hpopt.search.direction import Direction
from hpopt.study.reading import StudySource, parse_stored, parse_study_file, read_study_file

STUDIES = Path(__file__).parents[2] / "studies"
RATE = "learning_rate = { low = 0.001, high = 0.3, log = true }"

STUDY = f"""
name = "s"

[budget]
trials = 4

[search_space]
{RATE}
"""


def parse(text):
    return parse_study_file(text, "s.toml").file


def refusal_of(text):
    with pytest.raises(StudyFileError) as refusal:
        parse(text)
    return str(refusal.value)


def replaced(old, new, text=STUDY):
    assert old in text
    return text.replace(old, new)


def test_a_short_file_is_enough():
    study = parse(STUDY)
    assert (study.name, study.objective, study.metric) == ("s", "pretrain", "val_loss")
    assert study.direction is Direction.MINIMIZE
    assert (study.sampler.name, study.sampler.seed, study.sampler.n_startup_trials) == ("tpe", 0, 10)
    assert (study.pruner.name, study.pruner.reduction_factor, study.pruner.min_fraction) == ("asha", 3, 1 / 9)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.name)
def test_every_study_of_the_repository_is_valid_and_names_the_schema(path):
    read_study_file(path)
    assert path.read_text().startswith("#:schema ./study.schema.json\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('name = "s"\nnmae = "s"', "nmae: unknown key; did you mean 'name'?"),
        ("", "name: missing"),
        ("name = 3", "name: 3 is not a string"),
        (
            'name = "two words"',
            "name: 'two words' is not a name of letters, digits, '.', '_' and '-', a letter or digit first",
        ),
        (
            'name = "../s"',
            "name: '../s' is not a name of letters, digits, '.', '_' and '-', a letter or digit first",
        ),
        (f'name = "{"s" * 101}"', f"name: '{'s' * 101}' is longer than 100 characters"),
        (
            'name = "s"\ndirection = "minimise"',
            "direction: 'minimise' is not one of minimize, maximize; did you mean 'minimize'?",
        ),
        (
            'name = "s"\nobjective = "pretrian"',
            "objective: 'pretrian' is neither pretrain nor package.module:function; did you mean 'pretrain'?",
        ),
        (
            'name = "s"\nobjective = "nowhere.train:run"',
            "objective: cannot import nowhere.train: ModuleNotFoundError: No module named 'nowhere'",
        ),
        ('name = "s"\nobjective = "json:dmups"', "objective: json has no function dmups; did you mean 'dumps'?"),
        (
            'name = "s"\nobjective = "json:dumps"',
            "objective: json:dumps: its first parameter is not annotated with a frozen dataclass",
        ),
        ('name = "s"\npruner = "none"', "pruner: 'none' is not a table"),
        ('name = "s"\nenqueue = { learning_rate = 0.1 }', "enqueue: not a list; write [[enqueue]]"),
    ],
)
def test_a_wrong_line_at_the_top_is_refused(line, message):
    assert refusal_of(replaced('name = "s"', line)) == f"s.toml: {message}"


def test_a_file_that_is_not_toml_is_refused_with_its_line():
    assert refusal_of("name = \n") == "s.toml: not TOML: Invalid value (at line 1, column 8)"


@pytest.mark.parametrize(("choices", "word"), [("[none, 1.0]", "none"), ("[1.0, null]", "null"), ("[None]", "None")])
def test_a_choice_that_toml_has_no_word_for_is_refused_with_how_to_write_it(choices, word):
    message = refusal_of(f"[search_space]\nx = {{ choices = {choices} }}\n")
    assert "s.toml: not TOML: Invalid value (at line 2, column " in message
    assert message.endswith(f'; TOML has no {word}: write "{word}", and read it in the objective')


def test_an_error_is_one_line_even_if_the_key_is_not():
    """A log collector would take the second line for another message."""
    assert refusal_of('"two\\nlines" = 1\n' + STUDY).startswith("s.toml: two lines: unknown key; known: arms, budget, ")


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "quickstart.toml").write_text(STUDY)
    with pytest.raises(StudyFileError) as refusal:
        read_study_file(tmp_path / "quickstrat.toml")
    assert str(refusal.value) == f"{tmp_path}/quickstrat.toml: no such file; did you mean 'quickstart.toml'?"


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(StudyFileError) as refusal:
        read_study_file(tmp_path)
    assert str(refusal.value) == f"{tmp_path}: Is a directory"


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "model.toml"
    path.write_bytes(b"name = \xff")
    with pytest.raises(StudyFileError) as refusal:
        read_study_file(path)
    assert str(refusal.value) == f"{path}: not UTF-8 (at byte 7)"


def test_a_file_from_a_windows_editor_is_read(tmp_path):
    """Notepad writes a byte order mark and carriage returns, on which tomllib alone stops."""
    path = tmp_path / "s.toml"
    path.write_bytes(b"\xef\xbb\xbf" + STUDY.replace("\n", "\r\n").encode())
    source = read_study_file(path)
    assert (source.file, source.name) == (parse(STUDY), str(path))
    assert source.text == STUDY


def test_a_study_file_is_checked_without_torch_optuna_or_a_database():
    """`hpopt check` is fast; the import of torch alone takes seconds."""
    code = "import sys, hpopt.study.reading; print({'torch', 'optuna', 'sqlalchemy', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_data_of_a_study_is_not_needed_to_parse_its_file():
    """`hpopt status` and `best` run on a laptop; the corpus is on the cluster."""
    study = parse(STUDY + '[fixed]\ndataset = "/on/the/cluster"')
    assert study.config({"learning_rate": 0.1}).dataset == "/on/the/cluster"


def test_a_stored_file_is_parsed_without_its_objective():
    """Its module can be on another machine, or can have changed since the study was created."""
    text = replaced('name = "s"', 'name = "s"\nobjective = "nowhere.train:run"')
    assert parse_stored(text, "study 's'").objective == "nowhere.train:run"
    with pytest.raises(StudyFileError, match=r"^study 's': objective: cannot import nowhere.train: "):
        parse_study_file(text, "study 's'")


@pytest.mark.parametrize(
    "text", ["", "name = \n", STUDY + "[pruner]\nnmae = 1", STUDY.replace("high = 0.3", "high = 1e-9")]
)
def test_a_stored_file_that_cannot_be_read_is_refused_in_one_line(text):
    with pytest.raises(StudyFileError) as refusal:
        parse_stored(text, "study 's'")
    assert str(refusal.value).startswith("study 's': ")
    assert "\n" not in str(refusal.value)


def test_a_file_is_read_with_its_text_and_the_name_of_its_messages(tmp_path):
    (tmp_path / "s.toml").write_text(STUDY)
    source = read_study_file(tmp_path / "s.toml")
    assert source == StudySource(STUDY, parse(STUDY), str(tmp_path / "s.toml"))
