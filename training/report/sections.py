"""A report's sections in order: title, what a reader must know, tables, charts. The page and Markdown print these."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmcot.training.report import charts, page_tables
from mmcot.training.report.evidence import evidence_texts

ATTENTION = (
    "Attention is drawn as light: where the picture stays bright, the fusion layer took most of its image features "
    "from. It is not a proof that the answer rests on that place, nor an explanation of it. What the model says "
    "without the picture, and with another one, tells more: `mmcot probe` asks."
)


@dataclass
class Section:
    title: str
    text: str = ""
    tables: list[page_tables.Table] = field(default_factory=list)
    charts: list[Callable[[], str | None]] = field(default_factory=list)  # drawn when asked for: Markdown has none
    text_columns: int = 1


def sections(figures: Mapping[str, Any]) -> list[Section]:
    """All sections but the gallery."""
    runs, chance = figures["runs"], figures["chance"]
    results = {name: run["result"] for name, run in runs.items()}
    found = [
        Section(
            "Accuracy",
            f"In %, on {figures['n']:,} questions; ± is half the width of the 95 % interval (Wilson). Guessing gives "
            f"{chance:.1f} %. {_protocols(results)}",
            [page_tables.accuracy_table(figures)],
            [lambda: charts.by_column(results, chance)],
            text_columns=2,
        )
    ]
    found += _comparisons(figures)
    found += _probes(figures)
    found += _kinds(figures, chance)
    found += _rationales(figures)
    found += _calibration(figures)
    confusions = {name: run["confusion"] for name, run in runs.items()}
    found.append(
        Section(
            "Letters",
            "How often each letter is right, and how often it is given; a model that prefers a place gives it more "
            "often than it is right.",
            [page_tables.letters_table(figures)],
            [lambda: charts.confusion_chart(confusions)],
        )
    )
    for one in figures.get("evidence", ()):
        title, text, tables = evidence_texts(one)
        found.append(Section(title, text, tables))
    return found + _training(figures)


def _protocols(results: Mapping[str, Mapping]) -> str:
    kinds = {result["protocol"] for result in results.values()}
    told = {
        "generated": "Protocol `generated`: the networks decoded their rationales freely.",
        "teacher_forced": "Protocol `teacher_forced`: the decoder was fed the gold rationale, which is worth several "
        "points; such numbers don't compare with `generated` ones.",
    }
    unparsable = sum(result["unparsable"] for result in results.values())
    more = f" {unparsable:,} answers named no choice and count as wrong." if unparsable else ""
    return " ".join(told[kind] for kind in sorted(kinds)) + more


def _comparisons(figures: Mapping[str, Any]) -> list[Section]:
    first, found = next(iter(figures["runs"])), []
    for name, test in figures["tests"].items():
        row = test["columns"]["Avg"]
        low, high = row["ci95"]
        sure = "" if test["p_holm"] < 0.05 else ": within what chance explains"
        more = f", {test['p_holm']:.3g} after Holm's correction" if len(figures["tests"]) > 1 else ""
        found.append(
            Section(
                f"{name} against {first}",
                f"{name} minus {first}, on the same questions: {row['difference']:+.2f} points "
                f"[{low:+.2f}, {high:+.2f}], p = {row['p_value']:.3g}{more} (McNemar's exact test, two-sided){sure}.",
                [page_tables.comparison_table(test["columns"])],
            )
        )
        settings = [list(row) for row in test["settings"]]
        text = "" if settings else "Nothing that their files tell."
        found.append(
            Section(
                f"What {name} and {first} differ on",
                text,
                [(["setting", first, name], settings)] if settings else [],
                text_columns=3,
            )
        )
    differing = page_tables.differing_table(figures)
    if differing:
        found.append(Section("Questions on which they differ", "", [differing], text_columns=9))
    return found


def _probes(figures: Mapping[str, Any]) -> list[Section]:
    first, found = next(iter(figures["runs"])), []
    for name, probe in figures["probes"].items():
        column = "IMG" if "IMG" in probe["columns"] else "Avg"
        row = probe["columns"][column]
        what = "questions with a picture" if column == "IMG" else "all questions"
        found.append(
            Section(
                f"Probe: {name}",
                f"Does it look, or does it guess? On {what}, {first} has {row['accuracy_a']:.1f} %, and "
                f"{row['accuracy_b']:.1f} % in {probe['file']} ({name}): {row['difference']:+.1f} points "
                f"[{row['ci95'][0]:+.1f}, {row['ci95'][1]:+.1f}], p = {row['p_value']:.3g}. Guessing gives "
                f"{figures['chance']:.1f} % of all questions.",
                [page_tables.comparison_table(probe["columns"])],
            )
        )
    return found


def _kinds(figures: Mapping[str, Any], chance: float) -> list[Section]:
    found = []
    titles = {"skill": "Accuracy by skill", "grade": "Accuracy by grade", "context": "Accuracy by what comes with it"}
    for kind in ("skill", "grade", "context"):
        table = page_tables.by_table(figures, kind)
        if table is None:
            continue
        rows = {name: run["by"][kind] for name, run in figures["runs"].items()}
        more = (
            f" The chart has the {charts.MOST_VALUES} most frequent ones."
            if len(table[1]) > charts.MOST_VALUES
            else ""
        )
        text = f"In %, with 95 % intervals (Wilson).{more}"
        found.append(Section(titles[kind], text, [table], [lambda rows=rows: charts.by_value(rows, chance)]))
    return found


def _rationales(figures: Mapping[str, Any]) -> list[Section]:
    table = page_tables.rationale_table(figures)
    if table is None:
        return []
    quality = {name: run["rationales"] for name, run in figures["runs"].items() if run["rationales"]}
    poor = " ".join(
        f"{name}: {len(found['right_but_poor']):,} right answers come with a rationale whose ROUGE-L is below 50 %."
        for name, found in quality.items()
    )
    return [
        Section(
            "Rationales",
            "ROUGE-L compares words with the reference, not reasons: a rationale may be right in other words, and a "
            f"right answer may follow from a wrong one. {poor}",
            [table],
            [lambda: charts.rationale_chart(quality)] if quality else [],
        )
    ]


def _calibration(figures: Mapping[str, Any]) -> list[Section]:
    table = page_tables.calibration_table(figures)
    if table is None:
        return []
    known = {name: run["calibration"] for name, run in figures["runs"].items() if run["calibration"]}
    text = (
        "Of the answers given with 80 %, are 80 % right? The calibration error is the mean distance between "
        "confidence and accuracy, in points (10 equal bins); the Brier score is 0 for a perfect model."
    )
    return [Section("Do the scores mean what they say?", text, [table], [lambda: charts.calibration_chart(known)])]


def _training(figures: Mapping[str, Any]) -> list[Section]:
    table = page_tables.training_table(figures)
    if table is None:
        return []
    histories = {name: run["histories"] for name, run in figures["runs"].items()}
    stages = list(dict.fromkeys(stage for own in histories.values() for stage in own))
    drawn = [
        lambda stage=stage: charts.curves({name: own.get(stage) or [] for name, own in histories.items()}, stage)
        for stage in stages
    ]
    return [Section("Learning curves", "", [table], drawn, text_columns=2)]
