"""A network's convolutions one by one: they are found, all compute the same, and tables add up."""

import json

import numpy as np
import pytest

from experiments.benchmarks import __main__ as command_line
from experiments.benchmarks import convolutions
from experiments.benchmarks.convolutions import Convolution

LAYERS = {
    Convolution((2, 8, 6, 3), (3, 3, 3, 6), 1, (1, 1), 1): 1,
    Convolution((2, 8, 6, 8), (3, 3, 8, 6), 2, (1, 1), 1): 1,
    Convolution((2, 9, 8, 4), (3, 5, 1, 4), 2, (1, 2), 4): 1,
    Convolution((2, 8, 6, 8), (1, 1, 8, 6), 1, (0, 0), 1): 2,
}


def test_the_layers_are_those_of_the_network():
    layers = convolutions.convolutions("resnet20")
    assert sum(layers.values()) == 19
    # He et al. 2016: 0.041 G multiply-adds an image; the last layer's 640 are no convolution.
    total = sum(count * layer.flops for layer, count in layers.items())
    assert total / 2 / 128 == pytest.approx(0.041e9, rel=0.02)
    assert "3x3, 16 to 32 at 32x32, stride 2" in map(str, layers)
    mobile = convolutions.convolutions("mobilenet_v2")
    assert sum(mobile.values()) == 52
    assert sum(count for layer, count in mobile.items() if layer.groups > 1) == 17


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_both_compute_the_same(torch, layer):
    given = convolutions.drawn(layer)
    threads = torch.get_num_threads()
    passes = zip(convolutions.jdl(layer, *given), convolutions.pytorch(layer, *given), strict=True)
    for ours, theirs in passes:
        np.testing.assert_allclose(ours(), theirs(), rtol=1e-4, atol=1e-4)
    torch.set_num_threads(threads)


def test_a_table_adds_up(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(convolutions, "convolutions", lambda workload: LAYERS)
    told = {"jdl": [[4.0, 5, 6], [1, 1, 1], [2, 2, 9], [3, 3, 3]], "torch": [[1.0, 1, 1]] * 4}

    monkeypatch.setattr(convolutions, "apart", lambda module, name, workload: told[name])
    found = convolutions.measure("resnet20", rounds=2)
    assert [row.label for row in found[:3]] == [
        "all convolutions",
        "depthwise 3x5, 4 to 4 at 9x8, stride 2: gradient of its kernel",
        "3x3, 3 to 6 at 8x6: gradient of its kernel",
    ]
    # The gradient of the first layer's input is of no use; the last layer is there twice.
    assert found[0].milliseconds == [4 + 6 + 3 + 13 + 2 * 9] * 2
    assert found[0].peer == [2 + 3 + 3 + 2 * 3] * 2
    twice = next(row for row in found if row.label.startswith("2 layers of 1x1, 8 to 6 at 8x6: forward"))
    assert twice.milliseconds == [6, 6]
    assert twice.gflop == pytest.approx(2 * 2 * 2 * 48 * 8 * 6 / 1e9)

    monkeypatch.setattr(convolutions, "NETWORKS", ("resnet20",))
    monkeypatch.setattr(command_line, "_is_there", lambda peer: True)  # nothing is started
    assert command_line.main(["convolutions", "--peers", "torch", "--out", str(tmp_path)]) == 0
    assert "PyTorch, GFLOP/s" in capsys.readouterr().out


def test_each_pass_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(convolutions, "convolutions", lambda workload: dict(list(LAYERS.items())[:2]))
    monkeypatch.setattr(convolutions, "SECONDS", 0.01)
    convolutions.main("jdl", "resnet20")
    times = json.loads(capsys.readouterr().out)
    assert np.shape(times) == (2, 3)
    assert np.min(times) > 0


def test_without_pytorch_nothing_is_measured(capsys):
    assert command_line.main(["convolutions", "--peers", ""]) == 0
    assert "nothing to compare with" in capsys.readouterr().out
