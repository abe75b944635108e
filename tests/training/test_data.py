import json
import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from hpopt.errors import ConfigError, Interrupted
from hpopt.training import data
from hpopt.training.corpus import split_documents
from hpopt.training.data import Batches, data_fingerprint, first_windows, overlapping_windows, prepare
from hpopt.training.sources import read_documents


def folder_of(cache: Path) -> Path:
    """Find the one prepared folder in a cache."""
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def test_tokens_decode_to_the_documents_of_their_split(config_of, tmp_path):
    """The token files are what is trained on: whole documents, in the split their hash says, and nothing else."""
    config = config_of()
    prepared = prepare(config, tmp_path)
    tokenizer = Tokenizer.from_file(str(folder_of(tmp_path) / "tokenizer.json"))
    splits = split_documents(list(read_documents(config)))
    for split, texts in splits.items():
        decoded = tokenizer.decode(prepared.tokens[split].tolist(), skip_special_tokens=False)
        assert decoded.split("<|endoftext|>")[:-1] == texts
        assert prepared.meta["n_bytes"][split] == prepared.token_bytes_V[prepared.tokens[split]].sum()


def test_no_validation_document_is_in_training(config_of, cache):
    """The document's famous result was memorized: nearly every validation token had been trained on."""
    splits = split_documents(list(read_documents(config_of())))
    assert not set(splits["train"]) & (set(splits["validation"]) | set(splits["test"]))
    # The made-up language repeats a run of ten words now and then, as any language does.
    assert prepare(config_of(), cache).meta["train_val_overlap"] < 0.01


def test_fingerprint_follows_the_texts_and_the_vocabulary(config_of, tmp_path, write_documents):
    """A worker with other data must be refused, one with the same data in another place must not."""
    first = write_documents(tmp_path / "a", range(120))
    same, other = write_documents(tmp_path / "b", range(120)), write_documents(tmp_path / "c", range(121))
    print_of = [
        data_fingerprint(config_of(dataset=str(folder), **changes), tmp_path / "cache")
        for folder, changes in ((first, {}), (same, {}), (other, {}), (first, {"vocab_size": 301}))
    ]
    assert print_of[0] == print_of[1]
    assert len(set(print_of)) == 3


def test_prepared_data_is_not_prepared_again(config_of, cache):
    config = config_of()
    prepare(config, cache)
    started = time.monotonic()
    prepare(config, cache)
    assert time.monotonic() - started < 0.2


def test_processes_that_prepare_at_once_all_succeed(config_of, tmp_path):
    """All workers of a node start together on an empty cache."""
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        fingerprints = list(pool.map(data_fingerprint, [config_of()] * 3, [tmp_path] * 3, timeout=60))
    assert set(fingerprints) == {json.loads((folder_of(tmp_path) / "meta.json").read_text())["fingerprint"]}


# A process that takes the lock, leaves a half-written folder and goes on for ever.
STUCK = """
import sys, time
from pathlib import Path
from hpopt.training import data
from hpopt.training.config import PretrainConfig

def stick(folder, config, should_stop):
    folder.with_name(f"{folder.name}.tmp").mkdir()
    print("stuck", flush=True)
    time.sleep(600)

data.prepare_into = stick
data.prepare(PretrainConfig(dataset=sys.argv[1], vocab_size=300), Path(sys.argv[2]))
"""


