import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpopt.errors import ConfigError, StudyFileError
from hpopt.study.difference import space_difference
from hpopt.study.objectives import config_class
from hpopt.study.plan import count_steps, place_rungs
from hpopt.study.reading import parse_study_file, read_study_file
from hpopt.study.schema import study_file_schema
from hpopt.training.config import PretrainConfig

STUDIES = Path(__file__).parents[2] / "studies"

RATE = "learning_rate = { low = 0.001, high = 0.3, log = true }"

STUDY = f"""
name = "s"

[budget]
trials = 4

[search_space]
{RATE}
"""

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
class Thawed:
    seed: int = 0

@dataclass(frozen=True)
class Seedless:
    rate: float = 0.1

def train(config: Config, run): ...
def train_thawed(config: Thawed, run): ...
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


def parse(text):
    return parse_study_file(text, "s.toml")


def refusal_of(text):
    with pytest.raises(StudyFileError) as refusal:
        parse(text)
    return str(refusal.value)


def replaced(old, new, text=STUDY):
    assert old in text
    return text.replace(old, new)


@pytest.fixture
def own_objective(tmp_path, monkeypatch):
    (tmp_path / "own_objective.py").write_text(OBJECTIVE)
    (tmp_path / "broken_objective.py").write_text("raise RuntimeError('no\\nlicence')")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_objective", None)


def test_a_short_file_is_enough():
    study = parse(STUDY)
    assert (study.name, study.objective, study.metric, study.direction) == ("s", "pretrain", "val_loss", "minimize")
    assert (study.sampler.name, study.sampler.seed, study.sampler.n_startup_trials) == ("tpe", 0, 10)
    assert (study.pruner.name, study.pruner.reduction_factor, study.pruner.min_fraction) == ("asha", 3, 1 / 9)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.name)
def test_every_study_that_comes_along_is_in_order_and_names_the_schema(path):
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
            "name: 'two words' is no name; use letters, digits, '.', '_' and '-', a letter or digit first",
        ),
        ('name = "../s"', "name: '../s' is no name; use letters, digits, '.', '_' and '-', a letter or digit first"),
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


