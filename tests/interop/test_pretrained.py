"""Weights of a user's own: any depth, number of classes, channels and resolution; and what errors say."""

import jax
import numpy as np
import pytest

from jdl.interop import (
    adapt_channels,
    export_weights,
    load_weights,
    names,
    read_tensors,
    resize_positions,
    write_tensors,
)
from jdl.models import ResNet, ViT
from tests.models.parity import shapes

NET = names.RESNET_TORCHVISION


def resnet(depths=(1, 2), num_classes=5):
    return ResNet(depths, (8, 16), num_classes=num_classes, stem_width=8)


def random(module, size=32, channels=3):
    """Variables drawn anew, as numpy arrays."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.uniform(0.1, 1, size=x.shape).astype(np.float32), shapes(module, size, channels)
    )


@pytest.fixture
def checkpoint(tmp_path):
    """A file as a user would have it: a small residual network under torchvision's names."""
    path = tmp_path / "mine.safetensors"
    tensors = export_weights(random(resnet()), NET)
    write_tensors(path, tensors | {"bn1.num_batches_tracked": np.array(7)})
    return path


def test_a_checkpoint_of_any_depth_comes_back_bitwise(tmp_path):
    for depths in ((1, 1), (3, 2), (2, 12)):
        model, path = resnet(depths), tmp_path / "mine.safetensors"
        variables = random(model)
        write_tensors(path, export_weights(variables, NET))
        loaded = load_weights(shapes(model, 32), path, NET)
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded, variables))


def test_a_pytorch_file_of_training_is_read(torch, tmp_path):
    variables = random(resnet())
    tensors = {f"module.{name}": torch.tensor(x) for name, x in export_weights(variables, NET).items()}
    tensors["module.bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save({"epoch": 3, "state_dict": tensors, "best": 0.9}, tmp_path / "mine.pth")
    loaded = load_weights(shapes(resnet(), 32), tmp_path / "mine.pth", NET)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, variables))


def test_another_number_of_classes(checkpoint):
    model = resnet(num_classes=3)
    variables = jax.tree.map(lambda x: x + 1, random(model))
    loaded = load_weights(variables, checkpoint, NET, fresh=["head"])
    head = loaded["params"]["head"]
    np.testing.assert_array_equal(head["kernel"], variables["params"]["head"]["kernel"])
    assert head["kernel"].shape == (16, 3)
    body = export_weights({**loaded, "params": {**loaded["params"], "head": {}}}, NET)
    stored = read_tensors(checkpoint)
    assert set(stored) - set(body) == {"fc.weight", "fc.bias", "bn1.num_batches_tracked"}
    assert all(np.array_equal(body[name], stored[name]) for name in body)


def test_images_of_one_channel(checkpoint):
    """A grey image gives what it gave as three equal channels."""
    grey = np.random.default_rng(1).normal(size=(2, 32, 32, 1)).astype(np.float32)
    adapt = {"stem/conv/kernel": adapt_channels}
    one = load_weights(shapes(resnet(), 32, 1), checkpoint, NET, adapt=adapt)
    three = load_weights(shapes(resnet(), 32), checkpoint, NET)
    apply = jax.jit(resnet().apply)
    expected = apply(three, np.repeat(grey, 3, -1))
    np.testing.assert_allclose(apply(one, grey), expected, rtol=1e-4)


def test_images_of_six_channels(checkpoint):
    """Three channels twice over give what they gave once."""
    x = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    adapt = {"stem/conv/kernel": adapt_channels}
    six = load_weights(shapes(resnet(), 32, 6), checkpoint, NET, adapt=adapt)
    three = load_weights(shapes(resnet(), 32), checkpoint, NET)
    apply = jax.jit(resnet().apply)
    np.testing.assert_allclose(apply(six, np.concatenate([x, x], -1)), apply(three, x), rtol=1e-4)


def test_another_resolution_of_a_convolutional_network(checkpoint):
    """A convolutional network takes it as it is."""
    loaded = load_weights(shapes(resnet(), 32), checkpoint, NET)
    outputs = jax.eval_shape(resnet().apply, loaded, np.zeros((2, 48, 80, 3), np.float32))
    assert outputs.shape == (2, 5)


