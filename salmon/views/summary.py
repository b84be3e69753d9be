"""What a pass found, in sentences: what stands out, where, and what to do next."""

import math

import torch

from salmon.diagnosis import FEWEST
from salmon.gpd import LEAST_WITH_PRIOR, MIN_COUNT, FitStatus
from salmon.views.history import History
from salmon.views.record import DOUBTFUL_BELOW, FindingRow, PassRecord
from salmon.views.wording import percent

_FITTED = ("ok", "exponential", "boundary")
_POT = "POT (peaks over threshold)"
_NAMED = 5  # filters in a sentence
_OF_CLASSES = 2
_GUESSING = 0.1  # mean recall above that of one class for all, which rare classes alone may give


def overview(record: PassRecord, history: History, *, brief: bool = False) -> dict[str, list[str]]:
    """Say what a pass found, the most important things first.

    Args:
        brief: Whether only what is most important is said.

    Returns:
        Sentences under short headings; what speaks against the numbers comes before all else.
    """
    ranked = sum(record.counts["pot"]) > 0
    parts = {"Not to be trusted": record.doubts} if record.doubts else {}
    parts |= {
        "Mistakes": _mistakes(record, history),
        "Findings": standing_out(record) if ranked else [_unranked(record)],
    }
    few = record.kept < FEWEST
    if ranked and not few:
        parts["Where"] = [_over_represented(record, history)]
    parts |= {"Trust": _trust(record), "Next": [_next(record)]}
    if brief:
        return parts | {"Trust": parts["Trust"][:1]}
    if ranked:
        parts["Findings"] = [*parts["Findings"], *_rare(record)]
    if "Where" in parts:
        parts["Where"] = [*parts["Where"], _depth(record, history)]
    return parts


def _mistakes(record: PassRecord, history: History) -> list[str]:
    """How many, how many before, and the worst confusion."""
    share = record.misclassified / max(1, record.samples)
    what = "misclassified" if record.has_classes else "mistakes"
    number = f"{record.misclassified} of {record.samples} samples are {what} ({percent(share)})"
    lines = [number + _before(history)]
    if _by_chance(record):
        most = percent(max(record.class_samples) / max(1, record.samples))
        lines.append(
            f"To name the most frequent class every time would be right as often ({most})."
        )
    if not record.has_classes and record.rule:
        lines.append(f"A mistake is: {record.rule}.")
    if record.pairs and record.pairs[0].mistakes > 1:
        pair = record.pairs[0]
        true, taken = record.class_name(pair.target), record.class_name(pair.predicted)
        lines.append(f"Most often, {pair.mistakes} times, class {true} is taken for {taken}.")
    return lines


def _trust(record: PassRecord) -> list[str]:
    """A word, and its reasons."""
    doubtful, last = record.doubtful, record.calibration[-1] if record.calibration else None
    off = last is not None and not 1 / 3 <= last.ratio <= 3
    if record.doubts or not any(record.fits[status] for status in _FITTED):
        word = "None"
    elif off or (doubtful is not None and doubtful > 0.5):
        word = "Little"
    elif doubtful is None or doubtful > 0.1:
        word = "Fair"
    else:
        word = "Good"
    fitted = sum(record.fits[status] for status in _FITTED) / max(1, sum(record.fits.values()))
    origin = "; they were fitted to other data" if record.given_fit else ""
    lines = [
        f"{word}: {'no fit could be tested' if doubtful is None else _doubtful(doubtful)}{origin}.",
        f"{percent(fitted)} of the filters have a fitted tail. Findings and shares rest on the "
        "fits; mistakes are counted.",
    ]
    if record.measured < record.samples:
        lines.append(measured_text(record))
    if record.level_reason:
        lines.append(f"Threshold: {record.level_reason}")
    if record.calibration:
        lines.append(calibration_text(record))
    return lines


def _unranked(record: PassRecord) -> str:
    """Why no filter is ranked."""
    if not record.misclassified:
        return "There are no mistakes, so there is nothing to blame."
    text = "No filter could be ranked, so nothing is known of where mistakes are made"
    least = LEAST_WITH_PRIOR if record.estimator == "shrunk" else MIN_COUNT
    beyond = record.samples * (1 - record.level)  # NaN, or 0, of next to no samples
    if record.fits[FitStatus.TOO_FEW.label] and not record.given_fit and not beyond >= least:
        text += f": tails need {least} exceedances"
        if beyond > 0:
            needed = math.ceil(round(least / (1 - record.level), 6))
            text += f", so at the level {record.level:.3g} about {needed} samples"
        text += f", and there are {record.samples} samples"
    return f"{text}."


def _next(record: PassRecord) -> str:
    """What to do."""
    if record.doubts:
        return "Do what is said above; until then the other numbers mean little."
    if not record.misclassified:
        return "Nothing: there are no mistakes."
    if _by_chance(record):
        return (
            "Unless the training has only begun, see whether these are the trained weights (a "
            "checkpoint), and whether labels and inputs are what the network was trained with."
        )
    if record.findings:
        return (
            "See which samples blame them (flagged samples, on the page of salmon report), and "
            "look for a repair (salmon repair, or salmon.repair in Python)."
        )
    if record.beyond is None:
        return "Look at the mistakes themselves, and at more samples: on these nothing was tested."
    return (
        "Look at the mistakes themselves (flagged samples, on the page of salmon report): are "
        "labels wrong, or are such data rare in training? Nothing points at a few filters."
    )


