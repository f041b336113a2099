"""The model that a training begins with: fresh weights, those of another model, or a student and
its teacher."""

import torch
from transformers import RobertaForMaskedLM

from robustly import log
from robustly.pretrain.attention import attention_for
from robustly.pretrain.config import DistillationConfig
from robustly.pretrain.distillation import Distillation, open_teacher, start_from_teacher
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.model_setup import set_up_model
from robustly.pretrain.objective import (
    MaskedLanguageModel,
    NextSentenceHead,
    new_model,
    roberta_config,
)
from robustly.pretrain.ranks import together
from robustly.pretrain.stage import PretrainingConfig
from robustly.pretrain.start.init_from import start_from
from robustly.rng import Purpose, seed64
from robustly.tokenizer.tokenizer import Tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def initial_model(
    config: PretrainingConfig, tokenizer: Tokenizer, pairs: bool, rank: int, device: torch.device
) -> MaskedLanguageModel:
    """The model with its losses, on CPU, in fp32. `pairs`: with a next-sentence head.

    Every rank calls it. Raises UserError if the checkpoint or the teacher that the config names
    cannot be used (FailedOnAnotherRank where it is another rank's)."""
    sizes = roberta_config(config.model, SpecialTokens.of(tokenizer))
    roberta = new_model(sizes, seed64(config.seed, Purpose.INIT, 0, 0))
    if source := config.initial():
        with together(device):
            fitted = start_from(roberta, source, config.model, tokenizer.vocabulary)

        if rank == 0:
            log.say(fitted)

    if config.distillation:
        return _student(roberta, config, config.distillation, tokenizer, rank, device)
    if pairs:
        head = NextSentenceHead(sizes, seed64(config.seed, Purpose.INIT, 0, 1))
        return MaskedLanguageModel(roberta, head)

    return MaskedLanguageModel(roberta)


def _student(
    roberta: RobertaForMaskedLM,
    config: PretrainingConfig,
    settings: DistillationConfig,
    tokenizer: Tokenizer,
    rank: int,
    device: torch.device,
) -> Distillation:
    """A student that starts from layers of its teacher, and the teacher, on the device."""
    source = config.teacher()
    assert source
    with together(device):
        teacher = open_teacher(source, config.model, tokenizer, settings.layers)

    layers = ", ".join(map(str, start_from_teacher(roberta, teacher, settings.layers)))
    if rank == 0:
        log.say(f"starting from {source.folder}: its layers {layers}, counted from 0")

    run = config.run
    objective = MaskedLanguageModel(teacher.to(device, DTYPES[run.precision])).eval()
    set_up_model(objective, run, attention_for(run, config.model, device))
    return Distillation(roberta, objective, settings)
