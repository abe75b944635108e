"""Owns how much two runs of one configuration differ, and how that is known."""

from dataclasses import dataclass
from typing import Literal

from hpopt.analysis.surrogate import LARGEST_VALUE, Surrogate
from hpopt.analysis.trials import StudyTable, TrialRow

# With fewer degrees of freedom a standard deviation is off by half as often as not.
MIN_FREEDOM = 2


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The standard deviation of a run, in units of the metric.

    It is pooled from `n_runs` runs of configurations that ran with several seeds, `freedom` beyond their means; or it
    is what the surrogate cannot explain, which takes what the model misses for noise.
    """

    std: float
    source: Literal["replicates", "surrogate"]
    n_runs: int
    freedom: int

    @property
    def sentence(self) -> str:
        """Say what it is and how it is known."""
        how = (
            f"{self.n_runs} repeated runs"
            if self.source == "replicates"
            else "the residuals of the surrogate, not from repeated runs"
        )
        return f"runs of one configuration scatter by a standard deviation of {self.std:.2g} (from {how})"


def measure_noise(table: StudyTable, surrogate: Surrogate | None) -> Noise | None:
    """Measure the noise from replicates, else take the surrogate's; None where there is neither."""
    groups = [values for rows in table.replicates().values() if len(values := _distinct_seeds(rows)) > 1]
    freedom = sum(len(values) - 1 for values in groups)
    if freedom >= MIN_FREEDOM:
        squares = sum((value - sum(values) / len(values)) ** 2 for values in groups for value in values)
        n_runs = sum(map(len, groups))
        return Noise(std=(squares / freedom) ** 0.5, source="replicates", n_runs=n_runs, freedom=freedom)
    if surrogate is None:
        return None
    n = len(surrogate.targets)
    return Noise(std=surrogate.noise_std, source="surrogate", n_runs=n, freedom=n)


def _distinct_seeds(rows: tuple[TrialRow, ...]) -> list[float]:
    """Give one value for each seed; trials without one cannot be told apart from repeats of the same run."""
    by_seed = {row.seed: row.value for row in rows if row.seed is not None and row.value is not None}
    # Squares of larger ones would be infinite.
    return [max(-LARGEST_VALUE, min(LARGEST_VALUE, value)) for value in by_seed.values()]
