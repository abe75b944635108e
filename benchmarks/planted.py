"""Measure how often the analysis makes false claims, and how often it finds planted effects, on synthetic studies.

    OMP_NUM_THREADS=1 python benchmarks/planted.py --output benchmarks/results/planted.md

Analyses studies of pure noise and studies with planted effects (planted_studies.py) as a report does, and counts the
claims about parameters. It takes a quarter of an hour on one core.
"""

import argparse
import datetime as dt
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from itertools import product
from pathlib import Path
from time import perf_counter

import numpy as np
from planted_studies import (
    GRID_KINDS,
    LEARNING_RATE,
    MOMENTUM,
    TRUTHS,
    Effect,
    Truth,
    Units,
    plant,
    plant_grid,
    to_units,
)

from hpopt.analysis.duplicates import find_duplicates
from hpopt.analysis.importance import estimate_importance
from hpopt.analysis.insights import Insights, compute_insights
from hpopt.analysis.trials import StudyTable
from hpopt.findings.detection import detect_findings
from hpopt.findings.trials import find_collapsed, find_ignored_parameters

TARGET = 0.05
CLAIMS = ("significant", "edge", "interaction", "budget-dependent", "diverging", "importance-biased")
COLUMNS = ("any", *CLAIMS)
ACTIVE = {LEARNING_RATE, MOMENTUM}


def diverge_at_random(_units: Units) -> float:
    """Diverge with a probability of 0.1, whatever the params."""
    return 0.1


