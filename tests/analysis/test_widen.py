from collections.abc import Callable

import pytest

from hpopt.analysis.trials import StudyTable
from hpopt.analysis.widen import widen
from hpopt.search.space import Categorical, Float, Int


@pytest.mark.parametrize(
    ("name", "range_", "side", "widened"),
    [
        # Logarithmic ranges grow by a factor: the root of their own width, at most 10.
        ("x", Float(low=0.01, high=1.0, log=True), "high", Float(low=0.01, high=10.0, log=True)),
        ("x", Float(low=0.01, high=0.16, log=True), "low", Float(low=0.0025, high=0.16, log=True)),
        # Others by half of their width.
        ("x", Float(low=0.0, high=0.2), "high", Float(low=0.0, high=0.3)),
        ("x", Float(low=0.0, high=1.0, step=0.25), "high", Float(low=0.0, high=1.5, step=0.25)),
        # Integers stay integers, and grow by at least one.
        ("x", Int(low=1, high=9), "high", Int(low=1, high=13)),
        ("x", Int(low=4, high=5), "high", Int(low=4, high=6)),
        ("x", Int(low=16, high=64, log=True), "low", Int(low=8, high=64, log=True)),
        ("x", Int(low=2, high=10, step=4), "high", Int(low=2, high=14, step=4)),
        # Choices continue by the ratio or the difference of the last two.
        ("x", Categorical(choices=(16, 32, 64)), "high", Categorical(choices=(16, 32, 64, 128))),
        ("x", Categorical(choices=(3, 5, 7)), "low", Categorical(choices=(1, 3, 5, 7))),
    ],
)
def test_a_range_grows_on_the_side_of_its_optimum(make_table: Callable[..., StudyTable], name, range_, side, widened):
    assert widen(make_table([], {name: range_}), name, side) == widened


@pytest.mark.parametrize(
    ("name", "range_", "side", "widened"),
    [
        # momentum must stay below 1: half of the remaining distance.
        ("momentum", Float(low=0.8, high=0.99), "high", Float(low=0.8, high=0.995)),
        # warmup_ratio cannot be less than 0, and ns_steps not less than 1 step.
        ("warmup_ratio", Float(low=0.0, high=0.2), "low", None),
        ("warmup_ratio", Float(low=0.02, high=0.2), "low", Float(low=0.0, high=0.2)),
        ("ns_steps", Int(low=1, high=9), "low", None),
        ("ns_steps", Int(low=2, high=9), "low", Int(low=1, high=9)),
        ("ns_steps", Categorical(choices=(1, 3, 5)), "low", None),
        # The dictionary has a bound for what ends with one of its names.
        ("my_weight_decay", Float(low=0.0, high=0.2), "low", None),
        ("lora_dropout", Float(low=0.0, high=0.9), "high", Float(low=0.0, high=0.95)),
        # A parameter that it does not have stays on its side of zero.
        ("wd", Float(low=0.0, high=0.2), "low", None),
        ("wd", Float(low=0.1, high=0.9), "low", Float(low=0.05, high=0.9)),
        ("wd", Float(low=-0.1, high=0.1), "low", Float(low=-0.2, high=0.1)),
        ("epochs", Int(low=1, high=5), "low", None),
        ("epochs", Int(low=2, high=8, log=True), "low", Int(low=1, high=8, log=True)),
        ("batch", Categorical(choices=(1, 2, 4)), "low", None),
        ("wd", Categorical(choices=(0.0, 0.1, 0.2)), "low", None),
        ("shift", Float(low=-0.9, high=-0.1), "high", Float(low=-0.9, high=-0.05)),
    ],
)
def test_a_widened_range_has_valid_values_only(make_table: Callable[..., StudyTable], name, range_, side, widened):
    """A study file with the widened range must be valid."""
    assert widen(make_table([], {name: range_}), name, side) == widened
