"""Publish a checkpoint as a folder that plain transformers loads.

Files: model.safetensors (fp32), config.json, the tokenizer's files, config.yaml (the resolved
config), metrics.jsonl, evaluations.jsonl, curve.png, README.md (the model card), manifest.json."""

import json
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import RobertaForMaskedLM

from robustly import Unproven, UserError, log, manifest
from robustly.data_prep.blocks import Blocks
from robustly.data_prep.store import SPLITS, Store
from robustly.files import write_atomic, write_json
from robustly.log import quiet_transformers
from robustly.manifest import Manifest, Stage
from robustly.metrics import read_metrics
from robustly.pretrain.checkpoints.averages import Average
from robustly.pretrain.checkpoints.checkpoint import (
    WEIGHTS,
    Progress,
    best_update,
    folder_of,
    of_finished,
)
from robustly.pretrain.config import MaskingConfig, ModelConfig, recorded_masking
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.objective import (
    NEXT_SENTENCE,
    MaskedLanguageModel,
    new_model,
    roberta_config,
)
from robustly.pretrain.validation import evaluate, unigram_loss
from robustly.publish.card import StageManifests, model_card
from robustly.publish.config import PublishConfig
from robustly.publish.curve import draw_curve
from robustly.publish.examples import Blank, held_out_blanks
from robustly.publish.proof import Proof, prove
from robustly.publish.tokenizer_fit import held_out_fit
from robustly.strict_yaml import dump_yaml
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.special_tokens import MASK_TOKEN
from robustly.tokenizer.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
RECORDS = ("metrics.jsonl", "evaluations.jsonl")
PROOF = "proof.json"
"""Beside a model that fails it: what was found."""


def publish(
    config: PublishConfig,
    name: str,
    train_folder: Path,
    data_folder: Path,
    tokenizer_folder: Path,
    folder: Path,
) -> Manifest:
    """Publish the checkpoint of a finished train folder that `config.checkpoint` names, into
    `folder`, and prove that it is the same model.

    Raises UserError if an input is unfinished, if there is no such checkpoint, or if `folder` holds
    another model; Unproven if the proof fails, which `config.accept_unproven` does not accept: what
    was made is then kept beside `folder`."""
    made = _finished_stages(tokenizer_folder, data_folder, train_folder)
    train = made.train
    best = config.checkpoint == "best"
    update = best_update(train_folder, train) if best else train.counts["updates"]
    average = Average.of(train_folder, update, config.average) if config.average else None
    weights = folder_of(Path("checkpoints"), update) / WEIGHTS
    read = average.digest(train_folder) if average else train.outputs[weights.as_posix()]["sha256"]
    inputs = {"train": train.hash, "weights": read}
    stage = Stage(folder, "published", {"name": name, "publish": config.recipe()}, inputs)
    if finished := stage.finished():
        return finished

    updates = average.updates if average else [update]
    checkpoints = [of_finished(train_folder, each) for each in updates]
    checkpoint = checkpoints[-1]
    evaluations = read_metrics(train_folder / "evaluations.jsonl")
    train = _as_of(train, checkpoint.progress, evaluations)

    with stage.begin():
        section = ModelConfig(**train.recipe["model"])
        tokenizer = load_tokenizer(tokenizer_folder)
        special = SpecialTokens.of(tokenizer)
        longest_input = section.positions - 2
        _check_examples(config, tokenizer, longest_input)
        tensors = average.weights(checkpoints) if average else checkpoint.weights()
        model = _model(section, special, tensors)
        _save(model, longest_input, tokenizer_folder, train_folder, folder)
        write_atomic(folder / "config.yaml", dump_yaml(train.notes["config"]))
        held_out = _held_out(train, data_folder, tokenizer)
        losses = _losses(train, held_out, evaluations)
        if average:
            train, losses = _as_averaged(train, losses, model, held_out)

        draw_curve(train_folder, losses.get("unigram_loss"), folder / "curve.png")
        blanks = [Blank(text, None) for text in config.examples] or held_out_blanks(
            Store(data_folder, "validation"), tokenizer, longest_input
        )
        texts = [blank.text for blank in blanks]
        proof = prove(folder, model, tokenizer, data_folder, train.recipe["data"], texts)
        examples = [
            {**blank._asdict(), "guesses": proof.filled[blank.text]}
            for blank in blanks
            if blank.text in proof.filled
        ]
        fit = held_out_fit(data_folder, tokenizer)
        made = made._replace(train=train)
        sessions = checkpoint.progress.sessions
        how = config, name, section, made, sessions, losses, examples, fit, proof
        card = model_card(*how, str(average) if average else None)
        write_atomic(folder / "README.md", card)
        if proof.faults and not config.accept_unproven:
            raise Unproven(_keep_apart(folder, proof))

        not_proven = [*proof.faults, *proof.limits]
        for each in not_proven:
            log.say(f"not proven: {each}")

        shutil.rmtree(_apart(folder), ignore_errors=True)
        outputs = _outputs(folder)
        counts = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "bytes": sum(path.stat().st_size for path in outputs),
            **{key: value for key, value in train.counts.items() if key.startswith("validation_")},
            **losses,
            **({"average": str(average)} if average else {}),
            **proof.counts,
            "not_proven": not_proven,
            "examples": examples,
            "tokenizer": fit,
        }
        notes = {"words": train.inputs["words"]} if "words" in train.inputs else {}
        return stage.finish(outputs, counts, notes)


