"""What a person sees of a run: what it works on, each stage's beginning, one growing table of evaluations.

All of it goes to the logger `mmcot` (level INFO), which the command line shows on stderr. Progress bars appear on a
terminal only, so that a log file holds the table alone.
"""

import contextlib
import logging as standard_logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from transformers import ProgressCallback
from transformers.utils import logging

from mmcot.training.stages.arguments import METRICS

logger = logging.get_logger("mmcot")

NAMES = {"rougeL": "ROUGE-L", "accuracy": "accuracy"}
DOES = {
    "rationale": "question, context and options in, rationale out",
    "answer": "question, context, options and rationale in, answer out",
    "one": "question, context and options in, answer out",
}
ROWS_WITHOUT_EVALUATION = 20
QUIET_SECONDS = 600  # a row of the table after so long without one, in an epoch that takes hours
ESTIMATE_STEPS = 10
# transformers' notes that a user can do nothing about: (logger, beginning of the message)
HARMLESS = (("transformers.trainer_utils", "mtime may not be reliable"),)


def describe_run(run) -> str:
    """Data and model of a run, before its first step."""
    from mmcot.training.data.batched import read_column
    from mmcot.training.stages.metrics import has_rationale

    recipe, train = run.recipe, run.problems["train"]
    purpose = {"train": "to train on", "val": "to validate on", "test": "to test on"}
    counts = ", ".join(f"{len(problems):,} {purpose[split]}" for split, problems in run.problems.items())
    if run.stream is not None:
        counts = counts.replace(purpose["train"], "looked over of a stream to train on")
    written = sum(
        has_rationale(f"{lecture or ''} {solution or ''}")
        for lecture, solution in zip(read_column(train, "lecture"), read_column(train, "solution"), strict=True)
    )
    options = list(map(len, read_column(train, "choices")))
    vision = "a fresh backbone" if recipe.fresh_vision else " + ".join(recipe.backbones)
    base = recipe.model if isinstance(recipe.model, str) else "a fresh network"
    sees = f", pictures by {vision or 'cached features'}" if recipe.vision or recipe.features else ", no pictures"
    if recipe.share_stages:
        stages = "both stages in one network"
    else:
        stages = "one stage" if recipe.one_stage else "two stages"
    rows = [
        ("data", recipe.data),
        ("questions", counts),
        ("with a picture", _share(sum(train["has_image"][:]), len(train))),
        ("with a rationale", _share(written, len(train))),
        ("options", f"{min(options)} to {max(options)}" if min(options) < max(options) else f"{min(options)}"),
        ("model", f"{base}{sees}, {stages}"),
        ("run", str(run.folder)),
    ]
    return _lines(rows)


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({100 * count / total:.0f} %)"


def _lines(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"  {name:<17} {text}" for name, text in rows)


