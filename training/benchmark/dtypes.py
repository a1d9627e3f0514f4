"""Whether a model answers the same in every dtype: predictions of one set of questions, compared one by one."""

import tempfile
import time
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16", "int8")
DEMO_QUESTIONS = "embedded:n=8000,test=2000,skills=flower+layers+flag+tense"  # of `mmcot demo`


def compare_dtypes(
    model: str | Path,
    source: str = DEMO_QUESTIONS,
    split: str | None = "test",
    limit: int | None = None,
    folder: str | Path | None = None,
    batch_size: int = 128,
) -> dict[str, Any]:
    """Predicts in each dtype by `mmcot predict`'s own function, on a CPU.

    Args:
        model: a repository, such as `mmcot-demo/hub`.
        source, split, limit: of the questions.
        folder: keeps the predictions files (for `mmcot compare`); what is there already is taken as it is.

    Returns:
        {"questions", "model" (fingerprint), "dtypes": {dtype: {"accuracy" (% in the paper's columns), "seconds" (None
        of a file that was there), "equal_rationales" and "equal_answers" (% of the questions, to float32)}}}
    """
    from mmcot.training.data.batched import read_records
    from mmcot.training.data.problems import load_problems
    from mmcot.training.evaluation.predictions import read_header
    from mmcot.training.evaluation.reading import read_predictions
    from mmcot.training.evaluation.scoring import evaluate_predictions
    from mmcot.training.inference.predict import predict

    problems = load_problems(source, split)
    if limit is not None:
        problems = problems.select(range(min(limit, len(problems))))
    records = {problem["id"]: problem for problem in read_records(problems.remove_columns(["images"]))}
    found: dict[str, dict[str, Any]] = {}
    first: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mmcot-dtypes-") as temporary:
        for dtype in DTYPES:
            path, begin, seconds = Path(folder or temporary) / f"predictions-{dtype}.jsonl", time.perf_counter(), None
            if not path.exists():
                predict(model, problems, path, batch_size=batch_size, device="cpu", dtype=dtype, source=source)
                seconds = round(time.perf_counter() - begin, 1)
            written = read_predictions(path)
            first = first or written
            result = evaluate_predictions(records, written)
            found[dtype] = {
                "accuracy": result["accuracy"],
                "seconds": seconds,
                "equal_rationales": _share(written, first, "rationale"),
                "equal_answers": _share(written, first, "answer"),
            }
            fingerprint = read_header(path).get("fingerprint")
    return {"questions": len(problems), "source": source, "model": fingerprint, "dtypes": found}


def _share(written: dict[str, dict], other: dict[str, dict], field: str) -> float:
    """% of the questions with the same value."""
    return round(100 * sum(written[id_][field] == other[id_][field] for id_ in written) / len(written), 2)
