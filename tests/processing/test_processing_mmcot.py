"""The processor: batches, errors that a user can mend, outputs, folders that load alone."""

import json
import subprocess
import sys

import pytest
import torch
from example_problems import PLAIN, PROBLEM, TWO
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor, CLIPImageProcessorPil, PreTrainedTokenizerFast

from mmcot.processing import MMCoTProcessor, ProblemError, build_prompt, image_processor_for, image_reading_mmcot

# ---- batches ----


def test_batch_of_both_stages(processor):
    batch = processor([PROBLEM, PLAIN])
    assert set(batch) == {
        *("input_ids", "attention_mask", "answer_input_ids", "answer_attention_mask", "num_choices"),
        *("pixel_values", "image_attention_mask"),
    }
    assert batch["num_choices"].tolist() == [2, 3]
    assert batch["pixel_values"].shape == (2, 3, 16, 16) and batch["pixel_values"][1].abs().sum() == 0
    assert batch["image_attention_mask"].tolist() == [[True], [False]]
    decoded = processor.tokenizer.decode(batch["answer_input_ids"][1], skip_special_tokens=True)
    assert decoded == "Question: Which is red? Context: Look at it. Options: (A) a (B) b (C) c"
    for name in ("input_ids", "answer_input_ids"):
        mask = batch[name.replace("input_ids", "attention_mask")]
        assert torch.equal(batch[name] != processor.tokenizer.pad_token_id, mask.bool())


def test_padding_is_on_the_right_whatever_the_tokenizer_says(processor):
    processor.tokenizer.padding_side = "left"
    try:
        mask = processor([PROBLEM, PLAIN], stage="rationale")["attention_mask"]
    finally:
        processor.tokenizer.padding_side = "right"
    assert mask[:, 0].all() and not mask.all()


def test_several_images(processor):
    batch = processor([PROBLEM, TWO, PLAIN], stage="rationale")
    assert batch["pixel_values"].shape == (3, 2, 3, 16, 16)
    assert batch["image_attention_mask"].tolist() == [[True, False], [True, True], [False, False]]
    assert torch.equal(batch["pixel_values"][0, 0], batch["pixel_values"][1, 1])
    given = processor([PROBLEM, PLAIN], images=[[], [PROBLEM["image"]]], stage="rationale")
    assert given["image_attention_mask"].tolist() == [[False], [True]]


def test_pixel_mask_of_a_missing_image_is_not_empty(tokenizer):
    processor = MMCoTProcessor(image_processor_for("detr"), tokenizer)
    batch = processor([PLAIN, TWO])
    assert batch["pixel_mask"].shape == (2, 2, 224, 448) and batch["pixel_mask"].all()
    assert processor(PLAIN)["image_attention_mask"].tolist() == [[False]]


def test_answer_stage_reads_the_rationale_or_the_gold_one(processor):
    batch = processor([PROBLEM, PROBLEM], stage="answer", rationales=["Solution: red", None])
    texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert texts[0].endswith("(B) sky Solution: red Answer:")
    assert texts[1] == build_prompt(PROBLEM, "QCMG-A")[0]
    with pytest.raises(ValueError, match="1 rationales for 2 problems"):
        processor([PROBLEM, PROBLEM], stage="answer", rationales=["one"])
    with pytest.raises(ValueError, match='stage="answer" only'):
        processor([PROBLEM], rationales=["lost"])


def test_one_stage(tokenizer):
    processor = MMCoTProcessor(None, tokenizer, rationale_format=None, answer_format="QCM-A", use_caption=True)
    batch = processor([{**PROBLEM, "caption": "one apple"}, PLAIN])
    assert set(batch) == {"input_ids", "attention_mask", "num_choices"}
    text = tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
    assert text == "Question: Which is red? Context: Look at it. one apple Options: (A) apple (B) sky Answer:"
    with pytest.raises(ValueError, match='stage must be "answer"'):
        processor(PROBLEM, stage="rationale")


def test_call_options(processor):
    batch = processor(PROBLEM, stage="rationale", padding="max_length", max_length=40, return_tensors="np")
    assert batch["input_ids"].shape == (1, 40) and not isinstance(batch["pixel_values"], torch.Tensor)
    nested = {"text_kwargs": {"pad_to_multiple_of": 16}, "images_kwargs": {"do_normalize": False}}
    batch = processor([PROBLEM, PLAIN], **nested)
    assert batch["input_ids"].shape[1] % 16 == 0 and batch["answer_input_ids"].shape[1] % 16 == 0
    assert batch["pixel_values"].min() == 0


