"""Names and numbers as people read them."""

METHOD_NAMES = {"pot": "POT", "zscore": "z-score"}


_DETAILS = {
    "confidence_target": "confidence in true", "confidence_predicted": "in predicted",
    "mean_iou": "mean IoU",
}  # fmt: skip


def detail_name(name: str) -> str:
    """What a task says of a sample, by the name of its column."""
    return _DETAILS.get(name, name.replace("_", " "))


def percent(share: float) -> str:
    """Write a share in [0, 1], such as ``61.0 %``."""
    return f"{100 * share:.1f} %"


def clipped(text: str, most: int) -> str:
    """Shorten a text to so many letters, in its middle, where module paths differ least."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}\u2026{text[len(text) - (most - 1 - head) :]}"
