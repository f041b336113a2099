"""Write the model card (README.md of a published folder) from the run's own records."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from robustly import markdown
from robustly.manifest import Manifest
from robustly.pretrain.config import ModelConfig
from robustly.pretrain.sessions import Session
from robustly.publish.config import PublishConfig
from robustly.publish.proof import Proof
from robustly.publish.tokenizer_fit import BYTES, DOCUMENTS

USAGE = """\
```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""


class StageManifests(NamedTuple):
    """Of the stages that made a published model."""

    tokenizer: Manifest
    data: Manifest
    train: Manifest


def model_card(
    publish: PublishConfig,
    name: str,
    model: ModelConfig,
    made: StageManifests,
    sessions: Sequence[Session],
    losses: Mapping[str, float],
    examples: Sequence[Mapping[str, Any]],
    fit: Mapping[str, Sequence[Mapping[str, Any]]],
    proof: Proof,
    average: str | None = None,
) -> str:
    """README.md: what the model is, how to load it, what it was trained on and how, and how well it
    does.

    `sessions` are those of the training that led to the weights. `losses` are those of guessing by
    frequency and before training, in nats; empty where nothing was held out. `fit` is what
    `held_out_fit` says of the tokenizer. `average`: what the weights are, if not those of a
    checkpoint.
    """
    train = made.train
    sections = (
        f"---\n{_header(publish)}\n---\n",
        f"# {publish.title or name}\n",
        _faults(proof),
        f"{publish.description or _description(train)}\n",
        f"Its weights are {average}.\n" if average else "",
        USAGE.format(name=name),
        f"Texts may have up to {model.positions - 2} tokens, `<s>` and `</s>` included.\n",
        "## Held-out loss\n",
        _losses(train.counts, losses) if losses else "The run held no documents out.\n",
        _source_losses(train.counts.get("validation_sources", {})),
        "![loss over the updates](curve.png)\n",
        _examples(examples),
        _tokenizer(made, fit) if fit["rows"] else "",
        "## Training\n",
        markdown.facts(_training(model, made, sessions)),
        _changes(sessions),
        _proof(proof),
        "The whole recipe, every key resolved, is `config.yaml`; the curve is `metrics.jsonl`.\n",
        "<details><summary>Recipe</summary>\n",
        f"```json\n{json.dumps(train.recipe, indent=2)}\n```\n",
        "</details>\n",
        (
            f"Made by robustly {train.version}{f' ({train.commit})' if train.commit else ''};"
            f" recipe {train.hash[:16]}.\n"
        ),
    )
    return "\n".join(filter(None, sections))


def _header(publish: PublishConfig) -> str:
    """What the Hub reads of the card, as YAML."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        language=publish.language or None,
        license=publish.license.lower() if publish.license else None,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["roberta", "robustly", "masked-lm"],
        mask_token="<mask>",
    ).to_yaml()


def _description(train: Manifest) -> str:
    if "teacher" in train.inputs:
        return "A RoBERTa encoder distilled from another, its teacher (Sanh et al. 2019)."
    if "extend_from" in train.inputs:
        update = train.recipe["schedule"]["extend_from"]["update"]
        return (
            "A RoBERTa encoder pretrained by masked language modeling, from update"
            f" {update:,} of another run on with its optimizer's moments."
        )
    start = "further, from another checkpoint," if "init_from" in train.inputs else "from scratch"
    return f"A RoBERTa encoder pretrained {start} by masked language modeling."


def _faults(proof: Proof) -> str:
    """A warning at the top of the card of a model that fails its proof."""
    if not proof.faults:
        return ""
    about = "**Not proven to be the trained model:**\n\n"
    return about + markdown.bullets(proof.faults)


def _proof(proof: Proof) -> str:
    """What plain transformers has found, and what was not tried."""
    if proof.faults:
        return ""

    counts = proof.counts
    found = (
        f"Loaded by transformers {counts['transformers']} alone, the logits of blocks of the"
        f" training data differ by at most {counts['max_logit_difference']:.0e} from the trained"
        f" model's, and {counts['documents_with_equal_ids']} documents become the ids that are in"
        " the token store.\n"
    )
    limits = f"\nNot proven:\n\n{markdown.bullets(proof.limits)}" if proof.limits else ""
    return f"## Proof\n\n{found}{limits}"


def _training(
    model: ModelConfig, made: StageManifests, sessions: Sequence[Session]
) -> dict[str, Any]:
    train, data = made.train, made.data
    dropped, replaced = data.notes.get("cleaned"), data.notes.get("replaced")
    facts = {
        "parameters": train.counts["parameters"],
        "layers / hidden / heads": f"{model.layers} / {model.hidden} / {model.heads}",
        "vocabulary": made.tokenizer.counts["entries"],
        "updates": train.counts["updates"],
        "updates of these that were not made": train.counts.get("skipped_updates") or None,
        "blocks per update": train.counts["blocks_per_update"],
        "block length": train.recipe["data"]["block_length"],
        "tokens seen": train.counts["tokens"],
        "peak learning rate": train.recipe["optim"]["peak_lr"],
        "warmup updates": train.recipe["schedule"]["warmup"],
        "masking rate": _masking_rates(train.recipe.get("masking", {})),
        "training tokens in the corpus": data.counts["train_tokens"],
        "documents in the corpus": (
            data.counts["train_documents"] + data.counts["validation_documents"]
        ),
        "an epoch": train.notes.get("mixture"),
        "documents left out by cleaning": _total(dropped, "dropped by ") if dropped else None,
        "personal data replaced": _total(replaced, "replaced ") if replaced else None,
        "hours of training": train.counts["training_seconds"] / 3600,
        "sessions": len(sessions) if len(sessions) > 1 else None,
        "ranks": _one_after_another(session.ranks for session in sessions),
        "precision": _one_after_another(session.precision for session in sessions),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _masking_rates(masking: Mapping[str, Any]) -> str | None:
    """Where it is not the same in all updates."""
    first = masking.get("initial_probability")
    return (
        f"{first:.4g} in the first update to {masking['probability']:.4g} in the last"
        if first
        else None
    )


def _one_after_another(values: Iterable[Any]) -> str:
    return ", then ".join(str(value) for value, _ in itertools.groupby(values))


def _changes(sessions: Sequence[Session]) -> str:
    """What was not the same in all sessions, a row for each stretch of updates between changes; and
    what records lost."""
    facts = [_facts(session) for session in sessions]
    keys = dict.fromkeys(key for each in facts for key in each)
    changed = [key for key in keys if len({each.get(key) for each in facts}) > 1]
    shown = [{key: each.get(key, "") for key in changed} for each in facts]
    rows = []
    for values, some in itertools.groupby(range(len(sessions)), shown.__getitem__):
        first, *rest = some
        begin, end = sessions[first].from_update + 1, sessions[(first, *rest)[-1]].to_update
        rows.append({"updates": f"{begin:,} to {end:,}", **values})

    about = "What was not the same in all sessions; it changes results by rounding alone:\n"
    lost = sorted({name for session in sessions for name in session.lost_metrics})
    return "\n".join(
        [
            *([about, markdown.records(rows)] if changed else []),
            *([f"Lines were lost in training, of {', '.join(lost)}.\n"] if lost else []),
        ]
    )


def _facts(session: Session) -> dict[str, Any]:
    devices = ", ".join(f"{count} x {name}" for name, count in session.devices.items())
    return {
        "ranks": session.ranks,
        "devices": devices,
        "precision": session.precision,
        "ZeRO stage": session.zero_stage,
        "micro-batch": session.micro_batch,
        "code": session.commit[:12],
        **session.versions,
    }


def before_training(losses: Mapping[str, Any]) -> dict[str, float]:
    """The loss before the first update, by what the model was then: untrained, or the checkpoint
    that it started from."""
    if "starting_loss" in losses:
        return {"the checkpoint it started from": losses["starting_loss"]}
    return {"untrained": losses["untrained_loss"]}


def _losses(counts: Mapping[str, Any], losses: Mapping[str, float]) -> str:
    rows = {"this model": counts["validation_loss"]}
    if "checkpoint_loss" in losses:
        rows["the last checkpoint alone"] = losses["checkpoint_loss"]
    if "validation_average_loss" in counts:
        rows["the exponential average of its weights"] = counts["validation_average_loss"]
    if "unigram_loss" in losses:
        rows["by frequency"] = losses["unigram_loss"]

    rows |= before_training(losses)
    table = markdown.records(
        [
            {
                "": who,
                "nats per masked token": f"{x:.3f}",
                "bits": f"{x / math.log(2):.3f}",
                "perplexity": f"{math.exp(x):,.1f}",
            }
            for who, x in rows.items()
        ]
    )
    return (
        f"{table}\nBest guess right: {counts['validation_accuracy']:.1%} of"
        f" {counts['validation_masked_tokens']:,} tokens.\n"
    )


def _total(counts: Mapping[str, int], what: str) -> str:
    """The sum of counts, and each of them by what follows `what` in its name."""
    kinds = {name.removeprefix(what): count for name, count in counts.items() if count}
    each = ", ".join(f"{kind}: {count:,}" for kind, count in kinds.items())
    return f"{sum(kinds.values()):,} ({each})" if kinds else "0"


def _source_losses(sources: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        {
            "source": name,
            "nats per masked token": f"{score['loss']:.3f}",
            "best guess right": f"{score['accuracy']:.1%}",
            "masked tokens": f"{score['masked_tokens']:,}",
        }
        for name, score in sources.items()
    ]
    return markdown.records(rows) if rows else ""


def _tokenizer(made: StageManifests, fit: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How well the tokenizer fits the held-out documents, whether it has seen them, and how it cuts
    some of them."""
    counted = made.tokenizer.inputs.get("corpus")
    if counted == made.data.inputs["corpus"]:
        known = "the tokenizer's words were counted on the whole corpus, these documents included"
    elif counted == made.data.notes.get("training_corpus", ""):
        known = (
            "the tokenizer's words were counted on all sources but those that are held out as a"
            " whole"
        )
    else:
        known = (
            "what the tokenizer learned from comes from elsewhere, and whether they are in it is"
            " not known here"
        )

    about = (
        f"Byte-level BPE with {made.tokenizer.counts['entries']:,} entries. On documents that were"
        " held out from the model's training, of each source the first"
        f" {DOCUMENTS:,} at most, up to {BYTES / 1e6:.0f} MB; {known}:\n"
    )
    words = (
        "A word is what stands between white space. Single bytes are tokens of one byte: of"
        " characters that are not whole in the vocabulary, and of lone punctuation. How some of it"
        " is cut:\n"
    )
    cuts = [{"tokens": cut["tokens"], "cut": cut["cut"]} for cut in fit["cuts"]]
    return "\n".join(
        ["## Tokenizer\n", about, markdown.records(fit["rows"]), words, markdown.records(cuts)]
    )


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {
            "text": example["text"],
            "five best guesses": ", ".join(map(repr, example["guesses"])),
            "was": example["answer"] or "",
        }
        for example in examples
    ]
    return f"## Examples\n\n{markdown.records(rows)}" if rows else ""
