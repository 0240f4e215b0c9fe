"""Maps of names of recurrent layers and networks."""

from __future__ import annotations

from collections.abc import Sequence


def recurrent_torch(ours: str = "", theirs: str = "") -> list[tuple[str, ...]]:
    """The map of a `jdl.nn.RecurrentStack` from ``torch.nn.RNN``, ``LSTM`` and ``GRU``.

    Both keep two biases a layer, so weights make the round trip unchanged. A layer of the stack is in one
    direction, or a `jdl.nn.Bidirectional`.

    Args:
        ours: path of the stack in the model; empty where the stack is the model.
        theirs: name of the module in theirs.

    Returns:
        Rules for `jdl.interop.load_weights`.

    Example:
        >>> recurrent_torch("encoder", "rnn")[0]
        ('encoder/layer{i}/input/kernel', 'rnn.weight_ih_l{i-1}', 'kernel')
    """
    ours, theirs = f"{ours}/" if ours else "", f"{theirs}." if theirs else ""
    directions = (("", ""), ("forward/", ""), ("backward/", "_reverse"))
    layers = [(f"{ours}layer{{i}}/{way}", f"{theirs}{{}}_l{{i-1}}{end}") for way, end in directions]
    return [rule for layer, name in layers for rule in _layer(layer, name)]


def recurrent_torch_layer(ours: str, theirs: str, number: int = 0) -> list[tuple[str, ...]]:
    """The map of one layer in one direction from one of a PyTorch module.

    Args:
        ours: path of the layer in the model; empty where the layer is the model.
        theirs: name of the module; empty where it is the model.
        number: of the layer in it, from 0.

    Returns:
        Rules for `jdl.interop.load_weights`.

    Example:
        >>> recurrent_torch_layer("stack/layer2", "rnns.1")[1]
        ('stack/layer2/input/bias', 'rnns.1.bias_ih_l0')
    """
    prefix = f"{theirs}." if theirs else ""
    return _layer(f"{ours}/" if ours else "", f"{prefix}{{}}_l{number}")


def _layer(ours: str, theirs: str) -> list[tuple[str, ...]]:
    def name(leaf: str) -> str:
        return theirs.replace("{}", leaf)

    return [
        (f"{ours}input/kernel", name("weight_ih"), "kernel"),
        (f"{ours}input/bias", name("bias_ih")),
        (f"{ours}recurrent/kernel", name("weight_hh"), "kernel"),
        (f"{ours}recurrent/bias", name("bias_hh")),
    ]


RECURRENT_TORCH: Sequence[tuple[str, ...]] = recurrent_torch()
"""`jdl.nn.RecurrentStack` from ``torch.nn.RNN``, ``torch.nn.LSTM`` and ``torch.nn.GRU``."""

AWD_LSTM_SALESFORCE: Sequence[tuple[str, ...]] = [
    ("tokens", "encoder"),
    ("layers/layer{i}/input/kernel", "rnns.{i-1}.weight_ih_l0", "kernel"),
    ("layers/layer{i}/input/bias", "rnns.{i-1}.bias_ih_l0"),
    ("layers/layer{i}/recurrent/kernel", "rnns.{i-1}.weight_hh_l0", "kernel"),
    ("layers/layer{i}/recurrent/bias", "rnns.{i-1}.bias_hh_l0"),
    ("head_bias", "decoder.bias"),
    ("head", "decoder"),
]
"""`jdl.models.RecurrentLM` from the modules that the authors' code trains, before weight drop renames
``weight_hh_l0`` (to ``weight_hh_l0_raw``, in ``module``); with tied weights ``ignore=["decoder.weight"]``."""
