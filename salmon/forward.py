"""Running a user's network once more: how it is called, and that it leaves no trace.

What a forward draws, counts, collects or caches is as it was afterwards, on exceptions too: random
states, buffers, the attributes of modules with all that hangs on them, modes, frozen parameters.
Compiled networks run uncompiled.
"""

import inspect
import logging
import operator
import random
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from salmon.errors import UnsupportedError
from salmon.torch_internals import SingleBatchNorm

logger = logging.getLogger(__name__)

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_FRAMEWORKS = frozenset({"torch", "lightning", "pytorch_lightning", "lightning_fabric"})
"""Objects of their classes, such as a trainer or a data set, are no state of a forward."""
_NOT_STATE = (type, ModuleType, FunctionType, MethodType)
_DEEP = 8  # attributes of attributes
_MANY = 1000  # entries of a container that are looked into
_MOST_BYTES = 2**26  # of an array or a tensor that is no buffer: data sets are on modules, too

_told: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


class Call(NamedTuple):
    """Arguments of one call of a network, or of a module in it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    path: str = ""  # of the module


def call_network(model: nn.Module, inputs: Any, *, channels_last: bool = False) -> Any:
    """Call a network with one tensor, a tuple of arguments, or named arguments.

    Args:
        inputs: A tensor, tuple, mapping or :class:`Call`; a list is a tuple of arguments, unless
            forward takes fewer than it holds, as that of a video network does.
        channels_last: Whether images on the CPU come with their channels last in memory, which
            makes convolutions and their gradients faster, and is more than some networks bear.

    Returns:
        Its output. The network gets copies, since it may change them in place, and since inside
        ``Trainer.validate`` batches are inference tensors, which no graph may keep.
    """
    inputs = pytree.tree_map_only(Tensor, _channels_last if channels_last else Tensor.clone, inputs)
    tensors = (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    single = any(tensor.ndim > 0 and len(tensor) == 1 for tensor in tensors)
    try:
        with SingleBatchNorm() if single else nullcontext():
            return _called(model, inputs)
    except RuntimeError as error:
        if "Inference tensors" not in str(error):
            raise
        raise UnsupportedError(
            "forward uses a tensor that was made in inference mode and is kept outside of the "
            "network, which no gradient can pass; make it anew, keep it on a module, or use "
            "Trainer(inference_mode=False)."
        ) from error


def _channels_last(tensor: Tensor) -> Tensor:
    """A copy, of images on the CPU with the channels last in memory."""
    images = tensor.ndim == 4 and not tensor.is_cuda
    return tensor.clone(memory_format=torch.channels_last if images else torch.preserve_format)


def _called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Call):
        return model.get_submodule(inputs.path)(*inputs.args, **inputs.kwargs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple) or (isinstance(inputs, list) and _takes(model, len(inputs))):
        return model(*inputs)
    return model(inputs)


def _takes(model: nn.Module, count: int) -> bool:
    """Whether forward takes so many arguments; yes where that cannot be known."""
    try:
        inspect.signature(model.forward).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # of something that has no signature
        return True
    return True


@contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Put back on exit whatever running a network changes in it, and all random states.

    Restored are buffers, attributes of modules (tensors, containers, arrays, random generators and
    plain objects on them), and the random states of torch, NumPy and Python. Tensors that were made
    in inference mode are replaced by ordinary ones for the time being. What is changed and cannot
    be restored (parameters; other tensors of more than 64 MiB) is named in the log.
    """
    with keep_rng():
        kept = _Kept(model)
        try:
            yield
        finally:
            kept.put_back()


