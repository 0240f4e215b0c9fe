"""Folders as they come: of older releases, from the Hub, for another head, damaged, of other models."""

import json
import os
import sys

import jax
import numpy as np
import pytest

from jdl import interop, models
from jdl.interop import from_hugging_face, read_tensors, to_hugging_face, write_tensors
from jdl.interop.family_efficient import EFFICIENTNET
from jdl.models.efficientnet import BASE, Blocks, efficientnet
from jdl.nn import Alibi
from tests.compiling import jit

SIZES = {"vocab_size": 11, "width": 8, "depth": 2, "num_heads": 2}
TOKEN = np.zeros((1, 1), np.int32)
IMAGE = np.zeros((1, 8, 8, 3), np.float32)
MODELS = {
    "gpt2": (models.gpt(context=4, **SIZES), TOKEN),
    "gpt2-classes": (models.gpt(context=4, head=3, pool="last", **SIZES), TOKEN),
    "bert": (models.bert(context=4, **SIZES), TOKEN),
    "bert-states": (models.bert(context=4, head=None, **SIZES), TOKEN),
    "bert-classes": (models.bert(context=4, head=3, pool="first", pooler=True, **SIZES), TOKEN),
    "llama": (models.llama(num_kv_heads=1, hidden=12, **SIZES), TOKEN),
    "t5": (models.t5(head_size=4, hidden=12, **SIZES), {"source": TOKEN, "target": TOKEN}),
    "t5-1.1": (models.t5("1.1-small", head_size=4, hidden=12, **SIZES), {"source": TOKEN, "target": TOKEN}),
    "vit": (models.ViT(4, 8, 1, 2, num_classes=3), IMAGE),
    "convnext": (models.ConvNeXt((1, 2), (8, 16), num_classes=3), IMAGE),
    "convnext-features": (models.ConvNeXt((1,), (8,), num_classes=0), IMAGE),
    "mobilenet_v1": (models.mobilenet_v1(0.25, 3, padding="SAME"), IMAGE),
    "mobilenet_v2": (models.mobilenet_v2(0.35, 3, activation="relu6", epsilon=1e-3), IMAGE),
    "efficientnet": (
        models.EfficientNet((Blocks(1, 16, 3, 1, 1), Blocks(2, 24, 5, 2, 6)), 8, 320, num_classes=3),
        IMAGE,
    ),
}


def variables_of(name):
    """Drawn anew, as numpy arrays."""
    module, example = MODELS[name]
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), example))
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    if name == "gpt2-classes":  # whose head has no bias there
        variables["params"]["head"]["bias"][:] = 0
    return variables


@pytest.fixture
def folder(tmp_path):
    """``name -> folder`` of a model."""

    def make(name):
        to_hugging_face(tmp_path / name, MODELS[name][0], variables_of(name))
        return tmp_path / name

    return make


