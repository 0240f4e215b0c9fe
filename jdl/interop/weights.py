"""Weights from elsewhere: a PyTorch ``state_dict`` into a model's variables and back, by a map of names.

A map of names is a list of rules ``(our path, their name)``. Numbers that differ stand in braces, with an
offset where one side counts from another number::

    [("stem/conv", "conv1"), ("stage{s}/block{b}/conv{i}/conv", "layer{s}.{b-1}.conv{i}"), ("head", "fc")]

A rule names a layer, whose parameters have the names and layouts that PyTorch gives them, or one parameter.
A third entry names another layout (`LAYOUTS`). A layer of ours that reads a flattened map of H x W pixels
in the order H, W, C, where theirs reads it as C, H, W, has ``"flat HxW"``: ``("Dense_0", "7", "flat 5x5")``.
Where several of ours lie in one of theirs, a fourth says which part ours is: the queries of ``("query",
"attn.qkv", "kernel", "0/3")`` are the first third of the outputs.
"""

from __future__ import annotations

import fnmatch
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdl.interop.tensors import read_tensors

Names = Sequence[tuple[str, ...]]
"""Rules ``(our path, their name)``, with a layout and a part where needed; the first that fits is taken."""

Tensors = Mapping[str, np.ndarray]

# What PyTorch calls the parameters of a layer.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

IGNORED = ("*num_batches_tracked",)


class Layout(NamedTuple):
    """How a kernel lies in memory here and there.

    Attributes:
        read: their array to ours.
        write: our array to theirs.
        outputs: the axis of theirs that holds the outputs.
    """

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]
    outputs: int = 0


def _read_kernel(x: np.ndarray) -> np.ndarray:
    """[O, I, ...] to [..., I, O]."""
    return x.transpose(*range(2, x.ndim), 1, 0)


def _write_kernel(x: np.ndarray) -> np.ndarray:
    """[..., I, O] to [O, I, ...]."""
    return x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))


LAYOUTS = {
    "kernel": Layout(_read_kernel, _write_kernel),
    # A 1x1 convolution there that is a Dense layer here: [O, I, 1, 1] and [I, O].
    "pointwise": Layout(lambda x: x.reshape(x.shape[:2]).T, lambda x: x.T[:, :, None, None]),
    # A transposed convolution, which PyTorch stores as the convolution that it is the gradient of.
    "transposed": Layout(
        lambda x: x[:, :, ::-1, ::-1].transpose(2, 3, 0, 1),
        lambda x: x.transpose(2, 3, 0, 1)[:, :, ::-1, ::-1],
    ),
    # A number for each channel of images: [C, 1, 1] and [C].
    "channels": Layout(lambda x: x.reshape(x.shape[:1]), lambda x: x[:, None, None]),
    "same": Layout(lambda x: x, lambda x: x, outputs=-1),
}


def _layout(name: str) -> Layout:
    if found := re.fullmatch(r"flat (\d+)x(\d+)", name):
        H, W = map(int, found.groups())
        return Layout(
            lambda x: x.reshape(len(x), -1, H, W).transpose(2, 3, 1, 0).reshape(-1, len(x)),
            lambda x: x.reshape(H, W, -1, x.shape[-1]).transpose(3, 2, 0, 1).reshape(x.shape[-1], -1),
        )
    if name not in LAYOUTS:
        raise ValueError(f'a rule has the layout {name!r}; there are {", ".join(LAYOUTS)} and "flat HxW"')
    return LAYOUTS[name]


class _Match(NamedTuple):
    name: str
    layout: Layout
    part: int = 0
    parts: int = 1

    def read(self, theirs: np.ndarray) -> np.ndarray:
        """Ours, which may be a part of theirs."""
        part = theirs if self.parts == 1 else np.split(theirs, self.parts, self.layout.outputs)[self.part]
        return self.layout.read(part)


