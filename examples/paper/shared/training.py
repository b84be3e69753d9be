"""Plain training: one optimizer, cross-entropy, and the weights of the best validation loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from examples.paper.shared.images import Images, batches
from examples.paper.shared.parts import Parts

Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recipe:
    """How to train."""

    optimizer: Optimizer
    epochs: int
    batch: int = 256
    seed: int = 0


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Gradient descent as in the paper's digits.

    Args:
        model: To be trained.
    """
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Adam as in the paper's PACS.

    Args:
        model: To be trained.
    """
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def trained(
    parts: Parts,
    model: nn.Module,
    train: Images,
    validation: Images,
    recipe: Recipe,
    say: Callable[[str, int, int], None],
) -> nn.Module:
    """Train a network, or take over the weights of an earlier run.

    Args:
        parts: Where the weights are kept.
        model: The network, freshly made, on its device.
        train: Images to train on.
        validation: Images whose loss chooses the epoch.
        recipe: How.
        say: Gets progress.
    """
    state = parts.tensors("weights", lambda: _train(model, train, validation, recipe, say))
    model.load_state_dict(state)
    return model.eval()


def _train(
    model: nn.Module, train: Images, validation: Images, recipe: Recipe,
    say: Callable[[str, int, int], None],
) -> dict[str, Tensor]:  # fmt: skip
    """The state after the best epoch."""
    device = next(model.parameters()).device
    optimizer = recipe.optimizer(model)
    shuffle = torch.Generator().manual_seed(recipe.seed)
    best, lowest = _copy(model), float("inf")
    steps = -(-len(train) // recipe.batch)
    for epoch in range(recipe.epochs):
        model.train()
        order = torch.randperm(len(train), generator=shuffle)
        for step, batch in enumerate(batches(train, order, recipe.batch)):
            inputs, targets = batch.inputs.to(device), batch.targets.to(device)
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            say("training", epoch * steps + step + 1, recipe.epochs * steps)
        now = validation_loss(model, validation, recipe.batch)
        if now < lowest:
            best, lowest = _copy(model), now
    return best


@torch.no_grad()
def validation_loss(model: nn.Module, images: Images, batch: int) -> float:
    """Mean cross-entropy in eval mode.

    Args:
        model: The network.
        images: At least one.
        batch: Images at a time.
    """
    device = next(model.parameters()).device
    model.eval()
    total = 0.0
    for part in batches(images, torch.arange(len(images)), batch):
        logits = model(part.inputs.to(device))
        total += float(nn.functional.cross_entropy(logits, part.targets.to(device)).mul(len(part)))
    return total / len(images)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    """The state, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
