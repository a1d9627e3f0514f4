"""A saved folder is a whole repository: it loads where this package is not installed, and can be saved again."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from mmcot import MMCoTForConditionalGeneration, MMCoTModel
from mmcot.training.data.embedded.generate import generate_problems
from mmcot.training.inference.predict import load_pipeline

# Stands for a process of somebody who has not installed the package, and has no network.
CLEAN = """
import json, os, sys
sys.modules["mmcot"] = None  # importing it fails
os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import AutoModel, AutoProcessor, pipeline
source, copy, problems = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
model = AutoModel.from_pretrained(source, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
direct = processor.post_process(model.generate(**processor(problems)), problems)
answer = pipeline("multimodal-cot", model=source, trust_remote_code=True, device="cpu")
first = answer(problems)
model.save_pretrained(copy)
again = pipeline("multimodal-cot", model=copy, trust_remote_code=True, device="cpu")(problems)
tagged = pipeline("image-text-to-text", model=copy, trust_remote_code=True, device="cpu")(problems)
print(json.dumps([direct, first, again, tagged]))
"""


def run_clean(tmp_path, code, *args):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_problems(tmp_path, count=4):
    problems = []
    for problem in generate_problems(count, seed=8):
        paths = []
        for i, image in enumerate(problem["images"]):
            paths.append(str(tmp_path / f"{problem['id']}-{i}.png"))
            image.save(paths[-1])
        problems.append({**problem, "images": paths})
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    return problems


def test_clean_process_gives_the_same_answers_and_saves_again(two_stage_repository, tmp_path):
    problems = write_problems(tmp_path)
    expected = load_pipeline(two_stage_repository, device="cpu")(problems)
    # the source is gone by the time anybody looks at the copy: nothing may point back to it
    source = shutil.copytree(two_stage_repository, tmp_path / "source")
    runs = run_clean(tmp_path, CLEAN, source, tmp_path / "copy", tmp_path / "problems.json")
    for results in runs:
        for result, wanted in zip(results, expected, strict=True):
            assert result["generated"]["rationale"] == wanted["generated"]["rationale"]
            assert result["answer_text"] == wanted["answer_text"]
            assert result["scores"] == pytest.approx(wanted["scores"], abs=1e-4)
    assert sorted(os.listdir(tmp_path / "copy")) == sorted(os.listdir(source))
    assert str(source) not in (tmp_path / "copy" / "config.json").read_text()


def test_saved_folder_is_complete(two_stage_repository):
    config = json.loads((two_stage_repository / "config.json").read_text())
    assert {"AutoConfig", "AutoModel", "AutoProcessor"} <= config["auto_map"].keys()
    task = config["custom_pipelines"]["multimodal-cot"]
    for reference in [*config["auto_map"].values(), task["impl"]]:
        assert (two_stage_repository / f"{reference.split('.')[0]}.py").is_file()
    for name in (
        "model.safetensors",
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
        "README.md",
    ):
        assert (two_stage_repository / name).is_file(), name


def test_source_may_disappear_before_saving(two_stage_repository, tmp_path):
    source = shutil.copytree(two_stage_repository, tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: mit\n---\nmine")
    (source / "example.png").write_bytes(b"a picture")
    model = MMCoTModel.from_pretrained(source)
    names = sorted(os.listdir(source))
    shutil.rmtree(source)
    model.save_pretrained(tmp_path / "copy")
    assert sorted(os.listdir(tmp_path / "copy")) == names
    assert (tmp_path / "copy" / "README.md").read_text().endswith("mine"), "the card is carried over"
    assert (tmp_path / "copy" / "example.png").read_bytes() == b"a picture", "and what it shows"


def test_saving_onto_itself_changes_nothing(two_stage_repository, tmp_path):
    folder = shutil.copytree(two_stage_repository, tmp_path / "folder")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".py"}
    MMCoTModel.from_pretrained(folder).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".py"} == before


STAGE_ALONE = """
import json, os, sys
sys.modules["mmcot"] = None
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoModelForImageTextToText, AutoModelForSeq2SeqLM, AutoProcessor
problems = json.load(open(sys.argv[2]))
inputs = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)(problems, stage="rationale")
ids = []
for auto in (AutoModelForSeq2SeqLM, AutoModelForImageTextToText):
    model = auto.from_pretrained(sys.argv[1], trust_remote_code=True)
    ids.append(model.generate(**inputs, max_new_tokens=8).tolist())
