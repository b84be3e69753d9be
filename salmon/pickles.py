"""A look at a pickle before it is read: calls that take any memory, and values that take any time.

``torch.load(weights_only=True)`` calls only functions that torch allows, but some of these make
arrays of any length or decode for hours. And a tuple of a tuple twice, of a tuple twice, and so on,
takes a few bytes in a pickle and years to be hashed as a key, without a chance to interrupt it.
"""

import pickle
import pickletools
import re
from dataclasses import dataclass
from typing import IO, Any

MOST_PARTS = 10_000_000
"""In a value, those that stand in several places counted in each; hashing them takes a second."""

_HUNGRY = re.compile(
    r"(__builtin__|builtins) bytearray|torch\._utils _rebuild_device_tensor_from_\w+"
)
_ENCODE = "_codecs encode"  # by which bytes are pickled, always as latin1
_TO_MEMO = {"PUT", "BINPUT", "LONG_BINPUT"}
_FROM_MEMO = {"GET", "BINGET", "LONG_BINGET"}


@dataclass(frozen=True, slots=True)
class _Value:
    """What is known of a value on the stack."""

    parts: int = 1
    text: str = ""  # a string, or the name of a function; of a tuple, that of its last item


_MARK = _Value(0)


def check_pickle(content: bytes | IO[bytes]) -> None:
    """Refuse what torch would take but that takes any amount of memory or time.

    Args:
        content: The pickle, or a file that stands at its start, and then at its end. Nothing of it
            is executed.

    Raises:
        UnpicklingError: If it holds such things, or is none.
    """
    stack: list[_Value] = []
    memo: dict[Any, _Value] = {}
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL" and _HUNGRY.fullmatch(str(argument)):
                raise pickle.UnpicklingError(f"it calls {argument}")
            if opcode.name in _FROM_MEMO:
                stack.append(memo[argument])
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif opcode.name in _TO_MEMO:
                memo[argument] = stack[-1]
            else:
                _step(stack, opcode, argument if isinstance(argument, str) else "")
            if stack and stack[-1].parts > MOST_PARTS:
                raise pickle.UnpicklingError(f"a value has more than {MOST_PARTS} parts")
    except (ValueError, LookupError, AttributeError) as error:  # of pickletools, or a short stack
        raise pickle.UnpicklingError(f"it is no pickle ({error})") from error


def _step(stack: list[_Value], opcode: pickletools.OpcodeInfo, text: str) -> None:
    """What an opcode does to the stack; what it makes has the parts of all that it takes."""
    named = [each.name for each in opcode.stack_before]
    taken: list[_Value] = []  # last ones first
    if "mark" in named:
        while (top := stack.pop()) is not _MARK:
            taken.append(top)
        named = named[: named.index("mark")]
    taken += [stack.pop() for _ in named]
    if opcode.name == "REDUCE" and taken[1].text == _ENCODE and taken[0].text != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {taken[0].text[:20]!r}")
    if opcode.name.startswith("TUPLE") and taken:
        text = taken[0].text
    made = _Value(1 + sum(value.parts for value in taken), text)
    stack.extend(_MARK if each.name == "mark" else made for each in opcode.stack_after)
