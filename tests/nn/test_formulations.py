"""Each fast formulation equals its plain twin, in value and gradient, and is used where it is meant to be."""

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

from jdl import models
from jdl.core import Array
from jdl.models import LeNet5
from jdl.nn import LSTM, Conv, avg_pool, convolution, max_pool
from jdl.nn.convolution import banded_convolution, convolve
from jdl.nn.doubling import double, halve
from jdl.nn.linear import flat_dot_general
from jdl.nn.residual import residual

ORDER = ("NHWC", "HWIO", "NHWC")


def normal(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def values_and_gradients(function, *arguments):
    """The value, and the gradients of a function that weighs each of its entries differently."""
    y, pullback = jax.vjp(function, *arguments)
    return y, *pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def assert_equal(fast, plain, *arguments):
    actual, expected = (
        jax.jit(functools.partial(values_and_gradients, f))(*arguments) for f in (fast, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)


# (batch, height, width, channels), (kernel height, kernel width, features)
SHAPES = [
    ((2, 32, 32, 1), (5, 5, 6)),
    ((2, 14, 14, 6), (5, 5, 16)),
    ((2, 7, 9, 3), (3, 2, 4)),
    ((1, 6, 15, 2), (1, 3, 5)),
    ((3, 5, 4, 1), (5, 4, 2)),
    ((2, 8, 8, 3), (4, 1, 3)),
]


@pytest.mark.parametrize(("images", "kernel"), SHAPES)
def test_banded_convolution_equals_convolution(images, kernel):
    x, w = normal(0, *images), normal(1, *kernel[:2], images[-1], kernel[-1])
    assert_equal(
        banded_convolution,
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=ORDER),
        x,
        w,
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 3))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("rates", [(1, 1), (2, 1)])
@pytest.mark.parametrize("side", [3, 9])
def test_depthwise_convolution_equals_convolution(padding, strides, rates, side, monkeypatch):
    monkeypatch.setattr(convolution, "_LARGE", 0 if side == 3 else 2**15)
    x, w = normal(0, 2, 17, 12, 5), normal(1, side, 3, 1, 5)
    options = {
        "padding": padding,
        "rhs_dilation": rates,
        "dimension_numbers": ORDER,
        "feature_group_count": 5,
    }
    plain = functools.partial(lax.conv_general_dilated, window_strides=strides, **options)
    fast = functools.partial(convolve, strides=strides, **options)
    assert_equal(fast, plain, x, w)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(lambda x, w: cpu_branch(fast, x, w))(x, w))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_depthwise_convolution_of_few_bits_is_summed_in_many(dtype):
    x, w = normal(0, 1, 4, 4, 256).astype(dtype), normal(1, 3, 3, 1, 256).astype(dtype)
    options = {"padding": "SAME", "dimension_numbers": ORDER, "feature_group_count": 256}

    def of_sum(x, w):
        return convolve(x, w, (1, 1), **options).astype(jnp.float32).sum()

    exact = lax.conv_general_dilated(x.astype(jnp.float32), w.astype(jnp.float32), (1, 1), **options)
    y = convolve(x, w, (1, 1), **options)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, exact.astype(dtype))
    gradient = jax.jit(jax.grad(of_sum, (0, 1)))
    assert all(g.dtype == dtype for g in gradient(x, w))
    # A kernel of all channels with all, as XLA:CPU takes for the gradient of groups, would not fit in here.
    memory = gradient.lower(x, w).compile().memory_analysis().temp_size_in_bytes
    assert memory < 3 * 3 * 256 * 256


