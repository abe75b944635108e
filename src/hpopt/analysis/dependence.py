"""Owns the tests whether something depends on a parameter, or on a pair of them, or whether it is chance.

Both are permutation tests with one error rate for all parameters together: what is significant at 5% occurs in one
study out of twenty where nothing depends on anything. Sources: the Hilbert-Schmidt independence criterion, Gretton et
al. 2005, used for hyperparameters by Novello et al. 2021 (arXiv 2107.06138); the step from one to many, Westfall and
Young 1993; permuting residuals, Freedman and Lane 1983.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.stats import norm, rankdata

from hpopt.analysis.axes import Axis, Design, FloatArray

SIGNIFICANT = 0.05
N_PERMUTATIONS = 999
# What more trials would show is too small to act on.
N_MOST = 400
# In shares of the trials: wide enough to see a trend, narrow enough to see a bowl.
_WIDTH = 0.25
# The curves of single parameters that are taken out before pairs are looked at: polynomials up to this degree.
_DEGREE = 3
_TRIALS_PER_EFFECT = 3


def to_scores(values: FloatArray) -> FloatArray:
    """Give normal scores of the ranks, so that how bad the worst are has no say; equals share a rank."""
    scores: FloatArray = norm.ppf((rankdata(values) - 0.5) / len(values))
    return scores


def assess_parameters(design: Design, targets: FloatArray) -> Mapping[str, float]:
    """Give for each parameter the chance that the targets depend on some parameter as much as on this by accident.

    What the other parameters explain is taken out first, as far as there are trials for it: it would hide the rest,
    and a sampler that likes two values at once would lend the effect of one to the other.
    """
    design, targets = _thin(design, targets)
    degree = _affordable_degree(design)
    statistics = [
        _statistic(_kernel(axis, design.places[:, i]), targets, _single_effects(design, degree, but=i))
        for i, axis in enumerate(design.axes)
    ]
    return dict(zip((axis.name for axis in design.axes), _family_wise(statistics), strict=True))


def assess_pairs(design: Design, targets: FloatArray) -> Mapping[tuple[str, str], float]:
    """Give for each pair the chance that some pair has as much of a joint effect as this by accident."""
    design, targets = _thin(design, targets)
    effects = _single_effects(design, _DEGREE)
    kernels = [_kernel(axis, design.places[:, i]) for i, axis in enumerate(design.axes)]
    pairs = list(combinations(range(len(kernels)), 2))
    statistics = [_joint_statistic(kernels[i] * kernels[j], targets, effects) for i, j in pairs]
    names = [(design.axes[i].name, design.axes[j].name) for i, j in pairs]
    return dict(zip(names, _family_wise(statistics), strict=True))


def n_for_pairs(design: Design) -> int:
    """Give the number of trials that pairs need: three for each effect that is taken out of them first."""
    return _needed(design, _DEGREE)


def _thin(design: Design, targets: FloatArray) -> tuple[Design, FloatArray]:
    if len(targets) <= N_MOST:
        return design, targets
    some = np.sort(np.random.default_rng(0).choice(len(targets), N_MOST, replace=False))
    return design.take(some), targets[some]


def _statistic(kernel: FloatArray, targets: FloatArray, effects: FloatArray) -> FloatArray:
    """Say how alike what the effects leave unexplained is in trials that are alike: as it is, and shuffled."""
    unexplained = _without(effects, targets[:, None])[:, 0]
    # The same shuffles for all parameters, so that the largest of their statistics is that of one study.
    shuffled = np.random.default_rng(0).permuted(np.tile(unexplained, (N_PERMUTATIONS, 1)), axis=1)
    return _likeness(kernel, _without(effects, np.vstack([unexplained, shuffled]).T))


def _joint_statistic(kernel: FloatArray, targets: FloatArray, effects: FloatArray) -> FloatArray:
    """Do the same for a pair, on the scores of what is unexplained: as it is, and drawn from a normal distribution.

    Many effects are taken out here, and shuffling what they leave finds too much.
    """
    scores = to_scores(_without(effects, targets[:, None])[:, 0])
    drawn = np.random.default_rng(0).normal(size=(len(targets), N_PERMUTATIONS))
    return _likeness(kernel, _without(effects, np.column_stack([scores, drawn])))


def _likeness(kernel: FloatArray, samples: FloatArray) -> FloatArray:
    likeness, size = np.einsum("nb,nb->b", samples, kernel @ samples), (samples**2).sum(axis=0)
    # Relative to what is left, which is less in the shuffled ones: they lose the effects' share twice.
    relative: FloatArray = likeness / np.where(size > 0, size, np.inf)
    return relative


def _without(effects: FloatArray, samples: FloatArray) -> FloatArray:
    basis, _ = np.linalg.qr(effects)
    rest: FloatArray = samples - basis @ (basis.T @ samples)
    return rest


def _family_wise(rows: Sequence[FloatArray]) -> list[float]:
    """Compare each statistic, as it is in the first column, with the largest of all under each permutation."""
    if not rows:
        return []
    statistics = np.array(rows)
    shuffled = statistics[:, 1:]
    spread = shuffled.std(axis=1, keepdims=True)
    relative = (statistics - shuffled.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, np.inf)
    largest = relative[:, 1:].max(axis=0)
    return [float((1 + (largest >= own - 1e-12).sum()) / (1 + len(largest))) for own in relative[:, 0]]


def _kernel(axis: Axis, places: FloatArray) -> FloatArray:
    """Say how alike the trials are in one parameter, with a mean of 0 in each row.

    By ranks, since a sampler crowds its trials where it likes them.
    """
    if axis.is_ordered:
        ranks = rankdata(places) / len(places)
        alike = np.exp(-((ranks[:, None] - ranks[None, :]) ** 2) / (2 * _WIDTH**2))
    else:
        alike = (places[:, None] == places[None, :]).astype(float)
    means = alike.mean(axis=0)
    centered: FloatArray = alike - means[:, None] - means[None, :] + means.mean()
    return centered


def _affordable_degree(design: Design) -> int:
    """Give the highest degree of polynomials that leaves enough trials for each of their terms."""
    return next((d for d in range(_DEGREE, 0, -1) if len(design.rows) >= _needed(design, d)), 0)


def _needed(design: Design, degree: int) -> int:
    return _TRIALS_PER_EFFECT * int(_single_effects(design, degree).shape[1])


def _single_effects(design: Design, degree: int, but: int | None = None) -> FloatArray:
    """Give a column for the mean and columns for each parameter's own effect: powers, or one for each level."""
    columns = [np.ones(len(design.rows))]
    for i, axis in enumerate(design.axes):
        places = design.places[:, i]
        levels = np.unique(places)
        if i == but or degree == 0:
            continue
        if axis.is_ordered:
            columns += [(places - places.mean()) ** power for power in range(1, min(degree, len(levels) - 1) + 1)]
        else:
            columns += [(places == level).astype(float) for level in levels[1:]]
    return np.array(columns).T
