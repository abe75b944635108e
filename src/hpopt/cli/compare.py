"""The command that compares the arms of a study, or two configurations."""

from typing import TYPE_CHECKING, Annotated

import typer

from hpopt.cli.options import HOME, HomeOption, JsonOption, StorageOption, out
from hpopt.errors import HpoptError, InputError, NoAnswerError

if TYPE_CHECKING:
    from hpopt.analysis.arms import ArmsComparison
    from hpopt.storage.database import Database
    from hpopt.storage.studies import Study


def compare(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="A study with arms, or one of two sides.", show_default=False)
    ],
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="[OTHER]",
            help="The other side. Each is STUDY (its answer), STUDY@ARM, STUDY@confirm or STUDY#TRIAL.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Compare the arms of a study, or two configurations; exit code 3 without a verdict, 1 if it is refused."""
    from hpopt.storage.comparison import compare_study
    from hpopt.storage.connect import open_database
    from hpopt.storage.sides import compare_configurations
    from hpopt.storage.studies import load_study
    from hpopt.terminal.comparison import comparison_as_json, render_comparison

    with open_database(storage, home) as database:
        if other is not None:
            compared, name = compare_configurations(database, study, other), f"{study} and {other}"
        else:
            row = load_study(database, study)
            if not row.file.arms:
                raise InputError(f"study '{study}' has no arms; name two sides, such as {study}#0 {study}#1")
            compared, name = compare_study(database, row), study
    out.write(comparison_as_json(name, compared)) if as_json else out.print(render_comparison(name, compared))
    _require_verdict(compared)


def answer_comparison(database: "Database", study: "Study", *, is_shown: bool = True) -> None:
    """Compare the arms of a study, and print the result if it is to be shown.

    Raises HpoptError for a comparison that shows nothing, NoAnswerError for one without a verdict, and InputError for
    arms with different data, of which none is the best, where the result is not shown.
    """
    from hpopt.storage.comparison import compare_study
    from hpopt.terminal.comparison import render_comparison

    compared = compare_study(database, study)
    if is_shown:
        out.print(render_comparison(study.name, compared))
    _require_verdict(compared)
    if not is_shown and all(one.is_unlike for one in compared.comparisons):
        raise InputError(f"study '{study.name}' has arms with different data, of which none is the best")


def _require_verdict(compared: "ArmsComparison") -> None:
    """Raise HpoptError for runs that show nothing, and NoAnswerError if no arm has a verdict that needs one."""
    if compared.fault is not None:
        raise HpoptError(f"refused: {compared.fault}")
    reasons = [one.reason for one in compared.comparisons if one.result is None and not one.is_unlike]
    if reasons and all(one.result is None for one in compared.comparisons):
        raise NoAnswerError(f"no verdict: {reasons[0]}")
