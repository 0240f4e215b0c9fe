"""Vector quantisation: each vector becomes the nearest entry of a codebook.

Axes: B batch, N vectors, K entries of the codebook, D size of a vector.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

from jdl import core


class Quantized(NamedTuple):
    """Vectors as entries of a codebook.

    Attributes:
        values: the nearest entries, of the vectors' shape, float32. Where the codebook is learned by
            gradients they carry its own; none goes to the vectors.
        codes: which entry, int32 of the vectors' shape without its last axis.
        usage: [B, K], how many of an example's vectors each entry stands for.
        learned: whether the codebook is a parameter.
    """

    values: jax.Array
    codes: jax.Array
    usage: jax.Array
    learned: jax.Array | bool


class Codebook(linen.Module):
    """The entries, and how they follow the vectors that they stand for.

    With ``decay`` an entry is the moving average of the vectors assigned to it, of all devices' together:
    with n_k of them, of sum s_k, in a batch ::

        N_k <- decay N_k + (1 - decay) n_k,   S_k <- decay S_k + (1 - decay) s_k,   e_k = S_k / N_k

    in the collection "codebook" (``entries`` [K, D], ``sums`` [K, D], ``counts`` [K]). With ``decay=None`` it
    is the parameter ``entries``.

    Attributes:
        entries: K.
        size: D.
        decay: as above.
        restart: an entry whose N_k falls below this becomes one of the batch's vectors, drawn from the
            stream "sample" with probabilities as their weights, so that none lies where no vector ever comes;
            0 for never. It begins with N_k = 1: a ``restart`` of 1 or more gives it one batch to be used in.
            Needs ``decay``.

    Example:
        >>> book = Codebook(entries=8, size=2)
        >>> vectors = jnp.ones((3, 4, 2))
        >>> found, _ = book.init_with_output(jax.random.key(0), vectors)
        >>> found.values.shape, found.codes.shape, found.usage.shape
        ((3, 4, 2), (3, 4), (3, 8))

    Reference:
        Van den Oord, Vinyals and Kavukcuoglu, "Neural discrete representation learning", 2017, section 3.2
        and appendix A. Restarts: Dhariwal et al., "Jukebox: a generative model for music", 2020, section 3.
    """

    entries: int
    size: int
    decay: float | None = 0.99
    restart: float = 0.0

    def setup(self) -> None:
        if self.decay is None and self.restart:
            raise ValueError("restart needs the counts that a codebook keeps with decay; got decay=None")
        K, D = self.entries, self.size
        init = linen.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=0, out_axis=1)
        if self.decay is None:
            self.learned_KD = self.param("entries", init, (K, D))
            return
        start = lambda: init(self.make_rng("params"), (K, D))
        self.entries_KD = self.variable("codebook", "entries", start)
        self.sums_KD = self.variable("codebook", "sums", lambda: self.entries_KD.value)
        self.counts_K = self.variable("codebook", "counts", jnp.ones, (K,), jnp.float32)

    def _entries(self) -> jax.Array:
        return self.learned_KD if self.decay is None else self.entries_KD.value

    def lookup(self, codes: jax.Array) -> jax.Array:
        """The entries [..., D] of ``codes`` [...]."""
        return self._entries()[codes]

    def __call__(
        self, vectors: jax.Array, weights_B: jax.Array | None = None, train: bool = False
    ) -> Quantized:
        """The nearest entry of each of the vectors [B, ..., D]; in training the entries then follow.

        Args:
            vectors: [B, ..., D].
            weights_B: what an example counts; one when None.
            train: whether entries follow.

        Returns:
            `Quantized`, by the entries as they were before.

        Raises:
            ValueError: if the vectors are not of size D.
        """
        B, (K, D) = vectors.shape[0], (self.entries, self.size)
        if vectors.shape[-1] != D:
            raise ValueError(f"the codebook's entries have size {D}; got vectors of shape {vectors.shape}")
        x_ND = jax.lax.stop_gradient(vectors.astype(jnp.float32)).reshape(-1, D)
        e_KD = self._entries()
        known = jax.lax.stop_gradient(e_KD)
        # |x - e|^2 without |x|^2, which is the same for all entries.
        distances_NK = jnp.square(known).sum(1).reshape(1, K) - 2 * (x_ND @ known.T)
        codes_N = distances_NK.argmin(1)
        chosen_NK = jax.nn.one_hot(codes_N, K)
        quantized = Quantized(
            e_KD[codes_N].reshape(vectors.shape),
            codes_N.reshape(vectors.shape[:-1]).astype(jnp.int32),
            chosen_NK.reshape(B, -1, K).sum(1),
            self.decay is None,
        )
        if train and self.decay is not None and not self.is_initializing():
            weights_N = jnp.ones(len(x_ND)) if weights_B is None else jnp.repeat(weights_B, len(x_ND) // B)
            self._follow(x_ND, chosen_NK * weights_N.reshape(-1, 1), weights_N)
        return quantized

    def _follow(self, x_ND: jax.Array, chosen_NK: jax.Array, weights_N: jax.Array) -> None:
        assert self.decay is not None
        n_K, s_KD = core.psum((chosen_NK.sum(0), chosen_NK.T @ x_ND))
        counts_K = self.decay * self.counts_K.value + (1 - self.decay) * n_K
        sums_KD = self.decay * self.sums_KD.value + (1 - self.decay) * s_KD
        entries_KD = sums_KD / jnp.maximum(counts_K, 1e-12).reshape(-1, 1)
        if self.restart:
            is_dead = (counts_K < self.restart).reshape(-1, 1)
            fresh_KD = self._some(x_ND, weights_N)
            entries_KD = jnp.where(is_dead, fresh_KD, entries_KD)
            sums_KD = jnp.where(is_dead, fresh_KD, sums_KD)
            counts_K = jnp.where(is_dead[:, 0], 1.0, counts_K)
        else:
            # The quotient of two numbers that both fade away would end as noise.
            entries_KD = jnp.where(counts_K.reshape(-1, 1) < 1e-6, self.entries_KD.value, entries_KD)
        self.entries_KD.value, self.sums_KD.value, self.counts_K.value = entries_KD, sums_KD, counts_K

    def _some(self, x_ND: jax.Array, weights_N: jax.Array) -> jax.Array:
        """K of the vectors, drawn with probabilities as their weights, the same on all devices."""
        K = self.entries
        reach_N = jnp.cumsum(weights_N.astype(jnp.float32))
        draws_K = jax.random.uniform(self.make_rng("sample"), (K,)) * reach_N[-1]
        rows_K = jnp.minimum(jnp.searchsorted(reach_N, draws_K, side="right"), len(x_ND) - 1)
        drawn: tuple[jax.Array, jax.Array] = core.all_gather((x_ND[rows_K][None], reach_N[-1:]))
        # From each device as many as its share of the weight.
        shares = jnp.cumsum(drawn[1])
        places_K = (jnp.arange(K) + 0.5) / K * shares[-1]
        devices_K = jnp.minimum(jnp.searchsorted(shares, places_K, side="right"), len(shares) - 1)
        return drawn[0][devices_K, jnp.arange(K)]


def perplexity(counts_K: Any) -> jax.Array:
    """The exponential of the entropy of usage: how many entries, used alike, would do as much.

    Example:
        >>> float(perplexity(jnp.array([5.0, 5.0, 0.0])))
        2.0
    """
    p = jnp.asarray(counts_K, jnp.float32)
    p = p / jnp.maximum(p.sum(), 1e-9)
    return jnp.exp(-(p * jnp.log(jnp.maximum(p, 1e-30))).sum())
