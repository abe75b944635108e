"""List the configurations of a fixed design. Free of optuna, so that `hpopt check` can count them."""

from collections.abc import Iterator, Mapping

from hpopt.hyperparameters import Scalar
from hpopt.search.conditions import active_params, find_conditions, is_active
from hpopt.search.space import Range


def grid_points(space: Mapping[str, Range]) -> Iterator[dict[str, Scalar]]:
    """Yield every combination of the values of all parameters, the last one changing first.

    A point has the parameters that are active there.
    """
    conditions = find_conditions(space)
    names = list(conditions)

    def extend(point: dict[str, Scalar], n_decided: int) -> Iterator[dict[str, Scalar]]:
        if n_decided == len(names):
            yield {name: point[name] for name in space if name in point}
            return
        name = names[n_decided]
        if not is_active(conditions[name], point):
            yield from extend(point, n_decided + 1)
            return
        for value in space[name].points():
            yield from extend({**point, name: value}, n_decided + 1)

    return extend({}, 0)


def one_at_a_time_points(space: Mapping[str, Range], base: Mapping[str, Scalar]) -> Iterator[dict[str, Scalar]]:
    """Yield the base, and for each parameter that is active in it, the base with each of its other values.

    A point has the parameters that are active there: where the value of one activates another, that one is as in the
    base.
    """
    center = active_params(space, base)
    yield center
    for name in center:
        for value in space[name].points():
            if value != center[name]:
                yield active_params(space, {**base, name: value})
