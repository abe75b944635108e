"""Owns tokens: the tokenizer, the files in the cache, windows, batches and overlap. Leaves documents to corpus.py.

Free of torch. Legend: B sequences, S positions, V vocabulary.
"""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hpopt.errors import ConfigError, Interrupted
from hpopt.training import corpus
from hpopt.training.config import PretrainConfig
from hpopt.training.run import never

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

# Raised whenever prepared data would come out differently; part of the cache's key.
_RECIPE = 1
_OVERLAP_WINDOW = 32
_OVERLAP_CHUNK = 2**24
_ENCODE_DOCUMENTS = 256
_LOCK_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Data:
    """Prepared data: token files (memory maps), the bytes of text that each token stands for, and meta.json."""

    tokens: Mapping[str, Tokens]
    token_bytes_V: npt.NDArray[np.int64]
    meta: dict[str, Any]


def data_fingerprint(config: PretrainConfig, cache: Path) -> str:
    """Give the hash of the texts, split and tokenizer that this config trains on; prepares them when needed."""
    return str(prepare(config, cache).meta["fingerprint"])


def prepare(config: PretrainConfig, cache: Path, should_stop: Callable[[], bool] = never) -> Data:
    """Open the prepared data of this config, preparing it first when nobody has.

    Any number of processes may call this at once, and be killed: one of them prepares while the others wait, in a
    temporary folder that is renamed when it is complete. Raises ConfigError for a dataset that is unknown or
    too small, Interrupted when should_stop says so.
    """
    folder = cache / _cache_key(config)
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f"{folder.name}.lock", should_stop):
            if not folder.exists():
                _prepare_into(folder, config)
    return _open(folder, config)


def _cache_key(config: PretrainConfig) -> str:
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in corpus.source_files(config.dataset)]
    recipe = json.dumps([_RECIPE, config.dataset, config.vocab_size, files])
    return f"{Path(config.dataset).stem}-{config.vocab_size}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


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


