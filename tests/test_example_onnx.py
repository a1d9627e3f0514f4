"""examples/onnx_export.py, onnx_answer.py and the page of browser/: the same answers in every runtime."""

import functools
import http.server
import importlib
import io
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"the export needs {package}: pip install onnx onnxscript onnxruntime")

pytestmark = pytest.mark.slow  # a minute for five graphs
EXAMPLES = Path(__file__).parents[1] / "examples"
# a folder with the page's two packages: npm install --prefix DIR onnxruntime-web@1.30.0 @huggingface/tokenizers@0.2.0
PACKAGES = Path(os.environ.get("MMCOT_WEB_PACKAGES", "web-packages")) / "node_modules"
CDN = "https://cdn.jsdelivr.net/npm/"
WAIT = 120_000  # ms


def questions():
    from mmcot.training import generate_problems

    return [dict(problem) for problem in generate_problems(6, seed=11)]


@pytest.fixture(scope="module")
def graphs(two_stage_repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "model"
    command = [sys.executable, EXAMPLES / "onnx_export.py", two_stage_repository, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def onnx_answers(graphs):
    sys.path.insert(0, str(EXAMPLES))
    model = importlib.import_module("onnx_answer").OnnxModel(graphs)
    return [model(problem) for problem in questions()]


def test_onnx_answers_are_the_models(two_stage_repository, onnx_answers):
    from mmcot.training import load_pipeline

    expected = load_pipeline(two_stage_repository, "cpu", dtype="float32")(questions())
    assert len({answer["rationale"] for answer in expected}) > 2
    for result, own in zip(onnx_answers, expected, strict=True):
        assert (result["rationale"], result["answer"]) == (own["rationale"], own["answer"])
        assert result["scores"] == pytest.approx(own["scores"], abs=1e-4)


@pytest.fixture
def page(graphs, tmp_path):
    """The page of examples/browser in Chromium, its CDN answered from a folder."""
    if not PACKAGES.is_dir():
        pytest.skip("the page's packages aren't here (MMCOT_WEB_PACKAGES names the folder of an `npm install`)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    site = shutil.copytree(EXAMPLES / "browser", tmp_path / "site")
    shutil.copytree(graphs, site / "model")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chromium = os.environ.get("MMCOT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": 390, "height": 844})
        opened.route(f"{CDN}**", _from_folder)
        opened.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        opened.wait_for_function("document.getElementById('state').textContent == 'ready'", timeout=WAIT)
        yield opened
        browser.close()
    server.shutdown()


def _from_folder(route) -> None:
    package, _, rest = route.request.url.removeprefix(CDN).replace("@huggingface/", "@huggingface+").partition("/")
    file = PACKAGES / package.rpartition("@")[0].replace("+", "/") / rest
    kind = "application/wasm" if file.suffix == ".wasm" else "text/javascript"
    route.fulfill(body=file.read_bytes(), content_type=kind, headers={"access-control-allow-origin": "*"})


def test_page_answers_as_onnx_does(page, onnx_answers):
    from mmcot.processing import load_images

    for problem, expected in zip(questions(), onnx_answers, strict=True):
        page.fill("#question", problem["question"])
        page.fill("#choices", "\n".join(problem["choices"]))
        page.fill("#context", problem["context"] or "")
        files = []
        for image in load_images(problem)[:1]:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            files = [{"name": "picture.png", "mimeType": "image/png", "buffer": buffer.getvalue()}]
        page.set_input_files("#image", files)
        page.press("#question", "Enter")
        page.wait_for_function("!document.getElementById('button').disabled", timeout=WAIT)
        assert page.inner_text("#state") == "ready"
        assert page.inner_text("#answer").startswith(f"({expected['answer']}) {expected['answer_text']}")
        assert page.inner_text("#rationale") == (expected["rationale"] or "(nothing)")
        shown = [float(row.split()[-2]) for row in page.locator(".bar").all_inner_texts()]
        assert shown == pytest.approx([100 * score for score in expected["scores"].values()], abs=0.2)
        assert bool(page.inner_text("#blind")) == bool(files)
    page.fill("#choices", "only one")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "fits a phone"
