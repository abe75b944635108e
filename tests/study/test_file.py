"""A study file builds the configs of its trials, and is compared with the file of an existing study."""

import pytest

from hpopt.errors import ConfigError
from hpopt.study.file import space_difference
from hpopt.study.reading import parse_study_file
from hpopt.training.config import PretrainConfig

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


def replaced(old, new, text=STUDY):
    assert old in text
    return text.replace(old, new)


def test_a_config_has_the_fixed_values_the_params_and_the_seed():
    study = parse(STUDY + "[fixed]\nd_model = 96\nseed = 5")
    config = study.config({"learning_rate": 0.1}, seed=7)
    assert config == PretrainConfig(d_model=96, learning_rate=0.1, seed=7)
    assert study.config({"learning_rate": 0.1}).seed == 5


def test_an_invalid_config_is_refused_when_it_is_built():
    """A script can enqueue any params with stock Optuna."""
    with pytest.raises(ConfigError, match=r"^learning_rate: -1.0 is not above 0$"):
        parse(STUDY).config({"learning_rate": -1.0})


def test_the_default_params_are_those_of_the_searched_parameters():
    study = parse(replaced(RATE, RATE + '\nns_steps = { low = 1, high = 9, type = "int" }'))
    assert study.default_params() == {"learning_rate": PretrainConfig().learning_rate, "ns_steps": 5}


def test_there_are_no_default_params_if_one_is_outside_of_its_range():
    """A clipped default, enqueued as the default configuration, would make a wrong comparison."""
    assert parse(replaced("high = 0.3", "high = 0.01")).default_params() is None


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
def test_the_difference_between_two_spaces_is_described(old, new, difference):
    """One trial with another range makes multivariate TPE drop the parameter without a warning."""
    assert space_difference(parse(replaced(old, new)), parse(STUDY)) == difference


def test_budget_sampler_pruner_and_enqueued_configurations_may_differ():
    """A study continues with a larger budget."""
    text = (
        replaced("trials = 4", "trials = 40\ngpu_hours = 1") + '[sampler]\nname = "random"\n[pruner]\nname = "none"\n'
    )
    assert space_difference(parse(text + "[[enqueue]]\nlearning_rate = 0.1"), parse(STUDY)) is None
