"""Least-to-most prompting (Zhou et al. 2022, arXiv 2205.10625): the question is decomposed, its parts are answered
in order, each with the answers before it, then the question itself."""

import re

from mmcot.training.reasoning.calls import Work
from mmcot.training.reasoning.methods import Settings
from mmcot.training.reasoning.texts import problem_fields, read_answer, templates

MOST_PARTS = 4


def work(problem, settings: Settings, sample: int = 0) -> Work:
    texts, fields = templates()["least-to-most"], problem_fields(problem, settings.use_caption)
    decomposed = yield settings.request(problem, texts["decompose"].format(**fields), sample, step="decompose")
    solved = ""
    for part in parts_of(decomposed.text):
        prompt = texts["solve"].format(**fields, solved=solved, part=part).replace("\n\n", "\n")
        answer = (yield settings.request(problem, prompt, sample, step="solve")).text.split("\nQ:")[0].strip()
        solved += f"{'' if not solved else chr(10)}Q: {part}\nA: {answer}"
    prompt = texts["answer"].format(**fields, solved=solved).replace("\n\n", "\n")
    if settings.score_options:
        return (yield from settings.scored(problem, f"{prompt} (", solved, sample))
    completion = yield settings.request(problem, prompt, sample, step="answer", max_new_tokens=16, greedy=True)
    return settings.answered(problem, completion, solved, read_answer(completion.text, problem, begun=True))


def parts_of(text: str) -> list[str]:
    """The questions of a decomposition, in order, without their numbers, each once."""
    found = []
    for line in re.split(r"\n|(?<=\?)\s", text):
        line = re.sub(r"^\s*(?:\d+[.):]|[-*•])\s*", "", line).strip().strip('"“”')
        if line.endswith("?") and line not in found:
            found.append(line)
    return found[:MOST_PARTS]
