"""The image processor against OpenAI's transform, written out by hand, and against transformers and torchvision."""

import base64
import json
import subprocess
import sys
import weakref
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil
from transformers.image_processing_backends import TorchvisionBackend
from transformers.utils import is_torchvision_available

from clip_hf.model import image_processing_clip_hf as processing
from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.image_decoding_clip_hf import ImageDecodingError
from clip_hf.model.image_processing_clip_hf import (
    IMAGE_PROCESSOR_CLASSES,
    ClipHfImageProcessor,
    ClipHfImageProcessorTorch,
    ClipHfImageProcessorTorchvision,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIZES = [
    (640, 480),
    (375, 500),
    (224, 224),
    (225, 224),
    (224, 227),
    (231, 224),
    (60, 90),
    (1000, 300),
    (300, 1000),
    (301, 299),
]
BYTES = {"do_rescale": False, "do_normalize": False}
FAST = [
    "torch",
    pytest.param(
        "torchvision", marks=pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
    ),
]


def noise(width: int, height: int) -> Image.Image:
    """Smooth in one half and noise in the other: what a resize filter gets wrong shows in both."""
    generator = np.random.default_rng(width * height)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[:, : width // 2, 0] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    return Image.fromarray(image)


def openai_pixels(image: Image.Image, size: int = 224) -> np.ndarray:
    """`Resize(size, BICUBIC)`, `CenterCrop(size)`, RGB, of openai/CLIP clip/clip.py `_transform`: (H, W, 3) uint8."""
    width, height = image.size
    if width <= height:
        image = image.resize((size, int(size * height / width)), Image.BICUBIC)
    else:
        image = image.resize((int(size * width / height), size), Image.BICUBIC)
    top, left = round((image.height - size) / 2.0), round((image.width - size) / 2.0)
    return np.array(image.convert("RGB"))[top : top + size, left : left + size]


def openai_transform(image: Image.Image, size: int = 224) -> torch.Tensor:
    """The same with `ToTensor()` and `Normalize(...)`."""
    values = torch.from_numpy(openai_pixels(image, size)).permute(2, 0, 1).to(torch.float32).div(255)
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def assert_within_one_level(fast: torch.Tensor, exact: torch.Tensor, name: object = "") -> None:
    """Both uint8."""
    assert (fast.cpu().int() - exact.int()).abs().max() <= 1, name


def run(processor, images, **options) -> torch.Tensor:
    return processor(images, return_tensors="pt", **options).pixel_values


@pytest.fixture(scope="module")
def photos(test_data) -> list[Path]:
    flickr = sorted((test_data / "flickr8k/validation").glob("*.jpg"))[:4]
    clothing = sorted((test_data / "clothing/validation").rglob("*.jpg"))[:4]
    return [*flickr, *clothing, test_data / "messy/iptc.jpg", test_data / "messy/xmp_test.jpg"]


@pytest.fixture
def registered() -> None:
    AutoImageProcessor.register(ClipHfConfig, image_processor_classes=dict(IMAGE_PROCESSOR_CLASSES), exist_ok=True)


class TestExactness:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("resolution", [224, 336, 97])
    def test_pillow_equals_openai(self, size, resolution):
        processor = ClipHfImageProcessor(size=resolution, crop_size=resolution)
        assert torch.equal(run(processor, noise(*size))[0], openai_transform(noise(*size), resolution))

    def test_pillow_equals_openai_on_photos(self, photos):
        values = run(ClipHfImageProcessor(), photos)
        for path, value in zip(photos, values, strict=True):
            assert torch.equal(value, openai_transform(Image.open(path))), path.name

    def test_pillow_equals_transformers(self):
        for size in SIZES:
            if (size[0] - 224) % 4 != 3 and (size[1] - 224) % 4 != 3:  # transformers rounds half a pixel down
                theirs = CLIPImageProcessorPil()(noise(*size), return_tensors="pt").pixel_values
                assert torch.allclose(run(ClipHfImageProcessor(), noise(*size)), theirs, atol=1e-6), size

    def test_everything_equals_torchvision(self):
        transforms = pytest.importorskip("torchvision.transforms")
        for size in SIZES:
            steps = [
                transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
            assert torch.equal(run(ClipHfImageProcessor(), noise(*size))[0], transforms.Compose(steps)(noise(*size)))

    @pytest.mark.parametrize("backend", FAST)
    @pytest.mark.parametrize(
        "resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS]
    )
    def test_fast_backends_stay_within_one_level(self, backend, resample):
        fast = IMAGE_PROCESSOR_CLASSES[backend](resample=resample)
        assert fast.backend == backend
        for size in SIZES:
            exact = run(ClipHfImageProcessor(resample=resample), noise(*size), **BYTES)
            assert_within_one_level(run(fast, noise(*size), **BYTES), exact, size)

    @pytest.mark.parametrize("backend", FAST)
    @pytest.mark.parametrize("size", [(200, 150), (150, 200), (224, 224), (400, 300)])
    def test_fast_backends_stay_within_one_level_when_they_distort(self, backend, size):
        options = {"size": {"height": size[1], "width": size[0]}, "do_center_crop": False, **BYTES}
        for image in (noise(224, 224), noise(480, 640), noise(200, 300), noise(300, 200)):
            exact = run(ClipHfImageProcessor(), image, **options)
            assert_within_one_level(run(IMAGE_PROCESSOR_CLASSES[backend](), image, **options), exact)

    @pytest.mark.gpu
    @pytest.mark.parametrize("backend", FAST)
    def test_fast_backends_on_a_gpu(self, backend):
        for size in SIZES:
            fast = run(IMAGE_PROCESSOR_CLASSES[backend](), noise(*size), device="cuda", **BYTES)
            assert fast.is_cuda
            assert_within_one_level(fast, run(ClipHfImageProcessor(), noise(*size), **BYTES), size)

    @pytest.mark.parametrize("size", SIZES)
    def test_the_resize_of_other_devices(self, size):
        pixels = torch.from_numpy(np.array(noise(*size))).permute(2, 0, 1)[None]
        resized = processing._interpolate_in_floats(pixels, (150, 200), "bicubic")[0].permute(1, 2, 0)
        width_first = noise(*size).resize((200, size[1]), Image.BICUBIC).resize((200, 150), Image.BICUBIC)
        exact = torch.from_numpy(np.array(width_first))
        assert_within_one_level(resized, exact)

    @pytest.mark.parametrize("backend", ["pil", *FAST])
    def test_bytes_are_what_the_floats_were_made_of(self, backend):
        processor = IMAGE_PROCESSOR_CLASSES[backend]()
        images = [noise(*size) for size in SIZES]
        raw, floats = run(processor, images, **BYTES), run(processor, images)
        assert raw.dtype == torch.uint8 and floats.dtype == torch.float32
        assert raw.shape == floats.shape == (len(SIZES), 3, 224, 224)
        assert raw.is_contiguous() and floats.is_contiguous()
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        assert torch.equal((raw / 255 - mean) / std, floats)

    @pytest.mark.parametrize("backend", ["pil", *FAST])
    def test_of_a_strip_only_the_crop_is_computed(self, backend, monkeypatch):
        strip = noise(9, 12).resize((9, 400), Image.BICUBIC)
        whole = openai_pixels(strip)
        monkeypatch.setattr(processing, "LARGEST_RESIZE", 2**20)
        monkeypatch.setattr(Image.Image, "crop", lambda *_: pytest.fail("the whole strip was resized"))
        narrow = run(IMAGE_PROCESSOR_CLASSES[backend](), np.array(strip), **BYTES)[0].permute(1, 2, 0).numpy()
        assert np.abs(narrow.astype(int) - whole).max() <= 2

    @pytest.mark.parametrize("backend", ["pil", *FAST])
    def test_an_extreme_strip_does_not_fill_the_memory(self, backend):
        # 4 GB if it were resized whole
        assert run(IMAGE_PROCESSOR_CLASSES[backend](), Image.new("RGB", (1, 20_000))).shape == (1, 3, 224, 224)


class TestOptions:
    @pytest.mark.parametrize("backend", ["pil", *FAST])
    def test_each_step_can_be_left_out(self, backend):
        make, image = IMAGE_PROCESSOR_CLASSES[backend], noise(300, 260)
        whole = np.array(image).transpose(2, 0, 1)
        none = run(make(do_resize=False, do_center_crop=False, **BYTES), image)[0].numpy()
        assert np.array_equal(none, whole)
        crop = run(make(do_resize=False, **BYTES), image)[0].numpy()
        assert np.array_equal(crop, whole[:, 18:242, 38:262])
        assert run(make(do_center_crop=False, **BYTES), image).shape == (1, 3, 224, 258)
        assert run(make(size={"height": 50, "width": 70}, do_center_crop=False), image).shape == (1, 3, 50, 70)

    @pytest.mark.parametrize("backend", ["pil", *FAST])
    def test_a_crop_beyond_the_image_is_black_around(self, backend):
        image = Image.new("RGB", (5, 300), "white")
        pixels = run(IMAGE_PROCESSOR_CLASSES[backend](do_resize=False, crop_size=(224, 10), **BYTES), image)[0, 0]
        assert pixels.shape == (224, 10)
        assert pixels[0].tolist() == [0, 0, 255, 255, 255, 255, 255, 0, 0, 0]  # (10 - 5) // 2 columns on the left

    def test_a_crop_wider_than_a_narrow_image_is_black_around_however_long(self, monkeypatch):
        processor = ClipHfImageProcessor(size=24, crop_size=(24, 31), **BYTES)
        image = Image.new("RGB", (10, 300), "white")
        for most in (processing.LARGEST_RESIZE, 100):
            monkeypatch.setattr(processing, "LARGEST_RESIZE", most)
            pixels = run(processor, image)[0, 0]
            assert pixels.unique(dim=0).tolist() == [[0] * 3 + [255] * 24 + [0] * 4]

    def test_statistics_and_factor(self):
        image = noise(224, 224)
        raw = run(ClipHfImageProcessor(), image, **BYTES)
        values = run(ClipHfImageProcessor(image_mean=0.5, image_std=0.25, rescale_factor=1 / 127.5), image)
        assert torch.allclose(values, (raw / 127.5 - 0.5) / 0.25)

    def test_a_call_overrides(self):
        processor = ClipHfImageProcessor()
        assert run(processor, noise(90, 90), size=64, crop_size=32).shape == (1, 3, 32, 32)
        assert run(processor, noise(90, 90)).shape == (1, 3, 224, 224)

    def test_what_is_returned(self):
        images = [noise(90, 90), noise(80, 90)]
        as_list = ClipHfImageProcessor()(images).pixel_values
        as_array = ClipHfImageProcessor()(images, return_tensors="np").pixel_values
        assert isinstance(as_list, list) and as_list[0].shape == (3, 224, 224)
        assert np.array_equal(np.stack(as_list), as_array)
        assert np.array_equal(run(ClipHfImageProcessor(), images).numpy(), as_array)

    def test_images_of_several_sizes_make_a_list_but_no_tensor(self):
        processor = ClipHfImageProcessor(do_center_crop=False)
        images = [noise(90, 90), noise(80, 90)]
        assert [image.shape for image in processor(images).pixel_values] == [(3, 224, 224), (3, 252, 224)]
        with pytest.raises(ValueError, match=r"do not fit into one tensor: set do_center_crop=True"):
            run(processor, images)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"crop_sise": 224}, TypeError, "did you mean crop_size"),
            ({"do_normalise": False}, TypeError, "did you mean do_normalize"),
            ({"xyz": 1}, TypeError, "there are .*crop_size"),
            ({"do_normalize": False}, ValueError, "take such floats for normalised ones"),
            ({"do_rescale": False}, ValueError, "take such floats for normalised ones"),
            ({"crop_size": 336}, ValueError, "size=336, crop_size=336"),
            (
                {"size": {"height": 224, "width": 224}, "crop_size": {"height": 336, "width": 224}},
                ValueError,
                "every image would get black borders",
            ),
            ({"size": {"longest_edge": 224}}, ValueError, "must have the key shortest_edge"),
            ({"crop_size": {"shortest_edge": 224}}, ValueError, "must have the keys height and width"),
            ({"size": 0, "crop_size": 0}, ValueError, "must be 1 or more pixels"),
            ({"image_mean": [0.5, 0.5]}, ValueError, "one number or three"),
            ({"image_std": [0.5, 0.5, 0.0]}, ValueError, "image_std above 0"),
            ({"do_convert_rgb": False}, ValueError, "not supported"),
            ({"do_pad": True}, ValueError, "not supported"),
            ({"data_format": "channels_last"}, ValueError, "not supported"),
        ],
    )
    def test_mistakes_are_told_at_construction_and_in_calls(self, options, error, message):
        for make in (ClipHfImageProcessor, ClipHfImageProcessorTorch):
            with pytest.raises(error, match=message):
                make(**options)
            with pytest.raises(error, match=message):
                make()(noise(9, 9), **options)

    def test_torchvision_is_asked_for_at_construction(self):
        assert issubclass(ClipHfImageProcessorTorchvision, TorchvisionBackend)
        if is_torchvision_available():
            assert ClipHfImageProcessorTorchvision().backend == "torchvision"
        else:
            with pytest.raises(ImportError, match="needs torchvision"):
                ClipHfImageProcessorTorchvision()


