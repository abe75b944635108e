import logging

import numpy as np
import pytest

from hpopt.training import leakage
from hpopt.training.data import first_windows
from hpopt.training.evaluate import evaluate
from hpopt.training.leakage import LEAK_ABOVE, covered, overlap, warn_of_leak, window_of
from hpopt.training.run import Run
from hpopt.training.trainer import Trainer


def random_tokens(seed, n_tokens):
    return np.random.default_rng(seed).integers(4096, size=n_tokens).astype(np.uint16)


def test_overlap_finds_a_planted_leak():
    """1000 validation tokens of which 232 in a row are copied from training: 201 of the 969 windows of 32."""
    train, validation = random_tokens(0, 50_000), random_tokens(1, 1000)
    assert overlap(train, validation) == 0
    validation[300:532] = train[40_000:40_232]
    assert overlap(train, validation) == pytest.approx(201 / 969)


def test_overlap_finds_a_leak_across_chunks(monkeypatch):
    """Training text is hashed in chunks; a window that lies across two of them counts too, in a part as well."""
    monkeypatch.setattr(leakage, "_CHUNK", 100)
    train = random_tokens(0, 1000)
    assert overlap(train, train[80:120]) == 1
    part = np.ones(1000, dtype=bool)
    assert overlap(train, train[80:120], train_part=part) == 1
    part[111] = False
    # Of the nine windows only the one that begins at 80 ends before 112.
    assert overlap(train, train[80:120], train_part=part) == 0


def test_overlap_of_parts_counts_what_lies_in_them():
    """100 tokens, the first 50 training, the last 60 validation: of 29 windows, none before 50 - 32 = 18 counts."""
    tokens = random_tokens(0, 100)
    train_part, validation_part = np.arange(100) < 50, np.arange(100) >= 10
    # Validation windows begin at 10 to 68; those at 10 to 18 end in training.
    share = overlap(tokens, tokens, train_part=train_part, validation_part=validation_part)
    assert share == pytest.approx(9 / 59)


def test_text_shorter_than_a_window_overlaps_nothing():
    tokens = random_tokens(0, 31)
    assert overlap(tokens, tokens) == 0
    assert overlap(tokens, random_tokens(1, 100)) == 0
    assert overlap(tokens, tokens, train_part=np.ones(31, dtype=bool), validation_part=np.ones(31, dtype=bool)) == 0


@pytest.mark.parametrize(
    ("n_tokens", "n_bytes", "window"), [(100, 250, 32), (100, 200, 40), (100, 100, 80), (0, 0, 32)]
)
def test_a_window_is_32_tokens_and_80_bytes(n_tokens, n_bytes, window):
    """32 bytes of source code are a line that anybody writes: a clean split of bytes overlapped by 7%."""
    assert window_of(n_tokens, n_bytes) == window


def test_a_longer_window_finds_less():
    """40 tokens are copied: nine windows of 32, and one of 40, of the 69 and 61 that there are."""
    train, validation = random_tokens(0, 1000), random_tokens(1, 100)
    validation[30:70] = train[500:540]
    assert overlap(train, validation) == pytest.approx(9 / 69)
    assert overlap(train, validation, 40) == pytest.approx(1 / 61)


def test_covered_marks_what_lies_in_any_window():
    assert covered(10, np.array([7, 1, 2]), 3).nonzero()[0].tolist() == [1, 2, 3, 4, 7, 8, 9]


def test_a_leak_is_said_plainly(caplog):
    """A loss that looks like a success must not stand there without a word."""
    with caplog.at_level(logging.WARNING):
        warn_of_leak(LEAK_ABOVE)
        assert not caplog.records
        warn_of_leak(0.934)
    assert caplog.messages == [
        "leak: 93% of the validation text is trained on too; the validation loss then rewards memorizing it"
    ]


def test_training_and_evaluation_read_the_overlapping_windows(config_of, cache, tmp_path):
    """With the usual windows instead, the split would be reproduced in name alone."""
    config = config_of(split="overlapping_windows", eval_tokens=64)
    trainer = Trainer(config, Run(folder=tmp_path, cache=cache))
    data = trainer.data
    assert trainer.batches.n_windows == len(data.starts["train"])
    windows = first_windows(data.tokens["validation"], 16, 64, data.starts["validation"])
    assert trainer.evaluate_split("validation") == evaluate(trainer.model, windows, data.token_bytes_V, batch_size=4)


def test_a_run_on_overlapping_windows_reports_and_warns_once(train, caplog):
    """The document's trap, planted: the figure is on record with every evaluation, and the warning in the log."""
    with caplog.at_level(logging.WARNING):
        evaluations = train(split="overlapping_windows")
    assert all(evaluation.metrics["train_val_overlap"] > 0.99 for evaluation in evaluations)
    assert [message.partition(":")[0] for message in caplog.messages] == ["leak"]
    caplog.clear()
    assert all(evaluation.metrics["train_val_overlap"] < LEAK_ABOVE for evaluation in train())
    assert not caplog.records
