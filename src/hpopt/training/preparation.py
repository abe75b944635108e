"""Tokenize a dataset into a folder with tokens, tokenizer and meta.json."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from hpopt.errors import Interrupted
from hpopt.training import corpus, sources
from hpopt.training.config import PretrainConfig
from hpopt.training.hub import is_hub_name, resolve_revision
from hpopt.training.leakage import Tokens
from hpopt.training.tokenizer import check_byte_count, count_token_bytes, identify, load_tokenizer, train_tokenizer

# The tokens of all splits, one split after the other.
TOKENS_FILE = "tokens.bin"
# Names the files and their sizes.
META_FILE = "meta.json"

_DOCUMENTS_PER_BATCH = 256


def prepare_folder(folder: Path, config: PretrainConfig, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Write the prepared data of a config to a temporary folder, and rename it to `folder` when it is on the disk.

    Returns its description. An incomplete folder of that name is replaced. The caller holds the lock of the folder.
    Raises ConfigError for a dataset or tokenizer that cannot be read or does not fit, and Interrupted once
    should_stop(), called for every document, returns true.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    # Under the lock, an existing one was left by a process that was killed.
    shutil.rmtree(temporary, ignore_errors=True)
    meta = _write(temporary, config, should_stop)
    meta["sizes"] = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
    (temporary / META_FILE).write_text(json.dumps(meta, indent=1))
    # Otherwise the new name can reach the disk before what is in the files, and a crash leaves them short.
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    _sync(folder.parent)
    return meta


def _write(folder: Path, config: PretrainConfig, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Write the tokenizer and the tokens of a config to a new folder, and return their description."""
    # Before the documents, whose reading may take long.
    loaded = load_tokenizer(config)
    documents, revision = _open_documents(config)
    kept, n_dropped = corpus.drop_near_duplicates(_raise_if_stopped(documents, should_stop))
    splits = corpus.split_documents(kept)
    folder.mkdir()
    tokenizer, end = loaded or train_tokenizer(splits["train"], config.vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    token_bytes_V = count_token_bytes(tokenizer, config.vocab_size)
    np.save(folder / "token_bytes.npy", token_bytes_V)
    dtype = np.dtype(np.uint16 if config.vocab_size <= 2**16 else np.uint32)
    tokens = _write_tokens(folder / TOKENS_FILE, tokenizer, end, splits, dtype)
    n_bytes = {split: sum(len(text.encode()) for text in texts) for split, texts in splits.items()}
    check_byte_count(config, int(token_bytes_V[tokens["validation"]].sum()), n_bytes["validation"])
    return {
        "fingerprint": _fingerprint(splits, identify(tokenizer, end)),
        "revision": revision,
        "dtype": dtype.name,
        "vocab_size": tokenizer.get_vocab_size(),
        "n_documents": {split: len(texts) for split, texts in splits.items()},
        "n_dropped": n_dropped,
        "n_bytes": n_bytes,
        "n_tokens": {split: len(values) for split, values in tokens.items()},
    }


def read_meta(folder: Path) -> dict[str, Any] | None:
    """Return the description of prepared data, or None if its folder or one of its files is incomplete."""
    try:
        meta: dict[str, Any] = json.loads((folder / META_FILE).read_text())
        is_complete = all((folder / name).stat().st_size == size for name, size in meta["sizes"].items())
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return meta if is_complete else None


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_documents(config: PretrainConfig) -> tuple[Iterator[str], str | None]:
    """Return the documents to prepare, and the commit if they are from a dataset on the hub."""
    if not is_hub_name(config.dataset):
        return sources.read_documents(config), None
    revision = resolve_revision(config.dataset)
    documents, n_tokens = sources.read_documents(config, revision), hub_token_limit(config)
    return (corpus.limit_to_tokens(documents, n_tokens) if n_tokens else documents), revision


def _raise_if_stopped(documents: Iterator[str], should_stop: Callable[[], bool]) -> Iterator[str]:
    for text in documents:
        if should_stop():
            raise Interrupted("stopped while preparing the data")
        yield text


def hub_token_limit(config: PretrainConfig) -> int:
    """Return for how many training tokens a dataset on the hub is read; 0 if max_documents is its limit."""
    return 0 if config.max_documents else config.max_train_tokens


def _write_tokens(
    path: Path, tokenizer: Tokenizer, end: str, splits: Mapping[str, list[str]], dtype: np.dtype[Any]
) -> dict[str, Tokens]:
    """Write the tokens of all splits, one split after the other; return the tokens of each split."""
    end_id, n_tokens = tokenizer.token_to_id(end), dict.fromkeys(splits, 0)
    with path.open("wb") as file:
        for split, texts in splits.items():
            for start in range(0, len(texts), _DOCUMENTS_PER_BATCH):
                batch = texts[start : start + _DOCUMENTS_PER_BATCH]
                for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                    np.array([*encoding.ids, end_id], dtype=dtype).tofile(file)
                    n_tokens[split] += len(encoding.ids) + 1
    return split_tokens(np.fromfile(path, dtype=dtype), n_tokens)


def split_tokens(tokens: Tokens, n_tokens: Mapping[str, int]) -> dict[str, Tokens]:
    """Divide the tokens of all splits into those of each split, which has n_tokens[split]."""
    ends = np.cumsum(list(n_tokens.values()))
    return {split: tokens[end - n_tokens[split] : end] for split, end in zip(n_tokens, ends, strict=True)}


def _fingerprint(splits: dict[str, list[str]], tokenizer: str) -> str:
    hashes = {split: [corpus.hash_text(text) for text in texts] for split, texts in splits.items()}
    return hashlib.sha256(json.dumps([hashes, tokenizer], sort_keys=True).encode()).hexdigest()