def test_another_resolution_of_a_transformer(tmp_path):
    """Positions are interpolated; where they are a smooth function of place, to that function."""
    model = ViT(8, 16, 1, 2, 32, num_classes=5)
    variables = random(model, 112)
    middles = (np.arange(14) + 0.5) / 14
    waves = np.sin(
        3 * middles.reshape(14, 1, 1) + 2 * middles.reshape(1, 14, 1) + np.arange(16).reshape(1, 1, 16)
    )
    positions = np.concatenate([np.full((1, 16), 9.0), waves.reshape(196, 16)])[None]
    variables["params"]["positions"] = positions.astype(np.float32)
    write_tensors(tmp_path / "model.safetensors", export_weights(variables, names.VIT_HUGGING_FACE))
    loaded = load_weights(
        shapes(model, 128), tmp_path, names.VIT_HUGGING_FACE, adapt={"positions": resize_positions}
    )["params"]["positions"]
    assert loaded.shape == (1, 257, 16)
    np.testing.assert_array_equal(loaded[:, 0], positions[:, 0])
    middles = (np.arange(16) + 0.5) / 16
    waves = np.sin(
        3 * middles.reshape(16, 1, 1) + 2 * middles.reshape(1, 16, 1) + np.arange(16).reshape(1, 1, 16)
    )
    inner = loaded[0, 1:].reshape(16, 16, 16)[2:-2, 2:-2]
    np.testing.assert_allclose(inner, waves[2:-2, 2:-2], atol=2e-3)


def test_the_error_names_all_that_does_not_fit(checkpoint):
    tensors = dict(read_tensors(checkpoint))
    del tensors["layer1.0.bn2.running_mean"], tensors["conv1.weight"]
    tensors["fc.weight"] = np.zeros((7, 16), np.float32)
    tensors["layer2.0.conv1.weight"] = tensors["layer2.0.conv1.weight"].transpose(1, 0, 2, 3)
    tensors["layer3.0.conv1.weight"] = tensors["ema.decay"] = np.zeros(1)
    rules = [rule for rule in NET if rule[0] != "stem/norm"]
    with pytest.raises(ValueError) as raised:
        load_weights(shapes(resnet(), 32), tensors, rules)
    kinds = dict(line.split(": ", 1) for line in str(raised.value).splitlines()[1:])
    named = {kind: set(text.split(", ")) for kind, text in kinds.items() if kind != "of another shape"}
    assert named == {
        "no rule names": {f"stem/norm/{leaf}" for leaf in ("mean", "var", "bias", "scale")},
        "no tensor for": {
            'stage1/block1/conv2/norm/mean ("layer1.0.bn2.running_mean")',
            'stem/conv/kernel ("conv1.weight")',
        },
        "tensors that nothing uses": {
            *(f"bn1.{leaf}" for leaf in ("running_mean", "running_var", "bias", "weight")),
            "layer3.0.conv1.weight",
            "ema.decay",
        },
    }
    assert 'head/kernel (16, 5) ("fc.weight" (7, 16))' in kinds["of another shape"]
    assert '(3, 3, 8, 16) ("layer2.0.conv1.weight" (8, 16, 3, 3))' in kinds["of another shape"]
    assert kinds["of another shape"].count('("') == 2


def test_the_error_names_a_layer_too_few(checkpoint):
    with pytest.raises(
        ValueError, match="tensors that nothing uses: layer2.1.bn1.bias, .*layer2.1.conv2.weight"
    ):
        load_weights(shapes(resnet((1, 1)), 32), checkpoint, NET)


def test_fresh_layers_need_values_and_must_exist(checkpoint):
    with pytest.raises(ValueError, match="is to stay fresh, which needs its values"):
        load_weights(shapes(resnet(num_classes=3), 32), checkpoint, NET, fresh=["head"])
    with pytest.raises(ValueError, match=r"classifier \(named in fresh, not in the model\)"):
        load_weights(random(resnet()), checkpoint, NET, fresh=["classifier"])


def test_tensors_are_left_unused_only_where_told(checkpoint):
    tensors = dict(read_tensors(checkpoint)) | {"ema.decay": np.zeros(1)}
    load_weights(shapes(resnet(), 32), tensors, NET, ignore=["ema.*"])
    with pytest.raises(ValueError, match="tensors that nothing uses: ema.decay"):
        load_weights(shapes(resnet(), 32), tensors, NET)


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_a_damaged_file_is_named(checkpoint, damage):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2] if damage == "cut" else b"not a file of tensors")
    with pytest.raises(ValueError, match="mine.safetensors cannot be read, it may be damaged or cut off"):
        load_weights(shapes(resnet(), 32), checkpoint, NET)
