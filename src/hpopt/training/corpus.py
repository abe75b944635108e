"""Owns documents: where they come from, which are near-copies, and the split of each. Leaves tokens to data.py."""

import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpopt.errors import ConfigError

STDLIB = "python-stdlib"
END_OF_TEXT = "<|endoftext|>"
SPLITS = ("train", "validation", "test")

_HELD_OUT_SHARE = {"validation": 0.05, "test": 0.05}
# Tests more than double the text but repeat themselves, and many Python builds come without them; encodings
# and pydoc_data are generated tables.
_STDLIB_LEFT_OUT = {"site-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
_FOLDER_SUFFIXES = {".txt", ".md", ".py"}
_FILE_SUFFIXES = {".txt", ".jsonl", ".parquet"}
_SHINGLE_WORDS = 10
# A document is a near-copy when more than this share of its shingles is in documents already kept.
_NEAR_COPY_SHARE = 0.5
# An odd 64-bit multiplier (Knuth's MMIX) for polynomial hashes modulo 2^64.
_MULTIPLIER = np.uint64(6364136223846793005)


def source_files(dataset: str) -> list[Path]:
    """List the files of a dataset, sorted by relative path.

    `dataset` is "python-stdlib" (the .py files of this Python's standard library, without tests and generated
    tables), a folder of .txt, .md and .py files (one document each), or a .txt, .jsonl or .parquet file.
    Raises ConfigError for anything else.
    """
    path = Path(sysconfig.get_path("stdlib") if dataset == STDLIB else dataset)
    if path.is_dir():
        suffixes, left_out = ({".py"}, _STDLIB_LEFT_OUT) if dataset == STDLIB else (_FOLDER_SUFFIXES, set())
        relative = sorted(file.relative_to(path) for file in path.rglob("*") if file.suffix in suffixes)
        return [path / file for file in relative if not left_out & set(file.parts)]
    if path.suffix in _FILE_SUFFIXES and path.is_file():
        return [path]
    raise ConfigError(
        "dataset",
        f"{dataset!r} is unknown; known: '{STDLIB}', a folder of text files, a .txt, .jsonl or .parquet file",
    )


def read_documents(dataset: str) -> Iterator[str]:
    """Read the documents of a dataset in a fixed order; files that are not UTF-8 are left out.

    A file of a folder is one document. In a .txt file documents are separated by <|endoftext|>, in .jsonl and
    .parquet each row's "text" is one.
    """
    is_single = Path(dataset).is_file() and dataset != STDLIB
    for file in source_files(dataset):
        if file.suffix == ".parquet":
            yield from _read_parquet(file)
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if file.suffix == ".jsonl":
            yield from (json.loads(line)["text"] for line in text.splitlines() if line.strip())
        elif is_single:
            yield from text.split(END_OF_TEXT)
        else:
            yield text


def _read_parquet(file: Path) -> Iterator[str]:
    from pyarrow import parquet  # type: ignore[import-untyped] # noqa: PLC0415 - only this format needs it.

    for batch in parquet.ParquetFile(file).iter_batches(columns=["text"]):
        yield from batch.column("text").to_pylist()


def drop_near_copies(documents: Iterator[str]) -> tuple[list[str], int]:
    """Keep the first of each family of near-copies; returns the kept documents and how many were dropped.

    A document is dropped when more than half of its 10-word shingles are in documents already kept (containment
    after Broder 1997), or when it has none, being shorter.
    """
    kept, seen, n_dropped = [], set[int](), 0
    for text in documents:
        shingles = set(_shingles(text).tolist())
        if len(shingles & seen) > _NEAR_COPY_SHARE * len(shingles) or not shingles:
            n_dropped += 1
            continue
        kept.append(text)
        seen |= shingles
    return kept, n_dropped


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
