import json
import subprocess
import sys

import pytest

from hpopt.errors import ConfigError
from hpopt.training.config import PretrainConfig
from hpopt.training.sources import STDLIB, check_sources, read_documents, source_files


def read(dataset, **changes):
    """Read all documents of a dataset."""
    return list(read_documents(PretrainConfig(dataset=str(dataset), **changes)))


def refusal(function, **changes):
    """Give the key and the problem with which a config is refused."""
    with pytest.raises(ConfigError) as refused:
        function(PretrainConfig(**{name: str(value) for name, value in changes.items()}))
    return refused.value.key, refused.value.problem


def test_standard_library_comes_without_tests_and_tables():
    """Tests differ between Python builds, and generated tables made a clean split overlap by 4.7%."""
    names = [file.as_posix() for file in source_files(STDLIB)]
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
    """Write rows as a .jsonl and as a .parquet file; gives both."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(rows):
        lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
        lines.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        parquet.write_table(pyarrow.Table.from_pylist(rows), table)
        return lines, table

    return write


def test_json_lines_text_and_parquet_files_hold_a_document_a_row(tmp_path, write_rows):
    """A line separator of Unicode inside of a text is no end of a line of JSON."""
    texts = ["one", "two\nlines", "and\u2028another"]
    (tmp_path / "rows.txt").write_text("<|endoftext|>".join(texts))
    for file in (tmp_path / "rows.txt", *write_rows([{"text": text} for text in texts])):
        assert read(file) == texts


def test_text_field_chooses_what_is_read_of_a_row(write_rows):
    """A row without any text is an empty document, and counted as one that was dropped."""
    for file in write_rows([{"text": "one", "body": "two"}, {"text": "three", "body": None}]):
        assert read(file, text_field="body") == ["two", ""]


def test_a_row_without_the_field_is_refused_with_the_fields_it_has(write_rows):
    """`content` is as usual a name as `text`; the refusal is all that the user sees of the file."""
    lines, table = write_rows([{"content": "one", "id": 1}])
    assert refusal(lambda config: list(read_documents(config)), dataset=lines) == (
        "text_field",
        f"{lines}, line 1 has no field 'text'; it has content, id",
    )
    key, problem = refusal(lambda config: list(read_documents(config)), dataset=table)
    assert (key, problem) == ("text_field", f"{table} has no field 'text'; it has content, id")


def test_a_field_that_is_no_text_is_refused(write_rows):
    for file in write_rows([{"text": ["one"]}]):
        key, problem = refusal(lambda config: list(read_documents(config)), dataset=file)
        assert key == "text_field"
        assert problem.startswith("'text' is no text in ")
        assert problem.endswith(", but list")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"text": "one"}\n\n{"text": "two"\n', "rows.jsonl, line 3: not JSON: Expecting ',' delimiter at column 15"),
        (b'["one"]\n', "rows.jsonl, line 1: not a JSON object"),
        (b'{"text": "\xff"}\n', "rows.jsonl: not UTF-8 (at byte 10)"),
    ],
)
def test_a_malformed_line_is_refused_with_its_place(tmp_path, content, problem):
    """Somewhere in gigabytes; a trial that fails with a traceback would say it to nobody."""
    (tmp_path / "rows.jsonl").write_bytes(content)
    key, said = refusal(lambda config: list(read_documents(config)), dataset=tmp_path / "rows.jsonl")
    assert key == "dataset"
    assert problem in said


def test_a_text_file_that_is_not_utf8_or_not_parquet_is_refused(tmp_path):
    """It is the whole dataset: left out in silence, it would be a dataset of nothing."""
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    for name, problem in (("a.txt", "a.txt: not UTF-8 (at byte 3)"), ("a.parquet", "a.parquet: not parquet: ")):
        key, said = refusal(lambda config: list(read_documents(config)), dataset=tmp_path / name)
        assert key == "dataset"
        assert problem in said
        assert "\n" not in said


def test_half_a_character_in_json_is_replaced(tmp_path):
    r"""Text of the web has "\ud83d" cut off from its other half; hashing and encoding it would fail."""
    (tmp_path / "a.jsonl").write_text(r'{"text": "a\ud83db"}')
    assert read(tmp_path / "a.jsonl") == ["a?b"]


def test_max_documents_keeps_the_first(tmp_path, write_rows):
    rows = [{"text": str(number)} for number in range(5)]
    for file in write_rows(rows):
        assert read(file, max_documents=3) == ["0", "1", "2"]
        assert read(file, max_documents=9) == read(file) == ["0", "1", "2", "3", "4"]


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("no")
    assert refusal(lambda config: source_files(config.dataset), dataset=tmp_path) == (
        "dataset",
        f"'{tmp_path}' holds no .md, .py, .txt file",
    )


KNOWN = (
    "; known: 'python-stdlib', a folder of text files, a .txt, .jsonl or .parquet file,"
    " a Hugging Face dataset (owner/name)"
)


def test_a_dataset_that_is_not_here_is_refused_with_the_nearest(tmp_path, monkeypatch):
    """Seconds after it was typed, not when a worker opens it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "rows.csv").write_text("no")
    for name, problem in {
        "pyhton-stdlib": "'pyhton-stdlib' is no file or folder here; did you mean 'python-stdlib'?",
        "text": "'text' is no file or folder here; did you mean 'texts'?",
        "texts/rows.jsonl": "'texts/rows.jsonl' is no file or folder here",
        f"{tmp_path}/nowhere/else": f"'{tmp_path}/nowhere/else' is no file or folder here",
        "rows.csv": "'rows.csv' is a file of another kind",
    }.items():
        assert refusal(check_sources, dataset=name) == ("dataset", problem + KNOWN)


def test_a_tokenizer_that_is_not_here_is_refused_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key, problem = refusal(check_sources, tokenizer="byte")
    assert key == "tokenizer"
    assert problem.startswith(
        "'byte' is no file or folder here; did you mean 'bytes'?; known: 'bpe', 'bytes', a folder"
    )
    for name in ("bpe", "bytes", "owner/name", str(tmp_path)):
        check_sources(PretrainConfig(tokenizer=name))


def test_a_hub_dataset_needs_a_bound(tmp_path, monkeypatch):
    """Reading all of a web corpus would fill the disk before the first step."""
    monkeypatch.chdir(tmp_path)
    key, problem = refusal(check_sources, dataset="owner/name@v1")
    assert key == "dataset"
    assert problem.endswith("only a part is read: set max_documents or max_train_tokens")
    check_sources(PretrainConfig(dataset="owner/name@v1", max_documents=5))
    check_sources(PretrainConfig(dataset="owner/name", max_train_tokens=5000))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "a.py").write_text("no hub")
    check_sources(PretrainConfig(dataset="owner/name"))
    assert read("owner/name") == ["no hub"]


def test_sources_are_checked_without_what_reads_them():
    """`hpopt check` answers while a colleague waits."""
    heavy = "{'torch', 'numpy', 'datasets', 'huggingface_hub', 'transformers', 'tokenizers', 'pyarrow'}"
    code = f"import sys, hpopt.training.sources; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
