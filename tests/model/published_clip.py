"""CLIP in plain functions of a state dict in OpenAI's layout, written from the paper and the published facts.

An independent reference: it shares no line with the package, and runs in the dtype of its weights: float64 in tests.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def encode_image(weights: Weights, pixels: Tensor, num_heads: int) -> Tensor:
    if "visual.proj" in weights:
        return encode_image_vit(weights, pixels, num_heads)
    return encode_image_resnet(weights, pixels, num_heads)


def encode_image_vit(weights: Weights, pixels: Tensor, num_heads: int) -> Tensor:
    kernel = weights["visual.conv1.weight"]
    patches = F.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([weights["visual.class_embedding"].expand(len(patches), 1, -1), patches], dim=1)
    x = layer_norm(weights, "visual.ln_pre", x + weights["visual.positional_embedding"])
    x = transformer(weights, "visual.transformer", x, num_heads, mask=None)
    return layer_norm(weights, "visual.ln_post", x[:, 0]) @ weights["visual.proj"]


def encode_text(weights: Weights, ids: Tensor, num_heads: int) -> Tensor:
    length = ids.shape[1]
    x = weights["token_embedding.weight"][ids] + weights["positional_embedding"][:length]
    mask = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
    x = layer_norm(weights, "ln_final", transformer(weights, "transformer", x, num_heads, mask))
    # The end of text is the largest id, and the first of several.
    return x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ weights["text_projection"]


def transformer(weights: Weights, name: str, x: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
    for i in range(count(weights, f"{name}.resblocks")):
        block = f"{name}.resblocks.{i}"
        y = layer_norm(weights, f"{block}.ln_1", x).transpose(0, 1)
        y, _ = F.multi_head_attention_forward(
            y, y, y, y.shape[-1], num_heads,
            weights[f"{block}.attn.in_proj_weight"], weights[f"{block}.attn.in_proj_bias"],
            None, None, False, 0.0,
            weights[f"{block}.attn.out_proj.weight"], weights[f"{block}.attn.out_proj.bias"],
            training=False, need_weights=False, attn_mask=mask,
        )  # fmt: skip
        x = x + y.transpose(0, 1)
        y = linear(weights, f"{block}.mlp.c_fc", layer_norm(weights, f"{block}.ln_2", x))
        x = x + linear(weights, f"{block}.mlp.c_proj", y * torch.sigmoid(1.702 * y))
    return x


def encode_image_resnet(weights: Weights, pixels: Tensor, num_heads: int) -> Tensor:
    x = pixels
    for i in (1, 2, 3):
        x = batch_norm(weights, f"visual.bn{i}", conv(weights, f"visual.conv{i}", x, stride=2 if i == 1 else 1)).relu()
    x = F.avg_pool2d(x, 2)
    for stage in (1, 2, 3, 4):
        for block in range(count(weights, f"visual.layer{stage}")):
            x = bottleneck(weights, f"visual.layer{stage}.{block}", x, stride=2 if stage > 1 and block == 0 else 1)
    return attention_pool(weights, x, num_heads)


def bottleneck(weights: Weights, name: str, x: Tensor, stride: int) -> Tensor:
    y = batch_norm(weights, f"{name}.bn1", conv(weights, f"{name}.conv1", x)).relu()
    y = batch_norm(weights, f"{name}.bn2", conv(weights, f"{name}.conv2", y)).relu()
    y = F.avg_pool2d(y, stride) if stride > 1 else y
    y = batch_norm(weights, f"{name}.bn3", conv(weights, f"{name}.conv3", y))
    if f"{name}.downsample.0.weight" in weights:
        x = F.avg_pool2d(x, stride) if stride > 1 else x
        x = batch_norm(weights, f"{name}.downsample.1", conv(weights, f"{name}.downsample.0", x))
    return (x + y).relu()


def attention_pool(weights: Weights, feature_map: Tensor, num_heads: int) -> Tensor:
    pool = "visual.attnpool"
    x = feature_map.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(dim=0, keepdim=True), x]) + weights[f"{pool}.positional_embedding"][:, None]
    x, _ = F.multi_head_attention_forward(
        x[:1], x, x, x.shape[-1], num_heads,
        None, torch.cat([weights[f"{pool}.{name}_proj.bias"] for name in "qkv"]),
        None, None, False, 0.0,
        weights[f"{pool}.c_proj.weight"], weights[f"{pool}.c_proj.bias"],
        training=False, need_weights=False, use_separate_proj_weight=True,
        q_proj_weight=weights[f"{pool}.q_proj.weight"], k_proj_weight=weights[f"{pool}.k_proj.weight"],
        v_proj_weight=weights[f"{pool}.v_proj.weight"],
    )  # fmt: skip
    return x[0]


def conv(weights: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel = weights[f"{name}.weight"]
    return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)


def batch_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    mean, var, gain, bias = (weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, gain, bias, training=False, eps=1e-5)


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def count(weights: Weights, name: str) -> int:
    return len({key.removeprefix(f"{name}.").split(".")[0] for key in weights if key.startswith(f"{name}.")})


def random_weights(
    embed_dim: int, width: int, text_width: int, text_layers: int, vocab_size: int, positions: int, **vision
) -> Weights:
    """Returns random float64 weights; a ViT takes `patch_size`, `grid` and `layers`, a ResNet `depths` and `grid`."""
    weights: Weights = {
        "token_embedding.weight": torch.randn(vocab_size, text_width) * 0.3,
        "positional_embedding": torch.randn(positions, text_width) * 0.3,
        "text_projection": torch.randn(text_width, embed_dim) * text_width**-0.5,
        "logit_scale": torch.tensor(3.0),
        **_norm("ln_final", text_width),
        **_transformer("transformer", text_width, text_layers),
    }
    weights |= _vit(embed_dim, width, **vision) if "patch_size" in vision else _resnet(embed_dim, width, **vision)
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def _vit(embed_dim: int, width: int, patch_size: int, grid: int, layers: int) -> Weights:
    return {
        "visual.conv1.weight": torch.randn(width, 3, patch_size, patch_size) * 0.05,
        "visual.class_embedding": torch.randn(width),
        "visual.positional_embedding": torch.randn(grid**2 + 1, width),
        "visual.proj": torch.randn(width, embed_dim) * width**-0.5,
        **_norm("visual.ln_pre", width),
        **_norm("visual.ln_post", width),
        **_transformer("visual.transformer", width, layers),
    }


def _transformer(name: str, width: int, layers: int) -> Weights:
    weights: Weights = {}
    for i in range(layers):
        block = f"{name}.resblocks.{i}"
        weights |= _norm(f"{block}.ln_1", width) | _norm(f"{block}.ln_2", width)
        weights[f"{block}.attn.in_proj_weight"] = torch.randn(3 * width, width) * width**-0.5
        weights[f"{block}.attn.in_proj_bias"] = torch.randn(3 * width) * 0.1
        weights |= _linear(f"{block}.attn.out_proj", width, width)
        weights |= _linear(f"{block}.mlp.c_fc", width, 4 * width) | _linear(f"{block}.mlp.c_proj", 4 * width, width)
    return weights


def _resnet(embed_dim: int, width: int, depths: tuple[int, ...], grid: int) -> Weights:
    weights: Weights = {}
    channels = 3
    for i, out in enumerate((width // 2, width // 2, width), start=1):
        weights |= _conv(f"visual.conv{i}", channels, out, 3) | _batch_norm(f"visual.bn{i}", out)
        channels = out
    for stage, depth in enumerate(depths, start=1):
        planes = width * 2 ** (stage - 1)
        for block in range(depth):
            name = f"visual.layer{stage}.{block}"
            for i, (fan_in, out, size) in enumerate(
                ((channels, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)), start=1
            ):
                weights |= _conv(f"{name}.conv{i}", fan_in, out, size) | _batch_norm(f"{name}.bn{i}", out)
            if block == 0:
                weights |= _conv(f"{name}.downsample.0", channels, 4 * planes, 1) | _batch_norm(
                    f"{name}.downsample.1", 4 * planes
                )
            channels = 4 * planes
    weights["visual.attnpool.positional_embedding"] = torch.randn(grid**2 + 1, channels)
    for name in "qkv":
        weights |= _linear(f"visual.attnpool.{name}_proj", channels, channels)
    return weights | _linear("visual.attnpool.c_proj", channels, embed_dim)


def _linear(name: str, fan_in: int, out: int) -> Weights:
    return {f"{name}.weight": torch.randn(out, fan_in) * fan_in**-0.5, f"{name}.bias": torch.randn(out) * 0.1}


def _conv(name: str, fan_in: int, out: int, size: int) -> Weights:
    return {f"{name}.weight": torch.randn(out, fan_in, size, size) * (fan_in * size**2) ** -0.5}


def _norm(name: str, width: int) -> Weights:
    return {f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": torch.randn(width) * 0.1}


def _batch_norm(name: str, width: int) -> Weights:
    statistics = {f"{name}.running_mean": torch.randn(width) * 0.1, f"{name}.running_var": torch.rand(width) + 0.5}
    return _norm(name, width) | statistics | {f"{name}.num_batches_tracked": torch.tensor(7)}
