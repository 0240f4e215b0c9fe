"""Folders of `transformers` give equal logits here, and folders written here give equal logits there.

All comparisons with `transformers` are in this module, since importing it takes seconds.
"""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import data, generation, interop, models
from jdl.interop.families import FAMILIES
from jdl.interop.family import ONLY
from jdl.nn.positions import LinearScaling, Llama3Scaling
from tests.compiling import jit

B, T, V = 3, 7, 37
TOKENS = np.random.default_rng(0).integers(3, V, (B, T)).astype(np.int32)
TYPES = np.random.default_rng(1).integers(0, 2, (B, T)).astype(np.int32)
LENGTHS = np.array([7, 3, 5], np.int32)
REAL = np.arange(T) < LENGTHS[:, None]

SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
GPT2 = {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 20}
T5 = {
    "vocab_size": V,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
VIT = {
    "image_size": 16,
    "patch_size": 4,
    **{name: SIZES[name] for name in list(SIZES)[1:5]},
    "num_labels": 5,
}

# The class, its configuration, and options of ours; each one brings something that those before have not.
CASES = {
    "gpt2": ("GPT2LMHeadModel", GPT2 | {"n_inner": 40}, {}),
    "gpt2-relu": ("GPT2Model", GPT2 | {"n_layer": 1, "activation_function": "relu"}, {}),
    "gpt2-classes": ("GPT2ForSequenceClassification", GPT2 | {"num_labels": 3, "pad_token_id": 0}, {}),
    "bert": ("BertForMaskedLM", SIZES, {}),
    "bert-pairs": ("BertForSequenceClassification", SIZES | {"num_labels": 3}, {"scan": True}),
    "bert-words": ("BertForTokenClassification", SIZES | {"num_hidden_layers": 1, "num_labels": 9}, {}),
    "llama": ("LlamaForCausalLM", SIZES | {"num_key_value_heads": 2, "rope_parameters": LLAMA3}, {}),
    "llama-tied": (
        "LlamaForCausalLM",
        SIZES
        | {
            "tie_word_embeddings": True,
            "head_dim": 6,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
        },
        {"scan": True},
    ),
    "llama-classes": (
        "LlamaForSequenceClassification",
        SIZES | {"num_key_value_heads": 2, "num_labels": 3, "pad_token_id": 0},
        {"scan": True},
    ),
    "mistral": ("MistralForCausalLM", SIZES | {"num_key_value_heads": 1, "sliding_window": 3}, {}),
    "qwen2": ("Qwen2ForCausalLM", SIZES | {"num_hidden_layers": 1, "num_key_value_heads": 2}, {}),
    "t5": ("T5ForConditionalGeneration", T5 | {"num_decoder_layers": 1}, {}),
    "t5-1.1": (
        "T5ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"scan": True},
    ),
    "vit": ("ViTForImageClassification", VIT, {}),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "num_labels": 5},
        {},
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_norm_eps": 1e-6, "num_labels": 5},
        {},
    ),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25, "num_labels": 5}, {}),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.35, "num_labels": 5}, {}),
    "mobilenet_v2-features": (
        "MobileNetV2Model",
        {"depth_multiplier": 0.5, "tf_padding": False, "hidden_act": "relu", "layer_norm_eps": 1e-5},
        {},
    ),
    # Its third stage halves images of 5 pixels, an odd number, which changes how transformers pads.
    "efficientnet": (
        "EfficientNetForImageClassification",
        {
            "image_size": 20,
            "width_coefficient": 0.25,
            "depth_coefficient": 1.2,
            "kernel_sizes": [3, 5, 3],
            "in_channels": [32, 64, 96],
            "out_channels": [64, 96, 128],
            "depthwise_padding": [4],
            "strides": [1, 2, 2],
            "num_block_repeats": [1, 1, 1],
            "expand_ratios": [1, 6, 4],
            "squeeze_expansion_ratio": 0.5,
            "hidden_dim": 320,
            "batch_norm_eps": 1e-4,
            "num_labels": 5,
        },
        {},
    ),
}
# What cannot be told from the module; and what rounding does to the deepest network, equal in float64.
FIELDS = {
    "efficientnet": {"image_size": 20, "depthwise_padding": [4]},
    "gpt2-classes": {"pad_token_id": 0},
    "llama-classes": {"pad_token_id": 0},
}
TOLERANCES = {"mobilenet_v2": 1e-4}
IMAGES = {"vit": 16, "resnet": 16, "convnext": 16, "mobilenet_v1": 33, "mobilenet_v2": 33, "efficientnet": 20}


