"""Owns the seam between a training function and its surroundings. Free of torch and of optuna.

A training function takes a config and a Run and yields Evaluations:

    def pretrain(config: PretrainConfig, run: Run) -> Iterator[Evaluation]: ...
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


def never() -> bool:
    """Say that nobody has asked to stop."""
    return False


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a training function is given besides its config.

    `folder` belongs to this attempt alone. It holds `checkpoint` when the attempt goes on where an
    earlier one stopped, and takes the checkpoints to come (write to another name, then rename).
    `should_stop` is asked at every micro-step: when it is true, write the checkpoint and raise Interrupted.
    `cache` is shared by all runs of this machine and holds prepared data.
    """

    folder: Path
    cache: Path
    device: str = "cpu"
    should_stop: Callable[[], bool] = never

    @property
    def checkpoint(self) -> Path:
        """Where the last checkpoint of this attempt is, or will be."""
        return self.folder / "checkpoint.pt"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a training function knows after `step` of `n_steps` optimizer steps.

    `tokens` counts all tokens trained on so far, `seconds` all time spent training so far (evaluation
    left out), both across interruptions. `metrics` holds every figure by name, e.g. val_loss in nats per token.
    """

    step: int
    n_steps: int
    tokens: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
