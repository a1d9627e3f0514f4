"""Decoding with rows that come and go writes what `generate()` writes, row by row."""

import pytest
import torch
from tiny_models import VOCAB, image_inputs, text_inputs, tiny_model
from transformers import GenerationConfig

from mmcot.training.inference.decoder import GreedyDecoder
from mmcot.training.inference.decoder_weights import DecoderWeights, forced_logits, is_plain_t5
from mmcot.training.inference.generation import is_plain_greedy
from mmcot.training.inference.slots import most_probable


def varied_model(**fields):
    """Random weights, sharpened so that the tokens of a row vary."""
    model = tiny_model(**fields)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "relative_attention_bias" in name or "shared" in name:
                weight.normal_(0, 1.5)
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


def encoded_rows(model, count=11, max_new_tokens=20):
    """(key, hidden, mask) of rows of all lengths, three at a time, longest first; ids of each alone; the end token.

    The end token is one that cuts the rows to the most various lengths.
    """
    batches, alone = [], {}
    for number in range(0, count, 3):
        rows = min(3, count - number)
        text = text_inputs(rows, 14 - number, seed=number)
        images = {name: value[:rows] for name, value in image_inputs(3, seed=number).items()}
        keys = list(range(number, number + rows))
        with torch.no_grad():
            hidden = model.get_encoder()(**text, **images).last_hidden_state
        batches.append((keys, hidden, text["attention_mask"]))
        for i, key in enumerate(keys):
            length = int(text["attention_mask"][i].sum())
            one = {name: value[i : i + 1] for name, value in {**text, **images}.items()}
            one = {name: value[:, :length] if name in text else value for name, value in one.items()}
            alone[key] = generated(model, one, max_new_tokens, end=-1)
    lengths = {
        end: len({ids.index(end) if end in ids else max_new_tokens for ids in alone.values()})
        for end in range(2, VOCAB)
    }
    end = max(lengths, key=lengths.get)
    expected = {key: ids[: ids.index(end) + 1] if end in ids else ids for key, ids in alone.items()}
    return batches, expected, end


def generated(model, inputs, max_new_tokens, end):
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=0, decoder_start_token_id=0
    )
    return model.generate(**inputs, generation_config=config)[0, 1:].tolist()


