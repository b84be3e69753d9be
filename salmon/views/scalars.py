"""The numbers of a pass under their names: ``salmon/<view>/<method>/<group>``."""

from salmon.views.history import History
from salmon.views.record import PassRecord


def pass_metrics(record: PassRecord) -> dict[str, float]:
    """Everything about a pass that is one number.

    Returns:
        Numbers of samples; ``findings``, filters beyond chance, where there were mistakes and right
        samples to compare; ``significant`` and ``striking``, shares of the ranked mistakes;
        ``share/<method>/<group>`` in ``[0, 1]`` for methods that ranked any filter, and
        ``share/difference/<group>``, POT minus z-score, where both did; ``fits/<status>``;
        ``doubtful``, the share of doubtful fits, where fits could be tested.
    """
    metrics = {
        "samples": float(record.samples),
        "dropped": float(record.dropped),
        "misclassified": float(record.misclassified),
    }
    if record.beyond is not None:
        metrics["findings"] = float(record.beyond)
    for name, count in {"significant": record.significant, "striking": record.striking}.items():
        if count is not None and record.kept:
            metrics[name] = count / record.kept
    history = History.start(record)
    shares = {
        method: history.group_shares(method)[0].tolist()
        for method, counts in record.counts.items()
        if sum(counts)
    }
    if {"pot", "zscore"} <= set(shares):
        pairs = zip(shares["pot"], shares["zscore"], strict=True)
        shares["difference"] = [pot - zscore for pot, zscore in pairs]
    for method, values in shares.items():
        for group, share in zip(history.groups, values, strict=True):
            metrics[f"share/{method}/{group}"] = share
    metrics |= {f"fits/{status}": float(count) for status, count in record.fits.items()}
    if record.doubtful is not None:
        metrics["doubtful"] = record.doubtful
    return metrics
