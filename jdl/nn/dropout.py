"""Dropout, and what every kind of it asks of its rate."""

from __future__ import annotations

from flax import linen


class Dropout(linen.Dropout):
    """`flax.linen.Dropout`, which refuses a rate that is no probability below 1.

    Flax takes a percentage, 50, for one, and drops everything.

    Raises:
        ValueError: unless 0 <= rate < 1.

    Example:
        >>> import jax.numpy as jnp
        >>> Dropout(0.5, deterministic=True).apply({}, jnp.ones(2)).tolist()
        [1.0, 1.0]
        >>> Dropout(50)
        Traceback (most recent call last):
        ValueError: dropout, a rate, must be at least 0 and below 1; got 50

    Reference:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to prevent neural
        networks from overfitting", 2014.
    """

    def __post_init__(self) -> None:
        require_rate("dropout", self.rate)
        super().__post_init__()


def require_rate(name: str, rate: float) -> None:
    """Refuses a probability of dropping that is none, or drops everything.

    Args:
        name: of the rate, for the error.
        rate: the probability.

    Raises:
        ValueError: unless 0 <= rate < 1.

    Example:
        >>> require_rate("dropout", 50)
        Traceback (most recent call last):
        ValueError: dropout, a rate, must be at least 0 and below 1; got 50
    """
    if not 0 <= rate < 1:
        raise ValueError(f"{name}, a rate, must be at least 0 and below 1; got {rate}")