def change(folder, remove=(), tensors=None, rename=lambda name: name, **fields):
    """Changes tensors and fields; a field that is None is taken out."""
    found = {rename(name): x for name, x in read_tensors(folder).items() if name not in remove}
    write_tensors(folder / "model.safetensors", found | (tensors or {}))
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_back_module_and_variables(folder, name):
    path = folder(name)
    module, variables = from_hugging_face(path)
    assert_equal(variables, variables_of(name))
    again = path.with_name("again")
    to_hugging_face(again, module, variables)
    assert (again / "config.json").read_text() == (path / "config.json").read_text()


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_layers_in_a_loop(folder, name):
    """What one compiled block reads is what was read block by block, and is written as that."""
    path = folder(name)
    looped, stacked = from_hugging_face(path, scan=True)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(stacked))
    module, variables = from_hugging_face(path)
    inputs = jax.tree.map(lambda x: x + np.arange(4, dtype=np.int32).reshape(1, 4), MODELS[name][1])
    found, expected = jit(looped.apply)(stacked, inputs), jit(module.apply)(variables, inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    to_hugging_face(path, looped, stacked)
    assert_equal(from_hugging_face(path)[1], variables)


# As older files are: without the base model's name, under old names of layers, with masks and positions that
# are computed, with copies of tied weights, or with a copy alone.
def test_names_of_older_releases(folder):
    path = folder("gpt2")
    mask = np.tril(np.ones((1, 1, 4, 4), np.float32))
    buffers = {f"h.{i}.attn.{name}": mask for i in range(2) for name in ("bias", "masked_bias")}
    change(path, tensors=buffers, rename=lambda name: name.removeprefix("transformer."), architectures=None)
    assert_equal(from_hugging_face(path)[1], variables_of("gpt2"))

    path = folder("bert")
    tied = {
        "cls.predictions.decoder.weight": read_tensors(path)["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": read_tensors(path)["cls.predictions.bias"],
        "cls.seq_relationship.weight": np.zeros((2, 8), np.float32),
        "bert.pooler.dense.weight": np.zeros((8, 8), np.float32),
        "bert.embeddings.position_ids": np.arange(4)[None],
    }
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(name):
        return next((name.replace(new, was) for new, was in old.items() if new in name), name)

    change(path, tensors=tied, rename=rename, gradient_checkpointing=False)
    assert_equal(from_hugging_face(path)[1], variables_of("bert"))

    path = folder("t5")
    shared = read_tensors(path)["shared.weight"]
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    change(path, remove=["shared.weight"], tensors=dict.fromkeys(copies, shared))
    assert_equal(from_hugging_face(path)[1], variables_of("t5"))


def test_other_names_of_fields(folder):
    path = folder("gpt2")
    config = json.loads((path / "config.json").read_text())
    change(path, n_head=None, num_attention_heads=config["n_head"])
    assert from_hugging_face(path)[0].block.num_heads == 2
    path = folder("llama")
    old = {"type": "linear", "factor": 4.0}
    for fields in (
        {"rope_theta": 77.0, "rope_scaling": old},
        {"rope_parameters": {"rope_theta": 77.0, "rope_type": "linear", "factor": 4.0}, "rope_theta": None},
    ):
        change(path, **fields)
        rotary = from_hugging_face(path)[0].block.rotary
        assert (rotary.base, rotary.scaling.factor) == (77.0, 4.0)
        change(path, rope_scaling=None)


def test_a_head_that_is_not_tied_after_all(folder):
    """As transformers does, tensors that differ are taken for what they are."""
    path, own = folder("gpt2"), np.ones((11, 8), np.float32)
    change(path, tensors={"lm_head.weight": own})
    module, variables = from_hugging_face(path)
    assert module.head == "untied"
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], own.T)
    with pytest.raises(ValueError, match='"lm_head.weight" and "transformer.wte.weight" differ'):
        from_hugging_face(path, head="tied")
    path = folder("t5")
    change(path, tensors={"lm_head.weight": own})
    with pytest.raises(ValueError, match='"lm_head.weight" and "shared.weight" differ'):
        from_hugging_face(path)
    change(path, scale_decoder_outputs=False)
    assert from_hugging_face(path)[0].head == "untied"
    path = folder("bert")
    change(path, tensors={"cls.predictions.decoder.weight": own})
    with pytest.raises(ValueError, match='"cls.predictions.decoder.weight" and .* differ'):
        from_hugging_face(path)


def test_another_head(folder):
    path, key = folder("bert-states"), jax.random.key(3)
    options = {"head": 5, "pool": "mean"}
    with pytest.raises(ValueError, match="with a key, head would be drawn anew"):
        from_hugging_face(path, **options)
    module, variables = from_hugging_face(path, key=key, **options)
    head = variables["params"].pop("head")
    assert_equal(variables, variables_of("bert-states"))
    assert head["kernel"].shape == (8, 5)
    assert head["kernel"].std() > 0.01
    outputs = jit(module.apply)({"params": variables["params"] | {"head": head}}, np.ones((2, 3), np.int32))
    assert outputs.shape == (2, 5)

    path = folder("bert-classes")
    module, variables = from_hugging_face(path, head=5, key=key)
    assert (module.pool, module.pooler) == ("first", True)
    pooler = variables["params"]["pooler"]
    assert_equal(pooler, variables_of("bert-classes")["params"]["pooler"])
    assert variables["params"]["head"]["kernel"].shape == (8, 5)
    module, _ = from_hugging_face(path, head=None, pool=None, pooler=False)
    assert module.head is None
    module, variables = from_hugging_face(folder("vit"), num_classes=7, key=key)
    assert variables["params"]["head"]["kernel"].shape == (8, 7)


