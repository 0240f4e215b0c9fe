"""Hugging Face's models with an encoder: BERT and T5."""

from __future__ import annotations

from typing import Any

import numpy as np

from jdl.interop import names
from jdl.interop.family import ACTIVATIONS_THERE, Config, Family, activation_here, one_token
from jdl.models import EncoderDecoder, Transformer
from jdl.nn.positions import Buckets
from jdl.nn.transformer import BlockConfig


def _bert(fields: Config) -> Transformer:
    block = BlockConfig(
        fields["num_attention_heads"],
        fields["intermediate_size"],
        norm_first=False,
        epsilon=fields["layer_norm_eps"],
        activation=activation_here(fields, "hidden_act"),
    )
    return Transformer(
        fields["vocab_size"],
        fields["hidden_size"],
        fields["num_hidden_layers"],
        block,
        context=fields["max_position_embeddings"],
        types=fields["type_vocab_size"],
        embed_norm=True,
        final_norm=False,
        head="masked",
        dropout=fields["hidden_dropout_prob"],
    )


def _bert_config(module: Transformer, params: Any) -> dict[str, Any]:
    block = module.block
    return {
        "vocab_size": module.vocab_size,
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": block.num_heads,
        "intermediate_size": block.hidden,
        "hidden_act": ACTIVATIONS_THERE[block.activation],
        "layer_norm_eps": block.epsilon,
        "max_position_embeddings": module.context,
        "type_vocab_size": module.types,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), module.dropout),
    }


BERT = Family(
    kind="bert",
    fields={
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.1,
    },
    only={"position_embedding_type": "absolute", "is_decoder": False, "tie_word_embeddings": True},
    module=_bert,
    config=_bert_config,
    outputs=[
        ("BertForSequenceClassification", {"head": int, "pool": "first", "pooler": True}),
        ("BertForTokenClassification", {"head": int}),
        ("BertModel", {"head": None}),
        ("BertModel", {"head": None, "pool": "first", "pooler": True}),
        ("BertForMaskedLM", {}),
        ("BertForPreTraining", {}),
    ],
    example=one_token,
    rules=lambda module: names.BERT_HUGGING_FACE,
    base="bert.",
    heads=["pooler", "transform", "transform_norm", "head_bias", "head"],
    unused=["cls.*", "classifier.*", "qa_outputs.*", "bert.pooler.*", "*.position_ids"],
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
)


def _t5(fields: Config) -> EncoderDecoder:
    gate, _, name = fields["feed_forward_proj"].rpartition("-")
    if gate not in ("", "gated"):
        raise ValueError(f'"feed_forward_proj" is {fields["feed_forward_proj"]!r}; there is only "gated-..."')
    # What is called gated GELU is its approximation by tanh.
    name = "gelu_new" if (gate, name) == ("gated", "gelu") else name
    for field, value in (("dense_act_fn", name), ("is_gated_act", bool(gate))):
        if fields[field] not in (None, value):
            raise ValueError(f'"{field}" is {fields[field]!r}, which is not what "feed_forward_proj" says')
    is_tied, is_scaled, D = fields["tie_word_embeddings"], fields["scale_decoder_outputs"], fields["d_model"]
    block = BlockConfig(
        fields["num_heads"],
        fields["d_ff"],
        head_size=fields["d_kv"],
        relative=Buckets(fields["relative_attention_num_buckets"], fields["relative_attention_max_distance"]),
        scale=1.0,
        norm="rms",
        epsilon=fields["layer_norm_epsilon"],
        activation=activation_here({"feed_forward_proj": name}, "feed_forward_proj"),
        gated=bool(gate),
        use_bias=False,
        init_std=None,
    )
    return EncoderDecoder(
        fields["vocab_size"],
        D,
        fields["num_layers"],
        block,
        fields["num_decoder_layers"],
        positions=None,
        context=fields["n_positions"],
        head="tied" if is_tied else "untied",
        logit_scale=D**-0.5 if (is_tied if is_scaled is None else is_scaled) else 1.0,
        dropout=fields["dropout_rate"],
    )


def _t5_config(module: EncoderDecoder, params: Any) -> dict[str, Any]:
    block = module.block
    buckets = block.relative if isinstance(block.relative, Buckets) else Buckets()
    name = ACTIVATIONS_THERE[block.activation]
    return {
        "vocab_size": module.vocab_size,
        "d_model": module.width,
        "d_kv": block.size_of_head(module.width),
        "d_ff": block.hidden,
        "num_layers": module.depth,
        "num_decoder_layers": module.depth_of_decoder,
        "num_heads": block.num_heads,
        "relative_attention_num_buckets": buckets.count,
        "relative_attention_max_distance": buckets.farthest,
        "layer_norm_epsilon": block.epsilon,
        "feed_forward_proj": f"gated-{name}".replace("gelu_new", "gelu") if block.gated else name,
        "tie_word_embeddings": module.head == "tied",
        "scale_decoder_outputs": module.logit_scale != 1,
        "n_positions": module.context,
        "dropout_rate": module.dropout,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


T5 = Family(
    kind="t5",
    fields={
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_decoder_layers": None,
        "num_heads": 8,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
        "dense_act_fn": None,
        "is_gated_act": None,
        "tie_word_embeddings": True,
        "scale_decoder_outputs": None,
        "n_positions": 512,
        "dropout_rate": 0.1,
    },
    only={"is_encoder_decoder": True, "is_decoder": False},
    module=_t5,
    config=_t5_config,
    outputs=[("T5ForConditionalGeneration", {}), ("T5WithLMHeadModel", {})],
    example=lambda fields: {"source": np.zeros((1, 1), np.int32), "target": np.zeros((1, 1), np.int32)},
    rules=lambda module: names.T5_1_1_HUGGING_FACE if module.block.gated else names.T5_HUGGING_FACE,
    base="",
    heads=["head"],
    unused=["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
    copies=dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
    ),
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },
)
