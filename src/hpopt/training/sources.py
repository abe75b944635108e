"""Read documents from Python's standard library, a folder, a file or the Hugging Face hub.

This module does not import torch or numpy, so that `hpopt check` stays fast.
"""

import json
import os
import sysconfig
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from hpopt.errors import ConfigError, did_you_mean
from hpopt.training.config import PretrainConfig
from hpopt.training.hub import is_hub_name, read_rows

STDLIB = "python-stdlib"
END_OF_TEXT = "<|endoftext|>"
BUILTIN_TOKENIZERS = ("bpe", "bytes")

# Tests more than double the text but are repetitive, and many Python builds lack them; encodings and pydoc_data are
# generated tables.
_STDLIB_EXCLUDED = {"site-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
_FOLDER_SUFFIXES = {".txt", ".md", ".py"}
_FILE_SUFFIXES = {".txt", ".jsonl", ".parquet"}


def check_sources(config: PretrainConfig) -> None:
    """Check the names of dataset and tokenizer without reading either.

    Raises ConfigError for a path that does not exist, and for a dataset on the hub without a limit.
    """
    _check_dataset(config)
    name = config.tokenizer
    if name not in BUILTIN_TOKENIZERS and not Path(name).is_dir() and not is_hub_name(name):
        known = "'bpe', 'bytes', a folder with a tokenizer.json, a name on the Hugging Face hub (owner/name)"
        raise ConfigError("tokenizer", f"{name!r} {_reason(name, BUILTIN_TOKENIZERS)}; known: {known}")


def _check_dataset(config: PretrainConfig) -> None:
    name, path = config.dataset, Path(config.dataset)
    if name == STDLIB or path.is_dir() or (path.suffix in _FILE_SUFFIXES and path.is_file()):
        return
    if not is_hub_name(name):
        known = (
            f"'{STDLIB}', a folder of text files, a .txt, .jsonl or .parquet file, a Hugging Face dataset (owner/name)"
        )
        raise ConfigError("dataset", f"{name!r} {_reason(name, (STDLIB,))}; known: {known}")
    if not config.max_documents and not config.max_train_tokens:
        raise ConfigError(
            "dataset",
            f"{name!r} is not a local path, and a Hugging Face dataset needs a limit:"
            " set max_documents or max_train_tokens",
        )


def _reason(name: str, words: tuple[str, ...]) -> str:
    """Return why a name is refused, and the nearest of `words` and the files beside it, if there is one."""
    path = Path(name)
    if path.exists():
        return "is a file of an unsupported type"
    siblings = [str(path.with_name(sibling.name)) for sibling in path.parent.glob("*")]
    near = did_you_mean(name, (*words, *siblings))
    return "does not exist" + (near if near.startswith("; did you mean") else "")


def list_files(dataset: str) -> list[Path]:
    """List the files of a local dataset, sorted by relative path.

    `dataset` is "python-stdlib" (the .py files of Python's standard library, without tests and generated tables), a
    folder of .txt, .md and .py files, or a .txt, .jsonl or .parquet file.
    Raises ConfigError for a folder without such files.
    """
    path = Path(sysconfig.get_path("stdlib") if dataset == STDLIB else dataset)
    if dataset != STDLIB and path.is_file():
        return [path]
    suffixes, excluded = ({".py"}, _STDLIB_EXCLUDED) if dataset == STDLIB else (_FOLDER_SUFFIXES, set[str]())
    files = []
    for folder, subfolders, names in os.walk(path):
        # os.walk descends only into what is left here; site-packages is often larger than the library itself.
        subfolders[:] = set(subfolders) - excluded
        files += [Path(folder, name) for name in names if Path(name).suffix in suffixes]
    if not files:
        raise ConfigError("dataset", f"{dataset!r} contains no {', '.join(sorted(suffixes))} file")
    return sorted(files, key=lambda file: file.relative_to(path))


def read_documents(config: PretrainConfig, revision: str | None = None) -> Iterator[str]:
    """Yield the first max_documents documents (0: all) of a dataset, always in the same order.

    In a folder each file is a document, and files that are not UTF-8 are skipped. In a .txt file documents are
    separated by <|endoftext|>. In .jsonl and .parquet files and on the hub (the training split at `revision`), the
    text_field of each row is a document. Raises ConfigError for data that cannot be read.
    """
    documents = _read_hub(config, revision) if is_hub_name(config.dataset) else _read_files(config)
    return islice(documents, config.max_documents or None)


def _read_hub(config: PretrainConfig, revision: str | None) -> Iterator[str]:
    for number, row in enumerate(read_rows(config.dataset, config.dataset_config, revision)):
        yield _get_text(row, config.text_field, f"{config.dataset}, row {number}")


def _read_files(config: PretrainConfig) -> Iterator[str]:
    files = list_files(config.dataset)
    is_folder = config.dataset == STDLIB or Path(config.dataset).is_dir()
    for file in files:
        if file.suffix == ".parquet":
            yield from _read_parquet(file, config.text_field)
        elif file.suffix == ".jsonl":
            yield from _read_json_lines(file, config.text_field)
        else:
            yield from _read_text(file, is_folder=is_folder)


def _read_text(file: Path, *, is_folder: bool) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        if is_folder:
            return
        raise _not_utf8(file, error) from error
    yield from [text] if is_folder else text.split(END_OF_TEXT)


def _read_json_lines(file: Path, text_field: str) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _get_text(_parse_line(line, file, number), text_field, f"{file}, line {number}")
        except UnicodeDecodeError as error:
            raise _not_utf8(file, error) from error


def _parse_line(line: str, file: Path, number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(line.rstrip("\n"))
    except json.JSONDecodeError as error:
        raise ConfigError("dataset", f"{file}, line {number}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise ConfigError("dataset", f"{file}, line {number}: not a JSON object with a field for the text")
    return row


def _read_parquet(file: Path, text_field: str) -> Iterator[str]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped] # noqa: PLC0415 - needed for this format only.

    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if text_field not in names:
            raise _missing_field(text_field, names, str(file))
        for batch in table.iter_batches(columns=[text_field]):
            yield from (_get_text(row, text_field, str(file)) for row in batch.to_pylist())
    except ArrowException as error:
        raise ConfigError("dataset", f"{file}: not parquet: {str(error).splitlines()[0]}") from error


def _get_text(row: Mapping[str, Any], text_field: str, where: str) -> str:
    if text_field not in row:
        raise _missing_field(text_field, list(row), where)
    value = row[text_field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError("text_field", f"{text_field!r} is {type(value).__name__} in {where}, not a string")
    # JSON can escape one half of a surrogate pair, which UTF-8 cannot encode.
    return value.encode(errors="replace").decode()


def _missing_field(text_field: str, names: list[str], where: str) -> ConfigError:
    return ConfigError("text_field", f"{where} has no field {text_field!r}; it has {', '.join(map(str, names))}")


def _not_utf8(file: Path, error: UnicodeDecodeError) -> ConfigError:
    return ConfigError("dataset", f"{file}: not UTF-8 (at byte {error.start})")
