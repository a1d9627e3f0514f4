"""The page in headless Chromium, from click to answer, keyboard included."""

import os
import shutil
import socket

import pytest
from PIL import Image

gradio = pytest.importorskip("gradio", minversion="6", reason="the app needs gradio: pip install 'mmcot[demo]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

CHROMIUM = os.environ.get("MMCOT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
WAIT = 60_000  # ms


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM} if CHROMIUM else {}
        try:
            browser = playwright.chromium.launch(args=["--no-sandbox", "--disable-gpu"], timeout=WAIT, **options)
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(two_stage_repository, tmp_path_factory):
    """The page of a random model, with an example and a data tab."""
    from mmcot.training.app.browsing import Collection
    from mmcot.training.app.page import build_app, read_examples, serve
    from mmcot.training.data.problems import load_problems
    from mmcot.training.hub.examples import write_examples
    from mmcot.training.inference.predict import load_pipeline

    problems = load_problems("embedded:n=12,seed=3,skills=flag+tense", "test")
    folder = tmp_path_factory.mktemp("examples")
    write_examples(problems, folder)
    answers = {one["id"]: {"answer": 0, "rationale": "Because.", "scores": {"A": 0.7, "B": 0.3}} for one in problems}
    pipeline = load_pipeline(two_stage_repository, device="cpu")
    collection = Collection(problems, {"ours": answers})
    page = build_app(pipeline, "tests/tiny", "https://huggingface.co/tests/tiny", read_examples(folder), collection)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield serve(page, port=port, wait=False, quiet=True)
    page.close()


@pytest.fixture
def page(browser, address, request):
    size = getattr(request, "param", (1200, 900))
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector("#mm-question textarea, #mm-question input")
    yield page
    context.close()


def field(page, name):
    return page.locator(f"#mm-{name} textarea, #mm-{name} input").first


def test_from_fields_to_answer_by_the_button(page, tmp_path):
    picture = tmp_path / "picture.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(picture)
    page.locator("input[type=file]").first.set_input_files(str(picture))
    field(page, "question").fill("What is it?")
    field(page, "options").fill("(A) red\n(B) blue\n(C) green")
    page.wait_for_function("document.querySelector('[data-testid=image] img, .image-container img')")
    page.get_by_role("button", name="Answer", exact=True).click()
    page.wait_for_selector(".mm-blind")
    result = page.locator("#mm-out")
    assert result.locator(".mm-answer").count() == 2  # with the picture and without
    assert result.locator(".mm-result > section .mm-bars").first.locator("li").count() == 3
    assert "(A) red" in result.inner_text() and "(A) (A)" not in result.inner_text()
    # the canvas over the picture follows the word that is chosen
    canvas = result.locator("canvas")
    page.wait_for_function("document.querySelector('#mm-out canvas').dataset.shown")
    whole = canvas.get_attribute("data-shown")
    word = result.locator(".mm-words .mm-word").nth(1)
    word.click()
    assert canvas.get_attribute("data-shown") == word.get_attribute("data-grid") != whole
    assert word.get_attribute("aria-pressed") == "true"
    word.press("Enter")  # again, by keyboard: all words
    assert canvas.get_attribute("data-shown") == whole and word.get_attribute("aria-pressed") == "false"


def test_enter_answers_and_the_keyboard_suffices(page):
    field(page, "question").focus()
    page.keyboard.type("What is it?")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#mm-options') !== null")
    page.keyboard.type("red")
    page.keyboard.press("Enter")  # a new line in the options
    page.keyboard.type("blue")
    field(page, "question").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#mm-out .mm-answer")
    assert page.locator("#mm-out .mm-option").count() == 2


def test_an_example_is_answered_by_a_click(page):
    page.locator("#mm-examples button").first.click()
    page.wait_for_selector("#mm-out .mm-blind")
    assert field(page, "question").input_value() and page.locator("#mm-out .mm-option").count() >= 4


def test_what_is_wrong_is_a_sentence_and_no_badge(page, tmp_path):
    page.get_by_role("button", name="Answer", exact=True).click()
    page.wait_for_selector("#mm-out .mm-error")
    assert "Write a question first" in page.locator("#mm-out").inner_text()
    field(page, "question").fill("What is it?")
    field(page, "options").fill("red\nblue")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG no picture at all")
    page.locator("input[type=file]").first.set_input_files(str(broken))
    page.wait_for_timeout(800)
    page.get_by_role("button", name="Answer", exact=True).click()
    page.wait_for_function("document.querySelector('#mm-out').innerText.includes('picture')")
    assert "This picture can't be read" in page.locator("#mm-out .mm-error").inner_text()
    assert page.locator("#mm-out .mm-error").count() == 1 and page.locator(".toast-body.error").count() == 0


@pytest.mark.parametrize("page", [(390, 800)], indirect=True)
def test_on_a_phone_nothing_is_wider_than_the_screen_and_the_result_scrolls_into_view(page):
    field(page, "question").fill("What is it?")
    field(page, "options").fill("red\nblue")
    page.evaluate("window.scrollTo(0, 0)")
    field(page, "question").press("Enter")
    page.wait_for_selector("#mm-out .mm-answer")
    page.wait_for_function("document.querySelector('#mm-out').getBoundingClientRect().top < 200")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_data_set_is_leafed_through_and_filtered(page):
    page.get_by_role("tab", name="Go through a data set").click()
    count = page.locator("#mm-count")
    count.get_by_text("1 of 12 questions").wait_for()
    first = page.locator("#mm-browse").inner_text()
    page.locator("#mm-next").click()
    count.get_by_text("2 of 12 questions").wait_for()
    assert page.locator("#mm-browse").inner_text() != first
    page.locator("#mm-words-filter textarea, #mm-words-filter input").first.fill("no such words")
    count.get_by_text("no question is left").wait_for()


def test_programs_ask_by_named_parameters(address, two_stage_repository):
    gradio_client = pytest.importorskip("gradio_client")
    from mmcot.training.inference.predict import load_pipeline

    client = gradio_client.Client(address, verbose=False)
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/answer"]
    found = client.predict(question="What is it?", options=["red", "blue"], api_name="/answer")
    expected = load_pipeline(two_stage_repository, device="cpu")(
        {"question": "What is it?", "choices": ["red", "blue"], "context": "", "image": None}
    )
    assert found["answer"] == expected["answer"] and found["rationale"] == expected["rationale"]
    assert found["without_picture"] is None
    nothing = {"question": "What?", "options": ["a", "b"], "context": None, "image": None}
    assert client.predict(**nothing, api_name="/answer")["answer"] in ("A", "B")
    for wrong, told in (
        ({"image": "/etc/hostname"}, "http"),
        ({"image": {"path": "/etc/hostname"}}, "http"),
        ({"image": "data:image/png;base64,abc"}, "This picture can't be read"),
        ({"options": ["a"]}, "at least two options"),
        ({"options": {"A": "red", "B": "blue"}}, "list of texts"),
        ({"options": ["a", None]}, "list of texts"),
        ({"question": "word " * 3000}, "shorten them"),
        ({"num_beams": 1000}, "from 1 to 8"),
        ({"samples": "many"}, "from 1 to 16"),
    ):
        with pytest.raises(Exception, match=told):
            client.predict(**{"question": "What?", "options": ["a", "b"], **wrong}, api_name="/answer")