@pytest.fixture(scope="module")
def transformers(torch):
    os.environ["HF_HUB_OFFLINE"] = "1"
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="module")
def published(torch, transformers, tmp_path_factory):
    """``name -> (model, folder)`` of random weights that are none of them zero or one."""
    made = {}

    def make(name):
        if name not in made:
            architecture, config, _ = CASES[name]
            architecture = getattr(transformers, architecture)
            torch.manual_seed(0)
            model = architecture(architecture.config_class(**config)).eval()
            if name == "t5-1.1":  # as published: transformers 5 makes it tied
                model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
                if name == "efficientnet":  # its scales start about zero, and nothing would come through
                    for layer in model.modules():
                        if isinstance(layer, torch.nn.BatchNorm2d):
                            layer.weight.add_(1)
                for key, buffer in model.named_buffers():
                    if "running" in key:
                        buffer.add_(0.3 * torch.rand_like(buffer))
            folder = tmp_path_factory.mktemp("published")
            model.save_pretrained(folder)
            made[name] = model, folder
        return made[name]

    return make


def inputs_of(name):
    """The same inputs for both."""
    row = {"tokens": TOKENS, "lengths": LENGTHS}
    theirs = {"input_ids": TOKENS, "attention_mask": REAL}
    if side := IMAGES.get(name.split("-")[0]):
        x = np.random.default_rng(2).normal(size=(B, side, side, 3)).astype(np.float32)
        return x, {"pixel_values": x.transpose(0, 3, 1, 2)}
    if name.startswith("t5"):
        target = TOKENS[:, ::-1][:, :5]
        return {"source": row, "target": target}, theirs | {"decoder_input_ids": target}
    if name.startswith("bert"):
        return row | {"types": TYPES}, theirs | {"token_type_ids": TYPES}
    if name.endswith("-classes"):  # where a row ends is told there by its padding
        return row, theirs | {"input_ids": TOKENS * REAL}
    return row, theirs


def theirs_of(torch, model, name):
    tensors = {key: torch.tensor(x.copy()) for key, x in inputs_of(name)[1].items()}
    tensors = {key: x.long() if x.dtype != torch.float32 else x for key, x in tensors.items()}
    with torch.no_grad():
        outputs = model(**tensors)
    kinds = ("logits", "pooler_output", "last_hidden_state")
    return next(outputs[kind] for kind in kinds if kind in outputs).numpy()


def assert_close(found, expected, name, tolerance=1e-5):
    where = REAL if expected.shape[:2] == REAL.shape else slice(None)
    np.testing.assert_allclose(
        np.asarray(found)[where],
        expected[where],
        rtol=0,
        atol=tolerance * np.abs(expected).max(),
        err_msg=name,
    )


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_equal_both_ways(torch, transformers, published, tmp_path, name):
    model, folder = published(name)
    expected = theirs_of(torch, model, name)
    module, variables = interop.from_hugging_face(folder, **CASES[name][2])
    found = jit(module.apply)(variables, inputs_of(name)[0])
    assert_close(found, expected, name, TOLERANCES.get(name, 1e-5))

    interop.to_hugging_face(tmp_path, module, variables, **FIELDS.get(name, {}))
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    left = {part for parts in report.values() for part in parts}
    assert all(part.endswith("num_batches_tracked") for part in left), report
    state = again.state_dict()
    assert all(torch.equal(state[key], x) for key, x in model.state_dict().items())
    # How arrays lie in memory may change how a convolution there is rounded.
    assert_close(theirs_of(torch, again, name), expected, name, 1e-6)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is type(model.config)


