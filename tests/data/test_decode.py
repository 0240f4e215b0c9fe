"""From a file to pixels: modes, orientation and crops, against what Pillow gives step by step."""

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from jdl.data.decode import Crop, decode

CENTER = Crop(32, 40, (0.08, 1.0), (3 / 4, 4 / 3))
RANDOM = Crop(32, None, (0.1, 0.5), (3 / 4, 4 / 3))


def rng(*seed):
    return np.random.default_rng(list(seed))


def photo(width, height, seed=0):
    """A picture with detail at several scales."""
    generator = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells, strength in ((3, 100), (9, 60), (27, 20)):
        noise = generator.random((cells, cells, 3)) * 255
        scaled = Image.fromarray(noise.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        picture += strength / 180 * np.asarray(scaled)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("shape", [(75, 50), (50, 75), (41, 41), (400, 43), (20, 30)])
def test_evaluation_resizes_the_shorter_side_and_cuts_the_middle(tmp_path, shape):
    picture = photo(*shape)
    picture.save(tmp_path / "x.png")
    short = min(shape)
    width, height = (int(40 * length / short) for length in shape)
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    wanted = picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
    got = decode(tmp_path / "x.png", CENTER, rng(0))
    assert got.shape == (32, 32, 3)
    assert got.dtype == np.uint8
    # The two steps differ where the resized length is no whole number of pixels, by less than half of one.
    difference = np.abs(got.astype(int) - np.asarray(wanted, int))
    assert np.mean(difference) < 0.5
    assert difference.max() <= (1 if shape[0] == shape[1] else 12)


def test_large_photographs_are_decoded_small_and_look_the_same(tmp_path):
    picture = photo(1600, 1200)
    picture.save(tmp_path / "x.jpg", quality=95)
    picture.save(tmp_path / "x.png")
    for crop, bound in ((CENTER, 1.0), (RANDOM, 3.0)):
        small, whole = (decode(tmp_path / name, crop, rng(3)).astype(int) for name in ("x.jpg", "x.png"))
        assert np.abs(small - whole).mean() < bound
    assert decoded_size(tmp_path / "x.jpg", CENTER) == (200, 150)
    assert decoded_size(tmp_path / "x.jpg", Crop(250, 290, (1, 1), (1, 1))) == (800, 600)
    assert decoded_size(tmp_path / "x.jpg", Crop(600, 680, (1, 1), (1, 1))) == (1600, 1200)


def decoded_size(path, crop):
    """The size of what a decoder made before it was resized."""
    sizes = []
    resize = Image.Image.resize

    def watched(self, *args, **kwargs):
        sizes.append(self.size)
        return resize(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", watched)
        decode(path, crop, rng(0))
    return sizes[0]


@pytest.mark.parametrize("crop", [CENTER, RANDOM])
@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_orientation(tmp_path, name, crop):
    upright = photo(640, 480)
    reverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    assert reverse == {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright.save(tmp_path / "upright.png")
    wanted = decode(tmp_path / "upright.png", crop, rng(1)).astype(int)
    for orientation in range(1, 9):
        stored = upright.transpose(reverse[orientation]) if orientation > 1 else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(tmp_path / name, exif=exif, **({"quality": 95} if name == "x.jpg" else {}))
        got = decode(tmp_path / name, crop, rng(1)).astype(int)
        assert np.abs(got - wanted).mean() < 2, orientation


def test_modes_become_rgb(tmp_path):
    colour, grey = (200, 100, 50), 120

    def one(picture, name="x.png", **options):
        picture.save(tmp_path / name, **options)
        pixels = decode(tmp_path / name, Crop(8, 8, (1, 1), (1, 1)), rng(0))
        assert pixels.shape == (8, 8, 3)
        assert np.ptp(pixels, (0, 1)).max() <= 3
        return pixels[4, 4].astype(int)

    plain = Image.new("RGB", (16, 12), colour)
    transparent = plain.quantize(4)
    transparent.info["transparency"] = bytes([255, 0, 255, 255])
    for picture, name, options in (
        (plain, "x.png", {}),
        (plain, "x.jpg", {"quality": 95}),
        (plain.convert("CMYK"), "x.jpg", {"quality": 95}),
        (plain.convert("CMYK"), "x.tif", {}),
        (plain.convert("RGBA"), "x.png", {}),
        (plain.quantize(4), "x.png", {}),
        (transparent, "x.png", {}),
        (plain.quantize(4), "x.gif", {}),
        (plain, "x.webp", {"quality": 95}),
        (plain, "x.bmp", {}),
        (plain, "x.ppm", {}),
    ):
        np.testing.assert_allclose(
            one(picture, name, **options), colour, atol=4, err_msg=f"{picture.mode} {name}"
        )
    np.testing.assert_allclose(one(Image.new("L", (16, 12), grey), "x.jpg"), grey, atol=1)
    np.testing.assert_array_equal(one(Image.new("LA", (16, 12), (grey, 9))), grey)
    np.testing.assert_array_equal(one(Image.new("1", (16, 12), 1)), 255)
    deep = Image.fromarray(np.full((12, 16), 120 * 256 + 77, np.uint16))
    np.testing.assert_array_equal(one(deep), 120)
    np.testing.assert_array_equal(one(deep, "x.tif"), 120)
    with pytest.raises(ValueError, match="mode 'F' have no known range"):
        one(Image.new("F", (16, 12), 0.5), "x.tif")


def test_random_crops_have_the_stated_distribution():
    generator = rng(0)
    boxes = np.array([RANDOM.box(500, 375, generator) for _ in range(3000)])
    left, top, width, height = boxes.T
    assert stats.kstest(width * height / (500 * 375), stats.uniform(0.1, 0.4).cdf).pvalue > 1e-4
    low, high = np.log(3 / 4), np.log(4 / 3)
    assert stats.kstest(np.log(width / height), stats.uniform(low, high - low).cdf).pvalue > 1e-4
    jitter = generator.random(3000)
    for start, room in ((left, 500 - width + 1), (top, 375 - height + 1)):
        assert (start >= 0).all()
        assert (start < room).all()
        assert stats.kstest((start + jitter) / room, stats.uniform.cdf).pvalue > 1e-4
    narrow = Crop(32, None, (0.9, 1.0), (3 / 4, 4 / 3))
    assert narrow.box(100, 20, generator) == (36, 0, 27, 20)
    assert narrow.box(1, 1, generator) == (0, 0, 1, 1)
