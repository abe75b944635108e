from dataclasses import fields

import pytest

from hpopt.errors import ConfigError
from hpopt.hyperparameters import HYPERPARAMETERS, check_type, check_value
from hpopt.training.config import PretrainConfig

ENTRIES = pytest.mark.parametrize("entry", HYPERPARAMETERS.values(), ids=HYPERPARAMETERS)


def test_hyperparameters_are_the_fields_of_the_config():
    """`hpopt params` documents all fields and nothing else."""
    assert set(HYPERPARAMETERS) == {f.name for f in fields(PretrainConfig)}


@ENTRIES
def test_every_default_is_allowed(entry):
    assert check_value(entry.name, entry.default) == entry.default


@ENTRIES
def test_every_entry_describes_its_effect_in_sentences(entry):
    """Either `raising` and `lowering`, or `changing` for values without an order; never both."""
    texts = [entry.changing] if entry.choices or entry.changing else [entry.raising, entry.lowering]
    assert all(text.endswith(".") for text in texts)
    assert bool(entry.changing) != bool(entry.raising)
    assert bool(entry.raising) == bool(entry.lowering)
    assert entry.meaning


@ENTRIES
def test_the_usual_range_is_allowed_and_can_be_searched(entry):
    """A study file with the range that `hpopt params` shows must be valid."""
    if entry.changing:
        assert entry.usual_low is entry.usual_high is None
        return
    assert entry.usual_low < entry.usual_high
    assert not (entry.log and entry.usual_low <= 0)
    for bound in (entry.usual_low, entry.usual_high):
        assert check_value(entry.name, bound) == bound


@pytest.mark.parametrize("entry", [e for e in HYPERPARAMETERS.values() if e.unused_if], ids=lambda e: e.name)
def test_unused_if_names_a_hyperparameter_and_a_value_that_is_not_its_default(entry):
    switch, off = entry.unused_if
    assert check_value(switch, off) == off
    assert HYPERPARAMETERS[switch].default != off


def test_an_int_is_converted_where_a_float_is_expected():
    """`learning_rate = 1` is natural in TOML."""
    assert type(check_value("learning_rate", 1)) is float


@pytest.mark.parametrize(
    ("name", "value"),
    [("momentum", 0), ("warmup_ratio", 1), ("ns_steps", 20), ("vocab_size", 257), ("seed", 2**32 - 1)],
)
def test_a_closed_bound_is_allowed(name, value):
    assert check_value(name, value) == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("momentum", 1.5, "momentum: 1.5 is not below 1"),
        ("momentum", 1, "momentum: 1.0 is not below 1"),
        ("momentum", -0.1, "momentum: -0.1 is below 0"),
        ("learning_rate", 0, "learning_rate: 0.0 is not above 0"),
        ("warmup_ratio", 1.01, "warmup_ratio: 1.01 is above 1"),
        ("ns_steps", 21, "ns_steps: 21 is above 20"),
        ("vocab_size", 256, "vocab_size: 256 is below 257"),
        ("learning_rate", float("nan"), "learning_rate: nan is not a finite number"),
        ("weight_decay", float("inf"), "weight_decay: inf is not a finite number"),
        ("ns_steps", True, "ns_steps: True is not a whole number"),
        ("momentum", False, "momentum: False is not a number"),
        ("ns_steps", 5.0, "ns_steps: 5.0 is not a whole number"),
        ("learning_rate", "0.1", "learning_rate: '0.1' is not a number"),
        ("learning_rate", 10**400, f"learning_rate: {10**400} does not fit into 64 bits"),
        ("dataset", 3, "dataset: 3 is not a string"),
        ("dataset", "", "dataset: '' is empty"),
        ("optimizer", "adam", "optimizer: 'adam' is not one of muon, adamw; did you mean 'adamw'?"),
        ("precision", "int8", "precision: 'int8' is not one of auto, fp32, bf16"),
        ("momentun", 0.9, "momentun: no such hyperparameter; did you mean 'momentum'?"),
    ],
)
def test_a_value_is_refused_with_its_name_and_what_is_allowed(name, value, message):
    """The message is all that the user sees."""
    with pytest.raises(ConfigError) as refusal:
        check_value(name, value)
    assert str(refusal.value) == message
    assert refusal.value.key == name


def test_true_is_a_bool_and_one_is_not():
    """A user's config may have a bool, and in Python 1 == True."""
    assert check_type("compile", True, bool) is True  # noqa: FBT003 - the value under test.
    with pytest.raises(ConfigError, match="compile: 1 is not true or false"):
        check_type("compile", 1, bool)
