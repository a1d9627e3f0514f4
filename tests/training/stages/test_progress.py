"""What a person sees while a run trains, and what trackers are told."""

import importlib.util
import logging
import re

import pytest

from mmcot.training.cli import main
from mmcot.training.stages.progress import shown_time

SIZES = [
    "data=embedded:n=24,val=8,test=8",
    "model={d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2}",
    "vision=null",
    "per_device_train_batch_size=8",
    "max_new_tokens=4",
    "num_train_epochs=2",
    "use_cpu=true",
]


def screen(capfd):
    """(stdout, stderr) of a command; the lines of bars that aren't on a terminal left out."""
    out, err = capfd.readouterr()
    return out, "\n".join(line for line in err.replace("\r", "\n").split("\n") if "it/s" not in line)


@pytest.fixture
def notes():
    """What transformers itself would show: it writes to the stderr of the moment when it was imported."""
    texts, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield texts
    logging.getLogger("transformers").removeHandler(handler)


def test_screen_of_a_run(tmp_path, capfd, notes):
    folder = tmp_path / "run"
    assert main(["train", "embedded", *SIZES, f"output_dir={folder}", "answer.eval_strategy=no"]) == 0
    out, err = screen(capfd)
    before, first, second = re.split(r"\nStage [12] of 2: ", err)
    assert re.search(r"questions +24 to train on, 8 to validate on, 8 to test on\n", before)
    assert re.search(r"with a picture +\d+ of 24 ", before) and re.search(
        r"with a rationale +24 of 24 \(100 %\)", before
    )
    assert first.startswith("rationale (") and second.startswith("answer (")
    assert re.search(r"tokens a sample +\d+ in \(longest \d+\), \d+ out \(longest \d+\)", first)
    assert re.search(r"parameters +\d+,\d{3}\n", first) and re.search(r"steps +6 of 8 samples, 2 epochs", first)
    rows = re.findall(r"^ +(\d) +([12]\.00) +(\d\.\d{4}) +(\d\.\d{4}) +(\d+\.\d\d) ", first, re.M)
    assert [(step, epoch) for step, epoch, *_ in rows] == [("3", "1.00"), ("6", "2.00")]
    assert re.search(r"trained in .*; kept: step [36], by val loss", first)
    assert len(re.findall(r"^ +\d +\d\.\d\d +\d\.\d{4} +– +– ", second, re.M)) > 1  # without evaluations: the losses
    for alarming in ("missing keys", "eval_loss", "'loss'", "Warning", "mtime"):
        assert alarming not in err + out + "".join(notes), alarming
    assert (
        f"mmcot app {folder}  " in out
        and f"mmcot report {folder}  " in out
        and out.index("protocol: generated") < out.index("mmcot push")
    )

    assert main(["train", "embedded", *SIZES, f"output_dir={folder}", "answer.eval_strategy=no"]) == 0
    again = screen(capfd)
    assert "Stage" not in again[1] and again[0] == out  # nothing is trained again, the result is told again


def test_resumed_run_shows_its_earlier_rows(tmp_path, capfd, monkeypatch):
    from transformers import TrainerCallback

    from mmcot.training.stages.trainer import StageTrainer

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    command = ["train", "embedded", *SIZES, f"output_dir={tmp_path}", "stages=rationale"]
    make = StageTrainer.__init__
    with monkeypatch.context() as patch:
        patch.setattr(
            StageTrainer, "__init__", lambda self, *a, **k: (make(self, *a, **k), self.add_callback(Stop()))[0]
        )
        assert main(command) == 130
    capfd.readouterr()
    assert main(command) == 0
    err = screen(capfd)[1]
    assert "goes on from step 3" in err and re.search(r"^ +3 .* before\n +6 .* \d s", err, re.M)


def test_one_stage_and_frozen_backbone_are_told(tmp_path, capfd):
    vision = "vision={model_type: vit, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, "
    vision += "intermediate_size: 8, image_size: 64, patch_size: 32}"
    settings = [vision, "rationale_format=null", "answer_format=QCM-A", "freeze_vision=true", "max_steps=1"]
    assert main(["train", "embedded", *SIZES, *settings, f"output_dir={tmp_path}"]) == 0
    err = screen(capfd)[1]
    assert "Stage 1 of 1: answer (question, context and options in, answer out)" in err
    assert "one stage" in err and re.search(r"parameters +\d+,\d{3}, \d+,\d{3} of them trained", err)


def test_quiet_says_nothing_of_it(tmp_path, capfd):
    assert main(["train", "embedded", *SIZES, f"output_dir={tmp_path}", "stages=rationale", "--quiet"]) == 0
    assert "Stage" not in screen(capfd)[1]


