"""Decide at which fractions of a schedule trials are compared, and which of them are pruned there.

Free of optuna, so that `hpopt check` can print the rungs.
"""

import math
from dataclasses import dataclass

# Steps are whole numbers: a rung at a third of 100 steps is reached at step 33.
_ROUNDING = 0.5
# The median of fewer trials is mostly chance.
_MIN_TRIALS_OF_MEDIAN = 5


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """Where trials are compared, as fractions of their schedules, and which share of them goes on from there.

    A trial goes on if it is among the best `share` of all that reached the rung, itself included, or the best of them.
    None is pruned before `min_trials` have reached it. Source: the stopping type of ASHA in Syne Tune (Salinas et al.
    2022), after Li et al. 2020; trials are compared by the values that they had at the rung, not by later ones. None
    are compared in the first `warmup_steps`.
    """

    fractions: tuple[float, ...] = ()
    at_every_evaluation_from: float | None = None
    warmup_steps: float = 0.0
    share: float = 1.0
    min_trials: int = 2

    def should_prune(self, *, n_trials: int, n_better: int) -> bool:
        """Return whether to prune a trial at a rung that n_trials reached, itself included, n_better of them better."""
        return n_trials >= self.min_trials and n_better >= max(1, int(n_trials * self.share + 1e-9))

    def reached(self, step: int, n_steps: int) -> float | None:
        """Return the last rung at or before `step` of `n_steps` as a fraction; None before the first and at the end."""
        if step >= n_steps or step < self.warmup_steps:
            return None
        if self.at_every_evaluation_from is not None:
            return round(step / n_steps, 6) if step + _ROUNDING >= self.at_every_evaluation_from * n_steps else None
        reached = (f for f in self.fractions if self.warmup_steps <= f * n_steps <= step + _ROUNDING)
        return max(reached, default=None)

    def place(self, n_steps: int) -> list[int]:
        """Return the steps of the rungs in a schedule; of a comparison at every evaluation, the first one."""
        fractions = self.fractions
        if self.at_every_evaluation_from is not None:
            fractions = (max(self.at_every_evaluation_from, self.warmup_steps / n_steps),)
        return [max(1, math.ceil(f * n_steps - _ROUNDING)) for f in fractions if f * n_steps >= self.warmup_steps]


def build_rungs(
    name: str, *, min_fraction: float, reduction_factor: int, warmup_fraction: float = 0.0, warmup_steps: float = 0.0
) -> Rungs:
    """Return the rungs of a pruner: `asha`, `median` or `none`.

    Where the length of the warmup is searched, the longest one is a fraction of the schedule or a number of steps. A
    trial with a longer warmup is behind until it ends, whatever it reaches later: rungs before its end are left out,
    and if none is left, trials are compared halfway from there to the end of the schedule.
    """
    if name == "median":
        start = max(min_fraction, warmup_fraction)
        return Rungs(
            at_every_evaluation_from=start, share=0.5, min_trials=_MIN_TRIALS_OF_MEDIAN, warmup_steps=warmup_steps
        )
    if name == "none":
        return Rungs()
    fractions = [min_fraction]
    while fractions[-1] < 1:
        fractions.append(fractions[-1] * reduction_factor)
    beyond = [f for f in fractions if warmup_fraction <= f < 1]
    if fractions[0] < 1 and not beyond:
        beyond = [(1 + warmup_fraction) / 2]
    return Rungs(fractions=tuple(beyond), share=1 / reduction_factor, warmup_steps=warmup_steps)
