"""A run: a recipe becomes two trained stages (or one), their predictions, scores and a repository.

`accelerate launch -m mmcot.training.train RECIPE` is the same as `mmcot train RECIPE`. `run_recipe` reads top to
bottom.
"""

import sys
from itertools import chain
from pathlib import Path
from typing import Any

from mmcot.training.common import MissingFileError
from mmcot.training.evaluation.predictions import read_header
from mmcot.training.stages.recipe import Recipe


class Run:
    """Data, processor and features of a recipe; each step of a run works on it."""

    def __init__(self, recipe: Recipe):
        from accelerate import PartialState

        from mmcot.training.stages.build import build_processor

        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        self.state = PartialState(cpu=bool(recipe.training.get("use_cpu")))
        with self.state.main_process_first():  # the first fills the cache of `datasets`, the others read it
            self.problems = {
                split: self._load(name, limit)
                for split, name, limit in (
                    ("train", recipe.train_split, recipe.max_train_samples),
                    ("val", recipe.eval_split, recipe.max_eval_samples),
                    ("test", recipe.test_split, recipe.max_test_samples),
                )
                if name is not None
            }
            self.processor = build_processor(recipe, self._texts())
        self.features = self._open_features()

    def _load(self, split: str, limit: int | None):
        from mmcot.training.data.problems import load_problems

        problems = load_problems(self.recipe.data, split, image_rule=self.recipe.image_rule)
        return problems if limit is None else problems.select(range(min(limit, len(problems))))

    def _open_features(self):
        if self.recipe.features is None:
            return None
        from mmcot.training.features.cache import FeatureCache

        return FeatureCache.open(self.recipe.features)

    def _texts(self):
        """What a tokenizer is trained on: sources and targets of the training problems, in the run's formats."""
        from mmcot.processing import build_prompt

        formats = [name for name in (self.recipe.rationale_format, self.recipe.answer_format) if name]
        return chain.from_iterable(
            build_prompt(problem, name, use_caption=self.recipe.use_caption)
            for problem in self.problems["train"]
            for name in formats
        )

    def samples(self, split: str, stage: str, rationales: dict[str, str] | None = None):
        """The tokenised samples of a split; of both stages for the training of shared weights."""
        from mmcot.training.stages.samples import stage_dataset

        with self.state.main_process_first():
            return stage_dataset(
                self.problems[split],
                self.processor,
                stage,
                rationales=self.recipe.gold_rationales if rationales is None else rationales,
                max_target_length=self.recipe.for_stage(stage).max_target_length,
                features=self.features,
            )

    def training_samples(self, stage: str):
        samples = self.samples("train", stage)
        if not self.recipe.share_stages:
            return samples
        from datasets import concatenate_datasets

        return concatenate_datasets([samples, self.samples("train", "answer")])

    def stage_model(self, stage: str, rationale=None, eval_rationales: dict[str, str] | None = None):
        """The trained network of a stage: trained now, or loaded if that was done before.

        Args:
            rationale: the trained rationale stage, for the answer stage. Where the backbone was trained with it, the
                answer stage takes that one as it is: the two share one backbone, whose features are computed once.
            eval_rationales: generated rationales of the validation problems, for the answer stage's choice of a
                checkpoint; default: gold ones.
        """
        from transformers import set_seed

        from mmcot.training.stages.build import build_stage_model
        from mmcot.training.stages.fit import train_stage

        recipe = self.recipe.for_stage(stage)
        set_seed(recipe.training.get("seed", 42))
        width = None if self.features is None else self.features.image_feature_size
        model = build_stage_model(recipe, stage, len(self.processor.tokenizer), width)
        if rationale is not None and rationale.encoder.vision is not None:
            model.encoder.vision.load_state_dict(rationale.encoder.vision.state_dict())
            model.config.freeze_vision = model.encoder.config.freeze_vision = True
            model.train(model.training)  # freezes it
        return train_stage(
            recipe,
            stage,
            self.folder / stage,
            model,
            self.processor,
            self.training_samples(stage),
            self.samples("val", stage, eval_rationales) if "val" in self.problems else None,
            self.features,
        )

    def finished_rationale_stage(self):
        """The rationale stage that an earlier run left in the folder."""
        from mmcot import MMCoTForConditionalGeneration
        from mmcot.training.stages.manifest import MANIFEST

        if not (self.folder / "rationale" / MANIFEST).exists():
            raise FileNotFoundError(f"there is no {self.folder / 'rationale'}: train the rationale stage first")
        return MMCoTForConditionalGeneration.from_pretrained(self.folder / "rationale")

    def written_rationales(self, split: str) -> dict[str, dict[str, Any]]:
        """id → what the rationale stage wrote for a split: `rationale` and `generated`."""
        from mmcot.training.evaluation.reading import read_predictions

        written = self._rationale_file(split)
        if not written.exists():
            raise MissingFileError(f"the answer stage needs {written}: train the rationale stage first")
        return read_predictions(written)

    def rationales(self, split: str) -> dict[str, str]:
        """id → rationale that the rationale stage wrote for a split, as it wrote it: what the answer stage reads."""
        return {id_: record["generated"]["rationale"] for id_, record in self.written_rationales(split).items()}

    def _rationale_file(self, split: str) -> Path:
        return self.folder / "rationale" / f"predictions_{split}.jsonl"

    def predict(self, model, stage: str, split: str, rationales=None, out: Path | None = None, **kwargs) -> Path:
        """Predictions of a split by a trained stage, in `<stage>/predictions_<split>.jsonl`."""
        from mmcot.training.stages.arguments import training_arguments
        from mmcot.training.stages.predict import predict_stage

        recipe = self.recipe.for_stage(stage)
        reads_rationales = stage == "answer" and rationales is not None
        args = training_arguments(recipe, self.folder / stage, has_eval=False)
        problems = self.problems[split]
        counts = dict(zip(problems["id"], map(len, problems["choices"]), strict=True))
        return predict_stage(
            model,
            self.processor,
            self.samples(split, stage, rationales),
            stage,
            out or self.folder / stage / f"predictions_{split}.jsonl",
            num_choices=counts,
            batch_size=args.per_device_eval_batch_size,
            features=self.features,
            rationales=self.written_rationales(split) if reads_rationales else None,
            rationale_protocol=read_header(self._rationale_file(split))["protocol"] if reads_rationales else None,
            protocol=recipe.protocol,
            answer_mode=recipe.answer_mode,
            bf16=args.bf16,
            source=recipe.data,
            split=split,
            max_new_tokens=recipe.max_new_tokens,
            num_beams=recipe.num_beams,
            **kwargs,
        )


