"""GPT: a decoder of learned positions, trained to say the next token.

Axes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jdl.models.transformer import Transformer, assemble

SIZES = {
    "small": (768, 12, 12),
    "medium": (1024, 24, 16),
    "large": (1280, 36, 20),
    "xl": (1600, 48, 25),
}
"""Width, depth and heads of GPT-2."""


def gpt(size: str = "small", **options: Any) -> Transformer:
    """GPT-2, or a network like it.

    Args:
        size: "small" (124 M parameters), "medium" (355 M), "large" (774 M) or "xl" (1,558 M).
        **options: further attributes of `Transformer` and of `BlockConfig`, instead of those of the size:
            ``gpt(width=192, depth=6, num_heads=6, vocab_size=65, context=128)``.

    Returns:
        The module.

    Raises:
        ValueError: for another size, and TypeError for an option that there is not.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = gpt("small")
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        124439808

    Reference:
        Radford, Wu, Child, Luan, Amodei and Sutskever, "Language models are unsupervised multitask learners",
        2019, table 2. Residual layers start smaller by 1 / sqrt(2 depth), as there in section 2.3.
    """
    if size not in SIZES:
        raise ValueError(f"gpt has the sizes {', '.join(SIZES)}; got {size!r}")
    width, depth, num_heads = SIZES[size]
    depth = options.get("depth", depth)
    defaults = {
        "vocab_size": 50257,
        "context": 1024,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "hidden": 4 * options.get("width", width),
        "causal": True,
        "activation": "gelu_tanh",
        "residual_scale": (2 * max(depth, 1)) ** -0.5,
    }
    return assemble(Transformer, defaults | options)


def tiny() -> tuple[Transformer, dict[str, np.ndarray]]:
    """A network of two blocks in a loop, with dropout, and a batch of 8 rows of 5 tokens."""
    tokens = np.random.default_rng(0).integers(0, 7, (8, 6)).astype(np.int32)
    model = gpt(vocab_size=7, context=5, width=8, depth=2, num_heads=2, dropout=0.1, scan=True)
    return model, {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