def test_a_type_of_eight_bits_is_left_to_xla():
    x, w = jnp.ones((1, 4, 4, 2), jnp.float8_e4m3fn), jnp.ones((3, 3, 1, 2), jnp.float8_e4m3fn)
    options = {"padding": "SAME", "dimension_numbers": ORDER, "feature_group_count": 2}
    assert jax.eval_shape(functools.partial(convolve, strides=(1, 1), **options), x, w).dtype == x.dtype


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 0), (1, 0))])
def test_convolution_of_single_pixels_is_a_product(strides, padding):
    x, w = normal(0, 2, 5, 6, 7), normal(1, 1, 1, 7, 3)
    options = {"window_strides": strides, "padding": padding, "dimension_numbers": ORDER}
    fast = functools.partial(convolve, strides=strides, padding=padding, dimension_numbers=ORDER)
    assert_equal(fast, functools.partial(lax.conv_general_dilated, **options), x, w)
    program = str(jax.make_jaxpr(lambda x, w: cpu_branch(fast, x, w))(x, w))
    assert ("conv_general_dilated" in program) == (not isinstance(padding, str))


def test_what_only_xla_knows_is_left_to_xla():
    x, w = normal(0, 4, 6, 6, 3), normal(1, 3, 3, 3, 4)
    options = {"strides": (1, 1), "padding": "SAME", "dimension_numbers": ORDER, "batch_group_count": 2}
    plain = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=ORDER, batch_group_count=2)
    np.testing.assert_array_equal(convolve(x, w, **options), plain)
    assert convolve(x, w, (1, 1), "VALID", dimension_numbers=ORDER, precision="highest").shape == (4, 4, 4, 4)
    # A window that does not fit sees nothing, in whichever formulation.
    assert convolve(x, normal(1, 7, 7, 3, 4), (1, 1), "VALID", dimension_numbers=ORDER).shape == (4, 0, 0, 4)


