"""The dashboard in a real browser, used from another machine with the password."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from finished_trials import SPACE, fill_optuna

from hpopt.dashboard.patches import CURVES_ID, MAX_STOCK_CURVES
from hpopt.storage.database import Database

playwright = pytest.importorskip("playwright.sync_api", reason="SKIPPED: the browser test needs the package playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="SKIPPED: the browser test needs the program chromium"),
]

PASSWORD = "correct horse battery"
CREDENTIALS: "playwright.HttpCredentials" = {"username": "hpopt", "password": PASSWORD}
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
# In a container root cannot use the sandbox; the other options keep Chromium off the network.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
OPTIONS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", e => console.error(e.violatedDirective, e.blockedURI));
"""


@pytest.fixture
def address(quickstart_url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a dashboard that is served to other machines."""
    (tmp_path / "password").write_text(PASSWORD + "\n")
    command = [sys.executable, "-m", "hpopt", "dashboard", "--host", "0.0.0.0", "--port", "0"]  # noqa: S104
    command += ["--password-file", str(tmp_path / "password")]
    environment = {**os.environ, "HPOPT_STORAGE": quickstart_url}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield process.stderr.readline().split()[2].replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        finally:
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


def test_every_view_of_a_study_is_drawn_without_errors(page: playwright.Page, address: str):
    """The browser reports what the Content-Security-Policy forbids although the page needs it."""
    errors: list[str] = []
    page.add_init_script(REPORT_VIOLATIONS)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: None if is_local(request.url, address) else errors.append(request.url))
    page.goto(address)
    page.get_by_text("quickstart").click()
    page.get_by_text("Hyperparameter Importance").first.wait_for()
    study = page.url.partition("?")[0]
    texts = {"": "Timeline", "/analytics": "Contour", "/trials": "Best Trial", "/smartSelection": "You can drag"}
    for view, text in {**texts, "/note": "Note"}.items():
        page.goto(study + view)
        page.get_by_text(text).locator("visible=true").first.wait_for()
        page.wait_for_load_state("networkidle")
    assert errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_study_has_the_figures_of_hpopt(browser: playwright.Browser, address: str, scheme: str):
    """Screenshots of the whole page are left in test-artifacts/."""
    errors: list[str] = []
    context = browser.new_context(http_credentials=CREDENTIALS, color_scheme=scheme, viewport=TALL)
    page = context.new_page()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
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
    assert errors == []


def is_local(url: str, address: str) -> bool:
    return url.startswith((address.removesuffix("/dashboard"), "data:", "blob:"))


def test_the_page_shows_why_nothing_can_be_saved(page: playwright.Page, address: str):
    page.goto(f"{address}/studies/1/note")
    page.locator(".MuiCard-root button").first.click()
    page.locator("textarea").first.fill("Looks good.")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Failed: this dashboard is read-only").wait_for()


def test_without_the_password_the_page_is_not_shown(browser: playwright.Browser, address: str):
    with pytest.raises(playwright.Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
        browser.new_page().goto(address)


def test_the_page_of_a_large_study_requests_its_trials_once_and_draws_the_replaced_curves(
    page: playwright.Page, address: str, quickstart_url: str
):
    """The browser must preload exactly the URL that the page requests, or the trials would be sent twice."""
    with closing(Database(quickstart_url)) as database:
        study = optuna.create_study(study_name="large", storage=database.optuna)
        with database.begin() as connection:
            fill_optuna(connection, study._study_id, MAX_STOCK_CURVES + 1)
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url) if "after=" in request.url else None)
    page.goto(f"{address}/studies/{study._study_id}")
    page.locator(f'[id="user-defined-plot:{CURVES_ID}"] .scatterlayer path').first.wait_for(state="attached")
    assert page.locator("#graph-intermediate-values").count() == 0
    assert requested == [f"{address.removesuffix('/dashboard')}/api/studies/{study._study_id}?after=0"]
