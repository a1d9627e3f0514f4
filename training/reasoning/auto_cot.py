"""Auto-CoT (Zhang et al. 2022, arXiv 2210.03493): demonstrations that the model writes itself, one of each kind.

Training questions are clustered by their sentence embeddings (k-means). Per cluster, from its centre outwards, the
first question whose zero-shot rationale passes the length rules becomes a demonstration, with the answer that the
model gave.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.batched import read_records
from mmcot.training.reasoning import zero_shot_cot
from mmcot.training.reasoning.calls import Caller, Work
from mmcot.training.reasoning.methods import Selection, Settings, own_words, without_answer
from mmcot.training.reasoning.texts import option_letter, problem_fields, read_answer, steps_of, templates

# the paper's appendix: at most 60 tokens of question and five reasoning steps
LONGEST_QUESTION, MOST_STEPS = 60, 5
TRIED = 10  # questions of a cluster whose rationales are asked for, nearest to the centre first


def prepare(train: Sequence[Mapping[str, Any]], settings: Settings, caller: Caller) -> Selection:
    """Chooses `settings.shots` demonstrations from the training problems.

    Raises:
        UserError: no embedding model, or no cluster has a question that passes.
    """
    clusters = cluster([problem["question"] for problem in read_records(train)], settings.shots, settings)
    found = []
    for number, members in enumerate(clusters):
        candidates = [train[i] for i in members if len(train[i]["question"].split()) <= LONGEST_QUESTION][:TRIED]
        works = (
            (f"auto-cot/{number}/{problem['id']}", zero_shot_cot.work(problem, settings)) for problem in candidates
        )
        written = caller.run(works)
        for problem in candidates:
            result = written[f"auto-cot/{number}/{problem['id']}"]
            if result["answer"] is not None and result["rationale"] and steps_of(result["rationale"]) <= MOST_STEPS:
                found.append({**problem, "answer": result["answer"], "rationale": result["rationale"]})
                break
    if not found:
        raise UserError("auto-cot: no training question got a rationale that passes the length rules")
    return Selection(found)


def cluster(questions: Sequence[str], count: int, settings: Settings) -> list[list[int]]:
    """Numbers of the questions by cluster, each sorted by the distance from its centre, the nearest first."""
    import numpy as np
    from scipy.cluster.vq import kmeans2

    from mmcot.training.evaluation.similarity import embed

    if settings.embedding_model is None:
        raise UserError("auto-cot compares questions: name a sentence-transformers model (--embedding-model)")
    vectors = np.asarray(embed(list(questions), settings.embedding_model), dtype=np.float64)
    centres, labels = kmeans2(vectors, min(count, len(vectors)), seed=settings.seed, minit="++")
    clusters = []
    for number, centre in enumerate(centres):
        members = np.flatnonzero(labels == number)
        distances = np.linalg.norm(vectors[members] - centre, axis=1)
        clusters.append(members[np.argsort(distances, kind="stable")].tolist())
    return [members for members in clusters if members]


def demonstrated(settings: Settings) -> str:
    """The demonstrations as text."""
    return "\n\n".join(
        templates()["demonstration"].format(
            problem=problem_fields(shot, settings.use_caption)["problem"],
            rationale=shot["rationale"],
            letter=option_letter(int(shot["answer"])),
        )
        for shot in settings.demonstrations
    )


def work(problem, settings: Settings, sample: int = 0) -> Work:
    fields = problem_fields(problem, settings.use_caption)
    prompt = templates()["auto-cot"]["ask"].format(demonstrations=demonstrated(settings), **fields)
    completion = yield settings.request(problem, prompt, sample)
    text = own_words(completion.text)
    if settings.score_options:
        return (yield from settings.scored(problem, f"{prompt} {without_answer(text)} The answer is (", text, sample))
    return settings.answered(problem, completion, text, read_answer(text, problem))
