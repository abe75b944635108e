from statistics import stdev

import numpy as np
import pytest

from hpopt.analysis.model import build_model
from hpopt.analysis.noise import estimate_noise
from hpopt.analysis.trials import TrialRow


def runs(values, seeds, x=1):
    return [
        TrialRow(trial=i, state="COMPLETE", value=value, params={"x": x}, seed=seed)
        for i, (value, seed) in enumerate(zip(values, seeds, strict=True))
    ]


def test_the_noise_is_the_sample_standard_deviation_of_replicates(make_table):
    noise = estimate_noise(make_table(runs([3.0, 3.1, 3.3], [0, 1, 2])), None)
    assert (noise.source, noise.n_runs, noise.degrees_of_freedom) == ("replicates", 3, 2)
    assert noise.std == pytest.approx(stdev([3.0, 3.1, 3.3]))


def test_groups_are_pooled_around_their_own_means(make_table):
    """Two pairs that differ by 0.2 have a sum of squares of 0.02 and one degree of freedom each."""
    rows = [*runs([3.0, 3.2], [0, 1]), *runs([5.0, 5.2], [0, 1], x=2)]
    assert estimate_noise(make_table(rows), None).std == pytest.approx(np.sqrt(0.02))


def test_a_very_large_value_does_not_overflow(make_table):
    """A finite loss of 1e200 has no finite square."""
    assert estimate_noise(make_table(runs([3.0, 3.1, 1e200], [0, 1, 2])), None).std > 1e90


def test_repeats_of_one_seed_do_not_measure_noise(make_table):
    """Three runs of one seed agree to the last digit."""
    assert estimate_noise(make_table(runs([3.0, 3.0, 3.0], [42, 42, 42])), None) is None


def test_without_replicates_the_noise_is_that_of_the_surrogate(sample_table):
    table = sample_table(lambda p: p["ns_steps"], noise=0.3)
    noise = estimate_noise(table, build_model(table).surrogate)
    assert noise.source == "surrogate"
    assert "surrogate" in noise.describe()
    assert noise.std == pytest.approx(0.3, rel=0.5)
