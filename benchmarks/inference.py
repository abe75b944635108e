"""Measure how often comparisons and confirmations are right, on simulated studies whose truth is known.

    OMP_NUM_THREADS=1 python benchmarks/inference.py --output benchmarks/results/inference.md

A run is the value of a known function plus the noise of its seed: normal, or with the heavier tails of Student's t
with 5 degrees of freedom, of which a part is common to all runs of one seed, as that of the data order is. It takes
some minutes on one core.
"""

import argparse
import datetime as dt
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from hpopt.analysis.comparison import Comparison, Verdict, compare_pairs, detectable_effect, needed_seeds
from hpopt.analysis.confirmation import confirm
from hpopt.search.direction import Direction

TAILS = ("normal", "t5")
# The part of the variance of a run that all runs of one seed share.
SHARED = (0.0, 0.5)
N_PAIRS = (3, 5, 10)
DESIGNS = ((3, 3), (3, 4), (5, 4))
# Standard deviation of a run; the rates are the same for any other.
NOISE = 0.02
N_TRIALS = 24
N_PARAMETERS = 3
# From so many seeds on, a lead of 4 standard deviations is to be confirmed.
SEEDS_FOR_LEAD = 4
# In standard deviations of a difference: what `undecided` and `equivalent` are tried with.
SMALL_EFFECT, MARGIN, WIDE_MARGIN = 0.3, 0.6, 2.5

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How the runs of a simulated study differ."""

    tail: str
    shared: float
    random: np.random.Generator

    def __str__(self) -> str:
        return f"{self.tail}, {self.shared:.0%} shared"

    @property
    def difference_std(self) -> float:
        """The standard deviation of the difference of two runs of one seed."""
        return float(NOISE * (2 * (1 - self.shared)) ** 0.5)

    def run(self, means: Sequence[float] | FloatArray, n_seeds: int) -> FloatArray:
        """Return the values of K configurations with N seeds (K, N)."""
        own, common = self._draw((len(means), n_seeds)), self._draw((1, n_seeds))
        noise = (1 - self.shared) ** 0.5 * own + self.shared**0.5 * common
        return np.asarray(means)[:, None] + NOISE * noise

    def compare(self, effect: float, n: int, margin: float) -> Comparison:
        """Compare two arms; `effect` and `margin` are in standard deviations of a difference."""
        std = self.difference_std
        baseline, treatment = self.run([0.0, effect * std], n)
        return compare_pairs(baseline, treatment, direction=Direction.MINIMIZE, indifference=margin * std)

    def _draw(self, shape: tuple[int, int]) -> FloatArray:
        if self.tail == "normal":
            return self.random.normal(size=shape)
        return self.random.standard_t(5, size=shape) / (5 / 3) ** 0.5


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often something happened, between the rates that are right."""

    what: str
    setting: str
    n_hits: int
    n: int
    low: float = 0.0
    high: float = 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95% interval of the rate."""
        bounds = stats.binomtest(self.n_hits, self.n).proportion_ci(0.95)
        return bounds.low, bounds.high

    @property
    def is_missed(self) -> bool:
        """Whether the interval excludes every right rate."""
        low, high = self.interval
        return high < self.low or low > self.high

    def row(self) -> str:
        """Return a row of the table."""
        low, high = self.interval
        target = f"{self.low:.0%} to {self.high:.0%}"
        rate = f"{self.n_hits / self.n:.1%} ({low:.1%} to {high:.1%})"
        verdict = "**missed**" if self.is_missed else "held"
        return f"| {self.what} | {self.setting} | {rate} | {target} | {verdict} | {self.n} |"


def simulate_comparisons(noise: Noise, n: int, n_studies: int) -> Iterator[Rate]:
    """Compare arms of n seeds each: equal ones, ones that differ by what can be detected, and ones at the margin."""
    setting = f"{noise}, {n} pairs"
    equal = [noise.compare(0.0, n, SMALL_EFFECT) for _ in range(n_studies)]
    seen = [noise.compare(detectable_effect(n), n, SMALL_EFFECT) for _ in range(n_studies)]
    edge = [noise.compare(WIDE_MARGIN, n, WIDE_MARGIN) for _ in range(n_studies)]
    undecided = [one.needed for one in (noise.compare(SMALL_EFFECT, n, MARGIN) for _ in range(n_studies)) if one.needed]
    truth = needed_seeds(MARGIN, 1.0, n).n
    counts = {
        "equal arms: a difference is claimed": (
            sum(one.verdict in {Verdict.BETTER, Verdict.WORSE} for one in equal),
            (0.0, 0.05),
        ),
        "the 95% interval holds the true difference": (
            sum(one.low is not None and one.high is not None and one.low <= 0 <= one.high for one in equal),
            (0.93, 0.97),
        ),
        "the smallest detectable difference is seen": (
            sum(one.verdict is Verdict.WORSE for one in seen),
            (0.77, 0.83),
        ),
        "`equivalent` for arms that differ by the margin": (
            sum(one.verdict is Verdict.EQUIVALENT for one in edge),
            (0.0, 0.05),
        ),
    }
    for what, (n_hits, (low, high)) in counts.items():
        yield Rate(what=what, setting=setting, n_hits=n_hits, n=n_studies, low=low, high=high)
    yield Rate(
        what="`undecided`: its range of seeds holds the true number",
        setting=setting,
        n_hits=sum(one.low <= truth <= one.high for one in undecided),
        n=len(undecided),
        low=0.85,
        high=0.95,
    )


@dataclass(frozen=True, kw_only=True)
class Confirmations:
    """What the confirmations of simulated searches came to, each (n_studies,)."""

    setting: str
    is_best_tied: FloatArray
    is_covered: FloatArray
    n_tied: FloatArray
    is_winner_best: FloatArray
    is_first_best: FloatArray

    def rates(self) -> Iterator[Rate]:
        """Yield the rates that have a target."""
        for what, hits, low in (
            ("the best candidate is confirmed or in the tie", self.is_best_tied, 0.95),
            ("the interval holds the true mean of the winner", self.is_covered, 0.93),
        ):
            yield Rate(what=what, setting=self.setting, n_hits=int(hits.sum()), n=len(hits), low=low)

    def row(self) -> str:
        """Return a row of the table of sizes."""
        shares = " | ".join(f"{part.mean():.1%}" for part in (self.is_winner_best, self.is_first_best))
        return f"| {self.setting} | {self.n_tied.mean():.2f} | {shares} | {len(self.n_tied)} |"


def simulate_confirmations(noise: Noise, top: int, seeds: int, n_studies: int) -> Confirmations:
    """Search a bowl at random, with one noisy run for each trial, and confirm the best of its trials."""
    rows = []
    for _ in range(n_studies):
        points = noise.random.uniform(-1, 1, size=(N_TRIALS, N_PARAMETERS))
        truth = 0.3 * (points**2).sum(axis=1)
        means = truth[np.argsort(noise.run(truth, 1)[:, 0])[:top]]
        result = confirm(noise.run(means, seeds).tolist(), Direction.MINIMIZE)
        winner, best = result.order[0], int(means.argmin())
        interval = result.intervals[winner]
        is_covered = interval.low <= means[winner] <= interval.high
        rows.append((best in result.tied, is_covered, len(result.tied), winner == best, best == 0))
    columns = np.array(rows, dtype=float).T
    return Confirmations(setting=f"{noise}, top {top}, {seeds} seeds", **dict(zip(_COLUMNS, columns, strict=True)))


_COLUMNS = ("is_best_tied", "is_covered", "n_tied", "is_winner_best", "is_first_best")


def simulate_leads(noise: Noise, top: int, seeds: int, n_studies: int) -> Rate:
    """Confirm configurations of which one leads the second by 4 standard deviations of a run."""
    n_hits = 0
    for _ in range(n_studies):
        means = np.concatenate([[0.0], 4 * NOISE + NOISE * noise.random.exponential(size=top - 2), [4 * NOISE]])
        result = confirm(noise.run(means, seeds).tolist(), Direction.MINIMIZE)
        n_hits += result.is_confirmed and result.order[0] == 0
    setting = f"{noise}, top {top}, {seeds} seeds"
    what = "a lead of 4 standard deviations of a run is confirmed"
    return Rate(what=what, setting=setting, n_hits=n_hits, n=n_studies, low=0.8)


def write(n_studies: int, rates: Sequence[Rate], sizes: Sequence[str]) -> str:
    """Return the page of the results."""
    n_missed = sum(rate.is_missed for rate in rates)
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("hpopt", "numpy", "scipy"))
    return f"""# How often comparisons and confirmations are right

    OMP_NUM_THREADS=1 python benchmarks/inference.py --studies {n_studies}

