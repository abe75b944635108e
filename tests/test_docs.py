"""Every command and snippet of README and docs runs, and the generated pages are current."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

import hpopt
from hpopt.storage import queries
from hpopt.storage.database import Database

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(?P<marker><!-- not run: [^\n]+ -->\n)?```(?P<info>[a-z]+(?: [\w./-]+)?)?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# Blocks of these languages are shown, not run.
SHOWN = {"text", "ini", "yaml"}
TINY = {
    "d_model": 16,
    "n_layers": 1,
    "n_heads": 2,
    "d_ff": 32,
    "n_experts": 2,
    "vocab_size": 300,
    "sequence_length": 16,
    "batch_size": 4,
    "max_steps": 20,
    "eval_steps": 5,
    "eval_tokens": 512,
    "max_documents": 20,
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is saved as, and whether it is run."""

    page: Path
    line: int
    language: str
    file: str
    code: str
    is_run: bool


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text()
    blocks = []
    for match in BLOCK.finditer(text):
        language, _, file = (match["info"] or "").partition(" ")
        line = text[: match.start()].count("\n") + 1
        is_run = match["marker"] is None and language not in SHOWN
        blocks.append(Block(page, line, language, file, match["code"], is_run))
    return blocks


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A database with a finished study called quickstart, whose trials train a tiny model."""
    folder = tmp_path_factory.mktemp("docs")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HPOPT_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HPOPT_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    study = tomllib.loads((ROOT / "studies" / "quickstart.toml").read_text())
    (folder / "studies").mkdir()
    small = {**study["fixed"], **TINY}
    lines = [
        *('name = "quickstart"', "[budget]", "trials = 6", "[sampler]", "n_startup_trials = 4", "[search_space]"),
        *re.findall(r"^\w+ += \{ low.*$", (ROOT / "studies" / "quickstart.toml").read_text(), re.MULTILINE),
        *("[fixed]", *(f"{name} = {value}" for name, value in small.items())),
    ]
    (folder / "studies" / "quickstart.toml").write_text("\n".join(lines))
    run("hpopt db start && hpopt run studies/quickstart.toml --workers 2", folder, environment)
    yield folder, environment
    run("hpopt db stop", folder, environment)


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_block(block: Block, folder: Path, environment: dict[str, str]) -> None:
    if block.file:
        (folder / block.file).write_text(block.code)
        if block.language == "toml":
            run(f"hpopt check {block.file}", folder, environment)
    elif block.language == "bash":
        run(block.code, folder, environment)
    elif block.language == "python":
        (folder / "snippet.py").write_text(block.code)
        run("python snippet.py", folder, environment)
    elif block.language == "sql":
        with hpopt.connect(home=environment["HPOPT_HOME"]) as database:
            names, _ = queries.read_rows(database, block.code)
        assert names
    elif block.language == "toml":
        tomllib.loads(block.code)
    else:
        pytest.fail(f"{block.page.name}:{block.line}: a block without a language that can be run")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_and_snippets_of_a_page_run(page, environment):
    folder, variables = environment
    for block in read_blocks(page):
        if block.is_run:
            run_block(block, folder, variables)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_lead_to_files_and_headings(page):
    for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if not link.startswith(("https://", "http://")):
            target = page.parent / link if link else page
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), f"{link}#{anchor}"


def anchors_of(page):
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_exist(page):
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def test_the_columns_of_the_views_are_the_documented_ones(migrated_url):
    page = (ROOT / "docs" / "database.md").read_text()
    rows = re.findall(r"^\| `hpopt\.(\w+)` \|[^|]*\| ([^|]*) \|$", page, re.MULTILINE)
    documented = {view: re.findall(r"`(\w+)`", columns) for view, columns in rows}
    query = (
        "select table_name, array_agg(column_name::text order by ordinal_position) from information_schema.columns "
        "join information_schema.views using (table_schema, table_name) where table_schema = 'hpopt' group by 1"
    )
    with closing(Database(migrated_url)) as database:
        assert documented == dict(queries.read_rows(database, query)[1])


def test_ten_queries_are_answered():
    queries = (ROOT / "docs" / "database.md").read_text().partition("## Ten queries")[2]
    assert queries.count("```sql") == 10


def test_the_readme_has_at_most_120_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize(("name", "page"), [("api", "api.md"), ("study_file", "study-file.md")])
def test_the_generated_pages_are_current(name, page):
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (ROOT / "docs" / page).read_text() == getattr(generate, name)(), "run `make docs`"