class _Kept:
    """The state of a network at one moment."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._containers: list[tuple[Any, Any]] = []  # each with its entries
        self._tensors: list[tuple[Tensor, Tensor]] = []  # each with its copy
        self._watched: list[tuple[Tensor, int]] = []  # each with its version
        self._others: list[Callable[[], object]] = []  # that put something back
        self._seen: dict[int, object] = {}  # by id; holds them, so that no id is used twice
        with torch.inference_mode(mode=False), torch.no_grad():
            self._modules(model)
            self._copy([(copy, tensor) for tensor, copy in self._tensors])

    def put_back(self) -> None:
        # In inference mode tensors of both kinds may be written to.
        with torch.inference_mode():
            for tensor, copy in self._tensors:
                if tensor.shape != copy.shape:
                    tensor.resize_(copy.shape)
            self._copy(self._tensors)
        for live, old in self._containers:
            if not _same_entries(live, old):
                live.clear()
                fill = live.update if isinstance(live, dict | set) else live.extend
                fill(old)
        for put_back in self._others:
            put_back()
        self._tell({id(tensor) for tensor, version in self._watched if tensor._version != version})

    @staticmethod
    def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Fill each first one with its second one, in few calls to the device."""
        alike: dict[object, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for pair in pairs:
            alike[pair[0].device, pair[0].dtype].append(pair)  # else there is a call for each
        for some in alike.values():
            targets, sources = map(list, zip(*some, strict=True))
            torch._foreach_copy_(targets, sources)

    def _tell(self, changed: set[int]) -> None:
        """Name what was changed for good, once per network."""
        if not changed:
            return
        names = [name for name, p in self._model.named_parameters() if id(p) in changed]
        names = names or ["a tensor of more than 64 MiB"]
        told = _told.setdefault(self._model, set())
        if fresh := [name for name in names if name not in told]:
            told.update(fresh)
            logger.warning(
                "forward changes %s in place; salmon ran it once more, which it cannot undo. Make "
                "the change in training_step, or in a hook.", ", ".join(fresh),
            )  # fmt: skip

    def _modules(self, module: nn.Module) -> None:
        for parameter in module.parameters():
            self._tensor(parameter, most=None)
        fresh = {id(each): each for each in module.modules() if id(each) not in self._seen}
        self._seen.update(fresh)
        for each in fresh.values():
            script = isinstance(each, torch.jit.ScriptModule)  # which has its state elsewhere
            for buffer in each.buffers() if script else each._buffers.values():
                if buffer is not None:
                    self._tensor(buffer, most=None)
            if _keeps_nothing(each):
                self._containers.append((vars(each), dict(vars(each))))
            elif not script:
                self._entries(vars(each), _DEEP)

    def _entries(self, live: Any, deep: int) -> None:
        """Keep the entries of a container, and what they hold."""
        old = dict(live) if isinstance(live, dict) else list(live)
        if not isinstance(live, tuple):
            self._containers.append((live, old))
        if len(old) > _MANY:
            return
        for key, value in old.items() if isinstance(old, dict) else enumerate(old):
            inference = isinstance(value, Tensor) and value.is_inference()
            if inference and not isinstance(live, set | tuple):
                live[key] = value.clone()
            self._value(value, deep - 1)

    def _value(self, value: Any, deep: int) -> None:
        if type(value) in _PLAIN or deep == 0 or id(value) in self._seen:
            return
        if isinstance(value, nn.Module):
            self._modules(value)
            return
        if isinstance(value, Tensor):
            self._tensor(value, most=_MOST_BYTES)
            return
        self._seen[id(value)] = value
        if isinstance(value, dict | list | deque | set | tuple):
            self._entries(value, deep)
        elif (put_back := _way_back(value)) is not None:
            self._others.append(put_back)
        elif _is_state(value):
            self._entries(vars(value), deep)

    def _tensor(self, tensor: Tensor, most: int | None) -> None:
        """Copy a tensor, or watch it."""
        if id(tensor) in self._seen:
            return
        self._seen[id(tensor)] = tensor
        watched = isinstance(tensor, nn.Parameter) or tensor.requires_grad
        light = most is None or tensor.nbytes <= most
        if not watched and light and tensor.layout is torch.strided and not _overlaps(tensor):
            self._tensors.append((tensor, torch.empty_like(tensor)))
        elif not tensor.is_inference():  # those have no version
            self._watched.append((tensor, tensor._version))


def _same_entries(live: Any, old: Any) -> bool:
    if not isinstance(live, dict):
        return len(live) == len(old) and all(map(operator.is_, live, old))
    return live.keys() == old.keys() and all(map(operator.is_, live.values(), old.values()))


def _keeps_nothing(module: nn.Module) -> bool:
    """Whether a module is one of torch's own, whose forward in eval mode touches no attribute."""
    own = type(module).__module__.startswith("torch.nn.modules.")
    state = vars(module)
    hooks = state.get("_forward_hooks") or state.get("_forward_pre_hooks")
    if not own or hooks or "forward" in state:
        return False
    return not any(b is not None and b.is_inference() for b in module._buffers.values())


def _is_state(value: Any) -> bool:
    """Whether a forward could keep something in an object of this kind."""
    if isinstance(value, _NOT_STATE) or not isinstance(getattr(value, "__dict__", None), dict):
        return False
    homes = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    return not homes & _FRAMEWORKS


def _overlaps(tensor: Tensor) -> bool:
    """Whether several places of an expanded tensor are one in memory."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in pairs)


def _way_back(value: Any) -> Callable[[], object] | None:
    """How to put an array or random generator back to what it is now; None of anything else."""
    if isinstance(value, np.ndarray) and value.flags.writeable and value.nbytes <= _MOST_BYTES:
        return partial(np.copyto, value, value.copy())
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    return None


@contextmanager
def keep_rng() -> Iterator[None]:
    """Restore the random states of torch (all devices in use), NumPy and Python on exit."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    numpy = np.random.get_state()  # noqa: NPY002
    python = random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(numpy)  # noqa: NPY002
        random.setstate(python)


@contextmanager
def gradients_on(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let frozen parameters ask for gradients, and freeze them again on exit."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_()
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad = False


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[bool]:
    """Put every module into eval mode, and each back into its own mode on exit."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield bool(training)
    finally:
        for module in training:
            module.training = True


def eagerly() -> AbstractContextManager[object]:
    """A context in which compiled networks run uncompiled.

    Compiled code would pass by the catcher unseen, and cannot be differentiated twice.
    """
    # Asking for the stance imports the compiler, which takes seconds; without it, no need.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
