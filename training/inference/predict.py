"""Rationales and answers of a trained model for a set of problems, written to a predictions file."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mmcot.training.common import ExistingFileError, MissingFileError, UserError, progress_bar
from mmcot.training.evaluation.predictions import PredictionsWriter, header
from mmcot.training.inference.cost import count_parameters, seconds_a_question

MODES = ("score", "generate")
WORTH_PACKING = 32  # questions; for fewer, copies of the weights take longer than they save


def load_pipeline(model, device=None, dtype: str = "float32"):
    """The `multimodal-cot` pipeline of a folder, a Hub id, or a model in memory that has its processor.

    Its networks generate by the engine wherever that gives what transformers' `generate` gives.

    Args:
        model: folder, Hub id, or model in memory.
        device: as "cpu", "cuda:1" or a `torch.device`; default: the first accelerator, else the CPU.
        dtype: of products and attention: "float32", which gives what transformers' own `pipeline` gives; "auto"
            (bfloat16 where the device has it, else float32; what `predict` takes), "bfloat16", or "int8" on a CPU.

    Raises:
        UserError: it is no Multimodal-CoT model, or the device isn't there or doesn't take the dtype.
    """
    import torch

    from mmcot import MMCoTForConditionalGeneration, MMCoTModel, MMCoTPipeline, MMCoTProcessor, MMCoTTwoStageConfig
    from mmcot.training.inference.answering import use_answering
    from mmcot.training.inference.precision import check_dtype

    check_dtype(dtype)
    _check_device(device)
    processor = None
    if isinstance(model, str | Path):
        from transformers import PreTrainedConfig

        source = str(model)
        folder = fetched(source)
        _check_files(source, Path(folder))
        kind = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
        if kind not in ("mmcot", "mmcot_two_stage"):
            raise UserError(f"{source} is no Multimodal-CoT model, but {kind or 'something without a model_type'}")
        two_stage = kind == MMCoTTwoStageConfig.model_type
        processor = MMCoTProcessor.from_pretrained(folder)
        if processor.tokenizer.pad_token is None:
            raise UserError(f"{source}: tokenizer_config.json is missing or names no pad_token: download it again")
        model = (MMCoTModel if two_stage else MMCoTForConditionalGeneration).from_pretrained(folder)
        if model.dtype == torch.float16 and dtype != "auto" and not getattr(model, "is_quantized", False):
            model.float()  # the engine doesn't compute in float16, nor does autocast mix it with others
        if folder != source:  # what it is called and which commit it is, not where the cache lies
            model.config.name_or_path, model.config._commit_hash = source, Path(folder).name
    pipeline = MMCoTPipeline(model=model.eval(), processor=processor, device=device)
    pipeline.answering = use_answering(pipeline.model, dtype)
    return pipeline


READ = ("config.json", "generation_config.json", "model.safetensors.index.json", "processor_config.json")
READ += ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
KEYS = {"tokenizer.json": ("added_tokens", "model")}  # without which a file is none


def _check_files(source: str, folder: Path) -> None:
    """What transformers would read without a word about which file is damaged."""
    import json

    for path in (folder / name for name in READ):
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            whole = isinstance(content, dict) and content.keys() >= set(KEYS.get(path.name, ()))
        except (ValueError, RecursionError):  # cut off, or no text
            whole = False
        if not whole:
            raise UserError(f"{source}: {path.name} is damaged or incomplete: download it again")
    for name, others in {"config.json": (), "processor_config.json": (), "tokenizer.json": ("spiece.model",)}.items():
        if folder.is_dir() and not any((folder / known).is_file() for known in (name, *others)):
            raise UserError(
                f"{source}: has no {name}: a model's folder is as `save_pretrained` writes it, or hub/ of a run"
            )


# of a repository; its code is the package's own
FETCHED = ("*.json", "*.safetensors", "*.model", "*.jinja", "README.md", "LICENSE*", "NOTICE*", "requirements.txt")


def fetched(source: str) -> str:
    """A repository's folder on this machine: of a Hub id, all that answering needs, in one pass over its files.

    Loading file by file asks the Hub for many that aren't there, again at each call; a Hub that is asked too often
    answers 429.

    Raises:
        MissingFileError: it is no folder, and can't be had from the Hub.
    """
    if Path(source).exists():
        return source
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(source, allow_patterns=list(FETCHED))
    except Exception as error:  # of the network, the Hub, the account, the name: what to do about them is the same
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise MissingFileError(f"{source}: no such folder, and it can't be had from the Hub: {reason}") from None


def _check_device(device) -> None:
    import torch

    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: PyTorch sees no GPU here; leave it out, or say cpu")
    try:
        if device is not None:
            torch.empty(1, device=device).cpu()
    except (RuntimeError, NotImplementedError, AssertionError):
        raise UserError(f"--device {device}: PyTorch has no such device here; leave it out, or say cpu") from None


def predict(
    model,
    problems,
    output: str | Path,
    *,
    batch_size: int = 64,
    mode: str = "score",
    blank_images: bool = False,
    device=None,
    dtype: str = "auto",
    features=None,
    source: str | None = None,
    seed: int = 0,
    **generate_kwargs: Any,
) -> Path:
    """Writes a model's rationales and answers to a predictions file.

    Several processes (`torchrun`; on GPUs `accelerate launch` too) share the problems. Cut off, the same call goes on
    where it stopped.

    Args:
        model: folder, Hub id, or model in memory.
        problems: a Dataset of problem records.
        output: predictions file (see `evaluation.predictions`); it appears when it is whole.
        batch_size: questions at a time.
        mode: "score" or "generate", as in `MMCoTModel.generate`.
        blank_images: leave the pictures out.
        device: as in `load_pipeline`.
        dtype: as in `load_pipeline`; the file's header names the one that was taken.
        features: a `FeatureCache` or its folder (`mmcot features`), read instead of running the model's backbone.
        source: where the problems come from, for the file's header.
        seed: of sampled rationales. They are drawn batch by batch: with another `batch_size` or number of processes,
            or behind an interruption, the same seed gives others.
        generate_kwargs: options of generation, of the rationale or of a one-stage model's text; and the pipeline's
            `self_consistency` and `choose`, for several rationales a problem.

    Raises:
        UserError: the file is there already, an option makes no sense, features are another backbone's, or an
            interrupted file beside `output` comes from another model or other settings.
    """
    import torch
    from accelerate import PartialState

    output = Path(output)
    if mode not in MODES:
        raise UserError(f"mode is {' or '.join(MODES)}, not {mode!r}")
    for name, value in {"batch_size": batch_size, **generate_kwargs}.items():
        if name in ("batch_size", "num_beams", "max_new_tokens") and (not isinstance(value, int) or value < 1):
            raise UserError(f"{name} is a whole number of at least 1, not {value!r}")
    if output.exists():
        raise ExistingFileError(f"{output} is there already: choose another name, or remove it")
    _check_device(device)
    # without an accelerator the processes of a launch wouldn't know each other
    state = PartialState(cpu=str(device) == "cpu" or not torch.accelerator.is_available())
    pipeline = load_pipeline(model, device if state.num_processes == 1 else state.device, dtype)
    cache = None if features is None or blank_images else open_features(features, pipeline)
    sampled = generate_kwargs.get("self_consistency", 1) > 1 or bool(generate_kwargs.get("do_sample"))
    decoding = {**generate_kwargs, "seed": seed} if sampled else generate_kwargs
    facts = _header(pipeline, model, problems, mode, blank_images, cache, source, decoding)
    ids = problems["id"][:]
    # longest first: rows of like length share a batch, and memory runs out at once or never
    lengths = [
        len(question) + len(context or "") + sum(map(len, choices))
        for question, context, choices in zip(*(problems[name][:] for name in _LENGTHS), strict=True)
    ]
    order = sorted(range(len(ids)), key=lambda i: -lengths[i])[state.process_index :: state.num_processes]
    with PredictionsWriter(output, facts, rank=state.process_index, num_processes=state.num_processes) as writer:
        todo, begun = [i for i in order if ids[i] not in writer.done], time.monotonic()
        batches = (_records(problems, todo[i : i + batch_size], blank_images) for i in range(0, len(todo), batch_size))
        with progress_bar(total=len(todo), unit="problem", shown=state.is_main_process) as progress:
            options = {"cache": cache, "generate_kwargs": generate_kwargs, "seed": seed}
            options["packed"] = len(todo) >= WORTH_PACKING
            for id_, result in answer_batches(pipeline, batches, batch_size, mode, **options):
                writer.add(prediction_record(id_, result))
                progress.update()
    state.wait_for_everyone()
    if state.is_main_process:
        writer.finish(ids, seconds_per_question=seconds_a_question(begun, len(todo), state.num_processes))
    state.wait_for_everyone()
    return output


_LENGTHS = ("question", "context", "choices")


def prediction_record(id_: str, result: dict[str, Any]) -> dict[str, Any]:
    """A line of a predictions file from what the processor's `post_process` (or the pipeline) gives."""
    letter, scores = result["answer"], result["scores"]
    return {
        "id": id_,
        "answer": None if letter is None else ord(letter) - ord("A"),
        "rationale": result["rationale"],
        # the last digits depend on the other questions of a batch: in float32 by up to 5e-6 or so
        "scores": None if scores is None else {letter: round(score, 6) for letter, score in scores.items()},
        "generated": result["generated"],
    }