class TestSources:
    def test_all_sources_give_the_same_values(self, tmp_path):
        image = noise(120, 90)
        array = np.array(image)
        (path := tmp_path / "photo.png").write_bytes(data := encoded(image))
        sources = [
            *(image, path, str(path), data, BytesIO(data)),
            "data:image/png;base64," + base64.b64encode(data).decode(),
            *(array, array.transpose(2, 0, 1), torch.from_numpy(array).permute(2, 0, 1)),
            *(
                array / 255,
                torch.from_numpy(array).permute(2, 0, 1) / 255,
                np.dstack([array, np.full((90, 120), 255)]),
            ),
        ]
        sources[-1] = sources[-1].astype(np.uint8)
        for processor in (ClipHfImageProcessor(), ClipHfImageProcessorTorch()):
            values = run(processor, sources)
            assert all(torch.equal(value, values[0]) for value in values)

    def test_the_layout_of_arrays_can_be_told(self):
        array = np.random.default_rng(0).integers(0, 256, (3, 40, 3), dtype=np.uint8)
        options = {"do_resize": False, "do_center_crop": False, **BYTES}
        for layout, size in (("channels_first", (40, 3)), ("channels_last", (3, 40))):
            assert run(ClipHfImageProcessor(**options), array, input_data_format=layout).shape[2:] == size

    def test_batches_and_nested_lists(self):
        batch = torch.from_numpy(np.stack([np.array(noise(90, 90))] * 2)).permute(0, 3, 1, 2)
        processor = ClipHfImageProcessor()
        assert torch.equal(run(processor, batch), run(processor, [[batch[0]], [noise(90, 90)]]))

    def test_no_images(self):
        with pytest.raises(ValueError, match="no image"):
            ClipHfImageProcessor()([])
        with pytest.raises(TypeError, match="None is no image"):
            ClipHfImageProcessor()(None)

    def test_the_broken_image_of_a_batch_is_named(self, tmp_path):
        (path := tmp_path / "broken.jpg").write_bytes(b"<html>")
        for broken, name in ((path, r"broken\.jpg"), (str(path), r"broken\.jpg"), (b"<html>", r"images\[1\]")):
            with pytest.raises(ImageDecodingError, match=name):
                ClipHfImageProcessor()([noise(9, 9), broken, noise(9, 9)])

    def test_one_decoded_image_is_alive_at_a_time(self, monkeypatch):
        alive: list[weakref.ref] = []

        def decode(*arguments):
            assert not [image for image in alive if image() is not None]
            alive.append(weakref.ref(image := original(*arguments)))
            return image

        original = processing.decode_source
        monkeypatch.setattr(processing, "decode_source", decode)
        data = encoded(noise(90, 90))
        for processor in (ClipHfImageProcessor(), ClipHfImageProcessorTorch()):
            run(processor, processor.fetch_images([data] * 5))
        assert len(alive) == 10

    def test_odd_files_pass_through_both_processors(self, test_data):
        for line in (test_data / "messy/manifest.jsonl").read_text().splitlines():
            entry = json.loads(line)
            path = test_data / "messy" / entry["file_name"]
            if entry["expect"] == "error":
                with pytest.raises(ImageDecodingError, match="^" + str(path).replace(".", r"\.") + ": "):
                    ClipHfImageProcessor()(path)
                continue
            exact, fast = run(ClipHfImageProcessor(), path, **BYTES), run(ClipHfImageProcessorTorch(), path, **BYTES)
            assert exact.shape == (1, 3, 224, 224)
            assert_within_one_level(fast, exact, path.name)

    def test_photos_are_turned_upright(self):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        turned = noise(90, 60).transpose(Image.Transpose.ROTATE_90)
        assert torch.equal(
            run(ClipHfImageProcessor(), encoded(turned, exif=exif)), run(ClipHfImageProcessor(), noise(90, 60))
        )


