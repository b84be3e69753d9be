"""The trade-off of a repair as a picture: gain on new data against loss on reference data."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from salmon.repairs.search import Trial

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 400, 64, 48, 16, 150
# Okabe and Ito's colours, told apart by most colour-blind people.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


def tradeoff_svg(trials: Sequence[Trial], margin: float) -> str:
    """Draw for every ranking the largest gain found at each loss.

    Args:
        trials: Of a search.
        margin: Loss that is allowed, drawn as a line.

    Returns:
        A vector graphic.
    """
    shown = [t for t in trials if t.lost <= 4 * max(margin, 0.01)]
    low = min([0.0, *(t.lost for t in shown)])
    high = max([margin * 1.5, 0.005, *(t.lost for t in shown)])
    top = max([0.01, *(t.gain for t in shown)]) * 1.1

    def x(lost: float) -> float:
        return _LEFT + (lost - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(gain: float) -> float:
        return _HEIGHT - _BOTTOM - max(gain, 0.0) / top * (_HEIGHT - _BOTTOM - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'font-family="sans-serif" font-size="12">',
        "<title>Gain on new data against loss on reference data, by ranking</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" '
        'stroke="black"/>',
    ]
    for i in range(5):
        gain, lost = top * i / 4, low + (high - low) * i / 4
        parts += [
            f'<text x="{_LEFT - 6}" y="{y(gain) + 4:.1f}" text-anchor="end">'
            f"{100 * gain:.1f}</text>",
            f'<text x="{x(lost):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
            f"{100 * lost:.2f}</text>",
        ]
    parts += [
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">'
        "accuracy lost on reference data, points</text>",
        f'<text transform="translate(16 {_HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "accuracy won on new data, points</text>",
        f'<path d="M{x(margin):.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#888" '
        'stroke-dasharray="4 3"/>',
        f'<text x="{x(margin) + 4:.1f}" y="{_TOP + 10}" fill="#666">margin</text>',
    ]
    for number, ranking in enumerate(dict.fromkeys(trial.ranking for trial in trials)):
        colour = _COLOURS[number % len(_COLOURS)]
        front = _front([trial for trial in shown if trial.ranking == ranking])
        points = " ".join(f"{x(t.lost):.1f},{y(t.gain):.1f}" for t in front)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts += [
            f'<circle cx="{x(t.lost):.1f}" cy="{y(t.gain):.1f}" r="3" fill="{colour}"/>'
            for t in front
        ]
        level = _TOP + 14 + 18 * number
        parts += [
            f'<rect x="{_WIDTH - _RIGHT + 12}" y="{level - 9}" width="12" height="10" '
            f'fill="{colour}"/>',
            f'<text x="{_WIDTH - _RIGHT + 30}" y="{level}">{escape(ranking)}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def _front(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other one of them beats in both gain and loss, by rising loss."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.lost, -t.gain)):
        if not front or trial.gain > front[-1].gain:
            front.append(trial)
    return front
