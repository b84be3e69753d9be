"""From the worst mistakes of a pass to pictures with captions, maps and thumbnails."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from salmon.diagnosis import (
    NO_CLASS,
    Diagnosis,
    WorstSample,
    WorstSamples,
    confusions,
    find_images,
    image_position,
)
from salmon.errors import SalmonError
from salmon.forward import eval_mode
from salmon.monitor.bases import logger
from salmon.monitor.context import PassContext
from salmon.monitor.facts import normalisation
from salmon.monitor.trainers import forward_context, loader_of, muted
from salmon.ranking import Strength
from salmon.repairs import to_device
from salmon.saliency import input_saliency, map_of_image, nan_where_unlabelled
from salmon.views import (
    METHOD_NAMES,
    Picture,
    Pixels,
    clipped,
    guess_normalisation,
    p_text,
    percent,
)

MAP_FILTERS = 10
"""Filters boosted for a map, as many as Levin et al. take."""

_NAMED = 3  # filters in a caption
_LETTERS = 22  # of a class in a caption: two of them go into a line


def flagged_images(
    context: PassContext,
    loader: int,
    diagnosis: Diagnosis,
    worst: WorstSamples,
    classes: Sequence[str] | None,
) -> list[Picture]:
    """Make pictures of the worst mistakes, and thumbnails of more.

    Returns:
        Pictures with captions, then thumbnails without; none where inputs hold no images.
    """
    small, views, memory = worst.thumbnails, context.settings.views, context.memory
    if not small:
        return []
    known = normalisation(loader_of(context.trainer, loader), views)
    known = known or guess_normalisation(*worst.extremes or ((), ()))
    rows = {number: row for row, number in enumerate(diagnosis.mistakes.sample.tolist())}
    pictures = []
    for place, one in enumerate(worst.pictures, 1):
        images, row = find_images(one.inputs), rows.get(one.sample)
        if images is None or row is None:  # a profile left out within memory_mb
            continue
        heat, method = None, ""
        if views.maps and not memory.without_maps:
            try:
                heat, method = _map(context, one, diagnosis, row)
            except Exception as error:  # a network's own, of any kind
                if context.settings.strict and not isinstance(error, SalmonError | RuntimeError):
                    raise  # torch says with these two that something has no second derivative
                memory.without_maps = True
                logger.warning(
                    "SaliencyMonitor shows flagged images without saliency maps (%s: %s).",
                    type(error).__name__, error,
                )  # fmt: skip
        caption = _caption(place, diagnosis, row, classes, method if heat is not None else "")
        pixels = known.pixels(images[0])
        pictures.append(Picture(sample=one.sample, pixels=pixels, heat=heat, caption=caption))
    return pictures + [
        Picture(sample=number, pixels=known.pixels(image))
        for number, image in list(small.items())[: views.thumbnails]
    ]


def confused_images(pictures: Sequence[Picture], diagnosis: Diagnosis) -> list[Pixels]:
    """Those of the confusion that is most frequent, worst first, each sample once."""
    worst, mistakes = confusions(diagnosis.mistakes, 1), diagnosis.mistakes
    if not worst:
        return []
    same = mistakes.target.eq(worst[0].target) & mistakes.predicted.eq(worst[0].predicted)
    wanted, found = set(mistakes.sample[same].tolist()), dict[int, Pixels]()
    for one in pictures:
        if one.sample in wanted:
            found.setdefault(one.sample, one.pixels)  # its thumbnail comes later
    return list(found.values())


def _map(
    context: PassContext, one: WorstSample, diagnosis: Diagnosis, row: int
) -> tuple[Tensor | None, str]:
    """Where the top filters of a sample look, and who ranked them; no map if it is not finite."""
    method = "pot"
    filters = diagnosis.rankings[method].filters[row : row + 1, :MAP_FILTERS]
    if bool((filters < 0).all()):  # no filter is above its threshold
        method = "zscore"
        filters = diagnosis.rankings[method].filters[row : row + 1, :MAP_FILTERS]
    model = context.model
    inputs, targets = to_device((one.inputs, one.targets), model)
    with eval_mode(model), muted(model):
        gradients = input_saliency(
            model, inputs, targets, diagnosis.index, diagnosis.fit, filters,
            loss=nan_where_unlabelled(context.settings.loss),
            forward_context=partial(forward_context, context.trainer),
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
    for number, p, e, strength in zip(
        *(x[row, :_NAMED].tolist() for x in (
            ranking.filters, ranking.p, ranking.e, ranking.strength
        )), strict=True,
    ):  # fmt: skip
        if number >= 0:
            lines.append(
                f"{index.label(number)}, p {p_text(p)}, E {p_text(e)}: {Strength(strength).label}"
            )
    if len(lines) == 2:
        lines.append("no filter above its threshold")
    if mapped_by:
        name = METHOD_NAMES[mapped_by]
        lines.append(f"right image: pixels that move the top filters by {name}")
    return lines
