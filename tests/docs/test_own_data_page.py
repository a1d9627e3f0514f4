"""docs/own-data.md, from the folder of pictures to the published repository, by its own commands."""

import importlib.util
import json
import urllib.request

import pytest
from doc_blocks import ENDLESS, blocks_of, run_block, run_until
from own_data import environment, make_hub_cache

pytestmark = pytest.mark.slow  # a dozen processes, each of which imports torch


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_tokenizer):
    """The page up to the published repository: (folder, output of each block by its first words, variables)."""
    folder = tmp_path_factory.mktemp("own-data")
    env = environment(make_hub_cache(folder / "home", tiny_tokenizer))
    outputs = {}
    for block in blocks_of("docs/own-data.md"):
        if block.note != ENDLESS and "mmcot push" not in block.text:
            outputs[" ".join(block.text.split()[:2])] = run_block(block, folder, env)
    return folder, outputs, env


def test_page_from_pictures_to_results(done):
    folder, outputs, _ = done
    assert "nothing stands in the way of a training" in outputs["mmcot check"]
    assert (folder / "check.html").is_file() and "mmcot app runs/quiz " in outputs["mmcot train"]
    assert "->" in outputs["from transformers"]
    assert "<img" in (folder / "report.html").read_text() and "protocol: generated" in outputs["mmcot report"]
    measured = json.loads((folder / "runs/quiz/results_test.json").read_text())
    assert f"{measured['accuracy']['Avg']:.2f}" in outputs["mmcot report"], "equal figures by every route"


def test_page_in_the_browser(done):
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio isn't installed (the [demo] extra)")
    folder, _, env = done
    [block] = [block for block in blocks_of("docs/own-data.md") if block.note == ENDLESS]
    env = {**env, "GRADIO_ANALYTICS_ENABLED": "False", "BROWSER": "true"}
    found = {}

    def asked(url):
        found["page"] = urllib.request.urlopen(url, timeout=20).read().decode()

    run_until(block, folder, env, r"http://127\.0\.0\.1:\d+", then=asked)
    assert "gradio" in found["page"]


def test_page_publishes(done, hub):
    folder, _, env = done
    listing, pushed = (
        run_block(
            block._replace(text=block.text.replace("your-name", "tester")),
            folder,
            {**env, **hub.environment, "HF_HUB_OFFLINE": "0"},
        )
        for block in blocks_of("docs/own-data.md")
        if "mmcot push" in block.text
    )
    assert "To tester/quiz would go" in listing and "pipeline(" in pushed
    files = set(hub.files("tester/quiz"))
    assert {"README.md", "example.png", "predictions_test.jsonl", "requirements.txt"} <= files
    assert all(name in listing for name in files - {".gitattributes"})