def test_texts_and_images(processor):
    image = PROBLEM["image"]
    batch = processor(text=["one", "two words"], images=[[], [image]], padding=True, return_tensors="pt")
    assert batch["image_attention_mask"].tolist() == [[False], [True]] and batch["input_ids"].shape[0] == 2
    assert processor(text="one", images=[image, image])["pixel_values"].shape == (1, 2, 3, 16, 16)
    assert processor(images=torch.zeros(2, 3, 9, 9))["pixel_values"].shape == (2, 3, 16, 16)
    assert set(processor(text="one")) == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match="images for 3 texts"):
        processor(text=["one", "two"], images=[image] * 3)


def test_one_limit_for_both_stages(processor, tokenizer):
    """The model joins stage 2's source up to its own limit: another one for the prefix alone would not hold."""
    with pytest.raises(ProblemError, match="max_length=100 holds for one stage"):
        processor(PROBLEM, max_length=100)
    assert torch.equal(processor(PROBLEM, max_length=512)["input_ids"], processor(PROBLEM)["input_ids"])
    long = {**PROBLEM, "hint": "Look at it. " * 90}
    assert processor(long, stage="rationale", max_length=40)["input_ids"].shape == (1, 40)
    one_stage = MMCoTProcessor(None, tokenizer, rationale_format=None, answer_format="QCM-A")
    assert one_stage(long, max_length=40)["input_ids"].shape == (1, 40)
    small = MMCoTProcessor(None, tokenizer, max_source_length=60)(long, padding="max_length")
    assert small["input_ids"].shape == small["answer_input_ids"].shape == (1, 60)


def test_padding_is_the_tokenizers(processor):
    assert (
        processor([PROBLEM, PLAIN], stage="rationale", padding=False, return_tensors="np")["input_ids"].dtype == object
    )
    rows = processor([PROBLEM, PLAIN], stage="rationale", padding="longest", pad_to_multiple_of=7)
    assert rows["input_ids"].shape[1] % 7 == 0
    assert rows["input_ids"][~rows["attention_mask"].bool()].unique().tolist() == [processor.tokenizer.pad_token_id]
    alone = PreTrainedTokenizerFast(tokenizer_object=processor.tokenizer.backend_tokenizer, eos_token="</s>")
    with pytest.raises(ValueError, match="does not have a padding token"):
        MMCoTProcessor(None, alone)([PROBLEM, PLAIN])


def test_images_of_a_checked_problem_are_read_once(processor, tmp_path, monkeypatch):
    PROBLEM["image"].save(tmp_path / "image.png")
    read = []
    real = image_reading_mmcot._read
    monkeypatch.setattr(image_reading_mmcot, "_read", lambda *args: read.append(args[0]) or real(*args))
    problem = {**PROBLEM, "image": str(tmp_path / "image.png")}
    images = processor.check_problem(problem)
    assert read == [problem["image"]] and [image.size for image in images] == [(20, 10)]
    processor({**problem, "images": images})
    assert len(read) == 1
    processor(problem)
    assert len(read) == 2
    assert processor.check_problem(PLAIN) == MMCoTProcessor(None, processor.tokenizer).check_problem(problem) == []


# ---- errors ----


def test_a_narrow_image_is_refused_with_its_problem(tokenizer):
    """By any image processor that would make an enormous image of it, before it does."""
    bound = "problem 7: an image of 1 × 3000 pixels"
    narrow = {**PROBLEM, "image": Image.new("RGB", (1, 3000))}
    for image_processor in (image_processor_for("vit"), CLIPImageProcessor(), CLIPImageProcessorPil()):
        processor = MMCoTProcessor(image_processor, tokenizer)
        for ask in (processor, processor.check_problem, processor.load_images):
            with pytest.raises(ProblemError, match=bound):
                ask(narrow)
    assert MMCoTProcessor(image_processor_for(16), tokenizer)(narrow)["pixel_values"].shape == (1, 3, 16, 16)
    assert len(MMCoTProcessor(None, tokenizer).load_images(narrow)) == 1


def test_every_error_is_one_that_a_user_can_mend(processor):
    """One short line, marked for the command line."""
    for problem in (
        {**PROBLEM, "context": 5},
        {**PROBLEM, "choices": "ab"},
        {**PROBLEM, "id": "x" * 5000, "question": ""},
        {**PROBLEM, "image": b"x" * 5000},
        {**PROBLEM, "image": "x" * 5000},
        {**PROBLEM, "image": 5},
        {**PROBLEM, "question": "\ud800"},
        {**PROBLEM, "question": "red " * 5000},
    ):
        for ask in (
            processor,
            lambda problem: processor.encode(problem, "rationale") and processor.check_problem(problem),
        ):
            with pytest.raises(ProblemError) as error:
                ask(problem)
            text = str(error.value)
            assert error.value.user_error and len(text) < 500 and "\n" not in text and "xxx" * 100 not in text


