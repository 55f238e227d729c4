"""A tokenizer, models that fit it, and pictures: what the tests of zero-shot classification share."""

from functools import cache

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from clip_hf import ClipHfConfig, ClipHfModel
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessor
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer
from tests.tiny_models import TEXT, VISION, randomize_batch_norms

CONTEXT_LENGTH = 24
NAMES = ("dog", "a very long haired tabby cat", "ox", "hot air balloon", "zebra")
TEMPLATES = ("a photo of a {}.", "{}", "a rather bad drawing of the {}, seen from afar")


@cache
def tiny_tokenizer() -> ClipHfTokenizer:
    return ClipHfTokenizer.train([*NAMES, *TEMPLATES, "This is a photo of {}."] * 3, context_length=CONTEXT_LENGTH)


def tiny_zero_shot_model(tower: str, seed: int = 0) -> ClipHfModel:
    text = TEXT | {"vocab_size": len(tiny_tokenizer()), "max_position_embeddings": CONTEXT_LENGTH}
    torch.manual_seed(seed)
    model = ClipHfModel(ClipHfConfig(text_config=text, vision_config=VISION[tower], projection_dim=32))
    randomize_batch_norms(model)
    return model.eval()


def tiny_transformers_model() -> CLIPModel:
    """transformers' own CLIP, with the sizes of our tiny ViT."""
    vocab_size = len(tiny_tokenizer())
    text = {
        "vocab_size": vocab_size,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": vocab_size - 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
    }
    vision = {name: value for name, value in VISION["vit"].items() if name != "model_type"} | {"intermediate_size": 96}
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).eval()


def tiny_image_processor(model: torch.nn.Module) -> ClipHfImageProcessor:
    size = model.config.vision_config.image_size
    return ClipHfImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def pictures(number: int = 5) -> list[Image.Image]:
    """Noise of various shapes."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(40 + 7 * index, 90 - 5 * index, 3) for index in range(number)]
    arrays = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).numpy() for shape in shapes]
    return [Image.fromarray(array) for array in arrays]


def plain_text_embeds(model: torch.nn.Module, texts: list[str]) -> Tensor:
    """Unit embeddings, each text by itself and without padding."""
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        features = [model.get_text_features(tokenizer(text, return_tensors="pt").input_ids) for text in texts]
    embeds = torch.cat([feature.pooler_output for feature in features])
    return embeds / embeds.norm(dim=-1, keepdim=True)
