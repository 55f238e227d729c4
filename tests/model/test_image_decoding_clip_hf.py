"""The decoder against Pillow's own conversions, against numpy, and against a folder of odd and broken files."""

import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from clip_hf.model import image_decoding_clip_hf as decoding
from clip_hf.model.image_decoding_clip_hf import ImageDecodingError, decode_image

LIMIT_SECONDS = 2
LIMIT_BYTES = 500_000_000
COSTS = """
import sys, time
from PIL import Image
from clip_hf.model.image_decoding_clip_hf import ImageDecodingError, decode_image
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessor, ClipHfImageProcessorTorch
from tests.peak_memory import forget_peak, peak_bytes

ways = {"decoder": decode_image, "pil": ClipHfImageProcessor(), "torch": ClipHfImageProcessorTorch()}
for way in ways.values():
    way(Image.new("RGB", (300, 300)))
idle = forget_peak()
for path in sys.argv[1:]:
    for name, way in ways.items():
        forget_peak()
        start = time.process_time()
        try:
            way(path)
        except ImageDecodingError:
            pass
        print(time.process_time() - start, peak_bytes() - idle, name, path, sep="\\t")
"""


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def photo(width: int = 61, height: int = 47) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_16_bit_rgb(values: np.ndarray) -> bytes:
    """Pillow cannot write 16-bit colour; values is (H, W, 3)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def manifest(test_data: Path) -> list[dict]:
    return [json.loads(line) for line in (test_data / "messy/manifest.jsonl").read_text().splitlines()]


class TestSources:
    def test_all_sources_give_the_same_pixels(self, tmp_path):
        path = tmp_path / "фото 海.png"
        path.write_bytes(data := encoded(photo()))
        for source in (str(path), path, data, bytearray(data), memoryview(data), BytesIO(data), Image.open(path)):
            image = decode_image(source)
            assert image.mode == "RGB"
            assert np.array_equal(pixels(image), pixels(photo()))

    def test_the_callers_file_stays_open_and_its_image_unchanged(self, tmp_path):
        path = tmp_path / "photo.png"
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        path.write_bytes(encoded(photo().convert("RGBA"), exif=exif))
        with path.open("rb") as file:
            decode_image(file)
            assert not file.closed
        with Image.open(path) as image:
            decode_image(image)
            assert (image.mode, image.size, image.getexif()[ExifTags.Base.Orientation]) == ("RGBA", photo().size, 6)

    def test_upright_rgb_is_returned_itself(self):
        image = photo()
        assert decode_image(image) is image

    @pytest.mark.parametrize("source", [None, 3, ["photo.jpg"], np.zeros((4, 4, 3), np.uint8)])
    def test_other_types_are_refused(self, source):
        with pytest.raises(TypeError, match="pass a path, bytes"):
            decode_image(source)

    def test_first_frame_of_a_file_and_current_frame_of_an_image(self):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        for format in ("GIF", "PNG", "WEBP", "TIFF"):
            data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **LOSSLESS.get(format, {}))
            assert pixels(decode_image(data))[0, 0].tolist() == [255, 0, 0], format
            animation = Image.open(BytesIO(data))
            animation.seek(1)
            assert pixels(decode_image(animation))[0, 0].tolist() == [0, 0, 255], format


LOSSLESS = {"WEBP": {"lossless": True}}


class TestOrientation:
    # What a viewer must do with the stored array, from the table of the EXIF standard: where row 0 and column 0 are.
    UPRIGHT = {
        1: lambda stored: stored,
        2: lambda stored: stored[:, ::-1],
        3: lambda stored: stored[::-1, ::-1],
        4: lambda stored: stored[::-1],
        5: lambda stored: stored.swapaxes(0, 1),
        6: lambda stored: np.rot90(stored, -1),
        7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
        8: lambda stored: np.rot90(stored, 1),
    }

    @pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9, 77])
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_every_orientation(self, orientation, mode):
        stored = photo().convert(mode)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        upright = decode_image(encoded(stored, exif=exif))
        expected = self.UPRIGHT.get(orientation, self.UPRIGHT[1])(pixels(stored.convert("RGB")))
        assert np.array_equal(pixels(upright), expected)
        assert np.array_equal(pixels(decode_image(upright)), expected), "a second decoding turned it again"

    def test_photos_of_every_orientation_look_alike(self, test_data):
        for name in ("Landscape", "Portrait"):
            reference = pixels(decode_image(test_data / f"messy/{name}_1.jpg").resize((90, 90)))
            for path in sorted((test_data / "messy").glob(f"{name}_[2-8].jpg")):
                assert np.abs(pixels(decode_image(path).resize((90, 90))) - reference).mean() < 6, path.name

    @pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"\0" * 64])
    def test_damaged_metadata_does_not_cost_the_pixels(self, exif):
        assert decode_image(encoded(photo(), "JPEG", exif=exif)).size == photo().size


class TestModes:
    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
    def test_8_bit_modes_as_pillow_converts_them(self, mode):
        image = photo().convert(mode) if mode != "LAB" else Image.merge("LAB", photo().split())
        assert np.array_equal(pixels(decode_image(image)), pixels(image.convert("RGB")))

    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_16_bit_grey_is_scaled(self, format):
        grey = np.array([[0, 128, 129, 257, 32768, 65278, 65535]], dtype=np.uint16)
        image = pixels(decode_image(encoded(Image.fromarray(grey), format)))
        assert image[0].tolist() == [[v, v, v] for v in (0, 0, 1, 1, 128, 254, 255)]

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
    def test_16_bit_byte_orders(self, mode):
        values = np.array([[0, 25700, 65535]], dtype=">u2" if mode.endswith("B") else "<u2")
        image = Image.frombytes(mode, (3, 1), values.tobytes())
        assert pixels(decode_image(image))[0, :, 0].tolist() == [0, 100, 255]

    def test_16_bit_colour_is_scaled(self):
        values = np.array([[[0, 32768, 65535], [65535, 256, 25700]]])
        image = pixels(decode_image(png_16_bit_rgb(values)))
        assert np.abs(image - values / 257).max() < 1

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (np.array([0, 257, 65535], np.int32), [0, 1, 255]),
            (np.array([0, 3, 255], np.int32), [0, 0, 1]),  # 16 bits, however dark
            (np.array([-1000, 0, 1000], np.int32), [0, 128, 255]),
            (np.array([0, 2**30, 2**31 - 1], np.int32), [0, 128, 255]),
            (np.array([-5, -5, -5], np.int32), [0, 0, 0]),
            (np.array([0, 0.5, 1], np.float32), [0, 128, 255]),
            (np.array([0, 7, 200], np.float32), [0, 7, 200]),
            (np.array([0, 257, 65535], np.float32), [0, 1, 255]),
            (np.array([-1, 0, 1], np.float32), [0, 128, 255]),
        ],
    )
    def test_32_bits_are_scaled(self, values, expected):
        image = pixels(decode_image(encoded(Image.fromarray(values[None]), "TIFF")))
        assert image[0, :, 0].tolist() == expected

    @pytest.mark.parametrize("number", [np.nan, np.inf])
    def test_floats_that_are_no_numbers_are_refused(self, number):
        image = Image.fromarray(np.array([[0.5, number]], np.float32))
        with pytest.raises(ImageDecodingError, match=r"frame 7: .*NaN or infinite"):
            decode_image(image, name="frame 7")

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
    def test_transparency_shows_white(self, mode):
        image = Image.new("RGBA", (3, 1))
        image.putdata([(10, 10, 10, 255), (0, 0, 0, 0), (0, 0, 0, 128)])
        if mode == "PA":
            image, alpha = image.convert("P"), image.getchannel("A")
            image.putalpha(alpha)
        red = pixels(decode_image(image.convert(mode)))[0, :, 0]
        assert np.abs(red - [10, 255, 127]).max() <= (10 if mode == "PA" else 0)  # 10 is not in the web palette

    def test_a_transparent_colour_shows_white(self):
        for image, key in (
            (photo(), (0, 0, 0)),
            (photo().convert("L"), 0),
            (photo().convert("1"), 0),
            (photo().quantize(16), 0),
        ):
            data = encoded(image, transparency=key)
            canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
            with Image.open(BytesIO(data)) as opened:
                canvas.alpha_composite(opened.convert("RGBA"))
            assert np.array_equal(pixels(decode_image(data)), pixels(canvas.convert("RGB"))), image.mode


class TestErrors:
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "AVIF", "JPEG2000"])
    @pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
    def test_a_truncated_file_is_an_error(self, format, share):
        data = encoded(photo(300, 200), format)
        for minimum_size in (None, 20):
            with pytest.raises(ImageDecodingError):
                decode_image(data[: int(len(data) * share)], minimum_size=minimum_size)

    def test_errors_name_the_image_and_the_reason(self, tmp_path):
        path = tmp_path / "broken.jpg"
        path.write_bytes(b"<html>404</html>")
        with pytest.raises(ImageDecodingError, match=r"broken\.jpg: it is empty or of no image format"):
            decode_image(path)
        with pytest.raises(ImageDecodingError, match=r"^row 17: "):
            decode_image(path.read_bytes(), name="row 17")
        with pytest.raises(ImageDecodingError, match=r"^image of 16 bytes: "):
            decode_image(path.read_bytes())
        with path.open("rb") as file, pytest.raises(ImageDecodingError, match=r"broken\.jpg: "):
            decode_image(file)
        with pytest.raises(ImageDecodingError, match=r"absent\.jpg: FileNotFoundError"):
            decode_image(tmp_path / "absent.jpg")

    def test_a_broken_pil_image_is_named_too(self, tmp_path):
        path = tmp_path / "half.png"
        data = encoded(photo(300, 200))
        path.write_bytes(data[: len(data) // 2])
        with Image.open(path) as image, pytest.raises(ImageDecodingError, match=r"half\.png: "):
            decode_image(image)

    def test_an_error_crosses_processes(self):
        error = pickle.loads(pickle.dumps(ImageDecodingError("cat.jpg: truncated")))
        assert (type(error), str(error)) == (ImageDecodingError, "cat.jpg: truncated")

    def test_no_program_is_started_for_postscript(self, monkeypatch):
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
        with pytest.raises(ImageDecodingError, match="Ghostscript"):
            decode_image(encoded(photo(), "EPS"))

    def test_minimum_size_must_be_positive(self):
        with pytest.raises(ValueError, match="minimum_size is 0"):
            decode_image(photo(), minimum_size=0)


class TestSizes:
    def test_the_pixel_count_is_checked_before_decoding(self, monkeypatch):
        data = encoded(photo())
        assert decode_image(data, max_pixels=61 * 47).size == (61, 47)
        monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
        with pytest.raises(ImageDecodingError, match=r"61x47 is more than max_pixels=2,866; .* higher max_pixels"):
            decode_image(data, max_pixels=61 * 47 - 1)

    def test_pillows_own_limit_says_how_to_raise_it(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(ImageDecodingError, match=r"raise PIL\.Image\.MAX_IMAGE_PIXELS"):
            decode_image(encoded(photo()))

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "1", "I;16", "F"])
    @pytest.mark.parametrize(("limit", "factor"), [(2**25, 1), (800, 2), (400, 3)])
    def test_strips_join_to_the_whole(self, monkeypatch, mode, limit, factor):
        image = photo().convert(mode)
        whole = decode_image(image)
        monkeypatch.setattr(decoding, "FULL_SIZE_PIXELS", limit)
        monkeypatch.setattr(decoding, "_STRIP_PIXELS", 70)
        assert np.array_equal(pixels(decode_image(image)), pixels(whole.reduce(factor)))

    @pytest.mark.parametrize("format", ["JPEG", "PNG"])
    def test_minimum_size_keeps_twice_the_size_and_the_look(self, test_data, format):
        with Image.open(test_data / "messy/Landscape_1.jpg") as file:
            data = encoded(file.convert("RGB"), format, **{"compress_level": 1} if format == "PNG" else {})
        whole, small = decode_image(data), decode_image(data, minimum_size=150)
        assert whole.size == (1800, 1200) and small.size == (450, 300)
        difference = np.abs(*(pixels(whole.resize((225, 150))) - pixels(small.resize((225, 150)))[None]))
        assert difference.mean() < 1.5

    def test_minimum_size_leaves_small_images_alone(self):
        for format in ("JPEG", "PNG"):
            data = encoded(photo(100, 79), format)
            assert np.array_equal(pixels(decode_image(data, minimum_size=20)), pixels(decode_image(data)))

    def test_a_reduced_jpeg_may_be_larger_than_max_pixels(self):
        data = encoded(photo(800, 600), "JPEG")
        assert decode_image(data, minimum_size=50, max_pixels=100_000).size == (200, 150)
        with pytest.raises(ImageDecodingError):
            decode_image(data, max_pixels=100_000)


class TestMessyFiles:
    def test_every_file_gives_pixels_or_one_error(self, test_data):
        wrong = []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for entry in manifest(test_data):
                path = test_data / "messy" / entry["file_name"]
                try:
                    image = decode_image(path)
                    upright = entry["size"][::-1] if entry.get("exif_orientation", 1) >= 5 else entry["size"]
                    if path.name == "made_9000x9000_1bit.png":
                        upright = [4500, 4500]
                    outcome = "ok" if (image.mode, list(image.size)) == ("RGB", upright) else f"{image}"
                except ImageDecodingError as error:
                    outcome = "error" if path.name in str(error) else str(error)
                if outcome != entry["expect"]:
                    wrong.append((path.name, outcome))
        assert not wrong

    def test_no_file_stays_open(self, test_data):
        if not Path("/proc/self/fd").is_dir():
            pytest.skip("the system does not list open files")
        kept, before = [], len(os.listdir("/proc/self/fd"))
        for entry in manifest(test_data):
            if entry["kind"] == "huge-dimensions":
                continue
            try:
                kept.append(decode_image(test_data / "messy" / entry["file_name"], minimum_size=32))
            except ImageDecodingError as error:
                kept.append(error)
        assert len(os.listdir("/proc/self/fd")) <= before

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel forgets and tells the peak on Linux alone")
    def test_no_file_takes_much_time_or_memory(self, test_data):
        """CPU seconds, which a busy machine does not change, and the most memory above the process when it is idle."""
        entries = manifest(test_data)
        command = [sys.executable, "-c", COSTS, *(test_data / "messy" / entry["file_name"] for entry in entries)]
        costs = [line.split("\t") for line in subprocess.check_output(command, text=True).splitlines()]
        assert len(costs) == 3 * len(entries) > 300
        largest = max(int(num_bytes) for _, num_bytes, way, path in costs if "9000x9000_1bit" in path)
        assert largest > 9000 * 9000, "Pillow holds it in a byte for each pixel: what is held goes unseen"
        for seconds, num_bytes, way, path in costs:
            assert float(seconds) < LIMIT_SECONDS and int(num_bytes) < LIMIT_BYTES, (way, path, seconds, num_bytes)


class TestWarnings:
    def test_other_warnings_pass_and_the_filters_are_restored(self):
        before = list(warnings.filters)
        data = encoded(photo().quantize(16), transparency=bytes(range(16)))  # Pillow warns of such palettes
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(decode_image, [data] * 200))
        assert warnings.filters == before
        with decoding._quiet_pillow, pytest.warns(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)

    def test_pillow_is_quiet(self):
        data = encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x40\0")  # 64 tags announced, none there
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Image.open(BytesIO(data)) as image:
                image.getexif()
            assert caught, "the file is not odd enough for this test"
            caught.clear()
            decode_image(data)
        assert not caught
