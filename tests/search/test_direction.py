"""A direction compares values, with and without a value to compare."""

import math

import pytest

from hpopt.search.direction import Direction


@pytest.mark.parametrize(("direction", "best"), [(Direction.MINIMIZE, 1.0), (Direction.MAXIMIZE, 3.0)])
def test_the_best_of_values_is_the_lowest_or_the_highest(direction, best):
    values = [2.0, None, 3.0, math.nan, 1.0, math.inf, -math.inf]
    assert direction.best(values, key=lambda value: value) == best
    assert direction.best([], key=lambda value: value) is None


def test_the_first_of_equal_values_is_the_best():
    assert Direction.MAXIMIZE.best(["first", "second"], key=lambda _: 1.0) == "first"


def test_an_equal_value_is_not_better():
    assert Direction.MINIMIZE.is_better(1.0, 2.0)
    assert Direction.MAXIMIZE.is_better(2.0, 1.0)
    assert not Direction.MINIMIZE.is_better(1.0, 1.0)
    assert not Direction.MAXIMIZE.is_better(1.0, 1.0)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_the_loss_of_a_value_that_is_not_finite_is_infinite(value):
    assert {direction.loss(value) for direction in Direction} == {math.inf}


def test_the_loss_of_a_value_is_lower_if_it_is_better():
    assert (Direction.MINIMIZE.loss(2.0), Direction.MAXIMIZE.loss(2.0)) == (2.0, -2.0)
