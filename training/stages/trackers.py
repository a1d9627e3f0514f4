"""Experiment trackers (`report_to`): both stages are one run of a tracker, their metrics two groups of it.

transformers' callbacks for trackio, wandb and TensorBoard name a metric `train/loss` or `eval/loss`. Here it becomes
`rationale/train/loss` or `answer/train/loss`; the run's name is that of the run's folder unless `run_name` says else.
"""

from pathlib import Path
from unittest import mock

from transformers.integrations import integration_utils

GROUPED = ("TrackioCallback", "WandbCallback", "TensorBoardCallback")


def group_metrics(trainer, stage: str, folder: Path) -> None:
    """Puts a stage's metrics into the group of its name, for the trackers that a Trainer reports to.

    Args:
        folder: of the run; TensorBoard's files go to `tensorboard/` in it, unless TENSORBOARD_LOGGING_DIR says where.
    """
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ not in GROUPED:
            continue
        if type(callback).__name__ == "TensorBoardCallback" and callback.logging_dir is None:
            callback.logging_dir = str(folder / "tensorboard")
        callback.on_log = _grouped(callback.on_log, stage)


def _grouped(on_log, stage: str):
    names = integration_utils.rewrite_logs  # eval_loss -> eval/loss, loss -> train/loss

    def log(*args, **kwargs):
        with mock.patch.object(
            integration_utils,
            "rewrite_logs",
            lambda logs: {f"{stage}/{name}": value for name, value in names(logs).items()},
        ):
            return on_log(*args, **kwargs)

    return log
