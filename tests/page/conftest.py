"""Shared by the tests of the page: which of them can run, one browser, and pages of several kinds of RNNs."""

import importlib.util
import shutil

import pytest


def missing() -> str | None:
    """Returns what the tests marked `browser` lack on this machine."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed (pip install -c constraints.txt -e '.[browser]')"
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return "Chromium is not installed (Debian: apt-get install chromium chromium-driver)"
    return None


def pytest_collection_modifyitems(items):
    why = missing()
    for item in items:
        if "browser" in item.keywords and why:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium without a window."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "window-size=1200,900",
        "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()