def _finished_stages(
    tokenizer_folder: Path, data_folder: Path, train_folder: Path
) -> StageManifests:
    """Raises UserError if one is not finished, or the run was not trained on the other two."""
    train = manifest.require(train_folder, "train")
    data = manifest.require_whole(data_folder, "data")
    tokenizer = manifest.require_whole(tokenizer_folder, "tokenizer")
    manifest.check_whole(train_folder, train, ("metrics.jsonl", "evaluations.jsonl"))
    if (train.inputs["data"], train.inputs["tokenizer"]) != (data.hash, tokenizer.hash):
        raise UserError(
            f"{train_folder}: was trained on other data than {data_folder} or another tokenizer"
        )

    return StageManifests(tokenizer, data, train)


def _save(
    model: RobertaForMaskedLM,
    longest_input: int,
    tokenizer_folder: Path,
    train_folder: Path,
    folder: Path,
) -> None:
    """Weights, model config and tokenizer, as transformers reads them; the run's records."""
    tied = model.config.tie_word_embeddings
    # one bias in memory, which transformers asks for by both of its names where the head is untied
    state = None if tied else {name: x.clone() for name, x in model.state_dict().items()}
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=state)

    # safetensors writes it for its owner alone; the file beside it has the mode of the user's umask
    mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
    (folder / "model.safetensors").chmod(mode)
    for source, names in ((tokenizer_folder, TOKENIZER_FILES), (train_folder, RECORDS)):
        for name in names:
            shutil.copyfile(source / name, folder / name)

    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**settings, "model_max_length": longest_input})


