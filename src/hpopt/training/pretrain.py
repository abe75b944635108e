"""Pre-train a language model: the training function of the objective `pretrain`, and its command line.

python -m hpopt.training.pretrain --learning_rate 0.1 --max_steps 150
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from hpopt.errors import ConfigError, HpoptError
from hpopt.hyperparameters import HYPERPARAMETERS, TYPE_NAMES, Scalar
from hpopt.training.config import PretrainConfig
from hpopt.training.leakage import warn_of_leak
from hpopt.training.run import Evaluation, Run
from hpopt.training.trainer import Trainer

_BOOLEANS = {"true": True, "false": False}


def pretrain(config: PretrainConfig, run: Run) -> Iterator[Evaluation]:
    """Train a Mixture-of-Experts language model; yield an Evaluation every eval_steps steps and after the last step.

    The test split is read only with run.evaluates_test, for the last evaluation.

    The checkpoint is written before each yield. A run that resumes from the checkpoint of an evaluation yields
    that evaluation again, because it may not have been recorded.
    Raises Interrupted (checkpoint written) once run.should_stop(), called at every micro-step, returns true; Diverged
    if a loss is not finite or the training loss is 3 nats above its start for 10 steps; ConfigError for unusable data.
    """
    trainer = Trainer(config, run)
    warn_of_leak(trainer.data.meta["train_val_overlap"])
    trainer.restore()
    progress = trainer.progress
    while True:
        if progress.step and (progress.step % config.eval_steps == 0 or progress.step == config.n_steps):
            if progress.metrics is None:
                trainer.evaluate()
                trainer.save()
            is_tested = run.evaluates_test and progress.step == config.n_steps
            yield _with_test(trainer) if is_tested else trainer.last_evaluation
        if progress.step == config.n_steps:
            return
        trainer.step()


def _with_test(trainer: Trainer) -> Evaluation:
    """Return the last evaluation with test_loss, test_accuracy, test_perplexity and test_bits_per_byte."""
    last, test = trainer.last_evaluation, trainer.evaluate_split("test")
    names = ("loss", "accuracy", "perplexity", "bits_per_byte")
    return replace(last, metrics={**last.metrics, **{f"test_{name}": test[name] for name in names}})


def main(arguments: Sequence[str] | None = None) -> int:
    """Train with the given command line arguments and print each evaluation as a line of JSON; return the exit code.

    SIGTERM and SIGINT stop it after a checkpoint, from which the same command resumes.
    """
    values = vars(_argument_parser().parse_args(arguments))
    folder, cache, device = (values.pop(name) for name in ("folder", "cache", "device"))
    signals: list[int] = []
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda number, _frame: signals.append(number))
    try:
        hyperparameters: dict[str, Any] = {name: _parse_value(name, text) for name, text in values.items()}
        config = PretrainConfig(**hyperparameters)
        run = Run(folder=folder, cache=cache, device=device, should_stop=lambda: bool(signals))
        for evaluation in pretrain(config, run):
            row = {"step": evaluation.step, "tokens": evaluation.tokens, "seconds": evaluation.seconds}
            sys.stdout.write(json.dumps({**row, **evaluation.metrics}) + "\n")
            sys.stdout.flush()
    except HpoptError as error:
        sys.stderr.write(f"hpopt: {error}\n")
        return error.exit_code
    return 0


def _argument_parser() -> argparse.ArgumentParser:
    prog = "python -m hpopt.training.pretrain"
    parser = argparse.ArgumentParser(prog, usage=f"{prog} [--NAME VALUE ...]", argument_default=argparse.SUPPRESS)
    folder, cache = Path("run"), Path(".hpopt/cache")
    parser.add_argument("--folder", type=Path, default=folder, help=f"folder of the checkpoint [{folder}]")
    parser.add_argument("--cache", type=Path, default=cache, help=f"folder of prepared data [{cache}]")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"cpu, cuda or cuda:N [{device}]")
    for field in fields(PretrainConfig):
        entry = HYPERPARAMETERS[field.name]
        default = str(entry.default).lower() if isinstance(entry.default, bool) else entry.default
        meaning = entry.meaning.replace("%", "%%")
        parser.add_argument(f"--{field.name}", metavar=entry.type.__name__.upper(), help=f"{meaning} [{default}]")
    return parser


def _parse_value(name: str, text: str) -> Scalar:
    expected = HYPERPARAMETERS[name].type
    try:
        return _BOOLEANS[text] if expected is bool else expected(text)
    except (KeyError, ValueError) as error:
        raise ConfigError(name, f"{text!r} is not {TYPE_NAMES[expected]}") from error


if __name__ == "__main__":
    sys.exit(main())