def _records(problems, rows: list[int], blank_images: bool) -> list[dict[str, Any]]:
    columns = problems[rows]
    names = list(columns)
    records = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{**record, "images": []} for record in records] if blank_images else records


def _header(pipeline, model, problems, mode, blank_images, cache, source, generate_kwargs) -> dict[str, Any]:
    from mmcot.answers_mmcot import prepare_generation_config
    from mmcot.training.inference.fingerprint import model_fingerprint
    from mmcot.training.inference.generation import special_options

    splits = set(problems["split"][:]) if "split" in problems.column_names else set()
    config, _ = prepare_generation_config(pipeline.model, **generate_kwargs)
    known = (
        {"features": {name: cache.info.get(name) for name in ("backbone", "weights", "fingerprint")}} if cache else {}
    )
    decoding = {"num_beams": config.num_beams or 1, "max_new_tokens": config.max_new_tokens}
    decoding |= {**special_options(config), **generate_kwargs}
    return header(
        "multimodal-cot",
        model=model_name(model),
        parameters=count_parameters(pipeline.model),
        revision=getattr(pipeline.model.config, "_commit_hash", None),
        fingerprint=model_fingerprint(pipeline.model),
        source=None if source is None else str(source),
        split=splits.pop() if len(splits) == 1 else None,
        protocol="generated",
        mode=mode,
        decoding=decoding,
        dtype=pipeline.answering.name,
        images="blank" if blank_images else "given",
        rationale_format=pipeline.processor.rationale_format,
        **known,
    )