def shown_time(seconds: float) -> str:
    """A duration as people say it: 42 s, 3 min 5 s, 2 h 10 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _count(number: int) -> str:
    if number < 1e6:
        return f"{number:,}"
    return f"{number / 1e6:,.1f} M" if number < 1e8 else f"{number / 1e6:,.0f} M"


class StageProgress(ProgressCallback):
    """transformers' bars, and in place of its dictionaries a header and a table.

    Args:
        stage: "rationale" or "answer".
        position: (which, of how many) stages of the run.
        samples: the training samples, with the columns `length` and `target_length`; None for a stream.
        parameters: (all, trained) of the network.
        one_stage: the answer stage is the only one, without a rationale in its source.
        bars: whether to show progress bars.
        tokens_per_batch: source plus target tokens of a process's batch, where that decides on its size.
        answer_mode: how the run answers when it is trained ("score" or "generate").
    """

    def __init__(
        self,
        stage: str,
        position,
        samples,
        parameters,
        one_stage: bool = False,
        bars: bool = True,
        tokens_per_batch: int | None = None,
        answer_mode: str = "score",
    ):
        super().__init__()
        self.tokens_per_batch, self.answer_mode = tokens_per_batch, answer_mode
        self.stage, self.position, self.samples, self.parameters = stage, position, samples, parameters
        self.does, self.bars = DOES["one" if one_stage else stage], bars
        self.loss: float | None = None
        self.metric = METRICS[stage]

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = self.last_row = time.monotonic()
        self.first_step = self.current_step = state.global_step
        if not state.is_world_process_zero:
            return
        if self.bars:
            super().on_train_begin(args, state, control, **kwargs)
            self.training_bar.update(state.global_step)
            self.current_step = state.global_step
        which, many = self.position
        logger.info(f"\nStage {which} of {many}: {self.stage} ({self.does})\n{self._facts(args, state)}")
        if state.global_step:
            logger.info(f"  goes on from step {state.global_step:,}")
        metric = NAMES[self.metric]
        logger.info(self._measured(args))
        logger.info(
            f"  {'step':>9} {'epoch':>6} {'train loss':>11} {'val loss':>9} {metric:>9} {'elapsed':>12} {'left':>12}"
        )
        for entry in state.log_history:  # of the run that is gone on with
            self._take(entry, entry.get("step", 0), entry.get("epoch"), args, state, earlier=True)

    def _measured(self, args) -> str:
        """What the metric's column is: that of the results at the end may be made in another way."""
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
            return ""  # an empty line
        how = "decoded freely" if args.predict_with_generate else "read off while the decoder is fed the right text"
        end = ""
        if self.stage == "answer" and self.answer_mode == "score":
            end = "; the results at the end compare the options' scores instead"
        return f"\n  {NAMES[self.metric]}: of validation {self.stage}s {how}{end}"

    def _batch(self, args) -> str:
        """What a step takes: never more than there is."""
        many = args.world_size * args.gradient_accumulation_steps
        size = args.per_device_train_batch_size * many
        if self.samples is None:
            return f"{size:,} samples"
        lengths = [int(number) for name in ("length", "target_length") for number in self.samples[name][:]]
        if self.tokens_per_batch is not None:
            return f"about {min(self.tokens_per_batch * many, sum(lengths)):,} tokens"
        return f"{min(size, len(lengths) // 2):,} samples"

    def _facts(self, args, state) -> str:
        samples = [("samples", "a stream")] if self.samples is None else self._samples()
        total, trained = self.parameters
        frozen = f", {_count(trained)} of them trained" if trained < total else ""
        processes = f" on {args.world_size} processes" if args.world_size > 1 else ""
        epochs = f", {state.num_train_epochs} epoch{'s' * (state.num_train_epochs != 1)}"
        if self.samples is None:
            epochs = ""
        rows = [
            *samples,
            ("parameters", f"{_count(total)}{frozen}"),
            ("steps", f"{state.max_steps:,} of {self._batch(args)}{processes}{epochs}"),
            ("precision", "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"),
        ]
        return _lines(rows)

    def _samples(self) -> list[tuple[str, str]]:
        sources, targets = (list(map(int, self.samples[name][:])) for name in ("length", "target_length"))
        tokens = ", ".join(
            f"{sum(some) / len(some):.0f} {way} (longest {max(some):,})"
            for some, way in ((sources, "in"), (targets, "out"))
        )
        return [("samples", f"{len(sources):,}"), ("tokens a sample", tokens)]

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)
        done = state.global_step - self.first_step
        if done == 1:
            self.second = time.monotonic()  # the first step takes longer
        if done == ESTIMATE_STEPS + 1 and self.last_row == self.start and state.is_world_process_zero:
            left = (time.monotonic() - self.second) / ESTIMATE_STEPS * (state.max_steps - state.global_step)
            logger.info(f"  estimated time: {shown_time(left)}, without evaluations")

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.bars:
            super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            self._take(logs or {}, state.global_step, state.epoch, args, state)

    def on_train_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)
        if not state.is_world_process_zero:
            return
        kept = ""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            metric = str(args.metric_for_best_model).removeprefix("eval_")
            kept = f"; kept: step {state.best_global_step:,}, by {NAMES.get(metric, f'val {metric}')}"
        logger.info(f"  {self.stage} stage trained in {shown_time(time.monotonic() - self.start)}{kept}")

    def _take(self, logs: dict[str, Any], step: int, epoch, args, state, earlier: bool = False) -> None:
        """Notes what was logged, and writes a row where it is an evaluation, or nothing was said for long."""
        if "loss" in logs:
            self.loss = logs["loss"]
        if "eval_loss" not in logs and f"eval_{self.metric}" not in logs:
            if "loss" not in logs or earlier:
                return
            evaluates = str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no"
            every = max(1, state.max_steps // ROWS_WITHOUT_EVALUATION)
            due = not evaluates and step // every > max(0, step - max(1, int(state.logging_steps or 1))) // every
            if not due and time.monotonic() - self.last_row < QUIET_SECONDS:
                return
        self.last_row = time.monotonic()
        elapsed = self.last_row - self.start
        done = step - self.first_step
        left = shown_time(elapsed / done * (state.max_steps - step)) if done > 0 and not earlier else ""
        cells = [
            f"{step:>9,}",
            f"{epoch:>6.2f}" if epoch is not None else f"{'':>6}",
            _cell(self.loss, 11, 4),
            _cell(logs.get("eval_loss"), 9, 4),
            _cell(logs.get(f"eval_{self.metric}"), 9, 2),
            f"{'before' if earlier else shown_time(elapsed):>12}",
            f"{left:>12}",
        ]
        logger.info(f"  {' '.join(cells)}".rstrip())


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'–':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def show_bars(args) -> bool:
    """Whether a Trainer's bars are of use: where a person looks, unless they are switched off."""
    return not args.disable_tqdm and sys.stderr.isatty()


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps bars of a moment and notes that nobody can act on off the screen; `--verbose` shows all."""
    if logger.isEnabledFor(standard_logging.DEBUG):
        yield
        return
    filters = [(standard_logging.getLogger(name), _Without(start)) for name, start in HARMLESS]
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    for target, without in filters:
        target.addFilter(without)
    try:
        yield
    finally:
        for target, without in filters:
            target.removeFilter(without)
        if shown:
            logging.enable_progress_bar()


class _Without(standard_logging.Filter):
    """Drops messages that begin in a certain way."""

    def __init__(self, start: str):
        super().__init__()
        self.start = start

    def filter(self, record: standard_logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.start)