def test_trackers_know_one_run_with_two_groups(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = ["tensorboard"]
    if importlib.util.find_spec("trackio"):
        trackers.append("trackio")
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    folder = tmp_path / "pictures-and-text"
    assert main(["train", "embedded", *SIZES, f"output_dir={folder}", f"report_to=[{', '.join(trackers)}]"]) == 0
    names = {"rationale/train/loss", "rationale/eval/rougeL", "answer/train/loss", "answer/eval/accuracy"}
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert names <= set(events.Tags()["scalars"]) and not any(n.startswith("train/") for n in events.Tags()["scalars"])
    if "trackio" in trackers:
        import trackio

        runs = trackio.Api().runs("huggingface")
        assert [run.name for run in runs] == ["pictures-and-text"]
        assert names <= set(trackio.sqlite_storage.SQLiteStorage.get_all_metrics_for_run("huggingface", runs[0].name))


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (200000, "55 h 33 min")]
)
def test_times_as_people_say_them(seconds, text):
    assert shown_time(seconds) == text


def test_lines_stand_above_bars(capfd):
    from tqdm import tqdm

    from mmcot.training.common import log_to_screen

    log_to_screen()
    logging.getLogger("mmcot").setLevel(logging.INFO)
    with tqdm(total=2) as bar:
        bar.update()
        logging.getLogger("mmcot").info("a line of its own")
    assert "a line of its own" in re.split(r"[\r\n]", capfd.readouterr().err)


def test_time_is_estimated_before_the_first_row(caplog, monkeypatch):
    from types import SimpleNamespace

    from mmcot.training.stages import progress

    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    samples = {"length": [7, 9] * 16, "target_length": [3, 3] * 16}
    args = SimpleNamespace(per_device_train_batch_size=2, world_size=3, gradient_accumulation_steps=4, bf16=True)
    args.eval_strategy, args.predict_with_generate = "epoch", True
    state = SimpleNamespace(
        global_step=0, max_steps=1011, is_world_process_zero=True, log_history=[], num_train_epochs=2
    )
    callback = progress.StageProgress("answer", (2, 2), samples, (3_000_000_000, 1_000_000), bars=False)
    with caplog.at_level(logging.INFO, "mmcot"):
        callback.on_train_begin(args, state, None)
        clock[0] += 60  # the first step compiles
        for step in range(1, 13):
            state.global_step = step
            callback.on_step_end(args, state, None)
            clock[0] += 2
    assert "estimated time: 33 min 20 s, without evaluations" in caplog.text and caplog.text.count("estimated") == 1
    assert "1,011 of 24 samples on 3 processes, 2 epochs" in caplog.text and "bf16" in caplog.text
    assert "3,000 M, 1.0 M of them trained" in caplog.text and "8 in (longest 9), 3 out (longest 3)" in caplog.text


@pytest.mark.parametrize(
    ("batch", "tokens", "told"),
    [(8, None, "5 of 16 samples, 1 epoch"), (64, None, "5 of 20 samples, 1"), (8, 100, "5 of about 200 tokens, 1")]
    + [(8, 5000, "5 of about 220 tokens, 1 epoch")],
)
def test_a_step_takes_no_more_than_there_is(batch, tokens, told):
    from types import SimpleNamespace

    from mmcot.training.stages.progress import StageProgress

    samples = {"length": [8] * 20, "target_length": [3] * 20}
    args = SimpleNamespace(per_device_train_batch_size=batch, world_size=1, gradient_accumulation_steps=2)
    args.bf16 = args.fp16 = False
    shown = StageProgress("answer", (1, 1), samples, (9, 9), bars=False, tokens_per_batch=tokens)
    assert told in shown._facts(args, SimpleNamespace(max_steps=5, num_train_epochs=1))


@pytest.mark.parametrize(
    ("stage", "generate", "mode", "told"),
    [
        (
            "answer",
            True,
            "score",
            "accuracy: of validation answers decoded freely; the results at the end compare the",
        ),
        ("answer", True, "generate", "accuracy: of validation answers decoded freely"),
        ("answer", False, "score", "answers read off while the decoder is fed the right text; the results at the end"),
        ("rationale", True, "score", "ROUGE-L: of validation rationales decoded freely"),
    ],
)
def test_the_metric_of_the_table_says_how_it_came_about(stage, generate, mode, told):
    """Validation decodes answers, the results score options: two figures of one name would mislead."""
    from types import SimpleNamespace

    from mmcot.training.stages.progress import StageProgress

    shown = StageProgress(stage, (1, 1), {"length": [1], "target_length": [1]}, (9, 9), bars=False, answer_mode=mode)
    said = shown._measured(SimpleNamespace(eval_strategy="epoch", predict_with_generate=generate))
    assert told in said and ("options' scores" in said) == (stage == "answer" and mode == "score")
    assert shown._measured(SimpleNamespace(eval_strategy="no", predict_with_generate=generate)) == ""