def test_a_trained_head_of_a_decoder_is_read(folder, tmp_path):
    """With a key too, and from a folder whose class is not named."""
    path, key = folder("gpt2-classes"), jax.random.key(3)
    head = variables_of("gpt2-classes")["params"]["head"]
    module, variables = from_hugging_face(path, key=key)
    assert (module.head, module.pool) == (3, "last")
    assert_equal(variables["params"]["head"], head)
    change(path, architectures=["GPT2LMHeadModel"])
    for options in ({}, {"key": key}):
        module, variables = from_hugging_face(path, head=3, pool="last", **options)
        assert_equal(variables["params"]["head"], head)
    with pytest.raises(ValueError, match='head/kernel .8, 5. ."score.weight" .3, 8..*\n.*with a key, head'):
        from_hugging_face(path, head=5, pool="last")
    module, variables = from_hugging_face(path)
    assert "head" not in variables["params"]
    variables = variables_of("gpt2-classes")
    variables["params"]["head"]["bias"][1] = 1
    with pytest.raises(ValueError, match="has no score.bias: the biases of such a head must be zeros"):
        to_hugging_face(tmp_path / "biased", MODELS["gpt2-classes"][0], variables)
    assert not (tmp_path / "biased").exists()


def test_attributes_of_the_module_may_be_given(folder):
    module, _ = from_hugging_face(folder("gpt2"), dtype=np.float16, dropout=0.5, chunk=2)
    assert (module.dtype, module.dropout, module.block.chunk) == (np.float16, 0.5, 2)
    with pytest.raises(ValueError, match="Transformer has no heads, layers"):
        from_hugging_face(folder("gpt2"), layers=3, heads=2)


