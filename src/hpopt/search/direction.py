"""Whether a study minimizes or maximizes its metric."""

import math
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class Direction(StrEnum):
    """Whether a low or a high value of the metric is good."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"

    @property
    def sign(self) -> float:
        """1 to minimize, -1 to maximize: `sign * value` is lower for a better value."""
        return 1.0 if self is Direction.MINIMIZE else -1.0

    def loss(self, value: float | None) -> float:
        """Return a number that is lower for a better value; infinity for None and for values that are not finite."""
        return math.inf if value is None or not math.isfinite(value) else self.sign * value

    def is_better(self, value: float, other: float) -> bool:
        """Return whether a value is strictly better than another."""
        return self.sign * value < self.sign * other

    def best(self, values: Iterable[T], key: Callable[[T], float | None]) -> T | None:
        """Return the item with the best value, the first of equals, or None if there is none."""
        return min(values, key=lambda item: self.loss(key(item)), default=None)
