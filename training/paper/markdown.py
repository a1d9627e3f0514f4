"""The tables of `mmcot paper` as Markdown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def format_tables(content: Mapping[str, Any]) -> str:
    """What `make_tables` gave, as a Markdown page: published beside measured, and how the two came about."""
    state = "" if content["finished"] else " Not all rows are finished."
    lines = [
        f"# The paper's tables ({content['version']}) on `{content['source']}`",
        "",
        f"Networks: {content['network']}. Accuracy in % with its 95 % interval (Wilson); p: McNemar's exact test "
        f"against the first row of a table, after Holm's correction.{state}",
    ]
    if content["network"] != "paper" or content["source"].startswith("embedded"):
        lines.append(
            "The published figures are of the paper's networks on ScienceQA: the differences between rows are what to "
            "compare, not the figures."
        )
    for table in content["tables"].values():
        if table["rows"]:
            lines += ["", f"## {table['title']}", "", *_table(table["rows"])]
    if content["lengths"]:
        lines += ["", "## Lengths of what was written, in tokens", "", *_lengths(content)]
    return "\n".join(lines) + "\n"


def _table(rows: list[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| | published | protocol | measured | 95 % interval | n | protocol | ROUGE-L published | ROUGE-L measured "
        "| difference | p |",
        "|---|--:|---|--:|---|--:|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        published, test = row["published"] or {}, row["test"]
        low, high = row["ci95"]
        difference = p = ""
        if test is not None:
            difference = f"{test['difference']:+.2f} [{test['ci95'][0]:+.2f}, {test['ci95'][1]:+.2f}]"
            p = f"{test['p_holm']:.3g}" + ("" if test["same_protocol"] else " (other protocol)")
        cells = [
            row["title"],
            _number(published.get("accuracy")),
            published.get("protocol") or "",
            _number(row["accuracy"]),
            f"[{low:.2f}, {high:.2f}]",
            f"{row['n']:,}",
            row["protocol"],
            _number(published.get("rouge_l")),
            _number(row["rouge_l"]),
            difference,
            p,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _lengths(content: Mapping[str, Any]) -> list[str]:
    lines = ["| | mean | 95th percentile | longest | limit | at the limit |", "|---|--:|--:|--:|--:|--:|"]
    for row, found in content["lengths"].items():
        lines.append(
            f"| {row} | {found['mean']:.1f} | {found['p95']} | {found['longest']} | {found['limit']} "
            f"| {found['at_limit']:.1f} % |"
        )
    published = content["published_lengths"]
    lines.append(f"| published: below | | | {published['longest_below']} | {published['limit']} | |")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# -- docs/protocols.md ------------------------------------------------------------------------------------------------

_IN_DOCS = ("gpt-3.5", "base-v1", "large-v1", "base-v5", "large-v5", "human")


def published_tables() -> str:
    """The published figures as they stand in docs/protocols.md."""
    from mmcot.training.evaluation.accuracy import COLUMNS
    from mmcot.training.paper.published import PUBLISHED

    lines = [f"| | {' | '.join(COLUMNS)} | protocol | source |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name in _IN_DOCS:
        row = PUBLISHED[name]
        cells = [row.title, *(f"{row.accuracy[column]:.2f}" for column in COLUMNS), row.protocol or "", row.source]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "What each part is worth: accuracy, and of two stages ROUGE-L of the rationale before it.", ""]
    return "\n".join([*lines, *_published_rows()])


def _published_rows() -> list[str]:
    from mmcot.training.paper.published import PUBLISHED_ROWS
    from mmcot.training.paper.rows import TABLES, TITLES, VERSIONS

    lines = ["| | recipe | v1 | protocol | v5 | protocol |", "|---" * 6 + "|"]
    rows = dict.fromkeys(row for table in TABLES.values() for version in VERSIONS for row in table[version])
    for name in rows:
        cells = []
        for version in VERSIONS:
            found = PUBLISHED_ROWS.get((version, name))
            rouge = f"{found.rouge_l:.2f} → " if found and found.rouge_l is not None else ""
            cells += [f"{rouge}{found.accuracy:.2f}", found.protocol or "not stated"] if found else ["", ""]
        lines.append(f"| {TITLES[name]} | `{name}` | {' | '.join(cells)} |")
    return lines


def write_published(path: str | Path = "docs/protocols.md") -> None:
    """Puts the published figures between the page's `published` markers."""
    from mmcot.training.common import write_between_markers

    write_between_markers(path, "published", published_tables())


# -- docs/evidence.md -------------------------------------------------------------------------------------------------

MEASURED = "docs/results/paper-embedded.json"


def shareable(content: Mapping[str, Any]) -> dict[str, Any]:
    """What `mmcot paper` left in results.json, without the rows' recipes, which name folders of one machine."""
    rows = {
        name: {key: value for key, value in row.items() if key not in ("recipe", "predictions")}
        for name, row in content["rows"].items()
    }
    return {**content, "rows": rows}


def write_measured(results: str | Path, path: str | Path = "docs/evidence.md", source: str | Path = MEASURED) -> None:
    """Puts a finished `results.json` into docs/results, and its tables between the page's `measured` markers."""
    import json

    from mmcot.training.common import write_between_markers, write_json

    content = shareable(json.loads(Path(results).read_text(encoding="utf-8")))
    write_json(source, content)
    write_between_markers(path, "measured", measured_tables(content))


def measured_tables(content: Mapping[str, Any]) -> str:
    """The tables as a part of a page."""
    _, _, text = format_tables(content).partition("\n\n")
    minutes = sum(row["seconds"] for row in content["rows"].values()) / 60
    return f"Source: `{content['source']}`, {len(content['rows'])} rows in {minutes:.0f} minutes.\n\n{text.strip()}"
