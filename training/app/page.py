"""The page: fields, button, result, examples; a second tab for a data set with predictions; the named API."""

import json
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmcot.training.app.answering import MAX_BEAMS, MAX_SAMPLES, AskError, answer_stream, problem_of
from mmcot.training.app.look import HEAD
from mmcot.training.app.rendering import empty_html, error_html, result_html

MAX_UPLOAD = "25mb"
OLDEST_GRADIO = 6
SCROLL: dict[str, Any] = {"fn": None, "js": "() => { window.mmScroll(); }", "api_visibility": "private"}


def build_app(
    pipeline,
    name: str = "",
    link: str | None = None,
    examples: Sequence[dict] = (),
    collection=None,
    note: str = "",
):
    """The page, a `gradio.Blocks`; `serve` shows it.

    Args:
        pipeline: a `multimodal-cot` pipeline, ours or transformers'.
        name: of the model, for the head; `link` leads to its card.
        examples: problems to click on: question, choices, context, image (a path or None).
        collection: a `Collection` for the second tab.
        note: a sentence on what the model can be asked, for the head.

    Raises:
        AskError: gradio isn't installed, or is too old.
    """
    gradio = _gradio()

    def respond(image, question, options, context, beams=1, tokens=0, samples=1, temperature=1.0, decode=False):
        try:
            problem = problem_of(image, question, options, context)
            told = answer_stream(
                pipeline,
                problem,
                num_beams=int(beams),
                max_new_tokens=int(tokens or 0) or None,
                samples=int(samples),
                temperature=temperature,
                decode=decode,
            )
            for state in told:
                yield result_html(state)
        except AskError as error:
            yield error_html(str(error))

    with gradio.Blocks(title=f"{name or 'Multimodal Chain-of-Thought'}: ask", analytics_enabled=False) as page:
        gradio.Markdown(_head(name, link, note), elem_id="mm-head")
        with gradio.Tabs():
            with gradio.Tab("Ask"):
                image = gradio.Image(
                    label="Picture (optional)", height=240, sources=["upload", "clipboard"], render=False
                )
                # the file as it was uploaded: what can't be read is told in a sentence, not by red badges
                image.preprocess = lambda payload: None if payload is None else payload.path
                question = gradio.Textbox(
                    label="Question", placeholder="What is shown?", elem_id="mm-question", render=False
                )
                options = gradio.Textbox(
                    label="Options, one to a line",
                    lines=3,
                    placeholder="red\nblue",
                    elem_id="mm-options",
                    render=False,
                )
                context = gradio.Textbox(label="Context (optional)", elem_id="mm-context", render=False)
                shown = gradio.HTML(empty_html(), elem_id="mm-out", render=False)
                fields = [image, question, options, context]
                if examples:
                    _examples(gradio, examples, fields, shown, respond)
                with gradio.Row():
                    with gradio.Column(min_width=300):
                        for field in fields:
                            field.render()
                        with gradio.Accordion("How it writes and answers", open=False):
                            decoding = _decoding(gradio)
                        button = gradio.Button("Answer", variant="primary", elem_id="mm-answer-button")
                    with gradio.Column(min_width=300):
                        shown.render()
            if collection is not None:
                with gradio.Tab("Go through a data set"):
                    from mmcot.training.app.browsing import build_browser

                    build_browser(gradio, collection)
        asked: dict[str, Any] = {"inputs": [*fields, *decoding], "outputs": shown, "api_visibility": "private"}
        for listen in (button.click, question.submit, options.submit, context.submit):
            listen(respond, **asked, show_progress="minimal", concurrency_limit=1, trigger_mode="once")
            listen(**SCROLL)
        gradio.api(_api(gradio, pipeline), api_name="answer")
    return page


def serve(
    page,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    mcp: bool = False,
    wait: bool = True,
    open_browser: bool = False,
    quiet: bool = False,
) -> str:
    """Shows the page, and returns its address.

    Args:
        host: "0.0.0.0" lets other machines in; by default only this one.
        share: through Gradio's public tunnel.
        mcp: serve the question also as a tool of the Model Context Protocol.
        wait: until it is interrupted.

    Raises:
        AskError: see `check_serving`.
    """
    check_serving(host, port, mcp=mcp)
    try:
        _, address, _ = page.queue(default_concurrency_limit=2).launch(
            server_name=host,
            server_port=port,
            share=share,
            mcp_server=mcp,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            head=HEAD,
            quiet=True,  # its own lines name options of `launch`
            theme=_theme(_gradio()),
            footer_links=["api"],
        )
    except OSError as error:
        raise AskError(f"the page can't be served on {host}:{port} ({error})") from None
    if not quiet:
        print(f"the page is at {page.share_url or address} (Ctrl+C ends it)", flush=True)
    if wait:
        page.block_thread()
    return address


def check_serving(host: str, port: int, *, mcp: bool = False) -> None:
    """Whether a page can be served: asked before a model is loaded for it.

    Raises:
        AskError: gradio or the package of `mcp` isn't installed, the port is taken, there is no such host.
    """
    _gradio()
    if mcp:
        try:
            import mcp as _  # noqa: F401
        except ImportError:
            raise AskError("--mcp needs its package: pip install 'gradio[mcp]'") from None
    try:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except socket.gaierror as error:
        raise AskError(f"--host {host}: is no address of this machine ({error.strerror})") from None
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AskError(f"the page can't be served on {host}:{port} ({reason}): choose another --port") from None