REFUSED = [
    ("gpt2", {"model_type": "gpt_neox"}, '"model_type" is .gpt_neox.; supported are bert, gpt2, llama'),
    ("gpt2", {"model_type": None}, '"model_type" is None'),
    (
        "gpt2",
        {"architectures": ["GPT2ForTokenClassification"]},
        '"architectures" is .* supported are GPT2',
    ),
    (
        "gpt2",
        {"activation_function": "mish"},
        '"activation_function" is .mish.; supported are gelu, gelu_new',
    ),
    ("gpt2", {"scale_attn_weights": False}, '"scale_attn_weights" is False; only True is supported'),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, '"scale_attn_by_inverse_layer_idx" is True'),
    ("gpt2", {"add_cross_attention": True}, '"add_cross_attention" is True; only False'),
    ("gpt2", {"quantization_config": {"bits": 4}}, '"quantization_config" is'),
    ("gpt2", {"auto_map": {"AutoModel": "own.py"}}, '"auto_map" is'),
    ("gpt2", {"pruned_heads": {"0": [1]}}, '"pruned_heads" is'),
    ("gpt2", {"n_head": "2"}, '"n_head" is .2., and should be like 12'),
    ("gpt2", {"n_embd": True}, '"n_embd" is True, and should be like 768'),
    ("gpt2", {"layer_norm_epsilon": None}, '"layer_norm_epsilon" is None, and should be like 1e-05'),
    ("bert", {"position_embedding_type": "relative_key"}, '"position_embedding_type" is .relative_key.'),
    ("bert", {"is_decoder": True}, '"is_decoder" is True'),
    ("bert", {"tie_word_embeddings": False}, '"tie_word_embeddings" is False'),
    ("llama", {"mlp_bias": True}, '"attention_bias" is False, "mlp_bias" is True; only models'),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, '"rope_type" is .yarn.; supported are'),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, '"rope_type" .linear. need factor'),
    (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}},
        "not supported: .'beta': 1",
    ),
    ("llama", {"partial_rotary_factor": 0.5}, '"partial_rotary_factor" is 0.5'),
    ("llama", {"original_max_position_embeddings": 8}, '"original_max_position_embeddings" is 8'),
    ("llama", {"model_type": "qwen2", "use_sliding_window": True}, '"use_sliding_window" is True'),
    (
        "llama",
        {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
        '"layer_types" has sliding_attention',
    ),
    ("t5", {"feed_forward_proj": "maxout-gelu"}, '"feed_forward_proj" is .maxout-gelu.'),
    ("t5", {"dense_act_fn": "gelu"}, '"dense_act_fn" is .gelu., which is not what "feed_forward_proj" says'),
    ("t5", {"is_encoder_decoder": False}, '"is_encoder_decoder" is False'),
    ("vit", {"hidden_act": "relu"}, '"hidden_act" is .relu.; only .gelu. is supported'),
    ("vit", {"qkv_bias": False}, '"qkv_bias" is False'),
    ("vit", {"patch_size": [4, 2]}, '"patch_size" is .4, 2.; only squares'),
    ("vit", {"model_type": "resnet", "layer_type": "wide"}, '"layer_type" is .wide.; supported are basic'),
    ("vit", {"model_type": "resnet", "downsample_in_bottleneck": True}, '"downsample_in_bottleneck" is True'),
    ("convnext", {"patch_size": 2}, '"patch_size" is 2; only 4'),
    ("convnext", {"hidden_act": "relu"}, '"hidden_act" is .relu.'),
    ("convnext", {"layer_norm_eps": 1e-5}, '"layer_norm_eps" is 1e-05; only up to 1e-06'),
    ("convnext", {"layer_scale_init_value": 0.0}, '"layer_scale_init_value" is 0.0; only above 0'),
    ("convnext", {"num_stages": 3}, '"num_stages" is 3, "depths" .1, 2., "hidden_sizes" .8, 16.'),
    ("convnext", {"num_hidden_layers": 3}, '"num_stages" is 3'),
    ("mobilenet_v1", {"min_depth": 16}, '"min_depth" is 16; only 8'),
    ("mobilenet_v1", {"hidden_act": "silu"}, '"hidden_act" is .silu.; supported are relu, relu6'),
    ("mobilenet_v1", {"tf_padding": 1}, '"tf_padding" is 1, and should be like True'),
    ("mobilenet_v2", {"architectures": ["MobileNetV2ForSemanticSegmentation"]}, '"architectures" is'),
    ("mobilenet_v2", {"output_stride": 16}, '"output_stride" is 16; only 32'),
    ("mobilenet_v2", {"first_layer_is_expansion": False}, '"first_layer_is_expansion" is False'),
    ("mobilenet_v2", {"finegrained_output": False}, '"finegrained_output" is False'),
    ("mobilenet_v2", {"expand_ratio": 4}, '"expand_ratio" is 4; only 6'),
    ("mobilenet_v2", {"depth_divisible_by": 4}, '"depth_divisible_by" is 4'),
    ("mobilenet_v2", {"depth_multiplier": 0.62}, '"depth_multiplier" is 0.62, which transformers rounds'),
    ("efficientnet", {"hidden_act": "relu"}, '"hidden_act" is .relu.; only .swish.'),
    ("efficientnet", {"pooling_type": "max"}, '"pooling_type" is .max.'),
    ("efficientnet", {"depthwise_padding": [1]}, '"depthwise_padding" is .1.; only .. is supported'),
    ("efficientnet", {"image_size": 90}, '"depthwise_padding" is ..; only .1. is supported for .* 90'),
    ("efficientnet", {"image_size": 225}, '"image_size" is 225; only even sizes'),
    ("efficientnet", {"image_size": [224, 240]}, '"image_size" is .224, 240.; only squares'),
    ("efficientnet", {"in_channels": [32, 8]}, '"in_channels" is .32, 8.; only 32 and'),
    ("efficientnet", {"strides": [1, 1, 2]}, '"out_channels" has 2 stages'),
    (
        "efficientnet",
        {"in_channels": [32, 32], "out_channels": [32, 64]},
        '"out_channels" is .32, 64., where a',
    ),
    ("efficientnet", {"squeeze_expansion_ratio": 0.0}, '"squeeze_expansion_ratio" is 0.0; only above 0'),
]


