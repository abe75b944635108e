import math

import pytest

from hpopt.analysis.interactions import estimate_interactions
from hpopt.analysis.model import build_model
from hpopt.analysis.trials import TrialRow
from hpopt.search.space import Float


def estimate(table):
    return estimate_interactions(table, build_model(table))


def test_the_share_of_a_product_is_its_share_of_the_variance(sample_table):
    """The sum x + k has variance 4/3 + 60/9 for x uniform on -2 to 2 and k on -4 to 4; x * k / 2 adds to it."""
    table = sample_table(lambda p: joint(2 * (math.log10(p["learning_rate"]) + 2), p["ns_steps"] - 5), n_trials=80)
    first = estimate(table).pairs[0]
    single, both = 4 / 3 + 60 / 9, 4 / 3 * 60 / 9 / 4
    assert first.pair == ("learning_rate", "ns_steps")
    assert first.share == pytest.approx(both / (single + both), abs=0.05)
    assert first.low <= first.share <= first.high
    assert first.is_significant


def joint(x, k):
    return x + k + x * k / 2


def test_pairs_without_a_joint_effect_have_an_interval_from_zero(sample_table):
    for interaction in estimate(sample_table(lambda p: p["ns_steps"], n_trials=60, noise=1.0)).pairs:
        assert not interaction.is_significant
        assert interaction.low == 0


def test_pairs_need_more_trials_than_single_parameters(sample_table):
    """A mean, two terms per ordered parameter and two for three levels make 7, with 3 trials each."""
    interactions = estimate(sample_table(lambda p: p["ns_steps"], n_trials=20))
    assert interactions.reason == "not enough data: 21 trials are needed, there are 20"


@pytest.mark.parametrize(("n_trials", "is_few"), [(29, True), (30, False)])
def test_an_interaction_is_asserted_from_ten_complete_trials_for_each_parameter_on(sample_table, n_trials, is_few):
    interactions = estimate(
        sample_table(lambda p: 5 * (math.log10(p["learning_rate"]) + 2) * (p["ns_steps"] - 5), n_trials=n_trials)
    )
    assert any(pair.is_significant for pair in interactions.pairs)
    assert (interactions.is_few, interactions.significant == ()) == (is_few, is_few)


def test_one_parameter_has_no_pairs(make_table):
    rows = [TrialRow(trial=i, state="COMPLETE", value=i**2 / 10, params={"x": i / 20}) for i in range(20)]
    assert estimate(make_table(rows, {"x": Float(low=0, high=1)})).reason == "the study searches one parameter"
