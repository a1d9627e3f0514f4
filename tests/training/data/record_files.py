"""Small files of records for the tests of this folder."""

import io
import json
from pathlib import Path

from PIL import Image


def picture(path: Path | None = None, color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), color).save(buffer, "PNG")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def problem(**changes) -> dict:
    return {"question": "Which?", "choices": ["this", "that"], "answer": 1} | changes


def json_lines(path: Path, *records) -> Path:
    """Records, or lines as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(line + "\n" for line in lines))
    return path
