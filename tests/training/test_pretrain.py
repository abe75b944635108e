import io
import json
import logging
import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict, fields, replace
from itertools import product

import pytest
import torch

from hpopt.errors import Diverged, Interrupted
from hpopt.hyperparameters import HYPERPARAMETERS
from hpopt.training.config import PRETRAIN_METRICS, PretrainConfig
from hpopt.training.hardware import peak_memory_gib
from hpopt.training.pretrain import main, pretrain
from hpopt.training.run import Run
from hpopt.training.trainer import Trainer


def losses(evaluations):
    """Return what must be equal bit for bit in two runs of the same config."""
    return [
        (e.step, e.tokens, e.metrics["val_loss"], e.metrics["train_loss"], e.metrics["gradient_norm"])
        for e in evaluations
    ]


def test_training_learns(train):
    """After 100 steps the loss must be far below that of a uniform guess (ln 300 = 5.70)."""
    last = train(max_steps=100, eval_steps=100)[-1]
    assert last.metrics["val_loss"] < 4.0


def test_evaluations_come_every_eval_steps_and_after_the_last(train):
    """A pruner relies on the first, the value of a trial on the second."""
    evaluations = train(max_steps=5, eval_steps=2)
    assert [e.step for e in evaluations] == [2, 4, 5]
    assert [e.tokens for e in evaluations] == [2 * 64, 4 * 64, 5 * 64]
    assert all(e.n_steps == 5 for e in evaluations)
    assert all(set(e.metrics) == set(PRETRAIN_METRICS) for e in evaluations)
    assert all(math.isfinite(value) for e in evaluations for value in e.metrics.values())


def test_reported_learning_rate_is_that_of_the_last_step(train):
    """Cosine over 4 steps without warmup: half of the peak at the third step."""
    rates = [e.metrics["learning_rate"] for e in train(max_steps=4, eval_steps=1, warmup_ratio=0.0)]
    assert rates == pytest.approx([0.02, 0.02 * 0.853553, 0.01, 0.02 * 0.146447], rel=1e-5)


def test_same_seed_gives_the_same_run_and_another_seed_another(train):
    """A study estimates the noise between seeds, so there must be none within one."""
    first, again, other = (losses(train(dropout=0.1, seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert all(a[2] != b[2] for a, b in zip(first, other, strict=True))


@pytest.fixture(scope="module")
def uninterrupted(config_of, cache, tmp_path_factory):
    """Return the configs of both precisions with their evaluations in a run without interruption."""
    configs = {
        precision: config_of(dropout=0.1, gradient_accumulation_steps=2, max_steps=5, precision=precision)
        for precision in ("fp32", "bf16")
    }
    runs = {precision: Run(folder=tmp_path_factory.mktemp(precision), cache=cache) for precision in configs}
    return {precision: (config, losses(pretrain(config, runs[precision]))) for precision, config in configs.items()}


@pytest.mark.parametrize("stop", list(product([0, 3, 4, 6, 8, 11], ["fp32", "bf16"])))
def test_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    uninterrupted, cache, tmp_path, stop_after, stop
):
    """Stopped before the first step, within an accumulation, and before, in and after an evaluation."""
    n_calls, precision = stop
    config, expected = uninterrupted[precision]
    run = Run(folder=tmp_path / "stopped", cache=cache, should_stop=stop_after(n_calls))
    evaluations = []
    with pytest.raises(Interrupted):
        evaluations.extend(pretrain(config, run))
    evaluations.extend(pretrain(config, replace(run, should_stop=lambda: False)))
    assert losses({e.step: e for e in evaluations}.values()) == expected


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(config_of, cache, tmp_path, caplog):
    """A disk may be full for a moment only; the training in the meantime is kept."""
    config, run = config_of(), Run(folder=tmp_path / "run", cache=cache)
    run.folder.mkdir()
    full = run.folder / "checkpoint.pt.tmp"
    full.symlink_to("/dev/full")
    evaluations = []
    for evaluation in pretrain(config, run):
        evaluations.append(evaluation)
        assert run.checkpoint.exists() == (len(evaluations) > 1)
    assert "checkpoint of step 2 not written" in caplog.text
    assert losses(evaluations) == losses(pretrain(config, Run(folder=tmp_path / "other", cache=cache)))


def test_checkpoint_is_written_before_each_yield(config_of, cache, tmp_path):
    """A pruned or killed run ends at a yield, and must leave the checkpoint of that evaluation."""
    config, run = config_of(), Run(folder=tmp_path / "run", cache=cache)
    for evaluation in pretrain(config, run):
        trainer = Trainer(config, run)
        assert trainer.restore()
        assert trainer.progress.step == evaluation.step


def test_evaluation_at_the_checkpoint_is_repeated_on_resumption(config_of, cache, tmp_path):
    """A kill between checkpoint and record would otherwise lose it, even the last one of the run."""
    config, run = config_of(), Run(folder=tmp_path / "run", cache=cache)
    evaluations = list(pretrain(config, run))
    assert list(pretrain(config, run)) == evaluations[-1:]


def test_seconds_and_tokens_continue_across_an_interruption(config_of, cache, tmp_path, stop_after):
    """All attempts at a trial count towards its seconds and tokens."""
    run = Run(folder=tmp_path / "run", cache=cache, should_stop=stop_after(3))
    with pytest.raises(Interrupted):
        list(pretrain(config_of(), run))
    first = Trainer(config_of(), run)
    first.restore()
    last = list(pretrain(config_of(), replace(run, should_stop=lambda: False)))[-1]
    assert last.tokens == 6 * 64
    assert last.seconds > first.progress.seconds > 0


def test_damaged_checkpoint_is_ignored_and_training_starts_again(train, config_of, cache, tmp_path, caplog):
    run = Run(folder=tmp_path / "run", cache=cache)
    list(pretrain(config_of(), run))
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-2000])
    with caplog.at_level(logging.WARNING):
        again = list(pretrain(config_of(), run))
    assert "training starts from the beginning" in caplog.text
    assert losses(again) == losses(train())


