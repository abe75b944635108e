"""Owns where documents come from: this Python's library, a folder, a file or the Hugging Face hub.

Leaves the hub to hub.py, near-copies and splits to corpus.py. Free of torch and numpy: `hpopt check` asks it too.
"""

import json
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
OWN_TOKENIZERS = ("bpe", "bytes")

# Tests more than double the text but repeat themselves, and many Python builds come without them; encodings
# and pydoc_data are generated tables.
_STDLIB_LEFT_OUT = {"site-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
_FOLDER_SUFFIXES = {".txt", ".md", ".py"}
_FILE_SUFFIXES = {".txt", ".jsonl", ".parquet"}


def check_sources(config: PretrainConfig) -> None:
    """Refuse a dataset or tokenizer that cannot be had, as far as that shows without reading any of it.

    Raises ConfigError for a path that does not exist and for a dataset of the hub that is read without a bound.
    """
    _check_dataset(config)
    name = config.tokenizer
    if name not in OWN_TOKENIZERS and not Path(name).is_dir() and not is_hub_name(name):
        known = "'bpe', 'bytes', a folder with a tokenizer.json, a name on the Hugging Face hub (owner/name)"
        raise ConfigError("tokenizer", f"{name!r} is {_what(name, OWN_TOKENIZERS)}; known: {known}")


def _check_dataset(config: PretrainConfig) -> None:
    name, path = config.dataset, Path(config.dataset)
    if name == STDLIB or path.is_dir() or (path.suffix in _FILE_SUFFIXES and path.is_file()):
        return
    if not is_hub_name(name):
        known = (
            f"'{STDLIB}', a folder of text files, a .txt, .jsonl or .parquet file, a Hugging Face dataset (owner/name)"
        )
        raise ConfigError("dataset", f"{name!r} is {_what(name, (STDLIB,))}; known: {known}")
    if not config.max_documents and not config.max_train_tokens:
        raise ConfigError(
            "dataset",
            f"{name!r} is no path here, and of a Hugging Face dataset only a part is read:"
            " set max_documents or max_train_tokens",
        )


def _what(name: str, words: tuple[str, ...]) -> str:
    """Say what a name is instead, and the nearest known word or file, if there is one."""
    path = Path(name)
    if path.exists():
        return "a file of another kind"
    siblings = [str(path.with_name(sibling.name)) for sibling in path.parent.glob("*")]
    near = did_you_mean(name, (*words, *siblings))
    return "no file or folder here" + (near if near.startswith("; did you mean") else "")


def source_files(dataset: str) -> list[Path]:
    """List the files of a dataset on this machine, sorted by relative path.

    `dataset` is "python-stdlib" (the .py files of this Python's standard library, without tests and generated
    tables), a folder of .txt, .md and .py files, or a .txt, .jsonl or .parquet file.
    Raises ConfigError for a folder without any.
    """
    path = Path(sysconfig.get_path("stdlib") if dataset == STDLIB else dataset)
    if dataset != STDLIB and path.is_file():
        return [path]
    suffixes, left_out = ({".py"}, _STDLIB_LEFT_OUT) if dataset == STDLIB else (_FOLDER_SUFFIXES, set())
    relative = sorted(file.relative_to(path) for file in path.rglob("*") if file.suffix in suffixes)
    files = [path / file for file in relative if not left_out & set(file.parts)]
    if not files:
        raise ConfigError("dataset", f"{dataset!r} holds no {', '.join(sorted(suffixes))} file")
    return files


def read_documents(config: PretrainConfig, revision: str | None = None) -> Iterator[str]:
    """Read the first max_documents documents (0: all) of a dataset, in an order that is always the same.

    A file of a folder is one document, and one that is not UTF-8 is left out. In a .txt file documents are separated by
    <|endoftext|>; in .jsonl, .parquet and on the hub (at `revision`, its training split) the text_field of a row is
    one. Raises ConfigError for what cannot be read.
    """
    documents = _read_hub(config, revision) if is_hub_name(config.dataset) else _read_files(config)
    return islice(documents, config.max_documents or None)


def _read_hub(config: PretrainConfig, revision: str | None) -> Iterator[str]:
    for number, row in enumerate(read_rows(config.dataset, config.dataset_config, revision)):
        yield _text_of(row, config.text_field, f"{config.dataset}, row {number}")


def _read_files(config: PretrainConfig) -> Iterator[str]:
    files = source_files(config.dataset)
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
                    yield _text_of(_parse_line(line, file, number), text_field, f"{file}, line {number}")
        except UnicodeDecodeError as error:
            raise _not_utf8(file, error) from error


def _parse_line(line: str, file: Path, number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(line.rstrip("\n"))
    except json.JSONDecodeError as error:
        raise ConfigError("dataset", f"{file}, line {number}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise ConfigError("dataset", f"{file}, line {number}: not a JSON object with a field {{...}} for the text")
    return row


def _read_parquet(file: Path, text_field: str) -> Iterator[str]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped] # noqa: PLC0415 - only this format needs it.

    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if text_field not in names:
            raise _no_field(text_field, names, str(file))
        for batch in table.iter_batches(columns=[text_field]):
            yield from (_text_of(row, text_field, str(file)) for row in batch.to_pylist())
    except ArrowException as error:
        raise ConfigError("dataset", f"{file}: not parquet: {str(error).splitlines()[0]}") from error


def _text_of(row: Mapping[str, Any], text_field: str, where: str) -> str:
    if text_field not in row:
        raise _no_field(text_field, list(row), where)
    value = row[text_field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError("text_field", f"{text_field!r} is no text in {where}, but {type(value).__name__}")
    # JSON can escape half of a character, which no text of bytes can hold.
    return value.encode(errors="replace").decode()


def _no_field(text_field: str, names: list[str], where: str) -> ConfigError:
    return ConfigError("text_field", f"{where} has no field {text_field!r}; it has {', '.join(map(str, names))}")


def _not_utf8(file: Path, error: UnicodeDecodeError) -> ConfigError:
    return ConfigError("dataset", f"{file}: not UTF-8 (at byte {error.start})")
