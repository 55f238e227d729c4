"""What may be given as an image: arrays in all layouts, lists of lists, URLs."""

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from clip_hf.model.image_decoding_clip_hf import ImageDecodingError
from clip_hf.model.image_sources_clip_hf import decode_source, flatten_images

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
OPAQUE = np.full((40, 50, 1), 255, dtype=np.uint8)


def png() -> bytes:
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    """The address of a server of one image, /photo.png."""
    monkeypatch.setenv("NO_PROXY", "*")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/photo.png" else 404)
            self.end_headers()
            self.wfile.write(png())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


class TestArrays:
    @pytest.mark.parametrize(
        "array",
        [
            PIXELS,
            PIXELS.transpose(2, 0, 1),
            PIXELS[:, ::-1][:, ::-1],
            np.concatenate([PIXELS, OPAQUE], axis=-1),
            np.concatenate([PIXELS, OPAQUE], axis=-1).transpose(2, 0, 1),
            PIXELS / 255,
            (PIXELS / 255).astype(np.float32),
            torch.from_numpy(PIXELS),
            torch.from_numpy(PIXELS).permute(2, 0, 1),
            (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).requires_grad_(),
            (torch.from_numpy(PIXELS) / 255).double(),
        ],
    )
    def test_colour(self, array):
        image = decode_source(array, "it")
        assert image.mode == "RGB" and np.array_equal(np.array(image), PIXELS)

    @pytest.mark.parametrize("array", [PIXELS[..., 0], PIXELS[..., :1], PIXELS[..., 0][None]])
    def test_grey(self, array):
        assert np.array_equal(np.array(decode_source(array, "it")), np.repeat(PIXELS[..., :1], 3, axis=-1))

    def test_half_precision(self):
        image = decode_source(torch.from_numpy(PIXELS).permute(2, 0, 1).div(255).bfloat16(), "it")
        assert np.abs(np.array(image).astype(int) - PIXELS).max() <= 1

    def test_transparent_arrays_show_white(self):
        array = np.concatenate([PIXELS, np.zeros_like(OPAQUE)], axis=-1)
        assert (np.array(decode_source(array, "it")) == 255).all()

    def test_an_ambiguous_layout_can_be_told(self):
        assert decode_source(PIXELS[:3], "it", "channels_first").size == (3, 50)
        assert decode_source(PIXELS[:3], "it", "channels_last").size == (50, 3)
        with pytest.raises(ValueError, match=r"input_data_format is 'channel_first', but must be one of \('"):
            decode_source(PIXELS[:3], "it", "channel_first")

    @pytest.mark.parametrize(
        ("array", "told", "right"),
        [
            (PIXELS, "channels_first", "channels_last"),
            (PIXELS[:2], "channels_first", "channels_last"),
            (torch.from_numpy(PIXELS).permute(2, 0, 1), "channels_last", "channels_first"),
        ],
    )
    def test_a_layout_that_the_shape_contradicts_is_refused(self, array, told, right):
        shape = str(tuple(array.shape)).replace("(", r"\(").replace(")", r"\)")
        channels = array.shape[0 if told == "channels_first" else -1]
        message = f"{told}', in which frame 7 of shape {shape} has {channels} channels: pass '{right}'"
        with pytest.raises(ValueError, match=message):
            decode_source(array, "frame 7", told)

    @pytest.mark.parametrize(
        "array",
        [
            PIXELS * 1.0,
            np.full((9, 9, 3), np.nan),
            np.full((9, 9, 3), -0.1),
            PIXELS.astype(np.int64),
            PIXELS.astype(np.uint16),
            PIXELS[:0],
            PIXELS[0, 0],
            PIXELS[..., :2],
            torch.zeros(1, 3, 9, 9),
        ],
    )
    def test_arrays_that_are_no_images(self, array):
        with pytest.raises(ValueError, match=r"frame 7 is an array of .* pass uint8, or floats between 0 and 1"):
            decode_source(array, "frame 7")


class TestLists:
    def test_nested_lists_and_batches_are_flattened(self):
        batch = np.stack([PIXELS, PIXELS])
        flat = list(flatten_images(["a.png", ("b.png", [PIXELS, torch.from_numpy(batch)]), batch[None]]))
        assert flat[:2] == ["a.png", "b.png"]
        assert [tuple(image.shape) for image in flat[2:]] == [(40, 50, 3)] * 5

    @pytest.mark.parametrize("image", ["a.png", b"bytes", PIXELS, Image.fromarray(PIXELS)])
    def test_one_image_is_a_list_of_one(self, image):
        (only,) = flatten_images(image)
        assert only is image


class TestUrls:
    def test_http(self, server):
        assert np.array_equal(np.array(decode_source(f"{server}/photo.png", "it")), PIXELS)

    def test_what_cannot_be_fetched_is_named(self, server):
        with pytest.raises(ImageDecodingError, match=r"^http.*/absent\.png: .*404"):
            decode_source(f"{server}/absent.png", "it")
        with pytest.raises(ImageDecodingError, match=r"^http://127\.0\.0\.1:1/photo\.png: "):
            decode_source("http://127.0.0.1:1/photo.png", "it")
        with pytest.raises(ImageDecodingError, match=r"^http://\[: "):
            decode_source("http://[", "it")

    def test_data(self):
        url = "data:image/png;base64," + base64.b64encode(png()).decode()
        assert np.array_equal(np.array(decode_source(url, "it")), PIXELS)
        lines = "data:image/png;base64,\n" + base64.encodebytes(png()).decode()
        assert np.array_equal(np.array(decode_source(lines, "it")), PIXELS)
        with pytest.raises(ImageDecodingError, match=r"^data:image/png;base64,\?\?: "):
            decode_source("data:image/png;base64,??", "it")
        with pytest.raises(ImageDecodingError, match=r"^data:image/png;base64,.{58}: ") as caught:
            decode_source(url[: len(url) // 8 * 4 + 2], "it")
        assert len(str(caught.value)) < 300
