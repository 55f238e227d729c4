"""Sizes of resized and cropped images, rounded as torchvision rounds them."""

from typing import Any

from transformers.image_utils import SizeDict


def validate_sizes(
    do_resize: bool, size: SizeDict, do_center_crop: bool, crop_size: SizeDict, **_other_options: Any
) -> None:
    """Raises a ValueError unless the sizes have the keys they need, positive numbers, and a crop that fits."""
    if do_resize and set(dict(size)) not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(f"size={dict(size)} must have the key shortest_edge, or the keys height and width")
    if do_center_crop and set(dict(crop_size)) != {"height", "width"}:
        raise ValueError(f"crop_size={dict(crop_size)} must have the keys height and width")
    used = [*dict(size).values()] * do_resize + [*dict(crop_size).values()] * do_center_crop
    if min(used, default=1) < 1:
        raise ValueError(f"size={dict(size)} and crop_size={dict(crop_size)} must be 1 or more pixels")
    if do_resize and do_center_crop:
        height, width = size.height or size.shortest_edge, size.width or size.shortest_edge
        exceeds = crop_size.height > height, crop_size.width > width
        if all(exceeds) or (any(exceeds) and not size.shortest_edge):  # else the other side may be long enough
            raise ValueError(
                f"crop_size={dict(crop_size)} is larger than size={dict(size)}: every image would get black borders. "
                "For another resolution set both, as in size=336, crop_size=336"
            )


def resized_size(size: tuple[int, int], target: SizeDict) -> tuple[int, int]:
    """Returns (width, height) after the resize; the longer side is rounded down, as in torchvision's `Resize`."""
    if target.shortest_edge is None:
        return target.width, target.height
    width, height = size
    longer = int(target.shortest_edge * max(size) / min(size))
    return (target.shortest_edge, longer) if width <= height else (longer, target.shortest_edge)


def centre_box(size: tuple[int, int], crop: SizeDict) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) of the crop, beyond the image where that is smaller."""
    left, top = _crop_start(size[0], crop.width), _crop_start(size[1], crop.height)
    return left, top, left + crop.width, top + crop.height


def _crop_start(length: int, crop: int) -> int:
    """The first pixel kept; halves go to the even side, as in torchvision's `CenterCrop`."""
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)
