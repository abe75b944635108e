"""`when` makes a parameter conditional on values of others; what no trial can meet is refused when the file is read."""

import pytest

from hpopt.errors import ConfigError, StudyFileError
from hpopt.search.design import grid_points
from hpopt.study.checks import check_enqueued_trial
from hpopt.study.conditions import describe_unused
from hpopt.study.file import space_difference
from hpopt.study.reading import parse_study_file

STUDY = """
name = "s"
[budget]
trials = 4
[search_space]
optimizer = { choices = ["muon", "adamw"] }
"""
MOMENTUM = 'momentum = { low = 0.8, high = 0.99, when = { optimizer = "muon" } }\n'
STEPS = 'ns_steps = { low = 3, high = 7, type = "int", when = { optimizer = ["muon"] } }\n'


def parse(*lines):
    return parse_study_file(STUDY + "\n".join(lines), "s.toml").file


def refusal_of(*lines):
    with pytest.raises(StudyFileError) as refusal:
        parse(*lines)
    message = str(refusal.value)
    assert message.startswith("s.toml: ")
    assert "\n" not in message
    return message.removeprefix("s.toml: ")


def momentum(when):
    return f"momentum = {{ low = 0.8, high = 0.99, when = {when} }}"


def test_a_condition_is_one_value_or_a_list():
    space = parse(MOMENTUM, STEPS).search_space
    assert space["momentum"].when == space["ns_steps"].when == {"optimizer": ("muon",)}


@pytest.mark.parametrize(
    ("lines", "key", "problem"),
    [
        ([momentum('{ optimiser = "muon" }')], ".optimiser", "neither searched nor fixed; did you mean 'optimizer'?"),
        ([momentum("{ dropout = 0.1 }")], ".dropout", "neither searched nor fixed; known: optimizer"),
        ([momentum('{ optimizer = "moun" }')], ".optimizer", "'moun' is not one of muon, adamw; did you mean 'muon'?"),
        ([momentum("{ optimizer = 1 }")], ".optimizer", "1 is not one of muon, adamw"),
        ([momentum("{ optimizer = [] }")], ".optimizer", "no value; list those with which the parameter is active"),
        ([momentum("{ optimizer = nan }")], ".optimizer", "nan is not a string, a finite number, true or false"),
        ([momentum('"muon"')], "", "'muon' is not a table"),
        (
            [momentum("{ dropout = 0.1 }"), "dropout = { low = 0.0, high = 0.2 }"],
            ".dropout",
            "searched in a range without a list of values; add a step, or write { choices = [...] }",
        ),
        (
            [momentum("{ top_k = 5 }"), 'top_k = { low = 1, high = 4, type = "int" }'],
            ".top_k",
            "5 is outside 1 to 4",
        ),
        (
            [momentum("{ precision = 'bf16' }"), "[fixed]", "precision = 'fp32'"],
            ".precision",
            "never active with precision = 'fp32' in [fixed]; remove it, or search precision too",
        ),
        (
            [momentum("{ precision = ['fp32', 'bf61'] }"), "[fixed]", "precision = 'fp32'"],
            ".precision",
            "'bf61' is not one of auto, fp32, bf16; did you mean 'bf16'?",
        ),
        (
            [
                momentum("{ dropout = 0.1, optimizer = 'muon' }"),
                "dropout = { choices = [0.1], when = { optimizer = 'adamw' } }",
            ],
            "",
            "never active: the conditions on optimizer exclude each other",
        ),
    ],
)
def test_a_condition_that_no_trial_can_meet_is_refused(lines, key, problem):
    assert refusal_of(*lines) == f"search_space.momentum.when{key}: {problem}"


def test_a_condition_that_leaves_a_parameter_without_effect_is_refused():
    assert refusal_of(momentum('{ optimizer = "adamw" }')) == (
        "search_space.momentum: has no effect with optimizer = 'adamw'; write when = { optimizer = \"muon\" }"
    )
    assert refusal_of(MOMENTUM.replace("when", "wen")) == (
        "search_space.momentum.wen: unknown key; did you mean 'when'?"
    )


@pytest.mark.parametrize(
    ("lines", "cycle"),
    [
        ([momentum("{ momentum = 0.8 }")], "momentum depends on momentum"),
        (
            [
                "dropout = { choices = [0.0, 0.1], when = { momentum = 0.9 } }",
                "momentum = { choices = [0.9], when = { top_k = 2 } }",
                "top_k = { choices = [1, 2], when = { dropout = 0.1 } }",
            ],
            "dropout depends on momentum on top_k on dropout",
        ),
    ],
)
def test_parameters_that_depend_on_each_other_are_refused(lines, cycle):
    assert refusal_of(*lines) == f"search_space: conditions without a beginning: {cycle}"


def test_a_parameter_is_active_in_all_trials_where_its_parent_is_fixed():
    file = parse("top_k = { choices = [1, 2], when = { n_experts = [4, 8] } }", "[fixed]", "n_experts = 8")
    assert [set(point) for point in grid_points(file.search_space)] == [{"optimizer", "top_k"}] * 4


def test_the_defaults_are_those_of_the_active_parameters():
    file = parse(MOMENTUM, "dropout = { low = 0.1, high = 0.2, when = { optimizer = 'adamw' } }")
    assert file.default_params() == {"optimizer": "muon", "momentum": 0.95}


def test_combinations_are_checked_with_the_active_parameters_alone():
    """384 is divisible by the 8 heads of the default; 7 and 12 heads are searched where the width is their multiple."""
    heads = "n_heads = { choices = [7, 14], when = { d_model = 448 } }"
    parse(heads, "d_model = { choices = [384, 448] }")
    parents = ["d_model = { choices = [384, 448] }", "n_layers = { choices = [1, 2] }", "top_k = { choices = [1, 2] }"]
    parse("n_heads = { choices = [7], when = { d_model = 448, n_layers = 2, top_k = 2 } }", *parents)
    assert refusal_of(heads.replace("14", "9"), "d_model = { choices = [384, 448] }") == (
        "search_space.d_model: 448 is not divisible by n_heads 9"
    )


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ('optimizer = "adamw"\nmomentum = 0.9', "active only where optimizer = muon; remove momentum"),
        ("momentum = 0.9", "active only where optimizer = muon; give optimizer too"),
    ],
)
def test_a_value_of_an_inactive_parameter_is_not_enqueued(params, problem):
    assert refusal_of(MOMENTUM, "[[enqueue]]", params) == f"enqueue[0].momentum: {problem}"
    parse(MOMENTUM, "[[enqueue]]", 'optimizer = "muon"', "momentum = 0.9")
    parse(MOMENTUM, "[[enqueue]]", 'optimizer = "adamw"')
    check_enqueued_trial(parse(MOMENTUM), {"optimizer": "muon", "momentum": 0.9})
    with pytest.raises(
        ConfigError, match="momentum: enqueued, but active only where optimizer = muon; remove momentum"
    ):
        check_enqueued_trial(parse(MOMENTUM), {"optimizer": "adamw", "momentum": 0.9})


def test_studies_with_other_conditions_are_incomparable():
    file, other = parse(MOMENTUM), parse(MOMENTUM.replace(', when = { optimizer = "muon" }', ""))
    assert space_difference(file, other) == "search_space.momentum: when optimizer = muon, was always"


def test_the_condition_of_a_parameter_without_effect_is_suggested():
    line = 'momentum has no effect in some trials; add when = { optimizer = "muon" }'
    assert describe_unused(parse("momentum = { low = 0.8, high = 0.99 }")) == [line]
    assert describe_unused(parse(MOMENTUM)) == []
