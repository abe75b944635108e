"""`hpopt check`: print the plan of a study file, and try its objective."""

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpopt.cli.options import DeviceOption, FileArgument, err, out
from hpopt.errors import InputError
from hpopt.formats import format_metric

if TYPE_CHECKING:
    from hpopt.study.reading import StudySource
    from hpopt.training.run import Evaluation


def check(
    file: FileArgument,
    is_tried: Annotated[
        bool, typer.Option("--try", help="Also run the objective's defaults up to their second evaluation.")
    ] = False,
    device: DeviceOption = "auto",
    is_child: Annotated[bool, typer.Option("--child", hidden=True)] = False,
) -> None:
    """Check a study file and print its plan and cost."""
    from hpopt.study.reading import read_study_file
    from hpopt.terminal.answer import render_plan

    source = read_study_file(file)
    if is_child:
        _try(source, device)
        return
    if source.file.arms:
        # It imports scipy, which takes a second.
        from hpopt.terminal.comparison import render_arms

        out.print(render_arms(source.file))
    else:
        out.print(render_plan(source.file))
    if is_tried:
        _try_in_subprocess(file, device)


def _try_in_subprocess(file: Path, device: str) -> None:
    """Run `hpopt check --try` in a process of its own, which a training function can end."""
    command = [sys.executable, "-m", "hpopt", "check", str(file), "--child", "--device", device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in {0, InputError.exit_code} or (done.returncode == 0 and not done.stdout):
        how = f"with exit code {done.returncode}"
        if done.returncode < 0:
            how = f"by {signal.Signals(-done.returncode).name}"
        raise InputError(f"{file}: the training function ended its process {how}")
    if done.stdout:
        out.write(done.stdout.rstrip())
    if done.returncode:
        raise typer.Exit(done.returncode)


def _try(source: "StudySource", device: str) -> None:
    """Run the objective of a study in this process. Raises InputError for what a worker would refuse or lose."""
    from hpopt.testing import rehearse
    from hpopt.worker.loop import find_device
    from hpopt.worker.objective import load_function

    file = source.file
    params = file.default_params() or {name: searched.extremes()[0] for name, searched in file.search_space.items()}
    began = time.monotonic()

    def show(evaluation: "Evaluation") -> None:
        value = f"{file.metric} {format_metric(evaluation.metrics[file.metric])}"
        seconds = time.monotonic() - began
        out.write(f"tried: step {evaluation.step} of {evaluation.n_steps} after {seconds:.1f} s: {value}")

    problems, losses = rehearse(
        partial(load_function, file.objective),
        file.metric,
        file.config(params, arm=next(iter(file.arms), None)),
        device=find_device(device),
        log=err.write,
        on_evaluation=show,
    )
    if problems:
        raise InputError(f"{source.name}: {file.objective}: {'; '.join(problems)}")
    for loss in losses:
        err.write(f"warning: {file.objective}: {loss}")
