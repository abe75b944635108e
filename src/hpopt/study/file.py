"""Owns the sections of a study file. Leaves reading one to reading.py, and what is refused of the whole to checks.py.

What each parameter may be is hyperparameters.py's to say, and the samplers and pruners themselves are strategy.py's.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from hpopt.hyperparameters import Scalar
from hpopt.search.direction import Direction
from hpopt.search.space import STRICT, Range
from hpopt.study.objectives import build_config, config_class

POSTGRES_MAX_INT = 2**31 - 1
NUMPY_MAX_SEED = 2**32 - 1


class Budget(BaseModel):
    """What the whole fleet may spend together; the first limit reached ends the study."""

    model_config = STRICT

    trials: Annotated[int, Field(ge=1, le=POSTGRES_MAX_INT)] | None = None
    """Number of trials, pruned ones included."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Device hours of all workers together."""
    wall_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours since the first worker started."""
    target: float | None = None
    """Stop when the best value reaches this."""

    @model_validator(mode="after")
    def _end_somewhere(self) -> Self:
        if self.trials is None and self.gpu_hours is None and self.wall_hours is None:
            raise ValueError("no limit; give at least one of trials, gpu_hours, wall_hours")
        return self


class Sampler(BaseModel):
    """How the next trial is chosen."""

    model_config = STRICT

    name: Literal["tpe", "random", "grid"] = "tpe"
    """tpe models what is good so far, random does not look, grid tries every combination."""
    seed: Annotated[int, Field(ge=0, le=NUMPY_MAX_SEED)] = 0
    """Each trial's sampler is seeded from this and the trial's number."""
    n_startup_trials: Annotated[int, Field(ge=0)] = 10
    """Random trials before tpe starts to model."""


class Pruner(BaseModel):
    """How a hopeless trial is stopped early."""

    model_config = STRICT

    name: Literal["asha", "median", "none"] = "asha"
    """asha keeps the best of each rung, median those better than the median, none keeps all."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """One trial in this many goes on from a rung, and the next rung is this many times further."""
    min_fraction: Annotated[float, Field(gt=0, le=1)] = 1 / 9
    """The first rung, as a fraction of a trial's schedule."""


class StudyFile(BaseModel):
    """One study as its file describes it: what is searched, what is fixed, and when to stop."""

    model_config = STRICT

    # A first letter or digit, so that no name is an option of the command line or a way out of a folder.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Letters, digits, `.`, `_` and `-`; unique in a database."""
    objective: str = "pretrain"
    """`pretrain`, or a training function of your own as `package.module:function`."""
    metric: str = "val_loss"
    """The metric to optimize, one that the objective reports."""
    direction: Annotated[Direction, Field(strict=False)] = Direction.MINIMIZE
    """Whether a low or a high value of the metric is good."""
    budget: Budget
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    search_space: Annotated[dict[str, Range], Field(min_length=1)]
    """The parameters to search, each a range or a list of choices."""
    fixed: dict[str, Any] = {}
    """What the objective takes and the search does not move; its defaults hold for the rest."""
    enqueue: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    """Known configurations to try first; what an entry leaves out is sampled."""

    def config(self, params: Mapping[str, Any], seed: int | None = None) -> Any:  # noqa: ANN401 - the objective's.
        """Build the config of a trial from what is fixed, its params and its seed.

        Raises ConfigError where the config refuses them.
        """
        values = {**self.fixed, **params} if seed is None else {**self.fixed, **params, "seed": seed}
        return build_config(self.objective, values)

    def default_params(self) -> dict[str, Scalar] | None:
        """Give the objective's defaults for what is searched, or None when one is missing or outside of its range."""
        defaults: dict[str, Any] = {f.name: f.default for f in fields(config_class(self.objective))}
        params = {name: defaults[name] for name in self.search_space}
        inside = all(self.search_space[name].contains(value) for name, value in params.items())
        return params if inside else None
