"""The blocks of a Transformer: one of each, and a stack of them, for encoders and decoders alike.

Axes: B batch, T positions, S positions of a memory, D model, F hidden, H heads, G heads of keys and values,
K head size, L layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from jdl.core import Array
from jdl.nn.activations import gelu, silu
from jdl.nn.dropout import Dropout
from jdl.nn.linear import Dense
from jdl.nn.moe import Experts, MixtureOfExperts
from jdl.nn.multihead import PLAIN, KeyValues, Look, MultiHeadAttention
from jdl.nn.normalization import LayerNorm
from jdl.nn.positions import Alibi, Buckets, Rotary
from jdl.nn.residual import residual

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(gelu, approximate=False),
    "gelu_tanh": functools.partial(gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": silu,
}
NORMS = ("layer", "rms")


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What a block is: the part of a Transformer that is the same on every layer.

    Attributes:
        num_heads: H.
        hidden: F, features between the two layers of the feed-forward part.
        num_kv_heads: G; as many as heads when None.
        head_size: K; D / H when None.
        causal: a position sees itself and those before.
        window: a position sees those fewer than so many steps away.
        rotary: rotation of queries and keys by their positions.
        relative: bias of attention by distance: linear, or learned for buckets of distances and shared by
            the layers.
        scale: of attention's logits; 1 / sqrt(K) when None.
        norm: "layer" or "rms".
        norm_first: normalise what goes into attention and feed-forward, not the sum of what comes out.
        epsilon: added to variances.
        activation: "gelu", "gelu_tanh", "relu" or "silu".
        gated: feed-forward is project(activation(gate(x)) * expand(x)), not project(activation(expand(x))).
        use_bias: whether the layers add biases, those of LayerNorm among them.
        qkv_bias: whether those of queries, keys and values do; like the others when None.
        experts: a mixture of experts in place of the feed-forward part.
        init_std: standard deviation of initial kernels; None scales each to its inputs, 1 / sqrt(inputs).
        residual_scale: of the initial kernels whose outputs are added to the residual stream.
        chunk: attention in blocks of so many positions, in memory linear in T.

    Raises:
        ValueError: for a norm or activation that is not there, or heads that do not divide.

    Example:
        >>> llama_like = BlockConfig(8, 1024, num_kv_heads=2, causal=True, rotary=Rotary(), norm="rms",
        ...                          activation="silu", gated=True, use_bias=False)
        >>> llama_like.size_of_head(256)
        32
    """

    num_heads: int
    hidden: int
    num_kv_heads: int | None = None
    head_size: int | None = None
    causal: bool = False
    window: int | None = None
    rotary: Rotary | None = None
    relative: Alibi | Buckets | None = None
    scale: float | None = None
    norm: str = "layer"
    norm_first: bool = True
    epsilon: float = 1e-5
    activation: str = "gelu"
    gated: bool = False
    use_bias: bool = True
    qkv_bias: bool | None = None
    experts: Experts | None = None
    init_std: float | None = 0.02
    residual_scale: float = 1.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"there are the activations {', '.join(ACTIVATIONS)}; got {self.activation!r}")
        if self.norm not in NORMS:
            raise ValueError(f"there are the norms {', '.join(NORMS)}; got {self.norm!r}")
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} heads of keys and values equally"
            )

    def size_of_head(self, width: int) -> int:
        """K, for a model of D features."""
        return self.head_size or width // self.num_heads

    def kernel_init(self, scale: float = 1.0, batch_axis: tuple[int, ...] = ()) -> Any:
        """Initialises a kernel, with a standard deviation ``scale`` times the usual."""
        if self.init_std is None:
            return linen.initializers.variance_scaling(scale**2, "fan_in", "normal", batch_axis=batch_axis)
        return linen.initializers.normal(scale * self.init_std)

    def query_init(self) -> Any:
        """Initialises the kernel of queries: smaller where the logits are not scaled down."""
        if self.scale != 1 or self.init_std is not None or self.head_size is None:
            return None
        return self.kernel_init(self.head_size**-0.5)

    def make_norm(self, dtype: Any, name: str | None = None) -> linen.Module:
        """A normalisation of the last axis."""
        if self.norm == "rms":
            return linen.RMSNorm(self.epsilon, dtype, name=name)
        return LayerNorm(epsilon=self.epsilon, dtype=dtype, use_bias=self.use_bias, name=name)


class FeedForward(linen.Module):
    """Two layers with an activation between them, the first gated or not.

    Submodules are ``expand``, ``project`` and, where gated, ``gate``.

    Attributes:
        config: what the block is.
        dtype: of the computation.

    Reference:
        Vaswani et al. 2017, equation 2; gated: Shazeer, "GLU variants improve Transformer", 2020, equation 6.
    """

    config: BlockConfig
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BTD: Array) -> Array:
        """[B, T, D] to the same shape."""
        config, D = self.config, x_BTD.shape[-1]
        dense = functools.partial(Dense, use_bias=config.use_bias, dtype=self.dtype)
        init, activation = config.kernel_init(), ACTIVATIONS[config.activation]
        h_BTF = dense(config.hidden, kernel_init=init, name="expand")(x_BTD)
        if config.gated:
            h_BTF = activation(dense(config.hidden, kernel_init=init, name="gate")(x_BTD)) * h_BTF
        else:
            h_BTF = activation(h_BTF)
        return dense(D, kernel_init=config.kernel_init(config.residual_scale), name="project")(h_BTF)