def _gradio():
    try:
        import gradio
    except ImportError:
        raise AskError("the browser app needs gradio: pip install 'mmcot[demo]'") from None
    if int(gradio.__version__.split(".")[0]) < OLDEST_GRADIO:
        raise AskError(f"the browser app needs gradio {OLDEST_GRADIO} or newer: pip install -U 'mmcot[demo]'")
    return gradio


def _theme(gradio):
    """Gradio's own theme in our blue, with fonts that the reader has and contrasts of at least 4.5."""
    theme = gradio.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        button_primary_background_fill="#0072b2",
        button_primary_background_fill_hover="#005c91",
        button_primary_background_fill_dark="#0072b2",
        button_primary_background_fill_hover_dark="#005c91",
        block_info_text_color="#5d5d68",
        block_info_text_color_dark="#a5a5b2",
        block_label_text_color="#3f3f46",
        input_placeholder_color="#6b6b76",
        input_placeholder_color_dark="#a5a5b2",
        body_text_color_subdued="#5d5d68",
        body_text_color_subdued_dark="#a5a5b2",
    )


def _head(name: str, link: str | None, note: str = "") -> str:
    title = "# Question and picture in, reasons and an answer out"
    model = f"Model: [{name}]({link})" if link else f"Model: {name}" if name else ""
    head = f"{title}\n\n{model} · [the method](https://arxiv.org/abs/2302.00923)".replace("\n\n ·", "\n\n")
    return f"{head}\n\n{note}" if note else head


def _decoding(gradio) -> list:
    return [
        gradio.Slider(1, MAX_BEAMS, 1, step=1, label="Beams", info="more than one: written at once, not word by word"),
        gradio.Slider(0, 512, 0, step=8, label="Longest rationale in tokens", info="0: as the model is set"),
        gradio.Slider(
            1, MAX_SAMPLES, 1, step=1, label="Rationales that vote", info="self-consistency; 1: the likeliest alone"
        ),
        gradio.Slider(0.1, 2.0, 1.0, step=0.1, label="Temperature", info="of rationales that vote"),
        gradio.Checkbox(label="Decode the answer freely", info="as the paper does; else the options are scored"),
    ]


def _examples(gradio, examples: Sequence[dict], fields: list, shown, respond: Callable) -> None:
    """Examples that are answered when they are clicked."""
    rows = [
        [one.get("image"), one["question"], "\n".join(one["choices"]), one.get("context") or ""] for one in examples
    ]
    labels = _labels([one["question"] for one in examples])
    clickable = gradio.Examples(
        rows,
        fields,
        shown,
        respond,
        run_on_click=True,
        cache_examples=False,
        label="Examples: click one",
        example_labels=labels,
        elem_id="mm-examples",
        api_visibility="private",
    )
    clickable.dataset.click(**SCROLL)


def _labels(questions: Sequence[str]) -> list[str]:
    """Short questions; of those that are the same the first, the second, …"""
    short, seen = [_short(question) for question in questions], Counter[str]()
    labels = []
    for text in short:
        seen[text] += 1
        labels.append(f"{seen[text]} · {text}" if short.count(text) > 1 else text)
    return labels


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:58]}…"


def _api(gradio, pipeline) -> Callable:
    """The function behind `/answer` and the MCP tool. Only a `gradio.Error` reaches the asker in words."""

    def answer(
        question: str, options: list[str], context: str = "", image: str = "", num_beams: int = 1, samples: int = 1
    ) -> dict:
        """Answers a multiple-choice question about a picture, with its rationale. The picture (image) is an http(s)
        address or a data: URL, as data:image/png;base64,…; options is a list of two to 26 texts.

        Args:
            question: The question.
            options: Two to 26 options.
            context: A text that belongs to the question.
            image: The picture as an http(s) address or a data: URL; empty for none.
            num_beams: Beams of the rationale.
            samples: Rationales that are sampled and vote.

        Returns:
            rationale; answer, its letter; answer_text; scores, option letter to share; without_picture, the answer
            that is given when the picture is left out.
        """
        try:
            if image and not (isinstance(image, str) and image.startswith(("http://", "https://", "data:image/"))):
                raise AskError("image must be an http(s) address or a data: URL")  # no file of this machine
            beams, votes = _within("num_beams", num_beams, MAX_BEAMS), _within("samples", samples, MAX_SAMPLES)
            problem = problem_of(image or None, question, options, context)
            *_, last = answer_stream(pipeline, problem, num_beams=beams, samples=votes)
        except AskError as error:
            raise gradio.Error(str(error), print_exception=False) from None

        def letter(index: int | None) -> str | None:
            return None if index is None else chr(65 + index)

        scores = last["scores"]
        return {
            "rationale": last["rationale"],
            "answer": letter(last["answer"]),
            "answer_text": None if last["answer"] is None else problem["choices"][last["answer"]],
            "scores": None if scores is None else {chr(65 + i): round(score, 4) for i, score in enumerate(scores)},
            "without_picture": letter(last["blind"]["answer"]) if last["blind"] else None,
        }

    return answer


def _within(name: str, value: Any, most: int) -> int:
    if not str(value).isdecimal() or not 1 <= int(value) <= most:
        raise AskError(f"{name} must be a whole number from 1 to {most}")
    return int(value)


def read_examples(folder: str | Path) -> list[dict]:
    """The examples that lie in a repository's folder; none where there are none, or no such thing."""
    file = Path(folder) / "examples" / "examples.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return [
            {**one, "image": str(file.parent / one["image"]) if one.get("image") else None}
            for one in found
            if problem_of(None, one["question"], one["choices"])
            and (not one.get("image") or (file.parent / one["image"]).is_file())
        ]
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return []
