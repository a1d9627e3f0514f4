"""`write_report`: runs become one self-contained HTML page and the same in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError, write_json, written_whole
from mmcot.training.report.evidence import read_evidence
from mmcot.training.report.runs import ReportRun, open_runs
from mmcot.training.report.sections import ATTENTION, Section, sections

ENDINGS = (".html", ".htm", ".md")


def write_report(
    runs: Sequence[str | Path],
    output: str | Path = "report.html",
    *,
    source: str | Path | None = None,
    split: str | None = None,
    probes: Mapping[str, str | Path] | None = None,
    protocol: str | None = None,
    partial: bool = False,
    model: str | Path | None = None,
    examples: int = 6,
    device: str | None = None,
    source_options: Mapping[str, Any] | None = None,
    evidence: Sequence[str | Path] = (),
    json: str | Path | None = None,
) -> list[Path]:
    """Writes a report of one run, or of several on the same questions.

    Args:
        runs: folders that `mmcot train` left (their `output_dir`), or predictions files; as NAME=PATH to name them.
        output: the page, and beside it the same as Markdown; an ending .md writes Markdown alone, without charts and
            pictures, for which neither matplotlib nor the pictures are needed.
        source: the problems; default: what the predictions file says.
        split: that was predicted; default: what the file says, else the one whose ids it has.
        probes: name → predictions file of the first run's model on the same questions, with its pictures blanked or
            shuffled, say.
        protocol: "generated" or "teacher_forced", of files that don't say it.
        partial: leave out problems without a prediction; all runs have to answer the same.
        model: a repository whose attention the gallery shows; default: that of the first run; "none": no attention.
        examples: right ones, and as many wrong ones, in the gallery; 0 leaves it out.
        device: where attention is computed, as in `load_pipeline`.
        source_options: how `load_problems` reads the source, as {"allow_urls": True}.
        evidence: files of `mmcot probe`, `mmcot predict --save-gate` and `mmcot errors --json`, a section each.
        json: a file for all figures.

    Returns:
        the files that were written.

    Raises:
        UserError: nothing to report on, or what `report_figures` refuses; matplotlib isn't there.
    """
    from mmcot.training.report.charts import check_matplotlib
    from mmcot.training.report.figures import report_figures

    output = Path(output)
    if output.suffix.lower() not in ENDINGS:
        raise UserError(f"{output}: a report is a page, so its name ends in .html (or .md)")
    opened = open_runs([str(run) for run in runs], split)
    if output.suffix.lower() != ".md":
        check_matplotlib()  # before anything that takes long
    options = {"source": source, "split": split, "probes": probes, "protocol": protocol, "partial": partial}
    figures, problems = report_figures(opened, **options)
    figures["evidence"] = read_evidence(evidence)
    found = sections(figures)
    title = " and ".join(figures["runs"])
    written = []
    if output.suffix.lower() != ".md":
        gallery = []
        if examples:
            gallery = _gallery(opened[0], figures, problems, model, examples, device, source_options or {})
        written.append(_write_page(title, figures, found, gallery, output))
    markdown = output.with_suffix(".md")
    with written_whole(markdown) as file:
        file.write(_markdown(title, figures, found))
    written.append(markdown)
    if json is not None:
        write_json(json, figures)
        written.append(Path(json))
    return written


def _gallery(run: ReportRun, figures, problems, model, examples: int, device, source_options) -> list[dict[str, Any]]:
    from mmcot.training.evaluation.reading import read_predictions
    from mmcot.training.report.gallery import choose_examples, gallery_entries

    if not all("question" in problem for problem in problems.values()):
        return []  # bare records: answers without questions
    predictions = read_predictions(run.file)
    if not predictions.keys() >= problems.keys():  # the original's output, which is joined by position
        return []
    chosen = None if str(model) == "none" else model or run.repository
    return gallery_entries(
        choose_examples(problems, predictions, examples),
        problems,
        predictions,
        source=figures["source"],
        split=figures["split"],
        model=chosen,
        device=device,
        source_options=source_options,
    )


def _about(figures: Mapping[str, Any]) -> str:
    """One line on what was answered, how and by which version."""
    from mmcot import __version__

    where = figures["source"]
    where = Path(where).name if Path(where).is_absolute() else where  # where it lies here is nobody's business
    split = f", split {figures['split']}" if figures["split"] else ""
    return f"{figures['n']:,} questions of {where}{split}. Written by mmcot {__version__} from predictions files."


# -- Markdown ---------------------------------------------------------------------------------------------------------


def _markdown(title: str, figures: Mapping[str, Any], found: Sequence[Section]) -> str:
    lines = [f"# Report: {title}", "", _about(figures), ""]
    for section in found:
        lines += [f"## {section.title}", ""]
        lines += [section.text, ""] if section.text else []
        for head, rows in section.tables:
            lines += [_markdown_row(head), _markdown_row(["---"] * len(head)), *map(_markdown_row, rows), ""]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    """Of texts that may be a stranger's: no HTML, and no cell more than there are."""
    shown = (str(cell).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(shown)} |"