def test_images_of_another_size_and_other_channels(published):
    module, variables = interop.from_hugging_face(published("vit")[1])
    params = variables["params"]
    grid, colours = params["positions"].shape[1], params["stem"]["kernel"].shape[2]
    side = module.patch * round((grid - 1) ** 0.5)
    again, adapted = interop.from_hugging_face(published("vit")[1], image_size=2 * side, num_channels=1)
    shape = (1, 4 * (grid - 1) + 1, module.width)
    np.testing.assert_array_equal(
        adapted["params"]["positions"], interop.resize_positions(params["positions"], shape)
    )
    grey = np.random.default_rng(0).normal(size=(2, side, side, 1)).astype(np.float32)
    _, kept = interop.from_hugging_face(published("vit")[1], num_channels=1)
    found = module.apply(kept, grey)
    np.testing.assert_allclose(found, module.apply(variables, grey.repeat(colours, -1)), atol=1e-5)
    assert again.apply(adapted, grey.repeat(2, 1).repeat(2, 2)).shape == found.shape
    _, adapted = interop.from_hugging_face(published("resnet")[1], num_channels=5)
    assert adapted["params"]["stem"]["conv"]["kernel"].shape[2] == 5
    with pytest.raises(ValueError, match="ResNet has no image_size"):
        interop.from_hugging_face(published("resnet")[1], image_size=64)
    with pytest.raises(ValueError, match='"image_size" is .64., and should be like 224'):
        interop.from_hugging_face(published("vit")[1], image_size="64")


def test_what_a_configuration_says_is_what_the_module_is(published):
    module, _ = interop.from_hugging_face(published("llama")[1])
    assert module.block.rotary.scaling == Llama3Scaling(8.0, 1.0, 4.0, 8)
    assert (module.block.num_kv_heads, module.head, module.block.use_bias) == (2, "untied", False)
    module, variables = interop.from_hugging_face(published("llama-tied")[1], scan=True)
    assert module.block.rotary.scaling == LinearScaling(2.0)
    assert variables["params"]["blocks"]["block"]["mlp"]["gate"]["kernel"].shape == (2, 16, 24)
    module, variables = interop.from_hugging_face(published("t5-1.1")[1])
    assert (module.head, module.logit_scale, module.block.gated) == ("untied", 1.0, True)
    assert module.block.activation == "gelu_tanh"
    module, _ = interop.from_hugging_face(published("mistral")[1])
    assert module.block.window == 3
    module, _ = interop.from_hugging_face(published("llama-classes")[1])
    assert (module.head, module.pool) == (3, "last")


