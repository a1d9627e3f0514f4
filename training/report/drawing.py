"""Answers drawn: picture, where the model looked, question, rationale, answer."""

from pathlib import Path

WIDTH, PICTURE, MARGIN, LINE = 1180, 208, 16, 19
INK, GREY, GREEN, RED, RULE = (30, 30, 34), (120, 120, 128), (20, 120, 60), (180, 40, 40), (222, 222, 226)


def has_patch_grid(model) -> bool:
    """Whether the patches are places in the picture: DETR's are object queries, several backbones have a grid each."""
    config = getattr(model.config, "vision_config", None)
    return config is not None and config.model_type not in (
        "detr",
        "conditional_detr",
        "rt_detr",
        "mmcot_backbones",
    )


def attention_grid(attention):
    """Mean attention of the source tokens over the first picture's patches, as a square grid, or None.

    Args:
        attention: (tokens, patches); a leading class token is left out.
    """
    weights = attention.mean(0)
    for leading in (0, 1):
        side = int((len(weights) - leading) ** 0.5)
        if side > 1 and side * side == len(weights) - leading:
            return weights[leading:].reshape(side, side)
    return None


def draw_report(
    problems: list[dict], results: list[dict], path: str | Path, title: str = "", patch_grid: bool = True
) -> Path:
    """Draws answered problems one below the other, and saves the image (format by the file's ending).

    Args:
        problems: records with pictures.
        results: what the pipeline gave for them with `return_attention=True`.
        patch_grid: the attention may be drawn over the picture.
    """
    from PIL import Image, ImageDraw

    from mmcot.processing import load_images

    rows = [
        _row(problem, result, load_images(problem), patch_grid)
        for problem, result in zip(problems, results, strict=True)
    ]
    head = 56 if title else MARGIN
    sheet = Image.new("RGB", (WIDTH, head + sum(row.height for row in rows)), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, 14), title, INK, font=_font(20))
    top = head
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    path = Path(path)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(partial)
    partial.replace(path)
    return path


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _row(problem: dict, result: dict, images: list, patch_grid: bool):
    """One problem: picture, picture under the attention, text."""
    from PIL import Image, ImageDraw

    left = MARGIN
    panels = []
    if images:
        picture = _fit(images[0])
        panels.append((picture, "picture"))
        attention = (result.get("attention") or {}).get("rationale")
        grid = attention_grid(attention) if patch_grid and attention is not None else None
        if grid is not None:
            panels.append((overlay(picture, grid), "where the rationale stage looks"))
    text_left = MARGIN + (len(panels) * (PICTURE + MARGIN))
    lines = _lines(problem, result, WIDTH - text_left - MARGIN)
    height = max(PICTURE + 2 * MARGIN + LINE, MARGIN * 2 + LINE * len(lines))
    row = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(row)
    draw.line((MARGIN, 0, WIDTH - MARGIN, 0), RULE)
    for panel, label in panels:
        row.paste(panel, (left, MARGIN))
        draw.text((left, MARGIN + PICTURE + 3), label, GREY, font=_font(13))
        left += PICTURE + MARGIN
    for i, (text, color) in enumerate(lines):
        draw.text((text_left, MARGIN + i * LINE), text, color, font=_font(14))
    return row


def _lines(problem: dict, result: dict, width: int) -> list[tuple[str, tuple]]:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    gold = problem.get("answer")
    right = gold is not None and result["answer"] == letters[gold]
    scores = result.get("scores") or {}
    options = " · ".join(
        f"({letters[i]}) {choice}" + (f" {100 * scores[letters[i]]:.0f} %" if letters[i] in scores else "")
        for i, choice in enumerate(problem["choices"])
    )
    mark = "" if gold is None else " · right" if right else f" · wrong, it is ({letters[gold]})"
    answer = "no answer could be read" if result["answer"] is None else f"({result['answer']}) {result['answer_text']}"
    blocks = [
        (problem["question"], INK),
        *([(problem["context"], GREY)] if problem.get("context") else []),
        (options, GREY),
        *([(f"Rationale: {result['rationale']}", INK)] if result.get("rationale") else []),
        (f"Answer: {answer}{mark}", INK if gold is None else GREEN if right else RED),
    ]
    return [(line, color) for text, color in blocks for line in _wrap(text, width)]


def _wrap(text: str, width: int) -> list[str]:
    font = _font(14)
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line]


def _fit(image):
    """The picture in the panel's square; small ones are enlarged by whole pixels' edges, not blurred."""
    from PIL import Image

    scale = PICTURE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    fitted = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    panel = Image.new("RGB", (PICTURE, PICTURE), (245, 245, 246))
    panel.paste(fitted, ((PICTURE - size[0]) // 2, (PICTURE - size[1]) // 2))
    return panel


def overlay(picture, grid):
    """The picture darkened where little attention lies."""
    import numpy as np
    from PIL import Image

    weights = (grid - grid.min()) / max(float(grid.max() - grid.min()), 1e-9)
    mask = Image.fromarray((weights * 255).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    dark = Image.blend(picture, Image.new("RGB", picture.size, (16, 18, 60)), 0.78)
    return Image.composite(picture, dark, mask)
