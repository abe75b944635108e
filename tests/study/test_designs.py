"""What goes with which sampler, and how many trials a fixed design has."""

from itertools import pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpopt.errors import StudyFileError
from hpopt.search.conditions import active_params
from hpopt.search.design import grid_points, one_at_a_time_points
from hpopt.search.space import Categorical, Float, Int
from hpopt.study.plan import design_points
from hpopt.study.reading import parse_study_file

TRIALS = "[budget]\ntrials = 100\n"
SEARCH = "momentum = { low = 0.8, high = 0.99 }"
DESIGN = "momentum = { low = 0.8, high = 0.99, num = 3 }"


def study(sampler, *, top="", rest="", space=None):
    if space is None:
        space = SEARCH if sampler in {"tpe", "random"} else DESIGN
    budget = TRIALS if sampler in {"tpe", "random"} and "[budget]" not in rest else ""
    return f'name = "s"\n{top}\n{budget}{rest}\n[search_space]\n{space}\n[sampler]\nname = "{sampler}"\n'


def refusal_of(text):
    with pytest.raises(StudyFileError) as refusal:
        parse_study_file(text, "s.toml")
    return str(refusal.value)


PRUNER = '[pruner]\nname = "asha"'
CONFIRM = "[confirm]"

REFUSED = {
    "search: seeds": (
        study("tpe", top="seeds = 2"),
        "seeds: a search runs each configuration once; use [confirm] to repeat the best",
    ),
    "search: num": (
        study("random", space=DESIGN),
        "search_space.momentum.num: random samples the whole range; remove num, or write a step",
    ),
    "search: no limit": (
        study("tpe", rest="[budget]\n"),
        "budget: no limit; give at least one of trials, gpu_hours, wall_hours, tokens",
    ),
    "search: base": (
        study("tpe") + "base = { momentum = 0.9 }",
        "sampler.base: tpe varies no base; remove it",
    ),
    "grid: pruner with seeds": (
        study("grid", top="seeds = 2", rest=PRUNER),
        "pruner: runs with several seeds are compared by their means at the end; remove it",
    ),
    "grid: no list": (
        study("grid", space=SEARCH),
        "search_space.momentum: a grid needs a list of values; add num or a step, or write { choices = [...] }",
    ),
    "grid: too large": (
        study("grid", space='max_steps = { low = 100, high = 1000000, type = "int" }'),
        "search_space: a grid of more than 100,000 trials; give num",
    ),
    "grid: trials": (
        study("grid", top="seeds = 2", rest="[budget]\ntrials = 5\n"),
        "budget.trials: 5 is below the 6 trials of the design (3 configurations with 2 seeds); remove it, or raise it",
    ),
    "one_at_a_time: pruner": (
        study("one_at_a_time", rest=PRUNER),
        "pruner: one_at_a_time compares complete runs only; remove it",
    ),
    "one_at_a_time: no list": (
        study("one_at_a_time", space=SEARCH),
        "search_space.momentum: one_at_a_time needs a list of values; add num or a step, or write { choices = [...] }",
    ),
    "one_at_a_time: base outside": (
        study("one_at_a_time") + "base = { momentum = 0.5 }",
        "sampler.base.momentum: 0.5 is outside 0.8 to 0.99",
    ),
    "one_at_a_time: base unknown": (
        study("one_at_a_time") + "base = { momentun = 0.9 }",
        "sampler.base.momentun: not searched; did you mean 'momentum'?",
    ),
    "one_at_a_time: default outside": (
        study("one_at_a_time", space="momentum = { low = 0.8, high = 0.9, num = 3 }"),
        "sampler.base.momentum: missing, and its default 0.95 is outside 0.8 to 0.9",
    ),
    "num and step": (
        study("grid", space="momentum = { low = 0.8, high = 0.9, num = 3, step = 0.05 }"),
        "search_space.momentum: num and step exclude each other; remove one",
    ),
    "num of choices": (
        study("grid", space="momentum = { choices = [0.8, 0.9], num = 2 }"),
        "search_space.momentum.num: unknown key; known: choices, type, when",
    ),
    "seeds: none": (study("grid", top="seeds = 0"), "seeds: 0 is below 1"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_design_of_a_study_has_no_use_for_is_refused_with_the_reason(text, message):
    assert refusal_of(text) == f"s.toml: {message}"


@pytest.mark.parametrize(
    ("text", "pruner"),
    [
        (study("tpe", rest=CONFIRM), "asha"),
        (study("random", rest=PRUNER), "asha"),
        (study("grid", top="seeds = 3", rest=CONFIRM), "none"),
        (study("grid", rest=PRUNER), "asha"),
        (study("grid", rest="[pruner]\nreduction_factor = 4"), "asha"),
        (study("grid", top="seeds = 2", rest='[pruner]\nname = "none"'), "none"),
        (study("grid", rest="[budget]\ntrials = 3\n"), "none"),
        (study("one_at_a_time", top="seeds = 3", rest=CONFIRM), "none"),
        (study("one_at_a_time") + "base = { momentum = 0.81 }", "none"),
    ],
)
def test_what_goes_with_a_design_is_accepted_and_a_fixed_one_has_no_pruner_by_default(text, pruner):
    assert parse_study_file(text, "s.toml").file.pruner.name == pruner


def test_one_at_a_time_changes_each_parameter_of_the_base_and_runs_the_base_once():
    space = """
learning_rate = { low = 0.001, high = 0.1, log = true, num = 3 }
momentum = { choices = [0.85, 0.95], when = { optimizer = "muon" } }
optimizer = { choices = ["muon", "adamw"] }
"""
    file = parse_study_file(study("one_at_a_time", space=space) + "base = { learning_rate = 0.01 }", "s.toml").file
    base = {"learning_rate": 0.01, "momentum": 0.95, "optimizer": "muon"}
    assert list(design_points(file)) == [
        base,
        {**base, "learning_rate": 0.001},
        {**base, "learning_rate": 0.1},
        {**base, "momentum": 0.85},
        {"learning_rate": 0.01, "optimizer": "adamw"},
    ]


FLOATS = st.builds(
    lambda low, width, num: Float(low=low, high=low + width, num=num),
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 1e3),
    st.integers(2, 50),
)
LOGS = st.builds(
    lambda low, ratio, num: Float(low=low, high=low * ratio, num=num, log=True),
    st.floats(1e-8, 1e3),
    st.floats(1.01, 1e6),
    st.integers(2, 50),
)


@given(FLOATS | LOGS)
def test_num_points_rise_in_equal_steps_from_low_to_high_exactly(searched):
    points = searched.points()
    assert (points[0], points[-1], len(points)) == (searched.low, searched.high, searched.num)
    assert all(searched.contains(value) for value in points)
    steps = [b / a if searched.log else b - a for a, b in pairwise(points)]
    assert all(step > (1 if searched.log else 0) for step in steps)
    assert steps == [pytest.approx(steps[0], rel=1e-6)] * len(steps)


@given(st.integers(-1000, 1000), st.integers(1, 1000), st.integers(2, 50))
def test_num_points_of_whole_numbers_are_rounded_and_unique(low, width, num):
    searched = Int(low=low, high=low + width, num=num)
    points = searched.points()
    assert (points[0], points[-1]) == (low, low + width)
    assert len(points) == min(num, width + 1)
    assert all(type(value) is int and a < value for a, value in pairwise(points))


def test_points_have_no_rounding_errors():
    assert Float(low=0.06, high=0.14, num=9).points() == (0.06, 0.07, 0.08, 0.09, 0.1, 0.11, 0.12, 0.13, 0.14)
    assert Float(low=1e-4, high=1, num=5, log=True).points() == (0.0001, 0.001, 0.01, 0.1, 1)
    assert Int(low=8, high=256, num=6, log=True).points() == (8, 16, 32, 64, 128, 256)


RANGES = st.one_of(
    FLOATS,
    st.builds(lambda n: Categorical(choices=tuple("abcde"[:n])), st.integers(1, 5)),
    st.builds(lambda low, width: Int(low=low, high=low + width), st.integers(-5, 5), st.integers(0, 4)),
)


@given(st.lists(RANGES.filter(lambda searched: len(searched.points()) < 8), min_size=1, max_size=4), st.data())
def test_the_size_of_a_design_is_the_product_or_the_sum_of_its_values(ranges, data):
    space = {f"p{i}": searched for i, searched in enumerate(ranges)}
    values = {name: list(searched.points()) for name, searched in space.items()}
    grid = list(grid_points(space))
    assert len(grid) == len({tuple(point.items()) for point in grid}) == prod(map(len, values.values()))
    base = {name: data.draw(st.sampled_from(own)) for name, own in values.items()}
    points = list(one_at_a_time_points(space, base))
    assert points[0] == active_params(space, base)
    n_changes = sum(len(own) - 1 for own in values.values())
    assert len(points) == len({tuple(point.items()) for point in points}) == 1 + n_changes
    assert all(sum(point[name] != base[name] for name in space) == 1 for point in points[1:])