def test_a_window_of_null_is_none(torch, transformers, tmp_path):
    """As the later releases of Mistral 7B say it."""
    config = transformers.MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=None)
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["sliding_window"] is None
    module, variables = interop.from_hugging_face(tmp_path)
    assert module.block.window is None
    found = jit(module.apply)(variables, inputs_of("mistral")[0])
    assert_close(found, theirs_of(torch, model, "mistral"), "mistral")
    (tmp_path / "config.json").write_text(json.dumps(said | {"sliding_window": "none"}))
    with pytest.raises(ValueError, match='"sliding_window" is .none., and should be like 4096'):
        interop.from_hugging_face(tmp_path)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_field_of_a_configuration_is_known(transformers, kind):
    """Each is read with the same default, may have one value only, or does not change the outputs."""
    without_effect = {
        # how to start, train, cache, store and report
        *("initializer_range", "initializer_factor", "use_cache", "dtype", "transformers_version"),
        *("return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward"),
        *(
            "problem_type",
            "pretraining_tp",
            "reorder_and_upcast_attn",
            "is_encoder_decoder",
            "encoder_stride",
        ),
        # dropout, which is noise of training
        *("embd_pdrop", "attn_pdrop", "attention_dropout", "attention_probs_dropout_prob"),
        *("classifier_dropout", "summary_first_dropout"),
        # what comes out, by the class: heads that are refused, names of classes, parts of a backbone
        *("architectures", "id2label", "label2id", "pooler_output_size", "pooler_act", "stage_names"),
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
        *("out_features", "out_indices", "_out_features", "_out_indices"),
        # which tokens begin and end
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
        # which layers have a window, where there is none
        *("sliding_window", "max_window_layers"),
        *("model_type", "_name_or_path"),
    }
    # what follows from other fields, and what no network of ours depends on
    without_effect |= {
        "efficientnet": {"num_hidden_layers"},
        "convnext": {"image_size"},
        "mobilenet_v1": {"image_size"},
        "mobilenet_v2": {"image_size", "semantic_loss_ignore_index"},
    }.get(kind, set())
    family = FAMILIES[kind]
    theirs = transformers.AutoConfig.for_model(kind).to_dict()
    known = set(family.fields) | set(family.only) | set(ONLY) | set(family.aliases)
    assert set(theirs) - known <= without_effect
    # What they fill in is None here.
    for name, default in family.fields.items():
        if name in theirs and default is not None and name != "sliding_window":
            found = theirs[name]
            assert (list(found) if isinstance(found, tuple) else found) == default, name


@pytest.mark.parametrize("name", ["gpt2", "mistral", "t5"])
def test_greedy_text_is_equal(torch, published, name):
    """Ragged prompts in one batch, with a cache, as one after another there."""
    model, folder = published(name)
    module, variables = interop.from_hugging_face(folder)
    is_pair = name == "t5"
    source = {"tokens": TOKENS, "lengths": LENGTHS} if is_pair else None
    decoder = generation.decoder(module, variables, source)
    prompts = [[0]] * B if is_pair else [row[:n].tolist() for row, n in zip(TOKENS, LENGTHS, strict=True)]
    found = generation.generate(decoder, prompts, 0, generation.greedy, max_new_tokens=8)
    for row, length, ours in zip(TOKENS, LENGTHS, np.asarray(found.tokens_BN), strict=True):
        ids = torch.tensor(row[None, :length]).long()
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        if is_pair:
            options["decoder_start_token_id"] = 0
        written = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, -8:]
        np.testing.assert_array_equal(ours, written.numpy())