class Block(linen.Module):
    """Attention to itself, to a memory where there is one, and a feed-forward part, each with a residual.

    x + f(norm(x)) with the norm first, norm(x + f(x)) otherwise. Submodules are ``norm1``, ``attention``,
    ``norm2``, and ``mlp`` or ``moe``; and ``norm_cross`` and ``cross`` where ``has_memory``.

    Attributes:
        config: what the block is.
        has_memory: whether it attends to a memory too.
        dropout: of attention's weights, and of what is added to the residual stream.
        dtype: of the computation.

    Example:
        >>> x = jnp.ones((2, 5, 8))
        >>> (y, _), variables = Block(BlockConfig(2, 16)).init_with_output(jax.random.key(0), x)
        >>> y.shape, sorted(variables["params"])
        ((2, 5, 8), ['attention', 'mlp', 'norm1', 'norm2'])

    Reference:
        Vaswani et al. 2017, section 3.1; norm first: Xiong et al., "On layer normalization in the Transformer
        architecture", 2020.
    """

    config: BlockConfig
    has_memory: bool = False
    dropout: float = 0.0
    dtype: Any = None

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        attention = functools.partial(
            MultiHeadAttention,
            config.num_heads,
            config.head_size,
            self.dropout,
            config.use_bias if config.qkv_bias is None else config.qkv_bias,
            dtype,
            config.use_bias,
            config.num_kv_heads,
            scale=config.scale,
            chunk=config.chunk,
            kernel_init=config.kernel_init(),
            query_init=config.query_init(),
            out_init=config.kernel_init(config.residual_scale),
        )
        self.norm1 = config.make_norm(dtype)
        self.attention = attention(causal=config.causal, window=config.window)
        if self.has_memory:
            self.norm_cross = config.make_norm(dtype)
            self.cross = attention()
        self.norm2 = config.make_norm(dtype)
        if config.experts is None:
            self.mlp = FeedForward(config, dtype)
        else:
            self.moe = MixtureOfExperts(
                config.experts,
                config.hidden,
                ACTIVATIONS[config.activation],
                config.gated,
                config.kernel_init(batch_axis=(0,)),
                config.kernel_init(config.residual_scale, batch_axis=(0,)),
                dtype,
            )
        self.drop = Dropout(self.dropout)

    def __call__(
        self,
        x_BTD: Array,
        train: bool = False,
        look: Look = PLAIN,
        memory: Array | KeyValues | None = None,
        memory_look: Look = PLAIN,
        cache: KeyValues | None = None,
        layer: Array | None = None,
        drop_rate: Array | float | None = None,
        real_BT: Array | None = None,
    ) -> tuple[Array, KeyValues | None]:
        """One block.

        Args:
            x_BTD: the residual stream.
            train: with noise.
            look: what attention is told of the positions.
            memory: [B, S, D], or its keys and values.
            memory_look: what attention to the memory is told.
            cache: keys and values of earlier positions.
            layer: which one this is, where a cache and the keys and values of a memory are of several.
            drop_rate: probability of skipping each part in training, for each row apart.
            real_BT: which positions count in the losses of experts.

        Returns:
            The residual stream, and the cache with x in it.
        """

        def add(x_BTD: Array, norm: linen.Module, part: Callable[[Array], Array]) -> Array:
            h_BTD = part(norm(x_BTD) if self.config.norm_first else x_BTD)
            h_BTD = self.drop(h_BTD, deterministic=not train)
            if train and drop_rate is not None:
                h_BTD = _skip_rows(h_BTD, drop_rate, self.make_rng("dropout"))
            x_BTD = residual(x_BTD, h_BTD)
            return x_BTD if self.config.norm_first else norm(x_BTD)

        def to_itself(h_BTD: Array) -> Array:
            nonlocal cache
            h = self.attention(h_BTD, None, None, train, look, cache, layer)
            if cache is None:
                return h
            h_BTD, cache = h
            return h_BTD

        def to_memory(h_BTD: Array) -> Array:
            return self.cross(h_BTD, memory, None, train, memory_look, None, layer)

        def feed_forward(h_BTD: Array) -> Array:
            return self.mlp(h_BTD) if self.config.experts is None else self.moe(h_BTD, train, real_BT)

        x_BTD = add(x_BTD, self.norm1, to_itself)
        if self.has_memory:
            x_BTD = add(x_BTD, self.norm_cross, to_memory)
        return add(x_BTD, self.norm2, feed_forward), cache

    def remember(self, memory_BSD: Array) -> KeyValues:
        """The keys and values of a memory."""
        return self.cross(None, memory_BSD)


def _skip_rows(h_BTD: Array, rate: Array | float, key: Array) -> Array:
    """Stochastic depth whose rate may be traced."""
    kept = jax.random.uniform(key, (h_BTD.shape[0], 1, 1)) >= rate
    return jnp.where(kept, h_BTD / (1 - rate), 0.0).astype(h_BTD.dtype)
