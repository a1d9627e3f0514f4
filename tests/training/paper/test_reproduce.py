"""`mmcot reproduce`, whole, over HTTP: a local Hub holds small stand-ins for all that the paper's authors released."""

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer

from mmcot import MMCoTConfig, MMCoTForConditionalGeneration
from mmcot.processing import build_prompt
from mmcot.training.data.embedded.generate import write_scienceqa
from mmcot.training.evaluation.accuracy import COLUMNS
from mmcot.training.evaluation.reading import read_predictions
from mmcot.training.paper.published import (
    PUBLISHED,
    TEST_QUESTIONS,
    compare_with_published,
    expected_interval,
    format_comparison_with_published,
)

SHAPES = {"v1": (100, 256), "v5": (145, 1024)}  # patches and width of the released features
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2}
COUNTS = {"train": 8, "val": 4, "test": 12}
# reads commands, one JSON list a line, and runs them one after the other in one process
DRIVER = """
import contextlib, io, json, sys, traceback
from mmcot.training.cli import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(json.loads(line))
        except Exception:
            status = traceback.format_exc()
    sys.__stdout__.write(json.dumps([status, out.getvalue(), err.getvalue()]) + chr(10))
    sys.__stdout__.flush()
"""


def original_checkpoint(folder: Path, tokenizer, width: int, layout: str, seed: int) -> dict[str, bytes]:
    """Files of a random checkpoint as the original project saves it: layout "encoder" (now) or "top" (the first)."""
    torch.manual_seed(seed)
    config = MMCoTConfig(vocab_size=len(tokenizer), image_feature_size=width, decoder_start_token_id=0, **T5)
    weights = MMCoTForConditionalGeneration(config).state_dict()
    prefix = "encoder." if layout == "encoder" else ""
    names = {"image_proj": "image_dense", "gate_proj": "gate_dense", "out_proj": "mha_layer.out_proj"}
    saved = {key: value for key, value in weights.items() if ".fusion." not in key}
    for kind in ("weight", "bias"):
        for ours, theirs in names.items():
            saved[f"{prefix}{theirs}.{kind}"] = weights[f"encoder.fusion.{ours}.{kind}"] * 3
        parts = [weights[f"encoder.fusion.{part}_proj.{kind}"] for part in "qkv"]
        saved[f"{prefix}mha_layer.in_proj_{kind}"] = torch.cat(parts)
    folder.mkdir()
    torch.save(saved, folder / "pytorch_model.bin")
    about = {"architectures": ["T5ForMultimodalGeneration"], "model_type": "t5", "decoder_start_token_id": 0}
    about |= {**T5, "vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "training_args.bin").write_bytes(b"a pickle that nobody may open")
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def zipped(name: str, files: dict[str, bytes]) -> bytes:
    """As the authors packed theirs: one folder, a Mac's debris, and a name that would leave the folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(f"{name}/{file}", content)
        archive.writestr(f"__MACOSX/{name}/._config.json", b"debris")
        archive.writestr("../config.jsonl", b"elsewhere")
    return buffer.getvalue()


def parquet(data: Path, with_ids: bool) -> dict[str, bytes]:
    """The folder's problems in derek-thomas/ScienceQA's columns and file names, one file a split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = ("question", "choices", "answer", "hint", "task", "grade", "subject", "topic", "category", "skill")
    problems, files = json.loads((data / "problems.json").read_text()), {}
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        rows = []
        for id_, problem in problems.items():
            if problem["split"] == split:
                image = data / "images" / split / id_ / "image.png"
                row = {"image": {"bytes": image.read_bytes(), "path": "image.png"} if problem["image"] else None}
                row |= {key: problem[key] for key in (*keys, "lecture", "solution")} | (
                    {"id": id_} if with_ids else {}
                )
                rows.append(row)
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        files[f"data/{name}-00000-of-00001.parquet"] = buffer.getvalue()
    return files


def fill(hub: HubServer, folder: Path, tokenizer) -> None:
    """Puts the stand-ins where `mmcot reproduce` expects the real files."""
    from transformers import AutoModel, ViTConfig

    data = write_scienceqa(folder / "data", num=COUNTS)
    written = json.loads((data / "problems.json").read_text())
    pictured = [id_ for id_, problem in written.items() if problem["image"]]
    rows = {id_: str(row) for row, id_ in enumerate(reversed(pictured))}
    random = np.random.default_rng(0)
    arrays = {model: random.standard_normal((len(rows), *SHAPES[model])).astype(np.float16) for model in SHAPES}
    np.save(folder / "detr.npy", arrays["v1"])
    torch.save(torch.from_numpy(arrays["v5"]).float(), folder / "vit.pth")
    stages = {}
    for model, layout in (("v1", "top"), ("v5", "encoder")):
        for stage in ("rationale", "answer"):
            stages[model, stage] = original_checkpoint(
                folder / f"{model}-{stage}", tokenizer, SHAPES[model][1], layout, seed=len(stages)
            )
    copy = {f"models/{stage}/{name}": stages["v1", stage][name] for _, stage in stages for name in stages["v1", stage]}
    copy |= {f"data/scienceqa/{name}": (data / name).read_bytes() for name in ("problems.json", "pid_splits.json")}
    copy["vision_features/name_map.json"] = json.dumps(rows)
    hub.add_repo("acheong08/mm-cot", copy)
    packed = {"mm-cot-base-rationale": "rationale", "mm-cot-base-ans": "answer"}
    hub.add_repo("cooelf/mm-cot", {f"{name}.zip": zipped(name, stages["v5", s]) for name, s in packed.items()})
    features = {name: folder / name for name in ("detr.npy", "vit.pth")}
    hub.add_repo("cooelf/vision_features", {**features, "vit.npy": b"the wrong one"})
    hub.add_repo("tester/captions", {"c.json": json.dumps({"captions": {id_: "A purple cow." for id_ in pictured}})})
    hub.add_repo("derek-thomas/ScienceQA", parquet(data, with_ids=False), "dataset")
    hub.add_repo("tester/with-ids", parquet(data, with_ids=True), "dataset")
    torch.manual_seed(9)
    sizes = {"hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = AutoModel.from_config(ViTConfig(**sizes, image_size=384, patch_size=32))
    vision.save_pretrained(folder / "vit")
    hub.add_repo("timm/vit_large_patch32_384.orig_in21k_ft_in1k", folder / "vit")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer):
    """(Hub, function that runs `mmcot …` against it, working folder)."""
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "files").mkdir()
    hub = HubServer(tmp_path_factory.mktemp("hub"))
    fill(hub, folder / "files", tiny_tokenizer)
    environment = {**hub.env, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        env=environment,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def command(*argv: str) -> tuple[int, str, str]:
        process.stdin.write(json.dumps(["reproduce", *argv]) + "\n")
        process.stdin.flush()
        while True:  # libraries print on the real stdout too
            line = process.stdout.readline()
            assert line, "the process died"
            if line.startswith("["):
                return tuple(json.loads(line))

    yield hub, command, folder
    process.stdin.close()
    process.wait(30)
    hub.close()


def test_plan_tells_sizes_and_expected_numbers_and_downloads_nothing(world):
    hub, command, folder = world
    before = len(hub.requests)
    status, out, err = command("base-v1", "--dry-run")
    assert status == 0, err
    size = (folder / "files/detr.npy").stat().st_size
    assert f"{size / 1000:.1f} kB  hf://cooelf/vision_features/detr.npy" in out
    assert "teacher_forced" in out and "Avg      84.91  [83.80, 85.96]   4,241" in out
    for column in COLUMNS:
        assert f"{PUBLISHED['base-v1'].accuracy[column]:.2f}" in out
    assert not any(request.origin == "cdn" or "/resolve/" in request.path for request in hub.requests[before:])
    assert not (folder / "runs").exists()


def test_released_weights_of_v1(world):
    """Features, rationales and answers are those that the package's parts give when called one by one."""
    from transformers import AutoTokenizer

    hub, command, folder = world
    status, out, err = command("base-v1", "--output", "v1")
    assert status == 0, err
    content = json.loads((folder / "v1/result.json").read_text())
    result = content["result"]
    assert result["n"]["Avg"] == COUNTS["test"] and result["protocol"] == "teacher_forced"
    assert set(content["comparison"]["columns"]) == set(result["accuracy"]) >= {"NAT", "TXT", "IMG", "NO", "Avg"}
    assert "measured on 12 questions, not on ScienceQA's 4,241" in out and "Avg" in out
    assert content["reads"]["data"].startswith("hf://acheong08/mm-cot/data/scienceqa (")

    records = read_predictions(folder / "v1/rationale/predictions_test.jsonl")
    written = {id_: record["generated"]["rationale"] for id_, record in records.items()}
    problems = json.loads((folder / "files/data/problems.json").read_text())
    rows = json.loads(hub.files("acheong08/mm-cot")["vision_features/name_map.json"])
    array = np.load(folder / "files/detr.npy")
    assert 0 < sum(id_ in rows for id_ in written) < len(written) == 12  # with and without a picture
    tokenizer = AutoTokenizer.from_pretrained(folder / "files/v1-rationale")
    model = MMCoTForConditionalGeneration.from_pretrained(folder / "files/v1-rationale").eval()
    for id_ in [id_ for id_ in problems if problems[id_]["split"] == "test"]:
        source, target = build_prompt(problems[id_], "QCM-LE")
        block = array[int(rows[id_])] if id_ in rows else np.zeros(SHAPES["v1"])
        inputs = {**tokenizer(source, return_tensors="pt"), "labels": tokenizer(target, return_tensors="pt").input_ids}
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            logits = model(**inputs, image_features=torch.tensor(block[None], dtype=torch.float32)).logits
        ids = logits.argmax(-1)[0]
        assert written[id_] == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_again_nothing_is_done_twice(world):
    hub, command, folder = world
    status, out, _ = command("base-v1", "--output", "v1")
    before = len(hub.requests)
    assert status == 0 and "of which 0 bytes are to be downloaded" in out
    (folder / "v1/result.json").unlink()  # as if cut off before the end: the steps before are there
    manifest = json.loads((folder / "v1/manifest.json").read_text())
    (folder / "v1/manifest.json").write_text(json.dumps({**manifest, "finished": False}))
    made = [*(folder / "v1").rglob("*.jsonl"), *(folder / "v1").rglob("shard*"), folder / "v1/hub/model.safetensors"]
    stamps = {path: path.stat().st_mtime_ns for path in made}
    status, again, err = command("base-v1", "--output", "v1")
    assert status == 0, err
    assert again == out
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert not any(request.origin == "cdn" for request in hub.requests[before:])
    status, _, err = command("base-v1", "--output", "v1", "--max-samples", "3")
    assert status == 2 and "holds a run with other settings (max_samples: None → 3)" in err


def test_released_weights_of_v5_from_archives_with_captions(world):
    hub, command, folder = world
    captions = f"{hub.url}/tester/captions/resolve/main/c.json"
    status, out, err = command("base-v5", "--captions", captions, "--output", "v5", "--max-samples", "6")
    assert status == 0, err
    content = json.loads((folder / "v5/result.json").read_text())
    assert content["result"]["protocol"] == "generated" and content["result"]["n"]["Avg"] == 6
    assert content["notes"] == [] and content["result"]["rationale_n"] == 6
    assert "A purple cow." in (folder / "v5/data/captions.json").read_text()
    unpacked = {path.name for path in (folder / "v5/weights/rationale").iterdir()}
    assert {"config.json", "pytorch_model.bin", "tokenizer.json"} <= unpacked and "training_args.bin" not in unpacked
    assert not list(folder.rglob("config.jsonl"))
    assert (folder / "v5/hub/model.safetensors").is_file()  # the repository to go on with
    # of 5 pictures' features a run on 6 questions takes only its own
    assert len(json.loads((folder / "v5/name_map.json").read_text())) <= 6


def test_problems_without_the_originals_ids(world):
    _, command, folder = world
    weights = ["--rationale-weights", "files/v5-rationale", "--answer-weights", "files/v5-answer"]
    status, _, err = command("base-v5", *weights, "--data", "derek-thomas/ScienceQA", "--output", "no-ids")
    assert status == 2 and "has no row for" in err and "--features extract" in err
    options = ["--data", "tester/with-ids", "--output", "ids", "--max-samples", "4"]
    status, out, err = command("base-v5", *weights, *options)
    assert status == 0, err
    assert "captions in the context; this data has none" in out
    status, out, err = command("base-v5", *weights, "--features", "extract", "--output", "own", "--max-samples", "4")
    assert status == 0, err
    assert "timm/vit_large_patch32_384" in out and "hf://datasets/derek-thomas/ScienceQA" in out
    assert "they aren't the released ones" in out
    status, _, err = command("base-v5", *weights, "--data", "tester/with-ids", "--captions", "c.json")
    assert status == 2 and "joined by question id" in err


def test_training_by_the_papers_recipe(world):
    hub, command, folder = world
    captions = f"{hub.url}/tester/captions/resolve/main/c.json"
    small = {"model": T5, "tokenizer": "files/v5-rationale", "max_steps": 2, "use_cpu": True}
    small |= {"max_new_tokens": 4, "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
    small |= {"max_source_length": 160, "max_eval_samples": 1, "max_test_samples": 4, "loss_on_padding": False}
    overrides = [f"{key}={json.dumps(value)}" for key, value in small.items()]
    status, out, err = command("base-v5", "--train", "--captions", captions, "--output", "trained", *overrides)
    assert status == 0, err
    content = json.loads((folder / "trained/result.json").read_text())
    assert content["result"]["n"]["Avg"] == 4 and "the training of the paper" in out
    assert (folder / "trained/hub/config.json").is_file()
    assert json.loads((folder / "trained/answer/config.json").read_text())["image_feature_size"] == 1024


def test_what_is_missing_is_named(world):
    _, command, folder = world
    status, out, err = command("large-v1")
    assert status == 2 and "rationale weights" in err and "--train" in err and "not on the Hub" in out
    status, _, err = command("base-v1", "--rationale-weights", "tester/nothing")
    assert status == 2 and err.count("\n") == 1 and "hf://tester/nothing: can't be had from the Hub" in err
    status, _, err = command("base-v1", "--features", "hf://cooelf/vision_features/other.npy")
    assert status == 2 and "no such file" in err
    for nothing in ("test_split=null", "stages=rationale"):
        status, _, err = command("base-v5", "--train", "--dry-run", nothing)
        assert status == 2 and f"{nothing}: published figures are compared" in err
    status, _, err = command("base-v1", "max_steps=2")
    assert status == 2 and "--train" in err


def test_without_a_network_one_line_within_seconds(tmp_path):
    environment = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "no_proxy": "127.0.0.1",
    }
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "mmcot.training.cli", "reproduce", "base-v5"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "can't be had from the Hub" in done.stderr
    assert time.monotonic() - start < 40


def test_published_table_is_consistent():
    assert sum(TEST_QUESTIONS[column] for column in ("NAT", "SOC", "LAN")) == TEST_QUESTIONS["Avg"]
    assert TEST_QUESTIONS["G1-6"] + TEST_QUESTIONS["G7-12"] == TEST_QUESTIONS["Avg"]
    for name, published in PUBLISHED.items():
        for parts in (("NAT", "SOC", "LAN"), ("G1-6", "G7-12")):
            if name in ("random", "human"):  # not one model's answers to these questions: their rows don't add up
                continue
            right = sum(published.accuracy[column] * TEST_QUESTIONS[column] for column in parts)
            assert right / TEST_QUESTIONS["Avg"] == pytest.approx(published.accuracy["Avg"], abs=0.02), name


def test_measured_counts_are_those_of_the_released_index(shared_dir):
    from mmcot.training.evaluation.accuracy import accuracy_table

    problems = list(json.loads((shared_dir / "data/scienceqa_test/index.json").read_text()).values())
    counts = accuracy_table(problems, [True] * len(problems))["n"]
    assert {column: TEST_QUESTIONS[column] for column in counts} == counts


def test_agreement_is_judged_column_by_column():
    low, high = expected_interval("base-v5", "Avg")
    assert low < 85.31 < high and high - low == pytest.approx(4 * 0.545, rel=0.03)
    result = {
        "accuracy": dict(PUBLISHED["base-v5"].accuracy),
        "n": dict(TEST_QUESTIONS),
        "rationale": {"rougeL": 93.0},
    }
    result["protocol"] = "generated"
    result["accuracy"]["IMG"] = 70.0
    comparison = compare_with_published("base-v5", result)
    assert comparison["agrees"] and comparison["whole_test_split"]
    assert [column for column, row in comparison["columns"].items() if not row["agrees"]] == ["IMG"]
    text = format_comparison_with_published("base-v5", comparison)
    assert "-12.75  2,017  NO" in text and "8 of 9 columns" in text and "measured 93.00" in text
    with pytest.raises(ValueError, match="can't be compared"):
        compare_with_published("base-v1", result)
