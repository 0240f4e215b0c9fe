"""Models as Hugging Face keeps them: a folder with ``config.json`` and weights, or a name on the Hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.interop.families import FAMILIES, family_of
from jdl.interop.family import Family
from jdl.interop.tensors import read_tensors, write_tensors
from jdl.interop.weights import adapt_channels, export_weights, load_weights, resize_positions
from jdl.nn.stack import stack_layers, unstack_layers

FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]
"""What is fetched from the Hub; PyTorch's files too where there are no others."""


# What may be other than the folder says: which parameters that changes, and how they are made to fit.
_ADAPTED: dict[str, tuple[str, Callable[[np.ndarray, tuple[int, ...]], Any]]] = {
    "image_size": ("positions", resize_positions),
    "num_channels": ("stem/*kernel", adapt_channels),
}


def hugging_face_folder(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The folder of a model: itself, or the local copy of what the Hub has under a name.

    What is fetched is kept in the Hub's own cache (``HF_HOME``), and with ``HF_HUB_OFFLINE=1`` only the cache
    is looked at. Of files with weights that could run code none is fetched where there are others.

    Args:
        source: a folder, or a name on the Hub such as ``"openai-community/gpt2"``.
        revision: branch, tag or commit on the Hub; a commit is the only one that cannot change.

    Returns:
        The folder, in which there is a ``config.json``.

    Raises:
        ValueError: for what is neither, or has no ``config.json``.
        ImportError: for a name on the Hub, without the extra.

    Example:
        >>> hugging_face_folder("no/such/folder")
        Traceback (most recent call last):
        ValueError: no/such/folder is neither a folder nor a name on the Hub, "owner/name"
    """
    folder = Path(source)
    if not folder.is_dir():
        name = os.fspath(source)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise ValueError(f'{source} is neither a folder nor a name on the Hub, "owner/name"')
        folder = _fetched(name, revision)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: it is not a model's folder")
    return folder


def end_tokens(source: str | os.PathLike[str], *, revision: str | None = None) -> tuple[int, ...]:
    """The tokens with which a published model ends a text, for ``generate(..., stop=)``.

    Args:
        source: a folder, or a name on the Hub, as for `hugging_face_folder`.
        revision: branch, tag or commit on the Hub.

    Returns:
        ``eos_token_id`` of ``generation_config.json``, or of ``config.json``; none where neither has it.

    Raises:
        ValueError: for what is no model's folder, or ids that are none.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text('{"eos_token_id": [2, 7]}')
        >>> end_tokens(folder)
        (2, 7)
    """
    folder = hugging_face_folder(source, revision=revision)
    for path in (folder / "generation_config.json", folder / "config.json"):
        try:
            found = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.is_file() else None
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from error
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            if not all(isinstance(i, int) and i >= 0 for i in ids):
                raise ValueError(
                    f'{path}: "eos_token_id" is {found!r}, and should be an id of a token, or several'
                )
            return tuple(ids)
    return ()


def from_hugging_face(
    source: str | os.PathLike[str],
    *,
    key: jax.Array | None = None,
    revision: str | None = None,
    param_dtype: Any = None,
    **options: Any,
) -> tuple[Any, Any]:
    """A published model of text or images.

    Of text: BERT, GPT-2, Llama, Mistral, Qwen2, T5 (and its version 1.1). Of images: ConvNeXt, EfficientNet,
    MobileNet v1 and v2, ResNet, ViT.

    The module gives what the class of `transformers` named in ``config.json`` gives: logits of the next
    token, of masked tokens, of classes; or, of a model without a head, its last states, and of images pooled
    features. The tokenizer is `jdl.data.load_tokenizer(hugging_face_folder(source))`. Models were trained on
    texts with their special tokens ([CLS] and [SEP], Llama's <s>), and ``tokenizer.encode_batch(texts,
    specials="around")`` puts them there; without them the numbers are other ones. Text ends where one of
    `end_tokens` is written. Embeddings of sentences are the outputs for such tokens with ``pool="mean"``,
    divided by their lengths. Dropout in training is what the folder says, which for published MobileNets is
    most of what there is: give another before training those.

    Args:
        source: a folder, or a name on the Hub, as for `hugging_face_folder`.
        key: draws what the folder has no weights for: the layers of another head. None allows no such.
        revision: branch, tag or commit on the Hub.
        param_dtype: of the parameters: ``jnp.bfloat16`` takes half the memory, and is what most large models
            are published in. One of 16 bits is that of the computation and of a decoder's cache too, unless
            ``dtype`` says another. float32 when None, whatever the files hold.
        **options: attributes of the module or its block, instead of what the folder says:
            ``dtype=jnp.bfloat16``, ``scan=True``, ``chunk=1024``, ``dropout=0.0``; ``head=2, pool="mean"``
            with a key for a new classifier of sequences. Of images also ``num_channels=1``, for which the
            first convolution is adapted (`adapt_channels`), and of a ViT ``image_size=384``, for which the
            positions are (`resize_positions`); other networks take images of any size as they are.

    Returns:
        The module, and its variables: NumPy arrays, for `jax.device_put`.

    Raises:
        ValueError: if ``param_dtype`` is no floating type; if the folder is of another family of models, asks
            for a computation that is not there (naming the field), has weights that do not fit (naming them
            all) or damaged ones.
        FileNotFoundError: if it has no weights.
        ImportError: if reading the files needs an extra.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from jdl import models
        >>> model = models.gpt(vocab_size=11, context=4, width=8, depth=1, num_heads=2)
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
        >>> folder = tempfile.mkdtemp()
        >>> to_hugging_face(folder, model, variables)
        >>> again, loaded = from_hugging_face(folder, dtype=jnp.bfloat16)
        >>> again.apply(loaded, jnp.ones((2, 3), jnp.int32)).shape
        (2, 3, 11)
    """
    param_dtype = jnp.dtype(param_dtype or jnp.float32)
    if not jnp.issubdtype(param_dtype, jnp.floating):
        raise ValueError(f"parameters are of a floating type, such as bfloat16; got {param_dtype}")
    if param_dtype.itemsize < 4:
        options = {"dtype": param_dtype, **options}
    folder = hugging_face_folder(source, revision=revision)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        family = _family(config)
        sizes = {name: options.pop(name) for name in _ADAPTED if name in options and name in family.fields}
        module = family.build(config, options)
        example = family.example(family.read({**config, **sizes}))
        adapt = dict(_ADAPTED[name] for name in sizes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        tensors = _named(read_tensors(folder), family)
        module, tensors = _untied(module, tensors, family, options)
        return module, _loaded(module, tensors, family, example, key, param_dtype, adapt)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def to_hugging_face(
    folder: str | os.PathLike[str],
    module: Any,
    variables: Any,
    tokenizer: Any = None,
    **fields: Any,
) -> None:
    """Writes a model as a folder that `transformers` loads with ``from_pretrained``.

    Args:
        folder: is made where it is missing; files of the same names are replaced.
        module: of a family that `from_hugging_face` reads.
        variables: its variables.
        tokenizer: written as ``tokenizer.json``: one of `jdl.data` that is kept in this form, the folder of
            one, or None.
        **fields: further fields of ``config.json``, such as ``eos_token_id=50256``; for an EfficientNet of
            images of another size than the published one, ``image_size`` and the ``depthwise_padding`` that
            follows from it.

    Raises:
        ValueError: if `transformers` has no such model, naming what it could not say; if it has no place for
            the biases of a head and they are not zeros; or no such tokenizer.
        ImportError: if safetensors is not installed.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from jdl import models
        >>> model = models.bert(vocab_size=11, context=4, width=8, depth=1, num_heads=2)
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
        >>> folder = Path(tempfile.mkdtemp())
        >>> to_hugging_face(folder, model, variables)
        >>> json.loads((folder / "config.json").read_text())["architectures"]
        ['BertForMaskedLM']
    """
    family = family_of(module)
    flat = unstack_layers(variables)
    config = family.describe(module, flat["params"], fields)
    texts = {} if tokenizer is None else _tokenizer_files(tokenizer)
    tensors = _without_zeros(export_weights(flat, family.rules(module)), family)
    if family.base and config["architectures"][0].endswith("Model"):
        tensors = {name.removeprefix(family.base): tensor for name, tensor in tensors.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors)
    texts["config.json"] = json.dumps(config, indent=2) + "\n"
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")


def _family(config: Any) -> Family:
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in FAMILIES:
        raise ValueError(f'"model_type" is {kind!r}; supported are {", ".join(FAMILIES)}')
    return FAMILIES[kind]


def _fetched(name: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f'{name} is no folder, and fetching it from the Hub needs the extra: pip install -e ".[interop]"'
        ) from error
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=FILES))
        if not list(folder.glob("model*.safetensors")):
            patterns = [*FILES, "pytorch_model*.bin"]
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is no folder, and could not be had from the Hub: {error}") from error
    return folder


def _named(tensors: Mapping[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """The tensors under the names of a model with a head, and of today."""
    named = {}
    for name, tensor in tensors.items():
        for old, new in family.renamed.items():
            name = name.replace(old, new)
        named[name] = tensor
    if not any(name.startswith(family.base) for name in named):
        heads = tuple(pattern.split("*")[0] for pattern in family.unused if not pattern.startswith("*"))
        named = {name if name.startswith(heads) else family.base + name: x for name, x in named.items()}
    return named | {
        name: np.zeros(len(named[weight]), np.float32)
        for name in family.zeros
        if (weight := name.replace(".bias", ".weight")) in named and name not in named
    }


def _without_zeros(tensors: dict[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """The tensors without the biases that `transformers` has no place for."""
    if lost := [name for name in family.zeros if np.any(tensors.get(name, 0))]:
        raise ValueError(f"transformers has no {', '.join(lost)}: the biases of such a head must be zeros")
    return {name: tensor for name, tensor in tensors.items() if name not in family.zeros}


def _untied(
    module: Any, tensors: dict[str, np.ndarray], family: Family, options: Mapping[str, Any]
) -> tuple[Any, dict[str, np.ndarray]]:
    """The module, with a head of its own where the tensors have one, and the tensors without copies."""
    for copy, source in family.copies.items():
        is_head = copy == "lm_head.weight"
        if copy not in tensors or (is_head and module.head != "tied"):
            continue
        if source not in tensors or np.array_equal(tensors[copy], tensors[source]):
            tensors = {source if name == copy else name: x for name, x in tensors.items() if name != source}
            continue
        if not is_head and module.head != "masked":
            continue
        if not is_head or "head" in options or getattr(module, "logit_scale", 1) != 1:
            raise ValueError(f'"{copy}" and "{source}" differ, where the model has them be the same')
        # What `transformers` does too, whatever the configuration says.
        module = module.clone(head="untied")
    return module, tensors


def _loaded(
    module: Any,
    tensors: Mapping[str, np.ndarray],
    family: Family,
    example: Any,
    key: jax.Array | None,
    param_dtype: Any,
    adapt: Mapping[str, Callable[[np.ndarray, tuple[int, ...]], Any]],
) -> Any:
    """The module's variables."""
    is_scanned = getattr(module, "scan", False)
    plain, rules = module.clone(scan=False) if is_scanned else module, family.rules(module)

    def init(key: jax.Array) -> Any:
        variables = plain.init(key, example)
        return {**variables, "params": jax.tree.map(lambda x: x.astype(param_dtype), variables["params"])}

    variables = dict(jax.eval_shape(init, jax.random.key(0)))
    params = dict(variables["params"])

    def fits(part: str) -> bool:
        try:
            load_weights({"params": {part: params[part]}}, tensors, rules, ignore=["*"])
        except ValueError:
            return False
        return True

    missing = [part for part in family.heads if part in params and not fits(part)]
    if missing and key is not None:
        draw = jax.jit(lambda key: {part: init(key)["params"][part] for part in missing})
        variables["params"] = params | jax.device_get(draw(key))
    try:
        loaded = load_weights(
            variables,
            tensors,
            rules,
            fresh=missing if key is not None else (),
            ignore=family.unused,
            adapt=adapt,
        )
    except ValueError as error:
        if not missing or key is not None:
            raise
        raise ValueError(f"{error}\nwith a key, {' and '.join(missing)} would be drawn anew") from None
    return stack_layers(loaded) if is_scanned else loaded


def _tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """The texts of a tokenizer's files by name."""
    # Which class reads it; without this, `transformers` makes one up that suits the family.
    files = {"tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}\n'}
    if not hasattr(tokenizer, "to_json"):
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
        found = {name: Path(tokenizer, name) for name in names}
        if not found["tokenizer.json"].is_file():
            raise ValueError(f"{tokenizer} is neither a tokenizer nor a folder with a tokenizer.json")
        return files | {name: path.read_text("utf-8") for name, path in found.items() if path.is_file()}
    description = tokenizer.to_json().get("tokenizer")
    if description is None:
        raise ValueError(f"{tokenizer} has no form that transformers reads; one of subwords has")
    return files | {"tokenizer.json": json.dumps(description, ensure_ascii=False)}
