"""What every kind of dropout asks of its rate."""

from __future__ import annotations


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
