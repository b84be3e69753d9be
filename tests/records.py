"""Records of passes for the tests of the views: made by hand, or from a real diagnosis."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from salmon import FilterIndex, Tails, filter_saliency, fit_tails, rank_filters
from salmon.diagnosis import Diagnosis, Mistakes, confusions, find
from salmon.monitor.output import write_diagnosis
from salmon.tails import example_excesses, example_filters
from salmon.views import PassRecord, Picture, record_pass
from salmon.views.record import FindingRow, LayerRow
from tests.networks import PlainNet, batch

LAYERS = [
    LayerRow(layer="net.a.0", group="early", filters=4),
    LayerRow(layer="net.a.1", group="early", filters=8),
    LayerRow(layer="net.b.0", group="late", filters=12),
]


def hand_record(number: int = 0, **changes: Any) -> PassRecord:
    """A pass of three layers, with shares 0.1, 0.3, 0.6 by POT and 0, 0.1, 0.9 by z-score."""
    record = PassRecord(
        run="a", time=1.8e9 + number, stage="validation", loader=0, number=number, step=10 * number,
        samples=200, measured=200, dropped=0, misclassified=20, kept=20, top_k=5, level=0.9,
        given_fit=False, seconds=1.5, share=0.5,
        classes=None, class_samples=[120, 80], class_mistakes=[15, 5], layers=LAYERS,
        counts={"pot": [10, 30, 60], "zscore": [0, 10, 90]},
        fits={"ok": 18, "exponential": 0, "boundary": 2, "too_few": 0, "degenerate": 4},
        doubtful=0.1,
        xi={"early": [0] * 9 + [4, 6] + [0] * 19, "late": [0] * 12 + [10] + [0] * 17},
        examples=[], filters=[], pairs=[], estimator="shrunk", tested=20, significant=5, striking=8,
        right=100, beyond=0, findings=[],
        group_intervals=[[0.3, 0.5], [0.5, 0.7]],
        layer_intervals=[[0.05, 0.15], [0.2, 0.4], [0.5, 0.7]],
    )  # fmt: skip
    return replace(record, **changes)


def real_diagnosis(samples: int = 120, level: float = 0.8) -> Diagnosis:
    """What a small untrained network does."""
    torch.manual_seed(5)
    model = PlainNet().eval()
    images, labels = batch(samples, seed=5)
    index = FilterIndex.from_model(model)
    profile = filter_saliency(model, images, labels, index)
    tails = Tails(len(index))
    tails.update(profile)
    fit = fit_tails(tails, level)
    logits = model(images).detach().double()
    wrong = (logits.argmax(1) != labels).nonzero().squeeze(1)
    rankings = {m: rank_filters(profile[wrong], fit, m, top_k=5) for m in ("pot", "zscore")}
    others = (logits.argmax(1) == labels).nonzero().squeeze(1)
    right = rank_filters(profile[others], fit, top_k=5)
    sure = logits.softmax(1)[wrong]
    mistakes = Mistakes(
        sample=wrong, ids=wrong.tolist(), batch=wrong // 8, target=labels[wrong],
        predicted=logits.argmax(1)[wrong],
        details={
            "confidence_target": sure.gather(1, labels[wrong, None]).squeeze(1),
            "confidence_predicted": sure.amax(1),
        },
        loss=torch.nn.functional.cross_entropy(logits, labels, reduction="none")[wrong],
    )  # fmt: skip
    return Diagnosis(
        index=index, fit=fit, dropped=0, unlabelled=0, measured=len(labels),
        task="classification", rule="",
        class_samples=labels.bincount(minlength=logits.shape[1]),
        confusions=confusions(mistakes.classes),
        class_mistakes=labels[wrong].bincount(minlength=logits.shape[1]),
        mistakes=mistakes, id_source="sampler", profile=profile[wrong],
        rankings=rankings, right=right,
        findings=find(mistakes, rankings["pot"], right, labels[others], len(index)),
        excesses=example_excesses(tails, example_filters(fit), fit),
    )  # fmt: skip


def real_record(**changes: Any) -> PassRecord:
    """The record of it."""
    return replace(
        record_pass(real_diagnosis(), run="20260101T000000-a", stage="validation"), **changes
    )


def run_files(folder: Path) -> None:
    """The files of a run of two passes, the last with flags, pictures and fits."""
    diagnosis = real_diagnosis()
    pixels = torch.arange(16 * 16 * 3).view(16, 16, 3).to(torch.uint8).numpy()
    sample = int(diagnosis.mistakes.sample[0])
    label = diagnosis.index.label(int(diagnosis.rankings["pot"].filters[0, 0]))
    found = FindingRow(label=label, mistakes=9, expected=2.5, p=0.01, target=None, predicted=None)
    heat = torch.rand(16, 16)
    images = [
        Picture(
            kind="flagged", sample=sample, pixels=pixels, heat=heat, classes=("a", "<b>"),
            filter=label, caption=["more"],
        ),
        Picture(kind="mistake", sample=sample, pixels=pixels, heat=heat, filter=label),
        Picture(kind="right", sample=sample + 1, pixels=pixels, heat=heat, filter=label),
        Picture(kind="thumbnail", sample=sample, pixels=pixels),
    ]  # fmt: skip
    for number in (0, 1):
        record = record_pass(
            diagnosis, run="20260101T000000-a", stage="validation", number=number,
            classes=["a", "<b>"], origin={"network": "PlainNet"},
        )  # fmt: skip
        record = replace(record, findings=[found], beyond=1)
        write_diagnosis(folder, "validation", diagnosis, record, images)
