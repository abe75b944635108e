"""Owns the making of prepared data: from documents to a folder with tokens, tokenizer and meta.json.

Leaves reading it to data.py. Free of torch.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from hpopt.errors import Interrupted
from hpopt.training import corpus, sources
from hpopt.training.config import PretrainConfig
from hpopt.training.hub import find_revision, is_hub_name
from hpopt.training.leakage import Tokens
from hpopt.training.tokenizer import check_bytes, identify, load_tokenizer, token_bytes, train_tokenizer

# The tokens of all splits, one split after the other.
TOKENS_FILE = "tokens.bin"

_ENCODE_DOCUMENTS = 256


def prepare_into(folder: Path, config: PretrainConfig, should_stop: Callable[[], bool]) -> None:
    """Make the folder of prepared data of a config, whole or not at all.

    Raises what reading the documents raises, and Interrupted when should_stop, asked at every document, says so.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    # Only the holder of the lock is here, so what lies there was left by a process that died.
    shutil.rmtree(temporary, ignore_errors=True)
    # Before the documents, which may be long in coming.
    loaded = load_tokenizer(config)
    documents, revision = _documents(config)
    kept, n_dropped = corpus.drop_near_copies(_until_stopped(documents, should_stop))
    splits = corpus.split_documents(kept)
    temporary.mkdir()
    tokenizer, end = loaded or train_tokenizer(splits["train"], config.vocab_size)
    tokenizer.save(str(temporary / "tokenizer.json"))
    token_bytes_V = token_bytes(tokenizer, config.vocab_size)
    np.save(temporary / "token_bytes.npy", token_bytes_V)
    dtype = np.dtype(np.uint16 if config.vocab_size <= 2**16 else np.uint32)
    tokens = _write_tokens(temporary / TOKENS_FILE, tokenizer, end, splits, dtype)
    n_bytes = {split: sum(len(text.encode()) for text in texts) for split, texts in splits.items()}
    check_bytes(config, int(token_bytes_V[tokens["validation"]].sum()), n_bytes["validation"])
    meta = {
        "fingerprint": _fingerprint(splits, identify(tokenizer, end)),
        "revision": revision,
        "dtype": dtype.name,
        "vocab_size": tokenizer.get_vocab_size(),
        "n_documents": {split: len(texts) for split, texts in splits.items()},
        "n_dropped": n_dropped,
        "n_bytes": n_bytes,
        "n_tokens": {split: len(values) for split, values in tokens.items()},
    }
    (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
    temporary.rename(folder)


def _documents(config: PretrainConfig) -> tuple[Iterator[str], str | None]:
    """Give the documents to prepare, and the commit of the hub's dataset that they are from."""
    if not is_hub_name(config.dataset):
        return sources.read_documents(config), None
    revision = find_revision(config.dataset)
    documents, n_tokens = sources.read_documents(config, revision), tokens_to_read(config)
    return (corpus.enough_for(documents, n_tokens) if n_tokens else documents), revision


def _until_stopped(documents: Iterator[str], should_stop: Callable[[], bool]) -> Iterator[str]:
    for text in documents:
        if should_stop():
            raise Interrupted("stopped while preparing the data")
        yield text


def tokens_to_read(config: PretrainConfig) -> int:
    """Say for how many training tokens a dataset of the hub is read; 0 where max_documents says where it ends."""
    return 0 if config.max_documents else config.max_train_tokens


def _write_tokens(
    path: Path, tokenizer: Tokenizer, end: str, splits: Mapping[str, list[str]], dtype: np.dtype[Any]
) -> dict[str, Tokens]:
    """Write the tokens of all splits, one after the other, and give those of each."""
    end_id, n_tokens = tokenizer.token_to_id(end), dict.fromkeys(splits, 0)
    with path.open("wb") as file:
        for split, texts in splits.items():
            for start in range(0, len(texts), _ENCODE_DOCUMENTS):
                batch = texts[start : start + _ENCODE_DOCUMENTS]
                for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                    np.array([*encoding.ids, end_id], dtype=dtype).tofile(file)
                    n_tokens[split] += len(encoding.ids) + 1
    return cut(np.fromfile(path, dtype=dtype), n_tokens)


def cut(tokens: Tokens, n_tokens: Mapping[str, int]) -> dict[str, Tokens]:
    """Cut the tokens of all splits into those of each, given how many each has."""
    ends = np.cumsum(list(n_tokens.values()))
    return {split: tokens[end - n_tokens[split] : end] for split, end in zip(n_tokens, ends, strict=True)}


def _fingerprint(splits: dict[str, list[str]], tokenizer: str) -> str:
    hashes = {split: [corpus.text_hash(text) for text in texts] for split, texts in splits.items()}
    return hashlib.sha256(json.dumps([hashes, tokenizer], sort_keys=True).encode()).hexdigest()
