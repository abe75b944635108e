"""A study file is refused as a whole if its values, ranges or combinations cannot be trained."""

from pathlib import Path

import pytest

from hpopt.errors import StudyFileError
from hpopt.study.reading import parse_study_file, read_study_file

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


def test_a_metric_that_the_objective_does_not_report_is_refused():
    """Otherwise the first evaluation of every trial fails, after the model was built on a GPU."""
    message = refusal_of('metric = "val_los"\n' + STUDY)
    assert message.startswith("s.toml: metric: 'val_los' is not one of val_loss, val_accuracy, ")
    assert message.endswith("; did you mean 'val_loss'?")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trails = 4", "budget.trails: unknown key; did you mean 'trials'?"),
        ("", "budget: no limit; give at least one of trials, gpu_hours, wall_hours, tokens"),
        ("target = 3.2", "budget: no limit; give at least one of trials, gpu_hours, wall_hours, tokens"),
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
    """A limit that is never reached would keep GPUs busy without end."""
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
            "search_space.learning_rate: 0.1 is not a range; write { low = ..., high = ... } or { choices = [...] }",
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
        ('optimizer = { choices = ["muon", "muon"] }', "search_space.optimizer.choices: 'muon' is listed twice"),
        (
            'optimizer = { choices = ["muon", "adam"] }',
            "search_space.optimizer: choice 'adam' is not one of muon, adamw; did you mean 'adamw'?",
        ),
        (
            "optimizer = { low = 0, high = 1 }",
            "search_space.optimizer: its values have no order; write { choices = [...] }",
        ),
        ("ns_steps = { low = 1, high = 9 }", 'search_space.ns_steps: takes whole numbers; add type = "int"'),
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
            "search_space.seed: the seed is not searched; a trial is a configuration and a seed",
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
        (
            '[sampler]\nname = "tpee"',
            "sampler.name: 'tpee' is not one of tpe, random, grid, one_at_a_time; did you mean 'tpe'?",
        ),
        ("[sampler]\nname = 5", "sampler.name: 5 is not one of tpe, random, grid, one_at_a_time"),
        ("[sampler]\nseed = -1", "sampler.seed: -1 is below 0"),
        ('[pruner]\nname = "ahsa"', "pruner.name: 'ahsa' is not one of asha, median, none; did you mean 'asha'?"),
        ("[pruner]\nreduction_factor = 1", "pruner.reduction_factor: 1 is below 2"),
        ("[pruner]\nmin_fraction = 1.5", "pruner.min_fraction: 1.5 is above 1.0"),
        ("[fixed]\nd_modle = 96", "fixed.d_modle: pretrain does not take it; did you mean 'd_model'?"),
        (
            "[fixed]\nlearning_rate = 0.1",
            "fixed.learning_rate: 0.1 is both fixed and searched; remove it here or in search_space",
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
        (
            "[[enqueue]]\nparams = { learning_rat = 0.1 }",
            "enqueue[0].learning_rat: not searched; did you mean 'learning_rate'?",
        ),
        ("[[enqueue]]\nparams = {}\nsed = 1", "enqueue[0].sed: unknown key; did you mean 'seed'?"),
        ("[[enqueue]]\nparams = {}\nseed = -1", "enqueue[0].seed: -1 is below 0"),
        ("[[enqueue]]\nparams = {}\nnote = 5", "enqueue[0].note: 5 is not a string"),
        ('[[enqueue]]\nparams = {}\nnote = "a\\u0000"', "enqueue[0].note: has a NUL, which PostgreSQL does not store"),
        (
            "[[enqueue]]\nseed = 7",
            "enqueue[0].seed: not searched; known: learning_rate",
        ),
    ],
)
def test_a_wrong_section_is_refused(section, message):
    assert refusal_of(STUDY + section) == f"s.toml: {message}"


def test_an_enqueued_value_must_be_one_of_the_choices():
    text = replaced(RATE, "momentum = { choices = [0.9, 0.95] }") + "[[enqueue]]\nmomentum = 0.8"
    assert refusal_of(text) == "s.toml: enqueue[0].momentum: 0.8 is not one of 0.9, 0.95"


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        (
            "n_heads = 7",
            "fixed.n_heads: 7 is not compatible with the default of d_model: 384 is not divisible by n_heads 7",
        ),
        ("n_experts = 1", "fixed.n_experts: 1 is not compatible with the default of top_k: 2 is above n_experts 1"),
        (
            "max_steps = 10",
            "fixed.max_steps: 10 is not compatible with the default of eval_steps: 25 is above max_steps 10",
        ),
    ],
)
def test_a_value_that_is_incompatible_with_a_default_is_named_by_its_key_in_the_file(fixed, message):
    """The key of the default is not in the file."""
    assert refusal_of(f"{STUDY}[fixed]\n{fixed}") == f"s.toml: {message}"