def cpu_branch(function, *arguments):
    """The function with its formulation for CPU alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lax, "platform_dependent", lambda *x, cpu, default: cpu(*x))
        return function(*arguments)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(
    ("window", "strides"), [((3, 3), (2, 2)), ((3, 3), (1, 1)), ((2, 3), (1, 2)), ((3, 2), (4, 4))]
)
def test_overlapping_maxima_equal_the_sliding_window(window, strides, padding):
    x = jnp.round(2 * normal(0, 2, 9, 10, 3))  # many ties
    pads = ((padding, padding), (padding, padding))
    assert_equal(
        lambda x: max_pool(x, window, strides, padding), lambda x: linen.max_pool(x, window, strides, pads), x
    )
    assert "reduce_window" not in str(
        jax.make_jaxpr(lambda x: cpu_branch(lambda x: max_pool(x, window, strides, padding), x))(x)
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 3))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("channels", [3, 8])
def test_convolve_equals_convolution(padding, strides, channels):
    x, w = normal(0, 2, 9, 8, channels), normal(1, 3, 4, channels, 5)
    plain = functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=ORDER
    )
    fast = functools.partial(convolve, strides=strides, padding=padding, dimension_numbers=ORDER)
    assert_equal(fast, plain, x, w)


@pytest.mark.parametrize(
    ("images", "kernel", "order", "options"),
    [
        ((2, 9, 16), (4, 16, 5), ("NWC", "WIO", "NWC"), {"padding": [(3, 3)]}),
        ((2, 9, 16), (3, 16, 5), ("NWC", "WIO", "NWC"), {"padding": [(4, 1)], "rhs_dilation": (2,)}),
        ((2, 9, 16), (3, 8, 4), ("NWC", "WIO", "NWC"), {"padding": [(2, 2)], "feature_group_count": 2}),
        ((2, 16, 9), (5, 16, 4), None, {"padding": [(3, 3)]}),
        ((2, 6, 5, 9), (3, 3, 9, 4), ORDER, {"padding": [(2, 2), (0, 0)]}),
        (
            (2, 4, 3, 3, 2),
            (2, 2, 2, 2, 3),
            ("NDHWC", "DHWIO", "NDHWC"),
            {"padding": [(1, 1), (0, 0), (2, 0)]},
        ),
    ],
)
def test_padding_that_is_slow_or_wrong_on_a_cpu_is_apart(images, kernel, order, options):
    x, w = normal(0, *images), normal(1, *kernel)
    options = {"dimension_numbers": order, **options}
    strides = (1,) * (x.ndim - 2)
    fast = functools.partial(convolve, strides=strides, **options)
    plain = functools.partial(lax.conv_general_dilated, window_strides=strides, **options)
    assert_equal(fast, plain, x, w)
    programs = {
        platform: jax.export.export(jax.jit(fast), platforms=[platform])(x, w).mlir_module()
        for platform in ("cpu", "tpu")
    }
    assert "stablehlo.pad" in programs["cpu"]
    assert "stablehlo.pad" not in programs["tpu"]


@pytest.mark.parametrize("strides", [(1,), (2,)])
@pytest.mark.parametrize("pads", [(8, -2), (3, -1), (5, 0), (-5, 1), (-1, 4), (0, 7), (6, 6)])
def test_convolution_with_any_padding_is_the_sum_it_should_be(pads, strides):
    """Where pixels are lost XLA:CPU reads beyond its images, so that it is no reference."""
    x, w = normal(0, 2, 9, 16), normal(1, 4, 16, 5)

    def by_hand(x, w):
        edges = [max(0, n) for n in pads]
        padded = jnp.concatenate([jnp.zeros((2, edges[0], 16)), x, jnp.zeros((2, edges[1], 16))], 1)
        kept = padded[:, max(0, -pads[0]) : padded.shape[1] - max(0, -pads[1])]
        steps = range(0, kept.shape[1] - 3, strides[0])
        return jnp.stack([jnp.einsum("bwc,wcf->bf", kept[:, i : i + 4], w) for i in steps], 1)

    fast = functools.partial(
        convolve, strides=strides, padding=[pads], dimension_numbers=("NWC", "WIO", "NWC")
    )
    assert_equal(fast, by_hand, x, w)


@pytest.mark.parametrize(("channels", "groups"), [(2, 1), (4, 4), (16, 1)])
def test_pixels_may_be_cut_off_instead_of_padded(channels, groups):
    x, w = normal(0, 2, 9, 8, channels), normal(1, 3, 3, channels // groups, 4)
    options = {"dimension_numbers": ORDER, "feature_group_count": groups}
    cut = functools.partial(convolve, strides=(1, 1), padding=[(-2, 1), (1, -1)], **options)

    def by_hand(x, w):
        x = jnp.pad(x[:, 2:, :-1], ((0, 0), (0, 1), (1, 0), (0, 0)))
        return lax.conv_general_dilated(x, w, (1, 1), "VALID", **options)

    assert_equal(cut, by_hand, x, w)


@pytest.mark.parametrize("padding", ["SAME", [(2, 0)], [(1, 1)]])
def test_other_padding_is_left_to_the_convolution(padding):
    fast = functools.partial(convolve, strides=(1,), padding=padding, dimension_numbers=("NWC", "WIO", "NWC"))
    assert "pad[" not in str(jax.make_jaxpr(fast)(normal(0, 2, 9, 4), normal(1, 3, 4, 5)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "use_bias": False},
        {"padding": "CIRCULAR"},
        {"kernel_dilation": 2},
        {"strides": 2},
        {"feature_group_count": 3},
        {"dtype": jnp.bfloat16},
        {"kernel_size": (3,)},
        {"kernel_size": (1, 1)},
    ],
)
def test_conv_has_the_parameters_and_the_outputs_of_linen(options):
    options = {"features": 6, "kernel_size": (3, 3), **options}
    x = normal(0, 2, *[7] * len(options["kernel_size"]), 3)
    variables = linen.Conv(**options).init(jax.random.key(0), x)
    ours = Conv(**options).init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, ours, variables)
    actual, expected = Conv(**options).apply(variables, x), linen.Conv(**options).apply(variables, x)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual.astype(jnp.float32), expected.astype(jnp.float32), rtol=1e-5, atol=1e-5)


def test_convolution_maps_over_kernels_and_differentiates_forward():
    x, w = normal(0, 2, 8, 8, 1), normal(1, 3, 3, 3, 1, 4)
    fast = functools.partial(convolve, strides=(1, 1), padding="SAME", dimension_numbers=ORDER)
    plain = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=ORDER
    )
    assert_equal(*(jax.vmap(f, (None, 0)) for f in (fast, plain)), x, w)
    actual, expected = (jax.jvp(f, (x, w[0]), (jnp.ones_like(x), w[1]))[1] for f in (fast, plain))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [(2, 2), (2, 3), (1, 4)])
def test_maximum_of_tiles_has_the_gradients_of_the_sliding_window(window):
    h, w = window
    # Few distinct values, so that there are ties.
    x = jnp.round(normal(0, 2, 4 * h, 3 * w, 3))
    plain = lambda x: linen.max_pool(x, window, window)
    assert_equal(lambda x: max_pool(x, window), plain, x)
    actual, expected = (
        jax.jvp(f, (x,), (normal(1, *x.shape),))[1] for f in (lambda x: max_pool(x, window), plain)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_flat_product_equals_a_product_over_all_axes():
    x, w = normal(0, 2, 3, 4), normal(1, 4, 5)
    dimensions = (((2,), (0,)), ((), ()))
    assert_equal(
        lambda x, w: flat_dot_general(x, w, dimensions), lambda x, w: lax.dot_general(x, w, dimensions), x, w
    )


def lowered(platform):
    """The training pass of LeNet-5 as a platform's program."""
    model, x = LeNet5(), jnp.zeros((2, 32, 32, 1))
    variables = model.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda v: model.apply(v, x).sum()))
    return jax.export.export(gradient, platforms=[platform])(variables).mlir_module()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_convolutions(platform):
    program = lowered(platform)
    assert program.count("stablehlo.convolution") == 5  # two forward, two kernels' gradients, one input's
    # Three fully connected layers, forward and backward, but for the gradient of a sum's.
    assert program.count("stablehlo.dot_general") <= 9


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_resnet18_trains_by_convolutions_on_accelerators(platform):
    """No banded matrices, no sums of shifted images: every convolution and its two gradients are one each."""
    model, x = models.resnet(18, 10, stem="cifar"), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(params, rest, x):
        logits, changed = model.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])
        return logits.var(), changed

    rest = {name: tree for name, tree in variables.items() if name != "params"}
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    program = jax.export.export(gradient, platforms=[platform])(variables["params"], rest, x).mlir_module()
    # 17 of 3x3 and three shortcuts of 1x1; nobody asks for the gradient of the images.
    assert program.count("stablehlo.convolution") == 3 * 20 - 1
    assert program.count("stablehlo.dot_general") == 3  # the last layer


