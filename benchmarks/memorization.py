"""Measure how a leaky split changes the choice of a learning rate.

Trains the same model at several learning rates on 60,000 tokens, once with windows at all positions assigned to splits
at random and once with documents held out, and prints a table:

    python benchmarks/memorization.py
"""

import argparse
import tempfile
from pathlib import Path

from hpopt.training.config import PretrainConfig
from hpopt.training.pretrain import pretrain
from hpopt.training.run import Run

LEARNING_RATES = (0.003, 0.01, 0.03)
SPLITS = ("overlapping_windows", "documents")


def train(split: str, learning_rate: float, steps: int, cache: Path) -> dict[str, float]:
    """Train to the end, with AdamW at a tenth of Muon's learning rate; return the last metrics."""
    config = PretrainConfig(
        d_model=128,
        n_layers=4,
        n_heads=4,
        d_ff=512,
        sequence_length=128,
        batch_size=16,
        max_steps=steps,
        eval_steps=steps,
        eval_tokens=32_768,
        max_train_tokens=60_000,
        split=split,
        learning_rate=learning_rate,
        adamw_learning_rate=learning_rate / 10,
    )
    with tempfile.TemporaryDirectory() as folder:
        *_, last = pretrain(config, Run(folder=Path(folder), cache=cache))
    return dict(last.metrics)


def main() -> None:
    """Print a table with a row for each learning rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--cache", type=Path, default=Path(".hpopt/cache"))
    arguments = parser.parse_args()
    print("| learning rate | val loss, leaky | of it trained on | val loss, held-out documents | of it trained on |")
    print("|---|---|---|---|---|")
    for learning_rate in LEARNING_RATES:
        measured = [train(split, learning_rate, arguments.steps, arguments.cache) for split in SPLITS]
        cells = (f"{m['val_loss']:.2f} | {m['train_val_overlap']:.1%}" for m in measured)
        print(f"| {learning_rate} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