def test_a_searched_value_that_is_incompatible_with_a_fixed_one_is_refused():
    text = replaced(RATE, 'top_k = { low = 1, high = 4, type = "int" }') + "[fixed]\nn_experts = 3"
    assert refusal_of(text) == "s.toml: search_space.top_k: 4 is above n_experts 3"


def test_values_of_two_parameters_that_are_incompatible_between_their_extremes_are_refused():
    """Two and four heads divide both widths, three only the narrow one: a sixth of the trials would fail on a GPU."""
    heads = 'n_heads = { low = 2, high = 4, type = "int" }'
    text = replaced(RATE, heads + '\nd_model = { low = 48, high = 64, step = 16, type = "int" }')
    assert refusal_of(text) == "s.toml: search_space.d_model: 64 is not divisible by n_heads 3"


def test_values_that_are_incompatible_inside_a_long_range_are_refused():
    """The heads divide the lowest and the highest width, and hardly any between them."""
    text = replaced(RATE, 'd_model = { low = 96, high = 384, type = "int" }')
    assert refusal_of(text) == "s.toml: search_space.d_model: 97 is not divisible by n_heads 8"
    parse(replaced(RATE, 'd_model = { low = 96, high = 384, step = 96, type = "int" }'))


STEPS = 'max_steps = { low = 100, high = 200, type = "int" }'


def test_max_steps_is_not_searched_where_max_tokens_is_given():
    """With max_tokens the steps follow from the batch size, and max_steps has no effect."""
    assert refusal_of(replaced(RATE, STEPS) + "[fixed]\nmax_tokens = 1_000_000") == (
        "s.toml: search_space.max_steps: has no effect with max_tokens = 1000000; remove it, or search max_tokens too"
    )


def test_a_parameter_without_effect_is_not_searched():
    """Its trials would differ by noise alone, and importance would still give it a share."""
    text = replaced(RATE, "momentum = { low = 0.8, high = 0.9 }") + '[fixed]\noptimizer = "adamw"'
    message = "search_space.momentum: has no effect with optimizer = 'adamw'; remove it, or search optimizer too"
    assert refusal_of(text) == f"s.toml: {message}"


@pytest.mark.parametrize(
    ("sections", "key_and_value", "hint"),
    [
        ('[fixed]\ndataset = "book"', "fixed.dataset: 'book' ", "; did you mean 'books'?; known: 'python-stdlib', "),
        (
            'dataset = { choices = ["python-stdlib", "books", "text"] }',
            "search_space.dataset: 'text' ",
            "; known: 'python-stdlib', a folder of text files",
        ),
        ('[fixed]\ntokenizer = "byte"', "fixed.tokenizer: 'byte' ", "; did you mean 'bytes'?"),
        ('[fixed]\ndataset = "owner/name"', "fixed.dataset: 'owner/name' ", " max_documents"),
    ],
)
def test_data_that_is_missing_on_this_machine_is_refused_when_the_file_is_read(
    tmp_path, monkeypatch, sections, key_and_value, hint
):
    """A mistyped path is refused at once and not by each worker of a fleet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "s.toml").write_text(STUDY + sections)
    with pytest.raises(StudyFileError) as refusal:
        read_study_file(Path("s.toml"))
    assert str(refusal.value).startswith(f"s.toml: {key_and_value}")
    assert hint in str(refusal.value)
    # The text of a stored study can be parsed without its data.
    assert parse_study_file((tmp_path / "s.toml").read_text(), "s.toml").file.name == "s"


def test_the_amount_of_a_hub_dataset_that_is_read_is_not_searched(tmp_path):
    """Trials would be evaluated on different texts; with max_documents the validation text is the same for all."""
    searched = "max_train_tokens = { low = 1000, high = 9000, type = 'int' }\n[fixed]\ndataset = 'owner/name'\n"
    (tmp_path / "s.toml").write_text(STUDY + searched)
    with pytest.raises(StudyFileError, match=r"search_space\.max_train_tokens: it bounds how far .* set max_documents"):
        read_study_file(tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text(STUDY + searched + "max_documents = 1000")
    assert read_study_file(tmp_path / "s.toml").file.fixed["max_documents"] == 1000
