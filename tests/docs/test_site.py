"""The documentation as a site: built without a warning, read in headless Chromium on a phone, without a network."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from doc_blocks import ROOT

pytest.importorskip("mkdocs", reason="mkdocs isn't installed (the [docs] extra)")

CHROMIUM = os.environ.get("MMCOT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
# elements that stick out on the right, and don't stand in a box that scrolls
STICKING_OUT = """() => [...document.querySelectorAll('.md-content *')].filter(element => {
    if (element.getBoundingClientRect().right <= document.documentElement.clientWidth + 1) return false
    for (let box = element; box !== document.body; box = box.parentElement)
        if (getComputedStyle(box).overflowX !== 'visible') return false
    return true
}).map(element => element.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site's folder."""
    folder = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "contains a link" not in done.stderr, done.stderr[-2000:]
    return folder


def page_of(site: Path, name: str) -> str:
    return (site / ("" if name == "index" else name) / "index.html").read_text(encoding="utf-8")


def test_pages_say_what_the_code_says(site):
    reference = page_of(site, "api")
    assert "run_recipe" in reference and "TwoStageTrainer" in reference
    commands = page_of(site, "cli")
    assert "mmcot push" in commands and "--dry-run" in commands and "%(default)" not in commands
    keys = page_of(site, "training")
    assert "blank_probe" in keys and "per_device_train_batch_size" in keys and "%%" not in keys


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_fetched_from_elsewhere(site, name):
    """Links may lead anywhere; what a page loads by itself comes with it."""
    loads = re.findall(r"<(?!a\b)\w+[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", page_of(site, name))
    assert not loads


def test_equations_are_drawn_without_a_script(site):
    source = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    text = page_of(site, "method")
    assert text.count("<math") == source.count("$$") // 2 + source.count(r"\(") + source.count(r"\qquad")
    assert not re.search(r"\\(text|big|frac|tag|lambda)\b|[\\$]{2}", text)
    assert all(f"<span>({number})</span>" in text for number in re.findall(r"\\tag\{(\d)\}", source))


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM} if CHROMIUM else {}
        try:
            browser = playwright.chromium.launch(args=["--no-sandbox", "--disable-gpu"], timeout=60_000, **options)
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_on_a_phone(browser, address, scheme):
    """No request to another host, nothing missing, no error in the console, nothing wider than the screen."""
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page, wrong = context.new_page(), []
    page.on("request", lambda one: one.url.startswith((address, "data:", "blob:")) or wrong.append(one.url))
    page.on("response", lambda one: one.status < 400 or wrong.append(f"{one.status} {one.url}"))
    page.on("console", lambda one: one.type == "error" and wrong.append(one.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    for name in PAGES:
        page.goto(address + ("" if name == "index" else f"{name}/"), wait_until="load", timeout=60_000)
        page.wait_for_timeout(300)
        wrong += [f"{name}: {element}" for element in page.evaluate(STICKING_OUT)]
        for equation in page.query_selector_all("math"):
            box = equation.bounding_box()
            assert box and box["width"] > 5 and box["height"] > 5, f"{name}: {equation.inner_html()}"
    context.close()
    assert not wrong