class TestSaving:
    def test_all_backends_are_saved_alike_and_load_again(self, tmp_path):
        options = {"size": 64, "crop_size": 48, "image_mean": (0.1, 0.2, 0.3), **BYTES}
        for make in (ClipHfImageProcessor, ClipHfImageProcessorTorch):
            (processor := make(**options)).save_pretrained(tmp_path)
            saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
            assert saved["image_processor_type"] == "ClipHfImageProcessor"
            loaded = make.from_pretrained(tmp_path)
            assert loaded.to_dict() == processor.to_dict()
            assert torch.equal(run(loaded, noise(90, 90)), run(processor, noise(90, 90)))

    def test_auto_class_finds_every_backend(self, tmp_path, registered):
        ClipHfImageProcessor(size=64, crop_size=64).save_pretrained(tmp_path)
        expected = "torchvision" if is_torchvision_available() else "pil"
        for asked, backend in ((None, expected), ("pil", "pil"), ("torch", "torch")):
            processor = AutoImageProcessor.from_pretrained(tmp_path, backend=asked)
            assert type(processor) is IMAGE_PROCESSOR_CLASSES[backend] and processor.backend == backend
            assert run(processor, noise(90, 90)).shape == (1, 3, 64, 64)
        if not is_torchvision_available():
            with pytest.raises(ImportError, match="needs torchvision"):
                AutoImageProcessor.from_pretrained(tmp_path, backend="torchvision")

    def test_configurations_of_published_clip_load(self, tmp_path):
        published = {
            "crop_size": 224,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": list(MEAN),
            "image_std": list(STD),
            "resample": 3,
            "size": 224,
        }
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
        assert torch.equal(
            run(ClipHfImageProcessor.from_pretrained(tmp_path), noise(90, 91)), openai_transform(noise(90, 91))[None]
        )
        CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336).save_pretrained(tmp_path)
        assert run(ClipHfImageProcessor.from_pretrained(tmp_path), noise(90, 90)).shape == (1, 3, 336, 336)

    def test_transformers_reads_ours(self, tmp_path):
        ClipHfImageProcessor(size=64, crop_size=64).save_pretrained(tmp_path)
        theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
        assert torch.allclose(
            run(theirs, noise(90, 90)), run(ClipHfImageProcessor.from_pretrained(tmp_path), noise(90, 90))
        )

    def test_code_on_the_hub_serves_every_backend(self, tmp_path, monkeypatch):
        """In a process that never imports clip_hf."""
        (tmp_path / "photo.png").write_bytes(encoded(noise(90, 90)))
        processor = ClipHfImageProcessorTorch(size=64, crop_size=64)
        processor.save_pretrained(tmp_path / "saved")
        program = """
import sys
from transformers import AutoImageProcessor
for backend in (None, "pil", "torch"):
    processor = AutoImageProcessor.from_pretrained("saved", backend=backend, trust_remote_code=True)
    values = processor("photo.png", return_tensors="pt").pixel_values
    print(type(processor).__name__, processor.backend, values.sum().item())
processor.save_pretrained("saved again")
processor = AutoImageProcessor.from_pretrained("saved again", backend="pil", trust_remote_code=True)
assert processor.backend == "pil" and processor.size == {"shortest_edge": 64}
assert "clip_hf" not in sys.modules
"""
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        command = [sys.executable, "-c", program]
        lines = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
        default = (
            "ClipHfImageProcessorTorchvision torchvision" if is_torchvision_available() else "ClipHfImageProcessor pil"
        )
        total = run(ClipHfImageProcessor(size=64, crop_size=64), noise(90, 90)).sum().item()
        for line, name in zip(
            lines, (default, "ClipHfImageProcessor pil", "ClipHfImageProcessorTorch torch"), strict=True
        ):
            assert line.startswith(f"{name} ")
            assert float(line.split()[-1]) == pytest.approx(total, rel=1e-2)
