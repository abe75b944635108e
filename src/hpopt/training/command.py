"""Owns training from the command line, without a study and without a database. Leaves the training to its function.

python -m hpopt.training.pretrain --learning_rate 0.1 --max_steps 150
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from hpopt.errors import ConfigError, HpoptError
from hpopt.hyperparameters import HYPERPARAMETERS, TYPE_NAMES, Scalar
from hpopt.training.run import Evaluation, Run

_BOOLEANS = {"true": True, "false": False}


def run_command(
    train: Callable[[Any, Run], Iterator[Evaluation]], config_class: type[Any], arguments: Sequence[str] | None = None
) -> int:
    """Train as the arguments say (the process's own by default), a line of JSON an evaluation; gives the exit code.

    SIGTERM and SIGINT write the checkpoint; the same command goes on from it.
    """
    values = vars(_parser(train.__name__, config_class).parse_args(arguments))
    folder, cache, device = (values.pop(name) for name in ("folder", "cache", "device"))
    stops: list[int] = []
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda number, _frame: stops.append(number))
    try:
        config = config_class(**{name: _parse(name, value) for name, value in values.items()})
        run = Run(folder=folder, cache=cache, device=device, should_stop=lambda: bool(stops))
        for evaluation in train(config, run):
            figures = {"step": evaluation.step, "tokens": evaluation.tokens, "seconds": evaluation.seconds}
            sys.stdout.write(json.dumps({**figures, **evaluation.metrics}) + "\n")
            sys.stdout.flush()
    except HpoptError as error:
        sys.stderr.write(f"hpopt: {error}\n")
        return error.exit_code
    return 0


def _parser(name: str, config_class: type[Any]) -> argparse.ArgumentParser:
    prog = f"python -m hpopt.training.{name}"
    parser = argparse.ArgumentParser(prog, usage=f"{prog} [--NAME VALUE ...]", argument_default=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=Path("run"), help="where the checkpoint is, and goes [run]")
    parser.add_argument("--cache", type=Path, default=Path(".hpopt/cache"), help="prepared data [.hpopt/cache]")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"cpu, cuda or cuda:N [{device}]")
    for field in fields(config_class):
        entry = HYPERPARAMETERS[field.name]
        usual = str(entry.default).lower() if isinstance(entry.default, bool) else entry.default
        meaning = entry.meaning.replace("%", "%%")
        parser.add_argument(f"--{field.name}", metavar=entry.type.__name__.upper(), help=f"{meaning} [{usual}]")
    return parser


def _parse(name: str, text: str) -> Scalar:
    expected = HYPERPARAMETERS[name].type
    try:
        return _BOOLEANS[text] if expected is bool else expected(text)
    except (KeyError, ValueError) as error:
        raise ConfigError(name, f"{text!r} is not {TYPE_NAMES[expected]}") from error
