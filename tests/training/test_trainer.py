import math

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from hpopt.errors import Diverged, Interrupted
from hpopt.training import trainer as trainer_module
from hpopt.training.model import Transformer
from hpopt.training.pretrain import pretrain
from hpopt.training.run import Run
from hpopt.training.trainer import Trainer


def test_dropout_differs_between_micro_steps_and_repeats_at_each(config_of, cache, tmp_path):
    """One mask for the whole run would train a smaller network instead of many."""
    trainer = Trainer(config_of(dropout=0.5), Run(folder=tmp_path, cache=cache))
    masks = []
    for position in (0, 0, 4):
        with trainer._seeded_dropout(position):
            masks.append(torch.rand(64))
    first, repeated, other = masks
    assert torch.equal(first, repeated)
    assert not torch.equal(first, other)


def test_training_leaves_the_global_generator_unchanged(train):
    """Other code in the process must neither change a run nor be changed by it."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    train(dropout=0.1, max_steps=2)
    assert torch.rand(1) == expected


def test_stopping_at_a_micro_step_writes_the_checkpoint_of_the_last_finished_step(
    config_of, cache, tmp_path, stop_after
):
    """SIGTERM must be answered within seconds, and a step of many micro-steps takes longer."""
    run = Run(folder=tmp_path / "run", cache=cache, should_stop=stop_after(6))
    with pytest.raises(Interrupted, match="stopped after step 1; checkpoint written"):
        list(pretrain(config_of(gradient_accumulation_steps=4), run))
    trainer = Trainer(config_of(gradient_accumulation_steps=4), run)
    assert trainer.restore()
    assert trainer.progress.step == 1


def test_accumulated_micro_batches_equal_one_batch(train):
    """Without the load balancing loss, which is computed per micro-batch, only rounding differs."""
    whole = train(batch_size=8, load_balancing_weight=0.0)
    parts = train(batch_size=2, gradient_accumulation_steps=4, load_balancing_weight=0.0)
    for a, b in zip(whole, parts, strict=True):
        assert a.tokens == b.tokens
        # Newton-Schulz in bfloat16 turns a difference in the last bit into one of a thousandth.
        assert a.metrics["val_loss"] == pytest.approx(b.metrics["val_loss"], rel=2e-3)


class OutOfMemoryAbove:
    """A forward hook that raises torch.OutOfMemoryError, as a GPU would, for batches above a size."""

    def __init__(self, n_sequences):
        self.n_sequences = n_sequences

    def __call__(self, _model, arguments):
        if arguments[0].shape[0] > self.n_sequences:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_global_batch(config_of, cache, tmp_path):
    """A GPU with less memory does the same training, only slower."""
    config = config_of(batch_size=8, load_balancing_weight=0.0)
    trainer, reference = (Trainer(config, Run(folder=tmp_path / name, cache=cache)) for name in ("small", "large"))
    trainer.model.register_forward_pre_hook(OutOfMemoryAbove(3))
    for _ in range(3):
        trainer.step()
        reference.step()
    assert trainer.micro_batch == 2
    assert trainer.progress.tokens == reference.progress.tokens
    assert trainer.progress.recent_losses == pytest.approx(reference.progress.recent_losses, rel=2e-3)


def test_out_of_memory_in_an_evaluation_halves_the_micro_batch_too(config_of, cache, tmp_path):
    """Another process on the same GPU can take the memory at any moment."""
    trainer = Trainer(config_of(batch_size=8), Run(folder=tmp_path, cache=cache))
    reference = trainer.evaluate_split("validation")
    trainer.model.register_forward_pre_hook(OutOfMemoryAbove(3))
    assert trainer.evaluate_split("validation")["loss"] == pytest.approx(reference["loss"], rel=1e-5)
    assert trainer.micro_batch == 2


def test_out_of_memory_with_one_sequence_is_an_error(config_of, cache, tmp_path):
    """Halving must end."""
    trainer = Trainer(config_of(), Run(folder=tmp_path, cache=cache))
    trainer.model.register_forward_pre_hook(OutOfMemoryAbove(0))
    with pytest.raises(torch.OutOfMemoryError):
        trainer.step()


TRAINING_PASS_S, EVALUATION_PASS_S = 1.0, 1000.0


@pytest.fixture
def _clock_of_forward_passes(monkeypatch):
    """Replace the trainer's clock by one that each forward pass advances, in evaluation by far more."""
    now = [0.0]

    def advance(module, _arguments):
        if isinstance(module, Transformer):
            now[0] += TRAINING_PASS_S if torch.is_grad_enabled() else EVALUATION_PASS_S

    monkeypatch.setattr(trainer_module, "perf_counter", lambda: now[0])
    hook = register_module_forward_pre_hook(advance)
    yield
    hook.remove()


@pytest.mark.usefixtures("_clock_of_forward_passes")
def test_seconds_and_speed_leave_evaluation_out(train):
    """Speed is compared between configurations that evaluate at different times."""
    evaluations = train(max_steps=5, eval_steps=2, gradient_accumulation_steps=3)
    assert [evaluation.seconds for evaluation in evaluations] == [6 * TRAINING_PASS_S, 12.0, 15.0]
    assert {evaluation.metrics["tokens_per_second"] for evaluation in evaluations} == {4 * 16 / TRAINING_PASS_S}


def test_validation_loss_that_is_not_finite_is_divergence(config_of, cache, tmp_path):
    """The last step can break the model after its training loss was computed."""
    trainer = Trainer(config_of(), Run(folder=tmp_path, cache=cache))
    torch.nn.init.constant_(trainer.model.final_gain_D, math.nan)
    with pytest.raises(Diverged, match="validation loss is nan at step 0"):
        trainer.evaluate()