@pytest.mark.parametrize("fields", [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}])
@pytest.mark.parametrize("slots", [1, 4, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_ids_equal_generate_one_by_one(fields, slots, packed):
    model = varied_model(**fields)
    batches, expected, end = encoded_rows(model)
    assert len({len(ids) for ids in expected.values()}) > 2  # some end early, some never
    weights = DecoderWeights(model, packed=packed)
    assert dict(GreedyDecoder(model, slots, weights=weights).decode(batches, 20, end)) == expected


@pytest.mark.parametrize("sync_interval", [1, 3, 8])
def test_a_long_sync_interval_changes_nothing(sync_interval):
    model = varied_model()
    batches, expected, end = encoded_rows(model)
    decoder = GreedyDecoder(model, 4)
    decoder.sync_interval = sync_interval
    assert dict(decoder.decode(batches, 20, end)) == expected


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_a_gpus_settings_change_nothing(slots):
    model = varied_model()
    batches, expected, end = encoded_rows(model)
    decoder = GreedyDecoder(model, slots)
    decoder.length_multiple, decoder.sync_interval, decoder.min_rows, decoder.block_rows = 8, 8, 1, slots
    assert dict(decoder.decode(batches, 20, end)) == expected


def test_long_rows_outgrow_the_first_room():
    model = varied_model()
    text = text_inputs(1)
    with torch.no_grad():
        hidden = model.get_encoder()(**text).last_hidden_state
    found = dict(GreedyDecoder(model).decode([([0], hidden, text["attention_mask"])], 150, -1))
    assert found[0] == generated(model, text, 150, end=-1)


def test_batches_are_asked_for_when_there_is_room():
    model = varied_model()
    batches, expected, end = encoded_rows(model)
    asked = []

    def lazily():
        for batch in batches:
            asked.append(len(asked))
            yield batch

    rows = GreedyDecoder(model, 2).decode(lazily(), 20, end)
    next(rows)
    assert len(asked) < len(batches)
    assert len(dict(rows)) == len(expected) - 1


def test_left_padding():
    model = varied_model()
    text, images = text_inputs(3, 9), image_inputs(3)
    flipped = {name: value.flip(1) for name, value in text.items()}
    with torch.no_grad():
        hidden = model.get_encoder()(**flipped, **images).last_hidden_state
    found = dict(GreedyDecoder(model).decode([(range(3), hidden, flipped["attention_mask"])], 12, -1))
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in {**flipped, **images}.items()}
        assert found[row] == generated(model, one, 12, end=-1)


def test_what_counts_as_plain():
    assert is_plain_greedy(GenerationConfig(max_new_tokens=5, eos_token_id=1, pad_token_id=0))
    assert is_plain_greedy(GenerationConfig(num_beams=1, do_sample=False))
    for options in ({"num_beams": 4}, {"do_sample": True}, {"repetition_penalty": 1.2}, {"min_new_tokens": 3}):
        assert not is_plain_greedy(GenerationConfig(**options))
    assert not is_plain_greedy(GenerationConfig(num_return_sequences=2, do_sample=True))
    assert is_plain_t5(tiny_model())


def test_adapters_are_not_plain():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q", "v"]))
    assert not is_plain_t5(model.base_model.model)


@pytest.mark.parametrize("fields", [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forced_logits_are_the_networks_own(fields, dtype):
    model = varied_model(**fields).to(dtype)
    text, images = text_inputs(3, 9), image_inputs(3)
    images["image_features"] = images["image_features"].to(dtype)
    assert not text["attention_mask"].all()  # some are padded
    ids = [0, 7, 3, 11]
    with torch.no_grad():
        encoded = model.get_encoder()(**text, **images)
        found = forced_logits(model, encoded.last_hidden_state, text["attention_mask"], ids)
        forced = torch.tensor([ids]).expand(3, -1)
        own = model(encoder_outputs=encoded, attention_mask=text["attention_mask"], decoder_input_ids=forced).logits
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.5}
    torch.testing.assert_close(found, own[:, -1], **close)


@pytest.mark.parametrize("fields", [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}])
def test_under_autocast_as_near_to_full_precision_as_the_network(fields):
    """What states are summed up in stays float32, as in the network."""
    model = varied_model(**fields)
    with torch.no_grad():
        model.shared.weight.mul_(20)  # large states lose most when they are kept in bfloat16
    text = text_inputs(3, 9)
    ids, mask = [0, 7, 3, 11], text["attention_mask"]
    inputs = {"attention_mask": mask, "decoder_input_ids": torch.tensor([ids]).expand(3, -1)}
    with torch.no_grad():
        encoded = model.get_encoder()(**text)
        exact = model(encoder_outputs=encoded, **inputs).logits[:, -1]
        with torch.autocast("cpu", torch.bfloat16):
            own = model(encoder_outputs=encoded, **inputs).logits[:, -1]
            found = forced_logits(model, encoded.last_hidden_state, mask, ids)
    off = (found - exact).norm() / exact.norm()
    assert off < 0.02 and off < 1.5 * (own - exact).norm() / exact.norm()


def test_a_slot_that_was_never_taken_holds_no_nan():
    """On a CPU one row is decoded beside a free slot."""
    model = varied_model()
    text = text_inputs(1)
    with torch.no_grad():
        hidden = model.get_encoder()(**text).last_hidden_state
    rows = [(["long"], hidden, text["attention_mask"]), (["late"], hidden, text["attention_mask"])]
    found = dict(GreedyDecoder(model, 2).decode(iter(rows[:1]), 9, -1))
    both = dict(GreedyDecoder(model, 1).decode(iter(rows), 9, -1))
    assert found["long"] == both["long"] == both["late"] == generated(model, text, 9, end=-1)


@pytest.mark.parametrize("vocabulary", [256, 251, 32 * 9])
@pytest.mark.parametrize("side_by_side", [True, False])
def test_the_most_probable_token_is_the_first_of_equals(vocabulary, side_by_side):
    torch.manual_seed(0)
    logits = torch.randint(0, 40, (7, vocabulary)).bfloat16()  # many are equal
    logits[2] = float("-inf")
    given = logits.T.contiguous().T if side_by_side else logits
    assert torch.equal(most_probable(given), torch.stack([row.float().argmax() for row in logits]))
    assert most_probable(given[:1]).tolist() == [int(logits[0].float().argmax())]
