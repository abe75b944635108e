"""Arms are compared by their pairs; a treatment or a seed that never arrived is refused by name."""

import pytest

from hpopt.analysis.arms import compare_arms
from hpopt.analysis.trials import ArmsDesign, CurvePoint, Outcome, TrialRow

NOISE = (0.0, 0.02, -0.01)
ARMS = {"baseline": {"lr": 0.1}, "treatment": {"lr": 0.2}}


def row(trial, arm, seed, value, *, config=None, curve=None, outcome=Outcome.COMPLETE, rates=()):
    points = (1 + value, value) if curve is None else curve
    return TrialRow(
        trial=trial,
        arm=arm,
        seed=seed,
        value=value if outcome is Outcome.COMPLETE else None,
        state=outcome.optuna_state,
        outcome=outcome,
        params={},
        config={"lr": 0.1 if arm == "baseline" else 0.2, "seed": seed, **(config or {})},
        curve=tuple(CurvePoint(step=10 * i, tokens=0, seconds=0, value=v) for i, v in enumerate(points, start=1)),
        learning_rates=rates,
    )


def design(**changes):
    return ArmsDesign(**{"arms": ARMS, "data": dict.fromkeys(changes.get("arms", ARMS), ("text",)), **changes})


def rows(*arms, effects=(0.0, -0.1), jitter=(0.0, 0.001, 0.002)):
    names = arms or ("baseline", "treatment")
    return [
        row(len(names) * seed + i, arm, seed, 5 + noise + effects[i] + i * jitter[seed])
        for seed, noise in enumerate(NOISE)
        for i, arm in enumerate(names)
    ]


def test_runs_with_one_seed_are_pairs(make_table):
    compared = compare_arms(make_table(rows(), design=design()))
    (one,) = compared.comparisons
    assert one.seeds == (0, 1, 2)
    assert one.changed == {"lr": (0.1, 0.2)}
    assert one.result.verdict == "better"
    # The noise of the seeds, 0.015, is not that of the differences.
    assert one.result.std == pytest.approx(0.001)
    baseline, treatment = compared.sides
    assert (baseline.mean, baseline.min, baseline.max, baseline.n) == pytest.approx((5.00333, 4.99, 5.02, 3), abs=1e-5)
    assert baseline.std == pytest.approx(0.0152753, abs=1e-6)
    assert (baseline.trial, treatment.trial) == (0, 1)


def test_several_arms_are_each_compared_with_the_first_and_corrected(make_table):
    arms = {**ARMS, "third": {"lr": 0.3}}
    table = make_table(rows("baseline", "treatment", "third", effects=(0, -0.1, 0.1)), design=design(arms=arms))
    compared = compare_arms(table)
    assert [(one.treatment, one.result.verdict) for one in compared.comparisons] == [
        ("treatment", "better"),
        ("third", "worse"),
    ]
    alone = compare_arms(make_table(rows(), design=design())).comparisons[0].result
    assert compared.comparisons[0].result.p_value == pytest.approx(2 * alone.p_value)


def test_a_treatment_that_never_arrived_is_refused_by_name(make_table):
    table = make_table(rows(effects=(0, 0), jitter=(0, 0, 0)), design=design(indifference=1.0))
    compared = compare_arms(table)
    assert compared.comparisons[0].result is None
    assert compared.fault == (
        "treatment never arrived: its config differs from that of baseline (lr 0.1 and 0.2), and their learning curves "
        "are equal to the last digit with seeds 0, 1 and 2. The training ignores lr"
    )


def test_seeds_that_never_arrived_are_refused_by_name(make_table):
    same = [row(2 * seed + i, arm, seed, 5.0 - i) for seed in range(3) for i, arm in enumerate(ARMS)]
    compared = compare_arms(make_table(same, design=design()))
    assert compared.fault.startswith(
        "the seeds never arrived: the runs of baseline with the seeds 0, 1 and 2 have one learning curve"
    )


def test_arms_of_one_config_are_refused_by_name(make_table):
    equal = [
        row(2 * seed + i, arm, seed, 5.0 + 0.1 * seed + i, config={"lr": 0.1})
        for seed in range(3)
        for i, arm in enumerate(ARMS)
    ]
    compared = compare_arms(make_table(equal, design=design()))
    assert compared.fault == "baseline and treatment resolve to one config: there is nothing to compare"


def test_a_learning_rate_that_never_arrived_is_refused_although_the_losses_differ(make_table):
    """On a GPU two equal runs can differ in the last digits."""
    config = {"baseline": {"learning_rate": 0.1}, "treatment": {"learning_rate": 0.2}}

    def table(factor):
        runs = [
            row(
                2 * seed + i,
                arm,
                seed,
                5 + noise + 1e-6 * i * seed,
                config=config[arm],
                rates=(factor**i, 0.5 * factor**i),
            )
            for seed, noise in enumerate(NOISE)
            for i, arm in enumerate(ARMS)
        ]
        return make_table(runs, design=design())

    assert "the learning rates that their runs report are equal" in compare_arms(table(1)).fault
    assert compare_arms(table(2)).fault is None


def test_arms_with_different_data_are_shown_and_not_compared(make_table):
    data = {"baseline": ("documents",), "treatment": ("overlapping_windows",)}
    compared = compare_arms(make_table(rows(), design=design(data=data)))
    (one,) = compared.comparisons
    assert (one.result, one.is_unlike, compared.fault) == (None, True, None)
    assert one.reason == "baseline and treatment differ in data: their values are not compared"
    assert [side.n for side in compared.sides] == [3, 3]


def test_an_unfinished_comparison_has_no_verdict(make_table):
    compared = compare_arms(make_table(rows(), design=design(is_finished=False)))
    assert compared.comparisons[0].reason == "not all runs have finished; the verdict follows when they have"


def test_a_seed_that_one_arm_did_not_complete_is_left_out_and_named(make_table):
    runs = rows()
    runs[3] = row(3, "treatment", 1, 0.0, outcome=Outcome.DIVERGED)
    compared = compare_arms(make_table(runs, design=design()))
    assert compared.comparisons[0].seeds == (0, 2)
    assert compared.comparisons[0].notes == ("left out: treatment diverged with seed 1",)
    runs[5] = row(5, "treatment", 2, 0.0, outcome=Outcome.FAILED)
    assert compare_arms(make_table(runs, design=design())).comparisons[0].reason == (
        "1 seed completed by both; at least 2 are needed"
    )


def test_arms_of_unlike_length_are_compared_and_named(make_table):
    runs = [
        row(2 * seed + i, arm, seed, 5 + noise - i, curve=(6 + noise, 5 + noise - i)[: 2 - i])
        for seed, noise in enumerate(NOISE)
        for i, arm in enumerate(ARMS)
    ]
    compared = compare_arms(make_table(runs, design=design()))
    assert compared.comparisons[0].notes == ("their runs have unlike lengths: baseline 20 and treatment 10",)


def test_a_study_without_arms_is_no_comparison(make_table):
    assert compare_arms(make_table([])) is None
