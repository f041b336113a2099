"""The model card, written from the run's own records."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from pretrain.config import Model
from publish.config import Publish
from publish.proof import Proof
from robustly.log import show
from robustly.manifest import Manifest


def model_card(
    publish: Publish,
    name: str,
    model: Model,
    train: Manifest,
    data: Manifest,
    vocabulary: Manifest,
    proof: Proof,
) -> str:
    """README.md: what the model is, how to load it, what it was trained on and how, and how well it does."""
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
        f"{publish.description or 'A RoBERTa encoder pretrained from scratch by masked language modeling.'}\n",
        "```python\nfrom transformers import AutoModelForMaskedLM, AutoTokenizer\n\n"
        f'model = AutoModelForMaskedLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n```\n',
        f"Texts may have up to {model.positions - 2} tokens, `<s>` and `</s>` included.\n",
        "## Held-out loss\n",
        _table({key.removeprefix("validation_"): v for key, v in train.counts.items() if key.startswith("validation_")})
        if "validation_loss" in train.counts
        else "The run held no documents out.\n",
        "Loss is in nats per masked token, over documents that were never trained on.\n",
        "## Examples\n",
        _examples(proof.filled),
        "## Training\n",
        _table(
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
                "documents in the corpus": data.counts["train_documents"] + data.counts["validation_documents"],
                "hours of training": train.counts["training_seconds"] / 3600,
                "ranks": train.notes["ranks"],
                "precision": train.notes["run"]["precision"],
            }
        ),
        "The whole recipe, every key resolved, is `config.yaml`; the curve is `metrics.jsonl`.\n",
        "<details><summary>Recipe</summary>\n\n```json\n"
        + json.dumps(train.recipe, indent=2)
        + "\n```\n\n</details>\n",
        f"Made by robustly {train.version}{f' ({train.commit})' if train.commit else ''}; recipe {train.hash[:16]}.\n",
    ]
    return "\n".join(sections)


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name.replace('_', ' ')} | {show(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines]) + "\n"


def _examples(filled: Mapping[str, list[str]]) -> str:
    lines = [f"| {text} | {', '.join(repr(guess) for guess in guesses)} |" for text, guesses in filled.items()]
    return "\n".join(["| text | five best guesses |", "| --- | --- |", *lines]) + "\n"