def _prepare_into(folder: Path, config: PretrainConfig) -> None:
    temporary = folder.with_name(f"{folder.name}.tmp")
    # Only the holder of the lock is here, so what lies there was left by a process that died.
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    documents, n_dropped = corpus.drop_near_copies(corpus.read_documents(config.dataset))
    splits = corpus.split_documents(documents)
    tokenizer = _train_tokenizer(splits["train"], config.vocab_size)
    tokenizer.save(str(temporary / "tokenizer.json"))
    np.save(temporary / "token_bytes.npy", _token_bytes(tokenizer, config.vocab_size))
    dtype = np.dtype(np.uint16 if config.vocab_size <= 2**16 else np.uint32)
    tokens = {
        split: _write_tokens(temporary / f"{split}.bin", tokenizer, texts, dtype) for split, texts in splits.items()
    }
    meta = {
        "fingerprint": _fingerprint(splits, tokenizer),
        "dtype": dtype.name,
        "vocab_size": tokenizer.get_vocab_size(),
        "n_documents": {split: len(texts) for split, texts in splits.items()},
        "n_dropped": n_dropped,
        "n_bytes": {split: sum(len(text.encode()) for text in texts) for split, texts in splits.items()},
        "n_tokens": {split: len(values) for split, values in tokens.items()},
        "train_val_overlap": overlap(tokens["train"], tokens["validation"]),
    }
    (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
    temporary.rename(folder)


def _train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer; every text can be encoded, because all 256 bytes are tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[corpus.END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _token_bytes(tokenizer: Tokenizer, vocab_size: int) -> npt.NDArray[np.int64]:
    """Count the bytes of each token: byte-level BPE writes each byte as one character; end-of-text stands for none."""
    token_bytes_V = np.zeros(vocab_size, dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        token_bytes_V[number] = 0 if token == corpus.END_OF_TEXT else len(token)
    return token_bytes_V


def _write_tokens(path: Path, tokenizer: Tokenizer, texts: list[str], dtype: np.dtype[Any]) -> Tokens:
    end = tokenizer.token_to_id(corpus.END_OF_TEXT)
    with path.open("wb") as file:
        for start in range(0, len(texts), _ENCODE_DOCUMENTS):
            for encoding in tokenizer.encode_batch_fast(texts[start : start + _ENCODE_DOCUMENTS]):
                np.array([*encoding.ids, end], dtype=dtype).tofile(file)
    return np.fromfile(path, dtype=dtype)


def _fingerprint(splits: dict[str, list[str]], tokenizer: Tokenizer) -> str:
    hashes = {split: [corpus.text_hash(text) for text in texts] for split, texts in splits.items()}
    return hashlib.sha256(json.dumps([hashes, tokenizer.to_str()], sort_keys=True).encode()).hexdigest()


def _open(folder: Path, config: PretrainConfig) -> Data:
    meta = json.loads((folder / "meta.json").read_text())
    for split, n_tokens in meta["n_tokens"].items():
        if n_tokens <= config.sequence_length:
            raise ConfigError(
                "dataset",
                f"{config.dataset!r} has {n_tokens} {split} tokens, below one window of {config.sequence_length + 1}",
            )
    tokens: dict[str, Tokens] = {
        split: np.memmap(folder / f"{split}.bin", dtype=meta["dtype"], mode="r") for split in corpus.SPLITS
    }
    if config.max_train_tokens:
        tokens["train"] = tokens["train"][: config.max_train_tokens]
    if len(tokens["train"]) <= config.sequence_length:
        raise ConfigError(
            "max_train_tokens", f"{config.max_train_tokens} is below one window of {config.sequence_length + 1} tokens"
        )
    return Data(tokens=tokens, token_bytes_V=np.load(folder / "token_bytes.npy"), meta=meta)


def overlap(train: Tokens, validation: Tokens) -> float:
    """Give the share of the validation windows of 32 tokens, one a position, that occur in training."""
    wanted = corpus.rolling_hash(validation.astype(np.uint64), _OVERLAP_WINDOW)
    distinct, counts = np.unique(wanted, return_counts=True)
    is_found = np.zeros(len(distinct), dtype=bool)
    for start in range(0, len(train) if len(distinct) else 0, _OVERLAP_CHUNK):
        chunk = train[start : start + _OVERLAP_CHUNK + _OVERLAP_WINDOW - 1].astype(np.uint64)
        hashes = corpus.rolling_hash(chunk, _OVERLAP_WINDOW)
        places = np.searchsorted(distinct, hashes).clip(max=len(distinct) - 1)
        is_found[places[distinct[places] == hashes]] = True
    return float(counts[is_found].sum() / max(1, counts.sum()))


class Batches:
    """An endless sequence of windows of S + 1 tokens, no two overlapping, in a new random order each epoch.

    Which window stands at a position follows from the seed alone, so a position is all there is to restore.
    """

    def __init__(self, tokens: Tokens, sequence_length: int, seed: int) -> None:
        self._tokens = tokens
        self._length = sequence_length + 1
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self.n_windows = len(tokens) // self._length

    def at(self, position: int, n_sequences: int) -> npt.NDArray[np.int64]:
        """Read the n_sequences windows from a position on: an array (B, S + 1)."""
        windows = [self._window(position + i) * self._length for i in range(n_sequences)]
        return np.stack([self._tokens[start : start + self._length] for start in windows]).astype(np.int64)

    def _window(self, position: int) -> int:
        epoch, place = divmod(position, self.n_windows)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self.n_windows)
            self._epoch = epoch
        return int(self._order[place])


def first_windows(tokens: Tokens, sequence_length: int, n_tokens: int) -> npt.NDArray[np.int64]:
    """Cut the first windows (at least one), which predict up to n_tokens tokens: (B, S + 1), none overlapping."""
    length = sequence_length + 1
    n_windows = min(max(1, n_tokens // sequence_length), len(tokens) // length)
    return tokens[: n_windows * length].reshape(n_windows, length).astype(np.int64)
