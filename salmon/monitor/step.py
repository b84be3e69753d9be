"""What the user's own validation step does with a batch, so that the same is measured.

A step may normalise the images, take keys out of the batch, run an average of the weights, or leave
dropout on. The hooks copy what goes into each outermost call of a module, and keep what comes out.
They are there during a step only.
"""

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from salmon.diagnosis import Step
from salmon.errors import InputError
from salmon.forward import Call

_LIGHTNING = ("lightning.pytorch.", "pytorch_lightning.")


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A call by the step, that was not made by the forward of another module."""

    call: Call  # with copies of what went in
    given: list[Tensor]  # what went in
    raw: bool  # whether the batch was as the loader gave it
    output: Any  # not copied: what the step makes of it in place is what the user evaluates

    def has(self, samples: int) -> bool:
        """Whether something that went in has so many rows."""
        return any(tensor.ndim > 0 and len(tensor) == samples for tensor in self.given)

    def is_of(self, inputs: Any) -> bool:
        """Whether it went over a batch's inputs as the loader gave them."""
        wanted = _tensors(inputs)
        if not self.raw or len(wanted) != len(self.given):
            return False
        if all(one is other for one, other in zip(wanted, self.given, strict=True)):
            return True
        return _equal(wanted, _tensors(self.call))


class StepWatch:
    """Watches the steps of one pass."""

    def __init__(self, model: LightningModule) -> None:
        """Look at nothing yet."""
        self._model = model
        # By identity: the hash of a metric of torchmetrics changes with what it has seen.
        self._modules = list(_in_sight(model))
        self._paths = {id(module): path for module, path in self._modules}
        # Without a forward of its own, a part of the module is the network.
        home = str(getattr(model.forward, "__module__", ""))
        self._forwards = not home.startswith(_LIGHTNING)
        self._hooks: list[RemovableHandle] = []
        self._seen: list[Seen] = []
        self._running: list[tuple[Call, list[Tensor], bool] | None] = []  # as of Seen
        self._batch: Any = None
        self._before: dict[int, tuple[Tensor, Tensor | int]] = {}  # with its copy or version
        self._trouble: Exception | None = None

    def begin(self, batch: Any) -> None:
        """A step begins.

        Args:
            batch: What it will get; entries that it takes out are remembered.
        """
        self.close()
        self._batch = _shell(batch)
        with torch.inference_mode(mode=False), torch.no_grad():
            self._before = {
                id(leaf): (leaf, leaf.clone() if leaf.is_inference() else leaf._version)
                for leaf in _tensors(batch)
            }
        # Only during a step: somebody may copy or store the network at any other time.
        for module, _ in self._modules:
            enters = module.register_forward_pre_hook(self._enters, with_kwargs=True)
            leaves = module.register_forward_hook(self._leaves, always_call=True)
            self._hooks += [enters, leaves]

    def end(self, batch: Any) -> Any:
        """A step has ended."""
        self._unhook()
        if self._trouble is not None:
            raise self._trouble
        return batch if self._batch is None else self._batch

    def close(self) -> None:
        """Forget the last step."""
        self._unhook()
        self._seen, self._running, self._batch, self._before = [], [], None, {}
        self._trouble = None

    @property
    def overwritten(self) -> bool:
        """Whether a tensor of the batch is not as it was when the step began."""
        return any(
            not torch.equal(leaf, before) if isinstance(before, Tensor) else leaf._version != before
            for leaf, before in self._before.values()
        )

    def fed(self, inputs: Any, samples: int) -> tuple[Any, Step]:
        """Tell what the step gave to the network, and what came of it.

        Args:
            samples: N.

        Returns:
            What to measure: the inputs of the batch where the step was not seen to run the network
            on so many.
        """
        every = [seen for seen in self._seen if seen.has(samples)]
        calls = [seen for seen in every if not seen.call.path] if self._forwards else every
        if not self._forwards and len(calls) != 1:
            raise InputError(
                f"{type(self._model).__name__} has no forward, and its step runs {len(calls)} of "
                f"its parts on the {samples} samples of a batch; define forward, from the inputs "
                "of a batch to logits, and let the step call it."
            )
        if not calls:
            return inputs, Step([seen.output for seen in every], whole=False)
        same = next((seen for seen in calls if seen.is_of(inputs)), None)
        if same is not None:
            return same.call, Step([same.output])
        first = _tensors(calls[0].call)
        ambiguous = any(not _equal(first, _tensors(seen.call)) for seen in calls[1:])
        return calls[0].call, Step([calls[0].output], ambiguous=ambiguous)

    def _enters(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward begins."""
        if torch.compiler.is_compiling() or _redirected(module):
            return
        if self._running:
            self._running.append(None)
            return
        try:
            with torch.inference_mode(mode=False), torch.no_grad():
                call = pytree.tree_map_only(Tensor, Tensor.clone, Call(args, kwargs))
            call, raw = call._replace(path=self._paths[id(module)]), not self.overwritten
            self._running.append((call, _tensors((args, kwargs)), raw))
        except Exception as error:  # noqa: BLE001 - short memory, say; told when the step is over
            self._trouble = error

    def _leaves(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward has ended."""
        if torch.compiler.is_compiling():
            return
        if self._running and (begun := self._running.pop()) is not None:
            plain = pytree.tree_map_only(Tensor, Tensor.detach, output)
            self._seen.append(Seen(*begun, plain))

    def _unhook(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in any nesting."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether tensors are equal bit for bit, in order."""
    return len(one) == len(other) and all(
        a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(one, other, strict=True)
    )


def _in_sight(model: LightningModule) -> Iterator[tuple[nn.Module, str]]:
    """Modules that may have hooks, with their paths: compiled code takes them in, or passes by."""
    stack: list[tuple[nn.Module, str]] = [(model, "")]
    seen: set[int] = set()
    while stack:
        module, path = stack.pop()
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if id(module) in seen or compiled or isinstance(module, torch.jit.ScriptModule):
            continue
        seen.add(id(module))
        yield module, path
        opaque = type(module).__name__ == "OptimizedModule"
        if not opaque and (module is not model or "forward" not in vars(module)):
            prefix = f"{path}." if path else ""
            stack.extend((child, prefix + name) for name, child in module.named_children())


def _redirected(module: nn.Module) -> bool:
    """Whether a call of the module is Lightning's way to its step, through that of DDP."""
    return getattr(module.forward, "__qualname__", "").startswith("_ForwardRedirection")


def _shell(batch: Any) -> Any:
    """A copy of the containers of a batch, of the same tensors."""
    if isinstance(batch, Mapping):
        shell = copy(batch)
        return {k: _shell(v) for k, v in batch.items()} if type(batch) is dict else shell
    if type(batch) in (list, tuple):
        return type(batch)(map(_shell, batch))
    return batch