@pytest.mark.parametrize(
    ("function", "images", "kernel", "operation"),
    [
        ("pointwise", (2, 6, 6, 16), (1, 1, 16, 8), "convolution"),
        ("depthwise", (2, 6, 6, 16), (3, 3, 1, 16), "convolution"),
        ("few channels", (2, 6, 6, 2), (3, 3, 2, 8), "convolution"),
        ("halving", (2, 6, 6, 16), (4, 4, 16, 8), "convolution"),
        ("doubling", (2, 6, 6, 16), (4, 4, 16, 8), "convolution"),
        ("overlapping maxima", (2, 7, 7, 16), None, "reduce_window"),
        ("maxima", (2, 6, 6, 16), None, "reduce_window"),
    ],
)
def test_each_formulation_is_one_operation_for_a_tpu_and_none_for_a_cpu(function, images, kernel, operation):
    def call(x, *w):
        if function == "overlapping maxima":
            return max_pool(x, (3, 3), (2, 2))
        if function == "maxima":
            return max_pool(x, (2, 2))
        if function in ("halving", "doubling"):
            return {"halving": halve, "doubling": double}[function](x, *w)
        groups = images[-1] if function == "depthwise" else 1
        return convolve(x, *w, (1, 1), "SAME", dimension_numbers=ORDER, feature_group_count=groups)

    arguments = [jnp.ones(shape) for shape in (images, kernel) if shape]
    found = {}
    for platform in ("cpu", "tpu", "cuda"):
        program = jax.export.export(jax.jit(call), platforms=[platform])(*arguments).mlir_module()
        # A choice by platform that is made already, and what windows and kernels are written with.
        aside = {"case", "constant", "return", "maximum", "reverse", "broadcast_in_dim"}
        found[platform] = sorted(set(re.findall(r"stablehlo\.(\w+)", program)) - aside)
    assert found["tpu"] == found["cuda"] == [operation]
    assert operation not in found["cpu"]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_means_are_windows_for_an_accelerator(platform):
    call = jax.jit(lambda x: avg_pool(x, (2, 2)))
    program = jax.export.export(call, platforms=[platform])(jnp.ones((2, 6, 6, 16))).mlir_module()
    assert "stablehlo.reduce_window" in program
    assert "stablehlo.reshape" not in program


