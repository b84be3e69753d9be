"""Draw the demo's result: share of each group among the top filters, z-score beside POT.

    salmon demo && python examples/plot_shares.py salmon-demo shares.png

Reads the scalars that the monitor logged to TensorBoard.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SIZES = {"conv1": 64, "conv2_x": 256, "conv3_x": 640, "conv4_x": 1280, "conv5_x": 2560}
COLOURS = {"z-score": "#b0b7c3", "POT": "#e4572e", "all filters": "#2e4057"}


def main(folder: str, picture: str) -> None:
    """Read the run of the optical digits and draw it."""
    events = EventAccumulator(str(Path(folder) / "optical-digits"), {"scalars": 0}).Reload()

    def shares(method: str) -> list[float]:
        return [
            100 * events.Scalars(f"salmon_details/share/{method}/{group}")[-1].value
            for group in SIZES
        ]

    columns = {
        "z-score": shares("zscore"),
        "POT": shares("pot"),
        "all filters": [100 * size / sum(SIZES.values()) for size in SIZES.values()],
    }
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for place, (name, values) in enumerate(columns.items()):
        at = [group + 0.27 * (place - 1) for group in range(len(SIZES))]
        bars = axes.bar(at, values, width=0.26, label=name, color=COLOURS[name])
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(range(len(SIZES)), list(SIZES))
    axes.set_ylabel("share of the top-25 filters, %")
    axes.set_ylim(0, 108)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Which layers are blamed for the misclassified digits?", loc="left")
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
