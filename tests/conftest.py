"""Settings for all tests: repeatable hypothesis, seeded torch."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is loaded, and for processes that tests start: one thread for each of the workers.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# Before Triton is loaded: where there is no GPU, kernels are interpreted.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = "1"

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, max_examples=50
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Messages of the monitor, whose logger belongs to Lightning's."""
    messages = logging.getLogger("pytorch_lightning.callbacks.salmon")
    messages.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger=messages.name)
    yield caplog
    messages.removeHandler(caplog.handler)
