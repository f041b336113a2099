"""Open a RoBERTa-like masked language model from any of its kinds of files, and refuse what is
damaged, incomplete or of another kind."""

import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, PreTrainedConfig, RobertaConfig

from robustly import UserError, manifest
from robustly.log import quiet_transformers
from robustly.pretrain.config import ModelConfig
from robustly.pretrain.objective import NEXT_SENTENCE
from robustly.pretrain.start import fairseq
from robustly.pretrain.start.model_files import ModelFiles
from robustly.pretrain.start.parameter_names import OUTPUT, today, with_output_bias
from robustly.pretrain.start.tensor_files import read_tensors
from robustly.resources import check_memory

DIMENSIONS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "tied_head": "tie_word_embeddings",
}
"""The config's `model` keys that fix shapes and arithmetic -> RobertaConfig's names of them."""

ROBERTAS = ("roberta", "xlm-roberta", "camembert")
"""transformers' names of models with RoBERTa's parameters; the tokenizer may differ."""

# saved beside a masked language model, which has no place for them
_LEFT_OUT = re.compile(
    rf"(?:roberta\.)?(?:pooler\.|embeddings\.(?:position|token_type)_ids$)|{re.escape(NEXT_SENTENCE)}"
)


class OpenModel(NamedTuple):
    """A masked language model in transformers' class: fp32, on the CPU, in evaluation mode,
    frozen."""

    model: Any
    has_head: bool
    """Whether the files hold its language-modeling head, `lm_head`; otherwise it is random."""
    unknown: list[str]
    """Tensors in the files for which the model has no place."""


def open_model(
    files: ModelFiles,
    model_types: Collection[str] | None = None,
    *,
    needs_head: bool = True,
    heads: int = 1,
) -> OpenModel:
    """Build the model that the files hold.

    `model_types`: transformers' names of those that will do; None: all that have a masked language
    model. `heads`: attention heads of a fairseq checkpoint that does not say how many it has.

    Raises UserError if the files are damaged, hold another model, or lack some of its tensors
    (those of the head only if `needs_head`)."""
    files.verify()
    try:
        with quiet_transformers():
            model, found = _load(files, model_types, heads)
    except UserError:
        raise
    except Exception as error:  # transformers, torch and json each raise their own
        check_memory(error, files.title)
        raise UserError(
            f"{files.title}: cannot be opened as a masked language model: {first_line(error)}."
            " Expected config.json of a RoBERTa-like model and its weights, whole"
        ) from error

    if faults := sorted(found["mismatched_keys"]):
        lines = [f"  {name}: {[*there]} there, {[*here]} here" for name, there, here in faults]
        raise UserError(
            "\n".join([f"{files.title}: tensors of other shapes{_why(faults)}", *lines])
        )

    # transformers fills them with random numbers
    missing = sorted(map(str, found["missing_keys"]))
    if lacking := [name for name in missing if needs_head or not name.startswith("lm_head.")]:
        expected = (
            "with its head, not an encoder alone or one that was fine-tuned for another task"
            if needs_head
            else "or its encoder, whole"
        )
        if OUTPUT in lacking and not getattr(model.config, "tie_word_embeddings", True):
            expected += (
                ", or tie_word_embeddings: true in config.json if its output layer has the weights"
                " of the embeddings"
            )

        raise UserError(
            f"{files.title}: {len(lacking)} of the model's tensors are missing"
            f" ({first_names(lacking)}). Expected a masked language model {expected}"
        )

    unknown = sorted(name for name in found["unexpected_keys"] if not _LEFT_OUT.match(name))
    return OpenModel(model.requires_grad_(False), not missing, unknown)


def _why(mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> str:
    if any([*there] == [0] for _, there, _ in mismatched):
        return (
            ", some empty, as ZeRO's stage 3 and FSDP leave them on a rank: save the model with all"
            " weights gathered"
        )
    return ""


def _load(
    files: ModelFiles, model_types: Collection[str] | None, heads: int
) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers says of tensors that are missing, unexpected or of another
    shape."""
    if files.kind == "fairseq":
        weights, dimensions = fairseq.read_checkpoint(files.folder)
        config = RobertaConfig(**{"num_attention_heads": heads, **dimensions})
    else:
        config = _config(files, model_types)
        weights = today(
            {name: x for path in files.weights for name, x in read_tensors(path).items()}
        )
        if config.model_type in ROBERTAS and not config.tie_word_embeddings:
            weights = with_output_bias(weights)

    model, found = MODEL_FOR_MASKED_LM_MAPPING[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # reported instead of raised
        output_loading_info=True,
    )
    model.config.name_or_path = str(files.folder)
    if (output := model.get_output_embeddings()) is not None:
        # transformers unties what the files hold twice with different values, whatever they say
        tied = output.weight is model.get_input_embeddings().weight
        model.config.tie_word_embeddings = tied

    return model, found


def _config(files: ModelFiles, model_types: Collection[str] | None) -> PreTrainedConfig:
    assert files.settings
    if files.kind == "run":
        begun = manifest.begun(files.folder)
        assert begun
        section = ModelConfig(**begun.recipe["model"])
        dimensions = {name: getattr(section, key) for key, name in DIMENSIONS.items()}
        return RobertaConfig(vocab_size=len(files.vocabulary().ids), **dimensions)

    config = AutoConfig.from_pretrained(
        files.folder, local_files_only=True, trust_remote_code=False
    )
    kind = config.model_type
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or kind not in (model_types or [kind]):
        expected = ", ".join(model_types or ["a masked language model"])
        raise UserError(f"{files.settings}: model_type = {kind!r}; expected {expected}")

    return config


def check_tokens(title: str, model: Any, tokens: int, pad: int) -> None:
    """Raises UserError if a tokenizer of so many tokens, with this padding id, is not the model's
    own."""
    words = model.get_input_embeddings()
    if tokens > words.num_embeddings or pad != words.padding_idx:
        raise UserError(
            f"{title}: tokenizer and model do not belong together: {tokens:,} tokens and <pad>"
            f" {pad} against {words.num_embeddings:,} embeddings and padding id {words.padding_idx}"
        )


def first_names(names: list[str]) -> str:
    """A list of names as messages show it: five at most."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def first_line(error: Exception) -> str:
    """What an error says, in one line without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
