"""Files of named tensors: safetensors, PyTorch's own, NumPy's.

No code in a file is ever run: PyTorch files are read by its restricted reader of weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

PYTORCH = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")


def read_tensors(path: str | os.PathLike[str], entry: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file by name.

    Args:
        path: a ``.safetensors`` or ``.npz`` file, a PyTorch file (``.pth``, ``.pt``, ``.th``, ``.bin``, ...;
            this needs PyTorch), a Hugging Face index of several such files (``*.index.json``), or a folder
            that holds one of these named ``model`` or ``pytorch_model``.
        entry: which entry of a PyTorch training checkpoint holds the tensors, such as "state_dict_ema"; when
            None, ``state_dict``, ``model_state_dict`` or ``model``, or the only one that does.

    Returns:
        Arrays in the type they were stored in; bfloat16 is JAX's. The prefixes ``module.`` and ``_orig_mod.``
        (of models that are spread over devices, or compiled) are dropped where all have them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds anything but tensors, tensors of a type that is not read
            (naming it), or several entries of them.
        ImportError: if the package that reads the format is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "weights.npz")
        >>> np.savez(path, weight=np.ones((2, 3), np.float32))
        >>> read_tensors(path)["weight"].shape
        (2, 3)
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.name.endswith(".index.json"):
        tensors: dict[str, np.ndarray] = {}
        for part in sorted(set(json.loads(path.read_text())["weight_map"].values())):
            tensors |= read_tensors(path.parent / part, entry)
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix == ".npz":
        damage = _damage(path, OSError, ValueError, EOFError, zipfile.BadZipFile)
        with damage, path.open("rb") as stream, np.load(stream) as file:
            tensors = dict(file)
    elif path.suffix in PYTORCH:
        tensors = _read_pytorch(path, entry)
    else:
        raise ValueError(f"{path} is not of a known format: .safetensors, .npz, {', '.join(PYTORCH)}")
    for wrapper in ("module.", "_orig_mod."):
        if tensors and all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Any], **metadata: str) -> None:
    """Writes named tensors as safetensors, whole or not at all.

    Args:
        path: a ``.safetensors`` file; one that exists is replaced.
        tensors: arrays by name.
        **metadata: texts kept in the file's header.

    Raises:
        ImportError: if safetensors is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "weights.safetensors")
        >>> write_tensors(path, {"weight": np.ones((2, 3), np.float32)})
        >>> read_tensors(path)["weight"].sum()
        np.float32(6.0)
    """
    path = Path(path)
    numpy = _safetensors()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        numpy.save_file(arrays, partial, metadata={"format": "pt", **metadata})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _in_folder(folder: Path) -> Path:
    stems = ("model", "pytorch_model")
    suffixes = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
    names = [stem + suffix for suffix in suffixes for stem in stems]
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{folder} holds none of {', '.join(names)}")


@contextlib.contextmanager
def _damage(path: Path, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise ValueError(f"{path} cannot be read, it may be damaged or cut off: {error}") from error


def _safetensors() -> Any:
    try:
        import safetensors.numpy as numpy
    except ImportError as error:
        raise ImportError('safetensors files need the extra: pip install "jdl-jax[interop]"') from error
    return numpy


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    _safetensors()
    import safetensors

    # The header is read here because NumPy has no bfloat16 of its own to read it into.
    with _damage(path, safetensors.SafetensorError, OSError, KeyError, ValueError):
        entries = safetensors.deserialize(path.read_bytes())
    if unknown := {name: entry["dtype"] for name, entry in entries if entry["dtype"] not in _DTYPES}:
        name, kind = min(unknown.items())
        raise ValueError(
            f"{path} has {len(unknown)} tensors of types that are not read, for example {name!r} of {kind}; "
            f"those read are {', '.join(sorted(_DTYPES))}: save it in one of them"
        )
    tensors = {}
    with _damage(path, ValueError):
        for name, entry in entries:
            tensors[name] = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def _read_pytorch(path: Path, entry: str | None) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path.name} is a PyTorch file, which only PyTorch reads: pip install torch, or ask for the "
            "weights as .safetensors"
        ) from error
    import pickle

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and running what it holds could do anything on this machine; "
            f"save its state_dict() alone: {_COLOURS.sub('', str(error)).splitlines()[0]}"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read, it may be damaged or cut off: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    inside = [
        name
        for name, part in loaded.items()
        if isinstance(part, dict) and part and all(isinstance(x, torch.Tensor) for x in part.values())
    ]
    usual = [name for name in ("state_dict", "model_state_dict", "model") if name in inside]
    chosen = [entry] if entry is not None else usual[:1] or inside
    if entry is not None and entry not in inside:
        raise ValueError(f"{path} has no tensors under {entry!r}; it has some under {inside}")
    if len(chosen) > 1:
        raise ValueError(f"{path} has tensors under {inside}: say which by entry")
    loaded = loaded[chosen[0]] if chosen else loaded
    others = [name for name, tensor in loaded.items() if not isinstance(tensor, torch.Tensor)]
    if others:
        raise ValueError(f"{path} holds entries that are no tensors: {others[:5]}")

    def array(name: str, tensor: Any) -> np.ndarray:
        tensor = tensor.detach()
        try:
            if tensor.dtype == torch.bfloat16:  # whose bits NumPy cannot take as such
                return tensor.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
            return tensor.numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            kind = f"{tensor.dtype}, {tensor.layout}"
            raise ValueError(f"{path}: {name!r} is {kind}, which is not supported: {error}") from error

    return {name: array(name, tensor) for name, tensor in loaded.items()}
