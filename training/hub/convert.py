"""The original project's checkpoints become a repository."""

from pathlib import Path

from mmcot.training.common import MissingFileError, UserError


def convert(
    original: str | Path,
    output: str | Path,
    *,
    answer: str | Path | None = None,
    stage: str | None = None,
    tokenizer=None,
    vision: str | None = None,
    rationale_format: str = "QCM-E",
    answer_format: str | None = None,
    use_caption: bool = False,
):
    """Reads one or two checkpoints of the original, and writes a complete repository.

    Args:
        original: folder of the rationale stage's checkpoint, or of the single one.
        output: folder of the repository.
        answer: folder of the answer stage's; a two-stage repository is written.
        stage: what a single checkpoint is for: "rationale", "answer", "one-stage", or None if that isn't known.
        tokenizer: folder, tokenizer.json or tokenizer; default: the one in `original`. Without any, no processor is
            written.
        vision: preset or checkpoint of the backbone whose features the weights read; without it, features have to be
            given from outside.
        rationale_format: prompt format that the rationale stage was trained with.
        answer_format: that of the answer stage or of the one stage; default: QCMG-A, or QCM-A for one stage.
        use_caption: the weights were trained with captions in the context.

    Returns:
        the model that was saved.

    Raises:
        ValueError, FileNotFoundError: a folder isn't there, holds no fusion or an incomplete one, or not the tokenizer
            that it should.
    """
    from mmcot import MMCoTModel, MMCoTProcessor
    from mmcot.training.hub.cards import config_facts, model_card
    from mmcot.training.hub.extras import requirements_of, write_extras
    from mmcot.training.stages.build import image_processor_of

    one_stage = answer is None and stage == "one-stage"
    answer_format = answer_format or ("QCM-A" if one_stage else "QCMG-A")
    formats = {"rationale": rationale_format, "answer": answer_format, "one-stage": answer_format}
    for folder in filter(None, (original, answer)):
        if not (Path(folder) / "config.json").is_file():
            raise MissingFileError(f"{folder} holds no config.json: give the folder of a checkpoint of the original")
    tokenizer = _tokenizer(tokenizer, original)
    processor = None
    if tokenizer is not None:
        processor = MMCoTProcessor(
            image_processor=image_processor_of(vision),
            tokenizer=tokenizer,
            rationale_format=None if one_stage else rationale_format,
            answer_format=answer_format,
            use_caption=use_caption,
        )

    def load(folder, stage):
        return _load_stage(folder, stage, formats.get(stage), use_caption)

    if answer is None:
        model = load(original, stage)
    else:
        model = MMCoTModel.from_stages(load(original, "rationale"), load(answer, "answer"), processor)
    if vision is not None:
        _add_vision(model, vision)
    facts = {
        **config_facts(model.config.to_dict()),
        "dataset": "scienceqa",
        "num_parameters": model.num_parameters(),
    }
    requirements = requirements_of(model.config.to_dict())
    model.processor = processor
    model.save_pretrained(output, model_card=model_card(None, {**facts, "requirements": requirements}))
    write_extras(Path(output), requirements, {}, None, {})
    return model


def _load_stage(folder: str | Path, stage: str | None, prompt_format: str | None, use_caption: bool):
    from mmcot import MMCoTForConditionalGeneration

    model = MMCoTForConditionalGeneration.from_pretrained(
        folder,
        stage="answer" if stage == "one-stage" else stage,
        prompt_format=prompt_format,
        use_caption=use_caption,
    )
    if not model.config.has_fusion:
        raise UserError(
            f"{folder} is a plain T5 without a fusion: there is nothing to convert, train from it as it is"
        )
    return model


def _tokenizer(given, original: str | Path):
    """The tokenizer that is asked for; else the checkpoint's own, or None where it has none."""
    from transformers import AutoTokenizer

    from mmcot.training.stages.build import tokenizer_from_file

    if given is not None and not isinstance(given, (str, Path)):
        return given
    source = Path(given or original)
    if source.suffix == ".json":
        return tokenizer_from_file(source)
    # transformers makes an empty tokenizer out of a bare config.json
    if source.is_dir() and not any((source / name).exists() for name in ("tokenizer.json", "spiece.model")):
        if given is not None:
            raise UserError(f"{source} holds no tokenizer (tokenizer.json or spiece.model)")
        return None
    return AutoTokenizer.from_pretrained(str(source))


def _add_vision(model, vision: str) -> None:
    """Puts the backbone beside both stages, or inside the one."""
    from mmcot.training.stages.build import load_vision

    config, backbone, feature = load_vision(vision)
    holder, owner = (model, model.config) if hasattr(model, "rationale") else (model.encoder, model.config)
    holder.vision = backbone
    owner.vision_config, owner.vision_feature = config, feature
    if holder is not model:
        model.encoder.config.vision_config, model.encoder.config.vision_feature = config, feature