def test_a_metric_that_the_objective_does_not_report_is_refused():
    """Otherwise the first evaluation of every trial fails, after the model was built on a GPU."""
    message = refusal_of('metric = "val_los"\n' + STUDY)
    assert message.startswith("s.toml: metric: 'val_los' is not one of val_loss, val_accuracy, ")
    assert message.endswith("; did you mean 'val_loss'?")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trails = 4", "budget.trails: unknown key; did you mean 'trials'?"),
        ("", "budget: no limit; give at least one of trials, gpu_hours, wall_hours"),
        ("target = 3.2", "budget: no limit; give at least one of trials, gpu_hours, wall_hours"),
        ("trials = 0", "budget.trials: 0 is below 1"),
        ("trials = -4", "budget.trials: -4 is below 1"),
        ("trials = 3000000000", "budget.trials: 3000000000 is above 2147483647"),
        ("trials = true", "budget.trials: True is not a whole number"),
        ("trials = 4.0", "budget.trials: 4.0 is not a whole number"),
        ('trials = "4"', "budget.trials: '4' is not a whole number"),
        ("gpu_hours = 0", "budget.gpu_hours: 0 is not above 0"),
        ("gpu_hours = true", "budget.gpu_hours: True is not a number"),
        ("wall_hours = -0.5", "budget.wall_hours: -0.5 is not above 0"),
        ("wall_hours = nan", "budget.wall_hours: nan is not a finite number"),
        ("wall_hours = inf", "budget.wall_hours: inf is not a finite number"),
        ("trials = 4\ntarget = inf", "budget.target: inf is not a finite number"),
    ],
)
def test_a_wrong_budget_is_refused(line, message):
    """A budget that is never reached spends GPUs until somebody notices."""
    assert refusal_of(replaced("trials = 4", line)) == f"s.toml: {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "search_space: empty"),
        (
            "learning_rat = { low = 0.1, high = 0.3 }",
            "search_space.learning_rat: pretrain does not take it; did you mean 'learning_rate'?",
        ),
        (
            "learning_rate = 0.1",
            "search_space.learning_rate: 0.1 is no range; write { low = ..., high = ... } or { choices = [...] }",
        ),
        ("learning_rate = { low = 0.1 }", "search_space.learning_rate.high: missing"),
        (
            "learning_rate = { low = 0.1, hihg = 0.3 }",
            "search_space.learning_rate.hihg: unknown key; did you mean 'high'?",
        ),
        ("learning_rate = { low = 0.3, high = 0.1 }", "search_space.learning_rate: low 0.3 is above high 0.1"),
        (
            "learning_rate = { low = 0.0, high = 0.1, log = true }",
            "search_space.learning_rate: low 0.0 is not above 0, which log = true needs",
        ),
        ("learning_rate = { low = 0.0, high = 0.1 }", "search_space.learning_rate: low 0.0 is not above 0"),
        ('learning_rate = { low = "0.1", high = 1 }', "search_space.learning_rate.low: '0.1' is not a number"),
        ("learning_rate = { low = true, high = 2 }", "search_space.learning_rate.low: True is not a number"),
        ("learning_rate = { low = nan, high = 1 }", "search_space.learning_rate.low: nan is not a finite number"),
        ("learning_rate = { low = 0.1, high = inf }", "search_space.learning_rate.high: inf is not a finite number"),
        ("learning_rate = { low = 0.1, high = 1, log = 1 }", "search_space.learning_rate.log: 1 is not true or false"),
        ("learning_rate = { low = 0.1, high = 1, step = 0 }", "search_space.learning_rate.step: 0 is not above 0"),
        ("optimizer = { choices = [] }", "search_space.optimizer.choices: empty"),
        ('optimizer = { choices = "muon" }', "search_space.optimizer.choices: 'muon' is not a list"),
        ('optimizer = { choices = ["muon", "muon"] }', "search_space.optimizer.choices: 'muon' is there twice"),
        (
            'optimizer = { choices = ["muon", "adam"] }',
            "search_space.optimizer: choice 'adam' is not one of muon, adamw; did you mean 'adamw'?",
        ),
        (
            "optimizer = { low = 0, high = 1 }",
            "search_space.optimizer: it has no order to search a range of; write { choices = [...] }",
        ),
        ("ns_steps = { low = 1, high = 9 }", 'search_space.ns_steps: only whole numbers make sense; add type = "int"'),
        (
            'ns_steps = { low = 1, high = 9, type = "integer" }',
            "search_space.ns_steps: type 'integer' is not one of float, int, categorical; did you mean 'int'?",
        ),
        ('ns_steps = { low = 0, high = 9, type = "int" }', "search_space.ns_steps: low 0 is below 1"),
        ("ns_steps = { choices = [5, true] }", "search_space.ns_steps: choice True is not a whole number"),
        ("momentum = { low = 0.8, high = 1.5 }", "search_space.momentum: high 1.5 is not below 1"),
        ("momentum = { low = 0.8, high = 1.0 }", "search_space.momentum: high 1.0 is not below 1"),
        (
            'seed = { low = 0, high = 9, type = "int" }',
            "search_space.seed: a trial is params and a seed; the seed is not searched",
        ),
        (
            'max_steps = { low = 100, high = 200, type = "int" }',
            (
                "search_space.max_steps: asha compares trials at the same fractions of schedules of one length; "
                'fix max_steps, or set pruner.name = "none"'
            ),
        ),
        ('top_k = { low = 1, high = 9, type = "int" }', "search_space.top_k: 9 is above n_experts 8"),
    ],
)
def test_a_wrong_search_space_is_refused(line, message):
    assert refusal_of(replaced(RATE, line)) == f"s.toml: {message}"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ('[sampler]\nname = "tpee"', "sampler.name: 'tpee' is not one of tpe, random, grid; did you mean 'tpe'?"),
        ("[sampler]\nname = 5", "sampler.name: 5 is not one of tpe, random, grid"),
        ("[sampler]\nseed = -1", "sampler.seed: -1 is below 0"),
        ('[pruner]\nname = "ahsa"', "pruner.name: 'ahsa' is not one of asha, median, none; did you mean 'asha'?"),
        ("[pruner]\nreduction_factor = 1", "pruner.reduction_factor: 1 is below 2"),
        ("[pruner]\nmin_fraction = 1.5", "pruner.min_fraction: 1.5 is above 1.0"),
        ("[fixed]\nd_modle = 96", "fixed.d_modle: pretrain does not take it; did you mean 'd_model'?"),
        (
            "[fixed]\nlearning_rate = 0.1",
            "fixed.learning_rate: 0.1 is fixed and searched at once; drop it here or in search_space",
        ),
        ("[fixed]\nmomentum = 1.5", "fixed.momentum: 1.5 is not below 1"),
        ("[fixed]\nd_model = true", "fixed.d_model: True is not a whole number"),
        ("[fixed]\nd_model = 96.0", "fixed.d_model: 96.0 is not a whole number"),
        ("[fixed]\ndropout = [0.1]", "fixed.dropout: [0.1] is not a number"),
        ("[fixed]\nweight_decay = nan", "fixed.weight_decay: nan is not a finite number"),
        ("[fixed]\nd_model = 100", "fixed.d_model: 100 is not divisible by n_heads 8"),
        ("[fixed]\ntop_k = 9", "fixed.top_k: 9 is above n_experts 8"),
        ("[[enqueue]]\nlearning_rate = 0.5", "enqueue[0].learning_rate: 0.5 is outside 0.001 to 0.3"),
        ('[[enqueue]]\nlearning_rate = "0.1"', "enqueue[0].learning_rate: '0.1' is not a number"),
        ("[[enqueue]]\nmomentum = 0.9", "enqueue[0].momentum: not searched; known: learning_rate"),
        (
            "[[enqueue]]\n[[enqueue]]\nlearning_rat = 0.1",
            "enqueue[1].learning_rat: not searched; did you mean 'learning_rate'?",
        ),
    ],
)
def test_a_wrong_section_is_refused(section, message):
    assert refusal_of(STUDY + section) == f"s.toml: {message}"


