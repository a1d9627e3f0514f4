"""Steps of a run: done once, again only when what they depend on changes, gone on with from whole checkpoints."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from mmcot.training.common import UserError
from mmcot.training.stages import fit
from mmcot.training.stages.checkpoints import last_whole_checkpoint, put_damaged_aside
from mmcot.training.stages.manifest import changes
from mmcot.training.stages.recipe import load_recipe
from mmcot.training.train import run_recipe

SIZES = "{d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2, dropout_rate: 0.1}"
TINY = [f"model={SIZES}", "vision=null", "features=null", "keep_images=false", "per_device_train_batch_size=8"]
TINY += ["per_device_eval_batch_size=8", "max_new_tokens=4", "max_steps=4", "save_strategy=steps", "save_steps=1"]
TINY += ["eval_strategy=no", "save_total_limit=9", "disable_tqdm=true", "use_cpu=true"]


def recipe(folder, *overrides):
    return load_recipe("embedded", [*TINY, "data=embedded:n=16,val=4,test=4", f"output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps") / "run"
    run_recipe(recipe(folder))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def times(folder):
    names = ("rationale/model.safetensors", "answer/model.safetensors", "rationale/predictions_val.jsonl")
    names += ("rationale/predictions_test.jsonl", "answer/predictions_test.jsonl")
    return {name: (folder / name).stat().st_mtime_ns for name in names}


def test_a_finished_run_loads_no_network(run, monkeypatch):
    from mmcot import MMCoTForConditionalGeneration

    before = times(run)
    monkeypatch.setattr(MMCoTForConditionalGeneration, "from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    assert run_recipe(recipe(run))["test"]["n"]["Avg"] == 4
    assert times(run) == before


@pytest.mark.parametrize(
    "override, again",
    [
        ("per_device_eval_batch_size=2", set()),
        ("num_beams=2", {"rationale/predictions_val.jsonl", "rationale/predictions_test.jsonl"}),
        ("max_test_samples=3", {"rationale/predictions_test.jsonl"}),
    ],
)
def test_what_training_does_not_depend_on_leaves_it_alone(run, override, again):
    before = times(run)
    run_recipe(recipe(run, override))
    changed = {name for name, time in times(run).items() if time != before[name]}
    assert changed - {"answer/predictions_test.jsonl"} == again


@pytest.mark.parametrize(
    "override, named",
    [
        ("seed=7", "seed: 42 → 7"),
        ("learning_rate=0.5", "learning_rate"),
        ("max_source_length=100", "max_source_length: 256 → 100"),
        ("data=embedded:n=16,val=4,test=4,seed=1", "data: the content is another one"),
    ],
)
def test_what_training_depends_on_is_refused_by_name(run, override, named):
    with pytest.raises(UserError, match=f"{named}.*choose another output_dir"):
        run_recipe(recipe(run, override))


def test_a_key_that_an_earlier_version_did_not_have_was_at_its_default():
    assert changes({"seed": 42}, {"seed": 42, "dropout_passes": 1, "cross_fit": None}) == []
    assert changes({"seed": 42}, {"seed": 42, "dropout_passes": 2}) == ["dropout_passes: None → 2"]
    assert changes({"seed": 42, "dropout_passes": 2}, {"seed": 42, "dropout_passes": 1}) == ["dropout_passes: 2 → 1"]


def test_the_rationale_stage_alone_then_both(tmp_path):
    assert run_recipe(recipe(tmp_path, "stages=rationale")) == {}
    before = (tmp_path / "rationale" / "model.safetensors").stat().st_mtime_ns
    assert run_recipe(recipe(tmp_path, "answer.learning_rate=1e-3"))["test"]["n"]["Avg"] == 4
    assert (tmp_path / "rationale" / "model.safetensors").stat().st_mtime_ns == before


def test_another_base_model_under_the_same_name_is_noticed(finished, tmp_path):
    base = shutil.copytree(finished / "answer", tmp_path / "base")
    arguments = [f"model={base}", f"tokenizer={base}", "stages=rationale"]
    run_recipe(recipe(tmp_path / "run", *arguments))
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="model: the content is another one"):
        run_recipe(recipe(tmp_path / "run", *arguments))
    shutil.rmtree(base)  # a finished step doesn't need it any more
    with pytest.raises(UserError, match="there is no such folder"):
        run_recipe(recipe(tmp_path / "other", *arguments))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"finished": true}'])
def test_a_damaged_manifest_is_one_line_with_the_remedy(run, content):
    (run / "rationale" / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: is damaged.*remove it"):
        run_recipe(recipe(run))


def interrupted(monkeypatch, folder, step, *overrides, make=recipe):
    """A run that is stopped in a stage's training after a step; `make` gives its recipe."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise KeyboardInterrupt

    whole = fit.train_stage
    with monkeypatch.context() as patch:
        patch.setattr(fit, "train_stage", lambda *args, **kwargs: whole(*args, **kwargs, callbacks=[Stop()]))
        with pytest.raises(KeyboardInterrupt):
            run_recipe(make(folder, "stages=rationale", *overrides))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_nan(path):
    weights = load_file(path)
    weights[next(iter(weights))][:] = float("nan")
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    "name, damage",
    [
        ("model.safetensors", cut),
        ("model.safetensors", with_nan),
        ("model.safetensors", lambda path: path.unlink()),
        ("optimizer.pt", cut),
        ("optimizer.pt", lambda path: path.unlink()),
        ("scheduler.pt", lambda path: path.unlink()),
        ("rng_state.pth", lambda path: path.unlink()),
        ("trainer_state.json", lambda path: path.write_text("")),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_whole_one_beside_it(finished, tmp_path, name, damage):
    folder = tmp_path / "rationale"
    for step in (2, 3):
        shutil.copytree(finished / "rationale" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    damage(folder / "checkpoint-3" / name)
    assert last_whole_checkpoint(folder) == folder / "checkpoint-2"
    put_damaged_aside(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "damaged-checkpoint-3"]


def test_a_resumed_run_really_resumes_and_ends_as_the_whole_one(finished, monkeypatch, tmp_path):
    """With dropout; steps are counted, for a fresh start with the same seed ends the same too."""
    interrupted(monkeypatch, tmp_path, 3)
    cut(tmp_path / "rationale" / "checkpoint-2" / "optimizer.pt")  # so it goes on from step 1
    steps, original = [], fit.train_stage

    class Count(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    monkeypatch.setattr(fit, "train_stage", lambda *args, **kwargs: original(*args, **kwargs, callbacks=[Count()]))
    run_recipe(recipe(tmp_path, "stages=rationale"))
    assert steps == [1, 2, 3]
    whole, resumed = (load_file(path / "rationale" / "model.safetensors") for path in (finished, tmp_path))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_two_runs_on_one_folder(tmp_path):
    from mmcot.training.stages.run import Run

    with Run(recipe(tmp_path)).locked(), pytest.raises(UserError, match="is writing to it"):
        run_recipe(recipe(tmp_path))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".lock")]


def test_a_full_disk_is_one_line_and_the_run_goes_on_afterwards(monkeypatch, tmp_path):
    import errno

    original = fit._save
    monkeypatch.setattr(
        fit, "_save", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(UserError, match=f"{tmp_path}: its disk is full.*run it again"):
        run_recipe(recipe(tmp_path, "stages=rationale"))
    monkeypatch.setattr(fit, "_save", original)
    run_recipe(recipe(tmp_path, "stages=rationale"))
    assert json.loads((tmp_path / "rationale" / "manifest.json").read_text())["finished"]


def test_push_to_hub_pushes_the_repository_once(run, monkeypatch):
    from mmcot.training.hub import push

    pushed = []
    monkeypatch.setattr(push, "push", lambda folder, name, **options: pushed.append((folder, name)) or "url")
    for _ in range(2):
        run_recipe(recipe(run, "push_to_hub=true", "hub_model_id=me/model"))
    assert pushed == [(run / "hub", "me/model")]