def test_bad_problems_are_named(processor, tmp_path):
    check = processor.check_problem
    check(PROBLEM)
    check(PLAIN)
    for change, message in [
        ({"question": " "}, "problem 7: the question is empty"),
        ({"choices": ["one"]}, "problem 7 has 1 choice; there must be 2 to 26"),
        ({"choices": ["x"] * 27}, "problem 7 has 27 choices"),
        ({"image": tmp_path / "gone.png"}, "problem 7: cannot read image .*gone.png"),
    ]:
        for ask in (check, processor):
            with pytest.raises(ValueError, match=message):
                ask({**PROBLEM, **change})
    with pytest.raises(ValueError, match="problem 7 has no field 'image'"):
        check({key: value for key, value in PROBLEM.items() if key != "image"})
    MMCoTProcessor(None, processor.tokenizer).check_problem({"question": "?", "choices": ["a", "b"]})


def test_bad_arguments(tokenizer, processor):
    for arguments, message in [
        ({"answer_format": "QCM-A"}, "reads the rationale"),
        ({"rationale_format": "X-E"}, "does not exist"),
        ({"source_truncation": "middle"}, "keep_ends"),
    ]:
        with pytest.raises(ValueError, match=message):
            MMCoTProcessor(None, tokenizer, **arguments)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        MMCoTProcessor()
    with pytest.raises(ValueError, match="non-empty list of dicts"):
        processor([PROBLEM["image"]])
    with pytest.raises(ValueError, match="no image processor"):
        MMCoTProcessor(None, tokenizer)(images=PROBLEM["image"])


# ---- outputs ----


def test_post_process(processor):
    rationale = processor.encode(PROBLEM, "rationale", target=True)["labels"]
    log_probs = torch.log(torch.tensor([[0.3, 0.1, 0.0], [0.2, 0.2, 0.6]]))
    outputs = {
        "rationale_ids": torch.tensor([rationale, rationale[:-2] + [-100, -100]]),
        "option_log_probs": log_probs,
    }
    first, second = processor.post_process(outputs, [PROBLEM, PLAIN])
    assert first["rationale"] == "Apples are red." and first["generated"]["rationale"] == "Solution: Apples are red."
    assert (first["answer"], first["answer_index"], first["answer_text"]) == ("A", 0, "apple")
    assert first["scores"] == {"A": pytest.approx(0.75), "B": pytest.approx(0.25)}
    assert (second["answer"], second["answer_text"]) == ("C", "c")

    answers = [processor.tokenizer(f"The answer is ({letter}).")["input_ids"] for letter in "BC"]
    results = processor.post_process({"answer_ids": torch.tensor(answers)}, [PROBLEM, PROBLEM])
    assert [result["answer"] for result in results] == ["B", None]
    assert results[1]["answer_text"] is None and results[1]["generated"]["answer"] == "The answer is (C)."
    assert processor.post_process({"answer_ids": torch.tensor(answers)})[1]["answer_index"] == 2


def test_rationale_is_readable_with_t5s_vocabulary_too(real):
    processor, _ = real
    ids = processor.tokenizer("Solution: One line.\\nAnother {line}.")["input_ids"]
    result = processor.post_process({"rationale_ids": [ids]})[0]
    assert result["rationale"].startswith("One line.\nAnother")


# ---- saving and loading ----


def test_saved_folder_loads_where_the_package_is_not_installed(tokenizer, tmp_path):
    PROBLEM["image"].save(tmp_path / "image.png")
    problem = {**PROBLEM, "image": str(tmp_path / "image.png")}
    expected = []
    for name, image_processor in (("with", image_processor_for("clip")), ("without", None)):
        processor = MMCoTProcessor(image_processor, tokenizer, max_source_length=99, use_caption=True)
        processor.save_pretrained(tmp_path / name / "first")
        assert MMCoTProcessor.from_pretrained(tmp_path / name / "first").to_dict() == processor.to_dict()
        expected.append({key: values.tolist() for key, values in processor(problem).items()})
    code = """
import json, os, sys
sys.modules["mmcot"] = None  # not importable
folder, problem = sys.argv[1], json.loads(sys.argv[2])
from transformers import AutoImageProcessor, AutoProcessor
results = []
for name in ("with/", "without/"):
    first, second = folder + "/" + name + "first", folder + "/" + name + "second"
    AutoProcessor.from_pretrained(first, trust_remote_code=True).save_pretrained(second)
    processor = AutoProcessor.from_pretrained(second, trust_remote_code=True)
    assert type(processor).__module__.startswith("transformers_modules"), type(processor)
    assert sorted(os.listdir(first)) == sorted(os.listdir(second))
    results.append({key: values.tolist() for key, values in processor(problem).items()})
images = AutoImageProcessor.from_pretrained(folder + "/with/second", trust_remote_code=True)
values = images(processor.load_images(problem), return_tensors="pt")["pixel_values"]
assert values.tolist() == results[0]["pixel_values"]
print(json.dumps(results))
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), json.dumps(problem)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_auto_classes_need_no_trust_where_the_package_is_in_use(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is type(processor.image_processor)
