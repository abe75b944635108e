"""Owns showing what there is to be wary of in a study, below whatever a verb shows of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpopt.cli.options import Output, err, out

if TYPE_CHECKING:
    from hpopt.findings.finding import Finding
    from hpopt.storage.database import Database
    from hpopt.storage.progress import Progress
    from hpopt.storage.studies import Study


def findings_of(database: "Database", study: "Study") -> "tuple[Finding, ...]":
    """Give what there is to be wary of in a study, by an analysis if trials have ended since the last."""
    from hpopt.storage import findings

    with err.working("analysing the trials"):
        return findings.current(database, study)


def kept_findings_of(database: "Database", progress: "Progress", study: "Study") -> "tuple[Finding, ...]":
    """Give what was last found in a study that goes on, which is asked again and again; of one that is over, all."""
    from hpopt.storage import findings

    if progress.over is not None:
        return findings_of(database, study)
    return findings.read(database, study).findings


def show_findings(found: "Sequence[Finding]", output: Output = out) -> None:
    """Print them for people."""
    from hpopt.terminal.answer import warnings

    if found:
        output.print()
        output.print(warnings(found))
