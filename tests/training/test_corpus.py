import json

import pytest

from hpopt.errors import ConfigError
from hpopt.training.corpus import STDLIB, drop_near_copies, read_documents, source_files, split_documents, split_of

WORDS = [f"word{number}" for number in range(400)]
DOCUMENTS = [f"text {number} " + " ".join(WORDS[number : number + 20]) for number in range(300)]


def test_adding_documents_moves_none_between_splits():
    """With a split by position, a larger corpus would train on yesterday's validation text."""
    before = split_documents(DOCUMENTS[:200])
    after = split_documents(DOCUMENTS)
    for split, documents in before.items():
        assert set(documents) <= set(after[split])


def test_a_twentieth_each_is_held_out_for_validation_and_test():
    """300 documents: 15 expected, within 4 standard deviations (15)."""
    splits = split_documents(DOCUMENTS)
    assert 1 <= len(splits["validation"]) <= 30
    assert 1 <= len(splits["test"]) <= 30
    assert sum(map(len, splits.values())) == 300


@pytest.mark.parametrize(
    ("text", "split"), [("d", "test"), ("hpopt", "validation"), ("u", "validation"), ("q", "train")]
)
def test_split_follows_the_sha256_of_the_text(text, split):
    """Two workers must agree without talking. sha256sum says 18ac, 0a60, 0bfe and 8e35.

    The first 5% end at 0ccc, the next at 1999.
    """
    assert split_of(text) == split


def test_near_copies_are_dropped_and_the_first_is_kept():
    """Copies on both sides of a split are leakage that no split by document can prevent."""
    original = " ".join(WORDS)
    copy = " ".join([*WORDS[:200], "edited", *WORDS[200:]])
    other = " ".join(reversed(WORDS))
    assert drop_near_copies(iter([original, copy, other])) == ([original, other], 1)


def test_documents_that_share_a_licence_are_kept():
    """A common header is not a copy: only half of the text makes one."""
    licence = " ".join(WORDS[:50])
    documents = [licence + " " + " ".join(WORDS[start : start + 100]) for start in (100, 250)]
    assert drop_near_copies(iter(documents)) == (documents, 0)


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
    assert list(read_documents(str(tmp_path))) == ["first", "second"]


def test_json_lines_text_and_parquet_files_hold_a_document_a_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = ["one", "two\nlines"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (tmp_path / "rows.txt").write_text("<|endoftext|>".join(rows))
    parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.txt", "rows.parquet"):
        assert list(read_documents(str(tmp_path / name))) == rows


def test_unknown_dataset_is_refused_with_what_is_known():
    with pytest.raises(ConfigError, match="'pyhton-stdlib' is unknown; known: 'python-stdlib', a folder") as refused:
        source_files("pyhton-stdlib")
    assert refused.value.key == "dataset"
