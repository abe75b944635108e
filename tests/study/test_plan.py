"""Steps, rungs and costs follow from a study file alone."""

import pytest

from hpopt.study.plan import count_steps, defaults, estimate_trial, place_rungs, value_of
from hpopt.study.reading import parse_study_file

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


def test_max_steps_may_be_searched_without_a_pruner():
    text = replaced(RATE, 'max_steps = { low = 100, high = 200, type = "int" }')
    file = parse(text + '[pruner]\nname = "none"')
    assert (count_steps(file), place_rungs(file)) == (None, [])


def test_batch_size_may_be_searched_where_max_tokens_is_given():
    """Rungs are fractions of the schedule of each trial, whatever its number of steps."""
    file = parse(
        replaced(RATE, 'batch_size = { low = 8, high = 32, type = "int" }') + "[fixed]\nmax_tokens = 1_000_000"
    )
    assert count_steps(file) is None
    assert {file.config({"batch_size": size}).tokens // 100_000 for size in (8, 20, 32)} == {9}


def test_the_steps_of_trials_differ_where_a_batch_size_is_conditional():
    """With adamw the batch size is its default, 24, which is the highest that is searched with muon."""
    batch_size = 'batch_size = { low = 8, high = 24, type = "int", when = { optimizer = "muon" } }'
    text = replaced(RATE, batch_size + '\noptimizer = { choices = ["adamw", "muon"] }')
    assert count_steps(parse(text + "[fixed]\nmax_tokens = 1_000_000")) is None
    assert count_steps(parse(text)) == 250


def test_steps_follow_from_max_tokens():
    """1,000,000 tokens in steps of 24 x 512 are 81 steps; the rungs are within them."""
    file = parse(STUDY + "[fixed]\nmax_tokens = 1_000_000\neval_steps = 9")
    assert (count_steps(file), place_rungs(file)) == (81, [9, 27])


@pytest.mark.parametrize(
    ("pruner", "steps"),
    [
        ('name = "asha"', [10, 30]),
        ('name = "asha"\nreduction_factor = 2\nmin_fraction = 0.25', [30, 50]),
        ('name = "median"', [10]),
        ('name = "none"', []),
    ],
)
def test_the_rungs_of_a_pruner_are_placed_at_the_evaluations_from_there_on(pruner, steps):
    """The median pruner compares at every evaluation from its first rung on."""
    file = parse(STUDY + f"[fixed]\nmax_steps = 90\neval_steps = 10\n[pruner]\n{pruner}")
    assert (count_steps(file), place_rungs(file)) == (90, steps)


def test_the_defaults_are_those_of_the_objective():
    file = parse(STUDY)
    assert defaults(file)["learning_rate"] == 0.02
    assert {"seed", "d_model", "optimizer"} <= defaults(file).keys()


def test_a_constant_parameter_has_its_fixed_value_or_its_default():
    file = parse(STUDY + "[fixed]\nd_model = 96")
    assert (value_of(file, "d_model"), value_of(file, "n_heads")) == (96, 8)
    assert (value_of(file, "learning_rate"), value_of(file, "unknown")) == (None, None)


def test_a_trial_costs_its_tokens_and_their_operations():
    half, whole = (
        estimate_trial(
            parse(f"{STUDY}[fixed]\nmax_steps = {n}\neval_steps = 10\nbatch_size = 8\nsequence_length = 128")
        )
        for n in (45, 90)
    )
    assert (half[0], whole[0]) == (45 * 8 * 128, 90 * 8 * 128)
    assert whole[1] == pytest.approx(2 * half[1])