def test_a_choice_that_is_not_among_the_searched_ones_is_not_enqueued():
    text = replaced(RATE, "momentum = { choices = [0.9, 0.95] }") + "[[enqueue]]\nmomentum = 0.8"
    assert refusal_of(text) == "s.toml: enqueue[0].momentum: 0.8 is not one of 0.9, 0.95"


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ("n_heads = 7", "fixed.n_heads: 7 does not go with the default of d_model: 384 is not divisible by n_heads 7"),
        ("n_experts = 1", "fixed.n_experts: 1 does not go with the default of top_k: 2 is above n_experts 1"),
        ("max_steps = 10", "fixed.max_steps: 10 does not go with the default of eval_steps: 25 is above max_steps 10"),
    ],
)
def test_a_clash_with_a_default_names_the_key_that_is_in_the_file(fixed, message):
    """A key that the user never wrote sends him looking in the wrong place."""
    assert refusal_of(f"{STUDY}[fixed]\n{fixed}") == f"s.toml: {message}"


def test_a_clash_between_searched_and_fixed_names_both():
    text = replaced(RATE, 'top_k = { low = 1, high = 4, type = "int" }') + "[fixed]\nn_experts = 3"
    assert refusal_of(text) == "s.toml: search_space.top_k: 4 is above n_experts 3"


def test_a_clash_of_two_searched_parameters_is_found_away_from_their_extremes():
    """Two and four heads divide both widths, three only the narrow one: a sixth of the trials would fail on a GPU."""
    heads = 'n_heads = { low = 2, high = 4, type = "int" }'
    text = replaced(RATE, heads + '\nd_model = { low = 48, high = 64, step = 16, type = "int" }')
    assert refusal_of(text) == "s.toml: search_space.d_model: 64 is not divisible by n_heads 3"


def test_a_clash_inside_a_long_range_is_found():
    """The heads divide the lowest and the highest width, and hardly any between them."""
    text = replaced(RATE, 'd_model = { low = 96, high = 384, type = "int" }')
    assert refusal_of(text) == "s.toml: search_space.d_model: 97 is not divisible by n_heads 8"
    parse(replaced(RATE, 'd_model = { low = 96, high = 384, step = 96, type = "int" }'))


def test_max_steps_may_be_searched_without_rungs():
    text = replaced(RATE, 'max_steps = { low = 100, high = 200, type = "int" }')
    file = parse(text + '[pruner]\nname = "none"')
    assert (count_steps(file), place_rungs(file)) == (None, [])


BATCH = 'batch_size = { low = 8, high = 32, type = "int" }'
STEPS = 'max_steps = { low = 100, high = 200, type = "int" }'


def test_steps_are_not_searched_beside_a_number_of_tokens():
    """With a number of tokens the steps follow from the batch, and max_steps is a treatment that never arrives."""
    assert refusal_of(replaced(RATE, STEPS) + "[fixed]\nmax_tokens = 1_000_000") == (
        "s.toml: search_space.max_steps: does nothing with max_tokens = 1000000; drop it, or search max_tokens too"
    )


