"""From the worst mistakes of a pass to pictures with captions, maps and thumbnails."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from salmon.diagnosis import (
    NO_CLASS,
    Diagnosis,
    WorstSample,
    WorstSamples,
    find_images,
    image_position,
)
from salmon.errors import SalmonError
from salmon.forward import eval_mode
from salmon.monitor.bases import logger
from salmon.monitor.settings import Settings
from salmon.repairs import to_device
from salmon.saliency import input_saliency, map_of_image, nan_where_unlabelled
from salmon.views import (
    METHOD_NAMES,
    Normalisation,
    Picture,
    Thumbnail,
    clipped,
    guess_normalisation,
    p_text,
    percent,
)

MAP_FILTERS = 10
"""Filters boosted for a map, as many as Levin et al. take."""

_NAMED = 3  # filters in a caption
_LETTERS = 22  # of a class in a caption: two of them go into a line


@dataclass(frozen=True, slots=True, eq=False)
class FlaggedImages:
    """What is to be seen of the mistakes of a pass, worst first."""

    pictures: list[Picture] = field(default_factory=list)
    thumbnails: list[Thumbnail] = field(default_factory=list)
    without_maps: bool = False
    """Whether the network could not have its maps computed."""


def flagged_images(
    model: nn.Module,
    diagnosis: Diagnosis,
    worst: WorstSamples,
    settings: Settings,
    *,
    classes: Sequence[str] | None = None,
    normalisation: Normalisation | None = None,
    maps: bool = True,
    forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> FlaggedImages:
    """Make pictures of the worst mistakes.

    Args:
        normalisation: Of the images; None guesses it.

    Returns:
        Pictures and thumbnails; none where inputs hold no images.
    """
    small = worst.thumbnails
    if not small:
        return FlaggedImages()
    normalisation = normalisation or guess_normalisation(*worst.extremes or ((), ()))
    rows = {number: row for row, number in enumerate(diagnosis.mistakes.sample.tolist())}
    pictures, with_maps = [], settings.views.maps and maps
    for place, one in enumerate(worst.pictures, 1):
        images, row = find_images(one.inputs), rows.get(one.sample)
        if images is None or row is None:  # a profile left out within memory_mb
            continue
        heat, method = None, ""
        if with_maps:
            try:
                heat, method = _map(model, one, diagnosis, row, settings, forward_context)
            except Exception as error:  # a network's own, of any kind
                if settings.strict and not isinstance(error, SalmonError | RuntimeError):
                    raise  # torch says with these two that something has no second derivative
                with_maps = False
                logger.warning(
                    "SaliencyMonitor shows flagged images without saliency maps (%s: %s).",
                    type(error).__name__, error,
                )  # fmt: skip
        pictures.append(
            Picture(
                sample=one.sample,
                id=diagnosis.mistakes.ids[row],
                pixels=normalisation.pixels(images[0]),
                heat=heat,
                caption=_caption(
                    place, diagnosis, row, classes, method if heat is not None else ""
                ),
            )
        )
    thumbnails = [
        Thumbnail(sample=number, pixels=normalisation.pixels(image))
        for number, image in list(small.items())[: settings.views.thumbnails]
    ]
    return FlaggedImages(pictures, thumbnails, settings.views.maps and not with_maps)


def _map(
    model: nn.Module,
    one: WorstSample,
    diagnosis: Diagnosis,
    row: int,
    settings: Settings,
    forward_context: Callable[[], AbstractContextManager[object]],
) -> tuple[Tensor | None, str]:
    """Where the top filters of a sample look, and who ranked them; no map if it is not finite."""
    method = "pot"
    filters = diagnosis.rankings[method].filters[row : row + 1, :MAP_FILTERS]
    if bool((filters < 0).all()):  # no filter is above its threshold
        method = "zscore"
        filters = diagnosis.rankings[method].filters[row : row + 1, :MAP_FILTERS]
    inputs, targets = to_device((one.inputs, one.targets), model)
    with eval_mode(model):
        gradients = input_saliency(
            model, inputs, targets, diagnosis.index, diagnosis.fit, filters,
            loss=nan_where_unlabelled(settings.loss), forward_context=forward_context,
        )  # fmt: skip
    position = image_position(one.inputs)
    gradient = None if position is None else pytree.tree_leaves(gradients)[position]
    if not isinstance(gradient, Tensor) or not bool(torch.isfinite(gradient).all()):
        return None, method
    return map_of_image(gradient[0].cpu()), method


def _caption(
    place: int, diagnosis: Diagnosis, row: int, classes: Sequence[str] | None, mapped_by: str
) -> list[str]:
    """What is known of a mistake, in a few lines; whose filters the map beside it shows, if any."""
    mistakes, ranking, index = diagnosis.mistakes, diagnosis.rankings["pot"], diagnosis.index
    names = []
    for number in (int(mistakes.target[row]), int(mistakes.predicted[row])):
        known = classes is not None and 0 <= number < len(classes)
        name = "no class" if number == NO_CLASS else f"class {number}"
        name = classes[number] if classes is not None and known else name
        names.append(clipped(" ".join(name.split()), _LETTERS))
    sure = [float(c[row]) for c in (mistakes.confidence_target, mistakes.confidence_predicted)]
    lines = [
        f"{place}. {names[0]} taken for {names[1]}",
        f"id {mistakes.ids[row]}; {names[0]} {percent(sure[0])}, {names[1]} {percent(sure[1])}; "
        f"loss {float(mistakes.loss[row]):.3g}",
    ]
    for number, p in zip(
        ranking.filters[row, :_NAMED].tolist(), ranking.p[row, :_NAMED].tolist(), strict=True
    ):
        if number >= 0:
            lines.append(f"{index.label(number)}, p {p_text(p)}")
    if len(lines) == 2:
        lines.append("no filter above its threshold")
    if mapped_by:
        name = METHOD_NAMES[mapped_by]
        lines.append(f"right image: pixels that move the top filters by {name}")
    return lines