def test_a_killed_preparation_leaves_nothing_in_the_way(config_of, tmp_path):
    """A kill -9 in the middle: the lock goes with the process, and the half-written folder is replaced."""
    config = config_of()
    command = [sys.executable, "-c", STUCK, config.dataset, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout.readline() == b"stuck\n"
            with pytest.raises(Interrupted):
                prepare(config, tmp_path, should_stop=lambda: True)
        finally:
            worker.kill()
    assert prepare(config, tmp_path).meta["n_documents"]["train"] > 0
    assert not list(tmp_path.glob("*.tmp"))


def test_preparation_answers_a_request_to_stop(config_of, tmp_path):
    """A stream of millions of documents takes minutes, and SIGTERM leaves ten seconds."""
    asked = iter([False] * 20)
    with pytest.raises(Interrupted, match="stopped while preparing the data"):
        prepare(config_of(), tmp_path, should_stop=lambda: next(asked, True))
    assert prepare(config_of(), tmp_path).meta["n_documents"]["train"] > 0


def test_each_epoch_holds_every_window_once_in_another_order():
    """Sampling with replacement would train on some text twice and on some never."""
    batches = Batches(np.arange(43, dtype=np.uint16), sequence_length=3, seed=0)
    first, second = batches.at(0, 10), batches.at(10, 10)
    assert sorted(first.ravel().tolist()) == sorted(second.ravel().tolist()) == list(range(40))
    assert first.tolist() != second.tolist()


def test_a_position_restores_the_batches_after_it():
    """A resumed run must go on with the text that an uninterrupted one would have seen, across epochs too."""
    tokens = np.arange(400, dtype=np.uint16)
    straight = Batches(tokens, 3, seed=0)
    expected = np.concatenate([straight.at(position, 10) for position in range(0, 220, 10)])
    resumed = Batches(tokens, 3, seed=0)
    assert resumed.at(95, 20).tolist() == expected[95:115].tolist()
    assert Batches(tokens, 3, seed=1).at(95, 20).tolist() != expected[95:115].tolist()


@pytest.mark.parametrize(("n_tokens", "starts"), [(30, (0, 10, 20)), (1, (0,)), (0, range(0, 100, 10))])
def test_first_windows_cover_the_tokens_once(n_tokens, starts):
    """No tokens, as no other limit, means all of them."""
    windows = first_windows(np.arange(100, dtype=np.uint16), sequence_length=9, n_tokens=n_tokens)
    assert windows.tolist() == [list(range(start, start + 10)) for start in starts]


def test_max_train_tokens_limits_what_is_trained_on(config_of, cache):
    prepared = prepare(config_of(max_train_tokens=500), cache)
    assert len(prepared.tokens["train"]) == 500
    assert len(prepared.tokens["validation"]) > 500


@pytest.mark.parametrize(
    ("changes", "key"), [({"max_train_tokens": 10}, "max_train_tokens"), ({"sequence_length": 10**6}, "dataset")]
)
def test_less_data_than_one_window_is_refused(config_of, cache, changes, key):
    """Zero windows would end in a division by zero, hours later on another machine."""
    with pytest.raises(ConfigError) as refused:
        prepare(config_of(**changes), cache)
    assert refused.value.key == key


def test_less_data_than_ten_overlapping_windows_is_refused(config_of, cache):
    """17 tokens are one window, and 26 are ten: one each for validation and test."""
    changes = {"split": "overlapping_windows"}
    with pytest.raises(ConfigError, match="max_train_tokens: 25 is below ten overlapping windows of 17 tokens"):
        prepare(config_of(**changes, max_train_tokens=25), cache)
    data = prepare(config_of(**changes, max_train_tokens=26), cache)
    assert {split: len(starts) for split, starts in data.starts.items()} == {"train": 8, "validation": 1, "test": 1}


def test_a_dataset_that_is_gone_is_refused_as_in_the_study_file(config_of, tmp_path):
    """The worker may run on a machine that does not have it, and says so in the same words."""
    with pytest.raises(ConfigError, match="gone' is no file or folder here; known: 'python-stdlib'"):
        prepare(config_of(dataset=str(tmp_path / "gone")), tmp_path / "cache")


def test_no_documents_at_all_are_refused(config_of, tmp_path):
    """All of them empty or copies, say; a file of no bytes cannot be mapped either."""
    (tmp_path / "a.txt").write_text("too short for a shingle")
    with pytest.raises(ConfigError, match="has 0 train tokens, below one window of 17"):
        prepare(config_of(dataset=str(tmp_path / "a.txt")), tmp_path / "cache")


def test_overlapping_windows_are_dealt_out_once_each_and_always_alike():
    """A tenth each is held out, so that 50 positions give 40, 5 and 5; no seed of a run moves one."""
    dealt = overlapping_windows(n_tokens=60, sequence_length=10)
    assert [len(dealt[split]) for split in ("train", "validation", "test")] == [40, 5, 5]
    assert sorted(np.concatenate(list(dealt.values())).tolist()) == list(range(50))
    again = overlapping_windows(n_tokens=60, sequence_length=10)
    assert all(np.array_equal(dealt[split], again[split]) for split in dealt)


def test_batches_and_evaluation_read_the_windows_that_start_where_they_are_told():
    starts = np.array([5, 0, 7])
    tokens = np.arange(11, dtype=np.uint16)
    batches = Batches(tokens, 3, seed=0, starts=starts)
    assert sorted(batches.at(0, 3).tolist()) == [[0, 1, 2, 3], [5, 6, 7, 8], [7, 8, 9, 10]]
    assert batches.at(7, 1).tolist() == batches.at(6, 2).tolist()[1:]
    assert first_windows(tokens, 3, n_tokens=6, starts=starts).tolist() == [[5, 6, 7, 8], [0, 1, 2, 3]]


def test_overlapping_windows_share_one_stream_that_nobody_copies(config_of, cache):
    """A split of this kind needs no other files, and max_train_tokens bounds all of it, as in the document."""
    clean = prepare(config_of(), cache)
    data = prepare(config_of(split="overlapping_windows", max_train_tokens=3000), cache)
    assert data.meta["fingerprint"] == clean.meta["fingerprint"]
    assert all(isinstance(data.tokens[split], np.memmap) for split in ("train", "validation", "test"))
    assert all(len(tokens) == 3000 for tokens in data.tokens.values())
    assert max(starts.max() for starts in data.starts.values()) == 3000 - 17


def test_overlapping_windows_are_found_to_leak(config_of, cache):
    """The document's famous result: nearly every validation token was trained on, and no figure said so."""
    overlap = prepare(config_of(split="overlapping_windows"), cache).meta["train_val_overlap"]
    assert overlap > 0.99


def test_overlap_is_that_of_what_the_run_trains_on(config_of, tmp_path):
    """Each passage is in two documents; a run of 400 tokens has hardly any of those that are held out."""
    for number in range(200):
        passage = " ".join(f"shared{number // 2}x{word}" for word in range(60))
        own = " ".join(f"own{number}x{word}" for word in range(100))
        (tmp_path / f"{number}.txt").write_text(f"{passage} {own}")
    overlaps = [
        prepare(config_of(dataset=str(tmp_path), **changes), tmp_path / "cache").meta["train_val_overlap"]
        for changes in ({}, {"max_train_tokens": 400}, {"max_train_tokens": 10**9}, {})
    ]
    assert overlaps[0] == overlaps[2] == overlaps[3] > 0.2
    assert overlaps[1] < 0.05


def test_overlap_of_windows_is_that_of_the_windows_trained_on(config_of, cache, monkeypatch):
    """The stream holds the validation text by its nature; what counts is whether training windows reach into it."""
    windows = {"train": np.arange(0, 2000, 101), "validation": np.arange(3000, 4000, 101), "test": np.array([5000])}
    monkeypatch.setattr(data, "overlapping_windows", lambda *_: windows)
    config = config_of(split="overlapping_windows", sequence_length=100, max_train_tokens=8000)
    assert prepare(config, cache).meta["train_val_overlap"] < 0.01


def test_overlap_is_measured_once(config_of, tmp_path, monkeypatch):
    """A corpus of gigabytes takes minutes, and every trial opens it; another part of it is measured for itself."""
    config = config_of(max_train_tokens=1000)
    measured = prepare(config, tmp_path).meta["train_val_overlap"]
    monkeypatch.setattr(data, "overlap", lambda *_, **__: 0.125)
    assert prepare(config, tmp_path).meta["train_val_overlap"] == measured
    assert prepare(config_of(max_train_tokens=999), tmp_path).meta["train_val_overlap"] == 0.125
    for sequence_length in (16, 15):
        changes = {"split": "overlapping_windows", "sequence_length": sequence_length}
        assert prepare(config_of(**changes), tmp_path).meta["train_val_overlap"] == 0.125
    folder = folder_of(tmp_path)
    assert len(list(folder.glob("overlap-*"))) == 4
    assert not list(folder.glob("overlap-*.json.*"))


def test_prepared_data_opens_where_nothing_can_be_written(config_of, tmp_path, monkeypatch):
    """A cache that is mounted read-only is a usual one in a cluster."""
    prepare(config_of(), tmp_path)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert prepare(config_of(max_train_tokens=1000), tmp_path).meta["train_val_overlap"] >= 0


@pytest.mark.parametrize("changes", [{"max_documents": 100}, {"tokenizer": "bytes"}, {"vocab_size": 301}])
def test_what_is_prepared_otherwise_is_prepared_for_itself(config_of, tmp_path, changes):
    """The name of a folder in the cache says all that decides what is in it."""
    prints = [data_fingerprint(config_of(**each), tmp_path) for each in ({}, changes, {})]
    assert prints[0] == prints[2] != prints[1]


def test_text_field_is_part_of_what_is_prepared(config_of, tmp_path):
    """Two fields of one file are two texts."""
    rows = [
        {field: " ".join(f"{field}{row}x{word}" for word in range(40)) for field in ("title", "body")}
        for row in range(200)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(dataset=str(tmp_path / "rows.jsonl"), text_field="title")
    first = data_fingerprint(config, tmp_path / "cache")
    assert data_fingerprint(replace(config, text_field="body"), tmp_path / "cache") != first
