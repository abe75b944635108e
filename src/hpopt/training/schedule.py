"""Owns the course of the learning rate, as a multiple of its peak. Leaves the peak to the config."""

import math

# The share of the run that wsd (warmup, stable, decay) spends decaying: Hägele et al. 2024, section 3.
_WSD_DECAY_RATIO = 0.2


def lr_multiplier(step: int, n_steps: int, *, kind: str, warmup_ratio: float, min_lr_ratio: float) -> float:
    """Give the multiple of the peak learning rate that optimizer step `step` (0 to n_steps - 1) uses.

    Warmup climbs linearly over round(warmup_ratio * n_steps) steps and reaches 1 at the first step after it;
    its first step is above 0. The decay would reach min_lr_ratio at step n_steps, one after the last.
    `kind`: cosine (Loshchilov and Hutter 2017, eq. 5), linear, wsd (flat, then linear over the last 20%) or constant.
    Raises ValueError for another kind.
    """
    n_warmup = round(warmup_ratio * n_steps)
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    return min_lr_ratio + (1 - min_lr_ratio) * _decay(step, n_warmup, n_steps, kind)


def _decay(step: int, n_warmup: int, n_steps: int, kind: str) -> float:
    """Fall from 1 to 0 over the steps after the warmup."""
    progress = (step - n_warmup) / max(1, n_steps - n_warmup)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if kind == "linear":
        return 1 - progress
    if kind == "wsd":
        n_decay = max(1, round(_WSD_DECAY_RATIO * n_steps))
        return min(1.0, (n_steps - step) / n_decay)
    if kind == "constant":
        return 1.0
    raise ValueError(f"lr_scheduler_type: {kind!r} is not cosine, linear, wsd or constant")
