"""From the worst mistakes of a pass to pictures with captions, maps and thumbnails."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from salmon.diagnosis import (
    Diagnosis,
    ShownSample,
    WorstSamples,
    among,
    find_images,
    image_position,
)
from salmon.errors import SalmonError, pass_on_interrupts
from salmon.forward import call_network, eval_mode, no_trace
from salmon.monitor.bases import logger, tolerated
from salmon.monitor.context import PassContext
from salmon.monitor.facts import normalisation
from salmon.monitor.trainers import forward_context, loader_of, muted
from salmon.ranking import Strength
from salmon.repairs import to_device
from salmon.saliency import filter_responses, input_saliency, map_of_image
from salmon.tasks import AnyTask, Segmentation, class_name
from salmon.views import (
    METHOD_NAMES,
    Kind,
    Normalisation,
    Picture,
    Pixels,
    clipped,
    detail_name,
    guess_normalisation,
    p_text,
    percent,
)

MAP_FILTERS = 10
"""Filters boosted for a map, as many as Levin et al. take."""

MOST_RESPONSES = 4
"""Filters of which is shown what they respond to."""

_OF_EACH = 3  # mistakes, and right samples, that they are shown on
_NAMED = 3  # filters in a caption
_LETTERS = 22  # of a class in a caption: two of them go into a line


def pictures_of(
    context: PassContext,
    loader: int,
    diagnosis: Diagnosis,
    worst: WorstSamples,
    task: AnyTask,
    classes: Sequence[str] | None,
) -> list[Picture]:
    """Make pictures of the worst mistakes, of what findings respond to, and thumbnails of more.

    Returns:
        They, in this order; none where inputs hold no images.
    """
    small, views = worst.thumbnails, context.settings.views
    if not small:
        return []
    known = normalisation(loader_of(context.trainer, loader), views)
    known = known or guess_normalisation(*worst.extremes or ((), ()))
    rows = {number: row for row, number in enumerate(diagnosis.mistakes.sample.tolist())}
    # Profiles of the others were left out within memory_mb.
    shown, others = (
        {rows[one.sample]: one for one in some if one.sample in rows}
        for some in (worst.pictures, worst.wrong)
    )
    flagged = [
        _flagged(context, one, diagnosis, row, known.pixels(_image(one)), task, classes)
        for row, one in shown.items()
    ]
    responses: list[Picture] = []
    if views.maps:
        with tolerated("could not show what filters respond to", strict=context.settings.strict):
            right = [one for one in worst.right if one.sample not in rows]
            responses = list(_responses(context, diagnosis, others, right, known))
    return [
        *flagged,
        *responses,
        *(
            Picture(kind="thumbnail", sample=number, pixels=known.pixels(image))
            for number, image in list(small.items())[: views.thumbnails]
        ),
    ]


def _image(one: ShownSample) -> Tensor:
    """A sample's image."""
    images = find_images(one.inputs)
    assert images is not None  # samples without are not kept
    return images[0]


def _flagged(
    context: PassContext, one: ShownSample, diagnosis: Diagnosis, row: int, pixels: Pixels,
    task: AnyTask, classes: Sequence[str] | None,
) -> Picture:  # fmt: skip
    """A mistake with its map."""
    memory, heat, method, before = context.memory, None, "", sys.exception()
    if context.settings.views.maps and not memory.without_maps:
        try:
            heat, method = _map(context, one, diagnosis, row, task)
        except Exception as error:  # a network's own, of any kind
            pass_on_interrupts(error, before)
            if context.settings.strict and not isinstance(error, SalmonError | RuntimeError):
                raise  # torch says with these two that something has no second derivative
            memory.without_maps = True
            logger.warning(
                "SaliencyMonitor shows flagged images without saliency maps (%s: %s).",
                type(error).__name__, error,
            )  # fmt: skip
    names = _titles(diagnosis, row, classes)
    masks = _masks(context, one, task) if isinstance(task, Segmentation) else None
    first = int(diagnosis.rankings["pot"].filters[row, 0])
    return Picture(
        kind="flagged",
        sample=one.sample,
        pixels=pixels,
        masks=masks,
        heat=heat,
        classes=names,
        filter=diagnosis.index.label(first) if first >= 0 else "",
        caption=[
            *_caption(diagnosis, row, names),
            *_legend(masked=masks is not None, mapped_by=method if heat is not None else None),
        ],
    )


