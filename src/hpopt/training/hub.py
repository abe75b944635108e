"""Owns the Hugging Face hub: names on it, rows and tokenizers from it, and what is said when it does not answer.

Leaves text on this machine to sources.py. Free of torch and numpy; the hub's own libraries are imported when asked for.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpopt.errors import ConfigError
from hpopt.hyperparameters import default_of

# owner/name, and after an @ a branch, a tag or a commit.
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", re.ASCII)
# A path that is not there is no name: data/text.jsonl was meant to be a file.
_FILE_SUFFIXES = {".txt", ".jsonl", ".parquet", ".json", ".csv", ".md", ".py"}
# How long the hub may take to say which commit a name stands for. `datasets` itself asks for half a minute.
_ANSWER_WITHIN_S = 5.0
_TOKENIZER_FILES = ["tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model", "*.tiktoken"]
_WITHOUT = {
    "dataset": "'python-stdlib', a folder of text files, a .txt, .jsonl or .parquet file",
    "tokenizer": "'bpe', 'bytes', a folder with a tokenizer.json",
}


def is_hub_name(name: str) -> bool:
    """Say whether a name is owner/name or owner/name@revision, and neither a path nor like one to a file."""
    return bool(_NAME.fullmatch(name)) and Path(name).suffix not in _FILE_SUFFIXES and not Path(name).exists()


def find_revision(dataset: str) -> str | None:
    """Ask the hub for the commit that the name of a dataset stands for now.

    None where the hub is switched off (HF_HUB_OFFLINE): the cache then knows but one. Raises ConfigError within
    seconds when the hub cannot be reached or does not give the dataset away.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - only what is on the hub needs it.
    from huggingface_hub.errors import OfflineModeIsEnabled  # noqa: PLC0415 - as above.

    name, revision = _parse(dataset)
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=_ANSWER_WITHIN_S).sha
    except OfflineModeIsEnabled:
        return None
    except Exception as error:
        raise _refusal("dataset", dataset, error) from error


def read_rows(dataset: str, dataset_config: str, revision: str | None) -> Iterator[Mapping[str, Any]]:
    """Stream the rows of the training split of a dataset; raises ConfigError for whatever stops that."""
    import datasets  # noqa: PLC0415 - as in find_revision.

    name, pinned = _parse(dataset)
    chosen = None if dataset_config == default_of("dataset_config") else dataset_config
    try:
        yield from datasets.load_dataset(name, chosen, split="train", streaming=True, revision=revision or pinned)
    # Five libraries read the hub's files, each with errors of its own.
    except Exception as error:
        # datasets has no class for these.
        if str(error).startswith(("BuilderConfig ", "Config name is missing")):
            raise ConfigError("dataset_config", f"{dataset!r}: {' '.join(str(error).split())}") from error
        raise _refusal("dataset", dataset, error) from error


def fetch_tokenizer(tokenizer: str) -> Path:
    """Bring the files of a tokenizer here, or find them in the cache, and give their folder; raises ConfigError."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - as in find_revision.

    name, revision = _parse(tokenizer)
    patterns = [*_TOKENIZER_FILES, "config.json"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, etag_timeout=_ANSWER_WITHIN_S))
    except Exception as error:
        raise _refusal("tokenizer", tokenizer, error) from error


def _parse(name: str) -> tuple[str, str | None]:
    repository, _, revision = name.partition("@")
    return repository, revision or None


def _refusal(key: str, name: str, error: Exception) -> ConfigError:
    return ConfigError(
        key,
        f"{name!r} is no path here, and cannot be read from the Hugging Face hub: {_reason(error)}; without the hub:"
        f" {_WITHOUT[key]}, or HF_HUB_OFFLINE=1 and HF_HOME at the cache of a machine that has it",
    )


def _reason(error: Exception) -> str:
    """Say in a few words why the hub did not give something away."""
    from huggingface_hub import errors  # noqa: PLC0415 - as in find_revision.

    if isinstance(error, errors.GatedRepoError):
        return "it is gated; ask for access on its page, then set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such name there, or a private one (set HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    return (str(error).splitlines() or [type(error).__name__])[0]
