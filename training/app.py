"""The page that asks a model in the browser."""

from mmcot.training.common import UserError


def ask(pipeline, picture, question: str, options: str, context: str) -> tuple[str, str, dict[str, float]]:
    """One problem as the page has it: `options` one to a line.

    Returns:
        rationale, answer, and option → probability.

    Raises:
        UserError: what the pipeline refuses (no question, fewer than two options, …).
    """
    choices = [line.strip() for line in options.splitlines() if line.strip()]
    result = pipeline({"question": question, "choices": choices, "context": context, "image": picture})
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    scores = {
        f"({letter}) {choice}": (result["scores"] or {}).get(letter, 0.0)
        for letter, choice in zip(letters, choices, strict=True)
    }
    return result["rationale"] or "", f"({result['answer']}) {result['answer_text']}", scores


def build_app(model, device=None):
    """The page, a `gradio.Blocks`.

    Raises:
        UserError: gradio isn't installed.
    """
    try:
        import gradio
    except ImportError:
        raise UserError("the browser app needs gradio: pip install 'mmcot[demo]'") from None
    from mmcot.training.inference.predict import load_pipeline

    pipeline = load_pipeline(model, device)

    def answer(*fields):
        try:
            return ask(pipeline, *fields)
        except ValueError as error:
            raise gradio.Error(str(error)) from None

    with gradio.Blocks(title="Multimodal Chain-of-Thought") as page:
        gradio.Markdown(
            "## Multimodal Chain-of-Thought\nA picture, a question and its options; reasons and an answer."
        )
        with gradio.Row():
            with gradio.Column():
                fields = [
                    gradio.Image(type="pil", label="Picture (optional)"),
                    gradio.Textbox(label="Question"),
                    gradio.Textbox(label="Options, one to a line", lines=4),
                    gradio.Textbox(label="Context (optional)"),
                ]
                button = gradio.Button("Answer", variant="primary")
            with gradio.Column():
                shown = [
                    gradio.Textbox(label="Rationale", lines=6),
                    gradio.Textbox(label="Answer"),
                    gradio.Label(label="Scores of the options"),
                ]
        button.click(answer, fields, shown)
    return page
