import json
import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from hpopt.errors import ConfigError, Interrupted
from hpopt.training import data
from hpopt.training.corpus import read_documents, split_documents
from hpopt.training.data import Batches, data_fingerprint, first_windows, overlap, prepare


def folder_of(cache: Path) -> Path:
    """Find the one prepared folder in a cache."""
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def test_tokens_decode_to_the_documents_of_their_split(config_of, tmp_path):
    """The token files are what is trained on: whole documents, in the split their hash says, and nothing else."""
    config = config_of()
    prepared = prepare(config, tmp_path)
    tokenizer = Tokenizer.from_file(str(folder_of(tmp_path) / "tokenizer.json"))
    splits = split_documents(list(read_documents(config.dataset)))
    for split, texts in splits.items():
        decoded = tokenizer.decode(prepared.tokens[split].tolist(), skip_special_tokens=False)
        assert decoded.split("<|endoftext|>")[:-1] == texts
        assert prepared.meta["n_bytes"][split] == prepared.token_bytes_V[prepared.tokens[split]].sum()


def test_no_validation_document_is_in_training(config_of, cache):
    """The document's famous result was memorized: nearly every validation token had been trained on."""
    splits = split_documents(list(read_documents(config_of().dataset)))
    assert not set(splits["train"]) & (set(splits["validation"]) | set(splits["test"]))
    # The made-up language repeats a run of ten words now and then, as any language does.
    assert prepare(config_of(), cache).meta["train_val_overlap"] < 0.01


def test_overlap_finds_a_planted_leak():
    """1000 validation tokens of which 232 in a row are copied from training: 201 of the 969 windows of 32."""
    generator = np.random.default_rng(0)
    train, validation = (generator.integers(4096, size=n).astype(np.uint16) for n in (50_000, 1000))
    assert overlap(train, validation) == 0
    validation[300:532] = train[40_000:40_232]
    assert overlap(train, validation) == pytest.approx(201 / 969)


def test_overlap_finds_a_leak_across_chunks(monkeypatch):
    """Training text is hashed in chunks; a window that lies across two of them counts too."""
    monkeypatch.setattr(data, "_OVERLAP_CHUNK", 100)
    train = np.random.default_rng(0).integers(4096, size=1000).astype(np.uint16)
    assert overlap(train, train[80:120]) == 1


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

def stick(folder, config):
    folder.with_name(f"{folder.name}.tmp").mkdir()
    print("stuck", flush=True)
    time.sleep(600)

data._prepare_into = stick
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


def test_first_windows_cover_the_tokens_once():
    windows = first_windows(np.arange(100, dtype=np.uint16), sequence_length=9, n_tokens=30)
    assert windows.tolist() == [list(range(start, start + 10)) for start in (0, 10, 20)]


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
