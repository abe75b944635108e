import json
import subprocess
import sys

import pytest

from hpopt.errors import ConfigError
from hpopt.training.config import PretrainConfig
from hpopt.training.sources import STDLIB, check_sources, list_files, read_documents


def read(dataset, **changes):
    """Return all documents of a dataset."""
    return list(read_documents(PretrainConfig(dataset=str(dataset), **changes)))


def refusal(function, **changes):
    """Return the key and the problem of the ConfigError that a function raises for a config."""
    with pytest.raises(ConfigError) as refused:
        function(PretrainConfig(**{name: str(value) for name, value in changes.items()}))
    return refused.value.key, refused.value.problem


def test_standard_library_excludes_tests_and_generated_tables():
    """Tests differ between Python builds, and with generated tables a clean split overlaps by 4.7%."""
    names = [file.as_posix() for file in list_files(STDLIB)]
    assert any(name.endswith("/asyncio/tasks.py") for name in names)
    assert not any(part in name for name in names for part in ("/test/", "/encodings/", "/site-packages/"))


def test_files_of_a_folder_are_documents(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.md").write_text("first")
    (tmp_path / "picture.png").write_bytes(b"\xff\xd8")
    (tmp_path / "c.txt").write_bytes(b"\xff not utf-8")
    assert read(tmp_path) == ["first", "second"]


@pytest.fixture
def write_rows(tmp_path):
    """Return a function that writes rows as a .jsonl and a .parquet file and returns both."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(rows):
        lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
        lines.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        parquet.write_table(pyarrow.Table.from_pylist(rows), table)
        return lines, table

    return write


def test_json_lines_text_and_parquet_files_have_one_document_per_row(tmp_path, write_rows):
    """A Unicode line separator inside a text does not end a line of JSON."""
    texts = ["one", "two\nlines", "and\u2028another"]
    (tmp_path / "rows.txt").write_text("<|endoftext|>".join(texts))
    for file in (tmp_path / "rows.txt", *write_rows([{"text": text} for text in texts])):
        assert read(file) == texts


def test_text_field_selects_the_text_of_a_row(write_rows):
    """A null is an empty document, which is dropped and counted as such."""
    for file in write_rows([{"text": "one", "body": "two"}, {"text": "three", "body": None}]):
        assert read(file, text_field="body") == ["two", ""]


def test_a_row_without_the_field_is_refused_with_the_fields_it_has(write_rows):
    """`content` is as common a name as `text`."""
    lines, table = write_rows([{"content": "one", "id": 1}])
    assert refusal(lambda config: list(read_documents(config)), dataset=lines) == (
        "text_field",
        f"{lines}, line 1 has no field 'text'; it has content, id",
    )
    key, problem = refusal(lambda config: list(read_documents(config)), dataset=table)
    assert (key, problem) == ("text_field", f"{table} has no field 'text'; it has content, id")


def test_a_field_that_is_not_a_string_is_refused(write_rows):
    for file in write_rows([{"text": ["one"]}]):
        key, problem = refusal(lambda config: list(read_documents(config)), dataset=file)
        assert key == "text_field"
        assert problem.startswith(f"'text' is list in {file}")
        assert problem.endswith(", not a string")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"text": "one"}\n\n{"text": "two"\n', "rows.jsonl, line 3: not JSON: Expecting ',' delimiter at column 15"),
        (b'["one"]\n', "rows.jsonl, line 1: not a JSON object"),
        (b'{"text": "\xff"}\n', "rows.jsonl: not UTF-8 (at byte 10)"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(tmp_path, content, problem):
    """It may be anywhere in gigabytes of text."""
    (tmp_path / "rows.jsonl").write_bytes(content)
    key, message = refusal(lambda config: list(read_documents(config)), dataset=tmp_path / "rows.jsonl")
    assert key == "dataset"
    assert problem in message


def test_a_text_file_that_is_not_utf8_or_not_parquet_is_refused(tmp_path):
    """A single file is the whole dataset, so it must not be skipped as a file of a folder is."""
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    for name, problem in (("a.txt", "a.txt: not UTF-8 (at byte 3)"), ("a.parquet", "a.parquet: not parquet: ")):
        key, message = refusal(lambda config: list(read_documents(config)), dataset=tmp_path / name)
        assert key == "dataset"
        assert problem in message
        assert "\n" not in message


def test_an_unpaired_surrogate_in_json_is_replaced(tmp_path):
    r"""Text from the web contains half of a pair such as "\ud83d", which cannot be encoded as UTF-8."""
    (tmp_path / "a.jsonl").write_text(r'{"text": "a\ud83db"}')
    assert read(tmp_path / "a.jsonl") == ["a?b"]


def test_max_documents_keeps_the_first_ones(tmp_path, write_rows):
    rows = [{"text": str(number)} for number in range(5)]
    for file in write_rows(rows):
        assert read(file, max_documents=3) == ["0", "1", "2"]
        assert read(file, max_documents=9) == read(file) == ["0", "1", "2", "3", "4"]


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("not text")
    assert refusal(lambda config: list_files(config.dataset), dataset=tmp_path) == (
        "dataset",
        f"'{tmp_path}' contains no .md, .py, .txt file",
    )


KNOWN = (
    "; known: 'python-stdlib', a folder of text files, a .txt, .jsonl or .parquet file,"
    " a Hugging Face dataset (owner/name)"
)


def test_a_dataset_that_does_not_exist_is_refused_with_the_nearest_name(tmp_path, monkeypatch):
    """When the study file is read, not when a worker opens the data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "rows.csv").write_text("not text")
    for name, problem in {
        "pyhton-stdlib": "'pyhton-stdlib' does not exist; did you mean 'python-stdlib'?",
        "text": "'text' does not exist; did you mean 'texts'?",
        "texts/rows.jsonl": "'texts/rows.jsonl' does not exist",
        f"{tmp_path}/nowhere/else": f"'{tmp_path}/nowhere/else' does not exist",
        "rows.csv": "'rows.csv' is a file of an unsupported type",
    }.items():
        assert refusal(check_sources, dataset=name) == ("dataset", problem + KNOWN)


def test_a_tokenizer_that_does_not_exist_is_refused_with_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key, problem = refusal(check_sources, tokenizer="byte")
    assert key == "tokenizer"
    assert problem.startswith("'byte' does not exist; did you mean 'bytes'?; known: 'bpe', 'bytes', a folder")
    for name in ("bpe", "bytes", "owner/name", str(tmp_path)):
        check_sources(PretrainConfig(tokenizer=name))


def test_a_dataset_on_the_hub_needs_a_limit(tmp_path, monkeypatch):
    """A complete web corpus would fill the disk before the first step."""
    monkeypatch.chdir(tmp_path)
    key, problem = refusal(check_sources, dataset="owner/name@v1")
    assert key == "dataset"
    assert problem.endswith("a Hugging Face dataset needs a limit: set max_documents or max_train_tokens")
    check_sources(PretrainConfig(dataset="owner/name@v1", max_documents=5))
    check_sources(PretrainConfig(dataset="owner/name", max_train_tokens=5000))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "a.py").write_text("local text")
    check_sources(PretrainConfig(dataset="owner/name"))
    assert read("owner/name") == ["local text"]


def test_sources_are_checked_without_importing_what_reads_them():
    """`hpopt check` must be fast."""
    heavy = "{'torch', 'numpy', 'datasets', 'huggingface_hub', 'transformers', 'tokenizers', 'pyarrow'}"
    code = f"import sys, hpopt.training.sources; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
