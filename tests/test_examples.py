"""Each file of examples/ does what its docstring says, on a tiny repository."""

import ast
import base64
import importlib.util
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from own_data import box_questions, environment, make_hub_cache, write_jsonl
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(path for path in EXAMPLES.rglob("*.py") if "__pycache__" not in path.parts)


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} isn't installed")


def example(name):
    """An example as a module."""
    path = str(EXAMPLES)
    if path not in sys.path:
        sys.path.insert(0, path)
    return importlib.import_module(name)


def run(name, *arguments, launcher=(), env=None):
    command = [sys.executable, *launcher, str(EXAMPLES / name), *map(str, arguments)]
    env = env or {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def questions(count=6):
    from mmcot.training import generate_problems

    return [dict(problem) for problem in generate_problems(count, seed=11)]


@pytest.fixture(scope="module")
def answers(two_stage_repository):
    """What the repository answers, by its own pipeline."""
    from mmcot.training import load_pipeline

    return load_pipeline(two_stage_repository, "cpu", dtype="float32")(questions())


def test_files_are_short_and_tell_how_to_run_them():
    for path in (EXAMPLES / "browser").glob("*.*"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 100, path
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 100, path
        described = ast.get_docstring(ast.parse(text)) or ""
        assert path.name == "__init__.py" or path.stem in described or "lmms_eval_mmcot" in path.parts, path
        compile(text, str(path), "exec")


def test_every_example_is_in_the_docs_and_has_a_test():
    listed = (EXAMPLES.parent / "docs/examples.md").read_text(encoding="utf-8")
    here = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_example*.py"))
    for path in FILES:
        if path.name != "__init__.py":
            assert path.relative_to(EXAMPLES).as_posix() in listed and path.stem in here, path
    assert "browser/" in listed


def test_streaming_gives_pieces_then_the_answer(two_stage_repository, answers):
    from mmcot import MMCoTModel, MMCoTProcessor

    stream = example("streaming").stream
    model = MMCoTModel.from_pretrained(two_stage_repository)
    processor = MMCoTProcessor.from_pretrained(two_stage_repository)
    *pieces, result = stream(model, processor, questions()[0])
    scores, expected = result.pop("scores"), {**answers[0]}
    assert scores == pytest.approx(expected.pop("scores"), abs=1e-4)
    assert result == expected and len(pieces) > 1 and all(isinstance(piece, str) for piece in pieces)
    with pytest.raises(ValueError):
        list(stream(model, processor, questions()[0], mode="nonsense"))


def test_handler_answers_requests(two_stage_repository, answers):
    handler = example("handler").EndpointHandler(str(two_stage_repository))
    problems = questions()
    for problem in problems:
        pictures = []
        for image in problem.pop("images"):
            buffer = io.BytesIO()
            (Image.open(io.BytesIO(image["bytes"])) if isinstance(image, dict) else image).save(buffer, "PNG")
            pictures.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
        problem["image"] = pictures or None
    asked = json.loads(json.dumps({"inputs": [{**problem, "solution": ""} for problem in problems]}))
    results = handler(asked)
    assert [result["answer"] for result in results] == [answer["answer"] for answer in answers]
    assert json.loads(json.dumps(results)) == results
    assert handler({"inputs": asked["inputs"][0], "parameters": {"max_new_tokens": 3}})["answer"] in "ABCDE"
    for image in ("http://127.0.0.1/x.png", "/etc/passwd", "no base64!"):
        assert "image" in handler({"inputs": {"question": "?", "choices": ["a", "b"], "image": image}})["error"]
    assert "inputs" in handler({})["error"]


@needs("peft")
def test_lora_trains_and_merges_a_stage(two_stage_repository, tmp_path):
    from mmcot import MMCoTModel, MMCoTProcessor
    from mmcot.training import load_problems

    model = MMCoTModel.from_pretrained(two_stage_repository)
    processor = MMCoTProcessor.from_pretrained(two_stage_repository)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    problems = load_problems("embedded:n=16,val=4,test=4", "train")
    settings = {"max_steps": 2, "learning_rate": 0.1, "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    model = example("lora").finetune(model, processor, problems, "answer", str(tmp_path), **settings)
    after = model.state_dict()
    assert before.keys() == after.keys(), "adapters are merged"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert (
        changed and all(name.startswith("answer.") for name in changed) and any("fusion" in name for name in changed)
    )
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    model.save_pretrained(tmp_path / "hub", processor=processor)
    again = MMCoTModel.from_pretrained(tmp_path / "hub").state_dict()
    assert all(torch.equal(again[name], after[name]) for name in after)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("bitsandbytes-8bit", marks=needs("bitsandbytes")),
        pytest.param("bitsandbytes-4bit", marks=needs("bitsandbytes")),
        pytest.param("torchao-int8", marks=needs("torchao")),
    ],
)
def test_quantised_is_smaller_and_answers(two_stage_repository, how):
    from mmcot import MMCoTProcessor

    load = example("quantised").load
    processor, problems = MMCoTProcessor.from_pretrained(two_stage_repository), questions()
    model = load(str(two_stage_repository), how)
    results = processor.post_process(model.generate(**processor(problems)), problems)
    assert all(abs(sum(result["scores"].values()) - 1) < 0.02 for result in results)
    if how.startswith("bits"):  # torchao's tensors give the size of what they stand for
        assert model.get_memory_footprint() < load(str(two_stage_repository), "none").get_memory_footprint()


@pytest.mark.parametrize(
    "how",
    [
        "bfloat16",
        pytest.param("bitsandbytes-8bit", marks=needs("bitsandbytes")),
        pytest.param("torchao-int8", marks=needs("torchao")),
    ],
)
def test_a_smaller_repository_is_saved_and_answers(two_stage_repository, tmp_path, how):
    """What --save writes is predicted with as any other repository, and the header tells the two apart."""
    from mmcot.training import load_problems
    from mmcot.training.evaluation.predictions import read_header
    from mmcot.training.evaluation.reading import read_predictions
    from mmcot.training.inference.predict import predict

    smaller = tmp_path / "smaller"
    example("quantised").load(str(two_stage_repository), how).save_pretrained(smaller)
    size = (smaller / "model.safetensors").stat().st_size
    assert size < 0.8 * (two_stage_repository / "model.safetensors").stat().st_size
    problems, found, headers = load_problems("embedded:test=6", "test"), {}, {}
    for name, repository in {"whole": two_stage_repository, "smaller": smaller}.items():
        file = predict(repository, problems, tmp_path / f"{name}.jsonl", max_new_tokens=4)
        found[name], headers[name] = read_predictions(file), read_header(file)
    assert list(found["smaller"]) == list(found["whole"]) and len(found["whole"]) == 6
    scores, exact = ([s for r in found[name].values() for s in r["scores"].values()] for name in ("smaller", "whole"))
    assert sum(abs(one - other) for one, other in zip(scores, exact, strict=True)) / len(exact) < 0.1
    assert headers["smaller"]["fingerprint"] != headers["whole"]["fingerprint"]


def test_torch_export_gives_the_same_logits(two_stage_repository):
    from mmcot import MMCoTModel

    stage = MMCoTModel.from_pretrained(two_stage_repository).eval().rationale
    programs = example("torch_export").export(stage)
    ids = torch.randint(5, 90, (3, 11))
    features, mask = torch.randn(3, 4, stage.config.image_feature_size), torch.ones(3, 4, dtype=torch.bool)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    images = {"image_features": features, "image_attention_mask": mask}
    with torch.no_grad():
        hidden = programs["encoder"].module()(**text, **images)
        inputs = {"encoder_hidden_states": hidden, "attention_mask": text["attention_mask"]}
        logits = programs["decoder"].module()(decoder_input_ids=ids[:, :5], **inputs)
        expected = stage(**text, **images, decoder_input_ids=ids[:, :5]).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_lmms_eval_model_reads_the_tasks_documents(two_stage_repository, answers, monkeypatch):
    """With stand-ins for lmms-eval's three names, which the adapter takes from it."""
    api = types.ModuleType("lmms_eval.api.model")
    api.lmms = type("lmms", (), {"__init__": lambda self: None})
    registry, registered = types.ModuleType("lmms_eval.api.registry"), {}
    registry.register_model = lambda name: lambda cls: registered.setdefault(name, cls)
    for name in ("lmms_eval", "lmms_eval.api"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, api.__name__, api)
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    module = example("lmms_eval_mmcot.models.mmcot_reasoner")
    names = {name: cls.__name__ for name, cls in registered.items()}
    assert names == example("lmms_eval_mmcot.models").AVAILABLE_MODELS
    model = registered["mmcot_reasoner"](pretrained=str(two_stage_repository), batch_size="2")
    docs = [{**problem, "hint": problem["context"]} for problem in questions()]
    model.task_dict = {"scienceqa": {"test": docs}}
    requests = [
        types.SimpleNamespace(args=("a prompt", {}, lambda doc: doc["images"], number, "scienceqa", "test"))
        for number in range(len(docs))
    ]
    assert model.generate_until(requests) == [answer["answer"] for answer in answers]
    assert module.choices_of({"options": "['x', 'y']"}) == module.choices_of({"A": "x", "B": "y"}) == ["x", "y"]
    with pytest.raises(ValueError, match="multiple-choice"):
        module.choices_of({"question": "?"})


def test_lmms_eval_task_of_own_questions(tmp_path):
    task = example("lmms_eval_mmcot.tasks.utils")
    doc = {"question": "Which?", "context": "A box.", "choices": ["red", "blue"], "answer": 1, "image": None}
    assert task.prompt(doc) == "A box.\nWhich?\nA. red\nB. blue\nAnswer with the option's letter."
    assert [task.letter({**doc, "answer": answer}) for answer in (1, "B", "blue")] == ["B", "B", "B"]
    said = {"B": 1, "b.": 1, "The answer is (B).": 1, "A": 0, "": 0, "The answer is (A).": 0}
    assert {text: task.score(doc, [text])["exact_match"] for text in said} == said
    Image.new("RGB", (4, 4)).save(tmp_path / "box.png")
    assert len(task.pictures({**doc, "image": str(tmp_path / "box.png")})) == 1 and task.pictures(doc) == []


@needs("lmms_eval")
def test_lmms_eval_itself_runs_model_and_task(two_stage_repository, tmp_path):
    """On questions without pictures, whose right answers are what the repository answers."""
    from mmcot.training import load_pipeline

    asked = [{"question": f"Is it {number}?", "choices": ["yes", "no", "maybe"], "image": None} for number in range(6)]
    answered = load_pipeline(two_stage_repository, "cpu", dtype="float32")(asked)
    for record, result in zip(asked, answered, strict=True):
        record["answer"] = result["answer"] if record is not asked[0] else "ABC".replace(result["answer"], "")[0]
    write_jsonl(tmp_path / "my-questions.jsonl", asked)
    folder = EXAMPLES / "lmms_eval_mmcot" / "tasks"
    command = [sys.executable, "-m", "lmms_eval", "--model", "mmcot_reasoner", "--force_simple", "--batch_size", "4"]
    command += ["--model_args", f"pretrained={two_stage_repository}", "--tasks", "own_questions"]
    command += ["--include_path", str(folder), "--output_path", "out"]
    paths = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "LMMS_EVAL_PLUGINS": "lmms_eval_mmcot", "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=400)
    found = [json.loads(path.read_text()) for path in tmp_path.glob("out/**/*results.json")]
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    assert found[0]["results"]["own_questions"]["exact_match,none"] == pytest.approx(5 / 6)


@pytest.mark.slow  # two processes that import torch
def test_two_processes_share_the_questions(two_stage_repository, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29617")
    data = ["embedded:n=8", "--output", tmp_path / "p.jsonl"]
    said = run("two_processes.py", two_stage_repository, *data, launcher=launcher)
    assert "2 processes: " in said and "of 8 questions" in said


SMALL = [
    "model={d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2}",
    "vision=null",
    "data=embedded:n=24,val=8,test=8",
    "max_new_tokens=4",
    "max_steps=2",
    "use_cpu=true",
]


@needs("optuna")
def test_hyperparameter_search_finds_a_best_trial(tmp_path):
    from mmcot.training import load_recipe

    unsaved = ["save_strategy=no", "load_best_model_at_end=false", f"output_dir={tmp_path}"]
    best = example("hyperparameter_search").search(load_recipe("embedded", [*SMALL, *unsaved]), "answer", 2)
    assert set(best.hyperparameters) == {"learning_rate", "per_device_train_batch_size"}
    assert 0 <= best.objective <= 100


def test_finetune_is_one_file_that_uv_runs():
    text = (EXAMPLES / "finetune.py").read_text(encoding="utf-8")
    lines = text.split("# /// script\n")[1].split("# ///\n")[0].splitlines()
    if sys.version_info < (3, 11):
        pytest.skip("the standard library reads TOML from Python 3.11 on")
    import tomllib

    metadata = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))
    assert "mmcot" in metadata["dependencies"] and metadata["requires-python"] == ">=3.10"
    place = (EXAMPLES / metadata["tool"]["uv"]["sources"]["mmcot"]["path"]).resolve()
    assert (place / "setup.cfg").is_file()


