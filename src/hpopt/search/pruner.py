"""Owns where trials are compared, and which of them goes on: the pruner. Leaves what it compares to storage/.

Free of optuna, so that `hpopt check` can say where the rungs are.
"""

from dataclasses import dataclass

# Steps are whole: a rung at a third of 100 steps is reached at step 33.
_ROUNDING = 0.5
# What a median of fewer trials says is mostly luck.
_N_FOR_A_MEDIAN = 5


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """Where trials are compared, as fractions of their schedules, and which share of them goes on from there.

    A trial goes on if it is among the best `share` of all that came this far, itself included, or the best of them.
    `n_least` trials must have come before any is stopped. Source: the stopping type of ASHA in Syne Tune (Salinas et
    al. 2022), after Li et al. 2020; the values are those that trials had here, not later ones.
    """

    fractions: tuple[float, ...] = ()
    at_every_evaluation_from: float | None = None
    share: float = 1.0
    n_least: int = 2

    def is_hopeless(self, *, n: int, n_better: int) -> bool:
        """Judge a trial at a rung that n trials have reached, itself included, n_better of them with a better value."""
        return n >= self.n_least and n_better >= max(1, int(n * self.share + 1e-9))

    def reached(self, step: int, n_steps: int, before: int) -> float | None:
        """Give the rung that an evaluation at `step` of `n_steps` is the first to reach; None at none, and at the end.

        `before` is the step of the evaluation before it, 0 if there is none.
        """
        if step >= n_steps:
            return None
        if self.at_every_evaluation_from is not None:
            return round(step / n_steps, 6) if step + _ROUNDING >= self.at_every_evaluation_from * n_steps else None
        passed = [f for f in self.fractions if before + _ROUNDING < f * n_steps <= step + _ROUNDING]
        return max(passed, default=None)


def build_rungs(name: str, *, min_fraction: float, reduction_factor: int) -> Rungs:
    """Make the rungs of a pruner: `asha`, `median`, or `none` at all."""
    if name == "median":
        return Rungs(at_every_evaluation_from=min_fraction, share=0.5, n_least=_N_FOR_A_MEDIAN)
    if name == "none":
        return Rungs()
    fractions = [min_fraction]
    while fractions[-1] * reduction_factor < 1:
        fractions.append(fractions[-1] * reduction_factor)
    return Rungs(fractions=tuple(f for f in fractions if f < 1), share=1 / reduction_factor)
