"""BERT: an encoder trained to fill in tokens.

Axes: B batch, T positions, D model, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jdl.models.transformer import Transformer, assemble

SIZES = {
    "tiny": (128, 2, 2),
    "mini": (256, 4, 4),
    "small": (512, 4, 8),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
"""Width, depth and heads."""


def bert(size: str = "base", **options: Any) -> Transformer:
    """BERT for masked tokens, or for whatever else with another head.

    ``bert("base", head=2, pool="first", pooler=True)`` classifies sequences in two classes, ``head=9`` alone
    tokens in nine, and ``head=None`` gives states.

    Args:
        size: "tiny", "mini", "small", "medium", "base" or "large".
        **options: further attributes of `Transformer` and of `BlockConfig`, instead of those of the size.

    Returns:
        The module.

    Raises:
        ValueError: for another size, and TypeError for an option that there is not.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = bert("base", head=None, pool="first", pooler=True)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        109482240

    Reference:
        Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of deep bidirectional Transformers for language
        understanding", 2019; the small ones: Turc, Chang, Lee and Toutanova, "Well-read students learn
        better: On the importance of pre-training compact models", 2019.
    """
    if size not in SIZES:
        raise ValueError(f"bert has the sizes {', '.join(SIZES)}; got {size!r}")
    width, depth, num_heads = SIZES[size]
    defaults = {
        "vocab_size": 30522,
        "context": 512,
        "types": 2,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "hidden": 4 * options.get("width", width),
        "norm_first": False,
        "epsilon": 1e-12,
        "embed_norm": True,
        "final_norm": False,
        "head": "masked",
    }
    return assemble(Transformer, defaults | options)


def tiny() -> tuple[Transformer, dict[str, Any]]:
    """A network of one block, with dropout, and a batch of 8 rows of up to 5 tokens."""
    rng = np.random.default_rng(0)
    inputs = {
        "tokens": rng.integers(0, 7, (8, 5)).astype(np.int32),
        "lengths": np.array([5, 1, 3, 4, 5, 2, 5, 3], np.int32),
        "types": rng.integers(0, 2, (8, 5)).astype(np.int32),
    }
    model = bert(vocab_size=7, context=5, width=8, depth=1, num_heads=2, dropout=0.1)
    return model, {"inputs": inputs, "labels": inputs["tokens"]}