def _responses(
    context: PassContext, diagnosis: Diagnosis, shown: dict[int, ShownSample],
    right: Sequence[ShownSample], known: Normalisation,
) -> Iterator[Picture]:  # fmt: skip
    """What the filters that stand out respond to, in mistakes that blame them and right samples."""
    blamed = diagnosis.rankings["pot"].filters
    found = sorted(diagnosis.findings.found, key=lambda each: each.target is not None)
    shown = {row: one for row, one in shown.items() if bool(_image(one).isfinite().all())}
    right = [one for one in right if bool(_image(one).isfinite().all())]
    rows_of: dict[int, list[int]] = {}
    for each in found:
        of_class = among(diagnosis.mistakes, each.target, each.predicted)
        rows = [row for row in shown if bool(of_class[row] & (blamed[row] == each.filter).any())]
        rows_of.setdefault(each.filter, rows)
    wanted = [number for number, rows in rows_of.items() if rows][:MOST_RESPONSES]
    if not wanted:
        return
    samples = [*shown.values(), *right]
    with eval_mode(context.model), muted(context.model):
        maps = filter_responses(
            context.model,
            [to_device(one.inputs, context.model) for one in samples],
            diagnosis.index,
            wanted,
            forward_context=partial(forward_context, context.trainer),
        )
    places = {row: place for place, row in enumerate(shown)}
    for number, of_samples in maps.items():
        kinds: list[tuple[Kind, list[int]]] = [
            ("mistake", [places[row] for row in rows_of[number]]),
            ("right", list(range(len(shown), len(samples)))),
        ]
        largest = {place: float(of_samples[place].amax()) for _, those in kinds for place in those}
        for kind, those in kinds:
            for place in sorted(those, key=lambda place: -largest[place])[:_OF_EACH]:
                pixels = known.pixels(_image(samples[place]))
                # What is beyond half of the largest distance is coloured.
                strong = (2 * of_samples[place] / max(largest.values()) - 1).clamp_min(0)
                heat = nn.functional.interpolate(
                    strong[None, None], pixels.shape[:2], mode="bilinear"
                )
                yield Picture(
                    kind=kind, sample=samples[place].sample, pixels=pixels, heat=heat[0, 0],
                    filter=diagnosis.index.label(number),
                )  # fmt: skip


def confused_images(pictures: Sequence[Picture], diagnosis: Diagnosis) -> list[Pixels]:
    """Those of the confusion that is most frequent, worst first, each sample once."""
    if not diagnosis.confusions:
        return []
    pair, mistakes = diagnosis.confusions[0], diagnosis.mistakes
    same = among(mistakes, pair.target, pair.predicted)
    wanted, found = set(mistakes.sample[same].tolist()), dict[int, Pixels]()
    for one in pictures:
        if one.sample in wanted and one.kind in ("flagged", "thumbnail"):  # worst first
            found.setdefault(one.sample, one.pixels)  # its thumbnail comes later
    return list(found.values())


def _map(
    context: PassContext, one: ShownSample, diagnosis: Diagnosis, row: int, task: AnyTask
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
            loss=partial(task.labelled_losses, loss=context.settings.loss),
            forward_context=partial(forward_context, context.trainer),
        )  # fmt: skip
    position = image_position(one.inputs)
    gradient = None if position is None else pytree.tree_leaves(gradients)[position]
    if not isinstance(gradient, Tensor) or not bool(torch.isfinite(gradient).all()):
        return None, method
    return map_of_image(gradient[0].cpu()), method


def _masks(
    context: PassContext, one: ShownSample, task: Segmentation
) -> tuple[Tensor, Tensor] | None:
    """``[H, W]`` true and predicted classes of a sample's pixels; None of other than flat maps."""
    model = context.model
    inputs, targets = to_device((one.inputs, one.targets), model)
    with (
        no_trace(model), eval_mode(model), muted(model), torch.no_grad(),
        forward_context(context.trainer),
    ):  # fmt: skip
        output = call_network(model, inputs)
    true, predicted = task.masks(output, targets, context.settings.loss)
    return (true[0].cpu(), predicted[0].cpu()) if true.ndim == 3 else None


def _titles(diagnosis: Diagnosis, row: int, classes: Sequence[str] | None) -> tuple[str, str]:
    """Names of the true class and the predicted one; without classes, what the task says of it."""
    if not diagnosis.has_classes:
        said = diagnosis.mistakes.details.items()
        return ", ".join(f"{detail_name(name)} {float(each[row]):.3g}" for name, each in said), ""
    names = []
    for number in (int(diagnosis.mistakes.target[row]), int(diagnosis.mistakes.predicted[row])):
        name = class_name(number, classes)
        name = f"class {name}" if name == str(number) else name
        names.append(clipped(" ".join(name.split()), _LETTERS))
    return names[0], names[1]


def _legend(*, masked: bool, mapped_by: str | None) -> Iterator[str]:
    """What the images beside a mistake are."""
    if masked:
        yield "second image: the true mask; third: the predicted one"
    if mapped_by is not None:
        yield f"last image: pixels that move the top filters by {METHOD_NAMES[mapped_by]}"


def _caption(diagnosis: Diagnosis, row: int, names: tuple[str, str]) -> list[str]:
    """What is known of a mistake, in a few lines."""
    mistakes, ranking, index = diagnosis.mistakes, diagnosis.rankings["pot"], diagnosis.index
    said = ""
    if diagnosis.has_classes:
        sure = [percent(float(column[row])) for column in mistakes.details.values()]
        said = " " + ", ".join(f"{name} {share}" for name, share in zip(names, sure, strict=True))
        said += ";"
    lines = [f"id {mistakes.ids[row]};{said} loss {float(mistakes.loss[row]):.3g}"]
    for number, p, e, strength in zip(
        *(x[row, :_NAMED].tolist() for x in (
            ranking.filters, ranking.p, ranking.e, ranking.strength
        )), strict=True,
    ):  # fmt: skip
        if number >= 0:
            lines.append(
                f"{index.label(number)}, p {p_text(p)}, E {p_text(e)}: {Strength(strength).label}"
            )
    if len(lines) == 1:
        lines.append("no filter above its threshold")
    return lines
