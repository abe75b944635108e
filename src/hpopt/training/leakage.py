"""Owns leakage: how much of the validation text a run also trains on, and when that is too much.

Leaves near-copies and the split of documents to corpus.py. Free of torch.
"""

import logging
import math

import numpy as np
import numpy.typing as npt

from hpopt.training.corpus import rolling_hash

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]

# Clean splits of the standard library overlap by up to 4.3%. Training on 5% of the validation text as well is always
# above; on 1% never, on 2% seldom, and windows dealt out side by side not always: see benchmarks/leakage.py.
LEAK_ABOVE = 0.05

# In so few tokens, and fewer bytes, text that nobody copied repeats itself too often.
_WINDOW_TOKENS = 32
_WINDOW_BYTES = 80
_CHUNK = 2**24

_logger = logging.getLogger(__name__)


def window_of(n_tokens: int, n_bytes: int) -> int:
    """Choose how many tokens to compare at once: 32, and more where 32 stand for less than 80 bytes of text."""
    return max(_WINDOW_TOKENS, math.ceil(_WINDOW_BYTES * n_tokens / max(1, n_bytes)))


def overlap(
    train: Tokens,
    validation: Tokens,
    window: int = _WINDOW_TOKENS,
    *,
    train_part: Mask | None = None,
    validation_part: Mask | None = None,
) -> float:
    """Give the share of the validation windows of `window` tokens, one a position, that occur in training.

    Where a part is given, only windows that lie in it count.
    """
    wanted = rolling_hash(validation.astype(np.uint64), window)[_whole_windows(validation_part, window)]
    distinct, counts = np.unique(wanted, return_counts=True)
    is_found = np.zeros(len(distinct), dtype=bool)
    for start in range(0, len(train) if len(distinct) else 0, _CHUNK):
        chunk = slice(start, start + _CHUNK + window - 1)
        part = None if train_part is None else train_part[chunk]
        hashes = rolling_hash(train[chunk].astype(np.uint64), window)[_whole_windows(part, window)]
        places = np.searchsorted(distinct, hashes).clip(max=len(distinct) - 1)
        is_found[places[distinct[places] == hashes]] = True
    return float(counts[is_found].sum() / max(1, counts.sum()))


def _whole_windows(part: Mask | None, window: int) -> Mask | slice:
    """Choose the windows that lie in a part as a whole."""
    if part is None:
        return slice(None)
    n_before = np.concatenate([[0], np.cumsum(part)])
    whole: Mask = n_before[window:] - n_before[:-window] == window
    return whole


def covered(n_tokens: int, starts: npt.NDArray[np.int64], length: int) -> Mask:
    """Mark the tokens that lie in any of the windows of `length` tokens that begin at distinct `starts`."""
    change = np.zeros(n_tokens + 1, dtype=np.int64)
    change[starts] += 1
    change[starts + length] -= 1
    mask: Mask = np.cumsum(change)[:-1] > 0
    return mask


def warn_of_leak(train_val_overlap: float) -> None:
    """Say plainly, once a run, that its validation loss measures memory, when it does."""
    if train_val_overlap > LEAK_ABOVE:
        _logger.warning(
            "leak: %.0f%% of the validation text is trained on too; the validation loss then rewards memorizing it",
            100 * train_val_overlap,
        )
