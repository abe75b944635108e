"""Measure how much validation and training text overlap with and without a leak, to choose LEAK_THRESHOLD.

Splits the standard library's text in several ways, clean and leaky, measures each split as a run does, and prints a
table. Takes a quarter of an hour on one core:

    python benchmarks/leakage.py > benchmarks/results/leakage.md
"""

import argparse
import datetime as dt
import platform
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import numpy.typing as npt

from hpopt.training.config import PretrainConfig
from hpopt.training.corpus import drop_near_duplicates, hash_text
from hpopt.training.data import overlapping_windows
from hpopt.training.leakage import LEAK_THRESHOLD, Tokens, choose_window, mark_windows, measure_overlap
from hpopt.training.sources import STDLIB, read_documents
from hpopt.training.tokenizer import load_tokenizer, train_tokenizer

# The vocabulary of the byte tokenizer: 256 bytes and the end-of-document token.
BYTES = 257
HELD_OUT = 0.05
LEAKED_SHARES = (0.01, 0.02, 0.05, 0.10, 0.25)
SEQUENCE_LENGTH = 128
N_LEAKY = 5


def encode(texts: list[str], vocab_size: int) -> list[Tokens]:
    """Return the tokens of each document; with BYTES, those of the byte tokenizer."""
    config = PretrainConfig(tokenizer="bytes" if vocab_size == BYTES else "bpe", vocab_size=vocab_size)
    tokenizer, end = load_tokenizer(config) or train_tokenizer(texts, vocab_size)
    end_id = tokenizer.token_to_id(end)
    return [np.array([*encoding.ids, end_id], dtype=np.uint16) for encoding in tokenizer.encode_batch_fast(texts)]


def split(texts: list[str], salt: int) -> tuple[list[int], list[int]]:
    """Return the documents for training and validation, as corpus.assign_split does with a salt; ordered by hash."""
    hashes = [hash_text(f"{salt} {text}") for text in texts]
    order = sorted(range(len(texts)), key=lambda number: hashes[number])
    positions = [int(hashes[number][:16], 16) / 2**64 for number in order]
    validation = [number for number, position in zip(order, positions, strict=True) if position < HELD_OUT]
    return order[len(validation) * 2 :], validation


def measure_leaks(train: Tokens, validation: Tokens, window: int, salt: int) -> Iterator[tuple[str, float]]:
    """Yield a description and the overlap of each kind of leak."""
    for share in LEAKED_SHARES:
        leaked = validation[: round(share * len(validation))]
        yield f"leak: {share:.0%} of the validation text", measure_overlap(np.append(train, leaked), validation, window)
    stream = np.append(train, validation)
    yield "leak: adjacent windows, at random", windows_overlap(stream, disjoint_windows(len(stream), salt), window)
    windows = overlapping_windows(len(stream), SEQUENCE_LENGTH)
    starts = {name: np.asarray(windows[name]) for name in windows}
    yield "leak: windows at all positions, at random", windows_overlap(stream, starts, window)


def measure(texts: list[str], kept: list[str], vocab_size: int, n_salts: int) -> dict[str, list[float]]:
    """Return the overlaps of each kind of split, one per salt; leaks are measured for the first N_LEAKY salts."""
    everything, documents = encode(texts, vocab_size), encode(kept, vocab_size)
    n_bytes = sum(len(text.encode()) for text in texts)
    window = choose_window(sum(map(len, everything)), n_bytes)
    overlaps: dict[str, list[float]] = {}
    for salt in range(n_salts):
        train, validation = (join(everything, numbers) for numbers in split(texts, salt))
        overlaps.setdefault("clean, but near-duplicates kept", []).append(measure_overlap(train, validation, window))
        train, validation = (join(documents, numbers) for numbers in split(kept, salt))
        overlaps.setdefault("clean", []).append(measure_overlap(train, validation, window))
        for name, share in measure_leaks(train, validation, window, salt) if salt < N_LEAKY else ():
            overlaps.setdefault(name, []).append(share)
    return overlaps


def join(documents: list[Tokens], numbers: list[int]) -> Tokens:
    """Concatenate documents."""
    return np.concatenate([documents[number] for number in numbers])


def disjoint_windows(n_tokens: int, salt: int) -> dict[str, npt.NDArray[np.int64]]:
    """Divide a stream into adjacent windows, and assign them to splits at random."""
    length = SEQUENCE_LENGTH + 1
    starts = np.random.default_rng(salt).permutation(n_tokens // length) * length
    n_held_out = round(HELD_OUT * len(starts))
    return {"train": starts[n_held_out:], "validation": starts[:n_held_out]}


def windows_overlap(stream: Tokens, starts: dict[str, npt.NDArray[np.int64]], window: int) -> float:
    """Return the overlap of two sets of windows of one stream."""
    parts = {split: mark_windows(len(stream), starts[split], SEQUENCE_LENGTH + 1) for split in ("train", "validation")}
    return measure_overlap(stream, stream, window, train_part=parts["train"], validation_part=parts["validation"])


def main() -> None:
    """Measure all splits and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[BYTES, 1024, 4096, 16384])
    parser.add_argument("--salts", type=int, default=20)
    options = parser.parse_args()
    texts = list(read_documents(PretrainConfig(dataset=STDLIB)))
    kept, _ = drop_near_duplicates(iter(texts))
    measured = {size: measure(texts, kept, size, options.salts) for size in options.vocabularies}
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("hpopt", "numpy", "tokenizers"))
    today, python = f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}", platform.python_version()
    print("# Overlap of validation and training text, clean and leaky\n")
    n_splits = f"{options.salts} clean and {N_LEAKY} leaky splits"
    print(f"{today}; {versions}; the standard library of Python {python}: {len(texts)} documents,")
    print(f"{len(kept)} without near-duplicates. The least and the most of {n_splits}.\n")
    names = ["bytes" if size == BYTES else f"vocabulary {size}" for size in measured]
    print(f"| split | {' | '.join(names)} |\n|---{'|---' * len(names)}|")
    for name in next(iter(measured.values())):
        cells = (f"{min(overlaps[name]):.2%} to {max(overlaps[name]):.2%}" for overlaps in measured.values())
        print(f"| {name} | {' | '.join(cells)} |")
    largest = max(max(overlaps["clean"]) for overlaps in measured.values())
    threshold = f"LEAK_THRESHOLD is {LEAK_THRESHOLD:.0%}"
    print(f"\nThe largest overlap of a clean split without near-duplicates is {largest:.2%}; {threshold}.")
    for name in next(iter(measured.values())):
        shares = [share for overlaps in measured.values() for share in overlaps[name]]
        if name.startswith("leak") and min(shares) <= LEAK_THRESHOLD:
            n_missed = sum(share <= LEAK_THRESHOLD for share in shares)
            print(f"\nNot always above it: {name} ({n_missed} of {len(shares)} are missed).")


if __name__ == "__main__":
    main()
