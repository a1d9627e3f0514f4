"""Results as text."""

from collections.abc import Iterator, Mapping

from mmcot.training.evaluation.accuracy import COLUMNS


def format_table(results: Mapping[str, Mapping]) -> str:
    """The paper's table as text: for each run its accuracies (%), half the width of their 95 % intervals, the number
    of questions, the protocol, the rationale's scores and how many answers could not be parsed. Sources of a
    mixture have rows of their own."""
    results = dict(_with_sources(results))
    columns = [column for column in COLUMNS if any(column in result["accuracy"] for result in results.values())]
    width = max([len(name) for name in results] + [12])
    lines = [" " * width + "".join(f"{column:>8}" for column in columns)]
    for name, result in results.items():
        half_widths = {column: (high - low) / 2 for column, (low, high) in result["ci95"].items()}
        for label, values, form in (
            (name, result["accuracy"], ".2f"),
            ("  ±", half_widths, ".2f"),
            ("  n", result["n"], "d"),
        ):
            cells = (format(values[column], form) if column in values else "" for column in columns)
            lines.append(f"{label:<{width}}" + "".join(f"{cell:>8}" for cell in cells))
        notes = [f"protocol: {result['protocol']}"]
        if result.get("images") == "blank":
            notes.append("pictures blanked")
        names = {"rougeL": "ROUGE-L", "rougeL_original": "ROUGE-L (original)", "bleu1": "BLEU-1", "bleu4": "BLEU-4"}
        notes += [f"{names.get(key, key)} {score:.2f}" for key, score in result["rationale"].items()]
        if result["unparsable"]:
            notes.append(f"unparsable: {result['unparsable']}, counted as {result['unparsable_counted_as']}")
        lines.append("  " + " · ".join(notes))
    lines.append("Accuracy in %; ± is half the width of the 95 % interval (Wilson).")
    return "\n".join(lines)


def _with_sources(results: Mapping[str, Mapping]) -> Iterator[tuple[str, Mapping]]:
    for name, result in results.items():
        yield name, result
        for source, own in result.get("sources", {}).items():
            yield f"{name} · {source}", own


def format_comparison(comparison: Mapping, name_a: str = "A", name_b: str = "B") -> str:
    """The result of `compare` as text."""
    lines = [
        f"A = {name_a}",
        f"B = {name_b}",
        f"protocol: {comparison['protocol']}",
        f"{'':<6}{'n':>6}{'A':>8}{'B':>8}{'B - A':>8}  {'95 % interval':<18}{'only A':>7}{'only B':>7}{'p':>10}",
    ]
    for column, row in comparison["columns"].items():
        low, high = row["ci95"]
        lines.append(
            f"{column:<6}{row['n']:>6}{row['accuracy_a']:>8.2f}{row['accuracy_b']:>8.2f}{row['difference']:>+8.2f}  "
            f"{f'[{low:+.2f}, {high:+.2f}]':<18}{row['only_a']:>7}{row['only_b']:>7}{row['p_value']:>10.3g}"
        )
    lines.append("only A/B: questions that only this run got right; p: McNemar's exact test, two-sided.")
    return "\n".join(lines)