def load_weights(
    variables: Any,
    weights: Tensors | str | os.PathLike[str],
    names: Names,
    *,
    fresh: Sequence[str] = (),
    ignore: Sequence[str] = (),
    adapt: Mapping[str, Callable[[np.ndarray, tuple[int, ...]], Any]] | None = None,
) -> Any:
    """A model's variables with the values of a PyTorch ``state_dict``.

    Every parameter must be found and every tensor used, unless named in ``fresh`` or ``ignore``. A
    prefix that all names have, of the whole that the model was a part of, is dropped where the map does not
    know it.

    Args:
        variables: as ``init`` gives them; their shapes (`jax.eval_shape`) are enough where nothing is fresh.
        weights: tensors by name, or a file for `read_tensors`.
        names: the map of names; `jdl.interop.names` has those of published models.
        fresh: our paths to keep as they are, such as ``["head"]`` for another number of classes; each
            covers all below it. Their tensors are not used.
        ignore: patterns (``*``, ``?``) of tensors to leave unused; counters of batches always are.
        adapt: for a pattern of our paths, a function ``array, shape -> array`` that makes a tensor of another
            shape fit (`adapt_channels`, `resize_positions`).

    Returns:
        A tree like ``variables``, of NumPy arrays in the types of the variables.

    Raises:
        ValueError: names every parameter without a tensor, every tensor without a parameter, and every
            shape that does not fit.

    Example:
        >>> variables = {"params": {"head": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}}
        >>> tensors = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.ones(2, np.float32)}
        >>> load_weights(variables, tensors, [("head", "fc")])["params"]["head"]["kernel"].shape
        (3, 2)
        >>> load_weights(variables, {"fc.weight": tensors["fc.weight"]}, [("head", "fc")])
        Traceback (most recent call last):
        ValueError: the weights do not fit the model
        no tensor for: head/bias ("fc.bias")
    """
    tensors = weights if isinstance(weights, Mapping) else read_tensors(weights)
    matches = (_match(_path(keys), names) for keys, _ in jax.tree_util.tree_leaves_with_path(variables))
    tensors = _named(tensors, {match.name for match in matches if match})
    unused, problems = set(tensors), _Problems()

    def read(keys: Any, leaf: Any) -> Any:
        path = _path(keys)
        match = _match(path, names)
        kept = any(path == top or path.startswith(f"{top}/") for top in fresh)
        if match:
            unused.discard(match.name)
        if kept:
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise ValueError(f"{path} is to stay fresh, which needs its values, not only its shape")
            return leaf
        if match is None:
            problems.unmapped.append(path)
        elif match.name not in tensors:
            problems.missing.append(f'{path} ("{match.name}")')
        else:
            return _fitted(path, match, np.asarray(tensors[match.name]), leaf, adapt or {}, problems)
        return leaf

    loaded = jax.tree_util.tree_map_with_path(read, variables)
    for top in fresh:
        paths = [_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(variables)]
        if not any(path == top or path.startswith(f"{top}/") for path in paths):
            problems.unmapped.append(f"{top} (named in fresh, not in the model)")
    patterns = (*IGNORED, *ignore)
    problems.unused.extend(
        sorted(name for name in unused if not any(fnmatch.fnmatchcase(name, p) for p in patterns))
    )
    problems.check()
    return loaded


def _named(tensors: Tensors, wanted: set[str]) -> Tensors:
    """The tensors, without the prefix that all have, where none is called as wanted with it and some without.

    A model that was saved as a part of something larger has such a prefix.
    """
    prefix, first, last = "", min(tensors, default="").split("."), max(tensors, default="").split(".")
    for ours, theirs in zip(["", *first[:-1]], ["", *last[:-1]], strict=False):
        if ours != theirs:
            break
        prefix += f"{ours}." if ours else ""
        named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        if wanted & named.keys():
            return named
    return tensors


def export_weights(variables: Any, names: Names) -> dict[str, np.ndarray]:
    """The inverse of `load_weights`: a ``state_dict`` of NumPy arrays, for `write_tensors`.

    Args:
        variables: a model's variables.
        names: the map of names.

    Returns:
        Arrays in PyTorch's names and layouts.

    Raises:
        ValueError: names every parameter without a rule, every name that two parameters claim, and every
            tensor that lacks a part.

    Example:
        >>> variables = {"params": {"head": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}}
        >>> {name: x.shape for name, x in export_weights(variables, [("head", "fc")]).items()}
        {'fc.bias': (2,), 'fc.weight': (2, 3)}
    """
    problems = _Problems()
    found: dict[str, dict[int, tuple[np.ndarray, _Match]]] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
        path = _path(keys)
        match = _match(path, names)
        if match is None:
            problems.unmapped.append(path)
            continue
        parts = found.setdefault(match.name, {})
        if match.part in parts:
            problems.misshapen.append(f'{path}: another parameter is called "{match.name}" too')
        parts[match.part] = match.layout.write(np.asarray(leaf)), match
    tensors = {}
    for name, parts in found.items():
        (_, match), *_ = parts.values()
        if len(parts) < match.parts:
            problems.missing.append(f'"{name}": {len(parts)} of its {match.parts} parts')
        else:
            ordered = [parts[part][0] for part in range(match.parts)]
            whole = ordered[0] if match.parts == 1 else np.concatenate(ordered, match.layout.outputs)
            tensors[name] = np.array(whole, order="C")
    problems.check()
    return tensors