def _by_chance(record: PassRecord) -> bool:
    """Whether the network is no better than to name one class every time, class by class, too."""
    right = record.samples - record.misclassified
    counts = zip(record.class_samples, record.class_mistakes, strict=True)
    recalls = [1 - wrong / samples for samples, wrong in counts if samples]
    if len(recalls) < 2 or right > max(record.class_samples):
        return False
    return sum(recalls) / len(recalls) <= 1 / len(recalls) + _GUESSING


def measured_text(record: PassRecord) -> str:
    """That a part stands for all, in a sentence."""
    return (
        f"{record.measured} of {record.samples} samples were measured: mistakes, and right samples "
        "by chance, which stand for the others."
    )


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
        if min(record.kept, record.right) < FEWEST:
            return [
                f"Nothing can stand out of {record.kept} mistakes and {record.right} right samples "
                f"to compare with; at least {FEWEST} of each are needed."
            ]
        return [f"Nothing can stand out: of {record.right} right samples to compare with, none has "
                "a filter in its tail."]  # fmt: skip
    lines, part = [], [row for row in record.findings if row.target is not None]
    if record.beyond:
        named = [row for row in record.findings if row.target is None][:_NAMED]
        lines.append(f"{_filters(record.beyond)} beyond chance, against {yardstick}:")
        lines += _listed([f"{row.label}: {_excess(row)}" for row in named], record.beyond)
    else:
        everyone = sum(layer.filters for layer in record.layers)
        over_all = " over all mistakes" if part else ""
        lines.append(
            f"No filter stands out{over_all}: against {yardstick}, mistakes blame none of "
            f"the {everyone} filters beyond chance."
        )
    if part:
        named = part[:_OF_CLASSES]
        lines.append("Among mistakes of one class or confusion:")
        texts = [f"{whose(record, row)}, {row.label}: {_excess(row)}" for row in named]
        lines += _listed(texts, len(part))
    return lines


def finding_text(record: PassRecord, label: str) -> str:
    """What was found of a filter, in a line."""
    row = next((each for each in record.findings if each.label == label), None)
    if row is None:  # there are too many findings to be kept
        return label
    of = "" if row.target is None else f", {whose(record, row)}"
    return f"{label}: {_excess(row)}{of}"


def _listed(texts: list[str], number: int) -> list[str]:
    """The first of so many things, one by one."""
    more = f" and {number - len(texts)} more" if number > len(texts) else ""
    return [*(f"{text};" for text in texts[:-1]), f"{texts[-1]}{more}."]


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
    return f"{row.mistakes} mistakes, {row.expected:.3g} expected"


def _filters(number: int) -> str:
    return "1 filter stands out" if number == 1 else f"{number} filters stand out"


def _rare(record: PassRecord) -> list[str]:
    """How many mistakes have a rare filter, whichever it is."""
    if record.significant is None:
        return []
    line = (
        f"Mistake by mistake, {record.significant} of {record.kept} have a filter that is "
        f"significantly rare among {record.tested}"
    )
    if record.striking is not None:
        line += (
            f", and {record.striking} ({percent(record.striking / max(1, record.kept))}) a rarer "
            "one than 95 % of the right samples have"
        )
    return [line + ("; which one differs from mistake to mistake." if record.beyond == 0 else ".")]


def doubt_text(record: PassRecord) -> str:
    """How many fits are doubtful, in a sentence."""
    if record.doubtful is None:
        return "No fit could be tested."
    return f"By the Anderson-Darling test {_doubtful(record.doubtful)}."


def _doubtful(share: float) -> str:
    """Of the fits."""
    return (
        f"{percent(share)} of the tested fits are doubtful (p < {DOUBTFUL_BELOW}), where "
        f"{100 * DOUBTFUL_BELOW:.0f} % would be if all tails were exact"
    )


def _before(history: History) -> str:
    """How it was in the pass before."""
    if len(history.passes) < 2:
        return "; no pass before."
    wrong, samples = int(history.misclassified[-2]), int(history.samples[-2])
    more = int(history.misclassified[-1]) - wrong
    gap = f"{abs(more)} {'more' if more > 0 else 'fewer'} than" if more else "as many as"
    return (
        f"; {gap} at step {int(history.steps[-2])}, when {wrong} of {samples} were "
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
        f"The top filters of the mistakes lie {where} all filters do: on average in layer "
        f"{1 + blamed * (layers - 1):.1f} of {layers}, all filters in layer "
        f"{1 + everyone * (layers - 1):.1f}."
    )


def _over_represented(record: PassRecord, history: History) -> str:
    """The group that is blamed furthest beyond its size, if any is."""
    shares, sizes = history.group_shares("pot")[-1].tolist(), history.filter_shares()
    beyond = [i for i, (low, _) in enumerate(record.group_intervals) if low > sizes[i]]
    if not beyond:
        return f"No group of layers has more of the top filters by {_POT} than its size says."
    most = max(beyond, key=lambda i: shares[i] / sizes[i])
    low, high = (100 * end for end in record.group_intervals[most])
    others = [history.groups[i] for i in beyond if i != most]
    above = f"; above it, too: {', '.join(others)}." if others else "."
    return (
        f"Of the groups, {history.groups[most]} is furthest above its size among the top "
        f"{record.top_k} filters by {_POT}: {percent(shares[most])} (95 % interval {low:.1f} to "
        f"{high:.1f}), where it has {percent(sizes[most])} of all filters{above}"
    )
