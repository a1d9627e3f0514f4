"""The tables of `mmcot paper` as Markdown."""

from collections.abc import Mapping
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
        "| | published | protocol | measured | 95 % interval | n | protocol | ROUGE-L published | measured "
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
