import logging

import numpy as np
import pytest

from hpopt.training import leakage
from hpopt.training.data import first_windows
from hpopt.training.evaluate import evaluate
from hpopt.training.leakage import LEAK_THRESHOLD, choose_window, mark_windows, measure_overlap, warn_of_leak
from hpopt.training.run import Run
from hpopt.training.trainer import Trainer


def random_tokens(seed, n_tokens):
    return np.random.default_rng(seed).integers(4096, size=n_tokens).astype(np.uint16)


def test_overlap_includes_copied_text():
    """1000 validation tokens of which 232 in a row are copied from training: 201 of the 969 windows of 32."""
    train, validation = random_tokens(0, 50_000), random_tokens(1, 1000)
    assert measure_overlap(train, validation) == 0
    validation[300:532] = train[40_000:40_232]
    assert measure_overlap(train, validation) == pytest.approx(201 / 969)


def test_overlap_includes_windows_across_chunks(monkeypatch):
    """Training text is hashed in chunks; a window across two of them counts too, also in a part of the text."""
    monkeypatch.setattr(leakage, "_CHUNK", 100)
    train = random_tokens(0, 1000)
    assert measure_overlap(train, train[80:120]) == 1
    part = np.ones(1000, dtype=bool)
    assert measure_overlap(train, train[80:120], train_part=part) == 1
    part[111] = False
    # None of the nine windows that are compared avoids token 111: they begin at 80 to 88 and have 32 tokens.
    assert measure_overlap(train, train[80:120], train_part=part) == 0


def test_overlap_of_parts_counts_the_windows_inside_them():
    """100 tokens, the first 50 training, the last 60 validation: of 29 windows, none before 50 - 32 = 18 counts."""
    tokens = random_tokens(0, 100)
    train_part, validation_part = np.arange(100) < 50, np.arange(100) >= 10
    # Validation windows begin at 10 to 68; those at 10 to 18 end in training.
    share = measure_overlap(tokens, tokens, train_part=train_part, validation_part=validation_part)
    assert share == pytest.approx(9 / 59)


def test_text_shorter_than_a_window_has_no_overlap():
    tokens = random_tokens(0, 31)
    assert measure_overlap(tokens, tokens) == 0
    assert measure_overlap(tokens, random_tokens(1, 100)) == 0
    part = np.ones(31, dtype=bool)
    assert measure_overlap(tokens, tokens, train_part=part, validation_part=part) == 0


@pytest.mark.parametrize(
    ("n_tokens", "n_bytes", "window"), [(100, 250, 32), (100, 200, 40), (100, 100, 80), (0, 0, 32)]
)
def test_a_window_is_32_tokens_and_80_bytes(n_tokens, n_bytes, window):
    """32 bytes of source code repeat without being copied: a clean split of bytes overlaps by 7% with them."""
    assert choose_window(n_tokens, n_bytes) == window


def test_a_longer_window_has_less_overlap():
    """40 tokens are copied: nine windows of 32, and one of 40, of the 69 and 61 that there are."""
    train, validation = random_tokens(0, 1000), random_tokens(1, 100)
    validation[30:70] = train[500:540]
    assert measure_overlap(train, validation) == pytest.approx(9 / 69)
    assert measure_overlap(train, validation, 40) == pytest.approx(1 / 61)


def test_marked_tokens_are_those_in_any_window():
    assert mark_windows(10, np.array([7, 1, 2]), 3).nonzero()[0].tolist() == [1, 2, 3, 4, 7, 8, 9]


def test_overlap_above_the_threshold_is_a_warning(caplog):
    """A loss that is low because of a leak looks like a success."""
    with caplog.at_level(logging.WARNING):
        warn_of_leak(LEAK_THRESHOLD)
        assert not caplog.records
        warn_of_leak(0.934)
    assert caplog.messages == [
        "leak: 93% of the validation text is also training text; the validation loss rewards memorization"
    ]


def test_training_and_evaluation_read_the_overlapping_windows(config_of, cache, tmp_path):
    """Reading the usual windows instead would not reproduce the leaky split."""
    config = config_of(split="overlapping_windows", eval_tokens=64)
    trainer = Trainer(config, Run(folder=tmp_path, cache=cache))
    data = trainer.data
    assert trainer.batches.n_windows == len(data.starts["train"])
    windows = first_windows(data.tokens["validation"], 16, 64, data.starts["validation"])
    assert trainer.evaluate_split("validation") == evaluate(trainer.model, windows, data.token_bytes_V, batch_size=4)


def test_a_run_on_overlapping_windows_reports_the_overlap_and_warns_once(train, caplog):
    """Every evaluation has the overlap, and the log one warning."""
    with caplog.at_level(logging.WARNING):
        evaluations = train(split="overlapping_windows")
    assert all(evaluation.metrics["train_val_overlap"] > 0.99 for evaluation in evaluations)
    assert [message.partition(":")[0] for message in caplog.messages] == ["leak"]
    caplog.clear()
    assert all(evaluation.metrics["train_val_overlap"] < LEAK_THRESHOLD for evaluation in train())
    assert not caplog.records
