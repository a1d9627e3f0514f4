"""What `check_data` found, as one self-contained HTML page with samples as the model will see them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import written_whole
from mmcot.training.data.check.text import column_rows, facts
from mmcot.training.pages import escape, image_tag, page, table

MOST_PICTURES = 3  # of a question
THUMBNAIL = 240


def write_check_page(found: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the page; see `check_data` for what it shows."""
    parts = [_notes("To mend", found["faults"], "fault"), _notes("Worth a thought", found["warnings"])]
    if not found["faults"]:
        parts.insert(0, "<p>Nothing stands in the way of a training.</p>")
    if found["columns"]:
        parts.append("<h2>Columns</h2>")
        rows = [(key, field, how, filled) for key, field, how, filled in column_rows(found["columns"])]
        parts.append(table(("column", "taken for", "", "filled"), rows, text_columns=3))
    for title, lines in facts(found):
        parts.append(f"<h2>{escape(title.capitalize())}</h2>")
        parts += [f"<p>{escape(line)}</p>" for line in lines]
    if found.get("samples"):
        parts.append("<h2>Samples as the model will see them</h2>")
        parts += [_sample(sample) for sample in found["samples"]]
    path = Path(path)
    with written_whole(path) as file:
        file.write(page(f"Data check: {Path(found['source']).name}", "\n".join(filter(None, parts))))
    return path


def _notes(title: str, lines: list[str], kind: str = "") -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="{kind}"><h2>{title}</h2><ul>{items}</ul></div>'


def _sample(sample: Mapping[str, Any]) -> str:
    parts = [f"<h3>{escape(sample['id'])} <small>({escape(sample['split'])})</small></h3>"]
    for stage, texts in sample["stages"].items():
        if "error" in texts:
            parts.append(f'<p class="wrong">{escape(stage)} stage: {escape(texts["error"])}</p>')
            continue
        parts.append(f"<small>{escape(stage)} stage reads ({texts['tokens']} tokens)</small>")
        parts.append(f'<div class="text">{escape(texts["source"])}</div>')
        if texts["target"]:
            parts.append(f'<small>and shall write</small><div class="text">{escape(texts["target"])}</div>')
    pictures = "".join(_picture(reference) for reference in sample["images"][:MOST_PICTURES])
    return f'<div class="card"><div class="pictures">{pictures}</div>{"".join(parts)}</div>'


def _picture(reference: Mapping[str, Any]) -> str:
    from mmcot.processing.image_reading_mmcot import load_image

    try:
        image = load_image(reference)
    except Exception as error:
        return f'<p class="wrong">{escape(error)}</p>'
    width, height = image.size
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    shown = max(image.width, min(THUMBNAIL, 120 * image.width // max(image.size)))
    return image_tag(image, f"picture of {width} × {height} pixels", shown)