NOISE = {
    "random": Truth(),
    "random, a tenth diverges": Truth(diverges=diverge_at_random),
    "random, ASHA": Truth(is_pruned=True),
    "TPE": Truth(sampler="tpe"),
    "TPE, ASHA": Truth(sampler="tpe", is_pruned=True),
}


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A truth, the right claims about it with their subjects, and its optima in units of the ranges."""

    truth: Truth
    right: Mapping[str, str] = field(default_factory=dict)
    optima: Mapping[str, float] = field(default_factory=dict)


INSIDE = {LEARNING_RATE: 0.6, MOMENTUM: 0.4}
PLANTED = {
    "bowl": Planted(truth=TRUTHS["bowl"], optima=INSIDE),
    "bowl, TPE": Planted(truth=Truth(effect=TRUTHS["bowl"].effect, sampler="tpe"), optima=INSIDE),
    "bowl, TPE, ASHA": Planted(
        truth=Truth(effect=TRUTHS["bowl"].effect, sampler="tpe", is_pruned=True),
        optima=INSIDE,
    ),
    "interaction": Planted(truth=TRUTHS["interaction"], right={"interaction": f"{LEARNING_RATE}, {MOMENTUM}"}),
    "edge": Planted(truth=TRUTHS["edge"], right={"edge": LEARNING_RATE}),
    "cliff": Planted(truth=TRUTHS["cliff"], right={"diverging": LEARNING_RATE, "importance-biased": ""}, optima=INSIDE),
    "drift": Planted(
        truth=TRUTHS["drift"], right={"budget-dependent": LEARNING_RATE}, optima=INSIDE | {LEARNING_RATE: 0.4}
    ),
}


def claims_of(table: StudyTable, insights: Insights) -> set[tuple[str, str]]:
    """Return the claims about parameters, each with its subject."""
    claims = {(finding.code, finding.subject or "") for finding in detect_findings(table, insights)}
    # That trials diverge is an observation; the claim is in which region.
    claims = {claim for claim in claims if claim[0] in CLAIMS and claim[0] != "diverging"}
    claims |= {("diverging", cliff.name) for cliff in insights.divergence.cliffs}
    for importance in insights.importance:
        claims |= {("significant", name) for name in importance.significant}
    return claims


def examine_noise(name: str, n_trials: int, seed: int) -> Counter[str]:
    """Count the claims about a study of pure noise, all of them false."""
    table = plant(NOISE[name], n_trials, seed)
    claims = {claim for claim, _ in claims_of(table, compute_insights(table))}
    return Counter([*claims, *(["any"] * bool(claims))])


def examine_planted(name: str, n_trials: int, seed: int) -> Counter[str]:
    """Count what is found of a planted truth, false claims, and the intervals that contain the true value."""
    planted = PLANTED[name]
    table = plant(planted.truth, n_trials, seed)
    insights = compute_insights(table)
    claims = claims_of(table, insights)
    right = {*planted.right.items(), *(("significant", name) for name in ACTIVE)}
    counts = Counter(f"found: {claim}" for claim, subject in planted.right.items() if (claim, subject) in claims)
    counts["found: significant"] += ("significant", LEARNING_RATE) in claims
    counts.update({f"wrong: {claim}" for claim, _ in claims - right})
    counts.update(_check_intervals(planted, insights))
    return counts


def _check_intervals(planted: Planted, insights: Insights) -> Iterator[str]:
    single, pair = true_shares(planted.truth.effect)
    fanova = insights.importance[1]
    for name, share in single.items():
        if fanova.intervals is not None:
            low, high = fanova.intervals[name]
            yield f"share: {low <= share <= high}"
    for interaction in insights.interactions.pairs:
        if set(interaction.pair) == ACTIVE and pair > TARGET:
            yield f"pair: {interaction.low <= pair <= interaction.high}"
            yield f"pair first: {interaction == insights.interactions.pairs[0]}"
    for parameter in insights.sensitivity.parameters:
        if parameter.name in planted.optima and parameter.best_low is not None and parameter.best_high is not None:
            ends = [
                to_units({parameter.name: end})[parameter.name] for end in (parameter.best_low, parameter.best_high)
            ]
            yield f"optimum: {ends[0] <= planted.optima[parameter.name] <= ends[1]}"


def true_shares(effect: Effect) -> tuple[Mapping[str, float], float]:
    """Return the true final shares of the two parameters, which sum to 1, and of their pair, of the total variance."""
    grid = (np.arange(100) + 0.5) / 100
    values = np.array([[effect({LEARNING_RATE: one, MOMENTUM: other}, 1.0) for other in grid] for one in grid])
    one, other = values.mean(axis=1).var(), values.mean(axis=0).var()
    pair = (values.var() - one - other) / values.var()
    return {LEARNING_RATE: one / (one + other), MOMENTUM: other / (one + other)}, float(pair)


def write_noise(sizes: Sequence[int], n_seeds: int, pool: ProcessPoolExecutor) -> Iterator[str]:
    """Yield the lines of the table of false claims."""
    yield f"\n## Pure noise: share of {n_seeds} studies with a false claim (target: at most {TARGET:.0%})\n"
    yield f"| study | trials | {' | '.join(COLUMNS)} |\n|---|---{'|---' * len(COLUMNS)}|"
    total: Counter[str] = Counter()
    for name, n_trials in product(NOISE, sizes):
        seeds = range(n_seeds)
        counts = sum(pool.map(examine_noise, [name] * n_seeds, [n_trials] * n_seeds, seeds, chunksize=4), Counter())
        total += counts
        yield f"| {name} | {n_trials} | {' | '.join(f'{counts[claim] / n_seeds:.1%}' for claim in COLUMNS)} |"
    n_studies = n_seeds * len(NOISE) * len(sizes)
    yield f"| all | | {' | '.join(f'{total[claim] / n_studies:.1%}' for claim in COLUMNS)} |"


def write_planted(sizes: Sequence[int], n_seeds: int, pool: ProcessPoolExecutor) -> Iterator[str]:
    """Yield the lines of the table of what is found, and how often intervals contain the true value."""
    yield f"\n## Planted truths: share of {n_seeds} studies, and of 90% intervals that contain the true value\n"
    yield "| study | trials | found | false claims | shares | pair's share | pair is first | optima |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, n_trials in product(PLANTED, sizes):
        seeds = range(n_seeds)
        counts = sum(pool.map(examine_planted, [name] * n_seeds, [n_trials] * n_seeds, seeds, chunksize=4), Counter())
        sought = [f"found: {claim}" for claim in ("significant", *PLANTED[name].right)]
        found = _shares(counts, sought, n_seeds)
        wrong = _shares(counts, sorted(key for key in counts if key.startswith("wrong: ")), n_seeds)
        coverage = [_coverage(counts, check) for check in ("share", "pair", "pair first", "optimum")]
        yield f"| {name} | {n_trials} | {found} | {wrong} | {' | '.join(coverage)} |"


def examine_grid(kind: str, seed: int) -> Counter[str]:
    """Count the findings about a grid that say that trials cannot be told apart."""
    table = plant_grid(kind, seed)
    return Counter(claim_without_effect(table))


def claim_without_effect(table: StudyTable) -> set[str]:
    """Return the codes of the findings that params have no effect, or that the metric shows none."""
    found = [*find_ignored_parameters(find_duplicates(table)), *find_collapsed(table)]
    return {finding.code for finding in found}


def write_grids(n_seeds: int) -> Iterator[str]:
    """Yield the lines of the table of grids whose trials cannot be told apart, and of those that can."""
    codes = ("treatment-not-applied", "collapsed")
    yield f"\n## Deterministic grids of 24 points: share of {n_seeds} studies with a finding\n"
    yield "| grid | right | treatment-not-applied | collapsed |\n|---|---|---|---|"
    right = {"ignored": codes[0], "collapsed": codes[1], "saturated": codes[1]}
    for kind in GRID_KINDS:
        counts = sum((examine_grid(kind, seed) for seed in range(n_seeds)), Counter())
        shares = " | ".join(f"{counts[code] / n_seeds:.1%}" for code in codes)
        yield f"| {kind} | {right.get(kind, 'neither')} | {shares} |"


def _shares(counts: Counter[str], keys: Sequence[str], n_seeds: int) -> str:
    return ", ".join(f"{key.split(': ')[1]} {counts[key] / n_seeds:.0%}" for key in keys) or "nothing"


def _coverage(counts: Counter[str], check: str) -> str:
    right, wrong = counts[f"{check}: True"], counts[f"{check}: False"]
    return f"{right / (right + wrong):.0%}" if right + wrong else "-"


def write_times(sizes: Sequence[int]) -> Iterator[str]:
    """Yield the lines of the table of the time that the analysis of one study takes."""
    yield "\n## Seconds for one study of 6 parameters\n"
    yield "| trials | importance | everything, with findings |\n|---|---|---|"
    for n_trials in sizes:
        table = plant(PLANTED["bowl"].truth, n_trials, 0)
        started = perf_counter()
        estimate_importance(table)
        then = perf_counter()
        detect_findings(table, compute_insights(table))
        yield f"| {n_trials} | {then - started:.1f} | {perf_counter() - then:.1f} |"


def main() -> None:
    """Run the benchmark, print its tables and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[60])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("hpopt", "numpy", "scipy", "optuna"))
    lines = [
        "# Claims of the analysis about studies with known effects\n",
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}; {versions}; Python {platform.python_version()}. Six parameters.",
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        for part in (
            write_noise(options.sizes, options.seeds, pool),
            write_planted(options.sizes, options.seeds // 4, pool),
            write_grids(options.seeds),
            write_times((40, 100, 1000, 5000)),
        ):
            for line in part:
                print(line, flush=True)
                lines.append(line)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
