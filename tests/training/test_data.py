import json
import multiprocessing
import os
import subprocess
import sys
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
    """Return the only prepared folder in a cache."""
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def file_stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return inode and modification time of each file in a folder."""
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_tokens_decode_to_the_documents_of_their_split(config_of, tmp_path):
    """The token file has complete documents, in the split given by their hash, and nothing else."""
    config = config_of()
    prepared = prepare(config, tmp_path)
    tokenizer = Tokenizer.from_file(str(folder_of(tmp_path) / "tokenizer.json"))
    splits = split_documents(list(read_documents(config)))
    for split, texts in splits.items():
        decoded = tokenizer.decode(prepared.tokens[split].tolist(), skip_special_tokens=False)
        assert decoded.split("<|endoftext|>")[:-1] == texts
        assert prepared.meta["n_bytes"][split] == prepared.token_bytes_V[prepared.tokens[split]].sum()


def test_no_validation_document_is_in_training(config_of, cache):
    """A validation loss on training text rewards memorization."""
    splits = split_documents(list(read_documents(config_of())))
    assert not set(splits["train"]) & (set(splits["validation"]) | set(splits["test"]))
    # The artificial language repeats a few long sequences, as any language does.
    assert prepare(config_of(), cache).meta["train_val_overlap"] < 0.01


def test_fingerprint_follows_the_texts_and_the_vocabulary(config_of, tmp_path, write_documents):
    """A worker with other data must be refused, one with the same data in another folder must not."""
    first = write_documents(tmp_path / "a", range(120))
    same, other = write_documents(tmp_path / "b", range(120)), write_documents(tmp_path / "c", range(121))
    fingerprints = [
        data_fingerprint(config_of(dataset=str(folder), **changes), tmp_path / "cache")
        for folder, changes in ((first, {}), (same, {}), (other, {}), (first, {"vocab_size": 301}))
    ]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


def test_prepared_data_is_opened_without_reading_a_document(config_of, tmp_path, write_documents):
    """Every trial opens the data. The files here become unreadable as text, with unchanged size and time."""
    dataset = write_documents(tmp_path / "documents", range(120))
    config = config_of(dataset=str(dataset))
    fingerprint = prepare(config, tmp_path / "cache").meta["fingerprint"]
    written = file_stamps(folder_of(tmp_path / "cache"))
    for file in dataset.iterdir():
        stamp = file.stat()
        file.write_bytes(b"\xff" * stamp.st_size)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert prepare(config, tmp_path / "cache").meta["fingerprint"] == fingerprint
    assert file_stamps(folder_of(tmp_path / "cache")) == written


@pytest.mark.parametrize(
    "name", ["tokens.bin", "token_bytes.npy", "tokenizer.json", "meta.json", "overlap-documents-*"]
)
@pytest.mark.parametrize("n_left", [0, 10, None])
def test_prepared_data_that_is_incomplete_is_prepared_again(config_of, tmp_path, name, n_left):
    """A crash of the machine, or a copy that was cut off, leaves files short or missing."""
    config = config_of(max_documents=60)
    before = prepare(config, tmp_path)
    (file,) = folder_of(tmp_path).glob(name)
    content = file.read_bytes()
    if n_left is None:
        file.unlink()
    else:
        file.write_bytes(content[:n_left])
    after = prepare(config, tmp_path)
    assert file.read_bytes() == content
    assert after.meta == before.meta


def test_processes_that_prepare_at_once_all_succeed(config_of, tmp_path):
    """All workers of a node start together on an empty cache."""
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        fingerprints = list(pool.map(data_fingerprint, [config_of()] * 3, [tmp_path] * 3, timeout=60))
    assert set(fingerprints) == {json.loads((folder_of(tmp_path) / "meta.json").read_text())["fingerprint"]}


# Acquires the lock, leaves an incomplete folder and never returns.
STUCK = """
import signal, sys
from pathlib import Path
from hpopt.training import data
from hpopt.training.config import PretrainConfig

def prepare_for_ever(folder, config, should_stop):
    folder.with_name(f"{folder.name}.tmp").mkdir()
    print("stuck", flush=True)
    signal.pause()

