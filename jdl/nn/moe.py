"""Mixture of experts: a few of many feed-forward layers for each position.

Axes: B batch, T positions, D model, F hidden, E experts, k experts of a position, C places of an expert.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax

from jdl.core import LOSSES, Array, psum
from jdl.nn.activations import silu


@dataclasses.dataclass(frozen=True)
class Experts:
    """How many experts, and how positions find them.

    Attributes:
        count: E.
        chosen: k.
        capacity: in training an expert has places for capacity * T * k / E positions of each row, and those
            that come later in the row go without it; None has places for all. Outside training there always
            are, so that what a position gets does not depend on others. Where there are places for all, every
            expert computes every position, E / k times the work that is used.
        renormalize: the weights of the k experts sum to one; otherwise they are their probabilities.
        balance: weight of the loss that spreads positions evenly.
        z: weight of the loss that keeps the router's logits small.

    Raises:
        ValueError: if a position has none or more than there are, or experts have no places.

    Example:
        >>> from jdl.models import gpt
        >>> experts = Experts(count=8, chosen=2, capacity=1.25)
        >>> model = gpt(vocab_size=50, width=32, depth=2, num_heads=2, context=16, experts=experts)
        >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16), jnp.int32))
        >>> shapes["params"]["blocks"]["block1"]["moe"]["router"]["kernel"].shape
        (32, 8)
    """

    count: int
    chosen: int = 2
    capacity: float | None = None
    renormalize: bool = True
    balance: float = 0.01
    z: float = 0.001

    def __post_init__(self) -> None:
        if not 1 <= self.chosen <= self.count:
            raise ValueError(f"a position has between 1 and all {self.count} experts; got {self.chosen}")
        if self.capacity is not None and not self.capacity > 0:
            raise ValueError(f"capacity must be above 0, or None for places for all; got {self.capacity}")


def route(logits_BTE: Array, chosen: int, renormalize: bool = True) -> tuple[Array, Array, Array]:
    """The experts of each position.

    Args:
        logits_BTE: the router's, in float32.
        chosen: k.
        renormalize: whether the k weights sum to one.

    Returns:
        Their indices [B, T, k], the most probable first; their weights [B, T, k]; and the probabilities of
        all [B, T, E].

    Example:
        >>> experts, weights, _ = route(jnp.log(jnp.array([[[0.1, 0.6, 0.3]]])), 2)
        >>> experts.tolist(), weights.round(2).tolist()[0][0][0] > 0.66
        ([[[1, 2]]], True)

    Reference:
        Shazeer et al., "Outrageously large neural networks: The sparsely-gated mixture-of-experts layer",
        2017, section 2.1; the order of softmax and choice: Fedus, Zoph and Shazeer, "Switch transformers",
        2022, equation 2.
    """
    probabilities_BTE = jax.nn.softmax(logits_BTE)
    weights_BTk, experts_BTk = lax.top_k(probabilities_BTE, chosen)
    if renormalize:
        weights_BTk = weights_BTk / weights_BTk.sum(-1, keepdims=True)
    return experts_BTk, weights_BTk, probabilities_BTE


def balance_loss(experts_BTk: Array, probabilities_BTE: Array, real_BT: Array | None = None) -> Array:
    """E times the sum over experts of the share of positions it gets and the mean of its probability.

    It is 1 where both are even, over the whole batch on every device.

    Args:
        experts_BTk: from `route`.
        probabilities_BTE: likewise.
        real_BT: which positions count; all when None.

    Returns:
        Scalar.

    Example:
        >>> experts, probabilities = jnp.array([[[0], [1]]]), jnp.full((1, 2, 2), 0.5)
        >>> float(balance_loss(experts, probabilities))
        1.0

    Reference:
        Fedus, Zoph and Shazeer, "Switch transformers: Scaling to trillion parameter models with simple and
        efficient sparsity", 2022, equations 4 to 6; of several choices: Lepikhin et al., "GShard", 2021.
    """
    E = probabilities_BTE.shape[-1]
    real = jnp.ones(probabilities_BTE.shape[:2]) if real_BT is None else real_BT.astype(jnp.float32)
    chosen_BTE = jax.nn.one_hot(experts_BTk, E).mean(2)
    total, share_E, mean_E = psum(
        (
            real.sum(),
            (chosen_BTE * real[..., None]).sum((0, 1)),
            (probabilities_BTE * real[..., None]).sum((0, 1)),
        )
    )
    return E * (share_E * mean_E).sum() / jnp.maximum(total, 1.0) ** 2


def z_loss(logits_BTE: Array, real_BT: Array | None = None) -> Array:
    """The mean of the squared logarithm of the softmax's denominator, over the whole batch.

    Args:
        logits_BTE: the router's.
        real_BT: which positions count; all when None.

    Returns:
        Scalar.

    Reference:
        Zoph et al., "ST-MoE: Designing stable and transferable sparse expert models", 2022, equation 5.
    """
    real = jnp.ones(logits_BTE.shape[:2]) if real_BT is None else real_BT.astype(jnp.float32)
    squares_BT = jnp.square(jax.nn.logsumexp(logits_BTE, -1))
    total, squares = psum((real.sum(), (squares_BT * real).sum()))
    return squares / jnp.maximum(total, 1.0)


class MixtureOfExperts(linen.Module):
    """Each position through its k most probable experts, weighted.

    Parameters are the kernels of ``router`` [D, E], ``expand`` and, where gated, ``gate`` [E, D, F], and
    ``project`` [E, F, D]. It sows two losses into the collection "losses".

    Attributes:
        experts: how many, and how they are found.
        hidden: F.
        activation: between an expert's two layers.
        gated: an expert is project(activation(gate(x)) * expand(x)).
        kernel_init: initialises kernels.
        out_init: initialises ``project``; like the others when None.
        dtype: of the computation; the router's is float32.

    Example:
        >>> layer = MixtureOfExperts(Experts(4), hidden=16)
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 3, 8)))[0].shape
        (2, 3, 8)

    Reference:
        Shazeer et al. 2017; Fedus, Zoph and Shazeer 2022.
    """

    experts: Experts
    hidden: int
    activation: Callable[[Array], Array] = silu
    gated: bool = True
    kernel_init: Any = linen.initializers.lecun_normal(batch_axis=0)
    out_init: Any = None
    dtype: Any = None

    @linen.compact
    def __call__(self, x_BTD: Array, train: bool = False, real_BT: Array | None = None) -> Array:
        """[B, T, D] to the same shape; ``real_BT`` says which positions the losses count."""
        (_, T, D), E, k = x_BTD.shape, self.experts.count, self.experts.chosen
        kernels = {"expand": (E, D, self.hidden), "project": (E, self.hidden, D)}
        if self.gated:
            kernels["gate"] = (E, D, self.hidden)
        init = {"project": self.out_init or self.kernel_init}
        kernel = {
            name: _Kernel(shape, init.get(name, self.kernel_init), name=name)()
            for name, shape in kernels.items()
        }
        router_DE = _Kernel((D, E), linen.initializers.normal(0.02), name="router")()
        logits_BTE = (x_BTD.astype(jnp.float32).reshape(-1, D) @ router_DE).reshape(-1, T, E)
        experts_BTk, weights_BTk, probabilities_BTE = route(logits_BTE, k, self.experts.renormalize)
        if not self.is_initializing():
            balance = self.experts.balance * balance_loss(experts_BTk, probabilities_BTE, real_BT)
            for name, loss in (("balance", balance), ("z", self.experts.z * z_loss(logits_BTE, real_BT))):
                self.sow(LOSSES, name, loss, reduce_fn=jnp.add, init_fn=lambda: jnp.zeros(()))

        x_BTD, *arrays = linen.dtypes.promote_dtype(x_BTD, *kernel.values(), dtype=self.dtype)
        kernel = dict(zip(kernel, arrays, strict=True))

        def all_experts(x: Array) -> Array:
            """Each expert's own positions [E, N, D] through it, or the same [N, D] through every one."""
            product = "ND,EDF->ENF" if x.ndim == 2 else "END,EDF->ENF"
            h_ENF = jnp.einsum(product, x, kernel["expand"])
            if self.gated:
                h_ENF = self.activation(jnp.einsum(product, x, kernel["gate"])) * h_ENF
            else:
                h_ENF = self.activation(h_ENF)
            return h_ENF @ kernel["project"]

        if not train or self.experts.capacity is None:
            weights_BTE = (jax.nn.one_hot(experts_BTk, E) * weights_BTk[..., None]).sum(2)
            weights_EN = weights_BTE.reshape(-1, E).T.astype(x_BTD.dtype)
            return (all_experts(x_BTD.reshape(-1, D)) * weights_EN[..., None]).sum(0).reshape(x_BTD.shape)

        C = min(T, math.ceil(self.experts.capacity * T * k / E))
        place_BTk = places(experts_BTk, E)
        # A position without a place goes to the end of the array, and so nowhere.
        slot_BTk = jnp.where(place_BTk < C, experts_BTk * C + place_BTk, E * C)
        return _through_places(x_BTD, slot_BTk, weights_BTk, all_experts, E, C)


