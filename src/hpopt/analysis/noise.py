"""Estimate how much two runs of one configuration differ."""

from dataclasses import dataclass
from typing import Literal

from scipy import stats

from hpopt.analysis.surrogate import LARGEST_VALUE, Surrogate
from hpopt.analysis.trials import StudyTable, TrialRow

# With fewer degrees of freedom, a standard deviation is off by half as often as not.
MIN_DEGREES_OF_FREEDOM = 2


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The standard deviation of a run, in units of the metric.

    From replicates, it is pooled over `n_runs` runs of configurations that ran with several seeds. From the surrogate,
    it is the residual standard deviation, which includes the error of the model. From `low` to `high` is the 95%
    interval of the former, by the chi-square distribution.
    """

    std: float
    source: Literal["replicates", "surrogate"]
    n_runs: int
    degrees_of_freedom: int
    low: float | None = None
    high: float | None = None

    def describe(self) -> str:
        """Return a clause that states the standard deviation and its source."""
        source = "the residuals of the surrogate, not from repeated runs"
        if self.low is not None and self.high is not None:
            source = f"{self.n_runs} repeated runs; 95% interval {self.low:.2g} to {self.high:.2g}"
        return f"runs of one configuration differ by a standard deviation of {self.std:.2g} (from {source})"


def estimate_noise(table: StudyTable, surrogate: Surrogate | None) -> Noise | None:
    """Estimate the noise from replicates, or else from the surrogate; None if there is neither."""
    groups = [values for rows in table.replicates().values() if len(values := _values_by_seed(rows)) > 1]
    degrees_of_freedom = sum(len(values) - 1 for values in groups)
    if degrees_of_freedom >= MIN_DEGREES_OF_FREEDOM:
        squares = sum((value - sum(values) / len(values)) ** 2 for values in groups for value in values)
        low, high = ((squares / float(stats.chi2.isf(tail, degrees_of_freedom))) ** 0.5 for tail in (0.025, 0.975))
        return Noise(
            std=(squares / degrees_of_freedom) ** 0.5,
            low=low,
            high=high,
            source="replicates",
            n_runs=sum(map(len, groups)),
            degrees_of_freedom=degrees_of_freedom,
        )
    if surrogate is None:
        return None
    n = len(surrogate.targets)
    return Noise(std=surrogate.noise_std, source="surrogate", n_runs=n, degrees_of_freedom=n)


def _values_by_seed(rows: tuple[TrialRow, ...]) -> list[float]:
    """Return one value per seed; trials without a seed may be repetitions of the same run."""
    by_seed = {row.seed: row.value for row in rows if row.seed is not None and row.value is not None}
    # The squares of larger values would overflow.
    return [max(-LARGEST_VALUE, min(LARGEST_VALUE, value)) for value in by_seed.values()]