print(json.dumps(ids))
"""


def test_a_stage_loads_alone(two_stage_repository, tmp_path):
    """The rationale stage, saved with the shared backbone inside, works by itself."""
    problems = write_problems(tmp_path)
    whole = MMCoTModel.from_pretrained(two_stage_repository)
    pipe = load_pipeline(two_stage_repository, device="cpu")
    inputs = pipe.processor(problems)
    expected = whole.generate(**inputs, max_new_tokens=8).rationale_ids.tolist()
    stage = whole.stage_alone("rationale")
    assert isinstance(stage, MMCoTForConditionalGeneration)
    stage.save_pretrained(tmp_path / "stage", processor=pipe.processor)
    seq2seq, image_text = run_clean(tmp_path, STAGE_ALONE, tmp_path / "stage", tmp_path / "problems.json")
    assert seq2seq == image_text == expected
    assert whole.generate(**inputs, max_new_tokens=8).rationale_ids.tolist() == expected, "the whole still works"


def test_training_start_is_not_mistaken_for_a_repository(tmp_path):
    """A plain T5's card and tokenizer are not carried over to what is made from it."""
    from transformers import T5Config, T5ForConditionalGeneration

    T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "README.md").write_text("T5's card")
    MMCoTForConditionalGeneration.from_pretrained(tmp_path / "t5", image_feature_size=8).save_pretrained(
        tmp_path / "ours"
    )
    assert "T5's card" not in (tmp_path / "ours" / "README.md").read_text()


def test_push_to_hub_uploads_the_whole_folder(two_stage_repository, hub):
    MMCoTModel.from_pretrained(two_stage_repository).push_to_hub("tester/two-stage", token=hub.token)
    uploaded = set(hub.files("tester/two-stage"))
    assert {path.name for path in two_stage_repository.iterdir()} <= uploaded


# --- others' code and files ------------------------------------------------------------------------------------------

EVIL = "raise SystemExit('this code is not ours')\n"


def test_a_third_party_s_code_is_never_published_again(two_stage_repository, tmp_path):
    """The installed package loads without trust_remote_code, and writes its own code whatever it has loaded."""
    theirs = shutil.copytree(two_stage_repository, tmp_path / "theirs")
    codes = sorted(path.name for path in theirs.glob("*.py"))
    for name in codes:
        (theirs / name).write_text(EVIL)
    for name in ("processor_config.json", "tokenizer_config.json", "config.json"):
        settings = json.loads((theirs / name).read_text())
        settings["auto_map"] = {
            "AutoProcessor": "evil/repo--processing_evil.Evil",
            "AutoTokenizer": ["evil.Evil", None],
        }
        if "image_processor" in settings:
            settings["image_processor"]["auto_map"] = {"AutoImageProcessor": "evil.Evil"}
        if name == "config.json":
            settings["custom_pipelines"] = {"evil": {"impl": "evil.Evil", "pt": ["AutoModel"]}}
        (theirs / name).write_text(json.dumps(settings))
    (theirs / "evil.py").write_text(EVIL)
    for model in (MMCoTModel.from_pretrained(theirs), MMCoTModel.from_pretrained(theirs).stage_alone("answer")):
        ours = tmp_path / type(model).__name__
        model.save_pretrained(ours)
        assert sorted(path.name for path in ours.glob("*.py")) == codes
        for path in ours.iterdir():
            assert b"evil" not in path.read_bytes().lower() and EVIL.encode() not in path.read_bytes(), path.name
        for name in codes:
            assert (ours / name).read_bytes() == (two_stage_repository / name).read_bytes()


def test_files_have_ordinary_modes_and_no_local_paths(two_stage_repository, tmp_path):
    model = MMCoTModel.from_pretrained(two_stage_repository)
    mask = os.umask(0o022)
    try:
        model.save_pretrained(tmp_path / "ours")
    finally:
        os.umask(mask)
    for path in (tmp_path / "ours").iterdir():
        assert path.stat().st_mode & 0o777 == 0o644, path.name
        for place in (str(tmp_path), str(two_stage_repository.parent), os.path.expanduser("~/")):
            assert place.encode() not in path.read_bytes(), path.name


def test_a_subfolder_is_loaded_and_saved_whole(two_stage_repository, tmp_path):
    shutil.copytree(two_stage_repository, tmp_path / "all" / "both stages v0.1")
    model = MMCoTModel.from_pretrained(tmp_path / "all", subfolder="both stages v0.1")
    model.save_pretrained(tmp_path / "ours")
    assert sorted(os.listdir(tmp_path / "ours")) == sorted(os.listdir(two_stage_repository))


def test_a_processor_and_a_card_that_are_given_are_saved_and_uploaded(two_stage_repository, hub, tmp_path):
    source = shutil.copytree(two_stage_repository, tmp_path / "source")
    processor = load_pipeline(source, device="cpu").processor
    model = MMCoTModel.from_pretrained(source)
    model._repository_files = None
    processor.max_source_length = 77
    where = {"repo_id": "tester/with-processor", "token": hub.token, "commit_message": "Once"}
    model.save_pretrained(tmp_path / "ours", processor=processor, model_card="my card", push_to_hub=True, **where)
    assert set(hub.files("tester/with-processor")) >= set(os.listdir(tmp_path / "ours"))
    for name in os.listdir(tmp_path / "ours"):
        assert hub.files("tester/with-processor")[name] == (tmp_path / "ours" / name).read_bytes(), name
    assert json.loads((tmp_path / "ours" / "processor_config.json").read_text())["max_source_length"] == 77
    assert (tmp_path / "ours" / "README.md").read_text() == "my card"
    model.push_to_hub("tester/again", token=hub.token, processor=processor, model_card="my other card")
    assert hub.files("tester/again")["README.md"] == b"my other card"