def places(experts_BTk: Array, count: int) -> Array:
    """How many positions before it in the row, and choices before it, go to the same expert; int32 [B, T, k].

    Example:
        >>> places(jnp.array([[[0, 1], [1, 0], [0, 2]]]), 3).tolist()
        [[[0, 0], [1, 1], [2, 0]]]
    """
    B, T, k = experts_BTk.shape
    chosen_BNE = jax.nn.one_hot(experts_BTk.reshape(B, T * k), count, dtype=jnp.int32)
    before_BNE = jnp.cumsum(chosen_BNE, 1) - chosen_BNE
    return (before_BNE * chosen_BNE).sum(-1).reshape(B, T, k)


def _through_places(
    x_BTD: Array,
    slot_BTk: Array,
    weights_BTk: Array,
    all_experts: Callable[[Array], Array],
    E: int,
    C: int,
) -> Array:
    (B, T, D), k = x_BTD.shape, slot_BTk.shape[2]
    rows = jnp.arange(B).reshape(B, 1)
    slot_BN = slot_BTk.reshape(B, T * k)
    filled = jnp.zeros((B, E * C, D), x_BTD.dtype)
    filled = filled.at[rows, slot_BN].set(jnp.repeat(x_BTD, k, axis=1), mode="drop", unique_indices=False)
    y_END = all_experts(filled.reshape(B, E, C, D).transpose(1, 0, 2, 3).reshape(E, B * C, D))
    y_BSD = y_END.reshape(E, B, C, D).transpose(1, 0, 2, 3).reshape(B, E * C, D)
    y_BND = y_BSD.at[rows, slot_BN].get(mode="fill", fill_value=0)
    return (y_BND.reshape(B, T, k, D) * weights_BTk[..., None].astype(y_BND.dtype)).sum(2)


class _Kernel(linen.Module):
    """A parameter ``kernel`` under a name of its own."""

    shape: tuple[int, ...]
    init: Any

    @linen.compact
    def __call__(self) -> Array:
        return self.param("kernel", self.init, self.shape)
