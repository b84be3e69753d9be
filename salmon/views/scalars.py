"""The numbers of a pass under their names: few to watch, and all others as details."""

from salmon.views.history import History
from salmon.views.record import PassRecord

DETAILS = "details/"
"""First part of the names of numbers that are not for every day."""


def pass_metrics(record: PassRecord) -> dict[str, float]:
    """Everything about a pass that is one number.

    Returns:
        ``mistakes``; ``findings``, filters beyond chance, where there were mistakes and right
        samples to compare; ``trust``, 0 where something speaks against the numbers, else 1; where
        POT ranked any filter, ``depth``, the mean place of the top filters from the first layer, 0,
        to the last, 1, and ``share/<group>``, the group's share of them as a multiple of its size.
        Under ``details/``: numbers of samples; ``significant`` and ``striking``, shares of the
        ranked mistakes; ``share/<method>/<group>`` in ``[0, 1]``, for methods that ranked any
        filter, and ``share/difference/<group>``, POT minus z-score, where both did;
        ``fits/<status>``; ``doubtful``, the share of doubtful fits, where fits could be tested.
    """
    history = History.start(record)
    metrics = {"mistakes": float(record.misclassified), "trust": float(not record.doubts)}
    if record.beyond is not None:
        metrics["findings"] = float(record.beyond)
    shares = {
        method: history.group_shares(method)[0].tolist()
        for method, counts in record.counts.items()
        if sum(counts)
    }
    if "pot" in shares:
        metrics["depth"] = history.mean_depth()
        for group, share, size in zip(
            history.groups, shares["pot"], history.filter_shares(), strict=True
        ):
            metrics[f"share/{group}"] = share / size
    return metrics | {DETAILS + name: value for name, value in _details(record, shares).items()}


def _details(record: PassRecord, shares: dict[str, list[float]]) -> dict[str, float]:
    """What is not for every day."""
    found = {name: float(getattr(record, name)) for name in ("samples", "measured", "dropped")}
    for name, count in {"significant": record.significant, "striking": record.striking}.items():
        if count is not None and record.kept:
            found[name] = count / record.kept
    columns = dict(shares)
    if {"pot", "zscore"} <= set(shares):
        pairs = zip(shares["pot"], shares["zscore"], strict=True)
        columns["difference"] = [pot - zscore for pot, zscore in pairs]
    for method, values in columns.items():
        for group, share in zip(History.start(record).groups, values, strict=True):
            found[f"share/{method}/{group}"] = share
    found |= {f"fits/{status}": float(count) for status, count in record.fits.items()}
    if record.doubtful is not None:
        found["doubtful"] = record.doubtful
    return found
