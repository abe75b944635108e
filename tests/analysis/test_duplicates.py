import math

from hpopt.analysis.duplicates import find_duplicates
from hpopt.analysis.trials import CurvePoint, TrialRow


def run(trial, values, seed=0, **params):
    curve = tuple(CurvePoint(step=i, tokens=i, seconds=float(trial), value=v) for i, v in enumerate(values, start=1))
    return TrialRow(trial=trial, state="COMPLETE", value=values[-1], params=params, seed=seed, curve=curve)


def test_a_treatment_that_never_arrived_is_named(make_table):
    """Baseline and treatment agree to the last digit: the warmup never reached the trainer."""
    rows = [
        run(0, [3.0, 2.5], warmup=0.0, lr=0.1),
        run(1, [3.0, 2.5], warmup=0.2, lr=0.1),
        run(2, [3.0, 2.0], warmup=0.1, lr=0.2),
    ]
    (duplicates,) = find_duplicates(make_table(rows))
    assert (duplicates.trials, duplicates.differ_in) == ((0, 1), ("warmup",))


def test_seeds_that_never_arrived_are_seen(make_table):
    (duplicates,) = find_duplicates(make_table([run(i, [3.0, 2.5], seed=i, lr=0.1) for i in range(3)]))
    assert (duplicates.differ_in, duplicates.seeds) == ((), (0, 1, 2))


def test_the_last_digit_counts(make_table):
    rows = [run(0, [3.0, 2.5], lr=0.1), run(1, [3.0, math.nextafter(2.5, 3)], lr=0.2)]
    assert find_duplicates(make_table(rows)) == ()


def test_one_value_is_no_curve(make_table):
    """Accuracies of ten examples agree by chance."""
    assert find_duplicates(make_table([run(i, [0.3], lr=0.1 * i) for i in range(3)])) == ()


def test_repeats_with_one_seed_are_no_finding(make_table):
    assert find_duplicates(make_table([run(i, [3.0, 2.5], seed=7, lr=0.1) for i in range(2)])) == ()


def test_what_the_dictionary_knows_to_be_idle_is_no_finding(make_table):
    """Newton-Schulz steps do nothing under AdamW."""
    rows = [run(i, [3.0, 2.5], optimizer="adamw", ns_steps=steps) for i, steps in enumerate((3, 5))]
    assert find_duplicates(make_table(rows)) == ()
