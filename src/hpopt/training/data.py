"""Open prepared data, preparing it once per cache, and read windows and batches of tokens from it.

Legend: B sequences, S positions, V vocabulary.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from hpopt.errors import ConfigError, Interrupted
from hpopt.training import corpus, sources
from hpopt.training.config import PREPARED_BY, PretrainConfig
from hpopt.training.hub import is_hub_name
from hpopt.training.leakage import Tokens, choose_window, mark_windows, measure_overlap
from hpopt.training.preparation import TOKENS_FILE, hub_token_limit, prepare_folder, read_meta, split_tokens
from hpopt.training.run import never

WindowStarts = range | npt.NDArray[np.int64]

# Part of the cache key; increased whenever the same config would give other prepared data.
_RECIPE_VERSION = 3
_LOCK_POLL_S = 0.1
# One in this many of the overlapping windows, drawn with this seed, is for validation, and one for test.
_OVERLAPPING_HELD_OUT = 10
_OVERLAPPING_SEED = 0


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """The tokens of a dataset.

    `tokens` are the tokens of each split (memory maps), `starts` the first tokens of its windows; a split without
    starts is divided into windows that follow each other. `token_bytes_V` is the number of bytes of text that each
    token represents, `meta` the content of meta.json with the train_val_overlap of the config.
    """

    tokens: Mapping[str, Tokens]
    starts: Mapping[str, WindowStarts] = field(default_factory=dict)
    token_bytes_V: npt.NDArray[np.int64]
    meta: dict[str, Any]


def data_fingerprint(config: PretrainConfig, cache: Path, should_stop: Callable[[], bool] = never) -> str:
    """Return a hash of the texts, their split and the tokenizer of a config; prepares the data if necessary."""
    return str(prepare(config, cache, should_stop).meta["fingerprint"])


def prepare(config: PretrainConfig, cache: Path, should_stop: Callable[[], bool] = never) -> PreparedData:
    """Open the prepared data of a config, and prepare it first if `cache` does not contain it.

    Any number of processes may call this at once, and be killed: one of them prepares while the others wait, in a
    temporary folder that is renamed when it is complete. Data from the hub is opened without the hub once it is
    prepared. A name on the hub means its content at that time, and the fingerprint shows whether another machine has
    other content; a name with a commit, owner/name@commit, has the same content everywhere.
    Raises ConfigError for a dataset or tokenizer that does not exist or does not fit, and Interrupted once
    should_stop() returns true.
    """
    sources.check_sources(config)
    folder = cache / _cache_key(config)
    meta = read_meta(folder)
    if meta is None:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f"{folder.name}.lock", should_stop):
            if (meta := read_meta(folder)) is None:
                meta = prepare_folder(folder, config, should_stop)
    return _open(folder, meta, config)


def _lock(path: Path, should_stop: Callable[[], bool]) -> AbstractContextManager[object]:
    """Acquire a file lock, which the kernel releases if this process is killed; raises Interrupted."""
    try:
        return FileLock(path).acquire(poll_interval=_LOCK_POLL_S, cancel_check=should_stop)
    except Timeout:
        raise Interrupted("stopped while another process prepared the data") from None


def _cache_key(config: PretrainConfig) -> str:
    is_on_hub = is_hub_name(config.dataset)
    text = hub_token_limit(config) if is_on_hub else _file_stamps(sources.list_files(config.dataset))
    is_builtin = config.tokenizer in sources.BUILTIN_TOKENIZERS
    tokenizer = [] if is_builtin else sorted(file for file in Path(config.tokenizer).glob("*") if file.is_file())
    values = [getattr(config, name) for name in PREPARED_BY]
    recipe = json.dumps([_RECIPE_VERSION, values, text, _file_stamps(tokenizer)])
    return f"{Path(config.dataset).stem}-{config.vocab_size}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def _file_stamps(files: list[Path]) -> list[tuple[str, int, int]]:
    """Return path, size and modification time (ns) of each file."""
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _open(folder: Path, meta: dict[str, Any], config: PretrainConfig) -> PreparedData:
    _check_lengths(config, meta["n_tokens"])
    stream: Tokens = np.memmap(folder / TOKENS_FILE, dtype=meta["dtype"], mode="r")
    if config.split == "documents":
        tokens, starts = split_tokens(stream, meta["n_tokens"]), dict[str, WindowStarts]()
        tokens["train"] = tokens["train"][: config.max_train_tokens or None]
    else:
        stream = stream[: config.max_train_tokens or None]
        tokens, starts = dict.fromkeys(corpus.SPLITS, stream), overlapping_windows(len(stream), config.sequence_length)
    window = choose_window(meta["n_tokens"]["validation"], meta["n_bytes"]["validation"])
    meta["train_val_overlap"] = _cached_overlap(folder, config, window, tokens, starts)
    return PreparedData(tokens=tokens, starts=starts, token_bytes_V=np.load(folder / "token_bytes.npy"), meta=meta)


def _check_lengths(config: PretrainConfig, n_tokens: Mapping[str, int]) -> None:
    """Raise ConfigError if a split has less than one window, which would lead to a division by zero."""
    length = config.sequence_length + 1
    for split, n in n_tokens.items():
        if n < length:
            raise ConfigError("dataset", f"{config.dataset!r} has {n} {split} tokens, below one window of {length}")
    # Each split needs at least one of the overlapping windows, of which there is one per position.
    n_required = length if config.split == "documents" else length + _OVERLAPPING_HELD_OUT - 1
    if 0 < config.max_train_tokens < n_required:
        required = "one window" if config.split == "documents" else "ten overlapping windows"
        raise ConfigError("max_train_tokens", f"{config.max_train_tokens} is below {required} of {length} tokens")


def overlapping_windows(n_tokens: int, sequence_length: int) -> dict[str, WindowStarts]:
    """Assign the windows at all positions to splits at random: a tenth validation, a tenth test, the rest training.

    Independent of the seed of a run. It reproduces a mistake, to measure it: nearly every validation token is also
    trained on.
    """
    starts = np.random.default_rng(_OVERLAPPING_SEED).permutation(n_tokens - sequence_length)
    n_held_out = len(starts) // _OVERLAPPING_HELD_OUT
    validation, test, train = np.split(starts, [n_held_out, 2 * n_held_out])
    return {"train": train, "validation": validation, "test": test}


def _cached_overlap(
    folder: Path, config: PretrainConfig, window: int, tokens: Mapping[str, Tokens], starts: Mapping[str, WindowStarts]
) -> float:
    """Return the share of the validation text that the config also trains on, measured once per prepared data."""
    key = f"{config.split}-{len(tokens['train'])}" + (f"-{config.sequence_length}" if starts else "")
    file = folder / f"overlap-{key}.json"
    # Empty, if the machine crashed when it was written.
    with suppress(FileNotFoundError, ValueError):
        return float(json.loads(file.read_text()))
    length = config.sequence_length + 1
    parts = {split: mark_windows(len(tokens[split]), np.asarray(starts[split]), length) for split in starts}
    share = measure_overlap(
        tokens["train"],
        tokens["validation"],
        window,
        train_part=parts.get("train"),
        validation_part=parts.get("validation"),
    )
    # In a shared cache that this user cannot write to, it is measured each time.
    with suppress(OSError):
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(share))
        temporary.rename(file)
    return share


class Batches:
    """An endless sequence of windows of S + 1 tokens, in a new random order each epoch.

    The windows begin at `starts`, or follow each other without overlap. Which window is at a position depends on the
    seed alone, so a resumed run needs only its position.
    """

    def __init__(self, tokens: Tokens, sequence_length: int, seed: int, starts: WindowStarts | None = None) -> None:
        self._tokens = tokens
        self._length = sequence_length + 1
        self._starts = _disjoint_starts(len(tokens), self._length) if starts is None else starts
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self.n_windows = len(self._starts)

    def at(self, position: int, n_sequences: int) -> npt.NDArray[np.int64]:
        """Return the n_sequences windows from a position on: int64, shape (B, S + 1)."""
        return _read_windows(self._tokens, [self._start(position + i) for i in range(n_sequences)], self._length)

    def _start(self, position: int) -> int:
        epoch, index = divmod(position, self.n_windows)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self.n_windows)
            self._epoch = epoch
        return int(self._starts[self._order[index]])


def first_windows(
    tokens: Tokens, sequence_length: int, n_tokens: int, starts: WindowStarts | None = None
) -> npt.NDArray[np.int64]:
    """Return the first windows, which predict up to n_tokens tokens (0: all), at least one: int64, shape (B, S + 1).

    `starts` is as in Batches.
    """
    length = sequence_length + 1
    starts = _disjoint_starts(len(tokens), length) if starts is None else starts
    return _read_windows(tokens, starts[: max(1, n_tokens // sequence_length) if n_tokens else None], length)


def _disjoint_starts(n_tokens: int, length: int) -> range:
    return range(0, n_tokens - length + 1, length)


def _read_windows(tokens: Tokens, starts: Iterable[int], length: int) -> npt.NDArray[np.int64]:
    return np.stack([tokens[start : start + length] for start in starts]).astype(np.int64)
