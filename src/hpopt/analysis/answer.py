"""Define the answer of a study: its best configuration, and how far it can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from hpopt.hyperparameters import Scalar


class AnswerKind(StrEnum):
    """How far the best configuration of a study can be trusted; of a comparison, what it shows of this arm."""

    UNCONFIRMED = "unconfirmed"
    CONFIRMED = "confirmed"
    TIE = "tie"
    BETTER = "better"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class ConfirmedCandidate:
    """A configuration of a confirmation: its `trial` in the search with `search_value`, and its values by seed.

    `low` to `high` is the 95% interval of its true mean. `is_tied` tells whether it may be the best one.
    `device_seconds` is the mean cost of a run.
    """

    params: Mapping[str, Scalar]
    trial: int
    search_value: float
    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    is_tied: bool
    device_seconds: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer of a confirmation: the configuration of `trial`, which is the best one, or one of a tie.

    `candidates` are in the order of their means, best first. `optimism` is by how much the best value of the search is
    better than the mean of its configuration, `noise_std` the standard deviation of a run. `test_metrics` are those of
    the answer on the held-out test split, averaged over its runs.
    """

    kind: AnswerKind
    trial: int
    optimism: float
    noise_std: float
    candidates: tuple[ConfirmedCandidate, ...]
    test_metrics: Mapping[str, float] | None = None

    @property
    def chosen(self) -> ConfirmedCandidate:
        """The configuration to use."""
        return next(one for one in self.candidates if one.trial == self.trial)