def test_batch_sizes_may_be_compared_at_the_same_number_of_tokens():
    """Rungs are fractions of a trial's own schedule, whatever its steps."""
    file = parse(replaced(RATE, BATCH) + "[fixed]\nmax_tokens = 1_000_000")
    assert count_steps(file) is None
    assert {file.config({"batch_size": size}).tokens // 100_000 for size in (8, 20, 32)} == {9}


def test_steps_follow_from_tokens():
    """1,000,000 tokens in steps of 24 x 512 are 81 steps; the rungs must lie within them."""
    file = parse(STUDY + "[fixed]\nmax_tokens = 1_000_000")
    assert (count_steps(file), place_rungs(file)) == (81, [9, 27])


def test_a_grid_over_a_range_without_steps_is_refused():
    grid = '[sampler]\nname = "grid"'
    message = (
        "s.toml: search_space.learning_rate: a grid needs a list of values; add a step, or write { choices = [...] }"
    )
    assert refusal_of(STUDY + grid) == message
    axes = 'learning_rate = { choices = [0.01, 0.03] }\nns_steps = { low = 1, high = 3, type = "int" }'
    parse(replaced(RATE, axes + "\nmomentum = { low = 0.8, high = 0.9, step = 0.05 }") + grid)


def test_a_parameter_that_does_nothing_is_not_searched():
    """Its trials would differ by noise alone, and an importance figure would still give it a share."""
    text = replaced(RATE, "momentum = { low = 0.8, high = 0.9 }") + '[fixed]\noptimizer = "adamw"'
    message = "search_space.momentum: does nothing with optimizer = 'adamw'; drop it, or search optimizer too"
    assert refusal_of(text) == f"s.toml: {message}"


def test_what_is_no_toml_is_refused_with_its_line():
    assert refusal_of("name = \n") == "s.toml: not TOML: Invalid value (at line 1, column 8)"


def test_a_refusal_is_one_line_even_when_the_key_is_not():
    """A log collector takes the second line for another message."""
    assert refusal_of('"two\\nlines" = 1\n' + STUDY).startswith("s.toml: two lines: unknown key; known: budget, ")


def test_a_missing_file_is_refused_with_the_nearest_there_is(tmp_path):
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
    assert read_study_file(path) == parse(STUDY)


def test_a_config_is_what_is_fixed_the_params_and_the_seed():
    study = parse(STUDY + "[fixed]\nd_model = 96\nseed = 5")
    config = study.config({"learning_rate": 0.1}, seed=7)
    assert config == PretrainConfig(d_model=96, learning_rate=0.1, seed=7)
    assert study.config({"learning_rate": 0.1}).seed == 5


def test_a_config_that_makes_no_sense_is_refused_when_it_is_built():
    """Params can also come from someone who enqueued them by hand in the database."""
    with pytest.raises(ConfigError, match=r"^learning_rate: -1.0 is not above 0$"):
        parse(STUDY).config({"learning_rate": -1.0})


def test_the_defaults_of_what_is_searched_are_given():
    study = parse(replaced(RATE, RATE + '\nns_steps = { low = 1, high = 9, type = "int" }'))
    assert study.default_params() == {"learning_rate": PretrainConfig().learning_rate, "ns_steps": 5}


def test_there_are_no_default_params_when_one_is_outside_of_its_range():
    """A clipped default is nobody's default: enqueued under that name it would mislead the comparison."""
    assert parse(replaced("high = 0.3", "high = 0.01")).default_params() is None


def test_an_objective_of_ones_own_is_checked_by_its_config(own_objective):
    study = parse(OWN_STUDY)
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
            'search_space.depth: only whole numbers make sense; add type = "int"',
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
            "own_objective:train_thawed",
            "objective: own_objective:train_thawed: its first parameter is not annotated with a frozen dataclass",
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
            "objective: own_objective:train_seedless: Seedless has no field seed; a trial is params and a seed",
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
def test_a_file_that_does_not_fit_an_objective_of_ones_own_is_refused(own_objective, old, new, message):
    assert refusal_of(replaced(old, new, OWN_STUDY)) == f"s.toml: {message}"


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("high = 0.3", "high = 0.5", "search_space.learning_rate: high 0.5, was 0.3"),
        (", log = true", "", "search_space.learning_rate: log False, was True"),
        (
            RATE,
            "learning_rate = { choices = [0.1, 0.2] }",
            "search_space.learning_rate: categorical 0.1, 0.2, was float 0.001 to 0.3",
        ),
        (
            RATE,
            f"{RATE}\nmomentum = {{ low = 0.8, high = 0.9 }}",
            "search_space.momentum: 0.8 to 0.9, was not searched",
        ),
        (RATE, "momentum = { low = 0.8, high = 0.9 }", "search_space.learning_rate: not searched, was 0.001 to 0.3"),
        ('name = "s"', 'name = "s"\nmetric = "val_accuracy"', "metric: val_accuracy, was val_loss"),
        ('name = "s"', 'name = "s"\ndirection = "maximize"', "direction: maximize, was minimize"),
        (RATE, f"{RATE}\n[fixed]\nd_model = 96", "fixed.d_model: 96, was not given"),
    ],
)
def test_a_study_that_searches_something_else_is_told_apart(old, new, difference):
    """One trial with another range silently takes the parameter out of multivariate TPE."""
    assert space_difference(parse(replaced(old, new)), parse(STUDY)) == difference


