"""Owns tokenizers: trained, of bytes or loaded; the token that ends a document; the bytes that each token stands for.

Leaves the hub to hub.py, and files of tokens to data.py. Legend: V vocabulary.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hpopt.errors import ConfigError
from hpopt.training.config import PretrainConfig
from hpopt.training.hub import fetch_tokenizer
from hpopt.training.sources import END_OF_TEXT

# What the bytes of tokens may differ from the bytes of their text by: SentencePiece puts a space before a document.
_BYTES_TOLERANCE = 0.01


def load_tokenizer(config: PretrainConfig) -> tuple[Tokenizer, str] | None:
    """Give the tokenizer of a config and its token that ends a document; None for "bpe", which is yet to be trained.

    "bytes" has the 256 bytes; anything else is a folder or a name on the hub. Raises ConfigError for a tokenizer
    that cannot be loaded, does not fit into vocab_size or has no end of a document.
    """
    if config.tokenizer == "bpe":
        return None
    tokenizer, end = (_of_bytes(), END_OF_TEXT) if config.tokenizer == "bytes" else _load(config.tokenizer)
    n_tokens = max(tokenizer.get_vocab().values()) + 1
    if n_tokens > config.vocab_size:
        raise ConfigError(
            "vocab_size", f"{config.vocab_size} is below the {n_tokens} tokens of tokenizer {config.tokenizer!r}"
        )
    return _reading_all_as_text(tokenizer), end


def train_tokenizer(texts: list[str], vocab_size: int) -> tuple[Tokenizer, str]:
    """Train a byte-level BPE tokenizer; every text can be encoded, because all 256 bytes are tokens."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _reading_all_as_text(tokenizer), END_OF_TEXT


def _reading_all_as_text(tokenizer: Tokenizer) -> Tokenizer:
    # A document may spell a special token out.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _of_bytes() -> Tokenizer:
    """Make the tokenizer whose token n is the byte n, and whose 257th token ends a document."""
    # Byte-level BPE writes the bytes of visible characters as these, in order, and the rest as U+0100 and on.
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    vocabulary = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    tokenizer = _byte_level(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _load(name: str) -> tuple[Tokenizer, str]:
    folder = Path(name) if Path(name).is_dir() else fetch_tokenizer(name)
    try:
        tokenizer, named_end = _read_folder(folder)
    # Neither library has a class of its own for a tokenizer that it cannot read.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError("tokenizer", f"{name!r} holds no tokenizer that can be read: {reason}") from error
    # A document is encoded whole, and as it is.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for end in (END_OF_TEXT, named_end):
        if end and tokenizer.token_to_id(end) is not None:
            return tokenizer, end
    raise ConfigError(
        "tokenizer", f"{name!r} has no token that ends a document: neither {END_OF_TEXT} nor an eos_token"
    )


def _read_folder(folder: Path) -> tuple[Tokenizer, str | None]:
    """Read tokenizer.json where there is one; else let transformers make a tokenizer of what is there."""
    file = folder / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file)), _named_end(folder)
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds to import, and seldom needed.

    loaded = AutoTokenizer.from_pretrained(str(folder))
    return loaded.backend_tokenizer, loaded.eos_token


def _named_end(folder: Path) -> str | None:
    """Give the eos_token that stands beside a tokenizer.json; it may be a string, or a table with its content."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        end = json.loads(file.read_text(encoding="utf-8")).get("eos_token") if file.is_file() else None
        if end:
            return str(end["content"] if isinstance(end, dict) else end)
    return None


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> npt.NDArray[np.int64]:
    """Count the bytes of text that each token stands for (V); none for special tokens and for what is only padding.

    Byte-level BPE writes each byte as one character; SentencePiece a space as U+2581 and a lone byte as <0x41>.
    """
    is_byte_level = _is_byte_level(tokenizer)
    token_bytes_V = np.zeros(vocab_size, dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        token_bytes_V[number] = len(token) if is_byte_level else _sentencepiece_bytes(token)
    for number, added in tokenizer.get_added_tokens_decoder().items():
        token_bytes_V[number] = 0 if added.special else len(added.content.encode())
    return token_bytes_V


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    parts = json.loads(tokenizer.to_str())
    return any('"ByteLevel"' in json.dumps(parts[part]) for part in ("pre_tokenizer", "decoder"))


def _sentencepiece_bytes(token: str) -> int:
    is_lone_byte = len(token) == len("<0x41>") and token.startswith("<0x") and token.endswith(">")
    return 1 if is_lone_byte else len(token.replace("\u2581", " ").encode())


def check_bytes(config: PretrainConfig, counted: int, actual: int) -> None:
    """Refuse a tokenizer whose tokens of a text stand for other bytes than that text has; raises ConfigError."""
    if abs(counted - actual) > _BYTES_TOLERANCE * actual:
        raise ConfigError(
            "tokenizer",
            f"{config.tokenizer!r}: its tokens of the validation text stand for {counted} bytes, the text has {actual};"
            " bits per byte would be wrong: it is neither byte-level nor SentencePiece with bytes for what it lacks",
        )


def identify(tokenizer: Tokenizer, end: str) -> str:
    """Give all that decides which tokens a text becomes, for a fingerprint."""
    return tokenizer.to_str() if end == END_OF_TEXT else f"{tokenizer.to_str()}{end}"
