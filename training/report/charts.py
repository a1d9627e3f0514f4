"""Charts of a report as SVG texts: one plain style, colours that everyone tells apart, readable in grey on paper."""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.evaluation.accuracy import COLUMNS
from mmcot.training.pages import COLOURS

MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":")
MOST_VALUES = 30

STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's font
    "svg.hashsalt": "mmcot",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e2e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def check_matplotlib() -> None:
    """Refuses to draw where there is nothing to draw with."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise UserError("the page's charts need matplotlib: pip install 'mmcot[report]' (a .md needs none)") from None


@contextlib.contextmanager
def _figure(width: float, height: float, columns: int = 1) -> Iterator[tuple[Any, Any, list[str]]]:
    """(figure, axes, list that receives the SVG when the block ends)."""
    check_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out: list[str] = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, columns, squeeze=False)[0]
        yield figure, axes if columns > 1 else axes[0], out
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        svg = buffer.getvalue()
        out.append(svg[svg.index("<svg") :])


def own_ids(svg: str, prefix: str) -> str:
    """The SVG with a prefix before all its ids: those of several charts on one page would be equal."""
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def _dots(axes, rows: Mapping[str, Mapping[str, Mapping]], chance: float | None) -> None:
    """Accuracies with intervals, one line a value, one mark a run."""
    values = list(dict.fromkeys(value for shares in rows.values() for value in shares))
    step = 0.8 / max(1, len(rows))
    for number, (name, shares) in enumerate(rows.items()):
        known = [(place, shares[value]) for place, value in enumerate(values) if value in shares]
        accuracies = [entry["accuracy"] for _, entry in known]
        lows = [entry["accuracy"] - entry["ci95"][0] for _, entry in known]
        highs = [entry["ci95"][1] - entry["accuracy"] for _, entry in known]
        axes.errorbar(
            accuracies,
            [place + (number - (len(rows) - 1) / 2) * step for place, _ in known],
            xerr=[[max(0, low) for low in lows], [max(0, high) for high in highs]],
            fmt=MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            markersize=5,
            linewidth=1.3,
            capsize=2,
            label=name,
        )
    if chance is not None:
        axes.axvline(chance, color="#555", linewidth=1, linestyle=":")
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(chance, -0.75, "guessing", fontsize=8, ha="center", color="#333", bbox=paper)
    counts = {value: next(shares[value]["n"] for shares in rows.values() if value in shares) for value in values}
    axes.set_yticks(range(len(values)), [f"{_short(value)}  (n = {counts[value]:,})" for value in values])
    axes.set_ylim(len(values) - 0.4, -1.0)
    axes.set_xlim(0, 102)
    axes.set_xlabel("accuracy in %, with 95 % intervals")
    axes.grid(axis="y", visible=False)
    if len(rows) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, fontsize=9)


def _short(text: str) -> str:
    return text if len(text) <= 42 else f"{text[:40]}…"


def by_column(results: Mapping[str, Mapping], chance: float) -> str:
    """The paper's nine columns."""
    rows = {
        name: {
            column: {key: result[key][column] for key in ("n", "accuracy", "ci95")}
            for column in COLUMNS
            if column in result["accuracy"]
        }
        for name, result in results.items()
    }
    return _dot_chart(rows, chance)


def by_value(rows: Mapping[str, Mapping[str, Mapping]], chance: float) -> str:
    """Accuracy for each value of a field; of many values the most frequent."""
    kept = list(dict.fromkeys(value for shares in rows.values() for value in shares))[:MOST_VALUES]
    return _dot_chart({name: {v: s for v, s in shares.items() if v in kept} for name, shares in rows.items()}, chance)


def _dot_chart(rows: Mapping[str, Mapping[str, Mapping]], chance: float) -> str:
    lines = len({value for shares in rows.values() for value in shares})
    with _figure(8.2, 1.1 + lines * (0.26 + 0.1 * len(rows))) as (_, axes, out):
        _dots(axes, rows, chance)
    return out[0]


def curves(histories: Mapping[str, Sequence[Mapping]], stage: str) -> str | None:
    """Losses of one stage, and the metric of its evaluations beside them; None where nothing was logged."""
    histories = {name: list(history) for name, history in histories.items() if history}
    if not histories:
        return None
    logged = {key for history in histories.values() for entry in history for key in entry}
    metric = next((key for key in ("eval_accuracy", "eval_rougeL") if key in logged), "")
    with _figure(8.2, 3.1, 2 if metric else 1) as (_, axes, out):
        panels = list(axes) if metric else [axes]
        for number, (name, history) in enumerate(histories.items()):
            look = {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.5}
            for key, label, line in (("loss", "training", "-"), ("eval_loss", "validation", "--")):
                points = [(entry["step"], entry[key]) for entry in history if key in entry]
                if points:
                    look |= {"marker": MARKERS[number % len(MARKERS)], "markersize": 3.5}
                    panels[0].plot(*zip(*points, strict=True), line, label=f"{name}, {label}", **look)
            points = [(entry["step"], entry[metric]) for entry in history if metric and metric in entry]
            if points:
                panels[1].plot(*zip(*points, strict=True), "--", label=name, **look)
        panels[0].set_ylabel("loss")
        panels[0].set_ylim(bottom=0)
        for panel in panels:
            panel.set_xlabel(f"step, {stage} stage")
        panels[0].legend(fontsize=8)
        if metric:
            panels[1].set_ylabel("accuracy in %" if "accuracy" in metric else "ROUGE-L in %")
    return out[0]


