"""From a trained module to a `Decoder`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jdl.core import Array, Decoder, PyTree, Variables


@dataclass(frozen=True)
class _Method:
    """A module's method as a function of the variables.

    Equal modules give equal functions: a decoder of the same module with other weights compiles nothing anew.
    """

    module: Any
    name: str

    def __call__(self, variables: Variables, *args: Any) -> Any:
        return self.module.apply(variables, *args, method=self.name)


@dataclass(frozen=True)
class _InitCache:
    """A module's ``init_cache`` with the memory, if there is one, that the cache is to hold."""

    module: Any

    def __call__(self, memory: tuple[PyTree, ...], batch_size: int, length: int) -> PyTree:
        return self.module.init_cache(batch_size, length, *memory)


@dataclass(frozen=True)
class _Rewind:
    """A module's ``rewind``, which needs no variables."""

    module: Any

    def __call__(self, cache: PyTree, lengths_B: Array) -> PyTree:
        return self.module.rewind(cache, lengths_B)


def decoder(module: Any, variables: Variables, source: Any = None) -> Decoder:
    """Makes a `Decoder` of a module and its variables.

    Args:
        module: a language model: ``init_cache(batch_size, length)`` gives an empty cache, and the method
            ``extend(cache, tokens_BT, lengths_B)`` logits [B, T, V] and the cache; an encoder-decoder has
            ``encode(source)``, whose memory goes to ``init_cache`` as the third argument. The decoder can
            go back if the module has a function ``rewind(cache, lengths_B)``, or if the cache is a dictionary
            whose ``lengths`` [B] alone say which of its entries count.
        variables: its variables.
        source: what an encoder-decoder reads, one for each row that is to be written.

    Returns:
        The decoder, a pytree whose leaves are the variables and the encoded source.

    Raises:
        ValueError: if the module has no cache, or a source is given to a module that reads none, or missing
            from one that does.

    Example:
        >>> class Successor:  # after each token it writes the next number, of eight
        ...     def init_cache(self, batch_size, length):
        ...         return {"lengths": jax.numpy.zeros(batch_size, "int32")}
        ...     def extend(self, cache, tokens, lengths=None):
        ...         read = tokens.shape[1] if lengths is None else lengths
        ...         return jax.nn.one_hot((tokens + 1) % 8, 8), {"lengths": cache["lengths"] + read}
        ...     def apply(self, variables, *args, method):
        ...         return getattr(self, method)(*args)
        >>> made = decoder(Successor(), {})
        >>> logits, cache = made.extend(made.init_cache(1, 4), jax.numpy.array([[5, 6]]))
        >>> logits.argmax(-1).tolist(), cache["lengths"].tolist()
        ([[6, 7]], [2])
    """
    name = type(module).__name__
    if not callable(getattr(module, "init_cache", None)) or not callable(getattr(module, "extend", None)):
        raise ValueError(f"a decoder is made of a module with init_cache and extend, which {name} has not")
    reads = callable(getattr(module, "encode", None))
    if reads != (source is not None):
        raise ValueError(f"{name} reads a source; give one" if reads else f"{name} reads no source")
    # Once: what is not on the device would be copied to it whenever a program is called.
    variables = jax.tree.map(jnp.asarray, variables)
    memory = (_encoded(Partial(_Method(module, "encode"), variables), source),) if reads else ()
    init_cache = Partial(_InitCache(module), memory)
    rewind: Partial | None = None
    if callable(getattr(module, "rewind", None)):
        rewind = Partial(_Rewind(module))
    elif _has_lengths(jax.eval_shape(lambda: init_cache(_rows(memory), 1))):
        rewind = Partial(_set_lengths)
    return Decoder(init_cache, Partial(_Method(module, "extend"), variables), rewind)


def warn_beyond_context(decoder: Decoder, needed: int) -> None:
    """Warns where rotary positions without a scaling would go on past those that the module was trained on.

    Learned positions end there, and raise; rotary ones go on without a word, to where no training has been.

    Args:
        decoder: any; only what `decoder` made of a module with ``context`` and rotary positions is looked at.
        needed: positions that a request will use.
    """
    module = getattr(getattr(decoder.extend, "func", None), "module", None)
    rotary = getattr(getattr(module, "block", None), "rotary", None)
    context = getattr(module, "context", None)
    if rotary is not None and rotary.scaling is None and context is not None and needed > context:
        warnings.warn(
            f"the request needs {needed} positions; the {type(module).__name__} was trained on {context} and "
            "its rotary positions have no scaling (Rotary(scaling=...)): beyond them it may write nonsense",
            stacklevel=4,  # whoever asked to write
        )


@jax.jit
def _encoded(encode: Partial, source: Any) -> PyTree:
    """The memory, by one program for all sources of a shape: layer by layer it takes far longer."""
    return encode(source)


def _rows(memory: PyTree) -> int:
    """B of an encoded source, 1 where there is none."""
    return int(next((leaf.shape[0] for leaf in jax.tree.leaves(memory)), 1))


def _has_lengths(cache: PyTree) -> bool:
    return isinstance(cache, Mapping) and "lengths" in cache


def _set_lengths(cache: PyTree, lengths_B: Array) -> PyTree:
    return {**cache, "lengths": lengths_B}
