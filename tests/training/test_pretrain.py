import logging
import math
import time
from dataclasses import fields, replace
from itertools import product

import pytest
import torch

from hpopt.errors import Diverged, HpoptError, Interrupted
from hpopt.hyperparameters import HYPERPARAMETERS
from hpopt.training.config import PRETRAIN_METRICS, PretrainConfig
from hpopt.training.pretrain import held_out_test, pretrain
from hpopt.training.run import Run
from hpopt.training.trainer import Training


class StopAfter:
    """Says stop from the n-th question on, as a SIGTERM handler would."""

    def __init__(self, n_questions):
        self.n_left = n_questions

    def __call__(self):
        self.n_left -= 1
        return self.n_left < 0


def losses(evaluations):
    """Give what must be equal to the bit in two runs that are the same."""
    return [
        (e.step, e.tokens, e.metrics["val_loss"], e.metrics["train_loss"], e.metrics["gradient_norm"])
        for e in evaluations
    ]


def test_training_learns(train):
    """In 100 steps the tiny model must leave guessing (ln 300 = 5.70) far behind."""
    last = train(max_steps=100, eval_steps=100)[-1]
    assert last.metrics["val_loss"] < 4.0


def test_evaluations_come_every_eval_steps_and_after_the_last(train):
    """A pruner and a study's value rely on both; tokens and metrics are what was promised."""
    evaluations = train(max_steps=5, eval_steps=2)
    assert [e.step for e in evaluations] == [2, 4, 5]
    assert [e.tokens for e in evaluations] == [2 * 64, 4 * 64, 5 * 64]
    assert all(e.n_steps == 5 for e in evaluations)
    assert all(set(e.metrics) == set(PRETRAIN_METRICS) for e in evaluations)
    assert all(math.isfinite(value) for e in evaluations for value in e.metrics.values())


def test_learning_rate_on_record_is_that_of_the_last_step(train):
    """Cosine over 4 steps, no warmup: half the way down at the third step. Two documents went wrong here unseen."""
    rates = [e.metrics["learning_rate"] for e in train(max_steps=4, eval_steps=1, warmup_ratio=0.0)]
    assert rates == pytest.approx([0.02, 0.02 * 0.853553, 0.01, 0.02 * 0.146447], rel=1e-5)


