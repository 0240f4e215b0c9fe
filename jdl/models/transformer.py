"""A Transformer with one stack: language models, encoders, classifiers of sequences.

Axes: B batch, T positions, S room of a cache, C features of a float sequence, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.core import Array, by_example
from jdl.nn import Dense
from jdl.nn.cache import Extension, empty_cache
from jdl.nn.dropout import Dropout
from jdl.nn.linear import float32_dot_general
from jdl.nn.positions import sinusoidal
from jdl.nn.sequence import Sequence, sequence
from jdl.nn.stack import Blocks
from jdl.nn.transformer import ACTIVATIONS, BlockConfig

POSITIONS = ("learned", "sinusoidal")
POOLS = ("first", "mean", "last")


class Transformer(linen.Module):
    """Embeddings, blocks, a norm, a head: a language model where it is causal, an encoder otherwise.

    `gpt`, `llama` and `bert` make some. Submodules are ``tokens``; where there are such, ``positions``,
    ``types`` and ``embed_norm``; ``blocks``; ``norm``; and the head's.

    Attributes:
        vocab_size: V; None for sequences of floats, which ``tokens`` then projects.
        width: D.
        depth: number of blocks.
        block: what a block is.
        positions: "learned" or "sinusoidal" embeddings, added to the tokens'; None where attention knows of
            positions itself, or nothing is to.
        context: how many learned positions there are; of rotary ones, how many the model was trained on.
        types: number of types of tokens, whose embeddings are added; 0 for none.
        embed_norm: normalise the sum of embeddings.
        final_norm: normalise what the last block gives.
        head: what comes out: "tied", logits by the tokens' embeddings; "untied", by ``head``, a matrix of its
            own; "masked", by BERT's ``transform``, ``transform_norm``, the tokens' embeddings and
            ``head_bias``; a number, so many outputs of a layer ``head`` with a bias; None, hidden states.
        pool: one output for each sequence, of its "first" or "last" position or the "mean" of all; None for
            one at each position.
        pooler: put pooled states through a layer ``pooler`` and tanh.
        embed_std: standard deviation of initial embeddings; that of kernels when None.
        embed_scale: of the tokens' embeddings.
        dropout: of embeddings, attention's weights, and what is added to the residual stream.
        stochastic_depth: as in `Blocks`.
        scan: as in `Blocks`.
        remat: as in `Blocks`.
        dtype: of the computation; parameters, softmax and logits are float32.

    Raises:
        ValueError: for inputs of another kind, a sequence longer than the learned positions, segments that
            would be pooled, or an unknown way to know positions, to pool, or to come out.

    Example:
        >>> import jax
        >>> model = Transformer(10, 8, 2, BlockConfig(2, 16, causal=True))
        >>> logits, variables = model.init_with_output(jax.random.key(0), jnp.ones((3, 5), jnp.int32))
        >>> logits.shape, sorted(variables["params"])
        ((3, 5, 10), ['blocks', 'norm', 'positions', 'tokens'])

    Reference:
        Vaswani et al., "Attention is all you need", 2017.
    """

    vocab_size: int | None
    width: int
    depth: int
    block: BlockConfig
    positions: Literal["learned", "sinusoidal"] | None = "learned"
    context: int = 1024
    types: int = 0
    embed_norm: bool = False
    final_norm: bool = True
    head: Literal["tied", "untied", "masked"] | int | None = "tied"
    pool: Literal["first", "mean", "last"] | None = None
    pooler: bool = False
    embed_std: float | None = None
    embed_scale: float = 1.0
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    scan: bool = False
    remat: str | None = None
    dtype: Any = None

    @property
    def causal(self) -> bool:
        """Whether a position sees none after it."""
        return self.block.causal

    @property
    def limits(self) -> dict[str, int]:
        """How many tokens, positions and types there are, by which tasks check sequences."""
        known = {"tokens": self.vocab_size, "types": self.types or None}
        if self.positions == "learned":
            known["positions"] = self.context
        return {part: count for part, count in known.items() if count is not None}

    def setup(self) -> None:
        if self.positions not in (None, *POSITIONS):
            raise ValueError(f"positions are None or one of {', '.join(POSITIONS)}; got {self.positions!r}")
        if self.pool not in (None, *POOLS):
            raise ValueError(f"pool is None or one of {', '.join(POOLS)}; got {self.pool!r}")
        if self.pooler and self.pool is None:
            raise ValueError('a pooler needs a pool, such as pool="first"')
        heads = ("tied", "untied", "masked")
        is_number = isinstance(self.head, int) and not isinstance(self.head, bool)
        if self.head is not None and not is_number and self.head not in heads:
            raise ValueError(f"head is None, a number or one of {', '.join(heads)}; got {self.head!r}")
        if self.vocab_size is None and self.head in heads:
            raise ValueError(f"a model of floats has no vocabulary for its head {self.head!r}: give a number")
        D, dtype = self.width, self.dtype
        if self.vocab_size is None:
            self.tokens: Any = Dense(D, kernel_init=self.block.kernel_init(), dtype=dtype)
        else:
            self.tokens = self._embedding(self.vocab_size)
        if self.positions == "learned":
            self.learned = self._embedding(self.context, "positions")
        if self.types:
            self.typed = self._embedding(self.types, "types")
        if self.embed_norm:
            self.normed = self.block.make_norm(dtype, "embed_norm")
        self.drop = Dropout(self.dropout)
        self.blocks = Blocks(
            self.block,
            self.depth,
            dropout=self.dropout,
            stochastic_depth=self.stochastic_depth,
            scan=self.scan,
            remat=self.remat,
            dtype=dtype,
        )
        if self.final_norm:
            self.norm = self.block.make_norm(dtype)
        init = self.block.kernel_init()
        if self.pooler:
            self.pooled = Dense(D, kernel_init=init, dtype=dtype, name="pooler")
        if self.head == "masked":
            self.transform = Dense(D, kernel_init=init, dtype=dtype)
            self.transform_norm = self.block.make_norm(dtype)
            self.head_bias = self.param("head_bias", linen.initializers.zeros, (self.vocab_size,))
        elif self.head == "untied" or is_number:
            size: Any = self.head if is_number else self.vocab_size
            self.last = Dense(
                size,
                use_bias=is_number,
                kernel_init=init,
                dtype=dtype,
                dot_general=float32_dot_general,
                name="head",
            )

    def _embedding(self, count: int, name: str | None = None) -> linen.Embed:
        std = self.embed_std or self.block.init_std or 1.0
        init = linen.initializers.normal(std)
        return linen.Embed(count, self.width, dtype=self.dtype, embedding_init=init, name=name)

    def __call__(self, inputs: Any, train: bool = False) -> Array:
        """The outputs for some inputs.

        Args:
            inputs: tokens int32 [B, T] or, without a vocabulary, floats [B, T, C]; or a dictionary of what
                `jdl.nn.sequence.sequence` knows.
            train: with noise.

        Returns:
            Logits [B, T, V] in float32, or what else the head gives; [B, ...] where sequences are pooled.
        """
        h_BTD = self.hidden(inputs, train)
        if self.pool is None:
            return self.logits(h_BTD)
        return self.logits(self.drop(self.pool_states(h_BTD, inputs), deterministic=not train))

    def hidden(self, inputs: Any, train: bool = False) -> Array:
        """The states [B, T, D] that `logits` takes, or that are pooled."""
        given = self._read(inputs)
        T = given.values.shape[1]
        if self.positions == "learned" and self.context < T:
            raise ValueError(f"the model has {self.context} learned positions; got a sequence of {T}")
        x_BTD = self._embed(given.values, given.positions, given.types, train)
        look = given.look(self.causal)
        x_BTD = self.blocks(x_BTD, train, look, given.positions, real_BT=given.real())
        return by_example(self.norm(x_BTD) if self.final_norm else x_BTD)

    def pool_states(self, h_BTD: Array, inputs: Any) -> Array:
        """One vector [B, D] for each sequence of states."""
        given = self._read(inputs)
        if given.segments is not None:
            raise ValueError(
                f"the pool {self.pool!r} would mix the segments of a row: give each document a row of its own"
            )
        real_BT = given.real()
        if real_BT is None:
            real_BT = jnp.ones(h_BTD.shape[:2], bool)
        if self.pool == "mean":
            weights = real_BT.astype(jnp.float32)[..., None]
            total = (h_BTD * weights).sum(1)
            h_BD = (total / jnp.maximum(weights.sum(1), 1.0)).astype(h_BTD.dtype)
        elif self.pool == "last":
            last_B = jnp.maximum(real_BT.sum(1) - 1, 0)
            h_BD = jnp.take_along_axis(h_BTD, last_B.reshape(-1, 1, 1), axis=1)[:, 0]
        else:
            h_BD = h_BTD[:, 0]
        return jnp.tanh(self.pooled(h_BD)) if self.pooler else h_BD

    def logits(self, h: Array) -> Array:
        """What comes out of states [..., D]: float32 logits [..., V], or what else the head gives."""
        if self.head is None:
            return h
        if self.head not in ("tied", "masked"):
            return by_example(self.last(h))
        if self.head == "masked":
            h = self.transform_norm(ACTIVATIONS[self.block.activation](self.transform(h)))
        h, table_VD = linen.dtypes.promote_dtype(h, self.tokens.embedding, dtype=self.dtype)
        logits = by_example(float32_dot_general(h, table_VD, (((h.ndim - 1,), (1,)), ((), ()))))
        return (
            logits + self.head_bias.reshape((1,) * (h.ndim - 1) + (-1,)) if self.head == "masked" else logits
        )

    def init_cache(self, batch_size: int, length: int) -> dict[str, Any]:
        """An empty cache of a causal model, for `extend`.

        Args:
            batch_size: B.
            length: S, the room of each row.

        Returns:
            {"lengths": int32 [B], how many positions are in it, "blocks": keys and values of each block}.

        Raises:
            ValueError: for a model that is not causal, has no logits of tokens, or fewer learned positions.
        """
        if not self.causal or self.vocab_size is None:
            raise ValueError("only a causal model of tokens has a cache: BlockConfig(causal=True)")
        if self.pool is not None or self.head not in ("tied", "untied", "masked"):
            raise ValueError(
                f"only a model that gives logits of the next token writes; this one has head={self.head!r}, "
                f'pool={self.pool!r}, where "tied" or "untied" and None would do'
            )
        if self.positions == "learned" and length > self.context:
            raise ValueError(f"the model has {self.context} learned positions; got a cache of {length}")
        return {
            "lengths": jnp.zeros((batch_size,), jnp.int32),
            "blocks": empty_cache(
                self.block, self.width, self.depth, batch_size, length, self.scan, self.dtype
            ),
        }

    def extend(
        self, cache: Mapping[str, Any], tokens_BT: Array, lengths_B: Array | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Reads more tokens of each row, after those in the cache.

        The cache's room is fixed: positions beyond it are not kept, and logits from there on are NaN.

        Args:
            cache: from `init_cache` or an earlier call.
            tokens_BT: int32.
            lengths_B: int32, how many of a row's T tokens are real, the first ones; all when None. The others
                leave no trace, and their logits mean nothing.

        Returns:
            Logits [B, T, V] in float32, and the cache.

        Raises:
            ValueError: for more tokens than the cache has room for.
        """
        step = Extension.of(cache, tokens_BT, lengths_B)
        x_BTD = self._embed(tokens_BT, step.steps[0], None, False)
        x_BTD, blocks = self.blocks(x_BTD, False, step.look, step.steps[0], cache=cache["blocks"])
        logits = self.logits(self.norm(x_BTD) if self.final_norm else x_BTD)
        return step.checked(logits), {"lengths": step.lengths, "blocks": blocks}

    def _read(self, inputs: Any) -> Sequence:
        return sequence(inputs, type(self).__name__, floats=self.vocab_size is None)

    def _embed(self, values: Array, positions: Array, types: Array | None, train: bool) -> Array:
        x_BTD = self.tokens(values)
        if self.embed_scale != 1:
            x_BTD = x_BTD * self.embed_scale
        if self.positions == "learned":
            x_BTD = x_BTD + self.learned(positions)
        elif self.positions == "sinusoidal":
            x_BTD = x_BTD + sinusoidal(positions, self.width).astype(x_BTD.dtype)
        if self.types:
            x_BTD = x_BTD + self.typed(jnp.zeros(values.shape[:2], jnp.int32) if types is None else types)
        elif types is not None:
            raise ValueError("the model has no types of tokens; got some")
        if self.embed_norm:
            x_BTD = self.normed(x_BTD)
        return self.drop(x_BTD, deterministic=not train)


