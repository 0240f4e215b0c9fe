"""Cross-entropy of tokens, of all logits at once or of a few positions at a time.

Axes: B batch, T time, D model, V vocabulary, N chunks, K positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdl.core import Array


class TokenScores(NamedTuple):
    """What logits are worth at each position, float32 arrays of the labels' shape.

    Attributes:
        loss: what training lowers.
        surprise: -log p(label), nats.
        correct: 1 where the label's logit is the largest.
    """

    loss: Array
    surprise: Array
    correct: Array


def token_scores(
    logits: Array, labels: Array, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> TokenScores:
    """Cross-entropy of logits and labels, computed in float32.

    With log Z the logarithm of the sum of exp(logits), the loss is
    (1 - s) (log Z - logit of the label) + s (log Z - mean logit) + z (log Z)^2.

    Args:
        logits: [..., V], of any floating type.
        labels: integers [...]; those outside 0..V-1 are taken for the nearest.
        label_smoothing: s, the share of probability spread over all V.
        z_loss: z, which keeps logits from drifting away together.

    Returns:
        The scores [...].

    Example:
        >>> scores = token_scores(jnp.zeros((2, 4)), jnp.array([1, 3]))
        >>> [round(float(x), 3) for x in scores.surprise]  # log 4
        [1.386, 1.386]

    Reference:
        Label smoothing: Szegedy et al., "Rethinking the inception architecture", 2016, section 7. The loss of
        log Z: Chowdhery et al., "PaLM: Scaling language modeling with Pathways", 2022, section 5.
    """
    logits, V = logits.astype(jnp.float32), logits.shape[-1]
    labels = jnp.clip(labels.astype(jnp.int32), 0, V - 1)
    token = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # By comparing, not by index: the gradient of that is a scatter, for which an accelerator keeps all logits
    # twice more and passes over them four times more.
    surprise = log_z - jnp.where(token == labels[..., None], logits, 0).sum(-1)
    loss = surprise
    if label_smoothing:
        loss = (1 - label_smoothing) * surprise + label_smoothing * (log_z - logits.mean(-1))
    if z_loss:
        loss = loss + z_loss * jnp.square(log_z)
    # The first of equals, as an argmax, for which XLA:CPU takes several times as long.
    best = jnp.where(logits == logits.max(-1, keepdims=True), token, V).min(-1)
    return TokenScores(loss, surprise, (best == labels).astype(jnp.float32))


def chunked_token_scores(
    project: Callable[[Array], Array],
    h_BTD: Array,
    labels_BT: Array,
    chunk: int,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> TokenScores:
    """``token_scores(project(h), labels)`` of ``chunk`` positions of each row at a time.

    The logits of a chunk are dropped when it is scored, and computed again for the gradient: B * chunk * V of
    them are held instead of B * T * V, for one more product with the output matrix. Rows are not cut, so a
    batch that is split over devices stays so. Whatever the type of a parameter, its gradient is summed over
    chunks in float32, and rounded once.

    Args:
        project: pure function of hidden states [B, K, D] to logits [B, K, V]; it may close over parameters.
        h_BTD: hidden states.
        labels_BT: integers.
        chunk: K, at least 1; T need not be a multiple of it.
        label_smoothing: as in `token_scores`.
        z_loss: as in `token_scores`.

    Returns:
        The scores [B, T]; values and gradients are those of `token_scores` but for rounding.

    Raises:
        ValueError: if ``chunk`` is below 1, or labels and hidden states have different positions.

    Example:
        >>> h, w = jax.random.normal(jax.random.key(0), (2, 5, 3)), jnp.ones((3, 7))
        >>> chunked_token_scores(lambda h: h @ w, h, jnp.zeros((2, 5), int), 2).loss.shape
        (2, 5)
    """
    if chunk < 1:
        raise ValueError(f"chunk, the positions scored at a time, must be at least 1; got {chunk}")
    if labels_BT.shape != h_BTD.shape[:2]:
        raise ValueError(f"labels of shape {labels_BT.shape} do not fit hidden states of shape {h_BTD.shape}")

    softened = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    T = labels_BT.shape[1]
    if chunk >= T:
        return token_scores(project(h_BTD), labels_BT, **softened)
    # What the loop closes over has a gradient that the loop adds up, in the type in which it comes in.
    projected, params = jax.closure_convert(project, h_BTD[:, :chunk])
    wide = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in params]

    def score(h_BKD: Array, labels_BK: Array) -> TokenScores:
        narrow = [x.astype(param.dtype) for x, param in zip(wide, params, strict=True)]
        return token_scores(projected(h_BKD, *narrow), labels_BK, **softened)

    def chunks(x: Array) -> Array:
        """[B, T, ...] to [N, B, K, ...], with zeros after the end.

        Chunk n has positions n, n + N, ..., so that where time is split over devices, each has its part of
        every chunk.
        """
        x = jnp.pad(x, [(0, 0), (0, -T % chunk)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunk, -1, *x.shape[2:]), 2, 0)

    # In a scan nothing is merged with the forward pass, so the barrier against that would only cost.
    again = jax.checkpoint(score, prevent_cse=False)
    _, scores_NBK = jax.lax.scan(
        lambda _, part: (None, again(*part)), None, (chunks(h_BTD), chunks(labels_BT))
    )
    return jax.tree.map(
        lambda x_NBK: jnp.moveaxis(x_NBK, 0, 2).reshape(x_NBK.shape[1], -1)[:, :T], scores_NBK
    )
