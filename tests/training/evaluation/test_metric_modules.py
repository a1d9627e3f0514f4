"""The metric modules load from their folders and give what the plain functions give."""

import json
import sys

import evaluate
import pytest

from mmcot.training.evaluation.accuracy import accuracy_table
from mmcot.training.evaluation.metrics import METRICS, metric_path
from mmcot.training.evaluation.rationales import rationale_scores


def test_accuracy_module():
    problems = [{"subject": "natural science", "grade": "grade2"}, {"subject": "social science", "grade": "grade9"}]
    metric = evaluate.load(metric_path("scienceqa_accuracy"))
    metric.add_batch(predictions=[1, -1], references=[1, 0])
    result = metric.compute(problems=problems)
    assert result == {**accuracy_table(problems, [True, False]), "unparsable": 1}
    assert evaluate.load(metric_path("scienceqa_accuracy")).compute(predictions=[2, 0], references=[2, 1])["n"] == {
        "Avg": 2
    }


def test_rationale_module():
    metric = evaluate.load(metric_path("rationale_scores"))
    predictions, references = ["it melts. so it is liquid", "a b c d e"], ["it is liquid, so it melts.", "a b c d f"]
    result = metric.compute(predictions=predictions, references=references)
    assert result == pytest.approx({k: 100 * v for k, v in rationale_scores(predictions, references).items()})


def test_every_module_is_listed_and_an_unknown_one_is_refused():
    for name in METRICS:
        assert evaluate.load(metric_path(name)).name == name
    with pytest.raises(ValueError, match="scienceqa_accuracy"):
        metric_path("accuracy")


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    """A tiny random BERT in the layout of sentence-transformers."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("sentence_model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "ran", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for i, (path, kind) in enumerate(modules)
            ]
        )
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    (folder / "1_Pooling").mkdir()
    return folder


TEXTS = ["the cat sat .", "dog", "", "the dog ran the cat sat the dog ran the cat sat"]


@pytest.mark.parametrize("flag", ["mean_tokens", "cls_token", "max_tokens"])
def test_embeddings_are_pooled_one_by_one_the_same(sentence_model, flag):
    import torch
    from transformers import AutoTokenizer, BertModel

    from mmcot.training.evaluation.similarity import embed, similarities

    (sentence_model / "1_Pooling" / "config.json").write_text(
        json.dumps(
            {"word_embedding_dimension": 16}
            | {f"pooling_mode_{name}": name == flag for name in ("mean_tokens", "cls_token", "max_tokens")}
        )
    )
    tokenizer, network = AutoTokenizer.from_pretrained(sentence_model), BertModel.from_pretrained(sentence_model)
    rows = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=8, return_tensors="pt")
        with torch.no_grad():
            hidden = network.eval()(**inputs).last_hidden_state[0]
        pooled = {"mean_tokens": hidden.mean(0), "cls_token": hidden[0], "max_tokens": hidden.max(0).values}[flag]
        rows.append(pooled / pooled.norm())
    expected = torch.stack(rows)
    torch.testing.assert_close(embed(TEXTS, sentence_model), expected, atol=1e-6, rtol=1e-5)
    values = similarities(TEXTS, TEXTS[::-1], sentence_model)
    assert values == pytest.approx((expected * expected.flip(0)).sum(-1).tolist(), abs=1e-5)


def test_a_model_that_is_not_there_is_said_in_one_line(tmp_path, monkeypatch):
    from mmcot.training.common import MissingFileError, UserError
    from mmcot.training.evaluation.similarity import embed

    with pytest.raises(MissingFileError, match="no sentence-transformers model") as error:
        embed(["a"], tmp_path / "nothing")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match="mmcot.similarity"):
        embed(["a"], tmp_path)
