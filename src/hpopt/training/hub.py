"""Read datasets and tokenizers from the Hugging Face hub.

This module does not import torch or numpy, and imports the libraries of the hub on first use, so that `hpopt check`
stays fast.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpopt.errors import ConfigError
from hpopt.formats import one_line
from hpopt.hyperparameters import default_of

# owner/name, and after an @ a branch, a tag or a commit.
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", re.ASCII)
# A name with one of these is a path, even if the file does not exist: data/text.jsonl.
_FILE_SUFFIXES = {".txt", ".jsonl", ".parquet", ".json", ".csv", ".md", ".py"}
# Timeout of one request for metadata; `datasets` itself retries for half a minute.
_TIMEOUT_S = 5.0
_TOKENIZER_FILES = ["tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model", "*.tiktoken"]
_LOCAL_ALTERNATIVES = {
    "dataset": "'python-stdlib', a folder of text files, or a .txt, .jsonl or .parquet file",
    "tokenizer": "'bpe', 'bytes', or a folder with a tokenizer.json",
}


def is_hub_name(name: str) -> bool:
    """Return whether a name is owner/name or owner/name@revision, and neither an existing path nor a file name."""
    return bool(_NAME.fullmatch(name)) and Path(name).suffix not in _FILE_SUFFIXES and not Path(name).exists()


def resolve_revision(dataset: str) -> str | None:
    """Return the commit to which the name of a dataset on the hub refers.

    Returns None in offline mode (HF_HUB_OFFLINE), in which the cached commit is read. Raises ConfigError within
    seconds, without retries, if the hub is unreachable or refuses access to the dataset.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - needed for datasets on the hub only.
    from huggingface_hub.errors import OfflineModeIsEnabled  # noqa: PLC0415 - as above.

    name, revision = _split_revision(dataset)
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT_S).sha
    except OfflineModeIsEnabled:
        return None
    except Exception as error:
        raise _unreadable("dataset", dataset, error) from error


def read_rows(dataset: str, dataset_config: str, revision: str | None) -> Iterator[Mapping[str, Any]]:
    """Stream the rows of the training split of a dataset; raises ConfigError if they cannot be read."""
    import datasets  # noqa: PLC0415 - as in resolve_revision.

    name, pinned = _split_revision(dataset)
    config_name = None if dataset_config == default_of("dataset_config") else dataset_config
    try:
        yield from datasets.load_dataset(name, config_name, split="train", streaming=True, revision=revision or pinned)
    # Five libraries are involved, and their errors have no common base class.
    except Exception as error:
        # datasets has no exception class for these.
        if str(error).startswith(("BuilderConfig ", "Config name is missing")):
            raise ConfigError("dataset_config", f"{dataset!r}: {one_line(str(error))}") from error
        raise _unreadable("dataset", dataset, error) from error


def download_tokenizer(tokenizer: str) -> Path:
    """Return the folder of the files of a tokenizer, downloaded or cached; raises ConfigError."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - as in resolve_revision.

    name, revision = _split_revision(tokenizer)
    patterns = [*_TOKENIZER_FILES, "config.json"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, etag_timeout=_TIMEOUT_S))
    except Exception as error:
        raise _unreadable("tokenizer", tokenizer, error) from error


def _split_revision(name: str) -> tuple[str, str | None]:
    repository, _, revision = name.partition("@")
    return repository, revision or None


def _unreadable(key: str, name: str, error: Exception) -> ConfigError:
    return ConfigError(
        key,
        f"{name!r} is not a local path, and cannot be read from the Hugging Face hub: {_reason(error)}; without the hub"
        f" use {_LOCAL_ALTERNATIVES[key]}, or set HF_HUB_OFFLINE=1 and HF_HOME to a cache that contains it",
    )


def _reason(error: Exception) -> str:
    """Return in one line why the hub refused access."""
    from huggingface_hub import errors  # noqa: PLC0415 - as in resolve_revision.

    if isinstance(error, errors.GatedRepoError):
        return "access is gated; request access on its page and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "repository not found, or private (set HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "revision not found"
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
