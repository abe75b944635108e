"""Owns the tests whether something depends on a parameter, or on a pair of them, or whether it is chance.

Each is an F test of low polynomials beside those of all other parameters, with one error rate for all parameters
together: what is significant at 5% occurs in one study out of twenty where nothing depends on anything. What an F is
worth is not looked up, but seen in shuffled or drawn data. Sources: permuting residuals, Freedman and Lane 1983; the
step from one to many, Westfall and Young 1993; drawing for pairs, Langsrud 2005.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.stats import norm, rankdata

from hpopt.analysis.axes import Axis, Design, FloatArray

# Tests that shuffle what is left are a little liberal, and a study is asked about parameters, pairs, budgets and what
# diverges: at this level at most one study of pure noise in twenty gets any claim at all (benchmarks/planted.py).
SIGNIFICANCE_LEVEL = 0.025
N_PERMUTATIONS = 999
# What more trials would show is too small to act on.
N_MOST = 1000
# A parameter is looked at for a trend and a bowl, a pair for their products; an S is taken out of pairs besides.
_DEGREE = 2
_DEGREE_BESIDE_PAIRS = 3
_TRIALS_PER_EFFECT = 3
# Less than this is rounding.
_NOTHING = 1e-10


def normal_scores(values: FloatArray) -> FloatArray:
    """Give normal scores of the ranks, so that how bad the worst are has no say; equals share a rank."""
    scores: FloatArray = norm.ppf((rankdata(values) - 0.5) / len(values))
    return scores


def assess_parameters(design: Design, targets: FloatArray) -> Mapping[str, float]:
    """Give for each parameter the p-value: the chance that targets depend as much on some parameter by accident.

    What the other parameters explain is taken out first, as far as there are trials for it: it would hide the rest,
    and a sampler that likes two values at once would lend the effect of one to the other.
    """
    design, targets = _thin(design, targets)
    degree = _affordable_degree(design, _DEGREE)
    effects = [_effects(axis, design.places[:, i], _DEGREE) for i, axis in enumerate(design.axes)]
    others = [_effects(axis, design.places[:, i], degree) for i, axis in enumerate(design.axes)]
    statistics = [
        _shuffled_share(own, _with_mean([*others[:i], *others[i + 1 :]], len(targets)), targets)
        for i, own in enumerate(effects)
    ]
    return dict(zip((axis.name for axis in design.axes), _family_wise(statistics), strict=True))


def assess_pairs(design: Design, targets: FloatArray) -> Mapping[tuple[str, str], float]:
    """Give for each pair the p-value: the chance that some pair has as much of a joint effect as this by accident.

    A pair that is more than that is taken out before the others are looked at, since they would share in its effect.
    """
    design, targets = _thin(design, targets)
    taken_out = _all_effects(design, max(_DEGREE, _affordable_degree(design, _DEGREE_BESIDE_PAIRS)))
    own = {axis.name: _effects(axis, design.places[:, i], _DEGREE) for i, axis in enumerate(design.axes)}
    left = {(one, other): _products(own[one], own[other]) for one, other in combinations(own, 2)}
    found: dict[tuple[str, str], float] = {}
    while left:
        p_values = _family_wise([_drawn_share(product, taken_out, targets) for product in left.values()])
        first = int(np.argmin(p_values))
        if p_values[first] > SIGNIFICANCE_LEVEL:
            return found | dict(zip(left, p_values, strict=True))
        pair = list(left)[first]
        found[pair] = max([p_values[first], *found.values()])
        taken_out = np.column_stack([taken_out, left.pop(pair)])
    return found


def min_trials_for_pairs(design: Design) -> int:
    """Give the number of trials that pairs need: three for each effect that is taken out of them first."""
    return _TRIALS_PER_EFFECT * int(_all_effects(design, _DEGREE).shape[1])


def _thin(design: Design, targets: FloatArray) -> tuple[Design, FloatArray]:
    # Squares of 1e300 would be infinite.
    targets = targets / (np.abs(targets).max(initial=0.0) or 1.0)
    if len(targets) <= N_MOST:
        return design, targets
    some = np.sort(np.random.default_rng(0).choice(len(targets), N_MOST, replace=False))
    return design.take(some), targets[some]


def _shuffled_share(own: FloatArray, others: FloatArray, targets: FloatArray) -> FloatArray:
    """Give what share of the variance that the others leave is explained: as it is, and shuffled."""
    rest = _without(others, targets[:, None])[:, 0]
    # The same shuffles for all parameters, so that the largest of their shares is that of one study.
    shuffled = np.random.default_rng(0).permuted(np.tile(rest, (N_PERMUTATIONS, 1)), axis=1)
    return _share(own, others, np.vstack([rest, shuffled]).T)


def _drawn_share(own: FloatArray, others: FloatArray, targets: FloatArray) -> FloatArray:
    """Do the same for a pair, on the scores of what is left: as it is, and drawn from a normal distribution.

    Many effects are taken out here, and shuffling what they leave finds too much.
    """
    scores = normal_scores(_without(others, targets[:, None])[:, 0])
    drawn = np.random.default_rng(0).normal(size=(len(targets), N_PERMUTATIONS))
    return _share(own, others, np.column_stack([scores, drawn]))


def _share(own: FloatArray, others: FloatArray, samples: FloatArray) -> FloatArray:
    rest = _without(others, samples)
    basis = _basis(_without(others, own))
    explained, size = ((basis.T @ rest) ** 2).sum(axis=0), (rest**2).sum(axis=0)
    share: FloatArray = explained / np.where(size > 0, size, np.inf)
    return share


def _without(effects: FloatArray, samples: FloatArray) -> FloatArray:
    basis = _basis(effects)
    rest: FloatArray = samples - basis @ (basis.T @ samples)
    return rest


def _basis(columns: FloatArray) -> FloatArray:
    """Give orthonormal columns that span the same; columns that the others make up anyway add none."""
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    basis: FloatArray = vectors[:, sizes > _NOTHING * max(1.0, sizes.max(initial=0.0))]
    return basis


def _family_wise(rows: Sequence[FloatArray]) -> list[float]:
    """Compare each statistic, as it is in the first column, with the largest of all under each permutation."""
    if not rows:
        return []
    statistics = np.array(rows)
    shuffled = statistics[:, 1:]
    spread = shuffled.std(axis=1, keepdims=True)
    relative = (statistics - shuffled.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, np.inf)
    largest = relative[:, 1:].max(axis=0)
    return [float((1 + (largest >= own - _NOTHING).sum()) / (1 + len(largest))) for own in relative[:, 0]]


def _affordable_degree(design: Design, highest: int) -> int:
    """Give the highest degree of polynomials that leaves enough trials for each of their terms."""
    n = len(design.rows)
    affordable = (d for d in range(highest, 0, -1) if n >= _TRIALS_PER_EFFECT * _all_effects(design, d).shape[1])
    return next(affordable, 0)


def _all_effects(design: Design, degree: int) -> FloatArray:
    effects = [_effects(axis, design.places[:, i], degree) for i, axis in enumerate(design.axes)]
    return _with_mean(effects, len(design.rows))


def _with_mean(effects: Sequence[FloatArray], n: int) -> FloatArray:
    return np.column_stack([np.ones(n), *effects])


def _effects(axis: Axis, places: FloatArray, degree: int) -> FloatArray:
    """Give the columns of one parameter's own effect: powers up to a degree, or one for each level but the first."""
    levels = np.unique(places)
    if degree == 0:
        columns = []
    elif axis.is_ordered:
        columns = [(places - places.mean()) ** power for power in range(1, min(degree, len(levels) - 1) + 1)]
    else:
        columns = [(places == level).astype(float) for level in levels[1:]]
    return np.array(columns).reshape(len(columns), len(places)).T


def _products(one: FloatArray, other: FloatArray) -> FloatArray:
    return np.column_stack([a * b for a in one.T for b in other.T] or [np.zeros(len(one))])