@pytest.mark.slow
def test_finetune_trains_on_a_file(tmp_path, tiny_tokenizer):
    write_jsonl(tmp_path / "my-questions.jsonl", box_questions(tmp_path, 24))
    env = environment(make_hub_cache(tmp_path / "home", tiny_tokenizer))
    arguments = ["--output", tmp_path / "run", "max_steps=2", "max_new_tokens=4", "use_cpu=true"]
    said = run("finetune.py", tmp_path / "my-questions.jsonl", *arguments, env=env)
    assert "protocol: generated" in said and (tmp_path / "run/hub/README.md").is_file()


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("streaming", ["one"]),
        pytest.param("lora", ["one"], marks=needs("peft")),
        ("torch_export", ["one", "text"]),
        ("onnx_export", ["one", "text"]),
    ],
)
def test_a_repository_of_another_kind_is_refused_in_a_line(tiny_tokenizer, tmp_path, monkeypatch, capsys, name, kinds):
    from two_stage_models import make_stage

    from mmcot import MMCoTModel, MMCoTProcessor

    for kind in kinds:
        formats = {"rationale_format": None, "answer_format": "QCM-A"} if kind == "one" else {}
        processor = MMCoTProcessor(None, tiny_tokenizer, max_source_length=200, **formats)
        stages = [make_stage(processor, seed, vision_config=None) for seed in (0, 1)]
        model = MMCoTModel.from_stages(*stages, processor) if kind == "text" else stages[1]
        model.save_pretrained(tmp_path / kind, processor=processor)
        more = ["Which?", "red", "blue"] if name == "streaming" else [str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", str(tmp_path / kind), *more])
        with pytest.raises(SystemExit):
            example(name).main()
        assert f"{kind} has one stage" in capsys.readouterr().err and not (tmp_path / "out").exists()
