"""The tables of options in docs/training.md are what docs/results/options.json holds."""

import json

from doc_blocks import ROOT

PAGE = "docs/training.md"


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def interval(bounds, show) -> str:
    return f"[{show(bounds[0])}, {show(bounds[1])}]"


def tables(results) -> list[str]:
    """The lines of all tables, one group of rows after the other."""
    head = "| | accuracy | 95 % | difference | 95 % |"
    lines = []
    for group in results["groups"]:
        lines += [head.replace("| |", f"| {group['name']} |", 1), "|---|---|---|---|---|"]
        for row in group["rows"]:
            cells = [row["method"], f"{row['accuracy']:.2f}", interval(row["ci95"], "{:.2f}".format)]
            known = row["difference"] is not None
            cells += [signed(row["difference"]), interval(row["difference_ci95"], signed)] if known else ["", ""]
            lines.append(f"| {' | '.join(cells)} |".replace("|  |  |", "| | |"))
    lines += ["| the surest | questions | accuracy | 95 % |", "|---|---|---|---|"]
    for row in results["abstention"]["rows"]:
        cells = [f"{row['coverage']:.0f} %", f"{row['n']:,}", f"{row['accuracy']:.2f}"]
        lines.append(f"| {' | '.join([*cells, interval(row['ci95'], '{:.2f}'.format)])} |")
    return lines


def test_the_tables_are_the_results():
    results = json.loads((ROOT / "docs/results/options.json").read_text(encoding="utf-8"))
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    section = page.partition("## Options, measured")[2].partition("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert shown == tables(results)


def test_each_figure_says_how_it_was_made():
    results = json.loads((ROOT / "docs/results/options.json").read_text(encoding="utf-8"))
    rows = [row for group in results["groups"] for row in group["rows"]]
    assert len(rows) > 5 and all(row["n"] >= 1000 and row["command"].startswith("mmcot ") for row in rows)
    for row in rows:
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
        assert (row["difference"] is None) == (row["difference_ci95"] is None)
