"""Owns documents: how many are enough, which are near-copies, and the split of each.

Leaves where they come from to sources.py, and tokens to data.py.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

SPLITS = ("train", "validation", "test")

_HELD_OUT_SHARE = {"validation": 0.05, "test": 0.05}
# A token of any usual vocabulary stands for fewer bytes, on average.
_BYTES_PER_TOKEN = 8
_SHINGLE_WORDS = 10
# A document is a near-copy when more than this share of its shingles is in documents already kept.
_NEAR_COPY_SHARE = 0.5
# An odd 64-bit multiplier (Knuth's MMIX) for polynomial hashes modulo 2^64.
_MULTIPLIER = np.uint64(6364136223846793005)


def enough_for(documents: Iterator[str], n_tokens: int) -> Iterator[str]:
    """Pass documents on until those of the training split hold 8 bytes of text for each of n_tokens.

    What is left out of a stream that has no end follows from its order alone.
    """
    n_bytes = 0
    for text in documents:
        yield text
        if split_of(text) == "train":
            n_bytes += len(text.encode())
        if n_bytes >= _BYTES_PER_TOKEN * n_tokens:
            return


def drop_near_copies(documents: Iterator[str]) -> tuple[list[str], int]:
    """Keep the first of each family of near-copies; returns the kept documents and how many were dropped.

    A document is dropped when more than half of its 10-word shingles are in documents already kept (containment
    after Broder 1997), or when it has none, being shorter.
    """
    kept, seen, n_dropped = [], _Hashes(), 0
    for text in documents:
        shingles = np.unique(_shingles(text))
        if seen.count(shingles) > _NEAR_COPY_SHARE * len(shingles) or not len(shingles):
            n_dropped += 1
            continue
        kept.append(text)
        seen.add(shingles)
    return kept, n_dropped


class _Hashes:
    """A set of hashes in sorted arrays, 8 bytes each, where Python's takes 60; each is twice as long as the next."""

    def __init__(self) -> None:
        self._arrays: list[npt.NDArray[np.uint64]] = []

    def count(self, hashes: npt.NDArray[np.uint64]) -> int:
        """Count how many of some distinct hashes are in the set."""
        is_known = np.zeros(len(hashes), dtype=bool)
        for array in self._arrays:
            is_known |= array[np.searchsorted(array, hashes).clip(max=len(array) - 1)] == hashes
        return int(is_known.sum())

    def add(self, hashes: npt.NDArray[np.uint64]) -> None:
        """Add some hashes, at least one."""
        while self._arrays and len(self._arrays[-1]) < 2 * len(hashes):
            hashes = np.union1d(self._arrays.pop(), hashes)
        self._arrays.append(hashes)


def _shingles(text: str) -> npt.NDArray[np.uint64]:
    words = np.array([_word_hash(word) for word in re.findall(r"\w+", text)], dtype=np.uint64)
    return rolling_hash(words, _SHINGLE_WORDS)


@lru_cache(maxsize=1_000_000)
def _word_hash(word: str) -> int:
    # Python's own hash() differs between processes.
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def rolling_hash(values: npt.NDArray[np.uint64], length: int) -> npt.NDArray[np.uint64]:
    """Hash each run of `length` values: sum of value_j * m^(length - 1 - j) modulo 2^64; empty if there is none."""
    n_runs = max(0, len(values) - length + 1)
    hashes = np.zeros(n_runs, dtype=np.uint64)
    for start in range(length if n_runs else 0):
        hashes = hashes * _MULTIPLIER + values[start : start + n_runs]
    return hashes


def split_of(text: str) -> str:
    """Give the split that a document belongs to, by the hash of its text alone: more data never moves a document."""
    position = int(text_hash(text)[:16], 16) / 2**64
    for split, share in _HELD_OUT_SHARE.items():
        if position < share:
            return split
        position -= share
    return "train"


def text_hash(text: str) -> str:
    """Give the SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def split_documents(documents: list[str]) -> dict[str, list[str]]:
    """Sort the documents into splits, each ordered by hash, so that the first n tokens of a split are a fair sample."""
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text in sorted(documents, key=text_hash):
        splits[split_of(text)].append(text)
    return splits
