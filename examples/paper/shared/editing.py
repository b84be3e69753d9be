"""Curves of the mistakes: edits in pieces of a few images, by threads, kept as parts."""

from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import deepcopy
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.paper.shared.images import Images, take
from examples.paper.shared.measuring import Mistakes, Say
from examples.paper.shared.options import Options
from examples.paper.shared.parts import Parts
from salmon import FilterIndex
from salmon.repairs import many_edit_curves

METRICS = ("predicted", "target", "corrected")
PIECE = 16  # images per part

Values = NDArray[np.float64]
Curves = dict[tuple[str, str, str], Values]
"""``[M, S]`` of every image and count from 0, by ranking, kind of edit and metric."""


def follow(
    parts: Parts, model: nn.Module, index: FilterIndex, images: Images, mistakes: Mistakes,
    options: Options, say: Say,
) -> Curves:  # fmt: skip
    """Edit the filters of every mistake, and see what becomes of it.

    Args:
        parts: Where the pieces are kept.
        model: In eval mode, on its device.
        index: The filters.
        images: The target set.
        mistakes: Of it.
        options: Of the experiment.
        say: Gets progress.
    """
    starts = range(0, len(mistakes.rows), PIECE)
    names = {start: f"curves/{start:06d}" for start in starts}
    found = {start: parts.find(name) for start, name in names.items()}
    missing = [start for start in starts if found[start] is None]
    models: SimpleQueue[nn.Module] = SimpleQueue()
    workers = min(options.workers, max(1, len(missing)))
    for number in range(workers):
        models.put(model if number == 0 else deepcopy(model))

    def make(start: int) -> tuple[int, dict[str, Tensor]]:
        torch.set_num_threads(threads)
        own = models.get()
        try:
            places = torch.arange(start, min(start + PIECE, len(mistakes.rows)))
            rankings = {name: r.take(places) for name, r in mistakes.rankings.items()}
            curves = many_edit_curves(
                own, take(images, mistakes.rows[places]), rankings, index, options.steps,
                counts=options.counts, batch_size=options.batch_size,
            )  # fmt: skip
        finally:
            models.put(own)
        piece = {}
        for (ranking, step), curve in curves.items():
            each = (curve.each_predicted, curve.each_target, curve.each_corrected)
            for metric, values in zip(METRICS, each, strict=True):
                piece[f"{ranking}|{step.kind}|{metric}"] = values.float()
        parts.store(names[start], piece)
        return start, piece

    before = torch.get_num_threads()
    threads = max(1, before // workers)
    say("editing", len(starts) - len(missing), len(starts))
    try:
        with ThreadPoolExecutor(workers) as pool:
            waiting = [pool.submit(make, start) for start in missing]
            try:
                for count, done in enumerate(as_completed(waiting), 1):
                    start, piece = done.result()
                    found[start] = piece
                    say("editing", len(starts) - len(missing) + count, len(starts))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(before)
    pieces = [piece for piece in found.values() if piece is not None]
    # In the order of the options: files do not keep one.
    return {
        (name, step.kind, metric): torch.cat(
            [piece[f"{name}|{step.kind}|{metric}"] for piece in pieces]
        )
        .double()
        .numpy()
        for name in mistakes.rankings
        for step in options.steps
        for metric in METRICS
    }
