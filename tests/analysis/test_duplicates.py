import math

from hpopt.analysis.duplicates import find_duplicates
from hpopt.analysis.trials import CurvePoint, TrialRow


def run(trial, values, seed=0, **params):
    curve = tuple(CurvePoint(step=i, tokens=i, seconds=float(trial), value=v) for i, v in enumerate(values, start=1))
    return TrialRow(trial=trial, state="COMPLETE", value=values[-1], params=params, seed=seed, curve=curve)


def test_a_param_that_the_training_ignores_is_named(make_table):
    """Baseline and treatment agree to the last digit: the trainer ignored the warmup."""
    rows = [
        run(0, [3.0, 2.5], warmup=0.0, lr=0.1),
        run(1, [3.0, 2.5], warmup=0.2, lr=0.1),
        run(2, [3.0, 2.0], warmup=0.1, lr=0.2),
    ]
    (group,) = find_duplicates(make_table(rows))
    assert (group.trials, group.differ_in) == ((0, 1), ("warmup",))


def test_seeds_that_the_training_ignores_are_found(make_table):
    (group,) = find_duplicates(make_table([run(i, [3.0, 2.5], seed=i, lr=0.1) for i in range(3)]))
    assert (group.differ_in, group.seeds) == ((), (0, 1, 2))


def test_curves_that_differ_in_the_last_digit_are_not_duplicates(make_table):
    rows = [run(0, [3.0, 2.5], lr=0.1), run(1, [3.0, math.nextafter(2.5, 3)], lr=0.2)]
    assert find_duplicates(make_table(rows)) == ()


def test_equal_single_values_are_not_duplicates(make_table):
    """Accuracies over ten examples are often equal by chance."""
    assert find_duplicates(make_table([run(i, [0.3], lr=0.1 * i) for i in range(3)])) == ()


def test_repeats_of_one_seed_are_not_reported(make_table):
    assert find_duplicates(make_table([run(i, [3.0, 2.5], seed=7, lr=0.1) for i in range(2)])) == ()


def test_a_parameter_that_is_known_to_have_no_effect_is_not_reported(make_table):
    """Newton-Schulz steps have no effect with AdamW."""
    rows = [run(i, [3.0, 2.5], optimizer="adamw", ns_steps=steps) for i, steps in enumerate((3, 5))]
    assert find_duplicates(make_table(rows)) == ()


def test_a_parameter_that_has_an_effect_elsewhere_is_not_reported(make_table):
    """Adam has no momentum, and with SGD it has an effect."""
    adam = [run(i, [3.0, 2.5], optimizer="adam", momentum=0.1 * i) for i in range(3)]
    sgd = [run(3 + i, [3.0, 2.5 - 0.1 * i], optimizer="sgd", momentum=0.1 * i) for i in range(3)]
    assert find_duplicates(make_table([*adam, *sgd])) == ()
    (group,) = find_duplicates(make_table(adam))
    assert group.differ_in == ("momentum",)


def test_an_effect_of_another_parameter_or_of_the_seed_is_no_effect_of_the_ignored_one(make_table):
    rows = [
        run(0, [3.0, 2.5], seed=0, warmup=0.0, lr=0.1),
        run(1, [3.0, 2.5], seed=0, warmup=0.2, lr=0.1),
        run(2, [3.0, 2.4], seed=1, warmup=0.4, lr=0.1),
        run(3, [3.0, 2.3], seed=0, warmup=0.4, lr=0.2),
    ]
    (group,) = find_duplicates(make_table(rows))
    assert group.differ_in == ("warmup",)


def test_curves_of_a_collapsed_metric_are_not_duplicates(make_table):
    assert find_duplicates(make_table([run(i, [0.09, 0.1, 0.1, 0.1, 0.1], lr=i) for i in range(3)])) == ()
    assert find_duplicates(make_table([run(i, [0.1, 0.09, 0.1, 0.1, 0.2], lr=i) for i in range(3)])) != ()
