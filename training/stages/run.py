"""`Run`: data, processor and features of a recipe, and the steps that work on them, each of which is done once."""

import contextlib
import gc
import random
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from transformers.utils import logging

from mmcot.training.common import ExistingFileError, MissingFileError
from mmcot.training.stages.fingerprints import UNKNOWN, features_fingerprint
from mmcot.training.stages.identity import predictions_identity, training_identity
from mmcot.training.stages.manifest import changes, mark_step, read_manifest, step_is_done
from mmcot.training.stages.recipe import TRAINING_DEFAULTS, Recipe
from mmcot.training.stages.shared_folder import check_shared, remove_stale, start_processes

logger = logging.get_logger("mmcot")

BLANK = "test_blank"  # the test questions with a picture, asked without it


class Run:
    """A recipe at work; every process of a launch has one.

    Attributes:
        recipe: what to do.
        folder: `output_dir`.
        stream: with `streaming`, the training problems; `problems["train"]` are the first of them, for a look.
        state: accelerate's `PartialState`.
        problems: split ("train", "val", "test") → problem records; only the splits that the recipe names. Given at the
            start, they are taken as they are.
    """

    def __init__(self, recipe: Recipe, problems: dict[str, Any] | None = None):
        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        self.state = start_processes(recipe)
        self._networks: dict[str, Any] = {}
        self._fingerprints: dict[str, str] = {}
        self.stream = None
        if problems is not None:
            self.problems = problems
            return
        splits = {
            "train": (recipe.train_split, recipe.max_train_samples),
            "val": (recipe.eval_split, recipe.max_eval_samples),
            "test": (recipe.test_split, recipe.max_test_samples),
        }
        with self.state.local_main_process_first():  # the first fills the cache of `datasets`, the others read it
            self.problems = {
                split: self._load(split, name, limit) for split, (name, limit) in splits.items() if name is not None
            }

    def _load(self, split: str, name: str, limit: int | None):
        from mmcot.training.data.mixture import is_mixture
        from mmcot.training.data.problems import load_problems
        from mmcot.training.data.rationales import read_rationales, with_rationales

        recipe = self.recipe
        if split == "train" and recipe.streaming:
            from mmcot.training.data.stream import first_problems
            from mmcot.training.stages.streaming import LOOKED_OVER, open_stream

            self.stream = open_stream(recipe)
            return first_problems(self.stream, LOOKED_OVER)
        options = {key: getattr(recipe, key) for key in ("image_rule", "columns", "allow_urls", "allow_outside")}
        problems = load_problems(recipe.data, name, **options)
        if limit is not None and limit < len(problems):
            # a mixture's sources follow one another: the first problems would be of the first alone
            rows = random.Random(0).sample(range(len(problems)), limit) if is_mixture(recipe.data) else range(limit)
            problems = problems.select(sorted(rows))
        if split == "train" and recipe.rationales is not None:
            problems = with_rationales(problems, read_rationales(recipe.rationales), recipe.rationales)
        return problems

    @property
    def splits(self) -> list[str]:
        """The splits that are predicted; `test_blank` are the test questions with a picture, asked without it."""
        found = [split for split in ("val", "test") if split in self.problems]
        return found if self.blank_problems is None else [*found, BLANK]

    @cached_property
    def blank_problems(self):
        """The questions of `test_blank`; None where there are none, or the recipe doesn't want to know."""
        sees = self.recipe.vision is not None or self.recipe.features is not None
        if not (self.recipe.blank_probe and sees and "test" in self.problems):
            return None
        shown = [number for number, has in enumerate(self.problems["test"]["has_image"][:]) if has]
        return self.problems["test"].select(shown) if shown else None

    def questions(self, split: str):
        """The problems of a split that is predicted."""
        return self.blank_problems if split == BLANK else self.problems[split]

    @property
    def stages(self) -> list[str]:
        """The stages that are trained, in order."""
        recipe = self.recipe
        if recipe.one_stage:
            return ["answer"]
        both = ["rationale"] if recipe.share_stages else ["rationale", "answer"]
        return both if recipe.stages == "both" else [recipe.stages]

    @property
    def takes_backbone(self) -> bool:
        """Whether the answer stage takes over the rationale stage's backbone: one that is fresh, or was trained."""
        recipe = self.recipe
        reads_pixels = recipe.vision is not None and recipe.features is None
        return not recipe.one_stage and reads_pixels and (recipe.fresh_vision or not recipe.freeze_vision)

    @cached_property
    def features(self):
        """The `FeatureCache` that is read instead of running a backbone, if any."""
        if self.recipe.features is None:
            return None
        from mmcot.training.features.cache import FeatureCache

        return FeatureCache.open(self.recipe.features)

    @cached_property
    def processor(self):
        """The recipe's `MMCoTProcessor`; of a finished stage the one that was saved with it."""
        from mmcot.processing import MMCoTProcessor
        from mmcot.training.stages.build import build_processor

        for stage in ("rationale", "answer"):
            found = read_manifest(self.folder / stage)
            if found is not None and found["finished"] and (self.folder / stage / "processor_config.json").is_file():
                return MMCoTProcessor.from_pretrained(self.folder / stage)
        return build_processor(self.recipe, self._texts())

    def _texts(self) -> Iterator[str]:
        """What a tokenizer is trained on: sources and targets of the training problems, in the run's formats."""
        from mmcot.processing import build_prompt
        from mmcot.training.data.batched import read_records

        formats = [name for name in (self.recipe.rationale_format, self.recipe.answer_format) if name]
        return chain.from_iterable(
            build_prompt(problem, name, use_caption=self.recipe.use_caption)
            for problem in read_records(self.problems["train"].remove_columns("images"))
            for name in formats
        )

    # ---- what a step depends on ------------------------------------------------------------

    def data_fingerprint(self, split: str) -> str:
        """Hash of a split's problems; with their images, where the run reads them."""
        from mmcot.training.data.fingerprint import content_fingerprint
        from mmcot.training.stages.fingerprints import CONTENT

        if split == "train" and self.stream is not None:
            from mmcot.training.data.stream import stream_stamp

            self._fingerprints[split] = CONTENT + stream_stamp(self.recipe.data, self.recipe.train_split)
        if split not in self._fingerprints:
            reads = self.recipe.vision is not None or self.recipe.features is not None
            self._fingerprints[split] = CONTENT + content_fingerprint(self.questions(split), images=reads)
        return self._fingerprints[split]

    @cached_property
    def features_fingerprint(self) -> str | None:
        """Hash of what made the cached features; None without any."""
        try:
            return None if self.features is None else features_fingerprint(self.features)
        except MissingFileError:
            return UNKNOWN

    # ---- samples ------------------------------------------------------------

    def samples(self, split: str, stage: str, rationales: dict[str, str] | None = None):
        """The tokenised samples of a split; `rationales` default to gold ones."""
        with self.state.local_main_process_first():
            return self.own_samples(split, stage, rationales)

    def own_samples(self, split: str, stage: str, rationales=None):
        """As `samples`, without waiting for other processes."""
        from mmcot.training.stages.samples import stage_dataset

        return stage_dataset(
            self.questions(split),
            self.processor,
            stage,
            rationales=self.recipe.gold_rationales if rationales is None else rationales,
            max_target_length=self.recipe.for_stage(stage).max_target_length,
            features=self.features,
        )

    def training_samples(self, stage: str):
        """Those of the training split; of both stages for shared weights."""
        if self.stream is not None:
            from mmcot.training.stages.streaming import Passes, streamed_samples

            samples = streamed_samples(
                self.stream,
                self.processor,
                stage,
                rationales=self.recipe.gold_rationales,
                max_target_length=self.recipe.for_stage(stage).max_target_length,
                features=self.features,
                buffer_size=self.recipe.shuffle_buffer_size,
                seed={**TRAINING_DEFAULTS, **self.recipe.training}["seed"],
            )
            return Passes(samples)
        rationales = None
        if self.recipe.cross_fit is not None and stage == "answer":
            from mmcot.training.stages.cross_fit import cross_fitted_rationales

            rationales = cross_fitted_rationales(self)
        if not self.recipe.share_stages:
            return self.samples("train", stage, rationales)
        from datasets import concatenate_datasets

        return concatenate_datasets([self.samples("train", stage), self.samples("train", "answer")])

    # ---- steps ------------------------------------------------------------

    def is_trained(self, stage: str) -> bool:
        """Whether the stage's training was finished, from the same data and settings.

        Raises:
            UserError: it was begun or finished from others.
        """
        folder, identity = self.folder / stage, training_identity(self, stage)
        if self.stream is not None:
            found = read_manifest(folder)
            if found is not None and not found["finished"] and found["settings"].get("data") != identity["data"]:
                # a bad record far off may have been mended, which is no reason to lose the steps before it
                logger.warning(f"{folder}: its data were changed since the training began, which goes on with them")
                identity["data"] = found["settings"].get("data")
        done = step_is_done(folder, identity)
        return done and any((folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json"))

    def is_predicted(self, stage: str, split: str) -> bool:
        """Whether the predictions of a split are there, by the trained stage of now and the recipe's decoding."""
        file = self.predictions_file(stage, split)
        found = read_manifest(file)
        if found is None or not found["finished"] or not file.exists():
            return False
        return not changes(found["settings"], predictions_identity(self, stage, split))

    def is_finished(self) -> bool:
        """Whether nothing is left to be trained or predicted."""
        stages = self.stages
        if not all(map(self.is_trained, stages)):
            return False
        predicting = ["rationale", "answer"] if self.recipe.share_stages else stages
        return all(self.is_predicted(stage, split) for stage in predicting for split in self.splits)

    def train(self, stage: str) -> None:
        """Trains a stage, unless that was done before."""
        from transformers import set_seed

        from mmcot.training.stages.build import build_stage_model
        from mmcot.training.stages.fit import train_stage

        if self.is_trained(stage):
            logger.info(f"{self.folder / stage}: was trained before")
            return
        recipe = self.recipe.for_stage(stage)
        identity = training_identity(self, stage)
        train, val = self.training_samples(stage), None
        if "val" in self.problems:
            generated = stage == "answer" and not recipe.one_stage
            val = self.samples("val", stage, self.rationales("val") if generated else None)
        set_seed({**TRAINING_DEFAULTS, **recipe.training}["seed"])
        width = None if self.features is None else self.features.image_feature_size
        model = build_stage_model(recipe, stage, len(self.processor.tokenizer), width)
        if stage == "answer" and self.takes_backbone and model.encoder.vision is not None and self.has_rationale_stage:
            # the two stages share one backbone, whose features are computed once
            model.encoder.vision.load_state_dict(self.network("rationale").encoder.vision.state_dict())
            model.config.freeze_vision = model.encoder.config.freeze_vision = True
            model.train(model.training)  # freezes it
        self._networks[stage] = train_stage(
            recipe,
            stage,
            self.folder / stage,
            model,
            self.processor,
            train,
            val,
            self.features,
            identity=identity,
            position=self.position(stage),
        )

    def position(self, stage: str) -> tuple[int, int]:
        """Which stage it is, of how many."""
        order = self.stages if self.recipe.one_stage or self.recipe.share_stages else ["rationale", "answer"]
        return order.index(stage) + 1, len(order)

    @property
    def has_rationale_stage(self) -> bool:
        """Whether a trained rationale stage lies in the folder."""
        found = None if self.recipe.one_stage else read_manifest(self.folder / "rationale")
        return found is not None and found["finished"]

    def network(self, stage: str):
        """The trained `MMCoTForConditionalGeneration` of a stage, from memory or its folder."""
        stage = "rationale" if self.recipe.share_stages else stage
        if stage not in self._networks:
            from mmcot import MMCoTForConditionalGeneration
            from mmcot.training.stages.progress import quiet_libraries

            if stage == "rationale" and not self.has_rationale_stage:
                raise MissingFileError(f"there is no {self.folder / 'rationale'}: train the rationale stage first")
            with quiet_libraries():
                self._networks[stage] = MMCoTForConditionalGeneration.from_pretrained(self.folder / stage)
        return self._networks[stage]

    def release(self) -> None:
        """Frees the networks' memory; `network` loads them again."""
        self._networks.clear()
        gc.collect()

    def predictions_file(self, stage: str, split: str) -> Path:
        return self.folder / stage / f"predictions_{split}.jsonl"

    def rationales(self, split: str) -> dict[str, str]:
        """id → rationale that the rationale stage wrote for a split, as it wrote it: what the answer stage reads."""
        from mmcot.training.evaluation.reading import read_predictions

        written = self.predictions_file("rationale", split)
        if not written.exists():
            raise MissingFileError(f"the answer stage needs {written}: train the rationale stage first")
        return {id_: record["generated"]["rationale"] for id_, record in read_predictions(written).items()}

    def predict(self, stage: str, split: str) -> Path:
        """Predictions of a split by a trained stage, in `<stage>/predictions_<split>.jsonl`."""
        from mmcot.training.evaluation.predictions import read_header
        from mmcot.training.evaluation.reading import read_predictions
        from mmcot.training.stages.arguments import training_arguments
        from mmcot.training.stages.predict import predict_stage

        file, identity = self.predictions_file(stage, split), predictions_identity(self, stage, split)
        done = self.is_predicted(stage, split)
        self.state.wait_for_everyone()  # all have looked
        if done:
            return file
        if self.state.is_main_process:
            remove_stale(file, identity)
            mark_step(file, identity, finished=False)
        self.state.wait_for_everyone()
        recipe = self.recipe.for_stage(stage)
        args = training_arguments(recipe, self.folder / stage, has_eval=False)
        problems, written, facts, rationales = self.questions(split), None, None, None
        if stage == "answer" and not recipe.one_stage:
            source = self.predictions_file("rationale", split)
            written, facts = read_predictions(source), read_header(source)
            rationales = self.rationales(split)
        predict_stage(
            self.network(stage),
            self.processor,
            self.samples(split, stage, rationales),
            stage,
            file,
            num_choices=dict(zip(problems["id"][:], map(len, problems["choices"][:]), strict=True)),
            batch_size=args.per_device_eval_batch_size,
            features=self.features,
            rationales=written,
            rationale_facts=facts,
            protocol=recipe.protocol,
            answer_mode=recipe.answer_mode,
            dtype=recipe.dtype,
            source=recipe.data,
            split=recipe.eval_split if split == "val" else recipe.test_split,
            blank_images=split == BLANK,
            max_new_tokens=recipe.max_new_tokens,
            num_beams=recipe.num_beams,
        )
        if self.state.is_main_process:
            mark_step(file, identity, finished=True)
        self.state.wait_for_everyone()
        return file

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs off the folder, and sees to it that all processes of this one share it.

        Raises:
            UserError: another run is at work there; the folder can't be written to, or each node has its own.
        """
        from mmcot.training.features.locking import lock_folder, unlock_folder

        lock = None
        if self.state.is_main_process:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ExistingFileError(f"output_dir: {self.folder}: can't be made a folder ({error})") from None
            lock = lock_folder(self.folder, "`mmcot train`")
        try:
            check_shared(self.folder, self.state)
            yield
        finally:
            if lock is not None:
                unlock_folder(lock)
