"""Derived parameters are arithmetic on others, and are refused before a trial if they have no value of their type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpopt.errors import StudyFileError
from hpopt.study.derived import parse_expression
from hpopt.study.plan import not_taken
from hpopt.study.reading import parse_study_file

STUDY = """
name = "s"
[budget]
trials = 4
[search_space]
learning_rate = { low = 0.001, high = 0.3, log = true }
decay = { low = 0.01, high = 0.2, log = true }
heads = { low = 2, high = 4, type = "int" }
[fixed]
max_grad_norm = 0.5
optimizer = "muon"
[derived]
adamw_learning_rate = "0.1 * learning_rate"
momentum = "1 - decay"
d_ff = "heads * 512 / 2"
d_model = "max(64, 2 ** heads) * heads"
n_heads = "heads"
"""

NUMBERS = st.integers(-20, 20) | st.floats(-20, 20).map(lambda value: round(value, 3))
VALUES = {"a": 3, "b": -0.5, "c": 7.25}


def _combine(inner):
    binary = st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "**"]), inner)
    call = st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), inner, inner)
    return binary | call | st.builds("-{}".format, inner)


EXPRESSIONS = st.recursive(NUMBERS.map(str) | st.sampled_from(list(VALUES)), _combine, max_leaves=8)


@given(EXPRESSIONS)
def test_the_result_is_that_of_pythons_arithmetic(text):
    try:
        expected = eval(text, {"__builtins__": {"min": min, "max": max}}, VALUES)  # noqa: S307 - of our own making.
        if isinstance(expected, complex):
            expected = None
        else:
            # The largest integers are no floats.
            float(expected)
    except (ArithmeticError, TypeError):
        expected = None
    try:
        result = parse_expression(text).evaluate(VALUES)
    except ValueError:
        # Python's integers have no largest one; ours are at most the largest float.
        assert expected is None or "**" in text
    else:
        assert result == expected
        assert type(result) is type(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a +",
        "a b",
        "__import__('os')",
        "a.real",
        "a[0]",
        "[a]",
        "a if b else c",
        "a < b",
        "a // b",
        "a % b",
        "not a",
        "min(a)",
        "max(a, key=b)",
        "abs(a)",
        "lambda: a",
        "'text'",
        "True",
        "1j",
        "1e999",
        "a := 1",
        "(" * 300 + "a" + ")" * 300,
        "a\0",
    ],
)
def test_anything_but_arithmetic_is_refused(text):
    with pytest.raises(ValueError, match=r"is not an expression|is not arithmetic; expected|longer than 500"):
        parse_expression(text)


@pytest.mark.parametrize("text", ["10 ** 10 ** 10", "a / 0", "(-8) ** 0.5", "1e308 * 10", "0 ** -1"])
def test_a_result_that_is_no_finite_number_is_refused(text):
    with pytest.raises(ValueError, match="is not a finite number"):
        parse_expression(text).evaluate(VALUES)


def parse(*replaced):
    text = STUDY
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    return parse_study_file(text, "s.toml").file


def test_derived_values_are_in_the_config_in_the_type_of_their_fields_and_names_that_it_does_not_take_are_not():
    file = parse()
    config = file.config({"learning_rate": 0.03, "decay": 0.1, "heads": 4}, seed=3)
    assert (config.adamw_learning_rate, config.momentum) == (pytest.approx(0.003), 0.9)
    assert (config.d_ff, config.d_model, config.n_heads, config.seed) == (1024, 256, 4, 3)
    assert type(config.d_ff) is int
    assert not_taken(file) == ["decay", "heads"]


def test_a_derived_parameter_of_an_inactive_one_is_left_out():
    when = 'decay = { low = 0.01, high = 0.2, log = true, when = { optimizer = "muon" } }\n'
    file = parse(
        ("decay = { low = 0.01, high = 0.2, log = true }\n", when + 'optimizer = { choices = ["muon", "adamw"] }\n'),
        ('optimizer = "muon"\n[derived]', "[derived]"),
    )
    params = {"learning_rate": 0.03, "heads": 2}
    assert "momentum" not in file.derive({**params, "optimizer": "adamw"})
    assert file.config({**params, "optimizer": "adamw"}).momentum == 0.95


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"1 - decay"',
            '"1 - deca"',
            "derived.momentum: 'deca' is not searched, fixed or derived above; did you mean 'decay'?",
        ),
        (
            '"1 - decay"',
            '"n_heads - 1"',
            "derived.momentum: 'n_heads' is not searched, fixed or derived above; did you mean 'heads'?",
        ),
        ('"1 - decay"', '"1 - decay * optimizer"', "derived.momentum: optimizer = 'muon' is not a number"),
        ('"1 - decay"', '"1 -"', "derived.momentum: '1 -' is not an expression"),
        ('"1 - decay"', "0.9", "derived.momentum: 0.9 is not a string"),
        ('"1 - decay"', '"9 * decay"', "derived.momentum: 1.8 is not below 1 with decay = 0.2"),
        ('"heads * 512 / 2"', '"heads * 511 / 2"', "derived.d_ff: 766.5 is not a whole number with heads = 3"),
        (
            '"1 - decay"',
            '"decay / (heads - 2)"',
            "derived.momentum: 'decay / (heads - 2)' is not a finite number with decay = 0.01, heads = 2",
        ),
        ('momentum = "1', 'momentun = "1', "derived.momentun: pretrain does not take it; did you mean 'momentum'?"),
        ('momentum = "1', 'dropout = "1', ""),
        ('momentum = "1 - decay"', "", "search_space.decay: pretrain does not take it"),
        ('momentum = "1', 'seed = "1', "derived.seed: only a number other than the seed is derived"),
        ('momentum = "1', 'dataset = "1', "derived.dataset: only a number other than the seed is derived"),
        ('momentum = "1', 'max_grad_norm = "1', "derived.max_grad_norm: also in [fixed]; remove it here or there"),
        (
            'momentum = "1',
            'learning_rate = "1',
            "derived.learning_rate: also in [search_space]; remove it here or there",
        ),
        (
            'momentum = "1 - decay"',
            'momentum = "1 - decay"\nmax_steps = "100 * heads"',
            "derived.max_steps: asha compares trials at the same fractions of schedules of one length; fix max_steps",
        ),
    ],
)
def test_a_derived_parameter_without_a_value_of_its_field_is_refused(old, new, message):
    try:
        parse((old, new))
    except StudyFileError as error:
        refusal = str(error)
        assert message
        assert refusal.startswith(f"s.toml: {message}")
    else:
        assert not message
