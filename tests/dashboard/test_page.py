"""The dashboard in a real browser, as a colleague sees it who was given the password."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from finished_trials import SPACE, fill_optuna, make_finished_study

from hpopt.dashboard.patches import FIGURE_ID, MAX_STOCK_CURVES
from hpopt.storage import migrate
from hpopt.storage.database import Database

playwright = pytest.importorskip("playwright.sync_api", reason="SKIPPED: the browser test needs the package playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="SKIPPED: the browser test needs the program chromium"),
]

PASSWORD = "correct horse battery"
CREDENTIALS: "playwright.HttpCredentials" = {"username": "hpopt", "password": PASSWORD}
QUICKSTART = (Path(__file__).parents[2] / "studies" / "quickstart.toml").read_text()
ARTIFACTS = Path(__file__).parents[2] / "test-artifacts"
TALL = {"width": 1400, "height": 3400}
TITLES = (
    *(f"Sensitivity to {name}" for name in SPACE),
    "Importance by two measures",
    "Interactions",
    "Optimum by training length",
    "Parallel coordinates of the best trials",
    "Learning curves of the best and pruned trials",
)
# Root has no sandbox of its own in a container, and a test has no business with the network.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
OPTIONS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SAY_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", e => console.error(e.violatedDirective, e.blockedURI));
"""


@pytest.fixture
def address(database_url: str, tmp_path: Path) -> Iterator[str]:
    """A study, served as to other machines."""
    database = Database(database_url)
    migrate.upgrade(database)
    make_finished_study(database, QUICKSTART, 60, metrics={"val_perplexity": 20.0})
    database.close()
    (tmp_path / "password").write_text(PASSWORD + "\n")
    command = [sys.executable, "-m", "hpopt", "dashboard", "--host", "0.0.0.0", "--port", "0"]  # noqa: S104
    command += ["--password-file", str(tmp_path / "password")]
    environment = {**os.environ, "HPOPT_STORAGE": database_url}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        yield process.stderr.readline().split()[2].rstrip(",").replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        process.terminate()


@pytest.fixture
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: playwright.Browser) -> playwright.Page:
    return browser.new_context(http_credentials=CREDENTIALS).new_page()


def test_every_view_of_a_study_is_drawn_without_a_complaint(page: playwright.Page, address: str):
    """The policy of content forbids what the page does not need; the browser says where that is too much."""
    complaints: list[str] = []
    page.add_init_script(SAY_VIOLATIONS)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if is_ours(request.url, address) else complaints.append(request.url))
    page.goto(address)
    page.get_by_text("quickstart").click()
    page.get_by_text("Hyperparameter Importance").first.wait_for()
    study = page.url.partition("?")[0]
    texts = {"": "Timeline", "/analytics": "Contour", "/trials": "Best Trial", "/smartSelection": "You can drag"}
    for view, text in {**texts, "/note": "Note"}.items():
        page.goto(study + view)
        page.get_by_text(text).locator("visible=true").first.wait_for()
        page.wait_for_load_state("networkidle")
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_our_figures_are_in_the_page_of_a_study(browser: playwright.Browser, address: str, scheme: str):
    """Seen by their titles; pictures of the whole page are left in test-artifacts/."""
    complaints: list[str] = []
    context = browser.new_context(http_credentials=CREDENTIALS, color_scheme=scheme, viewport=TALL)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}/studies/1")
    for title in TITLES:
        page.locator(".gtitle", has_text=title).wait_for()
    curves = page.locator('[id^="user-defined-plot:hpopt-sensitivity"] .scatterlayer .js-line')
    assert curves.count() >= 4
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"dashboard-{scheme}.png")
    page.goto(f"{address}/studies/1/note")
    page.get_by_text("not confirmed", exact=False).first.wait_for()
    page.screenshot(path=ARTIFACTS / f"note-{scheme}.png")
    assert complaints == []


def is_ours(url: str, address: str) -> bool:
    return url.startswith((address.removesuffix("/dashboard"), "data:", "blob:"))


def test_the_page_says_why_nothing_can_be_saved(page: playwright.Page, address: str):
    page.goto(f"{address}/studies/1/note")
    page.locator(".MuiCard-root button").first.click()
    page.locator("textarea").first.fill("Looks good.")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Failed: this dashboard is read-only").wait_for()


def test_who_has_no_password_sees_nothing(browser: playwright.Browser, address: str):
    with pytest.raises(playwright.Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
        browser.new_page().goto(address)


def test_the_page_of_a_large_study_asks_once_for_its_trials_and_draws_our_curves(
    page: playwright.Page, address: str, database_url: str
):
    """What the browser is told to fetch early must be what the page then asks for, or it would be sent twice."""
    database = Database(database_url)
    study = optuna.create_study(study_name="large", storage=database.optuna)
    with database.begin() as connection:
        fill_optuna(connection, study._study_id, MAX_STOCK_CURVES + 1)
    database.close()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "after=" in request.url else None)
    page.goto(f"{address}/studies/{study._study_id}")
    page.locator(f'[id="user-defined-plot:{FIGURE_ID}"] .scatterlayer path').first.wait_for(state="attached")
    assert page.locator("#graph-intermediate-values").count() == 0
    assert asked == [f"{address.removesuffix('/dashboard')}/api/studies/{study._study_id}?after=0"]