# -- the page ---------------------------------------------------------------------------------------------------------


def _write_page(title: str, figures, found: Sequence[Section], gallery: list[dict[str, Any]], path: Path) -> Path:
    from mmcot.training.pages import escape, page, paragraph, table
    from mmcot.training.report.charts import own_ids

    parts = [f'<p class="note">{escape(_about(figures))}</p>']
    for number, section in enumerate(found):
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [paragraph(section.text)] if section.text else []
        tables = [table(head, rows, section.text_columns) for head, rows in section.tables]
        svgs = [svg for svg in (draw() for draw in section.charts) if svg]
        drawn = [f"<figure>{own_ids(svg, f'c{number}-{i}')}</figure>" for i, svg in enumerate(svgs)]
        long = drawn and any(len(rows) > 15 for _, rows in section.tables)
        parts += drawn if long else [*tables, *drawn]
        if long:
            parts.append(f"<details><summary>all of it as a table</summary>{''.join(tables)}</details>")
    if gallery:
        parts.append("<h2>Gallery</h2>")
        seen = any(entry["attention"] is not None for entry in gallery)
        drawn = f" {ATTENTION}" if seen else ""
        parts.append(paragraph(f"Drawn from the right and the wrong answers of {next(iter(figures['runs']))}.{drawn}"))
        parts += [_entry(entry) for entry in gallery]
    with written_whole(path) as file:
        file.write(page(f"Report: {title}", "\n".join(parts)))
    return path


def _entry(entry: Mapping[str, Any]) -> str:
    from mmcot.training.pages import escape, image_tag

    right = entry["answer"] == entry["gold"]
    given, gold = (_option(entry["choices"], entry[key]) for key in ("answer", "gold"))
    mark = "right" if right else f"wrong: it is {gold}"
    pictures = []
    for key, what in (("picture", "picture of the question"), ("attention", "the picture, bright where it looks")):
        if entry[key] is not None:
            image = entry[key].copy()
            image.thumbnail((360, 360))
            pictures.append(image_tag(image, what, min(180, max(120, image.width))))
    scores = entry["scores"] or {}
    options = "<br>".join(
        f"({chr(65 + i)}) {escape(choice)}"
        + (f" <small>{100 * scores[chr(65 + i)]:.0f} %</small>" if chr(65 + i) in scores else "")
        for i, choice in enumerate(entry["choices"])
    )
    context = f"<p><small>{escape(entry['context'])}</small></p>" if entry["context"] else ""
    rationale = (
        f'<small>rationale</small><div class="text">{escape(entry["rationale"])}</div>' if entry["rationale"] else ""
    )
    if entry["rationale"] and entry["reference"] and entry["reference"].strip() != entry["rationale"].strip():
        rationale += f'<small>reference</small><div class="text">{escape(entry["reference"])}</div>'
    other = (
        "<p><small>The model at hand answers otherwise than the file.</small></p>" if entry["same"] is False else ""
    )
    return (
        f'<div class="card"><div class="pictures">{" ".join(pictures)}</div>'
        f"<p><strong>{escape(entry['question'])}</strong></p>{context}<p>{options}</p>{rationale}"
        f'<p class="{"right" if right else "wrong"}">Answer: {escape(f"{given}, {mark}")}</p>{other}</div>'
    )


def _option(choices: Sequence[str], index: int | None) -> str:
    return "no choice" if index is None else f"({chr(65 + index)}) {choices[index]}"
