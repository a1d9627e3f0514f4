"""What transformers expects of a model, and what this one relies on in transformers: its names and private hooks."""

import copy
import inspect

import pytest
import torch
import transformers
from tiny_models import IMAGE, T5, VOCAB, image_inputs, labels, text_inputs, tiny_config, tiny_model, vision_config
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel, Trainer
from transformers.modeling_outputs import BaseModelOutputWithPooling, Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5PreTrainedModel, T5Stack
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from mmcot import MMCoTForConditionalGeneration, MMCoTModel
from mmcot.modeling_mmcot import CACHE, MMCoTEncoder

INPUTS = text_inputs() | image_inputs()
START = torch.full((3, 4), 7)


@pytest.fixture
def model():
    return tiny_model()


# --- the forward pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@torch.no_grad()
def test_a_cache_by_either_name_is_used(model, name):
    """transformers calls it `cache` since 5.24, and `past_key_values` before."""
    whole = model(**INPUTS, decoder_input_ids=START).logits
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    first = model(**INPUTS, decoder_input_ids=START[:, :3], use_cache=True, **{name: cache})
    assert getattr(first, CACHE) is cache and cache.get_seq_length() == 3
    rest = model(**INPUTS, decoder_input_ids=START[:, 3:], use_cache=True, **{name: cache})
    torch.testing.assert_close(rest.logits[:, 0], whole[:, 3])


def test_generation_uses_the_cache(model):
    lengths = []
    model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    model.generate(**INPUTS, max_new_tokens=4, min_new_tokens=4)
    assert lengths == [1] * 4
    lengths.clear()
    model.generate(**INPUTS, max_new_tokens=4, min_new_tokens=4, use_cache=False)
    assert lengths == [1, 2, 3, 4]


@pytest.mark.parametrize("network", [MMCoTForConditionalGeneration, MMCoTEncoder])
def test_forward_is_annotated_as_transformers_own(network):
    parameters = inspect.signature(network.forward).parameters
    assert parameters["kwargs"].annotation == Unpack[TransformersKwargs]
    if network is MMCoTForConditionalGeneration:
        assert {"cache", "labels", "use_cache", "num_items_in_batch"} <= parameters.keys()
    assert next(iter([name for name in parameters if name != "self"])) == network.main_input_name


@torch.no_grad()
def test_the_last_hidden_state_is_the_fused_one(model):
    output = model(**INPUTS, decoder_input_ids=START, output_hidden_states=True, output_image_attention=True)
    text = T5Stack.forward(model.encoder, **text_inputs()).last_hidden_state
    fused, attention, gate = model.encoder.fusion(text, *image_inputs().values(), output_attentions=True)
    assert not torch.allclose(text, fused, atol=1e-2)
    torch.testing.assert_close(output.encoder_last_hidden_state, fused)
    torch.testing.assert_close(output.encoder_hidden_states[-1], fused)
    torch.testing.assert_close(output.image_attentions, attention)
    torch.testing.assert_close(output.image_gate, gate)
    encoded = model.get_encoder()(**INPUTS, output_hidden_states=True)
    torch.testing.assert_close(encoded.last_hidden_state, fused)
    torch.testing.assert_close(encoded.hidden_states[-1], fused)
    assert len(encoded.hidden_states) == T5["num_layers"] + 1


@torch.no_grad()
def test_every_output_that_t5_has_is_given(model):
    model.set_attn_implementation("eager")
    output = model(**INPUTS, labels=labels(), output_hidden_states=True, output_attentions=True, use_cache=True)
    assert {field for field in Seq2SeqLMOutput.__dataclass_fields__ if output.get(field) is None} == set()
    as_tuple = model(**INPUTS, labels=labels(), return_dict=False, use_cache=False)
    torch.testing.assert_close(as_tuple[0], output.loss)
    torch.testing.assert_close(as_tuple[1], output.logits)


@pytest.mark.parametrize("fields", [{}, {"loss_on_padding": True}, {"tie_word_embeddings": False}])
def test_the_loss_alone_equals_the_loss_with_logits(fields):
    model = tiny_model(**fields)
    for count in (None, 5, torch.tensor(7)):
        options = INPUTS | {"labels": labels(), "num_items_in_batch": count}
        whole, alone = model(**options), model(**options, skip_logits=True)
        torch.testing.assert_close(alone.loss, whole.loss)
        assert alone.logits is None and getattr(alone, CACHE) is None and whole.logits.shape == (3, 6, VOCAB)
    assert model(**INPUTS, decoder_input_ids=START, skip_logits=True).logits is not None, "no labels: no loss"


# --- images ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_image_features_are_given_as_transformers_gives_them():
    model = tiny_model(vision_config=vision_config())
    model.set_attn_implementation("eager")
    pixels = torch.randn(3, 3, IMAGE, IMAGE)
    images = model.get_image_features(pixel_values=pixels, output_hidden_states=True, output_attentions=True)
    assert isinstance(images, BaseModelOutputWithPooling) and images.image_attention_mask is None
    assert images.last_hidden_state.shape == (3, 5, 16) and len(images.hidden_states) == 2
    assert images.attentions[0].shape == (3, 2, 5, 5)
    torch.testing.assert_close(images.pooler_output, images.last_hidden_state)
    assert isinstance(model.get_image_features(pixels, return_dict=False), tuple)
    given = model(**text_inputs(), image_features=images.pooler_output, decoder_input_ids=START).logits
    torch.testing.assert_close(model(**text_inputs(), pixel_values=pixels, decoder_input_ids=START).logits, given)


