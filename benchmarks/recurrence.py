"""A training function whose evaluations are known in closed form.

One step takes the state x to (FACTOR x + shift) mod PRIME, with start and shift drawn from params and seed. Between two
attempts the state exists only in the checkpoint, so that a step that is lost, repeated or resumed from another trial's
checkpoint changes every value after it.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpopt.errors import Diverged, Interrupted
from hpopt.training.run import Evaluation, Run

# The minimal standard generator (Park and Miller 1988), whose states a double holds exactly.
PRIME = 2**31 - 1
FACTOR = 48271
TOKENS_PER_STEP = 1000
# The values of `ending` with which a trial does not train as others do.
FAILS = 0
DIVERGES = 1
EXITS = 2
FORKS = 3
FLOODS = 4
ENDINGS = {
    FAILS: "fail",
    DIVERGES: "diverge",
    EXITS: "raise a BaseException",
    FORKS: "compute in forked processes",
    FLOODS: "evaluate as fast as they can",
}
# A flood has so many times the steps of another trial, each with an evaluation.
_FLOOD_FACTOR = 20
_N_FORKED = 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """The hyperparameters; a trial whose `ending` is FAILS, DIVERGES or EXITS ends early."""

    rate: float = 0.1
    width: int = 4
    shape: str = "cosine"
    ending: int = 9
    max_steps: int = 60
    eval_steps: int = 3
    step_seconds: float = 0.1
    seed: int = 0

    @property
    def n_steps(self) -> int:
        """The steps of a complete trial."""
        return self.max_steps * (_FLOOD_FACTOR if self.ending == FLOODS else 1)


def train(config: Config, run: Run) -> Generator[Evaluation]:
    """Step through the recurrence and yield its evaluations.

    The checkpoint is written before each evaluation, which a resumed run yields again. Raises OSError if the disk is
    full, and leaves the previous checkpoint in place.
    """
    step, state = _resume(config, run.checkpoint)
    if is_evaluated(config, step):
        yield evaluate(config, step, state)
    with _children(config):
        while step < config.n_steps:
            if run.should_stop():
                _save(run.checkpoint, step, state)
                raise Interrupted(f"stopped after step {step}")
            if config.ending != FLOODS:
                time.sleep(config.step_seconds)
            step += 1
            _raise_at_ending(config, step)
            state = (FACTOR * state + _draws(config)[1]) % PRIME
            if is_evaluated(config, step):
                _save(run.checkpoint, step, state)
                yield evaluate(config, step, state)


def fault_free(config: Config, step: int) -> Evaluation:
    """Return the evaluation after `step` steps without faults, in closed form: the sum of a geometric series."""
    start, shift = _draws(config)
    power = pow(FACTOR, step, PRIME)
    series = (power - 1) * pow(FACTOR - 1, -1, PRIME)
    return evaluate(config, step, (power * start + shift * series) % PRIME)


def evaluate(config: Config, step: int, state: int) -> Evaluation:
    """Return the evaluation of a state: its loss decreases with the steps and encodes the state in its digits."""
    loss = abs(config.rate - 0.1) + 1 / step + 0.1 * state / PRIME
    return Evaluation(
        step=step,
        n_steps=config.n_steps,
        tokens=step * TOKENS_PER_STEP,
        seconds=step * config.step_seconds,
        metrics={"val_loss": loss, "state": float(state)},
    )


def expected_outcome(config: Config) -> str:
    """Return the outcome of a trial that is neither interrupted nor pruned."""
    return {FAILS: "failed", DIVERGES: "diverged", EXITS: "failed"}.get(config.ending, "complete")


def evaluated_steps(config: Config) -> list[int]:
    """Return the steps of all evaluations of a trial that is neither interrupted nor pruned."""
    return [step for step in range(1, _last_step(config) + 1) if is_evaluated(config, step)]


def is_evaluated(config: Config, step: int) -> bool:
    """Return whether a step ends with an evaluation."""
    is_due = config.ending == FLOODS or step % config.eval_steps == 0 or step == config.n_steps
    return step > 0 and is_due


def _draws(config: Config) -> tuple[int, int]:
    """Draw start and shift from params and seed."""
    params = (config.rate, config.width, config.shape, config.ending, config.seed)
    drawn = hashlib.sha256(repr(params).encode()).digest()
    return int.from_bytes(drawn[:8]) % PRIME, int.from_bytes(drawn[8:16]) % PRIME


def _last_step(config: Config) -> int:
    """Return the last completed step; a trial that fails or diverges does so in the step after it."""
    return config.n_steps if config.ending > EXITS else _draws(config)[0] % config.n_steps


def _raise_at_ending(config: Config, step: int) -> None:
    if step <= _last_step(config):
        return
    # Letters, so that each failure has its own reason: five failures with one reason would pause the study.
    code = "".join(chr(ord("a") + int(digit)) for digit in str(_draws(config)[0]))
    if config.ending == DIVERGES:
        raise Diverged(f"diverges as configured, {code}")
    if config.ending == EXITS:
        raise BaseException(f"exits as configured, {code}")  # noqa: TRY002 - what it raises is the point.
    raise RuntimeError(f"fails as configured, {code}")


@contextmanager
def _children(config: Config) -> Iterator[None]:
    """Compute in forked processes, as data loaders do, and keep them for the trial."""
    if config.ending != FORKS:
        yield
        return
    with multiprocessing.get_context("fork").Pool(_N_FORKED) as pool:
        if pool.map(abs, range(-_N_FORKED, 0)) != list(range(_N_FORKED, 0, -1)):
            raise RuntimeError("the forked processes do not compute")
        yield


def _resume(config: Config, checkpoint: Path) -> tuple[int, int]:
    """Return step and state; an incomplete checkpoint raises, since checkpoints are written atomically."""
    if not checkpoint.exists():
        return 0, _draws(config)[0]
    saved = json.loads(checkpoint.read_text())
    return saved["step"], saved["state"]


def _save(checkpoint: Path, step: int, state: int) -> None:
    temporary = checkpoint.with_name(f"{checkpoint.name}.tmp")
    try:
        with temporary.open("w") as file:
            json.dump({"step": step, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # Where no disk can be filled, faults.py limits the size of files instead.
        raise OSError(errno.ENOSPC if error.errno == errno.EFBIG else error.errno, error.strerror) from error
    temporary.replace(checkpoint)