def adapt_channels(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A first convolution's kernel [h, w, C, F] for another number of input channels.

    Of more channels, they are repeated in turn, and the copies share the weight; of fewer, they are added up
    in turn. So an image whose channels are all alike gives what it gave.

    Example:
        >>> adapt_channels(np.ones((3, 3, 3, 8), np.float32), (3, 3, 1, 8))[0, 0, 0, 0]
        np.float32(3.0)
    """
    old, new = kernel.shape[-2], shape[-2]
    share = np.arange(new)[:, None] % old == np.arange(old)[None] % new
    return np.einsum("no,...of->...nf", share / share.sum(0), kernel).astype(kernel.dtype)


def resize_positions(
    embeddings: np.ndarray,
    shape: tuple[int, ...],
    *,
    old: tuple[int, int] | None = None,
    new: tuple[int, int] | None = None,
) -> np.ndarray:
    """Learned embeddings of a grid of positions, interpolated (bicubic) to another grid.

    Args:
        embeddings: [..., prefix + h * w, D]; the prefix, class tokens and the like, is kept as it is.
        shape: the shape to come to, [..., prefix + h' * w', D].
        old: h and w; a square after at most 2 others when None.
        new: h' and w', likewise. For oblong images
            ``functools.partial(resize_positions, new=(14, 18))`` is what ``adapt`` takes.

    Returns:
        Array of that shape.

    Raises:
        ValueError: if the two are not such grids after the same prefix.

    Example:
        >>> resize_positions(np.ones((1, 1 + 14 * 14, 8), np.float32), (1, 1 + 16 * 16, 8)).shape
        (1, 257, 8)
    """

    def sides(length: int, grid: tuple[int, int] | None, prefix: int) -> tuple[int, int] | None:
        h, w = grid or (math.isqrt(max(0, length - prefix)),) * 2
        return (h, w) if h * w + prefix == length and h * w else None

    for prefix in (0, 1, 2):
        before, after = sides(embeddings.shape[-2], old, prefix), sides(shape[-2], new, prefix)
        if before and after:
            break
    else:
        raise ValueError(
            f"positions {embeddings.shape} and {tuple(shape)} are not grids after up to 2 tokens: of "
            f"{old or 'a square'} and of {new or 'a square'}; give old and new"
        )
    D = embeddings.shape[-1]
    grid = embeddings[..., prefix:, :].reshape(-1, *before, D)
    is_less = after[0] < before[0] or after[1] < before[1]
    finer = jax.image.resize(jnp.asarray(grid), (len(grid), *after, D), "bicubic", antialias=is_less)
    resized = np.asarray(finer).reshape(*embeddings.shape[:-2], after[0] * after[1], D)
    return np.concatenate([embeddings[..., :prefix, :], resized], -2)


class _Problems:
    def __init__(self) -> None:
        self.unmapped: list[str] = []
        self.missing: list[str] = []
        self.misshapen: list[str] = []
        self.unusable: list[str] = []
        self.unused: list[str] = []

    def check(self) -> None:
        kinds = {
            "no rule names": self.unmapped,
            "no tensor for": self.missing,
            "of another shape": self.misshapen,
            "no numbers to use": self.unusable,
            "tensors that nothing uses": self.unused,
        }
        lines = [f"{kind}: {', '.join(found)}" for kind, found in kinds.items() if found]
        if lines:
            raise ValueError("\n".join(["the weights do not fit the model", *lines]))


def _path(keys: Any) -> str:
    """A leaf's path without its collection: ``"stem/conv/kernel"``."""
    return jax.tree_util.keystr(keys[1:], simple=True, separator="/")


def _match(path: str, names: Names) -> _Match | None:
    """What the tensor of a leaf is called, and how it lies there."""
    layer, _, leaf = path.rpartition("/")
    for ours, theirs, *more in names:
        pattern = _pattern(ours)
        part, parts = map(int, more[1].split("/")) if len(more) > 1 else (0, 1)
        if found := pattern.fullmatch(path):
            return _Match(_filled(theirs, found), _layout(more[0] if more else "same"), part, parts)
        if found := pattern.fullmatch(layer):
            kind = (more[0] if more else "kernel") if leaf == "kernel" else "same"
            name = f"{_filled(theirs, found)}.{LEAVES.get(leaf, leaf)}"
            return _Match(name, _layout(kind), part, parts)
    return None


def _pattern(ours: str) -> re.Pattern[str]:
    """``"stage{s}/conv"`` to a pattern in which s stands for a number."""
    parts = re.split(r"\{(\w+)\}", ours)
    return re.compile("".join(rf"(?P<{p}>\d+)" if i % 2 else re.escape(p) for i, p in enumerate(parts)))


def _filled(theirs: str, found: re.Match[str]) -> str:
    def number(field: re.Match[str]) -> str:
        return str(int(found[field[1]]) + int(field[2] or 0))

    return re.sub(r"\{(\w+?)([+-]\d+)?\}", number, theirs)


def _fitted(
    path: str, match: _Match, tensor: np.ndarray, leaf: Any, adapt: Mapping[str, Any], problems: _Problems
) -> Any:
    """A tensor in our layout, shape and type."""
    try:
        array = match.read(tensor)
    except (ValueError, IndexError):
        array = tensor
    shape = tuple(leaf.shape)
    if array.shape != shape:
        for pattern, fit in adapt.items():
            if fnmatch.fnmatchcase(path, pattern):
                array = np.asarray(fit(np.asarray(array), shape))
    if array.shape != shape:
        problems.misshapen.append(f'{path} {shape} ("{match.name}" {tensor.shape})')
        return leaf
    if jnp.issubdtype(leaf.dtype, jnp.floating) and not jnp.issubdtype(array.dtype, jnp.floating):
        problems.unusable.append(f'{path} ("{match.name}" is {array.dtype}, quantised perhaps)')
        return leaf
    if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array.astype(np.float32)).all():
        problems.unusable.append(f'{path} ("{match.name}" is not finite)')
        return leaf
    return np.array(array, leaf.dtype, order="C")