@pytest.mark.parametrize(("platform", "barriers"), [("tpu", 0), ("cuda", 0), ("cpu", 1)])
def test_recurrences_transpose_their_kernel_apart_on_a_cpu_alone(platform, barriers):
    layer, x = LSTM(4), jnp.ones((2, 3, 5))
    variables = layer.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda v: jax.tree.leaves(layer.apply(v, x))[0].sum()))
    program = jax.export.export(gradient, platforms=[platform])(variables).mlir_module()
    assert program.count("stablehlo.optimization_barrier") == barriers


def test_what_comes_before_a_convolution_is_computed_once():
    """Not again, and in another order, for the gradient of the kernel."""
    arguments = [jnp.ones(shape) for shape in ((4, 8, 8, 16), (3, 3, 16, 16), (3, 3, 16, 16))]

    def maxima(convolution):
        layer = functools.partial(convolution, window_strides=(1, 1), padding="SAME", dimension_numbers=ORDER)
        loss = lambda x, *kernels: jnp.square(layer(jax.nn.relu(layer(x, kernels[0])), kernels[1])).sum()
        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile().as_text()
        return program.count(" maximum(")

    ours = lambda x, kernel, window_strides, **options: convolve(x, kernel, window_strides, **options)
    assert maxima(lax.conv_general_dilated) > 1
    assert maxima(ours) == 1


def test_a_residual_sum_is_computed_once_however_deep_the_network():
    def most_read(depth):
        """The most arrays that a fused computation reads."""
        model = models.gpt(vocab_size=8, context=8, width=16, depth=depth, num_heads=2)
        tokens = jnp.zeros((2, 8), jnp.int32)
        variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
        gradient = jax.jit(jax.grad(lambda v: model.apply(v, tokens).sum()))
        program = gradient.lower(variables).compile().as_text()
        return max(found.count("%") for found in re.findall(r" fusion\((.*?)\), kind=kLoop", program))

    assert most_read(6) <= most_read(2) + 1


def test_residual_adds_and_is_a_sum_alone_for_accelerators():
    x, h = normal(0, 2, 3), normal(1, 2, 3)
    assert_equal(residual, jnp.add, x, h)
    np.testing.assert_array_equal(jax.vmap(residual, (0, None))(x, h[0]), x + h[:1])
    np.testing.assert_array_equal(residual(x > 0, h > 0), (x > 0) | (h > 0))
    assert residual(x.astype(jnp.bfloat16), h.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(residual(jnp.array([jnp.inf, jnp.nan]), jnp.ones(2)), [jnp.inf, jnp.nan])
    for platform, has in (("cpu", True), ("tpu", False), ("cuda", False)):
        program = jax.export.export(jax.jit(residual), platforms=[platform])(x, h).mlir_module()
        assert ("stablehlo.divide" in program) is has


def test_integers_are_convolved_as_integers():
    x, kernel = jnp.ones((1, 4, 4, 8), jnp.int32), jnp.ones((3, 3, 8, 2), jnp.int32)
    y = convolve(x, kernel, (1, 1), "VALID", dimension_numbers=ORDER)
    assert y.dtype == jnp.int32
    assert y.ravel().tolist() == [72] * 8


def test_cpu_gets_products():
    assert lowered("cpu").count("stablehlo.convolution") == 0
