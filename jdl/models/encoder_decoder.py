"""The Transformer of two stacks: an encoder reads a source, a decoder writes a target.

Axes: B batch, S positions of the source, T positions of the target, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.core import Array
from jdl.models.transformer import POSITIONS, assemble
from jdl.nn import Dense
from jdl.nn.cache import Extension, empty_cache
from jdl.nn.dropout import Dropout
from jdl.nn.linear import float32_dot_general
from jdl.nn.multihead import Look
from jdl.nn.positions import sinusoidal
from jdl.nn.sequence import Sequence, sequence
from jdl.nn.stack import Blocks
from jdl.nn.transformer import BlockConfig


class Stack(linen.Module):
    """Blocks, and the norm after them where norms come first.

    Attributes:
        config: what a block is.
        options: further attributes of `Blocks`.
    """

    config: BlockConfig
    options: Mapping[str, Any]

    def setup(self) -> None:
        self.blocks = Blocks(self.config, **self.options)
        if self.config.norm_first:
            self.norm = self.config.make_norm(self.options["dtype"])

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What `Blocks` gives, normalised."""
        outputs = self.blocks(*arguments, **options)
        if not self.config.norm_first:
            return outputs
        if options.get("cache") is None:
            return self.norm(outputs)
        h_BTD, cache = outputs
        return self.norm(h_BTD), cache

    def remember(self, memory_BSD: Array) -> Any:
        """The keys and values of a memory for each block."""
        return self.blocks.remember(memory_BSD)


