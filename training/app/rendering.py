"""An answer as HTML: rationale, a bar for every option, the picture under the attention of the word that is chosen."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mmcot.training.app.answering import LETTERS

LABELS = {"Question:", "Context:", "Options:", "Solution:", "Answer:"}
PICTURE = 300  # pixels of the longer side
NOT_A_PROOF = "Attention is no proof: it shows where image features came from, not why the answer is what it is."


def result_html(state: Mapping[str, Any]) -> str:
    """The state of an answer (see `answer_stream`) as HTML."""
    if not state["done"]:
        text = escape(state["rationale"]) or "…"
        return _box(
            f'<section><h3>Rationale</h3><p class="mm-rationale">{text}<span class="mm-caret">▍</span></p></section>'
        )
    parts = []
    if state["rationale"]:
        parts.append(f'<section><h3>Rationale</h3><p class="mm-rationale">{_rationale(state)}</p></section>')
    parts.append(f"<section><h3>Answer</h3>{answer_html(state)}</section>")
    if state["picture"] is not None:
        parts += [_looking(state), _blind(state)]
    return _box("".join(parts))


def error_html(sentence: str) -> str:
    """What went wrong, in a sentence."""
    return _box(f'<p class="mm-error" role="alert">{escape(sentence)}</p>')


def empty_html() -> str:
    return _box('<p class="mm-soft">The rationale and the answer will stand here.</p>')


def answer_html(told: Mapping[str, Any], gold: int | None = None) -> str:
    """The answer and a bar for every option; `gold` marks the right one."""
    answer, choices, scores = told["answer"], told["choices"], told["scores"]
    if answer is None:
        head = "No answer could be read from what it wrote."
    else:
        head = f"({LETTERS[answer]}) {escape(choices[answer])}"
        if gold is not None:
            head += " · right" if gold == answer else f" · wrong, it is ({LETTERS[gold]})"
    kind = "" if gold is None else " mm-right" if gold == answer else " mm-wrong"
    votes = told.get("votes")
    note = ""
    if votes:
        said = ", ".join(f"({letter}) {count}" for letter, count in sorted(votes.items()))
        note = f'<p class="mm-soft">votes: {said}; the bars are of the winning rationale</p>'
    return f'<p class="mm-answer{kind}">{head}</p>{bars_html(choices, scores, answer)}{note}'


def bars_html(choices: Sequence[str], scores: Sequence[float] | None, answer: int | None) -> str:
    """A bar for every option; without scores the options alone."""
    rows = []
    for i, choice in enumerate(choices):
        share = None if scores is None else 100 * scores[i]
        told = "" if share is None else f"{share:.0f} %"
        width = 0 if share is None else share
        chosen = " mm-chosen" if i == answer else ""
        rows.append(
            f'<li class="mm-option{chosen}"><span class="mm-name">({LETTERS[i]}) {escape(choice)}</span>'
            f'<span class="mm-share">{told}</span>'
            f'<span class="mm-track"><span class="mm-bar" style="width:{width:.1f}%"></span></span></li>'
        )
    return f'<ul class="mm-bars">{"".join(rows)}</ul>'


def _rationale(state: Mapping[str, Any]) -> str:
    words = state["rationale_words"]
    if not any(grid for _, grid in words):
        return escape(state["rationale"]).replace("\n", "<br>")
    return " ".join(_word(word, grid) for word, grid in words)


def _word(word: str, grid: list | None) -> str:
    text = escape(word)
    if grid is None:
        return f"<span>{text}</span>"
    label = " mm-label" if word in LABELS else ""
    # no <button>: the page's own style for those is a heavy one
    return (
        f'<span role="button" tabindex="0" class="mm-word{label}" data-grid="{packed(grid)}" aria-pressed="false">'
        f"{text}</span>"
    )


def packed(grid: list[list[float]]) -> str:
    """A grid as "rows:hex": each place from 00, where the word looks least, to ff."""
    values = [value for row in grid for value in row]
    low, high = min(values), max(values)
    scale = 255 / (high - low) if high > low else 0
    return f"{len(grid)}:" + "".join(f"{round((value - low) * scale):02x}" for value in values)


def _looking(state: Mapping[str, Any]) -> str:
    picture = picture_html(state["picture"], "mm-picture")
    words = state["question_words"]
    if not any(grid for _, grid in words):
        return f'<section class="mm-look"><h3>Picture</h3><div class="mm-stage">{picture}</div></section>'
    grids = [grid for _, grid in (state["rationale_words"] or words) if grid] or [grid for _, grid in words if grid]
    size = len(grids[0])
    mean = [[sum(grid[i][j] for grid in grids) / len(grids) for j in range(size)] for i in range(size)]
    text = " ".join(_word(word, grid) for word, grid in words)
    return (
        f'<section class="mm-look"><h3>Where it looks</h3><div class="mm-columns"><div class="mm-stage" '
        f'data-grid="{packed(mean)}">{picture}<canvas class="mm-canvas"></canvas></div><div>'
        f'<p class="mm-soft">Choose a word of the question here, or of the rationale above: the picture stays bright '
        f'where its attention lies. Choose it again for all words.</p><p class="mm-words">{text}</p></div></div>'
        f'<p class="mm-soft">{NOT_A_PROOF}</p></section>'
    )


def _blind(state: Mapping[str, Any]) -> str:
    blind = state["blind"]
    if not state["sees"]:
        told = "It has no eyes: this model was trained on text alone, and its answer doesn't depend on the picture."
        return f'<section class="mm-blind"><h3>Does it look, or does it guess?</h3><p>{told}</p></section>'
    if blind is None:
        wait = '<p class="mm-soft">asking without the picture …</p>'
        return f"<section><h3>Does it look, or does it guess?</h3>{wait}</section>"
    same = blind["answer"] == state["answer"]
    told = (
        "Without the picture it says the same: for this question, that is no sign that it looked."
        if same
        else "Without the picture it says something else: the picture made the difference."
    )
    rationale = f'<p class="mm-rationale mm-small">{escape(blind["rationale"])}</p>' if blind["rationale"] else ""
    return (
        f'<section class="mm-blind"><h3>Does it look, or does it guess?</h3><p>{told}</p>'
        f"<details open><summary>Without the picture</summary>{rationale}"
        f"{answer_html({**blind, 'choices': state['choices']})}</details></section>"
    )


def picture_html(image, kind: str = "") -> str:
    """An `<img>` that holds a PIL image."""
    small = image.convert("RGB")
    small.thumbnail((2 * PICTURE, 2 * PICTURE))
    buffer = io.BytesIO()
    little = small.width * small.height <= 40_000
    small.save(buffer, "PNG" if little else "JPEG", **({} if little else {"quality": 85}))
    data = base64.b64encode(buffer.getvalue()).decode()
    width = PICTURE if small.width >= small.height else round(PICTURE * small.width / small.height)
    look = " mm-pixels" if max(small.size) < PICTURE / 2 else ""
    return (
        f'<img class="{kind}{look}" alt="the picture of the question" width="{width}" '
        f'src="data:image/{"png" if little else "jpeg"};base64,{data}">'
    )


def escape(text: Any) -> str:
    return html.escape(str(text))


def _box(body: str) -> str:
    return f'<div class="mm-result" aria-live="polite">{body}</div>'