def test_budget_sampler_pruner_and_enqueued_configurations_make_no_other_space():
    """A larger budget goes on with the same study."""
    text = (
        replaced("trials = 4", "trials = 40\ngpu_hours = 1") + '[sampler]\nname = "random"\n[pruner]\nname = "none"\n'
    )
    assert space_difference(parse(text + "[[enqueue]]\nlearning_rate = 0.1"), parse(STUDY)) is None


def test_the_schema_in_the_repository_is_current():
    """Editors read the file, not the code."""
    written = json.loads((STUDIES / "study.schema.json").read_text())
    assert written == study_file_schema(), "run: make schema"


def test_the_schema_knows_every_hyperparameter_with_its_bounds():
    properties = study_file_schema()["properties"]
    momentum = properties["fixed"]["properties"]["momentum"]
    assert (momentum["type"], momentum["minimum"], momentum["exclusiveMaximum"]) == ("number", 0, 1)
    assert properties["fixed"]["properties"]["optimizer"]["enum"] == ["muon", "adamw"]
    assert properties["search_space"]["properties"]["ns_steps"]["anyOf"] == [
        {"$ref": "#/$defs/Int"},
        {"$ref": "#/$defs/Categorical"},
    ]
    assert set(properties["fixed"]["properties"]) == set(PretrainConfig.__dataclass_fields__)
    assert set(properties["enqueue"]["items"]["properties"]) == set(properties["search_space"]["properties"])
    assert "seed" not in properties["search_space"]["properties"]


def test_a_study_file_is_checked_without_torch_optuna_or_a_database():
    """`hpopt check` answers while a colleague waits; importing torch alone takes seconds."""
    code = "import sys, hpopt.study.reading; print({'torch', 'optuna', 'sqlalchemy', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


SOURCES = "; known: 'python-stdlib', a folder of text files"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            '[fixed]\ndataset = "book"',
            f"fixed.dataset: 'book' does not exist; did you mean 'books'?{SOURCES}",
        ),
        (
            'dataset = { choices = ["python-stdlib", "books", "text"] }',
            f"search_space.dataset: 'text' does not exist{SOURCES}",
        ),
        ('[fixed]\ntokenizer = "byte"', "fixed.tokenizer: 'byte' does not exist; did you mean 'bytes'?"),
        (
            '[fixed]\ndataset = "owner/name"',
            "fixed.dataset: 'owner/name' is not a local path, and a Hugging Face dataset needs a limit:",
        ),
    ],
)
def test_data_that_is_not_here_is_refused_when_a_file_is_read(tmp_path, monkeypatch, sections, message):
    """A path that was mistyped is refused while its author looks on, not by each worker of a fleet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "s.toml").write_text(STUDY + sections)
    with pytest.raises(StudyFileError) as refusal:
        read_study_file(Path("s.toml"))
    assert str(refusal.value).startswith(f"s.toml: {message}")


def test_how_far_a_hub_dataset_is_read_is_not_searched(tmp_path):
    """Each trial would be measured on another text, and the easiest would win; max_documents gives all the same."""
    searched = "max_train_tokens = { low = 1000, high = 9000, type = 'int' }\n[fixed]\ndataset = 'owner/name'\n"
    (tmp_path / "s.toml").write_text(STUDY + searched)
    with pytest.raises(StudyFileError, match=r"search_space\.max_train_tokens: it bounds how far .* set max_documents"):
        read_study_file(tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text(STUDY + searched + "max_documents = 1000")
    assert read_study_file(tmp_path / "s.toml").fixed["max_documents"] == 1000


def test_a_study_is_looked_at_without_its_data():
    """`hpopt status` and `best` answer on a laptop; the corpus lies on the cluster."""
    study = parse_study_file(STUDY + '[fixed]\ndataset = "/on/the/cluster"', "study 's'")
    assert study.config({"learning_rate": 0.1}).dataset == "/on/the/cluster"
