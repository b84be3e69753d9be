"""What a pass found, in sentences: what stands out, where, and can the fits be trusted."""

import torch

from salmon.views.history import History
from salmon.views.record import DOUBTFUL_BELOW, FindingRow, PassRecord
from salmon.views.wording import percent

_FITTED = ("ok", "exponential", "boundary")
_NAMED = 5  # filters in a sentence


def sentences(record: PassRecord, history: History) -> list[str]:
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
            *standing_out(record), *_rare(record), _over_represented(record, history),
            _depth(record, history),
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


def standing_out(record: PassRecord) -> list[str]:
    """Filters that mistakes blame beyond chance, or that there are none."""
    yardstick = f"{record.right} right samples ranked alike"
    if record.beyond is None:
        return ["No right sample is there to compare with, so that nothing can stand out."]
    lines, part = [], [row for row in record.findings if row.target is not None]
    if record.beyond:
        named = [row for row in record.findings if row.target is None][:_NAMED]
        lines.append(
            f"{_filters(record.beyond)} beyond chance, against {yardstick}: "
            + ", ".join(f"{row.label} in {_excess(row)}" for row in named)
            + (", ..." if record.beyond > len(named) else "")
            + "."
        )
    else:
        everyone = sum(layer.filters for layer in record.layers)
        lines.append(
            f"No filter stands out: against {yardstick}, mistakes blame none of the {everyone} "
            "filters beyond chance."
        )
    if part:
        named = part[:_NAMED]
        lines.append(
            "Among mistakes of one class or confusion: "
            + "; ".join(f"{whose(record, row)}, {row.label} in {_excess(row)}" for row in named)
            + ("; ..." if len(part) > len(named) else "")
            + "."
        )
    return lines


def whose(record: PassRecord, row: FindingRow) -> str:
    """Which mistakes a finding is about."""
    if row.target is None:
        return "all"
    true = f"true class {record.class_name(row.target)}"
    if row.predicted is None:
        return true
    return f"{true} taken for {record.class_name(row.predicted)}"


def _excess(row: FindingRow) -> str:
    """How many mistakes, and how many are ordinary."""
    return f"{row.mistakes} mistakes ({row.expected:.3g} expected)"


def _filters(number: int) -> str:
    return "1 filter stands out" if number == 1 else f"{number} filters stand out"


def _rare(record: PassRecord) -> list[str]:
    """How many mistakes have a rare filter."""
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
    """How it was in the validation before."""
    if len(history.passes) < 2:
        return "."
    wrong, samples = int(history.misclassified[-2]), int(history.samples[-2])
    return (
        f"; in the pass before, number {int(history.passes[-2])}, they were {wrong} of {samples} "
        f"({percent(wrong / max(1, samples))})."
    )


def _depth(record: PassRecord, history: History) -> str:
    """Early or late, against where the filters are."""
    layers = len(record.layers)
    place = torch.arange(layers).double() / max(1, layers - 1)
    filters = torch.tensor([layer.filters for layer in record.layers]).double()
    blamed = history.mean_depth()
    everyone = float((filters / filters.sum() * place).sum())
    gap = blamed - everyone
    where = "about as deep as" if abs(gap) < 0.02 else "earlier than" if gap < 0 else "later than"
    return (
        f"By POT the blamed filters lie {where} the network's filters do: on average at "
        f"{percent(blamed)} of its depth, the filters at {percent(everyone)}."
    )


def _over_represented(record: PassRecord, history: History) -> str:
    """The group that is blamed furthest beyond its size, if any is."""
    shares, sizes = history.group_shares("pot")[-1].tolist(), history.filter_shares()
    beyond = [i for i, (low, _) in enumerate(record.group_intervals) if low > sizes[i]]
    if not beyond:
        return "No group of layers is blamed beyond its size."
    most = max(beyond, key=lambda i: shares[i] / sizes[i])
    low, high = (100 * end for end in record.group_intervals[most])
    others = [history.groups[i] for i in beyond if i != most]
    return (
        f"{history.groups[most]} is blamed furthest beyond its size: {percent(shares[most])} of "
        f"the top filters (95 % interval {low:.1f} to {high:.1f}), {percent(sizes[most])} of all"
        + (f"; also beyond it: {', '.join(others)}." if others else ".")
    )
