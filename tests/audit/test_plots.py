"""The pictures show what they were given."""

import sys

import jax
import numpy as np
import pytest

from jdl.audit import plot_images, plot_probes, plot_signal, signal_report
from jdl.models import MLP


def test_images_are_drawn_in_order_each_to_its_scale():
    gray, colour = np.linspace(-3, 5, 12).reshape(3, 4, 1), np.full((2, 2, 3), 0.25)
    figure = plot_images([gray, colour, gray[:2]], columns=2, titles="abc", title="all")
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["a", "b", "c"]
    first, second, _ = (axes.images[0].get_array() for axes in shown)
    np.testing.assert_allclose(first, (gray[..., 0] + 3) / 8, atol=1e-6)
    np.testing.assert_allclose(second, 0.25)
    assert len(figure.axes) == 4
    assert figure.get_suptitle() == "all"


def test_probes_and_signals_are_drawn_by_layer():
    (axes,) = plot_probes({"inputs": 0.5, "Dense_0": 0.75}).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [0.5, 0.75])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["inputs", "Dense_0"]
    module, inputs = MLP((6, 4)), np.ones((2, 3), np.float32)
    report = signal_report(
        module, module.init(jax.random.key(0), inputs), {"inputs": inputs}, lambda y, _: (y**2).mean(),
        jax.random.key(0),
    )  # fmt: skip
    figure = plot_signal(report, title="start")
    gradients = figure.axes[1].lines
    np.testing.assert_allclose(gradients[0].get_ydata(), [layer.output_gradient for layer in report.layers])
    np.testing.assert_array_equal(gradients[1].get_xdata(), [0, 2])  # dropout has no parameters
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plot_images([]), "no pictures"),
        (lambda: plot_images([np.ones((2, 2))]), r"pictures are \[height, width, channels\].*got \(2, 2\)"),
        (lambda: plot_probes({}), "no layers"),
    ],
)
def test_says_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'"\.\[experiments\]"'):
        plot_images([np.ones((2, 2, 1))])
