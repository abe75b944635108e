import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import TypeAdapter, ValidationError

from hpopt.search.space import Categorical, Float, Int, Range

VALUES = [-1, 0, 1, 2, 3, 4, 5, 8, 9, 10, 0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.30000000000000004, 0.5, 0.7, 1.0, 2.5, 9.0]


def read(table):
    return TypeAdapter(Range).validate_python(table)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"low": 1e-3, "high": 0.3, "log": True}, Float(low=1e-3, high=0.3, log=True)),
        ({"low": 1, "high": 9}, Float(low=1.0, high=9.0)),
        ({"low": 1, "high": 9, "type": "int"}, Int(low=1, high=9)),
        ({"low": 96, "high": 384, "type": "int", "step": 96}, Int(low=96, high=384, step=96)),
        ({"choices": ["muon", "adamw"]}, Categorical(choices=("muon", "adamw"))),
    ],
)
def test_the_keys_of_a_table_say_which_range_it_is(table, expected):
    assert read(table) == expected


@pytest.mark.parametrize(
    ("searched", "distribution"),
    [
        (Float(low=0.1, high=0.7), FloatDistribution(0.1, 0.7)),
        (Float(low=0.1, high=5, log=True), FloatDistribution(0.1, 5, log=True)),
        (Float(low=0.1, high=0.7, step=0.1), FloatDistribution(0.1, 0.7, step=0.1)),
        (Float(low=0.0, high=1.0, step=0.25), FloatDistribution(0.0, 1.0, step=0.25)),
        (Int(low=1, high=9), IntDistribution(1, 9)),
        (Int(low=1, high=9, step=2), IntDistribution(1, 9, step=2)),
    ],
)
def test_a_range_contains_what_optuna_would_sample(searched, distribution):
    """An enqueued value that optuna thinks outside of the range is dropped there with no more than a warning."""
    # Optuna takes 9.0 for a whole number; a config does not.
    values = [value for value in VALUES if isinstance(searched, Float) or type(value) is int]
    assert [searched.contains(value) for value in values] == [distribution._contains(value) for value in values]


@pytest.mark.filterwarnings("ignore:The distribution is specified by")
@pytest.mark.parametrize(
    "searched",
    [
        Float(low=0.1, high=0.7),
        Float(low=0.0, high=1.0, step=0.3),
        Float(low=0.1, high=0.7, step=0.1),
        Int(low=96, high=400, step=96),
        Int(low=3, high=3),
    ],
)
def test_the_extremes_are_the_outermost_values_that_optuna_would_sample(searched):
    """A high that the step never reaches is never trained, so whether the model could take it does not matter."""
    kind = FloatDistribution if isinstance(searched, Float) else IntDistribution
    distribution = kind(searched.low, searched.high, step=searched.step)
    assert searched.extremes() == pytest.approx((distribution.low, distribution.high))


def test_the_extremes_of_choices_are_all_of_them():
    """Choices have no order: the one in the middle may be the one that the model cannot take."""
    assert Categorical(choices=(8, 3, 4)).extremes() == CategoricalDistribution((8, 3, 4)).choices


@pytest.mark.parametrize(
    ("searched", "value"),
    [
        (Int(low=0, high=1), True),
        (Int(low=1, high=9), 5.0),
        (Float(low=0, high=1), True),
        (Float(low=0, high=1), "0.5"),
        (Float(low=0, high=1), float("nan")),
        (Categorical(choices=(1, 2)), True),
    ],
)
def test_a_value_of_another_type_is_not_contained(searched, value):
    """Python takes True for 1, and a config would be trained that is not the one asked for."""
    assert not searched.contains(value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"low": 0.3, "high": 0.1}, "low 0.3 is above high 0.1"),
        ({"low": 9, "high": 1, "type": "int"}, "low 9 is above high 1"),
        ({"low": 0, "high": 1, "log": True}, "low 0.0 is not above 0, which log = true needs"),
        ({"low": 0, "high": 8, "log": True, "type": "int"}, "low 0 is not above 0, which log = true needs"),
        ({"low": 1, "high": 2, "log": True, "step": 0.1}, "log and step do not go together; drop one"),
        ({"low": 1, "high": 8, "log": True, "step": 2, "type": "int"}, "log and step do not go together; drop one"),
        ({"low": 0, "high": 1, "step": 2}, "step 2.0 is above high - low, 1.0"),
        ({"low": 0, "high": 1e308, "step": 1e-300}, "step 1e-300 is too small to tell 0.0 from 1e+308"),
        ({"choices": [1, 2, 1]}, "1 is there twice"),
        ({"choices": [1, 1.0]}, "1.0 is there twice"),
        ({"choices": [0.1, float("nan")]}, "nan is not a string, a finite number, true or false"),
        ({"choices": [[1, 2]]}, "[1, 2] is not a string, a finite number, true or false"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(table, message):
    """Each of these would raise in optuna, or sample nonsense, hours later on a GPU."""
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
def test_a_table_that_is_no_range_is_refused(table):
    with pytest.raises(ValidationError):
        read(table)
