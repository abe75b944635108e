"""Every sampled point of a conditional space has the parameters that are active there, and no others."""

import math
import tomllib
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpopt.errors import ConfigError
from hpopt.search import tpe
from hpopt.search.conditions import (
    condition_to_toml,
    corners,
    describe_condition,
    extreme_params,
    find_conditions,
    find_missing,
)
from hpopt.search.design import grid_points
from hpopt.search.sampler import Draw, propose, to_distributions
from hpopt.search.space import Categorical, Float, Int
from hpopt.search.tpe import Observations
from hpopt.study.checks import check_params

RANGES = {
    "choices": Categorical(choices=("muon", "adamw", True, 3)),
    "int": Int(low=1, high=3),
    "step": Float(low=0.0, high=0.3, step=0.1),
    "one": Categorical(choices=("only",)),
    "float": Float(low=1e-3, high=0.3, log=True),
}


def values_of(parameter):
    return list(parameter.choices if isinstance(parameter, Categorical) else parameter.values())


@st.composite
def spaces(draw, kinds=tuple(RANGES)):
    """Draw a space of up to five parameters, each conditional on some of those before, in any order."""
    space = {}
    for i in range(draw(st.integers(1, 5))):
        parents = draw(st.sets(st.sampled_from([name for name in space if "float" not in name] or [None]), max_size=2))
        when = {
            parent: tuple(draw(st.sets(st.sampled_from(values_of(space[parent])), min_size=1)))
            for parent in sorted(parents - {None})
        }
        kind = draw(st.sampled_from(kinds))
        parameter = RANGES[kind].model_copy(update={"when": when})
        if all(all(condition.values()) for condition in find_conditions({**space, "x": parameter}).values()):
            space[f"{kind}{i}"] = parameter
    return {name: space[name] for name in draw(st.permutations(list(space)))} if space else {"one": RANGES["one"]}


def assert_has_active_parameters(space, params):
    for name, parameter in space.items():
        is_active = all(params.get(parent, None) in values for parent, values in parameter.when.items())
        assert (name in params) == is_active, (name, params)
    check_params(space, params)


def observations_of(space, rows):
    """Return trials of params and scores as columns."""
    return Observations(
        values={
            name: np.array([d.to_internal_repr(p[name]) if name in p else np.nan for p, _ in rows], float)
            for name, d in to_distributions(space).items()
        },
        kind=np.array([tpe.FAILED if math.isnan(score) else tpe.COMPLETE for _, score in rows], np.int8),
        step=np.full(len(rows), -1),
        score=np.array([score for _, score in rows], float),
    )


def sample(space, rows, number, params=None, **options):
    draw = Draw(**{"algorithm": "tpe", "n_startup_trials": 3, "seed": 0, "number": number, **options})
    observations, conditions = observations_of(space, rows), find_conditions(space)
    return propose(draw, to_distributions(space), observations, params or {}, conditions)


@settings(max_examples=60, deadline=None)
@given(space=spaces(), algorithm=st.sampled_from(["tpe", "random"]), data=st.data())
def test_a_sampled_point_has_the_active_parameters(space, algorithm, data):
    rows = []
    for number in range(8):
        params = sample(space, rows, number, algorithm=algorithm)
        assert_has_active_parameters(space, params)
        rows.append((params, data.draw(st.sampled_from([0.0, 1.0, 2.0, math.nan]))))


@settings(max_examples=60, deadline=None)
@given(space=spaces(), data=st.data())
def test_an_enqueued_point_keeps_its_values_and_the_other_active_ones_are_sampled(space, data):
    point = sample(space, [], data.draw(st.integers(0, 99)))
    conditions = find_conditions(space)
    some = data.draw(st.sets(st.sampled_from(sorted(point))))
    kept = {name: value for name, value in point.items() if name in some and conditions[name].keys() <= some}
    check_params(space, kept)
    params = sample(space, [], 100, kept)
    assert_has_active_parameters(space, params)
    assert kept.items() <= params.items()
    for name in space.keys() - point.keys():
        with pytest.raises(ConfigError, match=f"{name}: active only where "):
            check_params(space, {**point, name: space[name].extremes()[0]})