class EncoderDecoder(linen.Module):
    """Encoder, decoder with attention to what it gives, and logits of the target.

    `transformer` and `t5` make some. Submodules are ``tokens``, of both sides; ``encoder`` and ``decoder``,
    each with ``blocks`` and, where norms come first, ``norm``; where there are such, ``positions``, and
    ``head``.

    Attributes:
        vocab_size: V, of both sides.
        width: D.
        depth: number of blocks of the encoder.
        decoder_depth: number of blocks of the decoder; as many when None.
        block: what a block of the encoder is. Those of the decoder are causal.
        positions: "sinusoidal" or "learned" embeddings, added to the tokens'; None where attention knows.
        context: how many learned positions there are.
        head: "tied", logits by the tokens' embeddings; "untied", by a matrix of its own.
        logit_scale: of the states before a tied head.
        embed_std: standard deviation of initial embeddings; that of kernels when None, or else 1.
        embed_scale: of the tokens' embeddings.
        dropout: as in `jdl.models.Transformer`.
        stochastic_depth: as in `Blocks`.
        scan: as in `Blocks`.
        remat: as in `Blocks`.
        dtype: of the computation; parameters, softmax and logits are float32.

    Raises:
        ValueError: for inputs of another kind, or a sequence longer than the learned positions.

    Example:
        >>> import jax
        >>> model = EncoderDecoder(10, 8, 1, BlockConfig(2, 16), positions="sinusoidal")
        >>> tokens = jnp.ones((3, 5), jnp.int32)
        >>> inputs = {"source": tokens, "target": {"tokens": tokens[:, :4]}}
        >>> model.init_with_output(jax.random.key(0), inputs)[0].shape
        (3, 4, 10)

    Reference:
        Vaswani et al., "Attention is all you need", 2017, figure 1.
    """

    vocab_size: int
    width: int
    depth: int
    block: BlockConfig
    decoder_depth: int | None = None
    positions: Literal["sinusoidal", "learned"] | None = "sinusoidal"
    context: int = 512
    head: Literal["tied", "untied"] = "tied"
    logit_scale: float = 1.0
    embed_std: float | None = None
    embed_scale: float = 1.0
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    scan: bool = False
    remat: str | None = None
    dtype: Any = None

    @property
    def limits(self) -> dict[str, int]:
        """How many tokens and positions there are, on either side, by which tasks check sequences."""
        return {"tokens": self.vocab_size} | (
            {"positions": self.context} if self.positions == "learned" else {}
        )

    def setup(self) -> None:
        if self.positions not in (None, *POSITIONS):
            raise ValueError(f"positions are None or one of {', '.join(POSITIONS)}; got {self.positions!r}")
        if self.head not in ("tied", "untied"):
            raise ValueError(f'head is "tied" or "untied"; got {self.head!r}')
        init = linen.initializers.normal(self.embed_std or self.block.init_std or 1.0)
        self.tokens = linen.Embed(self.vocab_size, self.width, dtype=self.dtype, embedding_init=init)
        if self.positions == "learned":
            self.learned = linen.Embed(
                self.context, self.width, dtype=self.dtype, embedding_init=init, name="positions"
            )
        self.drop = Dropout(self.dropout)
        options = {
            "depth": self.depth,
            "dropout": self.dropout,
            "stochastic_depth": self.stochastic_depth,
            "scan": self.scan,
            "remat": self.remat,
            "dtype": self.dtype,
        }
        self.encoder = Stack(self.block, options)
        self.decoder = Stack(
            self.decoder_block, options | {"depth": self.depth_of_decoder, "has_memory": True}
        )
        if self.head == "untied":
            self.last = Dense(
                self.vocab_size,
                use_bias=False,
                kernel_init=self.block.kernel_init(),
                dtype=self.dtype,
                dot_general=float32_dot_general,
                name="head",
            )

    @property
    def depth_of_decoder(self) -> int:
        """Number of blocks of the decoder."""
        return self.depth if self.decoder_depth is None else self.decoder_depth

    @property
    def decoder_block(self) -> BlockConfig:
        """What a block of the decoder is: causal, with buckets for the past alone."""
        relative = self.block.relative
        past = None if relative is None else relative.of_the_past()
        return dataclasses.replace(self.block, causal=True, relative=past)

    def __call__(self, inputs: Mapping[str, Any], train: bool = False) -> Array:
        """The logits of a target.

        Args:
            inputs: {"source": a sequence, "target": a sequence}, as `jdl.nn.sequence.sequence` reads them.
                The target is what the decoder reads: a start token, then what it is to write but the last.
            train: with noise.

        Returns:
            [B, T, V] in float32.
        """
        return self.logits(self.hidden(inputs, train))

    def hidden(self, inputs: Mapping[str, Any], train: bool = False) -> Array:
        """The decoder's states [B, T, D], that `logits` takes."""
        if not isinstance(inputs, Mapping) or set(inputs) != {"source", "target"}:
            got = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(f'{type(self).__name__} takes {{"source": ..., "target": ...}}; got {got}')
        source, target = self._read(inputs["source"]), self._read(inputs["target"])
        segments = None
        if source.segments is not None and target.segments is not None:
            segments = target.segments, source.segments
        elif source.segments is not target.segments:
            raise ValueError("where the source has segments the target has too, with the same numbers")
        return self._through(
            self.decoder,
            target,
            train,
            memory=self._through(self.encoder, source, train),
            memory_look=Look(lengths=source.lengths, segments=segments),
        )

    def logits(self, h: Array) -> Array:
        """Float32 logits [..., V] of states [..., D]."""
        if self.head == "untied":
            return self.last(h)
        h, table_VD = linen.dtypes.promote_dtype(h, self.tokens.embedding, dtype=self.dtype)
        h = h * self.logit_scale
        return float32_dot_general(h, table_VD, (((h.ndim - 1,), (1,)), ((), ())))

    def states(self, source: Any) -> Array:
        """The encoder's states [B, S, D] of a source."""
        return self._through(self.encoder, self._read(source), False)

    def encode(self, source: Any) -> dict[str, Any]:
        """What the decoder needs of a source, each leaf with the row first.

        Args:
            source: a sequence without segments.

        Returns:
            {"blocks": keys and values for each block of the decoder, "lengths": int32 [B]}.
        """
        read = self._read(source)
        if read.segments is not None:
            raise ValueError("a source of several segments cannot be encoded for a decoder: one in a row")
        B, S = read.values.shape
        lengths = jnp.full((B,), S, jnp.int32) if read.lengths is None else read.lengths
        return {"blocks": self.decoder.remember(self.states(source)), "lengths": lengths}

    def init_cache(self, batch_size: int, length: int, memory: Mapping[str, Any]) -> dict[str, Any]:
        """An empty cache for `extend`, with the memory in it.

        Args:
            batch_size: B.
            length: room of each row.
            memory: from `encode`, of as many rows.

        Returns:
            {"lengths": int32 [B], "blocks": keys and values of each block, "memory": the memory}.
        """
        if memory["lengths"].shape[0] != batch_size:
            raise ValueError(f"{batch_size} rows need a memory of as many; got {memory['lengths'].shape[0]}")
        if self.positions == "learned" and length > self.context:
            raise ValueError(f"the model has {self.context} learned positions; got a cache of {length}")
        return {
            "lengths": jnp.zeros((batch_size,), jnp.int32),
            "blocks": empty_cache(
                self.block, self.width, self.depth_of_decoder, batch_size, length, self.scan, self.dtype
            ),
            "memory": memory,
        }

    def extend(
        self, cache: Mapping[str, Any], tokens_BT: Array, lengths_B: Array | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """As `jdl.models.Transformer.extend`, with the target's tokens."""
        step, memory = Extension.of(cache, tokens_BT, lengths_B), cache["memory"]
        h_BTD, blocks = self.decoder(
            self._embed(tokens_BT, step.steps[0], False),
            False,
            step.look,
            step.steps[0],
            memory=memory["blocks"],
            memory_look=Look(lengths=memory["lengths"]),
            cache=cache["blocks"],
        )
        return step.checked(self.logits(h_BTD)), {"lengths": step.lengths, "blocks": blocks, "memory": memory}

    def _read(self, inputs: Any) -> Sequence:
        read = sequence(inputs, type(self).__name__)
        if read.types is not None:
            raise ValueError("the model has no types of tokens; got some")
        if self.positions == "learned" and read.values.shape[1] > self.context:
            raise ValueError(
                f"the model has {self.context} learned positions; got a sequence of {read.values.shape[1]}"
            )
        return read

    def _through(self, stack: Stack, given: Sequence, train: bool, **memory: Any) -> Array:
        x_BTD = self._embed(given.values, given.positions, train)
        look = given.look(stack.config.causal)
        h_BTD: Array = stack(x_BTD, train, look, given.positions, real_BT=given.real(), **memory)
        return self.drop(h_BTD, deterministic=not train) if self.block.norm_first else h_BTD

    def _embed(self, tokens: Array, positions: Array, train: bool) -> Array:
        x_BTD = self.tokens(tokens) * self.embed_scale
        if self.positions == "learned":
            x_BTD = x_BTD + self.learned(positions)
        elif self.positions == "sinusoidal":
            x_BTD = x_BTD + sinusoidal(positions, self.width).astype(x_BTD.dtype)
        return self.drop(x_BTD, deterministic=not train)


SIZES = {"base": (512, 6, 8, 2048), "big": (1024, 6, 16, 4096)}
"""Width, depth of each stack, heads, hidden features."""


def transformer(size: str = "base", **options: Any) -> EncoderDecoder:
    """The Transformer for translation, with the norms after or before.

    Args:
        size: "base" or "big".
        **options: further attributes of `EncoderDecoder` and of `BlockConfig`, instead of those of the size.

    Returns:
        The module.

    Raises:
        ValueError: for another size, and TypeError for an option that there is not.

    Example:
        >>> transformer("base", vocab_size=37000).block.num_heads
        8

    Reference:
        Vaswani et al. 2017, table 3.
    """
    if size not in SIZES:
        raise ValueError(f"transformer has the sizes {', '.join(SIZES)}; got {size!r}")
    width, depth, num_heads, hidden = SIZES[size]
    width = options.get("width", width)
    defaults = {
        "vocab_size": 37000,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "hidden": hidden,
        "activation": "relu",
        "norm_first": False,
        "init_std": None,
        "embed_std": width**-0.5,
        "embed_scale": width**0.5,
        "dropout": 0.3 if size == "big" else 0.1,
    }
    return assemble(EncoderDecoder, defaults | options)


def tiny() -> tuple[EncoderDecoder, dict[str, Any]]:
    """A network of one block on each side, with dropout, and a batch of 8 pairs of different lengths."""
    rng = np.random.default_rng(0)
    lengths = np.array([4, 1, 3, 4, 2, 2, 4, 3], np.int32)
    target = rng.integers(0, 7, (8, 5)).astype(np.int32)
    inputs = {
        "source": {"tokens": rng.integers(0, 7, (8, 4)).astype(np.int32), "lengths": lengths},
        "target": {"tokens": target[:, :-1], "lengths": lengths},
    }
    model = transformer(vocab_size=7, width=8, depth=1, num_heads=2, hidden=16)
    return model, {"inputs": inputs, "labels": target[:, 1:]}
