"""The second tab: a data set with the predictions of one run or two, filtered and leafed through."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmcot.training.app.rendering import LETTERS, answer_html, escape, picture_html
from mmcot.training.evaluation.answers import scores_of

ANY = "all"
JUDGED = "right or wrong"


class Collection:
    """Problems of a data set with predictions.

    Args:
        problems: `datasets.Dataset` of problem records.
        runs: name → {id: prediction}, two at most.
    """

    def __init__(self, problems, runs: Mapping[str, Mapping[str, Any]]):
        from mmcot.training.evaluation.analysis import judged

        self.problems, self.runs = problems, dict(list(runs.items())[:2])
        columns = [name for name in problems.column_names if name != "images"]
        records = problems.select_columns(columns).to_list()
        known = set.intersection(*(set(run) for run in self.runs.values())) if self.runs else set(problems["id"][:])
        self.rows = [row for row, record in enumerate(records) if record["id"] in known]
        self.records = {row: records[row] for row in self.rows}
        by_id = {self.records[row]["id"]: self.records[row] for row in self.rows}
        answered = {id_: record for id_, record in by_id.items() if record["answer"] is not None}
        self.answers = {name: judged(answered, run) for name, run in self.runs.items()}

    def values(self, field: str) -> list[str]:
        """What a filter offers: the values of subject, grade, or context."""
        found = {_value(record, field) for record in self.records.values()}
        values = sorted((value for value in found if value), key=lambda text: (len(text), text))
        return [ANY, *values]

    def judgements(self) -> list[str]:
        """What the filter by right and wrong offers."""
        names = list(self.runs)
        if not names:
            return [ANY]
        each = [f"{name}: {kind}" for name in names for kind in ("right", "wrong")]
        return [ANY, *each, *(["the two differ"] if len(names) == 2 else [])]

    def find(self, subject: str, grade: str, context: str, judgement: str, words: str) -> list[int]:
        """Rows that the filters leave."""
        wanted = {"subject": subject, "grade": grade, "context": context}
        needle = (words or "").casefold().strip()
        return [
            row
            for row, record in self.records.items()
            if all(value in (None, ANY) or _value(record, field) == value for field, value in wanted.items())
            and self._judged(record, judgement)
            and needle in " ".join([record["question"], record["context"] or "", *record["choices"]]).casefold()
        ]

    def _judged(self, record: Mapping[str, Any], judgement: str | None) -> bool:
        if judgement in (None, ANY) or record["answer"] is None:
            return judgement in (None, ANY)
        right = {name: answers[record["id"]] == record["answer"] for name, answers in self.answers.items()}
        if judgement == "the two differ":
            return len(set(right.values())) == 2
        name, _, kind = judgement.rpartition(": ")
        return right[name] == (kind == "right")

    def card(self, row: int) -> str:
        """One question with what every run said, as HTML."""
        from mmcot.processing import load_images

        record = self.records[row]
        images = []
        for reference in self.problems[row]["images"]:
            try:
                images.append(picture_html(load_images({"image": reference})[0]))
            except ValueError as error:
                images.append(f'<p class="mm-soft">{escape(error)}</p>')
        labels = " · ".join(filter(None, (record["subject"], record["grade"], record["topic"], record["skill"])))
        context = f'<p class="mm-soft">{escape(record["context"])}</p>' if record["context"] else ""
        gold = record["answer"]
        solution = escape(record["solution"]).replace("\n", "<br>") or "none"
        told = "".join(f"<div>{self._run(name, record)}</div>" for name in self.runs)
        right = "" if gold is None else f"({LETTERS[gold]}) {escape(record['choices'][gold])}"
        return (
            f'<div class="mm-card mm-result"><p class="mm-soft">{escape(record["id"])} · {escape(labels)}</p>'
            f'<div class="mm-pair"><div>{"".join(images)}</div><div>'
            f"<p><strong>{escape(record['question'])}</strong></p>"
            f'{context}{_options(record)}</div></div><div class="mm-pair">{told}<div class="mm-gold">'
            f"<h3>The right answer</h3><p>{solution}</p><p><strong>{right}</strong></p></div></div></div>"
        )

    def _run(self, name: str, record: Mapping[str, Any]) -> str:
        prediction = self.runs[name][record["id"]]
        given = prediction if isinstance(prediction, Mapping) else {}
        answer = self.answers[name].get(record["id"])
        scores = scores_of(given)
        told = {
            "answer": answer,
            "choices": record["choices"],
            "scores": scores and [scores.get(LETTERS[i], 0.0) for i in range(len(record["choices"]))],
        }
        rationale = escape(given.get("rationale") or "").replace("\n", "<br>")
        return f"<h3>{escape(name)}</h3><p>{rationale}</p>{answer_html(told, record['answer'])}"


def _options(record: Mapping[str, Any]) -> str:
    return "".join(f"<p>({LETTERS[i]}) {escape(choice)}</p>" for i, choice in enumerate(record["choices"]))


def _value(record: Mapping[str, Any], field: str) -> str | None:
    if field != "context":
        return record.get(field)
    text, image = bool(record["context"]), bool(record["has_image"])
    return {(True, True): "text and picture", (True, False): "text", (False, True): "picture"}.get(
        (text, image), "none"
    )


def build_browser(gradio, collection: Collection) -> None:
    """The tab's fields and what they do, inside an open `gradio.Tab`."""
    with gradio.Row():
        filters = [
            gradio.Dropdown(collection.values(field), value=ANY, label=field.capitalize(), min_width=120)
            for field in ("subject", "grade", "context")
        ]
        filters.append(gradio.Dropdown(collection.judgements(), value=ANY, label=JUDGED.capitalize(), min_width=120))
        filters.append(gradio.Textbox(label="Words", min_width=120, elem_id="mm-words-filter"))
    rows = collection.find(ANY, ANY, ANY, ANY, "")
    found, place = gradio.State(rows), gradio.State(0)
    with gradio.Row():
        back = gradio.Button("Previous", min_width=100, elem_id="mm-back")
        forth = gradio.Button("Next", min_width=100, elem_id="mm-next")
    count = gradio.Markdown(_count(rows, 0), elem_id="mm-count")
    card = gradio.HTML(_shown(collection, rows, 0), elem_id="mm-browse")
    out = [found, place, count, card]

    def refilter(*values):
        left = collection.find(*values)
        return left, 0, _count(left, 0), _shown(collection, left, 0)

    def move(rows: Sequence[int], at: int, step: int):
        at = min(max(0, at + step), max(0, len(rows) - 1))
        return rows, at, _count(rows, at), _shown(collection, rows, at)

    for one in filters:
        one.change(refilter, filters, out, api_visibility="private", show_progress="hidden")
    for button, step in ((back, -1), (forth, 1)):
        button.click(
            lambda rows, at, step=step: move(rows, at, step),
            [found, place],
            out,
            api_visibility="private",
            show_progress="hidden",
        )


def _count(rows: Sequence[int], at: int) -> str:
    return f"{at + 1:,} of {len(rows):,} questions" if rows else "no question is left by these filters"


def _shown(collection: Collection, rows: Sequence[int], at: int) -> str:
    return collection.card(rows[at]) if rows else ""