def calibration_chart(calibrations: Mapping[str, Mapping]) -> str:
    """Confidence against accuracy, and how often which confidence was given."""
    with _figure(8.2, 3.6, 2) as (_, axes, out):
        left, right = axes
        left.plot([0, 100], [0, 100], color="#555", linewidth=1, linestyle=":")
        left.text(97, 91, "as it should be", fontsize=8, ha="right", va="top", rotation=38, color="#333")
        width = 8 / max(1, len(calibrations))
        for number, (name, found) in enumerate(calibrations.items()):
            bins, color = found["bins"], COLOURS[number % len(COLOURS)]
            left.errorbar(
                [group["confidence"] for group in bins],
                [group["accuracy"] for group in bins],
                yerr=[
                    [max(0, group["accuracy"] - group["ci95"][0]) for group in bins],
                    [max(0, group["ci95"][1] - group["accuracy"]) for group in bins],
                ],
                fmt=f"{MARKERS[number % len(MARKERS)]}{LINES[number % len(LINES)]}",
                color=color,
                markersize=4,
                capsize=2,
                label=name,
            )
            shift = (number - (len(calibrations) - 1) / 2) * width
            places = [(group["low"] + group["high"]) / 2 + shift for group in bins]
            right.bar(places, [group["n"] for group in bins], width * 0.95, color=color, label=name)
        left.set_xlabel("confidence in % (score of the given answer)")
        left.set_ylabel("accuracy in %")
        left.set_xlim(0, 102)
        left.set_ylim(0, 104)
        right.set_xlabel("confidence in %")
        right.set_ylabel("answers")
        right.set_xlim(0, 102)
        if len(calibrations) > 1:
            right.legend(fontsize=8)
    return out[0]


def confusion_chart(confusions: Mapping[str, Mapping]) -> str:
    """Right letter × given letter, in % of the right letter's questions; one panel a run, two at most."""
    shown = dict(list(confusions.items())[:2])
    size = max(len(found["letters"]) for found in shown.values())
    with _figure(min(8.2, (1.6 + 0.55 * size) * len(shown) + 0.4), 1.5 + 0.5 * size, len(shown)) as (_, axes, out):
        for panel, (name, found) in zip(axes if len(shown) > 1 else [axes], shown.items(), strict=True):
            letters, counts = found["letters"], found["counts"]
            totals = [sum(row) + none for row, none in zip(counts, found["none"], strict=True)]
            shares = [
                [100 * n / total if total else 0 for n in row] for row, total in zip(counts, totals, strict=True)
            ]
            edges = [place - 0.5 for place in range(len(letters) + 1)]
            panel.pcolormesh(edges, edges, shares, cmap="Blues", vmin=0, vmax=100)  # as vectors, unlike imshow
            panel.invert_yaxis()
            panel.set_aspect("equal")
            for i, row in enumerate(counts):
                for j, n in enumerate(row):
                    color = "white" if shares[i][j] > 60 else "#1c1c22"
                    panel.text(j, i, f"{n:,}", ha="center", va="center", fontsize=8, color=color)
            panel.set_xticks(range(len(letters)), letters)
            panel.set_yticks(range(len(letters)), letters)
            panel.set_xlabel("given")
            panel.set_ylabel("right")
            panel.grid(visible=False)
            if len(shown) > 1:
                panel.set_title(name, fontsize=10)
    return out[0]


def rationale_chart(rationales: Mapping[str, Mapping]) -> str:
    """Accuracy by the rationale's ROUGE-L."""
    rows = {}
    for name, found in rationales.items():
        rows[name] = {f"ROUGE-L {group['low']:.0f}–{group['high']:.0f}": group for group in found["bins"]}
    order = sorted(
        {value for shares in rows.values() for value in shares}, key=lambda text: int(text[8:].split("–")[0])
    )
    rows = {name: {value: shares[value] for value in order if value in shares} for name, shares in rows.items()}
    with _figure(8.2, 1.2 + 0.45 * len(order)) as (_, axes, out):
        _dots(axes, rows, None)
    return out[0]
