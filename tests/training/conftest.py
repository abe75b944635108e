"""A tiny dataset, prepared once per session, and a tiny model that trains on it in a second."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hpopt.training.config import PretrainConfig
from hpopt.training.pretrain import pretrain
from hpopt.training.run import Evaluation, Run

N_DOCUMENTS = 160
N_WORDS = 150


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: small products gain nothing from more, and several test processes share the cores.

    For whole modules, because the number of threads changes the last bits of a loss.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def _write_documents(folder: Path, numbers: range) -> Path:
    """Write documents of an artificial language in which each word has three successors; return the folder."""
    words = ["".join(letters) for letters in itertools.product("bdfgklmnprst", "aeiou", "bdgklmnrst")]
    successors = np.random.default_rng(0).integers(len(words), size=(len(words), 3))
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        generator = np.random.default_rng([1, number])
        word, text = int(generator.integers(len(words))), []
        for _ in range(N_WORDS):
            text.append(words[word])
            word = int(successors[word, generator.integers(3)])
        (folder / f"{number:04}.txt").write_text(" ".join(text))
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_documents(tmp_path_factory.mktemp("documents"), range(N_DOCUMENTS))


@pytest.fixture
def write_documents() -> Callable[[Path, range], Path]:
    """Return a function that writes the documents with the given numbers into a folder."""
    return _write_documents


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def config_of(dataset: Path) -> Callable[..., PretrainConfig]:
    """Return a function that makes the tiny config with changes."""

    def make(**changes: object) -> PretrainConfig:
        tiny = {
            "dataset": str(dataset),
            "vocab_size": 300,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 2,
            "d_ff": 64,
            "n_experts": 4,
            "top_k": 2,
            "sequence_length": 16,
            "batch_size": 4,
            "max_steps": 6,
            "eval_steps": 2,
            "eval_tokens": 256,
            "learning_rate": 0.02,
            "adamw_learning_rate": 0.01,
            "precision": "fp32",
        }
        return PretrainConfig(**{**tiny, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def train(tmp_path: Path, cache: Path, config_of: Callable[..., PretrainConfig]) -> Callable[..., list[Evaluation]]:
    """Return a function that trains the tiny model with changes to its config and returns its evaluations."""
    numbers = itertools.count()

    def run(**changes: object) -> list[Evaluation]:
        return list(pretrain(config_of(**changes), Run(folder=tmp_path / str(next(numbers)), cache=cache)))

    return run


class StopAfter:
    """A should_stop that returns True from the n-th call on, as after a SIGTERM."""

    def __init__(self, n_calls: int) -> None:
        self.n_left = n_calls

    def __call__(self) -> bool:
        self.n_left -= 1
        return self.n_left < 0


@pytest.fixture
def stop_after() -> type[StopAfter]:
    """Return the class of a should_stop that returns True after a number of calls."""
    return StopAfter
