"""On the demo's network and images, the monitor finds what the full profile matrix gives."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from salmon import FilterIndex, SaliencyMonitor, Tails, filter_saliency, fit_tails, rank_filters
from salmon.cli.demo import DigitNet
from salmon.cli.digits import mnist_split
from tests.trainers import trainer


@pytest.mark.slow
def test_fits_and_rankings_of_the_demo_equal_those_computed_offline(tmp_path: Path) -> None:
    _, held_out = mnist_split(4000, 0)
    images, labels = (tensor[:300] for tensor in held_out.tensors)
    model = DigitNet().eval()
    monitor = SaliencyMonitor(strict=True)
    data = DataLoader(TensorDataset(images, labels), 64)
    trainer(tmp_path, monitor).validate(model, data, verbose=False)
    found = monitor.results["validation"]

    index = FilterIndex.from_model(model)
    batches = zip(images.split(64), labels.split(64), strict=True)
    matrix = torch.cat([filter_saliency(model, x, y, index) for x, y in batches])
    whole = Tails(len(index))
    whole.update(matrix)
    fit = fit_tails(whole, index=index)
    for name in ("threshold", "rate", "xi", "sigma", "status"):
        one, other = getattr(found.fit, name), getattr(fit, name)
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    wrong = (model(images).argmax(1) != labels).nonzero().squeeze(1)
    assert found.mistakes.sample.tolist() == wrong.tolist()
    pot, zscore = (rank_filters(matrix[wrong], fit, m, own=True) for m in ("pot", "zscore"))
    assert torch.equal(found.rankings["pot"].filters, pot.filters)
    # Moments are rounded by the order of the sums, which can swap filters that tie.
    torch.testing.assert_close(found.rankings["zscore"].score, zscore.score, rtol=1e-9, atol=0)
