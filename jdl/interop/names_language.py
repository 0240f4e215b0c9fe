"""Maps of names of published language models: GPT-2, BERT, Llama and its kin, T5.

All read Hugging Face's ``state_dict``; `jdl.interop.from_hugging_face` reads the whole folder. Models with
``scan`` are laid out otherwise: `jdl.nn.unstack_layers` first.
"""

from __future__ import annotations

from collections.abc import Sequence

_GPT2 = "transformer.h.{b-1}"

# GPT-2 keeps kernels as [inputs, outputs], and those of queries, keys and values side by side.
GPT2_HUGGING_FACE: list[tuple[str, ...]] = [
    ("tokens", "transformer.wte"),
    ("positions", "transformer.wpe"),
    ("blocks/block{b}/norm1", f"{_GPT2}.ln_1"),
    *[
        (f"blocks/block{{b}}/attention/{name}", f"{_GPT2}.attn.c_attn", "same", f"{i}/3")
        for i, name in enumerate(("query", "key", "value"))
    ],
    ("blocks/block{b}/attention/out", f"{_GPT2}.attn.c_proj", "same"),
    ("blocks/block{b}/norm2", f"{_GPT2}.ln_2"),
    ("blocks/block{b}/mlp/expand", f"{_GPT2}.mlp.c_fc", "same"),
    ("blocks/block{b}/mlp/project", f"{_GPT2}.mlp.c_proj", "same"),
    ("norm", "transformer.ln_f"),
    ("head", "lm_head"),
]
"""`jdl.models.gpt` from Hugging Face transformers (GPT2LMHeadModel)."""

_LLAMA = "model.layers.{b-1}"

LLAMA_HUGGING_FACE: list[tuple[str, ...]] = [
    ("tokens", "model.embed_tokens"),
    ("blocks/block{b}/norm1", f"{_LLAMA}.input_layernorm"),
    ("blocks/block{b}/attention/query", f"{_LLAMA}.self_attn.q_proj"),
    ("blocks/block{b}/attention/key", f"{_LLAMA}.self_attn.k_proj"),
    ("blocks/block{b}/attention/value", f"{_LLAMA}.self_attn.v_proj"),
    ("blocks/block{b}/attention/out", f"{_LLAMA}.self_attn.o_proj"),
    ("blocks/block{b}/norm2", f"{_LLAMA}.post_attention_layernorm"),
    ("blocks/block{b}/mlp/expand", f"{_LLAMA}.mlp.up_proj"),
    ("blocks/block{b}/mlp/gate", f"{_LLAMA}.mlp.gate_proj"),
    ("blocks/block{b}/mlp/project", f"{_LLAMA}.mlp.down_proj"),
    ("norm", "model.norm"),
    ("head", "lm_head"),
]
"""`jdl.models.llama` from Hugging Face transformers (LlamaForCausalLM, and Mistral's and Qwen2's)."""

_BERT = "bert.encoder.layer.{b-1}"

BERT_HUGGING_FACE: list[tuple[str, ...]] = [
    ("tokens", "bert.embeddings.word_embeddings"),
    ("positions", "bert.embeddings.position_embeddings"),
    ("types", "bert.embeddings.token_type_embeddings"),
    ("embed_norm", "bert.embeddings.LayerNorm"),
    ("blocks/block{b}/attention/query", f"{_BERT}.attention.self.query"),
    ("blocks/block{b}/attention/key", f"{_BERT}.attention.self.key"),
    ("blocks/block{b}/attention/value", f"{_BERT}.attention.self.value"),
    ("blocks/block{b}/attention/out", f"{_BERT}.attention.output.dense"),
    ("blocks/block{b}/norm1", f"{_BERT}.attention.output.LayerNorm"),
    ("blocks/block{b}/mlp/expand", f"{_BERT}.intermediate.dense"),
    ("blocks/block{b}/mlp/project", f"{_BERT}.output.dense"),
    ("blocks/block{b}/norm2", f"{_BERT}.output.LayerNorm"),
    ("transform", "cls.predictions.transform.dense"),
    ("transform_norm", "cls.predictions.transform.LayerNorm"),
    ("head_bias", "cls.predictions.bias"),
    ("pooler", "bert.pooler.dense"),
    ("head", "classifier"),
]
"""`jdl.models.bert` from Hugging Face transformers (BertForMaskedLM, BertForSequenceClassification, ...)."""


def _t5(expand: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    rules: list[tuple[str, ...]] = [("tokens", "shared"), ("head", "lm_head")]
    for side, last in (("encoder", 1), ("decoder", 2)):
        ours, theirs = f"{side}/blocks/block{{b}}", f"{side}.block.{{b-1}}.layer"
        parts = [("attention", "norm1", f"{theirs}.0", "SelfAttention")]
        if side == "decoder":
            parts.append(("cross", "norm_cross", f"{theirs}.1", "EncDecAttention"))
        for attention, norm, layer, name in parts:
            rules.append((f"{ours}/{norm}", f"{layer}.layer_norm"))
            for part in ("query", "key", "value", "out"):
                rules.append((f"{ours}/{attention}/{part}", f"{layer}.{name}.{part[0]}"))
        rules += [
            (f"{side}/blocks/relative", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"),
            (f"{ours}/norm2", f"{theirs}.{last}.layer_norm"),
            *[(f"{ours}/mlp/{part}", f"{theirs}.{last}.DenseReluDense.{name}") for part, name in expand],
            (f"{ours}/mlp/project", f"{theirs}.{last}.DenseReluDense.wo"),
            (f"{side}/norm", f"{side}.final_layer_norm"),
        ]
    return rules


T5_HUGGING_FACE = _t5([("expand", "wi")])
"""`jdl.models.t5` from Hugging Face transformers (T5ForConditionalGeneration)."""

T5_1_1_HUGGING_FACE = _t5([("gate", "wi_0"), ("expand", "wi_1")])
"""`jdl.models.t5` of version 1.1, whose feed-forward parts are gated, from Hugging Face transformers."""
