"""The peer of `jdl.models.gpt` in PyTorch: GPT-2's network, with a cache of keys and values.

PyTorch is imported where a network is made, since only comparisons need it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

NAMES: tuple[tuple[str, ...], ...] = (
    ("tokens", "tokens"),
    ("positions", "positions"),
    ("blocks/block{b}/norm1", "blocks.{b-1}.norm1"),
    *(
        (f"blocks/block{{b}}/attention/{name}", "blocks.{b-1}.qkv", "kernel", f"{i}/3")
        for i, name in enumerate(("query", "key", "value"))
    ),
    ("blocks/block{b}/attention/out", "blocks.{b-1}.out"),
    ("blocks/block{b}/norm2", "blocks.{b-1}.norm2"),
    ("blocks/block{b}/mlp/expand", "blocks.{b-1}.expand"),
    ("blocks/block{b}/mlp/project", "blocks.{b-1}.project"),
    ("norm", "norm"),
)
"""The map between the names of their parameters."""


def gpt(
    vocab_size: int,
    context: int,
    width: int,
    depth: int,
    num_heads: int,
    *,
    bias: bool = True,
    dropout: float = 0.0,
    approximate: str = "tanh",
) -> Any:
    """A GPT of tied embeddings, whose weights begin as GPT-2's.

    Args:
        vocab_size: V.
        context: positions.
        width: D.
        depth: number of blocks.
        num_heads: H.
        bias: whether the layers add biases, those of the norms among them.
        dropout: of embeddings, attention's weights, and what is added to the residual stream.
        approximate: how GELU is, as PyTorch names it; "none" for exactly.

    Returns:
        A `torch.nn.Module` from tokens [B, T] to logits [B, T, V]. ``caches(rows, room)`` makes a cache, a
        list of a [2, B, H, room, K] for each block, and ``extend(tokens, caches, start)`` gives the logits of
        the last of some tokens [B, T] that stand at ``start``, and writes them into the cache.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    head_size, linear = width // num_heads, functools.partial(nn.Linear, bias=bias)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(width, bias=bias) for _ in range(2))
            self.qkv, self.out = linear(width, 3 * width), linear(width, width)
            self.expand, self.project = linear(width, 4 * width), linear(4 * width, width)
            self.drop = nn.Dropout(dropout)

        def forward(self, x: Any, cache: Any = None, start: int = 0) -> Any:
            B, T, _ = x.shape
            q, k, v = (
                y.view(B, T, num_heads, head_size).transpose(1, 2)
                for y in self.qkv(self.norm1(x)).split(width, -1)
            )
            if cache is not None:
                cache[0, :, :, start : start + T], cache[1, :, :, start : start + T] = k, v
                k, v = cache[:, :, :, : start + T]
            # A single new token sees all that are there.
            rate = dropout if self.training else 0.0
            y = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=T > 1)
            x = x + self.drop(self.out(y.transpose(1, 2).reshape(B, T, width)))
            h = functional.gelu(self.expand(self.norm2(x)), approximate=approximate)
            return x + self.drop(self.project(h))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(context, width)
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            self.norm = nn.LayerNorm(width, bias=bias)
            self.drop = nn.Dropout(dropout)

        def forward(self, tokens: Any) -> Any:
            x = self.drop(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.tokens.weight.T

        def caches(self, rows: int, room: int) -> list[Any]:
            return [torch.zeros(2, rows, num_heads, room, head_size) for _ in range(depth)]

        def extend(self, tokens: Any, caches: list[Any], start: int) -> Any:
            x = self.tokens(tokens) + self.positions.weight[start : start + tokens.shape[1]]
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, cache, start)
            return self.norm(x[:, -1]) @ self.tokens.weight.T

    network = GPT()
    for name, weight in network.named_parameters():
        if weight.dim() > 1:
            added = name.endswith(("out.weight", "project.weight"))
            nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * depth) if added else 1))
        elif name.endswith("bias"):
            nn.init.zeros_(weight)
    return network
