"""What own_questions.yaml asks of a record: its pictures, a prompt for other models, whether an answer is right."""

from mmcot.processing import load_images, option_letter, parse_answer


def pictures(doc: dict) -> list:
    return load_images(doc)


def prompt(doc: dict, lmms_eval_specific_kwargs=None) -> str:
    options = [f"{option_letter(index)}. {choice}" for index, choice in enumerate(doc["choices"])]
    return "\n".join([doc.get("context") or "", doc["question"], *options, "Answer with the option's letter."]).strip()


def letter(doc: dict) -> str:
    """The right option's letter; the answer is an index, a letter or the option's text."""
    answer = doc["answer"]
    if isinstance(answer, int):
        return option_letter(answer)
    return option_letter(doc["choices"].index(answer)) if answer in doc["choices"] else answer


def score(doc: dict, results: list[str]) -> dict[str, float]:
    said = results[0].strip()
    index = parse_answer(said, len(doc["choices"]))
    said = said[:1].upper() if index is None else option_letter(index)
    return {"exact_match": float(said == letter(doc))}
