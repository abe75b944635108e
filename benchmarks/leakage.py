"""How much do validation and training text overlap without a leak, and how much with one? Sets LEAK_ABOVE.

Splits the standard library's text in several ways, clean and leaky, measures each split as a run does, and prints a
table. Writes nothing; a quarter of an hour on one core:

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
from hpopt.training.corpus import drop_near_copies, text_hash
from hpopt.training.data import overlapping_windows
from hpopt.training.leakage import LEAK_ABOVE, Tokens, covered, overlap, window_of
from hpopt.training.sources import STDLIB, read_documents
from hpopt.training.tokenizer import load_tokenizer, train_tokenizer

# The vocabulary of bytes: 256, and the end of a document.
BYTES = 257
HELD_OUT = 0.05
LEAKED_SHARES = (0.01, 0.02, 0.05, 0.10, 0.25)
SEQUENCE_LENGTH = 128
N_LEAKY = 5


def encode(texts: list[str], vocab_size: int) -> list[Tokens]:
    """Give the tokens of each document; BYTES stands for the 256 bytes."""
    config = PretrainConfig(tokenizer="bytes" if vocab_size == BYTES else "bpe", vocab_size=vocab_size)
    tokenizer, end = load_tokenizer(config) or train_tokenizer(texts, vocab_size)
    end_id = tokenizer.token_to_id(end)
    return [np.array([*encoding.ids, end_id], dtype=np.uint16) for encoding in tokenizer.encode_batch_fast(texts)]


def split(texts: list[str], salt: int) -> tuple[list[int], list[int]]:
    """Choose documents for training and validation, as corpus.split_of does but for the salt; ordered by hash."""
    hashes = [text_hash(f"{salt} {text}") for text in texts]
    order = sorted(range(len(texts)), key=lambda number: hashes[number])
    positions = [int(hashes[number][:16], 16) / 2**64 for number in order]
    validation = [number for number, position in zip(order, positions, strict=True) if position < HELD_OUT]
    return order[len(validation) * 2 :], validation


def measure_leaks(train: Tokens, validation: Tokens, window: int, salt: int) -> Iterator[tuple[str, float]]:
    """Name each way to leak from one part of the text to the other, and give its overlap."""
    for share in LEAKED_SHARES:
        leaked = validation[: round(share * len(validation))]
        yield f"leak: {share:.0%} of the validation text", overlap(np.append(train, leaked), validation, window)
    stream = np.append(train, validation)
    yield "leak: windows side by side, at random", windows_overlap(stream, disjoint_windows(len(stream), salt), window)
    dealt = overlapping_windows(len(stream), SEQUENCE_LENGTH)
    starts = {name: np.asarray(dealt[name]) for name in dealt}
    yield "leak: windows at every position, at random", windows_overlap(stream, starts, window)


def measure(texts: list[str], kept: list[str], vocab_size: int, n_salts: int) -> dict[str, list[float]]:
    """Give the overlaps of each way to split, one a salt; leaks are measured for the first few of them."""
    everything, documents = encode(texts, vocab_size), encode(kept, vocab_size)
    n_bytes = sum(len(text.encode()) for text in texts)
    window = window_of(sum(map(len, everything)), n_bytes)
    found: dict[str, list[float]] = {}
    for salt in range(n_salts):
        train, validation = (join(everything, numbers) for numbers in split(texts, salt))
        found.setdefault("clean, but near-copies kept", []).append(overlap(train, validation, window))
        train, validation = (join(documents, numbers) for numbers in split(kept, salt))
        found.setdefault("clean", []).append(overlap(train, validation, window))
        for name, share in measure_leaks(train, validation, window, salt) if salt < N_LEAKY else ():
            found.setdefault(name, []).append(share)
    return found


def join(documents: list[Tokens], numbers: list[int]) -> Tokens:
    """Put documents one after the other."""
    return np.concatenate([documents[number] for number in numbers])


def disjoint_windows(n_tokens: int, salt: int) -> dict[str, npt.NDArray[np.int64]]:
    """Cut a stream into windows that follow each other, and deal them out at random."""
    length = SEQUENCE_LENGTH + 1
    starts = np.random.default_rng(salt).permutation(n_tokens // length) * length
    n_held_out = round(HELD_OUT * len(starts))
    return {"train": starts[n_held_out:], "validation": starts[:n_held_out]}


def windows_overlap(stream: Tokens, starts: dict[str, npt.NDArray[np.int64]], window: int) -> float:
    """Measure the overlap of two sets of windows of one stream."""
    train, validation = (covered(len(stream), starts[name], SEQUENCE_LENGTH + 1) for name in ("train", "validation"))
    return overlap(stream, stream, window, train_part=train, validation_part=validation)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[BYTES, 1024, 4096, 16384])
    parser.add_argument("--salts", type=int, default=20)
    options = parser.parse_args()
    texts = list(read_documents(PretrainConfig(dataset=STDLIB)))
    kept, _ = drop_near_copies(iter(texts))
    measured = {size: measure(texts, kept, size, options.salts) for size in options.vocabularies}
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("hpopt", "numpy", "tokenizers"))
    today, python = f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}", platform.python_version()
    print("# Overlap of validation and training text, clean and leaky\n")
    n_splits = f"{options.salts} clean and {N_LEAKY} leaky splits"
    print(f"{today}; {versions}; the standard library of Python {python}: {len(texts)} documents,")
    print(f"{len(kept)} without near-copies. The least and the most of {n_splits}.\n")
    names = ["bytes" if size == BYTES else f"vocabulary {size}" for size in measured]
    print(f"| split | {' | '.join(names)} |\n|---{'|---' * len(names)}|")
    for name in next(iter(measured.values())):
        cells = (f"{min(found[name]):.2%} to {max(found[name]):.2%}" for found in measured.values())
        print(f"| {name} | {' | '.join(cells)} |")
    worst = max(max(found["clean"]) for found in measured.values())
    print(f"\nThe worst clean split without near-copies overlaps by {worst:.2%}; LEAK_ABOVE is {LEAK_ABOVE:.0%}.")
    for name in next(iter(measured.values())):
        shares = [share for found in measured.values() for share in found[name]]
        if name.startswith("leak") and min(shares) <= LEAK_ABOVE:
            n_missed = sum(share <= LEAK_ABOVE for share in shares)
            print(f"\nNot always above it: {name} ({n_missed} of {len(shares)} go unseen).")


if __name__ == "__main__":
    main()
