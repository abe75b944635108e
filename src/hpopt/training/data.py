"""Owns tokens as a run reads them: the cache, windows and batches. Leaves making them to preparation.py.

Free of torch. Legend: B sequences, S positions, V vocabulary.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpopt.errors import ConfigError, Interrupted
from hpopt.training import corpus, sources
from hpopt.training.config import PREPARED_BY, PretrainConfig
from hpopt.training.hub import is_hub_name
from hpopt.training.leakage import Tokens, covered, overlap, window_of
from hpopt.training.preparation import TOKENS_FILE, cut, prepare_into, tokens_to_read
from hpopt.training.run import never

Starts = range | npt.NDArray[np.int64]

# Raised whenever prepared data would come out differently; part of the cache's key.
_RECIPE = 2
_LOCK_POLL_S = 0.1
# A tenth each of the overlapping windows, drawn with this seed, is validation and test.
_OVERLAPPING_HELD_OUT = 10
_OVERLAPPING_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Data:
    """Prepared data: tokens (memory maps), where windows start, the bytes of each token, and meta.json.

    A split that `starts` leaves out is cut into windows that follow each other. `meta` holds the train_val_overlap
    of what the config trains on.
    """

    tokens: Mapping[str, Tokens]
    starts: Mapping[str, Starts] = field(default_factory=dict)
    token_bytes_V: npt.NDArray[np.int64]
    meta: dict[str, Any]


def data_fingerprint(config: PretrainConfig, cache: Path, should_stop: Callable[[], bool] = never) -> str:
    """Give the hash of the texts, split and tokenizer that this config trains on; prepares them when needed."""
    return str(prepare(config, cache, should_stop).meta["fingerprint"])


def prepare(config: PretrainConfig, cache: Path, should_stop: Callable[[], bool] = never) -> Data:
    """Open the prepared data of this config, preparing it first when nobody has.

    Any number of processes may call this at once, and be killed: one of them prepares while the others wait, in a
    temporary folder that is renamed when it is complete. What was prepared from the hub is opened without it; a name
    of the hub stands for what it held then, and the fingerprint tells if that was something else elsewhere (name a
    commit, owner/name@commit, to have the same everywhere). Raises ConfigError for a dataset or tokenizer that is
    unknown or does not fit, Interrupted when should_stop says so.
    """
    sources.check_sources(config)
    folder = cache / _cache_key(config)
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f"{folder.name}.lock", should_stop):
            if not folder.exists():
                prepare_into(folder, config, should_stop)
    return _open(folder, config)


def _cache_key(config: PretrainConfig) -> str:
    is_on_hub = is_hub_name(config.dataset)
    text = tokens_to_read(config) if is_on_hub else _stamps(sources.source_files(config.dataset))
    is_own = config.tokenizer in sources.OWN_TOKENIZERS
    tokenizer = [] if is_own else sorted(file for file in Path(config.tokenizer).glob("*") if file.is_file())
    chosen = [getattr(config, name) for name in PREPARED_BY]
    recipe = json.dumps([_RECIPE, chosen, text, _stamps(tokenizer)])
    return f"{Path(config.dataset).stem}-{config.vocab_size}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def _stamps(files: list[Path]) -> list[tuple[str, int, int]]:
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@contextmanager
def _lock(path: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Hold a lock that the kernel takes back when the process dies, however it dies."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if should_stop():
                    raise Interrupted("stopped while another process prepared the data") from None
                time.sleep(_LOCK_POLL_S)
        yield


def _open(folder: Path, config: PretrainConfig) -> Data:
    meta = json.loads((folder / "meta.json").read_text())
    _refuse_too_few(config, meta["n_tokens"])
    stream: Tokens = np.memmap(folder / TOKENS_FILE, dtype=meta["dtype"], mode="r")
    if config.split == "documents":
        tokens, starts = cut(stream, meta["n_tokens"]), dict[str, Starts]()
        tokens["train"] = tokens["train"][: config.max_train_tokens or None]
    else:
        stream = stream[: config.max_train_tokens or None]
        tokens, starts = dict.fromkeys(corpus.SPLITS, stream), overlapping_windows(len(stream), config.sequence_length)
    window = window_of(meta["n_tokens"]["validation"], meta["n_bytes"]["validation"])
    meta["train_val_overlap"] = _overlap_once(folder, config, window, tokens, starts)
    return Data(tokens=tokens, starts=starts, token_bytes_V=np.load(folder / "token_bytes.npy"), meta=meta)


def _refuse_too_few(config: PretrainConfig, n_tokens: Mapping[str, int]) -> None:
    """Raise ConfigError where a split has less than one window: no window would end in a division by zero."""
    length = config.sequence_length + 1
    for split, n in n_tokens.items():
        if n < length:
            raise ConfigError("dataset", f"{config.dataset!r} has {n} {split} tokens, below one window of {length}")
    # Each split has at least one of the overlapping windows, of which there is one a position.
    least = length if config.split == "documents" else length + _OVERLAPPING_HELD_OUT - 1
    if 0 < config.max_train_tokens < least:
        what = "one window" if config.split == "documents" else "ten overlapping windows"
        raise ConfigError("max_train_tokens", f"{config.max_train_tokens} is below {what} of {length} tokens")


def overlapping_windows(n_tokens: int, sequence_length: int) -> dict[str, Starts]:
    """Deal the windows at every position out at random: a tenth validation, a tenth test, the rest training.

    The same whatever the seed of a run. It repeats a mistake, to be measured: each token of validation is in training.
    """
    starts = np.random.default_rng(_OVERLAPPING_SEED).permutation(n_tokens - sequence_length)
    n_held_out = len(starts) // _OVERLAPPING_HELD_OUT
    validation, test, train = np.split(starts, [n_held_out, 2 * n_held_out])
    return {"train": train, "validation": validation, "test": test}


def _overlap_once(
    folder: Path, config: PretrainConfig, window: int, tokens: Mapping[str, Tokens], starts: Mapping[str, Starts]
) -> float:
    """Give the share of the validation text that is in what this config trains on, measured once and kept."""
    of = f"{config.split}-{len(tokens['train'])}" + (f"-{config.sequence_length}" if starts else "")
    file = folder / f"overlap-{of}.json"
    if file.exists():
        return float(json.loads(file.read_text()))
    parts = {
        split: covered(len(tokens[split]), np.asarray(starts[split]), config.sequence_length + 1) for split in starts
    }
    share = overlap(
        tokens["train"],
        tokens["validation"],
        window,
        train_part=parts.get("train"),
        validation_part=parts.get("validation"),
    )
    # A cache may be shared and closed to this user; then it is measured anew each time.
    with suppress(OSError):
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(share))
        temporary.rename(file)
    return share


class Batches:
    """An endless sequence of windows of S + 1 tokens, in a new random order each epoch.

    They begin at `starts`; without, no two overlap. Which window stands at a position follows from the seed alone, so
    a position is all there is to restore.
    """

    def __init__(self, tokens: Tokens, sequence_length: int, seed: int, starts: Starts | None = None) -> None:
        self._tokens = tokens
        self._length = sequence_length + 1
        self._starts = _one_after_another(len(tokens), self._length) if starts is None else starts
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self.n_windows = len(self._starts)

    def at(self, position: int, n_sequences: int) -> npt.NDArray[np.int64]:
        """Read the n_sequences windows from a position on: an array (B, S + 1)."""
        return _read(self._tokens, [self._start(position + i) for i in range(n_sequences)], self._length)

    def _start(self, position: int) -> int:
        epoch, place = divmod(position, self.n_windows)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self.n_windows)
            self._epoch = epoch
        return int(self._starts[self._order[place]])


def first_windows(
    tokens: Tokens, sequence_length: int, n_tokens: int, starts: Starts | None = None
) -> npt.NDArray[np.int64]:
    """Read the first windows (at least one), which predict up to n_tokens tokens: (B, S + 1), as in Batches; 0: all."""
    length = sequence_length + 1
    starts = _one_after_another(len(tokens), length) if starts is None else starts
    return _read(tokens, starts[: max(1, n_tokens // sequence_length) if n_tokens else None], length)


def _one_after_another(n_tokens: int, length: int) -> range:
    return range(0, n_tokens - length + 1, length)


def _read(tokens: Tokens, starts: Iterable[int], length: int) -> npt.NDArray[np.int64]:
    return np.stack([tokens[start : start + length] for start in starts]).astype(np.int64)
