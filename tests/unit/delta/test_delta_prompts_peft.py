"""What peft's prompts do on encoders in silence, shown, and ours beside them: if peft changes, its
half of a test says so, and ours must hold all the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import (
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaPreTrainedModel,
)

from robustly.delta.attachment import attach, stored, trained

torch.set_num_threads(1)  # more are slower on networks this small
TOKENS = 4
IDS = torch.tensor([[0, 9, 14, 31, 22, 7, 2], [0, 11, 5, 45, 17, 39, 2]])
MASK = torch.ones_like(IDS)


def new_model(
    kind: type[RobertaPreTrainedModel] = RobertaForSequenceClassification,
) -> RobertaPreTrainedModel:
    torch.manual_seed(1)
    return kind(RobertaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=42, type_vocab_size=1, initializer_range=0.1, num_labels=2, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )).eval()  # fmt: skip


def by_peft(model: RobertaPreTrainedModel, task: str) -> PeftModel:
    torch.manual_seed(2)
    return get_peft_model(
        model, PromptTuningConfig(task_type=task, num_virtual_tokens=TOKENS)
    ).eval()


def by_us(model: RobertaPreTrainedModel) -> RobertaPreTrainedModel:
    return attach(model, [{"name": "prompt", "tokens": TOKENS}])


def what_the_encoder_gives(model: Any) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    model.roberta.register_forward_hook(lambda module, args, output: seen.update(output))
    return seen


def test_the_position_that_a_classifier_reads() -> None:
    """peft: the first soft token; ours: `<s>`, whose state still depends on the prompt."""
    theirs, ours = by_peft(new_model(), "SEQ_CLS"), by_us(new_model())
    head = theirs.base_model.classifier
    states = what_the_encoder_gives(theirs.base_model)
    logits = theirs(input_ids=IDS, attention_mask=MASK).logits
    hidden = states["last_hidden_state"]
    assert hidden.shape[1] == TOKENS + IDS.shape[1]
    assert torch.equal(logits, head(hidden))  # reads position 0, where the first soft token is
    assert (logits - head(hidden[:, TOKENS:])).abs().max() > 1e-2  # and not <s>

    states = what_the_encoder_gives(ours)
    inputs: list[Tensor] = []
    ours.roberta.embeddings.register_forward_hook(
        lambda module, args, kwargs, output: inputs.append(kwargs["input_ids"]), with_kwargs=True
    )
    logits = ours(IDS, attention_mask=MASK).logits
    assert inputs[0][:, 0].tolist() == [0, 0]  # <s>
    assert torch.equal(logits, ours.classifier(states["last_hidden_state"]))
    assert states["last_hidden_state"].shape[1] == IDS.shape[1]
    with torch.no_grad():
        ours.roberta.embeddings.word_embeddings.prompt.table.mul_(3)

    assert not torch.equal(ours(IDS, attention_mask=MASK).logits, logits)


def test_labels_of_tokens() -> None:
    """peft: logits for the soft tokens too, and no loss."""
    labels = IDS % 2
    theirs = by_peft(new_model(RobertaForTokenClassification), "TOKEN_CLS")
    assert theirs(input_ids=IDS, attention_mask=MASK).logits.shape[1] == TOKENS + IDS.shape[1]
    with pytest.raises(ValueError, match="batch_size"):
        theirs(input_ids=IDS, attention_mask=MASK, labels=labels)

    output = by_us(new_model(RobertaForTokenClassification))(
        IDS, attention_mask=MASK, labels=labels
    )
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    assert output.logits.shape == (2, 7, 2)
    torch.testing.assert_close(output.loss, expected)


def test_spans_of_answers() -> None:
    """peft: labels count from the first soft token, so training learns to answer too early, in
    silence."""
    starts, ends = torch.tensor([2, 4]), torch.tensor([3, 6])
    for model, extra in (
        (by_peft(new_model(RobertaForQuestionAnswering), "QUESTION_ANS"), TOKENS),
        (by_us(new_model(RobertaForQuestionAnswering)), 0),
    ):
        output = model(
            input_ids=IDS, attention_mask=MASK, start_positions=starts, end_positions=ends
        )
        assert output.start_logits.shape == output.end_logits.shape == (2, extra + 7)
        losses = [
            torch.nn.functional.cross_entropy(output.start_logits, starts),
            torch.nn.functional.cross_entropy(output.end_logits, ends),
        ]
        # So with peft, label 2 is the third soft token.
        torch.testing.assert_close(output.loss, sum(losses) / 2)


def few_updates(model: Any, parameters: list[Tensor]) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(3):
        model(input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_going_back_to_the_best_prompts(tmp_path: Path) -> None:
    """peft stores what the prompt's network makes and loads it as what the network starts from, as
    Trainer does for the best model and on resume; ours goes back to the same logits, to the bit."""

    def logits(model: Any) -> Tensor:
        with torch.no_grad():
            return model(input_ids=IDS, attention_mask=MASK).logits

    torch.manual_seed(2)
    config = PromptEncoderConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=TOKENS,
        encoder_hidden_size=16,
        encoder_reparameterization_type="LSTM",
    )
    theirs = get_peft_model(new_model(), config)
    few_updates(theirs, [p for p in theirs.parameters() if p.requires_grad])
    best = logits(theirs)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)  # "auto" asks the Hub
    theirs.load_adapter(tmp_path, theirs.active_adapter, is_trainable=True)
    assert (logits(theirs) - best).abs().max() > 1e-3  # though nothing was trained in between

    ours = attach(new_model(), [{"name": "p_tuning", "tokens": TOKENS}])
    few_updates(ours, list(trained(ours).values()))
    best, kept = (
        logits(ours),
        {name: tensor.detach().clone() for name, tensor in stored(ours).items()},
    )
    few_updates(ours, list(trained(ours).values()))
    assert not torch.equal(logits(ours), best)
    ours.load_state_dict(kept, strict=False)
    assert torch.equal(logits(ours), best)
