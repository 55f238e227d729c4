"""The curves of a training run, drawn from its log."""

from pathlib import Path
from typing import Any

# Title of each panel, and the keys of the log that it shows.
PANELS = {
    "loss (nats)": ("loss", "eval_loss"),
    "scale": ("scale",),
    "retrieval in the batch": ("text_retrieval_accuracy", "image_retrieval_accuracy"),
    "recall on the evaluation set": (
        "eval_text_retrieval_recall@1",
        "eval_image_retrieval_recall@1",
        "eval_mean_recall",
    ),
    "zero-shot accuracy": ("eval_zero_shot_top_1_accuracy", "eval_zero_shot_mean_per_class_accuracy"),
    "gradient norm": ("grad_norm",),
    "learning rate": ("learning_rate",),
}


def plot_curves(log_history: list[dict[str, Any]], path: Path) -> None:
    """Draws the panels of a log over the step, those that it has entries for.

    Args:
        log_history: `trainer.state.log_history`.
        path: the image to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    panels = {
        title: curves
        for title, keys in PANELS.items()
        if (curves := {key: points for key in keys if (points := _points(log_history, key))})
    }
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        for key, points in curves.items():
            axis.plot(*zip(*points, strict=True), label=key, marker="." if len(points) < 20 else None)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.savefig(path, dpi=100)


def _points(log_history: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in log_history if key in entry]
