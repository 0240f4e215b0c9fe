"""Hugging Face's decoders: GPT-2; Llama, Mistral and Qwen2."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jdl.interop import names
from jdl.interop.family import ACTIVATIONS_THERE, Config, Family, activation_here, one_token
from jdl.interop.weights import Names
from jdl.models import Transformer
from jdl.nn.positions import LinearScaling, Llama3Scaling, Rotary
from jdl.nn.transformer import BlockConfig


def _with_score(rules: Names) -> Callable[[Transformer], Names]:
    """Rules by which a head of so many classes is what `transformers` calls ``score``."""

    def of_module(module: Transformer) -> Names:
        return [("head", "score"), *rules] if isinstance(module.head, int) else rules

    return of_module


# What the classes for sequences give: the head at the last token.
_CLASSES = {"head": int, "pool": "last"}


def _gpt2(fields: Config) -> Transformer:
    D, depth = fields["n_embd"], fields["n_layer"]
    block = BlockConfig(
        fields["n_head"],
        fields["n_inner"] or 4 * D,
        causal=True,
        epsilon=fields["layer_norm_epsilon"],
        activation=activation_here(fields, "activation_function"),
        residual_scale=(2 * depth) ** -0.5,
    )
    return Transformer(
        fields["vocab_size"],
        D,
        depth,
        block,
        context=fields["n_positions"],
        head="tied" if fields["tie_word_embeddings"] else "untied",
        dropout=fields["resid_pdrop"],
    )


def _gpt2_config(module: Transformer, params: Any) -> dict[str, Any]:
    block = module.block
    return {
        "vocab_size": module.vocab_size,
        "n_positions": module.context,
        "n_embd": module.width,
        "n_layer": module.depth,
        "n_head": block.num_heads,
        "n_inner": block.hidden,
        "activation_function": ACTIVATIONS_THERE[block.activation],
        "layer_norm_epsilon": block.epsilon,
        "tie_word_embeddings": module.head != "untied",
        "bos_token_id": None,
        "eos_token_id": None,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), module.dropout),
    }


GPT2 = Family(
    kind="gpt2",
    fields={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.1,
    },
    only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    module=_gpt2,
    config=_gpt2_config,
    outputs=[
        ("GPT2Model", {"head": None}),
        ("GPT2ForSequenceClassification", _CLASSES),
        ("GPT2LMHeadModel", {}),
    ],
    example=one_token,
    rules=_with_score(names.GPT2_HUGGING_FACE),
    base="transformer.",
    heads=["head"],
    unused=["lm_head.*", "score.*", "multiple_choice_head.*", "*.attn.bias", "*.attn.masked_bias"],
    copies={"lm_head.weight": "transformer.wte.weight"},
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    zeros=["score.bias"],
)


# Rotary positions of a part of each head, or of a context that is named apart.
_ROTARY_ONLY = {"partial_rotary_factor": 1.0, "original_max_position_embeddings": None}

# The kinds of rotary positions, and the fields that each has, in the order of our attributes.
_SCALINGS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "default": (lambda: None, ()),
    "linear": (LinearScaling, ("factor",)),
    "llama3": (
        Llama3Scaling,
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    ),
}


def _rotary(fields: Config) -> Rotary:
    """Rotary positions, from one field as transformers 5 writes it or from two as those before."""
    given = {**(fields["rope_scaling"] or fields["rope_parameters"] or {})}
    base = given.pop("rope_theta", None) or fields["rope_theta"]
    kind = given.pop("rope_type", None) or given.get("type", "default")
    given.pop("type", None)
    if given.get("partial_rotary_factor") == 1:
        del given["partial_rotary_factor"]
    if kind not in _SCALINGS:
        raise ValueError(f'"rope_type" is {kind!r}; supported are {", ".join(_SCALINGS)}')
    make, wanted = _SCALINGS[kind]
    if "original_max_position_embeddings" in wanted:
        given.setdefault("original_max_position_embeddings", fields["max_position_embeddings"])
    if missing := [name for name in wanted if given.get(name) is None]:
        raise ValueError(f'rotary positions of "rope_type" {kind!r} need {", ".join(missing)}')
    if unknown := {name: x for name, x in given.items() if name not in wanted and x is not None}:
        raise ValueError(f'rotary positions of "rope_type" {kind!r} have fields not supported: {unknown}')
    return Rotary(float(base), scaling=make(*(given[name] for name in wanted)))


def _rotary_config(rotary: Rotary) -> dict[str, Any]:
    scaling: Any = rotary.scaling
    for kind, (make, wanted) in _SCALINGS.items():
        if scaling is not None and make is type(scaling):
            values = {"rope_type": kind, **dict(zip(wanted, dataclasses.astuple(scaling), strict=True))}
            return {"rope_theta": rotary.base, "rope_scaling": values}
    return {"rope_theta": rotary.base, "rope_scaling": None}


def _llama(fields: Config) -> Transformer:
    if fields["attention_bias"] != fields["mlp_bias"]:
        raise ValueError(
            f'"attention_bias" is {fields["attention_bias"]}, "mlp_bias" is {fields["mlp_bias"]}; only '
            "models whose layers all have biases, or none, are supported"
        )
    return _rotary_decoder(fields, bool(fields["mlp_bias"]), bool(fields["attention_bias"]))


def _qwen2(fields: Config) -> Transformer:
    if kinds := set(fields["layer_types"] or []) - {"full_attention"}:
        raise ValueError(f'"layer_types" has {", ".join(sorted(kinds))}; only full_attention is supported')
    return _rotary_decoder(fields, False, True)


def _rotary_decoder(fields: Config, use_bias: bool, qkv_bias: bool) -> Transformer:
    block = BlockConfig(
        fields["num_attention_heads"],
        fields["intermediate_size"],
        fields["num_key_value_heads"],
        fields["head_dim"],
        causal=True,
        window=fields["sliding_window"],
        rotary=_rotary(fields),
        norm="rms",
        epsilon=fields["rms_norm_eps"],
        activation=activation_here(fields, "hidden_act"),
        gated=True,
        use_bias=use_bias,
        qkv_bias=qkv_bias,
    )
    return Transformer(
        fields["vocab_size"],
        fields["hidden_size"],
        fields["num_hidden_layers"],
        block,
        positions=None,
        context=fields["max_position_embeddings"],
        head="tied" if fields["tie_word_embeddings"] else "untied",
    )


def _llama_config(module: Transformer, params: Any) -> dict[str, Any]:
    block = module.block
    config = {
        "vocab_size": module.vocab_size,
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": block.num_heads,
        "num_key_value_heads": block.num_kv_heads or block.num_heads,
        "head_dim": block.size_of_head(module.width),
        "intermediate_size": block.hidden,
        "hidden_act": ACTIVATIONS_THERE[block.activation],
        "rms_norm_eps": block.epsilon,
        "max_position_embeddings": module.context,
        "tie_word_embeddings": module.head == "tied",
        "bos_token_id": None,
        "eos_token_id": None,
        **_rotary_config(block.rotary or Rotary()),
    }
    if block.window is not None:
        return {**config, "sliding_window": block.window}
    if block.qkv_bias and not block.use_bias:
        return {**config, "use_sliding_window": False}
    return {**config, "attention_bias": block.use_bias, "mlp_bias": block.use_bias}


LLAMA = Family(
    kind="llama",
    fields={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "intermediate_size": 11008,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "rope_parameters": None,
        "sliding_window": None,
    },
    only={"sliding_window": None, **_ROTARY_ONLY},
    module=_llama,
    config=_llama_config,
    outputs=[
        ("LlamaModel", {"head": None}),
        ("LlamaForSequenceClassification", _CLASSES),
        ("LlamaForCausalLM", {}),
    ],
    example=one_token,
    rules=_with_score(names.LLAMA_HUGGING_FACE),
    base="model.",
    heads=["head"],
    unused=["lm_head.*", "score.*", "*.rotary_emb.inv_freq"],
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    zeros=["score.bias"],
)

MISTRAL = LLAMA._replace(
    kind="mistral",
    fields={
        **LLAMA.fields,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    only={"attention_bias": False, "mlp_bias": False, **_ROTARY_ONLY, "layer_types": None},
    outputs=[
        ("MistralModel", {"head": None}),
        ("MistralForSequenceClassification", _CLASSES),
        ("MistralForCausalLM", {}),
    ],
    nullable=["sliding_window"],
)


QWEN2 = LLAMA._replace(
    kind="qwen2",
    fields={
        **LLAMA.fields,
        "vocab_size": 151936,
        "num_key_value_heads": 32,
        "intermediate_size": 22016,
        "max_position_embeddings": 32768,
        "layer_types": None,
    },
    only={"use_sliding_window": False, **_ROTARY_ONLY},
    module=lambda fields: _qwen2({**fields, "sliding_window": None}),
    outputs=[
        ("Qwen2Model", {"head": None}),
        ("Qwen2ForSequenceClassification", _CLASSES),
        ("Qwen2ForCausalLM", {}),
    ],
)
