"""What a Hugging Face ``config.json`` says of a model, as one of our modules, and back.

Every field that the computation depends on is either read or may have one value only; any other value is
refused by name. Dropout has several rates there and one here: that of the residual stream is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Config = Mapping[str, Any]

ACTIVATIONS_HERE = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
ACTIVATIONS_THERE = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}

# Weights stored in another way, code of the folder's own, heads that were cut out, attention to a memory.
ONLY: dict[str, Any] = {
    "quantization_config": None,
    "auto_map": None,
    "pruned_heads": {},
    "add_cross_attention": False,
}

# Attributes of ours that say how to compute, start or train, not what is computed.
FREE = {
    "dropout",
    "momentum",
    "stochastic_depth",
    "scan",
    "remat",
    "chunk",
    "dtype",
    "init_std",
    "residual_scale",
    "embed_std",
    "zero_init",
    "parent",
    "name",
}


# What may stand for a default of some type; the sides of an image come alone or in pairs.
_KINDS: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int, list, tuple),
    float: (int, float),
    str: (str,),
    list: (list, tuple),
}


class Family(NamedTuple):
    """How the models of one ``model_type`` are written down.

    Attributes:
        kind: the ``model_type``.
        fields: the fields that are read, with what `transformers` takes where one is missing.
        only: the fields that may have one value only, with it.
        module: fields as a module.
        config: a module and its parameters as fields; `describe` finds what they cannot say.
        outputs: the classes of `transformers` that are read, each with the attributes that make a module give
            what it gives; ``int`` stands for a number of classes. The last is taken where none is named.
        example: inputs to initialise the module with, for some fields.
        rules: a module's map of names.
        base: what the names of the model without its head begin with.
        heads: parts of the module that come after that.
        unused: patterns of tensors that belong to other heads, or are computed again.
        copies: tensors that may repeat another, with its name.
        aliases: other names of fields.
        renamed: parts of names that were other ones once.
        nullable: fields that may be null although what is taken for a missing one is not.
        zeros: biases that we have and they have not, so that ours must be zero there.
    """

    kind: str
    fields: Mapping[str, Any]
    only: Mapping[str, Any]
    module: Callable[[Config], Any]
    config: Callable[[Any, Any], dict[str, Any]]
    outputs: Sequence[tuple[str, Mapping[str, Any]]]
    example: Callable[[Config], Any]
    rules: Callable[[Any], Sequence[tuple[str, ...]]]
    base: str
    heads: Sequence[str]
    unused: Sequence[str] = ()
    copies: Mapping[str, str] = {}
    aliases: Mapping[str, str] = {}
    renamed: Mapping[str, str] = {}
    nullable: Sequence[str] = ()
    zeros: Sequence[str] = ()

    def read(self, config: Config) -> dict[str, Any]:
        """The fields.

        Raises:
            ValueError: names one that asks for another computation.
        """
        config = {self.aliases.get(name, name): value for name, value in config.items()}
        for name, value in {**ONLY, **self.only}.items():
            if name in config and config[name] not in ((value,) if value else (value, None)):
                raise ValueError(f'"{name}" is {config[name]!r}; only {value!r} is supported')
        fields = {name: config.get(name, default) for name, default in self.fields.items()}
        for name, default in self.fields.items():
            kinds = _KINDS.get(type(default))
            if fields[name] is None and name in self.nullable:
                continue
            if kinds and (
                not isinstance(fields[name], kinds) or isinstance(fields[name], bool) != (kinds == (bool,))
            ):
                raise ValueError(f'"{name}" is {fields[name]!r}, and should be like {default!r}')
        return fields

    def build(self, config: Config, options: Mapping[str, Any]) -> Any:
        """The module that a configuration describes.

        Args:
            config: what ``config.json`` holds.
            options: attributes of the module, or of its block, that are to be otherwise. With one that
                decides what comes out among them, the configuration may name a class that is not known.

        Raises:
            ValueError: names a field that asks for another computation, or an option that there is not.
        """
        module = self.module(self.read(config))
        names = {field.name for field in dataclasses.fields(module)}
        changes = {
            **self._outputs(config, options),
            **{name: x for name, x in options.items() if name in names},
        }
        inner = {name: x for name, x in options.items() if name not in names}
        known = {field.name for field in dataclasses.fields(module.block)} if "block" in names else set()
        if unknown := sorted(set(inner) - known):
            raise ValueError(f"{type(module).__name__} has no {', '.join(unknown)}")
        if inner:
            changes["block"] = dataclasses.replace(module.block, **inner)
        return module.clone(**changes)

    def describe(self, module: Any, params: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A module as a configuration.

        Args:
            module: the module.
            params: its parameters.
            fields: further fields.

        Raises:
            ValueError: names what a configuration cannot say of the module.
        """
        architecture, attributes = next(
            (each for each in self.outputs if _is_like(module, each[1])), self.outputs[-1]
        )
        own = {name: getattr(module, name) for name in attributes}
        config = {"model_type": self.kind, "architectures": [architecture], **self.config(module, params)}
        classes = [own[name] for name, value in attributes.items() if value is int]
        if classes:
            config["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes[0])}
            config["label2id"] = {f"LABEL_{i}": i for i in range(classes[0])}
        config |= fields
        again = self.module(self.read(config)).clone(**own)
        said, wanted = _attributes(again), _attributes(module)
        lost = [
            f"{name} is {wanted[name]!r}, not {said[name]!r}" for name in said if said[name] != wanted[name]
        ]
        if lost:
            raise ValueError(
                f"a {type(module).__name__} cannot be written as {architecture} of transformers: "
                f"{'; '.join(lost)}"
            )
        return config

    def _outputs(self, config: Config, options: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes that the class named in a configuration has."""
        named = (config.get("architectures") or [self.outputs[-1][0]])[0]
        for name, attributes in self.outputs:
            if name == named:
                labels = config.get("id2label")
                classes = config.get("num_labels", 2) if labels is None else len(labels)
                return {name: classes if value is int else value for name, value in attributes.items()}
        deciding = sorted({name for _, attributes in self.outputs for name in attributes})
        if not set(deciding) & set(options):
            known = dict.fromkeys(name for name, _ in self.outputs)
            raise ValueError(
                f'"architectures" is {[named]}; supported are {", ".join(known)}; or say what is to come out '
                f"by {', '.join(deciding)}"
            )
        return {}


def activation_here(fields: Config, name: str) -> str:
    """Our name of the activation that a field names.

    Raises:
        ValueError: for one that is not there.
    """
    if fields[name] not in ACTIVATIONS_HERE:
        raise ValueError(f'"{name}" is {fields[name]!r}; supported are {", ".join(ACTIVATIONS_HERE)}')
    return ACTIVATIONS_HERE[fields[name]]


def one_token(fields: Config) -> Any:
    """Inputs [1, 1] of a language model."""
    return np.zeros((1, 1), np.int32)


def _is_like(module: Any, attributes: Mapping[str, Any]) -> bool:
    def fits(x: Any, wanted: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and x > 0 if wanted is int else x == wanted

    return all(fits(getattr(module, name), wanted) for name, wanted in attributes.items())


def _attributes(module: Any, prefix: str = "") -> dict[str, Any]:
    """What a module computes, attribute by attribute, sizes that follow from others filled in."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if field.name in FREE:
            continue
        if field.name == "block":
            block = dataclasses.replace(
                value,
                head_size=value.size_of_head(module.width),
                num_kv_heads=value.num_kv_heads or value.num_heads,
                qkv_bias=value.use_bias if value.qkv_bias is None else value.qkv_bias,
            )
            found |= _attributes(block, "block.")
        else:
            found[prefix + field.name] = tuple(value) if isinstance(value, list) else value
    if found.get("hidden", 0) is None:
        found["hidden"] = 4 * found["width"]
    if found.get("decoder_depth", 0) is None:
        found["decoder_depth"] = found["depth"]
    return found