{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}; {versions}; Python {platform.python_version()}. Simulated studies: the value of a
run is that of a known function plus noise, of which a part is shared by all runs of one seed. A target counts as
missed when the exact 95% interval of the rate excludes it: {n_missed} of {len(rates)}.

| what | noise and design | rate (95% interval) | target | | studies |
|---|---|---|---|---|---:|
{chr(10).join(rate.row() for rate in rates)}

Random searches of {N_TRIALS} trials over {N_PARAMETERS} parameters: how many configurations a confirmation does not
tell apart, and how often the best of the candidates is the one with the best mean, or the one with the best single run
of the search.

| noise and design | configurations in the answer | best mean is right | best single run is right | studies |
|---|---:|---:|---:|---:|
{chr(10).join(sizes)}
"""


def main() -> None:
    """Run the benchmark, print its tables and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies of each kind")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    n, random = options.studies, np.random.default_rng(0)
    rates, sizes = [], []
    for tail, shared in product(TAILS, SHARED):
        noise = Noise(tail=tail, shared=shared, random=random)
        for n_pairs in N_PAIRS:
            rates += simulate_comparisons(noise, n_pairs, n)
        for top, seeds in DESIGNS:
            confirmations = simulate_confirmations(noise, top, seeds, n)
            rates += confirmations.rates()
            sizes.append(confirmations.row())
            if seeds >= SEEDS_FOR_LEAD:
                rates.append(simulate_leads(noise, top, seeds, n))
    page = write(n, sorted(rates, key=lambda rate: rate.what), sizes)
    print(page)
    if options.output:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