@settings(max_examples=60, deadline=None)
@given(space=spaces(kinds=("choices", "int", "step", "one")))
def test_a_grid_has_every_point_of_the_active_parameters_once(space):
    points = list(grid_points(space))
    distinct = {frozenset((name, repr(value)) for name, value in point.items()) for point in points}
    assert len(distinct) == len(points)
    for point in points:
        assert_has_active_parameters(space, point)
    parents_first = list(find_conditions(space))
    expected = set()
    for values in product(*(values_of(space[name]) for name in parents_first)):
        params = {}
        for name, value in zip(parents_first, values, strict=True):
            if all(params.get(parent) in allowed for parent, allowed in space[name].when.items()):
                params[name] = value
        expected.add(frozenset((name, repr(value)) for name, value in params.items()))
    assert distinct == expected


CONDITIONAL = {
    "optimizer": Categorical(choices=("muon", "adamw", "sgd")),
    "learning_rate": Float(low=1e-4, high=1.0, log=True),
    "momentum": Float(low=0.5, high=1.0, when={"optimizer": ("muon", "sgd")}),
    "ns_steps": Int(low=1, high=9, when={"optimizer": ("muon",)}),
    "beta": Float(low=0.5, high=1.0, when={"optimizer": ("adamw",)}),
}


def loss(params):
    """Return a bowl for each optimizer, of which muon has the deepest."""
    exponent = math.log10(params["learning_rate"])
    if params["optimizer"] == "muon":
        steps = 0.02 * (params["ns_steps"] - 5) ** 2
        return (exponent + 1.5) ** 2 + 8 * (params["momentum"] - 0.95) ** 2 + steps
    if params["optimizer"] == "adamw":
        return 0.3 + (exponent + 3) ** 2 + 8 * (params["beta"] - 0.9) ** 2
    return 0.6 + (exponent + 1) ** 2 + 8 * (params["momentum"] - 0.7) ** 2


def test_tpe_finds_the_optimum_of_a_conditional_function():
    best = {}
    for algorithm in ("tpe", "random"):
        for seed in range(5):
            rows = []
            for number in range(50):
                params = sample(CONDITIONAL, rows, number, algorithm=algorithm, n_startup_trials=10, seed=seed)
                rows.append((params, loss(params)))
            best[algorithm, seed] = min(score for _, score in rows)
    of_tpe, at_random = (sorted(best[algorithm, seed] for seed in range(5)) for algorithm in ("tpe", "random"))
    assert of_tpe[2] < 0.1 < at_random[2]
    assert sum(of_tpe) < 0.6 * sum(at_random)


def test_a_parameter_is_sampled_from_the_trials_in_which_it_was_active():
    """The trials without it rank first, and say nothing about its values."""
    rng = np.random.default_rng(0)
    rows = [({"optimizer": "adamw", "learning_rate": 0.1, "beta": 0.9}, -1.0)] * 30
    rows += [
        ({"optimizer": "muon", "learning_rate": 0.1, "momentum": m, "ns_steps": 5}, abs(m - 0.9))
        for m in rng.uniform(0.5, 1.0, 30)
    ]
    momenta = [sample(CONDITIONAL, rows, number, {"optimizer": "muon"})["momentum"] for number in range(20)]
    assert np.mean([abs(momentum - 0.9) < 0.05 for momentum in momenta]) > 0.6


@pytest.mark.parametrize(
    ("params", "missing"),
    [
        ({}, list(CONDITIONAL)),
        ({"optimizer": "sgd"}, ["learning_rate", "momentum"]),
        ({"optimizer": "adamw", "learning_rate": 0.1, "beta": 0.9}, []),
    ],
)
def test_a_parameter_is_missing_unless_it_is_inactive_whatever_the_others_are(params, missing):
    assert find_missing(CONDITIONAL, params) == missing


def test_the_extremes_of_a_space_are_points_of_it():
    assert extreme_params(CONDITIONAL, 0) == {
        "optimizer": "muon",
        "learning_rate": 1e-4,
        "momentum": 0.5,
        "ns_steps": 1,
    }
    assert extreme_params(CONDITIONAL, -1) == {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 1.0}


def test_the_corners_of_a_space_are_points_with_both_ends_of_each_range():
    points = list(corners(CONDITIONAL))
    for point in points:
        assert_has_active_parameters(CONDITIONAL, point)
    for name, range_ in CONDITIONAL.items():
        ends = {range_.extremes()[0], range_.extremes()[-1]}
        assert ends <= {point[name] for point in points if name in point}


def test_a_condition_is_written_in_words_and_as_in_a_study_file():
    condition = {"optimizer": ("muon", "sgd"), "nesterov": (True,)}
    assert describe_condition(condition) == "optimizer = muon or sgd and nesterov = True"
    assert tomllib.loads(condition_to_toml(condition)) == {"when": {"optimizer": ["muon", "sgd"], "nesterov": True}}
