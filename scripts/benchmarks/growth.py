"""Draws how the cost of things grows: images in a batch, tokens in a text, pairs in the loss, samples of a stream.

Time and memory per piece of work, on the machine at hand, of ours alone. Images, texts and shards are noise. Linux.

    python scripts/benchmarks/growth.py --most_samples 100000
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from contrastive_loss import measure as measure_loss
from measuring.drawing import draw_curves
from measuring.memory import held_megabytes, in_fresh_process
from measuring.noise import write_noise_shards
from measuring.options import make_parser
from measuring.reports import write
from measuring.rounds import take_turns
from tqdm import tqdm

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTokenizer
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs

Points = list[tuple[float, ...]]


def features(repeats: int) -> tuple[Points, Points]:
    """Returns milliseconds per image by batch, and per text of a batch of 32 by length, of a ViT-B/32."""
    model = ClipHfModel(ClipHfConfig.from_architecture("ViT-B/32")).eval()
    ways: dict[tuple[str, int], Any] = {}
    for size in (1, 2, 4, 8, 16, 32, 64):
        pixels = torch.randn(size, 3, 224, 224)
        ways["image", size] = lambda pixels=pixels: model.get_image_features(pixels)
    for length in (5, 10, 20, 40, 77):
        ids = torch.randint(0, 49406, (32, length))
        ids[:, -1] = model.config.text_config.eos_token_id
        ways["text", length] = lambda ids=ids: model.get_text_features(ids)
    with torch.no_grad():
        seconds = {way: min(times) for way, times in take_turns(ways, repeats, "Features").items()}
    images = [(size, 1e3 * seconds[kind, size] / size) for kind, size in ways if kind == "image"]
    return images, [(length, 1e3 * seconds[kind, length] / 32) for kind, length in ways if kind == "text"]


def losses(repeats: int) -> Points:
    """Returns seconds, and megabytes above inputs and gradients, of the loss forward and backward, by pairs."""
    sizes, points = [2**power for power in range(10, 16)], []
    for num_pairs in tqdm(sizes, desc="Loss"):
        runs = [in_fresh_process(measure_loss, "clip_hf", num_pairs, 512) for _ in range(repeats)]
        points.append((num_pairs, *(min(run[what] for run in runs) for what in ("seconds", "megabytes"))))
    return points


def stream(most: int) -> Points:
    """Returns megabytes held by the process, and samples per second since the last point, by samples read."""
    points, batch_size, last = [], 100, 0
    marks = {factor * 10**power for power in range(3, 9) for factor in (1, 2, 5)}
    tokenizer = ClipHfTokenizer.train(["noise"], vocab_size=600, context_length=16)
    processor = ClipHfProcessor(ClipHfImageProcessor(size=32, crop_size=32), tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_noise_shards(Path(folder), most // 1000, 1000)
        start = time.perf_counter()
        loader = TrainingPairs([open_source(shards, streaming=True)], processor).loader(batch_size)
        for number, _ in enumerate(tqdm(loader, desc="Stream"), start=1):
            if (num_read := batch_size * number) in marks:
                now = time.perf_counter()
                points.append((num_read, held_megabytes(), (num_read - last) / (now - start)))
                start, last = now, num_read
    return points


def main() -> None:
    """Measures, draws and saves."""
    parser = make_parser(__file__, __doc__, repeats=2)
    parser.add_argument("--most_samples", type=int, default=100_000, help="of the stream")
    args = parser.parse_args()
    images, texts = features(args.repeats)
    pairs, samples = losses(args.repeats), in_fresh_process(stream, args.most_samples)
    curves = {
        "ViT-B/32: ms per image": ("images in a batch", images),
        "text tower: ms per text": ("tokens of a text, 32 texts in a batch", texts),
        "loss: seconds": ("pairs", [point[:2] for point in pairs]),
        "loss: MB above inputs and gradients": ("pairs", [(point[0], point[2]) for point in pairs]),
        "stream: MB of the process": ("samples read", [point[:2] for point in samples]),
        "stream: samples per second": ("samples read", [(point[0], point[2]) for point in samples]),
    }
    write(args.output, "Cost as work grows", "as each curve says", args, curves=curves)
    draw_curves(curves, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
