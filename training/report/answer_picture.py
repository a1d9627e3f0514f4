"""One answered question as a small SVG: picture, where the network looked, question, options, rationale, answer."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import written_whole
from mmcot.training.pages import escape

WIDTH, SIDE, MARGIN, LINE = 860, 190, 20, 21
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PER_LINE = 52  # characters


def draw_answer(problem: Mapping[str, Any], result: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the SVG (white ground, readable on a dark page too).

    Args:
        problem: with a picture.
        result: what the pipeline gave for it with `return_attention=True`.
    """
    from mmcot.processing import load_images
    from mmcot.training.report.drawing import attention_grid, overlay

    image = load_images(problem)[0]
    attention = result.get("attention") or {}
    weights = attention.get("rationale", attention.get("answer"))
    grid = None if weights is None else attention_grid(weights)
    panels = [(image, "picture")]
    if grid is not None:
        enlarged = image.resize((SIDE, SIDE)) if max(image.size) < SIDE else image
        panels.append((overlay(enlarged, grid), "where it looks"))
    parts, left = [], MARGIN
    for panel, label in panels:
        parts.append(
            f'<image x="{left}" y="{MARGIN}" width="{SIDE}" height="{SIDE}" href="{_encoded(panel)}" '
            f'style="image-rendering:pixelated" preserveAspectRatio="xMidYMid meet"/>'
            f'<text x="{left}" y="{MARGIN + SIDE + 18}" class="soft">{label}</text>'
        )
        left += SIDE + MARGIN
    text, height = _text(problem, result, left)
    height = max(height, SIDE + 2 * MARGIN + 18)
    alt = escape(f"{problem['question']} {result['rationale'] or ''} Answer: {result['answer_text']}")
    style = (
        "text{font:15px system-ui,sans-serif;fill:#1c1c22}.soft{font-size:13px;fill:#5d5d68}"
        ".strong{font-weight:650}.track{fill:#e2e2e6}.bar{fill:#8a8a96}.chosen{fill:#0072b2}"
    )
    with written_whole(path) as file:
        file.write(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" '
            f'role="img" aria-label="{alt}"><style>{style}</style>'
            f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fff" stroke="#dcdce2"/>'
            f"{''.join(parts)}{text}</svg>\n"
        )
    return Path(path)


def _text(problem: Mapping[str, Any], result: Mapping[str, Any], left: int) -> tuple[str, int]:
    """The words beside the pictures, and where they end."""
    top, parts = MARGIN + 14, []

    def write(text: str, kind: str = "") -> None:
        nonlocal top
        for line in _wrapped(text):
            parts.append(f'<text x="{left}" y="{top}" class="{kind}">{escape(line)}</text>')
            top += LINE

    write(problem["question"], "strong")
    if problem.get("context"):
        write(problem["context"], "soft")
    top += 4
    scores = result.get("scores") or {}
    for i, choice in enumerate(problem["choices"]):
        letter = LETTERS[i]
        chosen = letter == result["answer"]
        share = scores.get(letter)
        kind = "strong" if chosen else ""
        parts.append(f'<text x="{left}" y="{top}" class="{kind}">({letter}) {escape(choice)}</text>')
        if share is not None:
            start, length = WIDTH - MARGIN - 170, 120
            parts.append(
                f'<rect x="{start}" y="{top - 10}" width="{length}" height="8" rx="4" class="track"/>'
                f'<rect x="{start}" y="{top - 10}" width="{length * share:.1f}" height="8" rx="4" '
                f'class="{"chosen" if chosen else "bar"}"/>'
                f'<text x="{start + length + 8}" y="{top}" class="soft">{100 * share:.0f} %</text>'
            )
        top += LINE
    top += 6
    if result.get("rationale"):
        write("Rationale", "soft")
        write(result["rationale"])
        top += 6
    write("Answer", "soft")
    write(f"({result['answer']}) {result['answer_text']}", "strong")
    return "".join(parts), top


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(" ".join(text.split()), PER_LINE) or [""]


def _encoded(image) -> str:
    small = image.convert("RGB")
    small.thumbnail((2 * SIDE, 2 * SIDE))
    buffer = io.BytesIO()
    if small.width * small.height <= 10_000:
        small.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        small.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