def test_checkpoint_of_other_hyperparameters_is_ignored(config_of, cache, tmp_path, caplog):
    """A folder that is used twice by mistake must not mix the training of two trials."""
    run = Run(folder=tmp_path / "run", cache=cache)
    list(pretrain(config_of(), run))
    with caplog.at_level(logging.WARNING):
        evaluations = list(pretrain(config_of(learning_rate=0.03), run))
    assert "differs in learning_rate" in caplog.text
    assert len(evaluations) == 3


CHANGES = {
    "learning_rate": 0.03,
    "adamw_learning_rate": 0.02,
    "momentum": 0.8,
    "ns_steps": 3,
    "weight_decay": 0.5,
    "adam_beta1": 0.8,
    "adam_beta2": 0.8,
    "max_grad_norm": 0.1,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.5,
    "min_lr_ratio": 0.5,
    "dropout": 0.2,
    "load_balancing_weight": 1.0,
    "optimizer": "adamw",
    "batch_size": 5,
    "gradient_accumulation_steps": 2,
    "sequence_length": 12,
    "max_documents": 100,
    "split": "overlapping_windows",
    "tokenizer": "bytes",
    "max_train_tokens": 200,
    "vocab_size": 310,
    "d_model": 36,
    "n_layers": 1,
    "n_heads": 4,
    "d_ff": 60,
    "n_experts": 3,
    "top_k": 1,
    "max_steps": 7,
    "max_tokens": 7 * 4 * 16,
    "precision": "bf16",
    "seed": 1,
}


def test_every_field_that_training_takes_is_among_the_changes():
    """A new hyperparameter needs a change here; those left out choose the text and when it is evaluated."""
    text = {"dataset", "dataset_config", "text_field", "eval_steps", "eval_tokens"}
    assert {field.name for field in fields(PretrainConfig)} - CHANGES.keys() == {*text, "compile"}


@pytest.fixture(scope="module")
def baseline(config_of, cache, tmp_path_factory):
    return losses(pretrain(config_of(), Run(folder=tmp_path_factory.mktemp("baseline"), cache=cache)))


@pytest.mark.parametrize("name", CHANGES)
def test_hyperparameter_reaches_the_training(train, baseline, name):
    """A value that does not reach the trainer makes every comparison of it a tie."""
    assert losses(train(**{name: CHANGES[name]})) != baseline


@pytest.mark.parametrize("name", ["learning_rate", "adamw_learning_rate", "weight_decay", "adam_beta1"])
def test_hyperparameter_reaches_adamw_alone(train, name):
    """With optimizer = "adamw", AdamW trains the matrices at learning_rate."""
    assert losses(train(optimizer="adamw", **{name: CHANGES[name]})) != losses(train(optimizer="adamw"))


@pytest.mark.parametrize("name", [entry.name for entry in HYPERPARAMETERS.values() if entry.unused_if])
def test_hyperparameter_that_is_declared_unused_has_no_effect(train, name):
    """A search over it is refused when the study file is read, so `unused_if` must be true."""
    switch, off = HYPERPARAMETERS[name].unused_if
    switches = {switch: off, **({"top_k": 1} if switch == "n_experts" else {})}
    assert losses(train(**switches, **{name: CHANGES[name]})) == losses(train(**switches))


