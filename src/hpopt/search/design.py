"""List the configurations of a fixed design. Free of optuna, so that `hpopt check` can count them."""

from collections.abc import Mapping

from hpopt.hyperparameters import Scalar
from hpopt.search.conditions import find_conditions, is_active
from hpopt.search.space import Categorical, Range


def grid_points(space: Mapping[str, Range]) -> list[dict[str, Scalar]]:
    """Return every combination of the values of a space of choices, integers and floats with a step.

    A point has the parameters that are active there.
    """
    points: list[dict[str, Scalar]] = [{}]
    for name, condition in find_conditions(space).items():
        parameter = space[name]
        values = parameter.choices if isinstance(parameter, Categorical) else tuple(parameter.values())
        points = [
            extended
            for point in points
            for extended in ([{**point, name: value} for value in values] if is_active(condition, point) else [point])
        ]
    return [{name: point[name] for name in space if name in point} for point in points]
