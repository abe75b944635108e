"""The progress of a training run, and the detection of divergence."""

import math
from dataclasses import dataclass, field

from hpopt.errors import Diverged

# A run has diverged when its training loss, averaged over 10 steps, is 3 nats above its first: untrained models
# start at ln(vocabulary), the loss of a uniform guess, and 3 nats above it is a likelihood twenty times lower.
_DIVERGED_ABOVE_START_NATS = 3.0
_DIVERGED_OVER_STEPS = 10


@dataclass
class Progress:
    """What a run has done so far; plain values, because they are stored in the checkpoint.

    `tokens` and `seconds` are those of training, without evaluation, across interruptions. `window_*` are sums since
    the last evaluation. `learning_rate` and `gradient_norm` are those of the last step, `start_loss` is the training
    loss of the first, `recent_losses` are those of the last 10 (nats per token). `metrics` are those of the
    evaluation at this step, None if there was none.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    learning_rate: float = math.nan
    gradient_norm: float = math.nan
    start_loss: float = math.nan
    recent_losses: list[float] = field(default_factory=list)
    window_loss: float = 0.0
    window_steps: int = 0
    window_tokens: int = 0
    window_seconds: float = 0.0
    metrics: dict[str, float] | None = None

    def record_step(self, *, loss: float, gradient_norm: float, tokens: int, seconds: float) -> None:
        """Add a finished step; raises Diverged."""
        self.step += 1
        self.tokens += tokens
        self.seconds += seconds
        self.gradient_norm = gradient_norm
        self.start_loss = loss if self.step == 1 else self.start_loss
        self.recent_losses = [*self.recent_losses, loss][-_DIVERGED_OVER_STEPS:]
        self.window_loss += loss
        self.window_steps += 1
        self.window_tokens += tokens
        self.window_seconds += seconds
        self.metrics = None
        self._check_divergence()

    def close_window(self) -> dict[str, float]:
        """Return the metrics of training since the last evaluation, and reset the sums."""
        metrics = {
            "train_loss": self.window_loss / self.window_steps,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "tokens_per_second": self.window_tokens / self.window_seconds,
        }
        self.window_loss, self.window_steps, self.window_tokens, self.window_seconds = 0.0, 0, 0, 0.0
        return metrics

    def _check_divergence(self) -> None:
        losses, start = self.recent_losses, f"it started at {self.start_loss:.3f}"
        if not math.isfinite(losses[-1]):
            raise Diverged(f"training loss is {losses[-1]} at step {self.step}; {start}")
        if not math.isfinite(self.gradient_norm):
            raise Diverged(
                f"gradient norm is {self.gradient_norm} at step {self.step}, at loss {losses[-1]:.3f}; {start}"
            )
        mean = sum(losses) / len(losses)
        if len(losses) == _DIVERGED_OVER_STEPS and mean > self.start_loss + _DIVERGED_ABOVE_START_NATS:
            raise Diverged(f"training loss is {mean:.3f} over the {len(losses)} steps to {self.step}; {start}")
