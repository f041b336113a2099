"""The model card, written from the run's own records."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from robustly import markdown
from robustly.manifest import Manifest
from robustly.pretrain.config import ModelConfig
from robustly.publish.config import PublishConfig
from robustly.publish.tokenizer_fit import BYTES, DOCUMENTS


def model_card(
    publish: PublishConfig,
    name: str,
    model: ModelConfig,
    train: Manifest,
    data: Manifest,
    vocabulary: Manifest,
    losses: Mapping[str, float],
    examples: Sequence[Mapping[str, Any]],
    fit: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """README.md: what the model is, how to load it, what it was trained on and how, and how well it
    does.

    `fit` is what `held_out_fit` tells of the tokenizer.
    """
    title = publish.title or name
    front: dict[str, Any] = {
        **({"language": publish.language} if publish.language else {}),
        **({"license": publish.license.lower()} if publish.license else {}),
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["roberta", "robustly", "masked-lm"],
        "mask_token": "<mask>",
    }
    optim, schedule = train.recipe["optim"], train.recipe["schedule"]
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {title}\n",
        f"{publish.description or _description(train)}\n",
        "```python\nfrom transformers import AutoModelForMaskedLM, AutoTokenizer\n\n"
        f'model = AutoModelForMaskedLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n```\n',
        f"Texts may have up to {model.positions - 2} tokens, `<s>` and `</s>` included.\n",
        "## Held-out loss\n",
        _losses(train.counts, losses) if losses else "The run held no documents out.\n",
        *([_source_losses(sources)] if (sources := train.counts.get("validation_sources")) else []),
        "![loss over the updates](curve.png)\n",
        *(["## Examples\n", _examples(examples)] if examples else []),
        *(["## Tokenizer\n", _tokenizer(vocabulary, data, fit)] if fit["rows"] else []),
        "## Training\n",
        markdown.facts(
            {
                "parameters": train.counts["parameters"],
                "layers / hidden / heads": f"{model.layers} / {model.hidden} / {model.heads}",
                "vocabulary": vocabulary.counts["entries"],
                "updates": train.counts["updates"],
                "blocks per update": train.counts["blocks_per_update"],
                "block length": train.recipe["data"]["block_length"],
                "tokens seen": train.counts["tokens"],
                "peak learning rate": optim["peak_lr"],
                "warmup updates": schedule["warmup"],
                "training tokens in the corpus": data.counts["train_tokens"],
                "documents in the corpus": (
                    data.counts["train_documents"] + data.counts["validation_documents"]
                ),
                **({"an epoch": train.notes["mixture"]} if "mixture" in train.notes else {}),
                **(
                    {"documents left out by cleaning": _left_out(data)}
                    if data.notes.get("cleaned")
                    else {}
                ),
                "hours of training": train.counts["training_seconds"] / 3600,
                "ranks": train.notes["ranks"],
                "precision": train.notes["run"]["precision"],
            }
        ),
        "The whole recipe, every key resolved, is `config.yaml`; the curve is `metrics.jsonl`.\n",
        "<details><summary>Recipe</summary>\n\n```json\n"
        + json.dumps(train.recipe, indent=2)
        + "\n```\n\n</details>\n",
        (
            f"Made by robustly {train.version}{f' ({train.commit})' if train.commit else ''};"
            f" recipe {train.hash[:16]}.\n"
        ),
    ]
    return "\n".join(sections)


def _description(train: Manifest) -> str:
    if "teacher" in train.inputs:
        return "A RoBERTa encoder distilled from another, its teacher (Sanh et al. 2019)."
    start = "further, from another checkpoint," if "init_from" in train.inputs else "from scratch"
    return f"A RoBERTa encoder pretrained {start} by masked language modeling."


def before_training(losses: Mapping[str, Any]) -> dict[str, float]:
    """The loss before the first update, by what the model was then: untrained, or the checkpoint
    that it started from."""
    if "starting_loss" in losses:
        return {"the checkpoint it started from": losses["starting_loss"]}
    return {"untrained": losses["untrained_loss"]}


def _losses(counts: Mapping[str, Any], losses: Mapping[str, float]) -> str:
    rows = {
        "this model": counts["validation_loss"],
        "by frequency": losses["unigram_loss"],
        **before_training(losses),
    }
    lines = [
        [who, f"{x:.3f}", f"{x / math.log(2):.3f}", f"{math.exp(x):,.1f}"]
        for who, x in rows.items()
    ]
    accuracy = (
        f"Best guess right: {counts['validation_accuracy']:.1%} of"
        f" {counts['validation_masked_tokens']:,} tokens.\n"
    )

    return (
        markdown.table(["", "nats per masked token", "bits", "perplexity"], lines) + "\n" + accuracy
    )


def _left_out(data: Manifest) -> str:
    reasons = {
        name.removeprefix("dropped by "): count
        for name, count in data.notes["cleaned"].items()
        if count
    }
    return (
        f"{sum(reasons.values()):,}"
        f" ({', '.join(f'{reason}: {count:,}' for reason, count in reasons.items())})"
    )


def _source_losses(sources: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, f"{score['loss']:.3f}", f"{score['accuracy']:.1%}", f"{score['masked_tokens']:,}"]
        for name, score in sources.items()
    ]
    return markdown.table(
        ["source", "nats per masked token", "best guess right", "masked tokens"], rows
    )


def _tokenizer(
    vocabulary: Manifest, data: Manifest, fit: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """How well the tokenizer fits the held-out documents, how it cuts some, and what there is to
    know about them."""
    counted = vocabulary.inputs.get("corpus")
    if counted == data.inputs["corpus"]:
        known = "the tokenizer's words were counted on the whole corpus, these documents included"
    elif counted == data.notes.get("training_corpus", ""):
        known = (
            "the tokenizer's words were counted on all sources but those that are held out as a"
            " whole"
        )
    else:
        known = (
            "what the tokenizer learned from comes from elsewhere, and whether they are in it is"
            " not known here"
        )

    return "\n".join(
        [
            (
                f"Byte-level BPE with {vocabulary.counts['entries']:,} entries. On documents that"
                f" were held out from the model's training, of each source the first {DOCUMENTS:,}"
                f" at most, up to {BYTES / 1e6:.0f} MB; {known}:\n"
            ),
            _table(fit["rows"]),
            (
                "A word is what stands between white space. Single bytes are tokens of one byte: of"
                " characters that are not whole in the vocabulary, and of lone punctuation. How"
                " some of it is cut:\n"
            ),
            _table([{"tokens": cut["tokens"], "cut": cut["cut"]} for cut in fit["cuts"]]),
        ]
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys."""
    return markdown.table(
        [name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows]
    )


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            example["text"],
            ", ".join(repr(guess) for guess in example["guesses"]),
            example["answer"] or "",
        ]
        for example in examples
    ]
    return markdown.table(["text", "five best guesses", "was"], rows)
