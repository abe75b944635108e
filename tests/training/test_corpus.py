import pytest

from hpopt.training.corpus import assign_split, drop_near_duplicates, limit_to_tokens, split_documents

WORDS = [f"word{number}" for number in range(400)]
DOCUMENTS = [f"text {number} " + " ".join(WORDS[number : number + 20]) for number in range(300)]


def test_adding_documents_moves_none_between_splits():
    """With a split by position, a larger corpus would train on the validation text of a smaller one."""
    before = split_documents(DOCUMENTS[:200])
    after = split_documents(DOCUMENTS)
    for split, documents in before.items():
        assert set(documents) <= set(after[split])


def test_validation_and_test_are_a_twentieth_each():
    """300 documents: 15 expected, within 4 standard deviations (15)."""
    splits = split_documents(DOCUMENTS)
    assert 1 <= len(splits["validation"]) <= 30
    assert 1 <= len(splits["test"]) <= 30
    assert sum(map(len, splits.values())) == 300


@pytest.mark.parametrize(
    ("text", "split"), [("d", "test"), ("hpopt", "validation"), ("u", "validation"), ("q", "train")]
)
def test_split_follows_the_sha256_of_the_text(text, split):
    """The splits of two workers must agree. sha256sum prints 18ac, 0a60, 0bfe and 8e35.

    The first 5% end at 0ccc, the next at 1999.
    """
    assert assign_split(text) == split


def test_near_duplicates_are_dropped_and_the_first_is_kept():
    """Duplicates in two splits are a leak that a split by document cannot prevent."""
    original = " ".join(WORDS)
    copy = " ".join([*WORDS[:200], "edited", *WORDS[200:]])
    other = " ".join(reversed(WORDS))
    assert drop_near_duplicates(iter([original, copy, other])) == ([original, other], 1)


def test_documents_that_share_a_licence_are_kept():
    """A common header does not make a near-duplicate: more than half of the text does."""
    licence = " ".join(WORDS[:50])
    documents = [licence + " " + " ".join(WORDS[start : start + 100]) for start in (100, 250)]
    assert drop_near_duplicates(iter(documents)) == (documents, 0)


def test_a_stream_is_read_until_the_training_documents_have_enough_text():
    """Eight bytes per token, of the training documents alone: held-out text would leave a run short of tokens."""
    read = list(limit_to_tokens(iter(DOCUMENTS), n_tokens=3000))
    n_bytes = [len(text) for text in read if assign_split(text) == "train"]
    assert sum(n_bytes[:-1]) < 24_000 <= sum(n_bytes)
    assert read == DOCUMENTS[: len(read)]
    assert assign_split(read[-1]) == "train"
