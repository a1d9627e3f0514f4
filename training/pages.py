"""One self-contained HTML page in one plain style: light and dark, on a phone and on paper. No script, no network."""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Okabe and Ito's colours, which people with any colour vision tell apart, from the one to use first.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c22; --soft: #5d5d68; --rule: #dcdce2; --paper: #fff; --tint: #f5f5f7;
  --right: #00664a; --wrong: #a83e00; --bar: #0072B2; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf1; --soft: #a5a5b2; --rule: #3b3b45; --paper: #17171b;
  --tint: #222228; --right: #4fd3ac; --wrong: #ff9d5c; --bar: #56B4E9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 62rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h1, h2, h3 { break-after: avoid; } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p.note, figcaption, small { color: var(--soft); font-size: .88rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
td:first-child { min-width: 6.5rem; }
th, td { padding: .25rem .45rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number, .one { white-space: nowrap; }
.card { border: 1px solid var(--rule); border-radius: 6px; padding: .8rem 1rem; margin: .8rem 0;
  break-inside: avoid; }
.card .pictures { float: right; margin: 0 0 .5rem 1rem; text-align: right; }
.card::after { content: ""; display: block; clear: both; }
img { max-width: 100%; } img.pixels { image-rendering: pixelated; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
pre, .text { white-space: pre-wrap; background: var(--tint); padding: .5rem .7rem; border-radius: 4px;
  font-size: .85rem; margin: .2rem 0 .6rem; overflow-wrap: anywhere; }
.fault { border-left: 4px solid var(--wrong); padding-left: .8rem; }
figure { margin: 1rem 0; break-inside: avoid; } figure svg { max-width: 100%; height: auto; background: #fff;
  border-radius: 6px; }
@media (max-width: 600px) { .card .pictures { float: none; margin: 0; text-align: left; } body { padding: .8rem; }
  figure { overflow-x: auto; } figure svg { max-width: none; } }
@media print { :root { --ink: #000; --paper: #fff; --soft: #444; --right: #00664a; --wrong: #a83e00; --tint: #f5f5f7; }
  body { max-width: none; font-size: 11pt; } details { display: block; }
  .wide { overflow: visible; } .wide table { font-size: 8pt; } .wide th, .wide td { padding: .2rem .3rem; }
  td.number { white-space: normal; } tr { break-inside: avoid; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document; `title` is plain text, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{body}\n</body>\n</html>\n"
    )


def escape(value: Any) -> str:
    """A value as text of a page."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode())


def paragraph(text: str) -> str:
    """A `<p>` of plain text; `code` between backticks."""
    return "<p>" + re.sub("`([^`]+)`", r"<code>\1</code>", escape(text)) + "</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], text_columns: int = 1) -> str:
    """An HTML table of plain texts; columns after the first `text_columns` are numbers, on the right."""

    def cells(row: Sequence[Any], tag: str) -> str:
        marks = ("" if i < text_columns else ' class="number"' for i in range(len(row)))
        texts = [escape(cell) for cell in row]
        if tag == "th":  # ROUGE-L and BLEU-4 stay in one line
            texts = [re.sub(r"(\w+-\w)\b", r'<span class="one">\1</span>', text) for text in texts]
        return "".join(f"<{tag}{mark}>{text}</{tag}>" for text, mark in zip(texts, marks, strict=True))

    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<tr>{cells(head, "th")}</tr>\n{body}\n</table></div>'


def image_tag(image, text: str, width: int | None = None) -> str:
    """An `<img>` that holds a PIL image; small ones are shown enlarged without blur.

    Args:
        text: what it shows, for those who can't see it.
        width: CSS pixels; default: the image's own.
    """
    small = image.width < (width or image.width)
    buffer = io.BytesIO()
    if image.width * image.height > 40_000:  # photographs are far smaller so
        image.convert("RGB").save(buffer, "JPEG", quality=82)
        kind = "jpeg"
    else:
        image.save(buffer, "PNG")
        kind = "png"
    data = base64.b64encode(buffer.getvalue()).decode()
    look = ' class="pixels"' if small else ""
    return f'<img{look} width="{width or image.width}" alt="{escape(text)}" src="data:image/{kind};base64,{data}">'
