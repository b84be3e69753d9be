"""The callback in the real Trainer of transformers, on tiny random networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from salmon import PassSettings
from salmon.tasks import SequenceLabelling
from tests.traces import assert_identical, network_state

pytestmark = pytest.mark.slow

SAMPLES, TOKENS = 40, 7
LABELS: dict[str, Any] = {"num_labels": 3}


class Rows(Dataset[dict[str, Tensor]]):
    """Samples that are mappings."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[row] for name, column in self.columns.items()}


def drawn(high: int, *shape: int) -> Tensor:
    return torch.randint(high, (SAMPLES, *shape), generator=torch.Generator().manual_seed(0))


def images() -> tuple[nn.Module, Rows]:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=16, patch_size=8, **LABELS,
    )  # fmt: skip
    pixels = torch.randn(SAMPLES, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return ViTForImageClassification(config), Rows(pixel_values=pixels, labels=drawn(3))


def tagged() -> tuple[nn.Module, Rows]:
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, **LABELS,
    )  # fmt: skip
    words, labels = drawn(30, TOKENS), drawn(3, TOKENS)
    mask = torch.arange(TOKENS) < 3 + drawn(5, 1)
    rows = Rows(input_ids=words, attention_mask=mask.long(), labels=labels.masked_fill(~mask, -100))
    return BertForTokenClassification(config), rows


def told() -> tuple[nn.Module, Rows]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    words = drawn(30, TOKENS)
    return GPT2LMHeadModel(config), Rows(input_ids=words, labels=words)


def trainer(folder: Path, model: nn.Module, rows: Rows, *callbacks: Any, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    quiet: dict[str, Any] = {"report_to": [], "use_cpu": True, "disable_tqdm": True}
    quiet |= {"eval_strategy": "epoch", "save_strategy": "no", "num_train_epochs": 1}
    arguments = TrainingArguments(
        str(folder), per_device_eval_batch_size=9, remove_unused_columns=False, **(quiet | options)
    )
    return Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks)
    )


def callback(**settings: Any) -> Any:
    from salmon.hugging_face import SaliencyCallback

    return SaliencyCallback(PassSettings(level=0.7, **settings), units=("heads", "linear"))


def test_a_vision_transformer_has_the_mistakes_of_its_evaluation(tmp_path: Path) -> None:
    model, rows = images()
    seen = callback()
    work = trainer(tmp_path, model, rows, seen)
    work.evaluate()
    logits = torch.from_numpy(work.predict(rows).predictions)
    wrong = logits.argmax(1) != rows.columns["labels"]
    assert seen.diagnosis.mistakes.sample.tolist() == wrong.nonzero().flatten().tolist()
    assert seen.diagnosis.task == "classification"
    assert len(seen.diagnosis.index) > 50


def test_tokens_that_are_padding_count_for_nothing(tmp_path: Path) -> None:
    model, rows = tagged()
    seen = callback()
    work = trainer(tmp_path, model, rows, seen)
    work.evaluate()
    labels = rows.columns["labels"]
    said = torch.from_numpy(work.predict(rows).predictions).argmax(2)
    wrong = ((said != labels) & (labels != -100)).sum(1)
    found = seen.diagnosis
    assert found.task == "sequence"
    assert found.mistakes.sample.tolist() == wrong.nonzero().flatten().tolist()
    assert torch.equal(found.mistakes.details["wrong_tokens"], wrong[wrong > 0])


def test_a_language_model_is_judged_by_the_next_token(tmp_path: Path) -> None:
    model, rows = told()
    task = SequenceLabelling(tolerated=None, worst=0.25, shift=True)
    seen = callback(task=task)
    trainer(tmp_path, model, rows, seen).evaluate()
    assert 0 < seen.diagnosis.misclassified <= SAMPLES // 4
    model.eval()
    words = rows.columns["input_ids"]
    output = model(input_ids=words)
    losses = task.labelled_losses(output, words).detach()
    own = model(input_ids=words, labels=words).loss.detach()
    torch.testing.assert_close(losses.mean(), own)


def test_a_training_is_the_same_with_it_and_without(tmp_path: Path) -> None:
    ends = []
    for seen in ([], [callback()]):
        model, rows = tagged()  # with dropout
        trainer(tmp_path, model, rows, *seen, num_train_epochs=2).train()
        ends.append(network_state(model))
        if seen:
            assert seen[0].diagnosis.samples == SAMPLES
    assert_identical(*ends)


def test_a_causal_language_model_is_known_by_its_kind(tmp_path: Path) -> None:
    model, rows = told()
    seen = callback()
    trainer(tmp_path, model, rows, seen).evaluate()
    assert seen.diagnosis.rule.startswith("loss above")
    assert int(seen.diagnosis.mistakes.details["tokens"][0]) == TOKENS - 1


def test_what_it_cannot_measure_is_told_and_ends_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, rows = images()
    del rows.columns["labels"]
    seen = callback()
    trainer(tmp_path, model, rows, seen).evaluate()
    assert "batches hold pixel_values; labels, label, label_ids are looked for" in caplog.text

    class Several:
        world_size = 2

    seen.on_evaluate(Several(), None, None, model=model, eval_dataloader=[])
    assert "2 processes share the evaluation" in caplog.text
    assert seen.diagnosis is None


def test_half_precision_of_the_evaluation_is_that_of_the_measurement(tmp_path: Path) -> None:
    model, rows = images()
    seen = callback()
    trainer(tmp_path, model, rows, seen, bf16=True).evaluate()
    assert seen.diagnosis.samples == SAMPLES
