"""Limit, deduplicate and split documents."""

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

SPLITS = ("train", "validation", "test")

_HELD_OUT_SHARE = {"validation": 0.05, "test": 0.05}
# More than the average bytes per token of usual vocabularies.
_BYTES_PER_TOKEN = 8
_SHINGLE_WORDS = 10
# A document is a near-duplicate if more than this share of its shingles is in documents already kept.
_NEAR_DUPLICATE_SHARE = 0.5
# An odd 64-bit multiplier (Knuth's MMIX) for polynomial hashes modulo 2^64.
_MULTIPLIER = np.uint64(6364136223846793005)


def limit_to_tokens(documents: Iterator[str], n_tokens: int) -> Iterator[str]:
    """Yield documents until those of the training split have 8 bytes of text for each of n_tokens.

    The result depends on the order of the documents alone, so a stream without an end is cut at the same place
    everywhere.
    """
    n_bytes = 0
    for text in documents:
        yield text
        if assign_split(text) == "train":
            n_bytes += len(text.encode())
        if n_bytes >= _BYTES_PER_TOKEN * n_tokens:
            return


def drop_near_duplicates(documents: Iterator[str]) -> tuple[list[str], int]:
    """Keep the first of each group of near-duplicates; return the kept documents and the number of those dropped.

    A document is dropped if more than half of its 10-word shingles are in documents already kept, or if it has fewer
    than 10 words. Source: containment, Broder 1997.
    """
    kept, seen, n_dropped = [], _HashSet(), 0
    for text in documents:
        shingles = np.unique(_shingles(text))
        if seen.count(shingles) > _NEAR_DUPLICATE_SHARE * len(shingles) or not len(shingles):
            n_dropped += 1
            continue
        kept.append(text)
        seen.add(shingles)
    return kept, n_dropped


class _HashSet:
    """A set of 64-bit hashes in sorted arrays, 8 bytes per hash instead of the 60 of a Python set.

    Each array is at least twice as long as the next, so there are few of them.
    """

    def __init__(self) -> None:
        self._arrays: list[npt.NDArray[np.uint64]] = []

    def count(self, hashes: npt.NDArray[np.uint64]) -> int:
        """Return how many of the given distinct hashes are in the set."""
        is_member = np.zeros(len(hashes), dtype=bool)
        for array in self._arrays:
            is_member |= array[np.searchsorted(array, hashes).clip(max=len(array) - 1)] == hashes
        return int(is_member.sum())

    def add(self, hashes: npt.NDArray[np.uint64]) -> None:
        """Add hashes, at least one."""
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
    """Hash each window of `length` values: sum of value_j * m^(length - 1 - j) modulo 2^64.

    Returns max(0, len(values) - length + 1) hashes.
    """
    n_windows = max(0, len(values) - length + 1)
    hashes = np.zeros(n_windows, dtype=np.uint64)
    for start in range(length if n_windows else 0):
        hashes = hashes * _MULTIPLIER + values[start : start + n_windows]
    return hashes


def assign_split(text: str) -> str:
    """Return the split of a document by the hash of its text alone: more data never moves a document."""
    position = int(hash_text(text)[:16], 16) / 2**64
    for split, share in _HELD_OUT_SHARE.items():
        if position < share:
            return split
        position -= share
    return "train"


def hash_text(text: str) -> str:
    """Return the SHA-256 of a text as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def split_documents(documents: list[str]) -> dict[str, list[str]]:
    """Return the documents of each split, ordered by hash, so that the first n tokens of a split are a fair sample."""
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text in sorted(documents, key=hash_text):
        splits[assign_split(text)].append(text)
    return splits
