import math

import pytest
from scipy.stats import pearsonr, spearmanr

from hpopt.analysis.correlation import correlate
from hpopt.analysis.trials import TrialRow
from hpopt.search.space import Float

SPACE = {"learning_rate": Float(low=0.01, high=1.0, log=True)}
RATES = [0.06, 0.07, 0.08, 0.09, 0.10, 0.11, 0.12, 0.13, 0.14, 0.05]
LOSSES = [5.99, 5.71, 5.69, 6.03, 6.23, 6.3, 6.2, 6.4, 6.6, 5.7]


@pytest.fixture
def table(make_table):
    rows = [
        TrialRow(
            trial=i,
            state="COMPLETE",
            value=loss,
            params={"learning_rate": rate},
            metrics={"loss": loss, "perplexity": math.exp(loss), "broken": math.nan, "same": 1.0},
        )
        for i, (rate, loss) in enumerate(zip(RATES, LOSSES, strict=True))
    ]
    return make_table(rows, SPACE)


def test_coefficients_are_those_of_scipy_on_the_scale_of_the_range(table):
    loss, *others = correlate(table)
    assert (loss.parameter, loss.metric, loss.is_log) == ("learning_rate", "loss", True)
    assert loss.pearson == pytest.approx(pearsonr([math.log(rate) for rate in RATES], LOSSES).statistic)
    assert loss.spearman == pytest.approx(spearmanr(RATES, LOSSES).statistic)
    assert loss.p_value == pytest.approx(spearmanr(RATES, LOSSES).pvalue)
    perplexity = next(correlation for correlation in others if correlation.metric == "perplexity")
    assert perplexity.spearman == pytest.approx(loss.spearman)  # The order of the values is the same.
    assert perplexity.pearson != pytest.approx(loss.pearson)


def test_metrics_that_are_constant_or_not_finite_give_a_reason(table):
    reasons = {correlation.metric: correlation.reason for correlation in correlate(table)}
    assert reasons["same"] == "the metric has the same value in all of them"
    assert reasons["broken"] == "not enough data: 10 complete trials are needed, there are 0"


def test_choices_without_an_order_are_not_correlated(sample_table):
    correlations = correlate(sample_table(lambda p: p["ns_steps"]))
    assert {correlation.parameter for correlation in correlations} == {"learning_rate", "ns_steps"}
