"""A range contains the values that Optuna samples from it."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import TypeAdapter, ValidationError

from hpopt.search.space import Categorical, Float, Int, Range, as_sampled, describe_mismatch

VALUES = [-1, 0, 1, 2, 3, 4, 5, 8, 9, 10, 0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.30000000000000004, 0.5, 0.7, 1.0, 2.5, 9.0]


def read(table):
    return TypeAdapter(Range).validate_python(table)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"low": 1e-3, "high": 0.3, "log": True}, Float(low=1e-3, high=0.3, log=True)),
        ({"low": 1, "high": 9}, Float(low=1.0, high=9.0)),
        ({"low": 1, "high": 9, "type": "int"}, Int(low=1, high=9)),
        ({"low": 0.1, "high": 0.7, "num": 4}, Float(low=0.1, high=0.7, num=4)),
        ({"low": 1, "high": 64, "type": "int", "log": True}, Int(low=1, high=64, log=True)),
        ({"low": 96, "high": 384, "type": "int", "step": 96}, Int(low=96, high=384, step=96)),
        ({"choices": ["muon", "adamw", "Muon"]}, Categorical(choices=("muon", "adamw", "Muon"))),
    ],
)
def test_the_keys_of_a_table_decide_its_type(table, expected):
    assert read(table) == expected


@pytest.mark.parametrize(
    ("parameter", "distribution"),
    [
        (Float(low=0.1, high=0.7), FloatDistribution(0.1, 0.7)),
        (Float(low=0.1, high=5, log=True), FloatDistribution(0.1, 5, log=True)),
        (Float(low=0.1, high=0.7, step=0.1), FloatDistribution(0.1, 0.7, step=0.1)),
        (Float(low=0.0, high=1.0, step=0.25), FloatDistribution(0.0, 1.0, step=0.25)),
        (Int(low=1, high=9), IntDistribution(1, 9)),
        (Int(low=1, high=9, step=2), IntDistribution(1, 9, step=2)),
    ],
)
def test_a_range_contains_what_optuna_samples(parameter, distribution):
    """Optuna ignores an enqueued value that is outside of its range, with a warning."""
    # Optuna accepts 9.0 as an integer; a config does not.
    values = [value for value in VALUES if isinstance(parameter, Float) or type(value) is int]
    assert [parameter.contains(value) for value in values] == [distribution._contains(value) for value in values]


@pytest.mark.filterwarnings("ignore:The distribution is specified by")
@pytest.mark.parametrize(
    "parameter",
    [
        Float(low=0.1, high=0.7),
        Float(low=0.0, high=1.0, step=0.3),
        Float(low=0.1, high=0.7, step=0.1),
        Float(low=0.0, high=0.35, step=0.1),
        Int(low=96, high=400, step=96),
        Int(low=3, high=3),
    ],
)
def test_the_extremes_are_the_lowest_and_highest_values_that_optuna_samples(parameter):
    """A high between two steps is never sampled, so it need not be valid for the model."""
    kind = FloatDistribution if isinstance(parameter, Float) else IntDistribution
    distribution = kind(parameter.low, parameter.high, step=parameter.step)
    assert parameter.extremes() == (distribution.low, distribution.high)


def test_the_extremes_of_choices_are_all_choices():
    """Choices have no order: any of them can be invalid for the model."""
    assert Categorical(choices=(8, 3, 4)).extremes() == CategoricalDistribution((8, 3, 4)).choices


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        (Int(low=0, high=1), True),
        (Int(low=1, high=9), 5.0),
        (Float(low=0, high=1), True),
        (Float(low=0, high=1), "0.5"),
        (Float(low=0, high=1), float("nan")),
        (Categorical(choices=(1, 2)), True),
    ],
)
def test_a_value_of_another_type_is_not_contained(parameter, value):
    """True equals 1 in Python, and another config would be trained than the one that was enqueued."""
    assert not parameter.contains(value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"low": 0.3, "high": 0.1}, "low 0.3 is above high 0.1"),
        ({"low": 9, "high": 1, "type": "int"}, "low 9 is above high 1"),
        ({"low": 0, "high": 1, "log": True}, "low 0.0 is not above 0, which log = true needs"),
        ({"low": 0, "high": 8, "log": True, "type": "int"}, "low 0 is not above 0, which log = true needs"),
        ({"low": 1, "high": 2, "log": True, "step": 0.1}, "log and step exclude each other; remove one"),
        ({"low": 1, "high": 8, "log": True, "step": 2, "type": "int"}, "log and step exclude each other; remove one"),
        ({"low": 0, "high": 1, "step": 2}, "step 2.0 is above high - low, 1.0"),
        ({"low": 0, "high": 1, "step": 2, "type": "int"}, "step 2 is above high - low, 1"),
        ({"low": 0, "high": 1e308, "step": 1e-300}, "step 1e-300 is too small for a range from 0.0 to 1e+308"),
        ({"low": 0, "high": 1e10, "step": 1e-20}, "step 1e-20 is too small for a range from 0.0 to 10000000000.0"),
        ({"choices": ["a\0b"]}, r"'a\x00b' has a NUL, which PostgreSQL does not store"),
        ({"choices": [1, 2, 1]}, "1 is listed twice"),
        ({"choices": [1, 1.0]}, "1.0 is listed twice"),
        ({"choices": [1, "1"]}, "'1' is shown like 1; rename one of them"),
        ({"choices": ["true", True]}, "True is shown like 'true'; rename one of them"),
        ({"choices": ["True", True]}, "True is shown like 'True'; rename one of them"),
        ({"choices": [0.001, "0.001"]}, "'0.001' is shown like 0.001; rename one of them"),
        ({"choices": [0.1, float("nan")]}, "nan is not a string, a finite number, true or false"),
        (
            {"choices": [["q_proj", "v_proj"], ["all-linear"]]},
            (
                "['q_proj', 'v_proj'] is not a string, a finite number, true or false; "
                'write "q_proj,v_proj", and split it in the objective'
            ),
        ),
    ],
)
def test_an_invalid_range_is_refused(table, message):
    """Optuna would raise an error for each of these, or sample invalid values, in a running worker."""
    with pytest.raises(ValidationError) as refusal:
        read(table)
    assert str(refusal.value.errors()[0]["ctx"]["error"]) == message


@pytest.mark.parametrize(
    "table",
    [
        {"low": True, "high": 2},
        {"low": "0.1", "high": 1},
        {"low": float("nan"), "high": 1},
        {"low": 0, "high": float("inf")},
        {"low": 1.5, "high": 9, "type": "int"},
        {"low": 1, "high": 2**53 + 1, "type": "int"},
        {"low": 0, "high": 1, "step": 0},
        {"low": 1, "high": 9, "step": 0, "type": "int"},
        {"low": 1, "high": 9, "type": "integer"},
        {"low": 1, "high": 9, "choices": [1]},
        {"low": 1, "hihg": 9},
        {"choices": []},
        {"choices": "muon"},
        {},
        0.1,
    ],
)
def test_a_table_that_is_not_a_range_is_refused(table):
    with pytest.raises(ValidationError):
        read(table)


@pytest.mark.parametrize(
    ("parameter", "value", "sampled"),
    [
        (Float(low=0, high=2), 1, 1.0),
        (Int(low=0, high=2), 1, 1),
        (Categorical(choices=("muon", 1)), 1.0, 1),
        (Categorical(choices=("muon", 1)), "muon", "muon"),
    ],
)
def test_a_value_has_the_type_that_optuna_samples(parameter, value, sampled):
    """Configs take no 1 for a float, and JSON keeps no 1.0."""
    assert repr(as_sampled(parameter, value)) == repr(sampled)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        (Float(low=0.1, high=0.7), 1, "1 is outside 0.1 to 0.7"),
        (Float(low=0.0, high=1.0, step=0.25), 0.1, "0.1 is outside 0.0 to 1.0 in steps of 0.25"),
        (Float(low=0.1, high=0.7), "0.5", "'0.5' is not a number"),
        (Int(low=1, high=9), 10, "10 is outside 1 to 9"),
        (Int(low=1, high=9, step=2), 2, "2 is outside 1 to 9 in steps of 2"),
        (Int(low=1, high=9), 2.0, "2.0 is not a whole number"),
    ],
)
def test_a_value_that_is_not_contained_is_described(parameter, value, message):
    assert describe_mismatch(parameter, value) == message
