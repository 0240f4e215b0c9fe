"""Tensors are read from every format, mapped by name, and what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.interop import (
    adapt_channels,
    export_weights,
    load_weights,
    read_tensors,
    resize_positions,
    write_tensors,
)
from jdl.interop.weights import LAYOUTS
from jdl.models import LeNet5

NAMES = [
    ("stem/conv", "conv1"),
    ("stage{s}/block{b}/norm", "layer{s-1}.{b+1}.bn"),
    ("squeeze", "fc1", "pointwise"),
    ("position", "pos_embed"),
    ("head", "fc"),
]


def variables(rng=None):
    draw = (
        (lambda *shape: rng.normal(size=shape).astype(np.float32))
        if rng
        else (lambda *shape: np.zeros(shape, np.float32))
    )
    return {
        "params": {
            "stem": {"conv": {"kernel": draw(3, 3, 2, 4)}},
            "stage2": {"block0": {"norm": {"scale": draw(4), "bias": draw(4)}}},
            "squeeze": {"kernel": draw(4, 5), "bias": draw(5)},
            "position": draw(1, 5, 4),
            "head": {"kernel": draw(4, 3), "bias": draw(3)},
        },
        "batch_stats": {"stage2": {"block0": {"norm": {"mean": draw(4), "var": draw(4)}}}},
    }


def state():
    return export_weights(variables(np.random.default_rng(0)), NAMES)


def test_names_and_layouts_are_pytorchs():
    assert {name: x.shape for name, x in state().items()} == {
        "conv1.weight": (4, 2, 3, 3),
        "layer1.1.bn.weight": (4,),
        "layer1.1.bn.bias": (4,),
        "layer1.1.bn.running_mean": (4,),
        "layer1.1.bn.running_var": (4,),
        "fc1.weight": (5, 4, 1, 1),
        "fc1.bias": (5,),
        "pos_embed": (1, 5, 4),
        "fc.weight": (3, 4),
        "fc.bias": (3,),
    }


def test_loading_undoes_exporting():
    given = variables(np.random.default_rng(0))
    found = load_weights(variables(), {**state(), "layer1.1.bn.num_batches_tracked": np.int64(3)}, NAMES)
    for (path, x), y in zip(flat(given).items(), flat(found).values(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=path)


def flat(tree, path=""):
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for name, sub in sorted(tree.items()) for k, v in flat(sub, f"{path}/{name}").items()}


def test_parts_of_one_tensor():
    rng = np.random.default_rng(0)
    whole, bias = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    mine = {
        "params": {
            name: {"kernel": np.zeros((4, 2), np.float32), "bias": np.zeros(2, np.float32)}
            for name in ("query", "key", "value")
        }
    }
    for layout, tensor in (("kernel", whole), ("same", whole.T.copy())):
        rules = [(name, "qkv", layout, f"{i}/3") for i, name in enumerate(("query", "key", "value"))]
        tensors = {"qkv.weight": tensor, "qkv.bias": bias}
        found = load_weights(mine, tensors, rules)
        np.testing.assert_array_equal(found["params"]["key"]["kernel"], whole[2:4].T)
        np.testing.assert_array_equal(found["params"]["value"]["bias"], bias[4:])
        back = export_weights(found, rules)
        for name, theirs in tensors.items():
            np.testing.assert_array_equal(back[name], theirs)
        del found["params"]["query"]
        with pytest.raises(ValueError, match='"qkv.bias": 2 of its 3 parts'):
            export_weights(found, rules)


def test_every_fault_is_named():
    tensors = state()
    del tensors["fc.bias"]
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :1]
    tensors["layer1.2.bn.weight"] = np.zeros(4)
    with pytest.raises(ValueError) as error:
        load_weights(variables(), tensors, [rule for rule in NAMES if rule[0] != "position"])
    assert str(error.value).splitlines() == [
        "the weights do not fit the model",
        "no rule names: position",
        'no tensor for: head/bias ("fc.bias")',
        'of another shape: stem/conv/kernel (3, 3, 2, 4) ("conv1.weight" (4, 1, 3, 3))',
        "tensors that nothing uses: layer1.2.bn.weight, pos_embed",
    ]


def test_a_fresh_head_keeps_its_values_and_needs_no_tensor_that_fits():
    mine = variables()
    mine["params"]["head"] = {"kernel": np.ones((4, 7), np.float32), "bias": np.ones(7, np.float32)}
    found = load_weights(mine, state(), NAMES, fresh=["head"])
    assert found["params"]["head"]["kernel"].sum() == 28
    assert np.any(found["params"]["stem"]["conv"]["kernel"])
    with pytest.raises(ValueError, match="top \\(named in fresh, not in the model\\)"):
        load_weights(variables(), state(), NAMES, fresh=["top"])
    # A name that begins alike is another name.
    with pytest.raises(ValueError, match="not in the model"):
        load_weights(variables(), state(), NAMES, fresh=["hea"])


def test_other_channels_and_positions_are_adapted():
    mine = variables()
    mine["params"]["stem"]["conv"]["kernel"] = np.zeros((3, 3, 1, 4), np.float32)
    mine["params"]["position"] = np.zeros((1, 10, 4), np.float32)
    adapt = {"stem/conv/kernel": adapt_channels, "position": resize_positions}
    found = load_weights(mine, state(), NAMES, adapt=adapt)["params"]
    whole = variables(np.random.default_rng(0))["params"]
    np.testing.assert_allclose(
        found["stem"]["conv"]["kernel"], whole["stem"]["conv"]["kernel"].sum(2, keepdims=True), atol=1e-6
    )
    np.testing.assert_array_equal(found["position"][:, 0], whole["position"][:, 0])  # the class token
    with pytest.raises(ValueError, match="not grids after up to 2 tokens: of a square and of a square"):
        resize_positions(np.zeros((1, 12, 4)), (1, 26, 4))


def test_positions_fit_oblong_grids():
    ramp = np.broadcast_to(np.arange(6.0)[None, :, None], (4, 6, 2)).reshape(1, 24, 2)
    tokens = np.full((1, 2, 2), 9.0)
    given = np.concatenate([tokens, ramp], 1).astype(np.float32)
    found = resize_positions(given, (1, 2 + 8 * 3, 2), old=(4, 6), new=(8, 3))
    np.testing.assert_array_equal(found[:, :2], tokens)
    rows = found[0, 2:, 0].reshape(8, 3)
    np.testing.assert_allclose(rows, np.broadcast_to(rows[:1], (8, 3)), atol=1e-5)
    np.testing.assert_allclose(rows[0, 1], 2.5, atol=1e-5)
    assert (np.diff(rows[0]) > 1).all()
    with pytest.raises(ValueError, match=r"of \(4, 5\) and of \(8, 3\); give old and new"):
        resize_positions(given, (1, 26, 2), old=(4, 5), new=(8, 3))


def test_tensors_that_are_no_numbers_to_use_are_named():
    whole = state()
    name = next(iter(whole))
    for tensor, message in (
        ((whole[name] * 10).astype(np.int8), f'"{name}" is int8, quantised perhaps'),
        (np.full_like(whole[name], np.nan), f'"{name}" is not finite'),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(variables(), {**whole, name: tensor}, NAMES)


def test_a_kernel_of_more_pixels_is_no_dense_layer():
    layer = {"params": {"reduce": {"kernel": np.zeros((2, 3), np.float32)}}}
    rules = (("reduce", "fc", "pointwise"),)
    load_weights(layer, {"fc.weight": np.ones((3, 2, 1, 1), np.float32)}, rules)
    with pytest.raises(
        ValueError, match=r'of another shape: reduce/kernel \(2, 3\) \("fc.weight" \(3, 2, 3, 3\)'
    ):
        load_weights(layer, {"fc.weight": np.ones((3, 2, 3, 3), np.float32)}, rules)


def test_grey_images_give_what_they_gave_in_colour():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4))
    grey = np.random.default_rng(1).normal(size=(3, 3))
    expected = np.einsum("hw,hwcf->f", grey, kernel)
    for channels in (1, 2, 4, 6):
        adapted = adapt_channels(kernel, (3, 3, channels, 4))
        assert adapted.shape == (3, 3, channels, 4)
        np.testing.assert_allclose(np.einsum("hw,hwcf->f", grey, adapted), expected)


@pytest.mark.parity
def test_a_dense_layer_of_a_flattened_map_reads_pytorchs(torch):
    nn = torch.nn
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
             nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
             nn.Linear(84, 10)]  # fmt: skip
    twin, x = nn.Sequential(*parts), torch.randn(2, 1, 32, 32)
    rules = [("Conv_0", "0"), ("Conv_1", "3"), ("Dense_0", "7", "flat 5x5"), ("Dense_1", "9"),
             ("Dense_2", "11")]  # fmt: skip
    model, inputs = LeNet5(), x.numpy().transpose(0, 2, 3, 1)
    tensors = {name: tensor.numpy() for name, tensor in twin.state_dict().items()}
    loaded = load_weights(jax.eval_shape(model.init, jax.random.key(0), inputs), tensors, rules)
    np.testing.assert_allclose(model.apply(loaded, inputs), twin(x).detach(), atol=1e-6)
    back = export_weights(loaded, rules)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(ValueError, match=r"Dense_0/kernel \(400, 120\) \(\"7.weight\" \(120, 400\)\)"):
        load_weights(loaded, tensors, [*rules[:2], ("Dense_0", "7", "flat 5x6"), *rules[3:]])
    with pytest.raises(ValueError, match="has the layout 'rows'; there are kernel, .*\"flat HxW\""):
        load_weights(loaded, tensors, [("Conv_0", "0", "rows")])


def test_a_parameter_of_no_axes_stays_one():
    alpha = {"params": {"scale": {"alpha": np.float32(3)}}}
    tensors = export_weights(alpha, [("scale", "scale")])
    assert tensors["scale.alpha"].shape == ()
    assert load_weights(alpha, tensors, [("scale", "scale")]) == alpha


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_invert(layout):
    shape = {"pointwise": (5, 4), "channels": (5,)}.get(layout, (3, 2, 4, 5))
    x = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_array_equal(LAYOUTS[layout].read(LAYOUTS[layout].write(x)), x)


@pytest.mark.parity
def test_transposed_convolution_is_pytorchs(torch):
    from flax import linen

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 5, 3)).astype(np.float32)
    layer = torch.nn.ConvTranspose2d(3, 4, 2, stride=2)
    kernel = LAYOUTS["transposed"].read(layer.weight.detach().numpy())
    params = {"kernel": kernel, "bias": layer.bias.detach().numpy()}
    ours = linen.ConvTranspose(4, (2, 2), (2, 2), padding="VALID").apply({"params": params}, x)
    theirs = layer(torch.tensor(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_safetensors_round_trip(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    given = {"a": np.float32([[1, 2]]), "b": np.arange(3), "t": np.ones((2, 3), np.float32).T}
    write_tensors(path, given, origin="a test")
    for source in (path, tmp_path):
        found = read_tensors(source)
        assert found.keys() == given.keys()
        for name in given:
            np.testing.assert_array_equal(found[name], given[name])
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parity
def test_reads_what_pytorch_and_safetensors_write(torch, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {"module.w": torch.arange(6.0).reshape(2, 3), "module.h": torch.ones(2, dtype=torch.bfloat16)}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.pth")
    torch.save(tensors, tmp_path / "b.pt")
    safetensors.save_file(tensors, tmp_path / "c.safetensors")
    for path in tmp_path.iterdir():
        found = read_tensors(path)
        assert found.keys() == {"w", "h"}
        np.testing.assert_array_equal(found["w"], np.arange(6.0).reshape(2, 3))
        np.testing.assert_array_equal(found["h"], np.ones(2))
        assert found["h"].dtype == jnp.bfloat16


@pytest.mark.parity
def test_checkpoints_of_training_are_found_in_whichever_entry(torch, tmp_path):
    weights = {"_orig_mod.w": torch.arange(6.0).reshape(2, 3)}
    path = tmp_path / "a.pth"
    torch.save({"net": weights, "acc": 93.0, "epoch": 3}, path)
    np.testing.assert_array_equal(read_tensors(path)["w"], np.arange(6.0).reshape(2, 3))
    torch.save({"ema": {"w": torch.ones(2)}, "net": {"w": torch.zeros(2)}}, path)
    assert read_tensors(path, entry="ema")["w"].sum() == 2
    with pytest.raises(ValueError, match=r"has tensors under \['ema', 'net'\]: say which by entry"):
        read_tensors(path)
    with pytest.raises(ValueError, match=r"no tensors under 'emma'; it has some under \['ema', 'net'\]"):
        read_tensors(path, entry="emma")


def test_a_prefix_that_all_names_have_is_dropped():
    whole = load_weights(variables(), state(), NAMES)
    within = load_weights(variables(), {f"net.model.{name}": x for name, x in state().items()}, NAMES)
    assert flat(whole).keys() == flat(within).keys()
    for x, y in zip(flat(whole).values(), flat(within).values(), strict=True):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(ValueError, match='no tensor for: head/bias \\("fc.bias"\\)'):
        load_weights(variables(), {f"net.{n}": x for n, x in state().items() if n != "fc.bias"}, NAMES)


def test_no_code_in_a_file_is_run(torch, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"w": torch.ones(1), "bomb": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        read_tensors(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parity
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.98])
def test_a_file_cut_off_is_refused(torch, tmp_path, suffix, keep):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / f"model{suffix}"
    tensors = {"w": torch.arange(600.0)}
    if suffix == ".pth":
        torch.save(tensors, path)
    elif suffix == ".npz":
        np.savez(path, w=tensors["w"].numpy())
    else:
        safetensors.save_file(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match="cannot be read|holds more"):
        read_tensors(path)


@pytest.mark.parity
def test_types_of_safetensors_are_read_or_named(torch, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "a.safetensors"
    unsigned = {f"u{bits}": torch.tensor([7]).to(getattr(torch, f"uint{bits}")) for bits in (8, 16, 32, 64)}
    safetensors.save_file(unsigned, path)
    assert {name: (x.dtype.name, int(x[0])) for name, x in read_tensors(path).items()} == {
        f"u{bits}": (f"uint{bits}", 7) for bits in (8, 16, 32, 64)
    }
    safetensors.save_file({"w": torch.ones(2), "v": torch.ones(2).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(ValueError, match="1 tensors of types that are not read, for example 'v' of F8_E4M3"):
        read_tensors(path)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["float8", "sparse"])
def test_a_tensor_of_pytorch_that_numpy_does_not_have_is_named(torch, tmp_path, kind):
    ones = torch.ones(2)
    odd = ones.to(torch.float8_e4m3fn) if kind == "float8" else ones.to_sparse()
    torch.save({"w": ones, "v": odd}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"a.pth: 'v' is .*{kind}.*, which is not supported"):
        read_tensors(tmp_path / "a.pth")


def test_what_is_no_file_of_tensors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_tensors(tmp_path / "missing.safetensors")
    with pytest.raises(FileNotFoundError, match="holds none of model.safetensors"):
        read_tensors(tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"?")
    with pytest.raises(ValueError, match="not of a known format"):
        read_tensors(tmp_path / "weights.h5")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="jdl-jax\\[interop\\]"):
        write_tensors(tmp_path / "a.safetensors", {})
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(ImportError, match="only PyTorch reads"):
        read_tensors(tmp_path / "a.pth")


def test_shards_of_an_index_are_joined(tmp_path):
    pytest.importorskip("safetensors")
    write_tensors(tmp_path / "one.safetensors", {"a": np.ones(2)})
    write_tensors(tmp_path / "two.safetensors", {"b": np.zeros(3)})
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    )
    assert read_tensors(tmp_path).keys() == {"a", "b"}
