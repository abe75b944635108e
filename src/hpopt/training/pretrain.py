"""Owns the course of a training run: when it evaluates, saves and reports. Leaves the steps to trainer.py."""

import sys
from collections.abc import Iterator

from hpopt.errors import HpoptError
from hpopt.training.command import run_command
from hpopt.training.config import PretrainConfig
from hpopt.training.leakage import warn_of_leak
from hpopt.training.run import Evaluation, Run
from hpopt.training.trainer import Training


def pretrain(config: PretrainConfig, run: Run) -> Iterator[Evaluation]:
    """Train a Mixture-of-Experts language model and yield an Evaluation every eval_steps steps and after the last.

    The checkpoint is written before each yield. A run that resumes from the checkpoint of an evaluation yields
    that evaluation again, because nobody knows whether it was recorded; treat the second as the same.
    Raises Interrupted (checkpoint written) when run.should_stop(), asked at every micro-step, says so; Diverged when
    a loss is not finite or the training loss is 3 nats above its start for 10 steps; ConfigError for unusable data.
    """
    training = Training(config, run)
    warn_of_leak(training.data.meta["train_val_overlap"])
    training.restore()
    progress = training.progress
    while True:
        if progress.step and (progress.step % config.eval_steps == 0 or progress.step == config.n_steps):
            if progress.metrics is None:
                training.evaluate()
                training.save()
            yield training.report()
        if progress.step == config.n_steps:
            return
        training.step()


def held_out_test(config: PretrainConfig, run: Run) -> dict[str, float]:
    """Measure the model in run.checkpoint on the test split, which no evaluation of `pretrain` looks at.

    For the confirmed winner only. Gives test_loss, test_accuracy, test_perplexity and test_bits_per_byte.
    Raises HpoptError when there is no checkpoint of this run.
    """
    training = Training(config, run)
    if not training.restore():
        raise HpoptError(f"{run.checkpoint}: no checkpoint of this run to test")
    measured = training.measure("test")
    return {f"test_{name}": measured[name] for name in ("loss", "accuracy", "perplexity", "bits_per_byte")}


if __name__ == "__main__":
    sys.exit(run_command(pretrain, PretrainConfig))
