"""T5: an encoder and a decoder with relative positions in buckets, RMSNorm and no biases.

Axes: B batch, S positions of the source, T positions of the target, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jdl.models.encoder_decoder import EncoderDecoder
from jdl.models.transformer import assemble
from jdl.nn.positions import Buckets

SIZES = {
    "small": (512, 6, 8, 64, 2048),
    "base": (768, 12, 12, 64, 3072),
    "large": (1024, 24, 16, 64, 4096),
    "3b": (1024, 24, 32, 128, 16384),
    "11b": (1024, 24, 128, 128, 65536),
}
SIZES_1_1 = {
    "1.1-small": (512, 8, 6, 64, 1024),
    "1.1-base": (768, 12, 12, 64, 2048),
    "1.1-large": (1024, 24, 16, 64, 2816),
    "1.1-xl": (2048, 24, 32, 64, 5120),
    "1.1-xxl": (4096, 24, 64, 64, 10240),
}
"""Width, depth of each stack, heads, their size, hidden features."""


def t5(size: str = "small", **options: Any) -> EncoderDecoder:
    """T5, or a network like it.

    Args:
        size: "small", "base", "large", "3b" or "11b"; or one of version 1.1 (gated GELU, a head of its own),
            "1.1-small" to "1.1-xxl".
        **options: further attributes of `EncoderDecoder` and of `BlockConfig`, instead of those of the size.

    Returns:
        The module.

    Raises:
        ValueError: for another size, and TypeError for an option that there is not.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model, tokens = t5("small"), jnp.zeros((1, 8), jnp.int32)
        >>> inputs = {"source": tokens, "target": tokens}
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
        >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
        60506624

    Reference:
        Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
        2020, sections 2.1 and 3.7; the gated form: Shazeer, "GLU variants improve Transformer", 2020.
    """
    sizes = SIZES | SIZES_1_1
    if size not in sizes:
        raise ValueError(f"t5 has the sizes {', '.join(sizes)}; got {size!r}")
    width, depth, num_heads, head_size, hidden = sizes[size]
    width, is_newer = options.get("width", width), size in SIZES_1_1
    defaults = {
        "vocab_size": 32128,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "head_size": head_size,
        "hidden": hidden,
        "positions": None,
        "relative": Buckets(32, 128),
        "scale": 1.0,
        "norm": "rms",
        "epsilon": 1e-6,
        "activation": "gelu_tanh" if is_newer else "relu",
        "gated": is_newer,
        "use_bias": False,
        "init_std": None,
        "head": "untied" if is_newer else "tied",
        # Tied embeddings of variance 1 would make logits of variance D.
        "logit_scale": 1.0 if is_newer else width**-0.5,
    }
    return assemble(EncoderDecoder, defaults | options)


def tiny() -> tuple[EncoderDecoder, dict[str, Any]]:
    """A network of one block on each side, with dropout, and a batch of 8 pairs of different lengths."""
    rng = np.random.default_rng(0)
    lengths = np.array([4, 1, 3, 4, 2, 2, 4, 3], np.int32)
    target = rng.integers(0, 7, (8, 5)).astype(np.int32)
    inputs = {
        "source": {"tokens": rng.integers(0, 7, (8, 4)).astype(np.int32), "lengths": lengths},
        "target": target[:, :-1],
    }
    size: dict[str, Any] = {"width": 8, "depth": 1, "num_heads": 2, "head_size": 4, "hidden": 16}
    model = t5(vocab_size=7, **size, relative=Buckets(8, 16), dropout=0.1)
    return model, {"inputs": inputs, "labels": target[:, 1:]}
