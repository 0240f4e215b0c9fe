"""Llama: a decoder with rotary positions, RMSNorm, gated feed-forward parts and no biases.

Axes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jdl.models.transformer import Transformer, assemble
from jdl.nn.moe import Experts
from jdl.nn.positions import Llama3Scaling, Rotary

_LLAMA3 = {"vocab_size": 128256, "rotary": Rotary(500_000.0), "context": 8192}
SIZES: dict[str, tuple[int, int, int, int, int, dict[str, Any]]] = {
    "2-7b": (4096, 32, 32, 32, 11008, {}),
    "2-13b": (5120, 40, 40, 40, 13824, {}),
    "2-70b": (8192, 80, 64, 8, 28672, {}),
    "3-8b": (4096, 32, 32, 8, 14336, _LLAMA3),
    "3-70b": (8192, 80, 64, 8, 28672, _LLAMA3),
    "3.2-1b": (
        2048,
        16,
        32,
        8,
        8192,
        {
            "vocab_size": 128256,
            "head": "tied",
            "rotary": Rotary(500_000.0, scaling=Llama3Scaling(32.0)),
            "context": 131072,
        },
    ),
    "mistral-7b": (4096, 32, 32, 8, 14336, {"window": 4096, "context": 32768}),
    "mixtral-8x7b": (
        4096,
        32,
        32,
        8,
        14336,
        {"experts": Experts(8, 2), "rotary": Rotary(1_000_000.0), "context": 32768},
    ),
}
"""Width, depth, heads, heads of keys and values, hidden features, and what else differs."""


def llama(size: str = "2-7b", **options: Any) -> Transformer:
    """Llama 2 or 3, or a network like it.

    Args:
        size: "2-7b", "2-13b", "2-70b", "3-8b", "3-70b", "3.2-1b", "mistral-7b" (grouped queries and a window)
            or "mixtral-8x7b" (a mixture of experts).
        **options: further attributes of `Transformer` and of `BlockConfig`, instead of those of the size.

    Returns:
        The module.

    Raises:
        ValueError: for another size, or another width without its depth, heads and hidden features; and
            TypeError for an option that there is not.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = llama("2-7b")
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        6738415616

    Reference:
        Touvron et al., "Llama 2: Open foundation and fine-tuned chat models", 2023; Grattafiori et al., "The
        Llama 3 herd of models", 2024; Jiang et al., "Mistral 7B", 2023; Jiang et al., "Mixtral of experts",
        2024.
    """
    if size not in SIZES:
        raise ValueError(f"llama has the sizes {', '.join(SIZES)}; got {size!r}")
    width, depth, num_heads, num_kv_heads, hidden, others = SIZES[size]
    missing = [name for name in ("depth", "num_heads", "num_kv_heads", "hidden") if name not in options]
    if missing and options.get("width", width) != width:
        raise ValueError(f"another width than that of {size} needs its own {', '.join(missing)} too")
    defaults = {
        "vocab_size": 32000,
        "context": 4096,
        "positions": None,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "hidden": hidden,
        "causal": True,
        "rotary": Rotary(),
        "norm": "rms",
        "activation": "silu",
        "gated": True,
        "use_bias": False,
        "head": "untied",
    }
    return assemble(Transformer, defaults | others | options)


def tiny() -> tuple[Transformer, dict[str, np.ndarray]]:
    """A network of grouped queries and experts, with dropout, and a batch of 8 rows of 5 tokens."""
    tokens = np.random.default_rng(0).integers(0, 7, (8, 6)).astype(np.int32)
    size: dict[str, Any] = {"width": 8, "depth": 1, "num_heads": 2, "num_kv_heads": 1, "hidden": 12}
    model = llama(vocab_size=7, **size, experts=Experts(3, balance=0.1, z=0.01), dropout=0.1)
    return model, {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