def test_files_in_parts_and_files_of_pytorch(torch, published, tmp_path):
    model, folder = published("gpt2")
    _, whole = interop.from_hugging_face(folder)
    model.save_pretrained(tmp_path / "parts", max_shard_size="10KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    (tmp_path / "torch").mkdir()
    torch.save(model.state_dict(), tmp_path / "torch" / "pytorch_model.bin")
    (tmp_path / "torch" / "config.json").write_bytes((folder / "config.json").read_bytes())
    for part in ("parts", "torch"):
        _, variables = interop.from_hugging_face(tmp_path / part)
        jax.tree.map(np.testing.assert_array_equal, variables, whole)
    next((tmp_path / "parts").glob("*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match="there is no file .*safetensors"):
        interop.from_hugging_face(tmp_path / "parts")


def test_a_half_precision_file_is_read_as_float32(torch, transformers, published, tmp_path):
    model, _ = published("gpt2-relu")
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).save_pretrained(tmp_path)
    _, variables = interop.from_hugging_face(tmp_path)
    found = variables["params"]["tokens"]["embedding"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model.wte.weight.detach().numpy(), rtol=2**-8)


@pytest.mark.parametrize("name", ["gpt2", "bert-pairs", "llama", "t5", "vit", "resnet"])
def test_parameters_may_take_half_the_memory(torch, published, tmp_path, name):
    model, folder = published(name)
    expected = theirs_of(torch, model, name)
    module, variables = interop.from_hugging_face(folder, param_dtype=jnp.bfloat16, **CASES[name][2])
    assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {jnp.dtype(jnp.bfloat16)}
    found = np.asarray(jit(module.apply)(variables, inputs_of(name)[0]), np.float32)
    assert_close(found, expected, name, 0.05)
    # What was stored so is read and written bit by bit.
    interop.to_hugging_face(tmp_path, module, variables)
    again = type(model).from_pretrained(tmp_path, dtype="auto")
    _, same = interop.from_hugging_face(tmp_path, param_dtype=jnp.bfloat16, **CASES[name][2])
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    assert torch.bfloat16 in {x.dtype for x in again.state_dict().values()}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("dtype", [{}, {"dtype": None}])
def test_writes_with_parameters_of_half_the_memory(published, scan, dtype):
    module, variables = interop.from_hugging_face(
        published("gpt2")[1], param_dtype=jnp.bfloat16, scan=scan, **dtype
    )
    writer = generation.decoder(module, variables)
    kept = {x.dtype for x in jax.tree.leaves(writer.init_cache(1, 4)["blocks"])}
    assert kept == {jnp.dtype(jnp.float32 if dtype else jnp.bfloat16)}
    found = generation.generate(writer, [[1, 2]], 0, generation.greedy, max_new_tokens=4)
    logits = jit(module.apply)(variables, np.concatenate([[1, 2], found.tokens_BN[0]])[None])
    best = logits[0, 1:-1]
    chosen = np.take_along_axis(np.asarray(best), np.asarray(found.tokens_BN[0])[:, None], 1)[:, 0]
    assert (chosen >= best.max(-1) - 0.02 * np.abs(best).max()).all()


def test_ends_are_those_of_generation_then_of_the_model(tmp_path):
    config, settings = tmp_path / "config.json", tmp_path / "generation_config.json"
    config.write_text('{"eos_token_id": 50256}')
    assert interop.end_tokens(tmp_path) == (50256,)
    settings.write_text('{"eos_token_id": [1, 2]}')
    assert interop.end_tokens(tmp_path) == (1, 2)
    settings.write_text("{}")
    assert interop.end_tokens(tmp_path) == (50256,)
    config.write_text("{}")
    assert interop.end_tokens(tmp_path) == ()
    settings.write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(
        ValueError, match=r"generation_config.json: \"eos_token_id\" is '</s>', and should be"
    ):
        interop.end_tokens(tmp_path)


def test_parameters_are_no_integers(published):
    with pytest.raises(ValueError, match="floating type, such as bfloat16; got int8"):
        interop.from_hugging_face(published("gpt2")[1], param_dtype=jnp.int8)


def test_a_tokenizer_goes_along(transformers, tmp_path):
    pytest.importorskip("tokenizers")
    tokenizer = data.train_bpe(["the cat sat on the mat"] * 3, 270, specials=["<eos>"])
    module = models.gpt(vocab_size=270, context=4, width=4, depth=1, num_heads=2)
    variables = jit(module.init)(jax.random.key(0), np.zeros((1, 1), np.int32))
    interop.to_hugging_face(tmp_path / "a", module, variables, tokenizer, eos_token_id=0)
    text = "the hat <eos> on"
    for folder in ("a", "b"):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        ours = data.load_tokenizer(tmp_path / folder)
        assert theirs(text)["input_ids"] == ours.encode(text, specials=True).tolist()
        assert ours.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert json.loads((tmp_path / folder / "config.json").read_text())["eos_token_id"] == 0
        interop.to_hugging_face(
            tmp_path / "b", *interop.from_hugging_face(tmp_path / "a"), tmp_path / "a", eos_token_id=0
        )