data.prepare_folder = prepare_for_ever
data.prepare(PretrainConfig(dataset=sys.argv[1], vocab_size=300), Path(sys.argv[2]))
"""


def test_a_killed_preparation_does_not_block_the_next(config_of, tmp_path, stop_after):
    """While it runs, others wait and can be stopped; after a kill -9 its lock is free and its folder is replaced."""
    config = config_of()
    command = [sys.executable, "-c", STUCK, config.dataset, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout.readline() == b"stuck\n"
            should_stop = stop_after(2)
            with pytest.raises(Interrupted, match="stopped while another process prepared the data"):
                prepare(config, tmp_path, should_stop=should_stop)
            assert should_stop.n_left < 0
        finally:
            worker.kill()
    assert prepare(config, tmp_path).meta["n_documents"]["train"] > 0
    assert not list(tmp_path.glob("*.tmp"))


def test_preparation_can_be_stopped(config_of, tmp_path, stop_after):
    """A stream of millions of documents takes minutes, and a worker must exit 10 s after a SIGTERM."""
    with pytest.raises(Interrupted, match="stopped while preparing the data"):
        prepare(config_of(), tmp_path, should_stop=stop_after(20))
    assert prepare(config_of(), tmp_path).meta["n_documents"]["train"] > 0


def test_each_epoch_holds_every_window_once_in_another_order():
    """Sampling with replacement would train on some text twice and on some not at all."""
    batches = Batches(np.arange(43, dtype=np.uint16), sequence_length=3, seed=0)
    first, second = batches.at(0, 10), batches.at(10, 10)
    assert sorted(first.ravel().tolist()) == sorted(second.ravel().tolist()) == list(range(40))
    assert first.tolist() != second.tolist()


def test_a_position_restores_the_batches_after_it():
    """A resumed run must read the text that an uninterrupted one would have read, across epochs too."""
    tokens = np.arange(400, dtype=np.uint16)
    straight = Batches(tokens, 3, seed=0)
    expected = np.concatenate([straight.at(position, 10) for position in range(0, 220, 10)])
    resumed = Batches(tokens, 3, seed=0)
    assert resumed.at(95, 20).tolist() == expected[95:115].tolist()
    assert Batches(tokens, 3, seed=1).at(95, 20).tolist() != expected[95:115].tolist()


@pytest.mark.parametrize(("n_tokens", "starts"), [(30, (0, 10, 20)), (1, (0,)), (0, range(0, 100, 10))])
def test_first_windows_cover_the_tokens_once(n_tokens, starts):
    """0 tokens mean all of them, as with the other limits."""
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
    """Without a window, training would fail with a division by zero."""
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


def test_a_dataset_that_does_not_exist_is_refused_as_in_the_study_file(config_of, tmp_path):
    """The worker may run on a machine without it, and refuses it with the same message."""
    with pytest.raises(ConfigError, match="gone' does not exist; known: 'python-stdlib'"):
        prepare(config_of(dataset=str(tmp_path / "gone")), tmp_path / "cache")


def test_a_dataset_without_documents_is_refused(config_of, tmp_path):
    """Documents may all be too short; an empty file of tokens cannot be mapped either."""
    (tmp_path / "a.txt").write_text("too short for a shingle")
    with pytest.raises(ConfigError, match="has 0 train tokens, below one window of 17"):
        prepare(config_of(dataset=str(tmp_path / "a.txt")), tmp_path / "cache")


def test_overlapping_windows_are_in_one_split_each_and_always_the_same():
    """A tenth each is held out: 50 positions give 40, 5 and 5, independent of the seed of a run."""
    windows = overlapping_windows(n_tokens=60, sequence_length=10)
    assert [len(windows[split]) for split in ("train", "validation", "test")] == [40, 5, 5]
    assert sorted(np.concatenate(list(windows.values())).tolist()) == list(range(50))
    repeated = overlapping_windows(n_tokens=60, sequence_length=10)
    assert all(np.array_equal(windows[split], repeated[split]) for split in windows)


def test_batches_and_evaluation_read_the_windows_at_the_given_starts():
    starts = np.array([5, 0, 7])
    tokens = np.arange(11, dtype=np.uint16)
    batches = Batches(tokens, 3, seed=0, starts=starts)
    assert sorted(batches.at(0, 3).tolist()) == [[0, 1, 2, 3], [5, 6, 7, 8], [7, 8, 9, 10]]
    assert batches.at(7, 1).tolist() == batches.at(6, 2).tolist()[1:]
    assert first_windows(tokens, 3, n_tokens=6, starts=starts).tolist() == [[5, 6, 7, 8], [0, 1, 2, 3]]


def test_overlapping_windows_share_one_memory_map(config_of, cache):
    """The split needs no other files than the clean one, and max_train_tokens limits all of its text."""
    clean = prepare(config_of(), cache)
    data = prepare(config_of(split="overlapping_windows", max_train_tokens=3000), cache)
    assert data.meta["fingerprint"] == clean.meta["fingerprint"]
    assert all(isinstance(data.tokens[split], np.memmap) for split in ("train", "validation", "test"))
    assert all(len(tokens) == 3000 for tokens in data.tokens.values())
    assert max(starts.max() for starts in data.starts.values()) == 3000 - 17


def test_overlapping_windows_are_measured_as_a_leak(config_of, cache):
    """Nearly every validation token is also trained on."""
    overlap = prepare(config_of(split="overlapping_windows"), cache).meta["train_val_overlap"]
    assert overlap > 0.99


def test_overlap_is_that_of_what_the_run_trains_on(config_of, tmp_path):
    """Each passage is in two documents; the first 400 training tokens have hardly any of the held-out passages."""
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
    """The memory map contains the validation text; it counts only where training windows overlap it."""
    windows = {"train": np.arange(0, 2000, 101), "validation": np.arange(3000, 4000, 101), "test": np.array([5000])}
    monkeypatch.setattr(data, "overlapping_windows", lambda *_: windows)
    config = config_of(split="overlapping_windows", sequence_length=100, max_train_tokens=8000)
    assert prepare(config, cache).meta["train_val_overlap"] < 0.01


def test_overlap_is_measured_once(config_of, tmp_path, monkeypatch):
    """A corpus of gigabytes takes minutes, and every trial opens it; another part of it is measured separately."""
    config = config_of(max_train_tokens=1000)
    measured = prepare(config, tmp_path).meta["train_val_overlap"]
    monkeypatch.setattr(data, "measure_overlap", lambda *_, **__: 0.125)
    assert prepare(config, tmp_path).meta["train_val_overlap"] == measured
    assert prepare(config_of(max_train_tokens=999), tmp_path).meta["train_val_overlap"] == 0.125
    for sequence_length in (16, 15):
        changes = {"split": "overlapping_windows", "sequence_length": sequence_length}
        assert prepare(config_of(**changes), tmp_path).meta["train_val_overlap"] == 0.125
    folder = folder_of(tmp_path)
    assert len(list(folder.glob("overlap-*"))) == 4
    assert not list(folder.glob("overlap-*.json.*"))


def test_prepared_data_opens_where_nothing_can_be_written(config_of, tmp_path, monkeypatch):
    """In a cluster the cache may be mounted read-only."""
    prepare(config_of(), tmp_path)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert prepare(config_of(max_train_tokens=1000), tmp_path).meta["train_val_overlap"] >= 0


@pytest.mark.parametrize("changes", [{"max_documents": 100}, {"tokenizer": "bytes"}, {"vocab_size": 301}])
def test_a_config_with_other_data_is_prepared_separately(config_of, tmp_path, changes):
    """The name of a folder in the cache depends on everything that determines its content."""
    first, other, repeated = (data_fingerprint(config_of(**c), tmp_path) for c in ({}, changes, {}))
    assert first == repeated != other


def test_another_text_field_is_prepared_separately(config_of, tmp_path):
    """Two fields of one file are different texts."""
    rows = [
        {field: " ".join(f"{field}{row}x{word}" for word in range(40)) for field in ("title", "body")}
        for row in range(200)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(dataset=str(tmp_path / "rows.jsonl"), text_field="title")
    first = data_fingerprint(config, tmp_path / "cache")
    assert data_fingerprint(replace(config, text_field="body"), tmp_path / "cache") != first