def test_what_is_not_there_is_refused_by_name(folder):
    paths = {name: folder(name) for name in {name for name, _, _ in REFUSED}}
    for name, fields, message in REFUSED:
        config = json.loads((paths[name] / "config.json").read_text())
        changed = paths[name].with_name("changed")
        changed.mkdir(exist_ok=True)
        (changed / "config.json").write_text(json.dumps({**config, **fields}))
        with pytest.raises(ValueError, match=f"config.json: .*{message}"):
            from_hugging_face(changed)


def test_every_fault_of_the_weights_is_named(folder):
    path = folder("llama")
    wrong = {
        "model.norm.weight": np.ones(9, np.float32),
        "model.layers.2.mlp.up_proj.weight": np.ones((12, 8)),
    }
    change(path, remove=["model.layers.1.self_attn.k_proj.weight"], tensors=wrong)
    with pytest.raises(ValueError) as error:
        from_hugging_face(path)
    assert str(error.value).splitlines() == [
        f"{path}: the weights do not fit the model",
        'no tensor for: blocks/block2/attention/key/kernel ("model.layers.1.self_attn.k_proj.weight")',
        'of another shape: norm/scale (8,) ("model.norm.weight" (9,))',
        "tensors that nothing uses: model.layers.2.mlp.up_proj.weight",
    ]


def test_damaged_folders(folder, tmp_path):
    with pytest.raises(ValueError, match="no/such/folder is neither a folder nor a name on the Hub"):
        from_hugging_face("no/such/folder")
    with pytest.raises(ValueError, match="has no config.json"):
        from_hugging_face(tmp_path)
    path = folder("bert")
    weights, config = path / "model.safetensors", path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="model.safetensors cannot be read, it may be damaged or cut off"):
        from_hugging_face(path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="holds none of model.safetensors"):
        from_hugging_face(path)
    weights.write_bytes(whole)
    for text in ("{", "[]", ""):
        config.write_text(text)
        with pytest.raises(ValueError, match="config.json: "):
            from_hugging_face(path)


CANNOT = [
    (
        models.gpt(context=4, positions="sinusoidal", **SIZES),
        "as GPT2LMHeadModel .* positions is 'sinusoidal'",
    ),
    (
        models.gpt(context=4, gated=True, window=3, **SIZES),
        "block.window is 3, .*block.gated is True, not False",
    ),
    (models.gpt(context=4, head=3, **SIZES), "head is 3, not 'tied'"),
    (models.gpt(context=4, relative=Alibi(), **SIZES), "block.relative is Alibi"),
    (models.bert(context=4, head=None, pool="mean", **SIZES), "as BertModel .* pool is 'mean', not None"),
    (models.bert(context=4, norm_first=True, **SIZES), "block.norm_first is True"),
    (models.llama(hidden=12, num_kv_heads=1, norm="layer", **SIZES), "block.norm is 'layer', not 'rms'"),
    (models.t5(head_size=4, hidden=12, positions="learned", **SIZES), "positions is 'learned', not None"),
    (models.ViT(4, 8, 1, 2, 16, num_classes=3, pool="mean"), "pool is 'mean'"),
    (models.resnet_cifar(8), "stem is 'cifar', not 'imagenet'"),
    (models.MLP((3,), 2), "a MLP is of none of the families bert, gpt2"),
    (models.mobilenet_v3("small"), "a MobileNet v3 is of none of the families bert"),
    (models.mobilenet_v2(activation="relu"), "not those of mobilenet_v2 of width 1.0 with relu everywhere"),
    (models.mobilenet_v1(activation="relu6"), "not those of mobilenet_v1 of width 1.0 with relu6"),
    (models.mobilenet_v2().clone(top_width=64), "top_width is 64, not 1280"),
    (models.mobilenet_v1(padding="VALID"), "padding is 'VALID', not None"),
    (models.mobilenet_v2(0.55), '"depth_multiplier" is 0.55, which transformers rounds'),
    (models.mobilenet_v2(0.22), "not those of mobilenet_v2 of width 0.225 with relu6"),
    (models.efficientnet("lite0"), '"squeeze_expansion_ratio" is 0.0'),
    (models.efficientnet("b0", activation=np.tanh), "as EfficientNetForImageClassification .* activation is"),
    (models.efficientnet("b0", padding=None), "padding is None, not 'SAME'"),
    (models.efficientnet("b0", stem_width=24), "stem_width is 24, not 32"),
]


