"""Write the folder of a report."""

from pathlib import Path

from hpopt.analysis.trials import StudyTable
from hpopt.errors import InputError
from hpopt.reporting.charts import CHART_NAMES, draw_charts
from hpopt.reporting.files import write_insights, write_summary_table, write_trials
from hpopt.reporting.markdown import render_text
from hpopt.reporting.page import render_page
from hpopt.reporting.pictures import write_picture, write_table
from hpopt.reporting.sentences import tabulate_configurations
from hpopt.reporting.summary import Summary


def write_report(table: StudyTable, summary: Summary, folder: Path) -> list[Path]:
    """Write page, text, pictures and tables, and return their paths, the page first.

    Raises InputError if the folder cannot be written.
    """
    charts = draw_charts(table, summary.insights)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*CHART_NAMES, "summary_table"):
            # A previous report may have left pictures that this one does not write.
            (folder / f"{name}.png").unlink(missing_ok=True)
        names = ("index.html", "report.md", "trials.csv", "summary_table.csv", "insights.json")
        page, text, trials, configurations, insights = (folder / name for name in names)
        page.write_text(render_page(table, summary, charts), encoding="utf-8")
        text.write_text(render_text(table, summary, charts), encoding="utf-8")
        write_trials(table, trials)
        write_summary_table(summary, configurations)
        write_insights(table, summary, insights)
        pictures = [folder / f"{name}.png" for name in charts]
        for chart, path in zip(charts.values(), pictures, strict=True):
            write_picture(chart, path)
        if summary.configurations:
            pictures.append(folder / "summary_table.png")
            write_table(*tabulate_configurations(table, summary), pictures[-1])
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {error.strerror}: the report cannot be written") from error
    return [page, text, *pictures, trials, configurations, insights]