# --- the vocabulary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}])
@pytest.mark.parametrize("size", [VOCAB + 9, VOCAB - 9])
def test_a_resized_vocabulary_is_whole_and_is_saved(tmp_path, fields, size):
    model = tiny_model(**fields)
    before = copy.deepcopy(model)
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == size == model.lm_head.out_features == model.shared.num_embeddings
    tied = not fields
    for network in (model, None):
        if network is None:
            model.save_pretrained(tmp_path)
            network = MMCoTForConditionalGeneration.from_pretrained(tmp_path)
            network.tie_weights()
        assert network.encoder.embed_tokens.weight is network.decoder.embed_tokens.weight is network.shared.weight
        assert (network.lm_head.weight is network.shared.weight) is tied
        ids = torch.tensor([[size - 1, 3, 1]])
        loss = network(input_ids=ids, labels=ids).loss
        assert loss.isfinite()
        old = min(size, VOCAB)
        torch.testing.assert_close(network.shared.weight[:old], before.shared.weight[:old])
        torch.testing.assert_close(network.lm_head.weight[:old], before.lm_head.weight[:old])
        assert network.generate(input_ids=ids, max_new_tokens=3).max() < size
    torch.testing.assert_close(network(input_ids=ids, labels=ids).loss, model(input_ids=ids, labels=ids).loss)


# --- hooks of transformers that are overridden -----------------------------------------------------------------------

OVERRIDDEN = [
    (PreTrainedModel, MMCoTForConditionalGeneration, "is_custom_code"),
    (PreTrainedModel, MMCoTModel, "is_custom_code"),
    (PreTrainedModel, MMCoTForConditionalGeneration, "_init_weights"),
    (PreTrainedModel, MMCoTForConditionalGeneration, "get_expanded_tied_weights_keys"),
    (PreTrainedModel, MMCoTForConditionalGeneration, "push_to_hub"),
    (PreTrainedModel, MMCoTForConditionalGeneration, "save_pretrained"),
    (PreTrainedModel, MMCoTForConditionalGeneration, "from_pretrained"),
    (GenerationMixin, MMCoTForConditionalGeneration, "generate"),
    (T5PreTrainedModel, MMCoTForConditionalGeneration, "_no_split_modules"),
]


@pytest.mark.parametrize(("base", "own", "name"), OVERRIDDEN, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_overridden_still_exists(base, own, name):
    """An override of a name that transformers no longer calls does nothing, and nobody would notice."""
    assert hasattr(base, name) and getattr(own, name) is not getattr(base, name)
    if callable(getattr(base, name)):
        wanted, given = (inspect.signature(getattr(kind, name)).parameters for kind in (base, own))
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in given.values())
        assert takes_all or wanted.keys() <= given.keys()


def test_initialisation_still_asks_whether_code_is_custom():
    """Without the override T5's own weights are left at a standard deviation of 1 (FACTS of transformers 5)."""
    assert "is_custom_code" in inspect.getsource(PreTrainedModel.initialize_weights)

    class Custom(MMCoTForConditionalGeneration):
        @classmethod
        def is_custom_code(cls):
            return True

    torch.manual_seed(0)
    query = "decoder.block.1.layer.0.SelfAttention.q.weight"
    expected = (T5["d_model"] * T5["d_kv"]) ** -0.5
    assert abs(tiny_model().get_parameter(query).std() / expected - 1) < 0.1
    wrong = Custom.from_pretrained(None, config=tiny_config(), state_dict={})
    assert abs(wrong.get_parameter(query).std() / expected - 1) > 0.1, "the override isn't needed any more: remove it"


def test_tied_keys_are_still_all_or_nothing():
    """Without the override, a head of its own would untie encoder and decoder too."""
    model = tiny_model(tie_word_embeddings=False)
    assert model.get_expanded_tied_weights_keys() == {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }
    assert PreTrainedModel.get_expanded_tied_weights_keys(model) == {}, "transformers ties the rest by itself now"


def test_the_trainer_still_asks_for_accepts_loss_kwargs(model, tmp_path):
    arguments = transformers.TrainingArguments(tmp_path, use_cpu=True, report_to=[])
    for padded in (False, True):
        model.config.loss_on_padding = padded
        assert Trainer(model, arguments).model_accepts_loss_kwargs is not padded


def test_loss_type_gives_a_loss_without_a_shift(model):
    scores, ids = torch.randn(2, 3, VOCAB), torch.randint(0, VOCAB, (2, 3))
    expected = torch.nn.functional.cross_entropy(scores.flatten(0, 1), ids.flatten())
    torch.testing.assert_close(model.loss_function(scores, ids, VOCAB), expected)