def assemble(model: Any, options: Mapping[str, Any]) -> Any:
    """Makes a model of a flat dictionary of its own attributes and those of its `BlockConfig`.

    Args:
        model: a class of modules with a field ``block``.
        options: attributes by name.

    Returns:
        The module.

    Raises:
        TypeError: for a name that neither has.

    Example:
        >>> options = {"vocab_size": 10, "width": 8, "depth": 1, "num_heads": 2, "hidden": 16}
        >>> assemble(Transformer, options).block.hidden
        16
    """
    of_block = {field.name for field in dataclasses.fields(BlockConfig)}
    of_model = {field.name for field in dataclasses.fields(model)} - {"parent", "name"}
    if unknown := sorted(set(options) - of_block - of_model):
        raise TypeError(
            f"neither {model.__name__} nor BlockConfig has {', '.join(unknown)}; there are "
            f"{', '.join(sorted(of_block | of_model))}"
        )
    block = {name: value for name, value in options.items() if name in of_block}
    others = {name: value for name, value in options.items() if name not in of_block}
    return model(**{"block": BlockConfig(**block)} | others)


def tiny() -> tuple[Transformer, dict[str, Any]]:
    """A classifier of sequences of floats of different lengths, of two blocks with all kinds of noise."""
    rng = np.random.default_rng(0)
    inputs = {
        "sequence": rng.normal(size=(8, 6, 3)).astype(np.float32),
        "lengths": np.array([6, 1, 3, 4, 5, 2, 6, 3], np.int32),
    }
    block = BlockConfig(2, 16, init_std=None)
    batch = {"inputs": inputs, "labels": np.arange(8, dtype=np.int32) % 4}
    model = Transformer(None, 8, 2, block, context=6, head=4, pool="mean", dropout=0.1, stochastic_depth=0.5)
    return model, batch
