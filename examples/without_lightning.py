"""The parts on a plain network: fits made on one data set, rankings on another.

python examples/without_lightning.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from salmon import Pass, PassSettings, group_shares


def main() -> None:
    """Train, fit the tails on clean digits, rank the filters for noisy ones."""
    torch.manual_seed(0)
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(data.target)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 2 * 2, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(5):
        for rows in torch.randperm(900).split(64):
            loss = nn.functional.cross_entropy(net(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()

    clean = Pass(net)
    for x, y in zip(images[900:].split(64), labels[900:].split(64), strict=True):
        clean.update(x, y)
    fit = clean.compute().fit
    print({status.label: count for status, count in fit.counts().items()})

    noisy = Pass(net, PassSettings(top_k=5), reference=fit)
    noisy.update(images[900:] + 0.5 * torch.randn_like(images[900:]), labels[900:])
    found = noisy.compute()
    ranking, index = found.rankings["pot"], found.index
    print(f"{found.misclassified} noisy digits are misclassified; shares of the blamed filters:")
    print({group: f"{share:.0%}" for group, share in group_shares(ranking, index).items()})
    print("first mistake:", [index.label(k) for k in ranking.filters[0].tolist() if k >= 0])


if __name__ == "__main__":
    main()