def test_max_steps_has_no_effect_with_max_tokens(train):
    """A search over it is refused when the study file is read, so `unused_unless` must be true."""
    tokens = {"max_tokens": CHANGES["max_tokens"]}
    assert losses(train(**tokens, max_steps=CHANGES["max_steps"])) == losses(train(**tokens))


def test_run_ends_with_the_last_whole_step_that_max_tokens_allows(train):
    """300 tokens are 4 steps of 4 x 16, and a remainder."""
    last = train(max_tokens=300)[-1]
    assert (last.step, last.n_steps, last.tokens) == (4, 4, 256)


def test_run_that_explodes_raises_diverged(train):
    """A learning rate a thousand times too high is a result of the study, not a crash."""
    with pytest.raises(Diverged, match=r"training loss is .* over the 10 steps to 10; it started at 5\.7"):
        train(learning_rate=1e4, adamw_learning_rate=1e2, max_steps=40, warmup_ratio=0.0)


def test_a_confirmation_run_ends_with_the_loss_on_text_that_no_other_run_reads(config_of, cache, tmp_path):
    """The test loss is near the validation loss, but not of the same text."""
    config = config_of(max_steps=40, eval_steps=20)
    run = Run(folder=tmp_path, cache=cache, evaluates_test=True)
    first, last = (evaluation.metrics for evaluation in pretrain(config, run))
    assert "test_loss" not in first
    assert last["test_loss"] != last["val_loss"]
    assert last["test_loss"] == pytest.approx(last["val_loss"], rel=0.1)


@pytest.fixture
def _signal_handlers():
    """Restore the signal handlers that `main` replaces."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def command_line(config, cache, folder, **changes):
    """Return the arguments of a config, in the form in which `hpopt best --format args` prints them."""
    values = {**asdict(config), "cache": cache, "folder": folder, "device": "cpu", **changes}
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    return [word for name, text in texts.items() for word in (f"--{name}", text)]


@pytest.mark.usefixtures("_signal_handlers")
def test_command_line_sets_hyperparameters_and_prints_evaluations_as_json(config_of, cache, tmp_path, capsys):
    """The best parameters of a study must be usable as `hpopt best` prints them."""
    config = config_of(max_steps=4, eval_steps=2, learning_rate=0.03, warmup_ratio=0)
    assert main(command_line(config, cache, tmp_path)) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert 0 < lines[0]["learning_rate"] < 0.03
    assert lines[-1]["tokens"] == 4 * 4 * 16


@pytest.mark.usefixtures("_signal_handlers")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a number"),
        ({"compile": "yes"}, "compile: 'yes' is not true or false"),
        ({"n_heads": 3}, "d_model: 32 is not divisible by n_heads 3"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(config_of, tmp_path, capsys, changes, message):
    assert main(command_line(config_of(), tmp_path, tmp_path, **changes)) == 2
    assert capsys.readouterr().err == f"hpopt: {message}\n"


@pytest.fixture(scope="module")
def terminated(config_of, cache, tmp_path_factory):
    """Start a training process from a larger one, and send it a SIGTERM after its first evaluation."""
    arguments = command_line(config_of(max_steps=2000, eval_steps=1), cache, tmp_path_factory.mktemp("terminated"))
    ballast = torch.ones(400 * 2**18)
    parent_peak_gib = peak_memory_gib(ballast.device)
    process = subprocess.Popen(
        [sys.executable, "-m", "hpopt.training.pretrain", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    evaluations = [json.loads(line) for line in [first, *out.splitlines()]]
    return process.returncode, evaluations, err, arguments, parent_peak_gib


class TerminateAtFirstWrite(io.StringIO):
    """A standard output that sends this process a SIGTERM when something is first written to it."""

    def write(self, text):
        if not self.tell():
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


@pytest.mark.usefixtures("_signal_handlers")
def test_sigterm_writes_a_checkpoint_and_the_same_command_resumes(terminated, monkeypatch):
    """A preempted training loses nothing, with or without a study."""
    returncode, evaluations, err, arguments, _ = terminated
    assert returncode == 75
    assert err.splitlines()[-1].endswith("; checkpoint written")
    monkeypatch.setattr(sys, "stdout", TerminateAtFirstWrite())
    assert main(arguments) == 75
    resumed, last = json.loads(sys.stdout.getvalue().splitlines()[0]), evaluations[-1]
    assert resumed["step"] in (last["step"], last["step"] + 1)
    assert resumed["seconds"] >= last["seconds"]


def test_reported_peak_memory_is_that_of_the_training_process_alone(terminated):
    """Linux counts the peak of the parent process in ru_maxrss, and the parent here has 0.39 GiB more."""
    _, evaluations, _, _, parent_peak_gib = terminated
    assert 0 < evaluations[0]["peak_memory_gib"] < parent_peak_gib - 0.1
