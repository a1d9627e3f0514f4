"""Turn the original project's checkpoints into a repository.

  mmcot convert original/rationale --answer original/answer --vision vit --output repositories/base-v5
  mmcot convert original/answer --stage answer --output repositories/base-v5-answer

ORIGINAL_DIR holds config.json of a plain T5 and pytorch_model.bin or model.safetensors, in either of the original's
key layouts. With --answer both stages become one two-stage repository.
"""

from pathlib import Path


def add_arguments(parser) -> None:
    parser.add_argument("original", metavar="ORIGINAL_DIR", help="checkpoint of the original (a stage)")
    parser.add_argument("output", nargs="?", metavar="OUT", help="folder of the repository")
    parser.add_argument("--output", dest="output_option", metavar="OUT", help="the same")
    parser.add_argument(
        "--stage", choices=("rationale", "answer", "one-stage"), help="what a single checkpoint is for"
    )
    parser.add_argument(
        "--answer", metavar="DIR", help="the answer stage's checkpoint; ORIGINAL_DIR is the rationale's"
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer; default: ORIGINAL_DIR's")
    parser.add_argument(
        "--vision", help="backbone to add: detr, vit, clip, resnet or a checkpoint (needs its weights)"
    )
    parser.add_argument(
        "--rationale-format", default="QCM-E", help="prompt format of the rationale stage (v1: QCM-LE)"
    )
    parser.add_argument("--answer-format", default=None, help="of the answer stage (QCMG-A), or of one stage (QCM-A)")
    parser.add_argument("--use-caption", action="store_true", help="the weights were trained with captions")


def run(args) -> int:
    output = args.output or args.output_option
    if not output:
        raise ValueError("where to? give OUT, a folder for the repository")
    if args.answer and args.stage:
        raise ValueError("--stage is for a single checkpoint, and --answer makes two of them")
    if not args.answer and not args.stage:
        raise ValueError("say what the checkpoint is for with --stage, or give the other stage with --answer")
    model = convert(
        args.original,
        output,
        answer=args.answer,
        stage=args.stage or "rationale",
        tokenizer=args.tokenizer,
        vision=args.vision,
        rationale_format=args.rationale_format,
        answer_format=args.answer_format,
        use_caption=args.use_caption,
    )
    print(f"{type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters, in {output}")
    return 0


def convert(
    original: str | Path,
    output: str | Path,
    *,
    answer: str | Path | None = None,
    stage: str = "rationale",
    tokenizer=None,
    vision: str | None = None,
    rationale_format: str = "QCM-E",
    answer_format: str | None = None,
    use_caption: bool = False,
):
    """Reads one or two checkpoints of the original, and writes a complete repository.

    Args:
        original: folder of the rationale stage's checkpoint, or of the single one.
        answer: folder of the answer stage's; a two-stage repository is written.
        stage: what a single checkpoint is for: "rationale", "answer" or "one-stage".
        tokenizer: folder, tokenizer.json or tokenizer; default: the one in `original`.
        vision: preset or checkpoint of the backbone whose features the weights read; without it, features have to be
            given from outside.

    Returns:
        the model that was saved.

    Raises:
        ValueError, FileNotFoundError: a folder isn't there, holds no fusion, or an incomplete one; no tokenizer.
    """
    from mmcot import MMCoTModel, MMCoTProcessor
    from mmcot.training.build import image_processor_of
    from mmcot.training.cards import config_facts, model_card

    one_stage = answer is None and stage == "one-stage"
    answer_format = answer_format or ("QCM-A" if one_stage else "QCMG-A")
    formats = {"rationale": rationale_format, "answer": answer_format, "one-stage": answer_format}
    processor = MMCoTProcessor(
        image_processor=image_processor_of(vision),
        tokenizer=_tokenizer(tokenizer or original),
        rationale_format=None if one_stage else rationale_format,
        answer_format=answer_format,
        use_caption=use_caption,
    )

    def load(folder, stage):
        return _load_stage(folder, stage, formats[stage], use_caption)

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
    model.save_pretrained(output, processor=processor, model_card=model_card(None, facts))
    return model


def _load_stage(folder: str | Path, stage: str, prompt_format: str, use_caption: bool):
    from mmcot import MMCoTForConditionalGeneration

    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: give the folder of a checkpoint of the original")
    model = MMCoTForConditionalGeneration.from_pretrained(
        folder,
        stage="answer" if stage == "one-stage" else stage,
        prompt_format=prompt_format,
        use_caption=use_caption,
    )
    if not model.config.has_fusion:
        raise ValueError(
            f"{folder} is a plain T5 without a fusion: there is nothing to convert, train from it as it is"
        )
    return model


def _tokenizer(source):
    from transformers import AutoTokenizer

    from mmcot.training.build import tokenizer_from_file

    if not isinstance(source, (str, Path)):
        return source
    if str(source).endswith(".json"):
        return tokenizer_from_file(source)
    files = ("tokenizer.json", "spiece.model")
    # transformers makes an empty tokenizer out of a bare config.json
    if Path(source).is_dir() and not any((Path(source) / name).exists() for name in files):
        raise ValueError(f"{source} holds no tokenizer ({' or '.join(files)}): give T5's with --tokenizer")
    return AutoTokenizer.from_pretrained(source)


def _add_vision(model, vision: str) -> None:
    """Puts the backbone beside both stages, or inside the one."""
    from mmcot.training.build import load_vision

    config, backbone, feature = load_vision(vision)
    holder, owner = (model, model.config) if hasattr(model, "rationale") else (model.encoder, model.config)
    holder.vision = backbone
    owner.vision_config, owner.vision_feature = config, feature
    if holder is not model:
        model.encoder.config.vision_config, model.encoder.config.vision_feature = config, feature
