"""Compare the best configuration of a study with the defaults over seeds that the study did not use.

Trains both to the end with each seed, and prints every value and the difference:

    python benchmarks/seeds.py quickstart --seeds 3
"""

import argparse
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from hpopt.hyperparameters import Scalar
from hpopt.storage import queries, studies
from hpopt.storage.connect import open_database
from hpopt.study.reading import parse_study_file
from hpopt.training.run import Run
from hpopt.worker.objective import load_function

FIRST_SEED = 1000


def train(text: str, params: dict[str, Scalar], seed: int, home: str, threads: int) -> float:
    """Train one configuration with one seed to its end, and return the study's metric."""
    import torch  # noqa: PLC0415 - the number of threads of each process is set before it computes.

    torch.set_num_threads(threads)
    file = parse_study_file(text, "study")
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder=Path(folder), cache=Path(home) / "cache")
        *_, last = load_function(file.objective)(file.config(params, seed), run)
    return float(last.metrics[file.metric])


def main() -> None:
    """Read the best parameters, train, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--storage")
    parser.add_argument("--home", type=Path, default=Path(".hpopt"))
    options = parser.parse_args()
    with open_database(options.storage, options.home) as database:
        study = studies.load_study(database, options.study)
        best = queries.best(database, study).params
    default = study.file.default_params()
    if default is None:
        parser.error("the defaults are outside of the study's search space")
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    values: dict[str, list[float]] = {}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        futures = {
            name: [pool.submit(train, study.text, dict(params), seed, str(options.home), 1) for seed in seeds]
            for name, params in (("defaults", default), ("best", best))
        }
        for name, pending in futures.items():
            values[name] = [future.result() for future in pending]
            line = "  ".join(f"{value:.4f}" for value in values[name])
            spread = statistics.stdev(values[name]) if options.seeds > 1 else 0.0
            print(f"{name:9s} {line}   mean {statistics.mean(values[name]):.4f}  standard deviation {spread:.4f}")
    difference = statistics.mean(values["defaults"]) - statistics.mean(values["best"])
    print(f"defaults minus best: {difference:+.4f} {study.file.metric}")


if __name__ == "__main__":
    main()