@pytest.mark.parametrize(("module", "message"), CANNOT)
def test_what_a_configuration_cannot_say_is_named(tmp_path, module, message):
    params = {
        "positions": np.zeros((1, 5, 8)),
        "stem": {"kernel": np.zeros((4, 4, 3, 8)), "conv": {"kernel": np.zeros((3, 3, 3, 8))}},
    }
    with pytest.raises(ValueError, match=message):
        to_hugging_face(tmp_path / "out", module, {"params": params})
    assert not (tmp_path / "out").exists()


def test_fields_may_be_added_but_not_changed(tmp_path):
    module, variables = MODELS["gpt2"][0], variables_of("gpt2")
    to_hugging_face(tmp_path, module, variables, eos_token_id=3)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 3
    with pytest.raises(ValueError, match="block.num_heads is 2, not 4"):
        to_hugging_face(tmp_path, module, variables, n_head=4)
    with pytest.raises(ValueError, match="neither a tokenizer nor a folder"):
        to_hugging_face(tmp_path, module, variables, tmp_path)


# Blocks that transformers pads on both sides, as it has them for the published sizes of images.
PADDED = {
    "b0": [],
    "b1": [16],
    "b2": [5, 8, 16],
    "b3": [5, 18],
    "b4": [6],
    "b5": [13, 27],
    "b6": [31],
    "b7": [18],
}


@pytest.mark.parametrize("size", PADDED)
def test_the_published_efficientnets(size):
    module = efficientnet(size)
    params = {"stem": {"conv": {"kernel": np.zeros((3, 3, 3, module.stem_width))}}}
    config = EFFICIENTNET.describe(module, params, {})
    assert config["out_channels"] == [stage.features for stage in BASE]
    assert config["depthwise_padding"] == PADDED[size]
    assert EFFICIENTNET.build(config, {}) == module


@pytest.fixture
def hub(tmp_path, monkeypatch, folder):
    """The Hub's cache as it is after a download of ``owner/tiny``, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    os.rename(folder("gpt2"), repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return repository / "snapshots" / commit


def test_a_name_on_the_hub(hub, monkeypatch):
    for revision in (None, "main", hub.name):
        assert interop.hugging_face_folder("owner/tiny", revision=revision) == hub
        assert_equal(from_hugging_face("owner/tiny", revision=revision)[1], variables_of("gpt2"))
    for name, revision in (("owner/other", None), ("owner/tiny", "v2")):
        with pytest.raises(ValueError, match=f"{name} is no folder, and could not be had from the Hub: "):
            from_hugging_face(name, revision=revision)
    with pytest.raises(ValueError, match="neither a folder nor a name on the Hub"):
        from_hugging_face("https://owner/tiny")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'needs the extra: pip install -e "\.\[interop\]"'):
        from_hugging_face("owner/tiny")


def test_what_is_fetched_from_the_hub(hub, monkeypatch):
    """No PyTorch file where there is another, and nothing twice."""
    import huggingface_hub

    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, any(pattern.endswith(".bin") for pattern in allow_patterns)))
        return hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    interop.hugging_face_folder("owner/tiny", revision="v1")
    (hub / "model.safetensors").unlink()
    interop.hugging_face_folder("owner/tiny")
    assert asked == [("owner/tiny", "v1", False), ("owner/tiny", None, False), ("owner/tiny", None, True)]
