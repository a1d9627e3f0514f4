"""Rationales and answers of a trained model for a set of problems, written to a predictions file."""

import json
from pathlib import Path


def load_pipeline(model, device=None):
    """The `multimodal-cot` pipeline of a folder, a Hub id, or a model in memory that has its processor."""
    from mmcot import MMCoTForConditionalGeneration, MMCoTModel, MMCoTPipeline, MMCoTProcessor, MMCoTTwoStageConfig

    processor = None
    if isinstance(model, (str, Path)):
        from transformers import PreTrainedConfig

        source = str(model)
        kind = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
        if kind not in ("mmcot", "mmcot_two_stage"):
            raise ValueError(f"{source} is no Multimodal-CoT model, but {kind or 'something without a model_type'}")
        two_stage = kind == MMCoTTwoStageConfig.model_type
        model = (MMCoTModel if two_stage else MMCoTForConditionalGeneration).from_pretrained(source)
        processor = MMCoTProcessor.from_pretrained(source)
    return MMCoTPipeline(model=model, processor=processor, device=device)


def predict(
    model,
    problems,
    output: str | Path,
    *,
    batch_size: int = 64,
    mode: str = "score",
    blank_images: bool = False,
    device=None,
    **generate_kwargs,
) -> Path:
    """Writes predictions of `problems` (a Dataset of records) by a two-stage or one-stage model.

    Args:
        model: folder, Hub id, or model in memory.
        output: JSON Lines, complete when it exists; `<output>.partial` holds what is done so far.
        mode: "score" or "generate", as in `MMCoTModel.generate`.
        blank_images: leave the pictures out.
    """
    from tqdm import tqdm

    from mmcot.training.common import drop_cut_line, read_jsonl, written_whole

    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} is there already: choose another name, or remove it")
    pipeline = load_pipeline(model, device)
    partial = output.with_name(f"{output.name}.partial-records")
    partial.parent.mkdir(parents=True, exist_ok=True)
    drop_cut_line(partial)
    done = {record["id"]: record for record in read_jsonl(partial)} if partial.exists() else {}
    # longest first: rows of like length share a batch, and memory runs out at once or never
    lengths = [
        len(p["question"]) + len(p["context"] or "") + sum(map(len, p["choices"]))
        for p in problems.remove_columns(["images"])
    ]
    todo = [i for i in sorted(range(len(problems)), key=lambda i: -lengths[i]) if problems[i]["id"] not in done]
    batches = (
        [{**problems[i], **({"images": []} if blank_images else {})} for i in todo[start : start + batch_size]]
        for start in range(0, len(todo), batch_size)
    )
    with open(partial, "a", encoding="utf-8") as file, tqdm(total=len(todo), unit="problem") as progress:
        for id_, result in _results(pipeline, batches, batch_size, mode, generate_kwargs):
            letter = result["answer"]
            record = {
                "id": id_,
                "answer": None if letter is None else ord(letter) - ord("A"),
                "rationale": result["rationale"],
                "scores": result["scores"],
                "generated": result["generated"],
            }
            done[id_] = record
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            progress.update()
    with written_whole(output) as file:
        for id_ in problems["id"]:
            file.write(json.dumps(done[id_], ensure_ascii=False) + "\n")
    partial.unlink()
    return output


def _results(pipeline, batches, batch_size: int, mode: str, generate_kwargs: dict):
    """(id, result) of each problem: by batches of the pipeline, or, for plain greedy decoding and scored options,
    without waiting for the longest rationale of a batch."""
    from mmcot.training.inference.decoder import is_plain_greedy
    from mmcot.training.inference.decoder_weights import is_plain_t5
    from mmcot.training.inference.engine import answer_questions

    model, processor = pipeline.model, pipeline.processor
    config = model.prepare_generation_config(**generate_kwargs)[0] if pipeline.two_stage else None
    if (
        mode != "score"
        or config is None
        or not (is_plain_greedy(config) and is_plain_t5(model.rationale) and is_plain_t5(model.answer))
    ):
        for batch in batches:
            results = pipeline(batch, batch_size=batch_size, mode=mode, **generate_kwargs)
            yield from zip((problem["id"] for problem in batch), results, strict=True)
        return
    under_way = {}

    def inputs():
        for batch in batches:
            under_way.update((problem["id"], problem) for problem in batch)
            yield [problem["id"] for problem in batch], processor(batch)

    limit = config.max_new_tokens or config.max_length - 1
    for ids, output in answer_questions(model, inputs(), max_new_tokens=limit, slots=batch_size):
        results = processor.post_process(output, [under_way.pop(id_) for id_ in ids])
        yield from zip(ids, results, strict=True)
