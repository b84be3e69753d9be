"""What a pass found, in sentences: early or late, since when, and can the fits be trusted."""

import torch

from salmon.views.history import History
from salmon.views.record import DOUBTFUL_BELOW, PassRecord
from salmon.views.wording import percent

_FITTED = ("ok", "exponential", "boundary")


def findings(record: PassRecord, history: History) -> list[str]:
    """Say the most important things first."""
    share = record.misclassified / max(1, record.samples)
    lines = [f"Not to be trusted: {doubt}" for doubt in record.doubts]
    lines += [
        f"{record.misclassified} of {record.samples} samples are misclassified ({percent(share)})"
        + _before(history)
    ]
    if sum(record.counts["pot"]) == 0:
        lines.append("No filter could be ranked, so nothing is known of where mistakes are made.")
    else:
        lines += [
            *_beyond_chance(record), _depth(record, history), _over_represented(history),
            *_change(history),
        ]  # fmt: skip
    fitted = sum(record.fits[status] for status in _FITTED)
    total = max(1, sum(record.fits.values()))
    origin = " (tails of other data)" if record.given_fit else ""
    lines.append(f"{percent(fitted / total)} of the filters have a fitted tail{origin}. "
                 f"{doubt_text(record)}")  # fmt: skip
    if record.level_reason:
        lines.append(f"Threshold: {record.level_reason}")
    if record.calibration:
        lines.append(calibration_text(record))
    return lines


def calibration_text(record: PassRecord) -> str:
    """How well the probabilities hold, in a sentence."""
    last = record.calibration[-1]
    return (
        f"Of held-out samples, {last.ratio:.2g} times as many as predicted lie beyond p = "
        f"{last.p:.2g} (between {last.low:.2g} and {last.high:.2g}); 1 is right, and a normal "
        f"distribution, as the z-score assumes it, has {last.rivals['normal']:.2g}."
    )


def _beyond_chance(record: PassRecord) -> list[str]:
    """How many mistakes stand out."""
    lines = []
    if record.significant is not None:
        lines.append(
            f"{record.significant} of {record.kept} ranked mistakes have a filter that is "
            f"significantly rare among {record.tested}"
        )
    if lines and record.striking is not None:
        lines[0] += (
            f"; {record.striking} ({percent(record.striking / max(1, record.kept))}) have a rarer "
            "one than 95 % of the right samples have"
        )
    return [f"{line}." for line in lines]


def doubt_text(record: PassRecord) -> str:
    """How many fits are doubtful, in a sentence."""
    if record.doubtful is None:
        return "No fit could be tested."
    return (
        f"Doubtful (Anderson-Darling p < {DOUBTFUL_BELOW}): {percent(record.doubtful)} of the "
        f"tested fits; {100 * DOUBTFUL_BELOW:.0f} % would be so if all tails were exact."
    )


def _before(history: History) -> str:
    """How it was at first."""
    if len(history.passes) < 2:
        return "."
    wrong, samples = int(history.misclassified[0]), int(history.samples[0])
    return (
        f"; in validation {int(history.passes[0])} they were {wrong} of {samples} "
        f"({percent(wrong / max(1, samples))})."
    )


def _depth(record: PassRecord, history: History) -> str:
    """Early or late, against where the filters are."""
    layers = len(record.layers)
    place = torch.arange(layers).double() / max(1, layers - 1)
    filters = torch.tensor([layer.filters for layer in record.layers]).double()
    blamed = float((history.layer_shares("pot")[-1] * place).sum())
    everyone = float((filters / filters.sum() * place).sum())
    gap = blamed - everyone
    where = "about as deep as" if abs(gap) < 0.02 else "earlier than" if gap < 0 else "later than"
    return (
        f"By POT the blamed filters lie {where} the network's filters do: on average at "
        f"{percent(blamed)} of its depth, the filters at {percent(everyone)}."
    )


def _over_represented(history: History) -> str:
    """The group that is blamed most, and the one that is blamed beyond its size."""
    shares, sizes = history.group_shares("pot")[-1].tolist(), history.filter_shares()
    most = max(range(len(shares)), key=lambda i: shares[i])
    beyond = max(range(len(shares)), key=lambda i: shares[i] / sizes[i])
    text = (
        f"{history.groups[most]} is blamed most: {percent(shares[most])} of the top filters, "
        f"{percent(sizes[most])} of all filters"
    )
    if beyond == most:
        return f"{text}; no group is blamed further beyond its size."
    return (
        f"{text}; {history.groups[beyond]} is blamed furthest beyond its size: "
        f"{percent(shares[beyond])} of the top filters, {percent(sizes[beyond])} of all."
    )


def _change(history: History) -> list[str]:
    """The largest change from one pass to the next."""
    shares = history.group_shares("pot")
    steps = torch.nan_to_num(shares[1:] - shares[:-1]).abs()
    if steps.numel() == 0 or float(steps.max()) == 0:
        return []
    row, group = divmod(int(steps.argmax()), steps.shape[1])
    before, after = (percent(float(shares[r, group])) for r in (row, row + 1))
    return [
        f"The largest change between two validations: {history.groups[group]} from {before} to "
        f"{after} of the top filters, at validation {int(history.passes[row + 1])}."
    ]