def model_name(model) -> str:
    """A Hub id, or the end of a folder's path: where it lies on this machine is nobody's business."""
    if not isinstance(model, str | Path):
        return type(model).__name__
    path = Path(model)
    return "/".join(path.resolve().parts[-2:]) if path.exists() else str(model)


def open_features(features, pipeline):
    """The cache, if it fits the model.

    Raises:
        UserError: another backbone's, or features for a model that reads none.
    """
    from mmcot.training.features.cache import FeatureCache
    from mmcot.training.features.match import check_features_match

    model = pipeline.model
    stage, vision = (model.rationale, model.vision) if pipeline.two_stage else (model, model.encoder.vision)
    cache = features if isinstance(features, FeatureCache) else FeatureCache.open(features)
    if cache.image_feature_size != stage.config.image_feature_size:
        raise UserError(
            f"{cache.path}: has features of width {cache.image_feature_size}, and the model reads "
            f"{stage.config.image_feature_size or 'no pictures'}: leave --features out, or name its backbone's"
        )
    if vision is not None:
        check_features_match(cache, vision, pipeline.processor.image_processor, model.config.vision_feature)
    return cache


def reader(processor, cache) -> Callable[[list[dict]], Any]:
    """What makes a model's inputs of problems: the processor, or, with features, it for the text alone."""
    if cache is None:
        return processor
    from mmcot.training.features.cache import problem_keys

    text_only = copy.copy(processor)
    text_only.image_processor = None

    def read(problems: list[dict]):
        inputs = text_only(problems)
        inputs.update(cache.collate([problem_keys(problem, cache) for problem in problems]))
        return inputs

    return read


def answer_batches(
    pipeline,
    batches: Iterable[list[dict]],
    batch_size: int,
    mode: str = "score",
    cache=None,
    generate_kwargs: dict | None = None,
    seed: int = 0,
    packed: bool = True,
) -> Iterator[tuple[str, dict]]:
    """(id, result) of each problem: without waiting for the longest rationale of a batch where the fast decoder takes
    the call, else by batches of the pipeline; `packed` as in `StageWeights`."""
    generate_kwargs = generate_kwargs or {}
    answering = pipeline.answering
    options = answering.engine_options(mode, None, generate_kwargs)
    read, model, processor = reader(pipeline.processor, cache), pipeline.model, pipeline.processor
    if options is not None:
        options |= {"slots": batch_size, "weights": answering.weights(packed)}
        yield from _streamed(model, processor, read, batches, **options)
        return
    import zlib

    from transformers import set_seed

    votes = generate_kwargs.get("self_consistency", 1), generate_kwargs.get("num_return_sequences", 1)
    if cache is not None and max(votes) > 1:
        raise UserError("several rationales of a problem don't go with features: leave --features out")
    for batch in batches:
        # by the questions: what is gone on with, or shared by several processes, repeats no stream of numbers
        set_seed(zlib.crc32(repr((seed, [problem["id"] for problem in batch])).encode()))
        if cache is None:
            results = pipeline(batch, batch_size=batch_size, mode=mode, **generate_kwargs)
        else:
            outputs = model.generate(**read(batch).to(model.device), mode=mode, **generate_kwargs)
            results = processor.post_process(outputs, batch)
        yield from zip((problem["id"] for problem in batch), results, strict=True)


def _streamed(model, processor, read, batches, **options) -> Iterator[tuple[str, dict]]:
    from mmcot.training.inference.engine import answer_questions

    under_way: dict[str, dict] = {}

    def inputs():
        for batch in batches:
            under_way.update((problem["id"], problem) for problem in batch)
            yield [problem["id"] for problem in batch], read(batch)

    for ids, output in answer_questions(model, inputs(), **options):
        results = processor.post_process(output, [under_way.pop(id_) for id_ in ids])
        yield from zip(ids, results, strict=True)
