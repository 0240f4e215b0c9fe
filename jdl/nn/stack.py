"""A stack of the blocks of a Transformer.

Axes: B batch, T positions, S positions of a memory, D model, G heads of keys and values, K head size,
L layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.core import LOSSES, Array, by_example
from jdl.nn.blocks import depth_rates
from jdl.nn.dropout import require_rate
from jdl.nn.multihead import PLAIN, KeyValues, Look
from jdl.nn.transformer import Block, BlockConfig

REMAT: dict[str, Callable[..., bool] | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def block_names(depth: int) -> list[str]:
    """``block1``, ``block2``, ..."""
    return [f"block{i}" for i in range(1, depth + 1)]


class Blocks(linen.Module):
    """A stack of blocks, with what they share.

    Submodules are ``block1``, ``block2``, ...; or, with ``scan``, one ``block`` whose variables have the
    layers as their first axis (`stack_layers` and `unstack_layers` convert). ``relative`` has the learned
    bias of each bucket of distances, where there is one.

    Attributes:
        config: what a block is.
        depth: L.
        has_memory: whether blocks attend to a memory too.
        dropout: as in `Block`.
        stochastic_depth: probability of skipping the last block's parts; it grows from 0 along the depth.
        scan: compile one block and loop over it, where compiling all would take long.
        remat: what the gradient computes again rather than keeps: "full" all of a block's inside, "dots" all
            but the results of its layers' matrix products; None nothing.
        dtype: of the computation.

    Raises:
        ValueError: for an unknown ``remat``, or a ``stochastic_depth`` or ``dropout`` out of range.

    Example:
        >>> x = jnp.ones((2, 5, 8))
        >>> y, variables = Blocks(BlockConfig(2, 16), depth=3).init_with_output(jax.random.key(0), x)
        >>> y.shape, sorted(variables["params"])
        ((2, 5, 8), ['block1', 'block2', 'block3'])

    Reference:
        Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost", 2016.
    """

    config: BlockConfig
    depth: int
    has_memory: bool = False
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    scan: bool = False
    remat: str | None = None
    dtype: Any = None

    def setup(self) -> None:
        if self.remat is not None and self.remat not in REMAT:
            raise ValueError(f"remat is None or one of {', '.join(REMAT)}; got {self.remat!r}")
        for name in ("stochastic_depth", "dropout"):
            require_rate(name, getattr(self, name))
        for name in ["block"] if self.scan else self._names:
            setattr(self, name, Block(self.config, self.has_memory, self.dropout, self.dtype))
        relative = self.config.relative
        if relative is not None and (shape := relative.table_shape(self.config.num_heads)):
            init = linen.initializers.normal(0.02)
            self.relative = linen.Embed(*shape, embedding_init=init)

    @property
    def _names(self) -> list[str]:
        return block_names(self.depth)

    def __call__(
        self,
        x_BTD: Array,
        train: bool = False,
        look: Look = PLAIN,
        positions: Array | None = None,
        memory: Array | Mapping[str, KeyValues] | None = None,
        memory_look: Look = PLAIN,
        cache: Mapping[str, KeyValues] | None = None,
        real_BT: Array | None = None,
    ) -> Any:
        """The blocks one after another.

        Args:
            x_BTD: embedded positions.
            train: with noise.
            look: what attention is told of the positions; bias and rotation are put in here.
            positions: int32 [B or 1, T], for rotary ones.
            memory: [B, S, D], or the keys and values of it that `remember` gives.
            memory_look: what attention to the memory is told.
            cache: keys and values of earlier positions, from `jdl.nn.cache.empty_cache`.
            real_BT: which positions count in the losses of experts.

        Returns:
            [B, T, D]; with a cache, that and the cache.
        """
        config = self.config
        if config.relative is not None:
            table = self.relative.embedding if config.relative.table_shape(config.num_heads) else None
            look = look._replace(bias=config.relative.bias(config.num_heads, table))
        if config.rotary is not None:
            assert positions is not None
            look = look._replace(rotation=config.rotary.at(positions, config.size_of_head(x_BTD.shape[-1])))

        def one(block: Block, x_BTD: Array, known: Any, cache: Any, layer: Any, rate: Any) -> Any:
            x_BTD = by_example(x_BTD)
            y_BTD, cache = block(x_BTD, train, look, known, memory_look, cache, layer, rate, real_BT)
            return by_example(y_BTD), cache

        if self.remat is not None and train:
            one = linen.remat(one, policy=REMAT[self.remat], prevent_cse=not self.scan)
        rates = depth_rates(self.stochastic_depth, self.depth) if self.stochastic_depth else None
        if self.scan:
            return self._scanned(one, x_BTD, memory, cache, rates)
        new_cache = {}
        for i, name in enumerate(self._names):
            known = memory[name] if isinstance(memory, Mapping) else memory
            old = None if cache is None else cache[name]
            rate = rates[i] if rates else None
            x_BTD, new_cache[name] = one(getattr(self, name), x_BTD, known, old, None, rate)
        return x_BTD if cache is None else (x_BTD, new_cache)

    def _scanned(self, one: Any, x_BTD: Array, memory: Any, cache: Any, rates: Any) -> Any:
        known = memory["block"] if isinstance(memory, Mapping) else memory

        def step(block: Block, carry: Any, each: Any) -> Any:
            x_BTD, old = carry
            layer, rate = each
            return one(block, x_BTD, known, old, None if cache is None else layer, rate), None

        # The whole cache goes along, so that each layer writes into it in place.
        start = x_BTD, None if cache is None else cache["block"]
        each = jnp.arange(self.depth), None if rates is None else jnp.asarray(rates)
        loop = linen.scan(
            step,
            # Taps and intermediates, so that each layer's insides can be looked at.
            variable_axes=dict.fromkeys(("params", LOSSES, "taps", "intermediates"), 0),
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
        )
        (x_BTD, old), _ = loop(self.block, start, each)
        return x_BTD if cache is None else (x_BTD, {"block": old})

    def remember(self, memory_BSD: Array) -> dict[str, KeyValues]:
        """The keys and values of a memory for each block, laid out like a cache."""
        if not self.scan:
            return {name: getattr(self, name).remember(memory_BSD) for name in self._names}
        loop = linen.scan(
            lambda block, carry, _: (carry, block.remember(memory_BSD)),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
            out_axes=1,
        )
        return {"block": loop(self.block, None, None)[1]}


def stack_layers(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a model without ``scan`` as those of one with: blocks stacked on a new first axis.

    Example:
        >>> stack_layers({"blocks": {"block1": {"x": jnp.ones(3)}, "block2": {"x": jnp.ones(3)}}})
        {'blocks': {'block': {'x': Array([[1., 1., 1.],
               [1., 1., 1.]], dtype=float32)}}}
    """
    tree = {
        name: stack_layers(value) if isinstance(value, Mapping) else value
        for name, value in variables.items()
    }
    names = sorted((name for name in tree if re.fullmatch(r"block\d+", name)), key=lambda name: int(name[5:]))
    if not names:
        return tree
    stacked = jax.tree.map(_stacked, *(tree.pop(name) for name in names))
    return {**tree, "block": stacked}


def _stacked(*x: Any) -> Any:
    # Arrays of the host stay there: all layers of a large model may not fit on one device.
    return (np if all(isinstance(array, np.ndarray) for array in x) else jnp).stack(x)


def unstack_layers(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`: ``block`` as ``block1``, ``block2``, ...

    Example:
        >>> sorted(unstack_layers({"blocks": {"block": {"x": jnp.ones((2, 3))}}})["blocks"])
        ['block1', 'block2']
    """
    tree = {
        name: unstack_layers(value) if isinstance(value, Mapping) else value
        for name, value in variables.items()
    }
    if not isinstance(tree.get("block"), Mapping):
        return tree
    stacked = tree.pop("block")
    depth = jax.tree.leaves(stacked)[0].shape[0]
    return {**tree, **{f"block{i + 1}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(depth)}}
