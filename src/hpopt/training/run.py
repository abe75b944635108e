"""The interface between a training function and the worker or script that runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


def never() -> bool:
    """Return False: the default of Run.should_stop."""
    return False


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training function receives besides its config: where to save, where to compute, and when to stop.

    A training function is a generator function of a config and a Run that yields Evaluations:

        def train(config: Config, run: Run) -> Iterator[Evaluation]:
            state = load(run.checkpoint) if run.checkpoint.exists() else State(config)
            while state.step < config.max_steps:
                if run.should_stop():
                    save(state, run.checkpoint)
                    raise Interrupted(f"stopped after step {state.step}")
                state.train_one_step()
                if state.step % config.eval_steps == 0 or state.step == config.max_steps:
                    save(state, run.checkpoint)
                    yield Evaluation(step=state.step, n_steps=config.max_steps, ..., metrics={"val_loss": ...})

    - It starts from `checkpoint` if that file exists, and from the beginning otherwise.
    - It calls `should_stop()` every few seconds of training or more often. Once that returns true, it saves its state
      to `checkpoint` and raises Interrupted. The trial is then not finished: another attempt continues it. The worker
      itself looks at every evaluation but the last, and stops there.
    - It saves to `checkpoint` before it yields, because a process can be killed at any time. A run that resumes from
      the checkpoint of an evaluation may yield that evaluation again; a step is recorded once.
    - The metric of the last Evaluation is the value of the trial, or the best one with `summary = "best"` in the study
      file. A trial that is pruned, or whose study has used up its budget, is closed at a yield: GeneratorExit is raised
      there, and `finally` blocks run.
    - Steps increase: an evaluation of the same step as the one before, or of an earlier one, is left out, with a
      warning. So is a metric that is not a number, unless it is the one of the study.
    - It raises Diverged where training cannot recover; a metric of the study that is not finite has the same effect.
      Any other exception marks the trial as failed, and so does Interrupted where nothing asked the run to stop.
    - A function without intermediate evaluations can return its value, or a mapping of its metrics, instead.
    - What it changes in its process (working folder, environment, signal handlers, random states, defaults of torch)
      is restored before the next trial, and processes that it leaves running are ended.

    Fields:
        folder: Folder of this attempt alone. A worker creates it with a copy of the files that the last attempt at
            the trial left. Write a file under another name and rename it, so that it is complete at every moment. The
            folders of the best trials stay, as many as the study has under `keep`.
        cache: Folder of prepared data that all runs on this machine share. It may not exist.
        device: Where to compute, as a torch.device string: "cpu", "cuda" or "cuda:N".
        study: Name of the study; empty outside of one.
        arm: Name of the arm of a comparison; empty outside of one.
        trial: Number of the trial, that of the attempt's Optuna trial; -1 outside of a study.
        should_stop: Return True once the run has to stop: on SIGTERM or Ctrl-C, and under a worker also if the study
            was paused or the trial was reassigned to another worker. Cheap; it may be called at every micro-step.
        evaluates_test: Whether this is a run of a confirmation, whose last evaluation has metrics of the held-out test
            split: their names begin with `test_`. Only those of the confirmed answer are shown.
    """

    folder: Path
    cache: Path
    device: str = "cpu"
    study: str = ""
    arm: str = ""
    trial: int = -1
    should_stop: Callable[[], bool] = never
    evaluates_test: bool = False

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file, `folder`/checkpoint.pt, whether or not it exists."""
        return self.folder / "checkpoint.pt"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of a model after an optimizer step, and what training has cost so far.

    Fields:
        step: Optimizer steps finished so far, from 0 to 2^31 - 1. It increases from one evaluation to the next.
        n_steps: Optimizer steps of the whole run. A pruner compares trials at fractions of it, and prunes no trial
            that has reached it.
        tokens: Tokens trained on so far, including those of earlier attempts.
        seconds: Time spent in training so far, without evaluation, including that of earlier attempts.
        metrics: Metrics by name, for example val_loss in nats per token; the metric that the study optimizes must be
            among them. A value that is not finite is recorded as such.
    """

    step: int
    n_steps: int
    tokens: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
