"""Train or load tokenizers, and count the bytes of text that each token represents.

Legend: V vocabulary.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hpopt.errors import ConfigError
from hpopt.training.config import PretrainConfig
from hpopt.training.hub import download_tokenizer
from hpopt.training.sources import END_OF_TEXT

# The relative difference allowed between the bytes of tokens and of their text: SentencePiece prepends a space to each
# document.
_BYTES_TOLERANCE = 0.01


def load_tokenizer(config: PretrainConfig) -> tuple[Tokenizer, str] | None:
    """Return the tokenizer of a config and its end-of-document token; None for "bpe", which has to be trained.

    "bytes" has the 256 bytes as tokens; any other name is a folder or a repository on the hub. Raises ConfigError for a
    tokenizer that cannot be loaded, does not fit into vocab_size or has no end-of-document token.
    """
    if config.tokenizer == "bpe":
        return None
    tokenizer, end = (_byte_tokenizer(), END_OF_TEXT) if config.tokenizer == "bytes" else _load(config.tokenizer)
    n_tokens = max(tokenizer.get_vocab().values()) + 1
    if n_tokens > config.vocab_size:
        raise ConfigError(
            "vocab_size", f"{config.vocab_size} is below the {n_tokens} tokens of tokenizer {config.tokenizer!r}"
        )
    return _encode_special_tokens_as_text(tokenizer), end


def train_tokenizer(texts: list[str], vocab_size: int) -> tuple[Tokenizer, str]:
    """Train a byte-level BPE tokenizer; return it and its end-of-document token.

    It can encode every text, because all 256 bytes are tokens.
    """
    tokenizer = _byte_level_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _encode_special_tokens_as_text(tokenizer), END_OF_TEXT


def _encode_special_tokens_as_text(tokenizer: Tokenizer) -> Tokenizer:
    # A document may contain the text of a special token.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _byte_tokenizer() -> Tokenizer:
    """Return the tokenizer whose token n is the byte n and whose token 256 ends a document."""
    # Byte-level BPE represents bytes that are visible characters by these, and the others, in order, by U+0100 onwards.
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    vocabulary = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    tokenizer = _byte_level_tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _byte_level_tokenizer(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _load(name: str) -> tuple[Tokenizer, str]:
    folder = Path(name) if Path(name).is_dir() else download_tokenizer(name)
    try:
        tokenizer, eos_token = _read_folder(folder)
    # Neither library has an exception class for a tokenizer that it cannot read.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError("tokenizer", f"{name!r} contains no readable tokenizer: {reason}") from error
    # Documents are encoded in full and unchanged.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for end in (END_OF_TEXT, eos_token):
        if end and tokenizer.token_to_id(end) is not None:
            return tokenizer, end
    raise ConfigError("tokenizer", f"{name!r} has no end-of-document token: neither {END_OF_TEXT} nor an eos_token")


def _read_folder(folder: Path) -> tuple[Tokenizer, str | None]:
    """Load tokenizer.json, or else whatever files transformers supports; return the tokenizer and its eos_token."""
    file = folder / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file)), _read_eos_token(folder)
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds to import, and rarely needed.

    loaded = AutoTokenizer.from_pretrained(str(folder))
    return loaded.backend_tokenizer, loaded.eos_token


def _read_eos_token(folder: Path) -> str | None:
    """Return the eos_token from the files beside a tokenizer.json, where it is a string or an object with `content`."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        end = json.loads(file.read_text(encoding="utf-8")).get("eos_token") if file.is_file() else None
        if end:
            return str(end["content"] if isinstance(end, dict) else end)
    return None


def count_token_bytes(tokenizer: Tokenizer, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return token_bytes_V, the bytes of text that each token represents; 0 for special and for unused tokens.

    Byte-level BPE represents each byte by one character; SentencePiece a space by U+2581 and a single byte by <0x41>.
    """
    is_byte_level = _is_byte_level(tokenizer)
    token_bytes_V = np.zeros(vocab_size, dtype=np.int64)
    for token, token_id in tokenizer.get_vocab().items():
        token_bytes_V[token_id] = len(token) if is_byte_level else _sentencepiece_bytes(token)
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        token_bytes_V[token_id] = 0 if added.special else len(added.content.encode())
    return token_bytes_V


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    parts = json.loads(tokenizer.to_str())
    return any('"ByteLevel"' in json.dumps(parts[part]) for part in ("pre_tokenizer", "decoder"))


def _sentencepiece_bytes(token: str) -> int:
    is_single_byte = len(token) == len("<0x41>") and token.startswith("<0x") and token.endswith(">")
    return 1 if is_single_byte else len(token.replace("\u2581", " ").encode())


def check_byte_count(config: PretrainConfig, n_token_bytes: int, n_text_bytes: int) -> None:
    """Raise ConfigError if the tokens of the validation text represent another number of bytes than the text has."""
    if abs(n_token_bytes - n_text_bytes) > _BYTES_TOLERANCE * n_text_bytes:
        raise ConfigError(
            "tokenizer",
            f"{config.tokenizer!r}: its tokens of the validation text represent {n_token_bytes} bytes, but the text has"
            f" {n_text_bytes}, so bits per byte would be wrong: it is neither byte-level nor SentencePiece with byte"
            " fallback",
        )


def identify(tokenizer: Tokenizer, end: str) -> str:
    """Return a string that determines how text is tokenized, for a fingerprint."""
    return tokenizer.to_str() if end == END_OF_TEXT else f"{tokenizer.to_str()}{end}"
