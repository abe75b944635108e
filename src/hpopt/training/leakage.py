"""Measure how much of the validation text is also in the training text, and warn of a leak."""

import logging
import math

import numpy as np
import numpy.typing as npt

from hpopt.training.corpus import rolling_hash

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]

# The overlap above which a split counts as leaky. Clean splits of the standard library overlap by up to 4.3%. Training
# on 5% of the validation text as well is always above, on 1% never, on 2% seldom, and on adjacent windows assigned at
# random not always: see benchmarks/leakage.py.
LEAK_THRESHOLD = 0.05

# In fewer tokens or bytes, text that was not copied repeats itself too often.
_WINDOW_TOKENS = 32
_WINDOW_BYTES = 80
_CHUNK = 2**24

_logger = logging.getLogger(__name__)


def choose_window(n_tokens: int, n_bytes: int) -> int:
    """Return how many tokens to compare at once: 32, or more where 32 tokens have less than 80 bytes of text."""
    return max(_WINDOW_TOKENS, math.ceil(_WINDOW_BYTES * n_tokens / max(1, n_bytes)))


def measure_overlap(
    train: Tokens,
    validation: Tokens,
    window: int = _WINDOW_TOKENS,
    *,
    train_part: Mask | None = None,
    validation_part: Mask | None = None,
) -> float:
    """Return the share of the validation windows of `window` tokens, one per position, that occur in training.

    `train_part` and `validation_part` mark the tokens that belong to the text; only windows of marked tokens count.
    """
    wanted = rolling_hash(validation.astype(np.uint64), window)[_whole_windows(validation_part, window)]
    distinct, counts = np.unique(wanted, return_counts=True)
    is_in_training = np.zeros(len(distinct), dtype=bool)
    for start in range(0, len(train) if len(distinct) else 0, _CHUNK):
        chunk = slice(start, start + _CHUNK + window - 1)
        part = None if train_part is None else train_part[chunk]
        hashes = rolling_hash(train[chunk].astype(np.uint64), window)[_whole_windows(part, window)]
        indices = np.searchsorted(distinct, hashes).clip(max=len(distinct) - 1)
        is_in_training[indices[distinct[indices] == hashes]] = True
    return float(counts[is_in_training].sum() / max(1, counts.sum()))


def _whole_windows(part: Mask | None, window: int) -> Mask | slice:
    """Select the windows all of whose tokens are marked."""
    if part is None:
        return slice(None)
    n_before = np.concatenate([[0], np.cumsum(part)])
    whole: Mask = n_before[window:] - n_before[:-window] == window
    return whole


def mark_windows(n_tokens: int, starts: npt.NDArray[np.int64], length: int) -> Mask:
    """Mark the tokens that lie in any of the windows of `length` tokens at distinct `starts`."""
    change = np.zeros(n_tokens + 1, dtype=np.int64)
    change[starts] += 1
    change[starts + length] -= 1
    mask: Mask = np.cumsum(change)[:-1] > 0
    return mask


def warn_of_leak(train_val_overlap: float) -> None:
    """Log a warning if the overlap is above LEAK_THRESHOLD."""
    if train_val_overlap > LEAK_THRESHOLD:
        _logger.warning(
            "leak: %.0f%% of the validation text is also training text; the validation loss rewards memorization",
            100 * train_val_overlap,
        )