class _HeldOut(NamedTuple):
    """What the run was evaluated on, and how."""

    training: Blocks
    validation: Blocks
    limit: int | None
    masking: MaskingConfig
    special: SpecialTokens

    def score(self, model: RobertaForMaskedLM, micro_batch: int) -> dict[str, Any]:
        """The figures of a model, as the run's own evaluations have them."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        objective = MaskedLanguageModel(model.to(device)).eval()
        how = self.limit, self.masking, self.special, micro_batch, 0, 1, device
        found = evaluate(objective, self.validation, *how)
        model.to("cpu")
        assert found
        return found.line()


def _held_out(train: Manifest, data_folder: Path, tokenizer: Tokenizer) -> _HeldOut | None:
    """None where nothing was held out, or where its words cannot be found any more."""
    if "validation_loss" not in train.counts:
        return None

    packing = train.recipe["data"]
    training, validation = (
        Blocks(data_folder, split, packing["block_length"], packing["format"]) for split in SPLITS
    )
    limit = train.notes["config"]["run"]["evaluate_blocks"]
    masking = MaskingConfig(**recorded_masking(train.notes["config"]["masking"]))
    try:
        if words := masking.segmenter:
            validation.mark_words(words, tokenizer, list_sha256=train.inputs.get("words"))
    except UserError as fault:
        log.warn(f"{fault}. The loss of guessing by frequency is left out")
        return None

    return _HeldOut(training, validation, limit, masking, SpecialTokens.of(tokenizer))


def _losses(
    train: Manifest, held_out: _HeldOut | None, evaluations: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """What the held-out loss compares with, on the same masked tokens: guessing by frequency, and
    the model before its first update. Empty where nothing was held out."""
    if "validation_loss" not in train.counts:
        return {}

    started = train.inputs.keys() & {"init_from", "teacher", "extend_from"}
    first = "starting_loss" if started else "untrained_loss"
    losses = {first: evaluations[0]["validation_loss"]}
    return {"unigram_loss": unigram_loss(*held_out), **losses} if held_out else losses


def _as_averaged(
    train: Manifest,
    losses: dict[str, float],
    model: RobertaForMaskedLM,
    held_out: _HeldOut | None,
) -> tuple[Manifest, dict[str, float]]:
    """The run's manifest with the held-out figures of an average in the place of its last
    checkpoint's, whose loss is then one of those that it compares with. Without any, where they
    cannot be found."""
    counts = {key: x for key, x in train.counts.items() if not key.startswith("validation_")}
    if not held_out:
        return replace(train, counts=counts), {}

    scored = held_out.score(model, train.notes["config"]["run"]["micro_batch"])
    alone = {"checkpoint_loss": train.counts["validation_loss"]}
    return replace(train, counts={**counts, **scored}), {**losses, **alone}


def _apart(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-unproven")


def _keep_apart(folder: Path, proof: Proof) -> str:
    """Move a model that fails its proof to a folder of its own; returns what to tell the user."""
    apart = _apart(folder)
    shutil.rmtree(apart, ignore_errors=True)
    apart.mkdir()
    for path in _outputs(folder):
        path.replace(apart / path.name)

    write_json(apart / PROOF, asdict(proof))
    (folder / manifest.RECIPE).unlink()  # nothing was begun that would refuse another recipe
    faults = "".join(f"\n  {fault}" for fault in proof.faults)
    return (
        f"{folder}: not published, because it is not proven to be the trained model:{faults}\nIt is"
        f" kept in {apart}, its card says so, and {PROOF} there has the details. Nothing of the"
        " training is lost: with the versions of transformers and tokenizers that pyproject.toml"
        " names, the same command publishes it; if it fails with these, please report it."
        " publish.accept_unproven: true publishes it as it is, with these faults in its card"
    )


def _outputs(folder: Path) -> list[Path]:
    records = (manifest.RECIPE, manifest.MANIFEST)
    return [
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.name not in records
    ]


def _as_of(
    train: Manifest, progress: Progress, evaluations: Sequence[Mapping[str, Any]]
) -> Manifest:
    """The run's manifest with the counts and held-out figures of one of its checkpoints."""
    evaluated = next((line for line in evaluations if line["update"] == progress.update), {})
    counts = {
        "updates": progress.update,
        "tokens": progress.tokens,
        "training_seconds": round(progress.seconds, 1),
        **{key: value for key, value in evaluated.items() if key != "update"},
    }
    return replace(train, counts={**train.counts, **counts})


def _check_examples(config: PublishConfig, tokenizer: Tokenizer, longest_input: int) -> None:
    """Raises UserError for a text that the model cannot take."""
    for text in config.examples:
        before, _, after = text.partition(MASK_TOKEN)
        parts = tokenizer.encode_documents([before.rstrip(), after])
        tokens = sum(len(ids) for ids in parts) + 3  # <s> <mask> </s>
        if tokens > longest_input:
            raise UserError(
                f"publish.examples: {text!r} has {tokens} tokens; the model takes {longest_input}"
            )


def _model(
    section: ModelConfig, special: SpecialTokens, weights: dict[str, torch.Tensor]
) -> RobertaForMaskedLM:
    """The checkpoint's weights in transformers' class, fp32. Every parameter must be there, and no
    other but those of a next-sentence head, for which that class has no place."""
    model = new_model(roberta_config(section, special), 0)
    parameters = dict(model.named_parameters())
    weights = {name: value for name, value in weights.items() if not name.startswith(NEXT_SENTENCE)}
    if unfit := parameters.keys() ^ weights.keys():
        raise UserError(f"the checkpoint does not fit the model: {', '.join(sorted(unfit)[:5])}")

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])

    return model.eval()