def run_recipe(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Runs a recipe; see the module's text for what it leaves.

    Returns:
        split → scores of the split, as `evaluate_predictions` gives them; empty where no answers were made.
    """
    from mmcot.training.hub.repository import write_repository

    one_stage = recipe.one_stage
    if one_stage and recipe.stages == "rationale":
        raise ValueError("stages: there is no rationale stage without a rationale_format")
    run = Run(recipe)
    splits = [split for split in ("val", "test") if split in run.problems]
    rationale = None
    if not one_stage:
        if not splits and recipe.stages == "answer":
            pass  # trained on gold rationales, and asked nothing: no rationale stage is needed
        elif recipe.stages in ("both", "rationale"):
            rationale = run.stage_model("rationale")
            for split in splits:
                run.predict(rationale, "rationale", split)
        else:
            rationale = run.finished_rationale_stage()
    if recipe.stages == "rationale":
        return {}
    rationales = {} if one_stage else {split: run.rationales(split) for split in splits}
    answer = rationale if recipe.share_stages else run.stage_model("answer", rationale, rationales.get("val"))
    results = {}
    for split in splits:
        path = run.predict(answer, "answer", split, rationales.get(split))
        results[split] = score(run, split, path)
    if run.state.is_main_process and (one_stage or rationale is not None):
        write_repository(run, rationale, answer, results)
    run.state.wait_for_everyone()
    return results


def score(run: Run, split: str, answers: Path) -> dict[str, Any]:
    """Scores of a split's predictions, as `mmcot evaluate` gives them, also written to `results_<split>.json`."""
    from mmcot.training.common import write_json
    from mmcot.training.evaluation.protocol import protocol_of, rationale_format_of, told
    from mmcot.training.evaluation.reading import read_predictions
    from mmcot.training.evaluation.scoring import evaluate_predictions

    problems = {problem["id"]: problem for problem in run.problems[split].remove_columns(["images"])}
    result = evaluate_predictions(
        problems,
        read_predictions(answers),
        protocol=protocol_of(answers),
        rationale_format=rationale_format_of(answers),
    )
    result.update(told(answers))
    if run.state.is_main_process:
        write_json(run.folder / f"results_{split}.json", result)
    return result


def main() -> int:
    """`python -m mmcot.training.train`, what `accelerate launch -m` starts."""
    from mmcot.training.cli import run_command

    return run_command("train", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