def test_same_seed_gives_the_same_run_and_another_seed_another(train):
    """The noise between seeds is what a study must know; the noise within one must be zero."""
    first, again, other = (losses(train(dropout=0.1, seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert all(a[2] != b[2] for a, b in zip(first, other, strict=True))


def test_dropout_draws_anew_at_each_micro_step(config_of, cache, tmp_path):
    """One mask for the whole run would train a smaller network instead of many."""
    training = Training(config_of(dropout=0.5), Run(folder=tmp_path, cache=cache))
    masks = []
    for position in (0, 0, 4):
        with training._dropout_seeded(position):
            masks.append(torch.rand(64))
    first, again, second = masks
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_training_leaves_the_global_generator_alone(train):
    """What else runs in the process must neither change a run nor be changed by it."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    train(dropout=0.1, max_steps=2)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("stop", list(product([0, 3, 4, 6, 8, 11], ["fp32", "bf16"])))
def test_interrupted_and_resumed_run_equals_an_uninterrupted_one_to_the_bit(train, config_of, cache, tmp_path, stop):
    """Stopped before the first step, within an accumulation, before, in and after an evaluation: nothing may show."""
    n_questions, precision = stop
    changes = {"dropout": 0.1, "gradient_accumulation_steps": 2, "max_steps": 5, "precision": precision}
    straight = train(**changes)
    run = Run(folder=tmp_path / "stopped", cache=cache, should_stop=StopAfter(n_questions))
    seen = []
    with pytest.raises(Interrupted):
        seen.extend(pretrain(config_of(**changes), run))
    resumed = list(pretrain(config_of(**changes), replace(run, should_stop=lambda: False)))
    assert losses({e.step: e for e in [*seen, *resumed]}.values()) == losses(straight)


def test_stopping_at_a_micro_step_writes_the_checkpoint_of_the_last_whole_step(config_of, cache, tmp_path):
    """SIGTERM must be answered within seconds, and a step of many micro-steps takes longer than that."""
    run = Run(folder=tmp_path / "run", cache=cache, should_stop=StopAfter(6))
    with pytest.raises(Interrupted, match="stopped after step 1; the checkpoint is written"):
        list(pretrain(config_of(gradient_accumulation_steps=4), run))
    training = Training(config_of(gradient_accumulation_steps=4), run)
    assert training.restore()
    assert training.progress.step == 1


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(config_of, cache, tmp_path, caplog):
    """Others fill the disk for a moment; what is trained meanwhile is not thrown away."""
    config, run = config_of(), Run(folder=tmp_path / "run", cache=cache)
    run.folder.mkdir()
    full = run.folder / "checkpoint.pt.tmp"
    full.symlink_to("/dev/full")
    evaluations = []
    for evaluation in pretrain(config, run):
        evaluations.append(evaluation)
        assert run.checkpoint.exists() == (len(evaluations) > 1)
    assert "no checkpoint of step" in caplog.text
    assert losses(evaluations) == losses(pretrain(config, Run(folder=tmp_path / "other", cache=cache)))


def test_checkpoint_is_written_before_each_yield(config_of, cache, tmp_path):
    """A pruned or killed run is closed at a yield; what was evaluated must be what is kept."""
    config, run = config_of(), Run(folder=tmp_path / "run", cache=cache)
    for evaluation in pretrain(config, run):
        training = Training(config, run)
        assert training.restore()
        assert training.progress.step == evaluation.step


def test_evaluation_at_the_checkpoint_is_repeated_on_resumption(config_of, cache, tmp_path):
    """A kill between checkpoint and record would otherwise lose it, the last one of the run included."""
    config, run = config_of(), Run(folder=tmp_path / "run", cache=cache)
    evaluations = list(pretrain(config, run))
    assert list(pretrain(config, run)) == evaluations[-1:]


def test_time_and_tokens_go_on_across_an_interruption(config_of, cache, tmp_path):
    """A budget in device seconds is spent by all attempts together."""
    run = Run(folder=tmp_path / "run", cache=cache, should_stop=StopAfter(3))
    with pytest.raises(Interrupted):
        list(pretrain(config_of(), run))
    first = Training(config_of(), run)
    first.restore()
    last = list(pretrain(config_of(), replace(run, should_stop=lambda: False)))[-1]
    assert last.tokens == 6 * 64
    assert last.seconds > first.progress.seconds > 0


def test_torn_checkpoint_is_refused_and_the_run_starts_over(train, config_of, cache, tmp_path, caplog):
    run = Run(folder=tmp_path / "run", cache=cache)
    list(pretrain(config_of(), run))
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-2000])
    with caplog.at_level(logging.WARNING):
        again = list(pretrain(config_of(), run))
    assert "the run starts over" in caplog.text
    assert losses(again) == losses(train())


def test_checkpoint_of_other_hyperparameters_is_refused(config_of, cache, tmp_path, caplog):
    """A folder reused by mistake must not hand one trial's training to another."""
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
    """A new hyperparameter must come with its test; those left out say which text is read and measured, and how."""
    text = {"dataset", "dataset_config", "text_field", "eval_steps", "eval_tokens"}
    assert {field.name for field in fields(PretrainConfig)} - CHANGES.keys() == {*text, "compile"}


@pytest.fixture(scope="module")
def baseline(config_of, cache, tmp_path_factory):
    return losses(pretrain(config_of(), Run(folder=tmp_path_factory.mktemp("baseline"), cache=cache)))


@pytest.mark.parametrize("name", CHANGES)
def test_hyperparameter_reaches_the_training(train, baseline, name):
    """A changed value that never reached the trainer once gave an A/B test without a difference, and nobody noticed."""
    assert losses(train(**{name: CHANGES[name]})) != baseline


@pytest.mark.parametrize("name", ["learning_rate", "adamw_learning_rate", "weight_decay", "adam_beta1"])
def test_hyperparameter_reaches_adamw_alone(train, name):
    """With optimizer = "adamw" learning_rate must drive the matrices instead of being ignored."""
    assert losses(train(optimizer="adamw", **{name: CHANGES[name]})) != losses(train(optimizer="adamw"))


@pytest.mark.parametrize("name", [entry.name for entry in HYPERPARAMETERS.values() if entry.unused_if])
def test_hyperparameter_that_is_called_unused_has_no_effect(train, name):
    """A search over it is refused beforehand, so what the dictionary says must be true."""
    switch, off = HYPERPARAMETERS[name].unused_if
    switches = {switch: off, **({"top_k": 1} if switch == "n_experts" else {})}
    assert losses(train(**switches, **{name: CHANGES[name]})) == losses(train(**switches))


def test_max_steps_has_no_effect_where_tokens_are_counted(train):
    """A search over it is refused beforehand, so what the dictionary says must be true."""
    tokens = {"max_tokens": CHANGES["max_tokens"]}
    assert losses(train(**tokens, max_steps=CHANGES["max_steps"])) == losses(train(**tokens))


def test_run_ends_with_the_last_whole_step_that_its_tokens_pay_for(train):
    """Batch sizes are compared at the same cost; 300 tokens are 4 steps of 4 x 16, and a rest."""
    last = train(max_tokens=300)[-1]
    assert (last.step, last.n_steps, last.tokens) == (4, 4, 256)


def test_accumulated_micro_batches_equal_one_batch(train):
    """Accumulation saves memory; without the balance loss, which is taken per micro-batch, only rounding differs."""
    whole = train(batch_size=8, load_balancing_weight=0.0)
    parts = train(batch_size=2, gradient_accumulation_steps=4, load_balancing_weight=0.0)
    for a, b in zip(whole, parts, strict=True):
        assert a.tokens == b.tokens
        # Newton-Schulz runs in bfloat16 and turns a difference in the last bit into one of a thousandth.
        assert a.metrics["val_loss"] == pytest.approx(b.metrics["val_loss"], rel=2e-3)


def test_run_that_explodes_raises_diverged(train):
    """A learning rate a thousand times too high is a result of the study, said in words, not a crash."""
    with pytest.raises(Diverged, match=r"training loss is .* over the 10 steps to 10; it started at 5\.7"):
        train(learning_rate=1e4, adamw_learning_rate=1e2, max_steps=40, warmup_ratio=0.0)


class OutOfMemoryAbove:
    """A forward hook that runs out of memory as a GPU would, for batches above a size."""

    def __init__(self, n_sequences):
        self.n_sequences = n_sequences

    def __call__(self, _model, arguments):
        if arguments[0].shape[0] > self.n_sequences:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_global_batch(config_of, cache, tmp_path):
    """A smaller GPU in the fleet gives the same training, slower."""
    config = config_of(batch_size=8, load_balancing_weight=0.0)
    training, roomy = (Training(config, Run(folder=tmp_path / name, cache=cache)) for name in ("small", "large"))
    training.model.register_forward_pre_hook(OutOfMemoryAbove(3))
    for _ in range(3):
        training.step()
        roomy.step()
    assert training.micro_batch == 2
    assert training.progress.tokens == roomy.progress.tokens
    assert training.progress.recent_losses == pytest.approx(roomy.progress.recent_losses, rel=2e-3)


def test_out_of_memory_in_an_evaluation_halves_the_micro_batch_too(config_of, cache, tmp_path):
    """Somebody else's process on the same GPU can take the memory at any moment."""
    training = Training(config_of(batch_size=8), Run(folder=tmp_path, cache=cache))
    roomy = training.measure("validation")
    training.model.register_forward_pre_hook(OutOfMemoryAbove(3))
    assert training.measure("validation")["loss"] == pytest.approx(roomy["loss"], rel=1e-5)
    assert training.micro_batch == 2


def test_out_of_memory_with_one_sequence_is_an_error(config_of, cache, tmp_path):
    """Halving must end."""
    training = Training(config_of(), Run(folder=tmp_path, cache=cache))
    training.model.register_forward_pre_hook(OutOfMemoryAbove(0))
    with pytest.raises(torch.OutOfMemoryError):
        training.step()


def test_held_out_test_measures_the_checkpoint_on_other_text(config_of, cache, tmp_path):
    """The winner's honest figure: near its validation loss, but not on the same text."""
    config, run = config_of(max_steps=40, eval_steps=40), Run(folder=tmp_path, cache=cache)
    (last,) = pretrain(config, run)
    tested = held_out_test(config, run)
    assert tested["test_loss"] != last.metrics["val_loss"]
    assert tested["test_loss"] == pytest.approx(last.metrics["val_loss"], rel=0.1)


def test_held_out_test_without_a_checkpoint_is_refused(config_of, cache, tmp_path):
    """The figures of an untrained model look like figures."""
    with pytest.raises(HpoptError, match="no checkpoint"):
        held_out_test(config_of(), Run(folder=tmp_path, cache=cache))


def test_seconds_leave_evaluation_out(train):
    """Speed is compared between configurations that evaluate at different times."""
    started = time.perf_counter()
    (last,) = train(max_steps=1, eval_steps=1, eval_tokens=4096)
    assert last.seconds < time.perf_counter() - started
    assert last.metrics["tokens_per_second"] == pytest.approx(last.tokens / last.seconds)
