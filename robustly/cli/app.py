"""The command line, the one place that knows every stage; each is imported when its command is
called."""

import contextlib
import difflib
import errno
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from robustly import UserError, __version__, config, log, machine
from robustly.experiment import (
    Experiment,
    cleaned,
    load_experiment,
    pretraining,
    settle,
    train_stage,
)
from robustly.files import disk_full
from robustly.inspection.folders import folder_kind
from robustly.manifest import MANIFEST, Manifest
from robustly.pretrain.flops import flops_per_token

if TYPE_CHECKING:
    from robustly.delta.config import DeltaExperiment
    from robustly.preflight.plan import Machine, Speed

app = typer.Typer(
    name="robustly",
    help=(
        "Pretrain encoders by the RoBERTa recipe: raw text -> tokenizer -> token store ->"
        " checkpoint -> published folder."
    ),
    epilog=(
        "CONFIG is a YAML page (see configs/); any of its keys can be set as a.b=value. The same"
        " command again goes on where the last one stopped, or does nothing if all is done."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

MISTAKE = 2  # exit code of what the user can mend
STOPPED = 128 + signal.SIGINT


# ------------------------------------------------------------------------------------------- stages


def clean_corpus(experiment: Experiment) -> Manifest:
    from robustly.data_prep.cleaning.clean import clean

    return clean(
        experiment.corpus,
        experiment.cleaning,
        experiment.data.language,
        experiment.folder("clean"),
        experiment.origin.parent,
        experiment.processing,
    )


def build_tokenizer(experiment: Experiment) -> Manifest:
    from robustly.tokenizer.build import build

    return build(
        experiment.corpus,
        experiment.tokenizer,
        experiment.folder("tokenizer"),
        experiment.origin.parent,
        experiment.processing,
        cleaned(experiment),
    )


def prepare_data(experiment: Experiment) -> Manifest:
    from robustly.data_prep.prepare import prepare

    return prepare(
        experiment.corpus,
        experiment.data,
        experiment.folder("data"),
        experiment.folder("tokenizer"),
        experiment.origin.parent,
        experiment.processing,
        cleaned(experiment),
    )


def train(experiment: Experiment, command: list[str]) -> Manifest:
    """Check what can be checked, then start the ranks and wait for them."""
    from robustly.launch import local

    stage = train_stage(experiment)
    if finished := stage.finished():
        return finished
    if code := local.run(command, experiment.run.ranks, os.environ):
        raise typer.Exit(code)

    if (manifest := stage.finished()) is None:
        log.say("the same command goes on")
        raise typer.Exit(STOPPED)

    return manifest


def publish_checkpoint(experiment: Experiment) -> Manifest:
    from robustly.publish.publish import publish

    return publish(
        experiment.publish,
        experiment.name,
        experiment.folder("train"),
        experiment.folder("data"),
        experiment.folder("tokenizer"),
        experiment.folder("published"),
    )


def compared_delta(experiment: Experiment) -> "DeltaExperiment | None":
    """The delta that the report tunes on the published model, with that model as its base; None
    without one."""
    from robustly.delta.config import load_delta

    if (name := experiment.report.delta) is None:
        return None
    base = f"paths.published={json.dumps(str(experiment.folder('published')))}"
    return load_delta(config.find_config(name, experiment.origin, "report.delta"), [base])


def compare_delta(experiment: Experiment) -> Manifest:
    from robustly.publish.report import compare

    page = compared_delta(experiment)
    assert page
    return compare(page, experiment.folder("published"), experiment.folder("report"))


# ----------------------------------------------------------------------------------------- commands

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML page of the experiment.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys to set, such as optim.peak_lr=6e-4."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the manifest as one JSON object on stdout.")
]
NewRun = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Work in the sibling folder NAME; stages that still fit are reused."
    ),
]
ProfileOption = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Trace updates 3 to 5 of this start into train/profile/; changes no number.",
    ),
]


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a user's mistake into one message and exit code 2, and Ctrl-C into a word of comfort."""
    try:
        yield
    except UserError as fault:
        log.error(str(fault))
        raise typer.Exit(MISTAKE) from None
    except KeyboardInterrupt:
        _stopped()
    except Exception as fault:
        if _interrupted(fault):
            _stopped()

        refused = getattr(fault, "errno", None) in (
            errno.EACCES,
            errno.EROFS,
            errno.ENOTDIR,
            errno.ENAMETOOLONG,
        )
        if not (refused or disk_full(fault)):
            raise

        log.error(f"{fault}. Nothing that was finished is lost; the same command goes on")
        raise typer.Exit(MISTAKE) from None


def _stopped() -> NoReturn:
    log.say("stopped; nothing that was finished is lost, and the same command goes on")
    raise typer.Exit(STOPPED) from None


def _interrupted(fault: BaseException) -> bool:
    """Whether Ctrl-C is behind an error: libraries that are being imported may catch it and fail
    elsewhere."""
    cause = fault.__cause__ or fault.__context__
    return isinstance(fault, KeyboardInterrupt) or (cause is not None and _interrupted(cause))


def command_line(*words: str) -> str:
    """What to type next, with this program under the name that a shell finds here."""
    found = shutil.which("robustly") or Path(sys.argv[0]).name != "robustly"
    return shlex.join(["robustly" if found else sys.argv[0], *words])


def arguments_of(page: str, overrides: list[str] | None, new_run: str | None) -> list[str]:
    """What the user typed, for the next command to type."""
    return [page, *(overrides or []), *(["--new-run", new_run] if new_run else [])]


def rank_command(
    page: str,
    overrides: list[str] | None,
    experiment: Experiment,
    new_run: str | None,
    profile: bool = False,
) -> list[str]:
    """What every rank runs. The folders are settled here, once: no rank may come to another
    choice."""
    chosen = {
        "name": experiment.name,
        **{f"paths.{key}": path for key, path in experiment.paths if path},
    }
    settled = (
        [f"{key}={json.dumps(str(value))}" for key, value in chosen.items()] if new_run else []
    )
    options = ["--profile"] if profile else []

    # -P: a working directory that holds a folder of our packages' names must not shadow them
    return [
        sys.executable,
        "-m",
        "robustly.cli",
        "pretrain",
        page,
        *(overrides or []),
        *settled,
        *options,
    ]


def report(folder: Path, manifest: Manifest, next_command: str | None, as_json: bool) -> None:
    """The table at the end of a stage, and what to type next."""
    log.table(
        f"{manifest.stage}: {folder}",
        {
            **{k: v for k, v in manifest.counts.items() if not isinstance(v, dict | list)},
            "seconds": manifest.seconds,
        },
    )
    if next_command:
        log.say(f"next: {next_command}")

    if as_json:
        log.print_json({"folder": str(folder), **asdict(manifest)})


def summarize(experiment: Experiment, manifests: dict[str, Manifest]) -> None:
    """The last words of a run: what the model is worth, where it is, and what to do with it."""
    from robustly.description import show_listing
    from robustly.publish.report import summary

    published = experiment.folder("published")

    for listing in summary(
        manifests["published"], manifests["report"].counts if "report" in manifests else None
    ):
        show_listing(listing)

    log.say(f"\nthe curve: {published / 'curve.png'}")
    log.say(f"the model: {published} (plain transformers loads it)")
    log.say(f"its card:  {published / 'README.md'}")
    log.say(f"next:      {command_line('inspect', str(published))}")
    log.say("           docs/howto/: your own text, language, task")


@app.command(name="run", short_help="All stages in order; what is finished is skipped.")
def run_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """All stages in order: clean, tokenizer, prepare, pretrain, publish, report. A finished stage
    is skipped."""
    with user_errors():
        experiment = settle(load_experiment(page, overrides), new_run)
        if compared := compared_delta(
            experiment
        ):  # a fault of its page or files is said now, not after the training
            from robustly.delta.tasks import read

            read(compared.delta.task, compared.origin.parent)

        command = rank_command(page, overrides, experiment, new_run)
        steps: dict[str, Callable[[], Manifest]] = {
            **({"clean": lambda: clean_corpus(experiment)} if experiment.cleaning.on else {}),
            "tokenizer": lambda: build_tokenizer(experiment),
            "data": lambda: prepare_data(experiment),
            "train": lambda: train(experiment, command),
            "published": lambda: publish_checkpoint(experiment),
            **({"report": lambda: compare_delta(experiment)} if experiment.report.delta else {}),
        }
        manifests: dict[str, Manifest] = {}

        for name, step in steps.items():
            log.say(f"--- {name}")
            manifests[name] = step()
            report(experiment.folder(name), manifests[name], None, False)

        summarize(experiment, manifests)
        if as_json:
            log.print_json({name: asdict(manifest) for name, manifest in manifests.items()})


@app.command(name="clean", short_help="Say which documents of the corpus are left out.")
def clean_command(
    page: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    dropped: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write every dropped document, too, to a new .jsonl or .jsonl.gz."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which documents of the corpus are left out, as the page's section `cleaning` asks for it.
    No text is changed: the later stages skip these documents."""
    with user_errors():
        from robustly.data_prep.cleaning.dropped import OPTION, write_dropped
        from robustly.data_prep.json_lines import check_place

        if dropped:
            check_place(dropped, OPTION)

        experiment = settle(load_experiment(page, overrides), new_run)
        folder = experiment.folder("clean")
        manifest = clean_corpus(experiment)
        if dropped:
            number = write_dropped(experiment.corpus, folder, experiment.origin.parent, dropped)
            log.say(f"{number:,} dropped documents: {dropped}")

        following = command_line("tokenizer", *arguments_of(page, overrides, new_run))
        report(folder, manifest, following, as_json)


@app.command(name="tokenizer")
def tokenizer_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """Train the byte-level BPE tokenizer on the corpus."""
    with user_errors():
        experiment = settle(load_experiment(page, overrides), new_run)
        following = command_line("prepare", *arguments_of(page, overrides, new_run))
        report(experiment.folder("tokenizer"), build_tokenizer(experiment), following, as_json)


@app.command(name="prepare")
def prepare_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """Turn the corpus into the token store."""
    with user_errors():
        experiment = settle(load_experiment(page, overrides), new_run)
        following = command_line("pretrain", *arguments_of(page, overrides, new_run))
        report(experiment.folder("data"), prepare_data(experiment), following, as_json)


@app.command(name="pretrain", short_help="Train the model, or go on from its last checkpoint.")
def pretrain_command(
    page: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    profile: ProfileOption = False,
    as_json: Json = False,
) -> None:
    """Train the model, from the newest checkpoint if there is one. Starts run.ranks processes on
    this machine; started by a launcher (torchrun, srun, `robustly launch`), it is one of its
    ranks."""
    from robustly.launch.environment import rank_from_environment

    with user_errors():
        launched = rank_from_environment() is not None

    if launched:
        _be_rank(page, overrides, profile)
        return

    with user_errors():
        _train_and_report(page, overrides, new_run, profile, as_json)


@app.command(name="distill", short_help="Train a smaller model by a teacher.")
def distill_command(
    page: ConfigArgument,
    overrides: Overrides = None,
    new_run: NewRun = None,
    profile: ProfileOption = False,
    as_json: Json = False,
) -> None:
    """Train a smaller model, the student, by a larger one: `pretrain` for a page with a section
    `distillation`, which `run` and `launch` know as well. Tokenizer and data must be finished, with
    the teacher's vocabulary."""
    with user_errors():
        if load_experiment(page, overrides).distillation is None:
            raise UserError(
                f"{page}: names no teacher; set distillation.teacher to the folder of a larger"
                " model"
            )

        _train_and_report(page, overrides, new_run, profile, as_json)


def _train_and_report(
    page: str, overrides: list[str] | None, new_run: str | None, profile: bool, as_json: bool
) -> None:
    experiment = settle(load_experiment(page, overrides), new_run)
    following = command_line("publish", *arguments_of(page, overrides, new_run))
    manifest = train(experiment, rank_command(page, overrides, experiment, new_run, profile))
    report(experiment.folder("train"), manifest, following, as_json)


def _be_rank(page: str, overrides: list[str] | None, profile: bool) -> None:
    """The body of one rank's process."""
    from robustly.launch.environment import export, rank_from_environment

    os.dup2(
        sys.stderr.fileno(), sys.stdout.fileno()
    )  # libraries print; stdout belongs to the command that was typed

    with user_errors():
        me = rank_from_environment()
        assert me is not None
        export(me)
        from robustly.pretrain.loop import FailedElsewhere, Stopped, pretrain

        try:
            pretrain(
                pretraining(load_experiment(page, overrides)),
                me.rank,
                me.local_rank,
                me.world_size,
                profile,
            )
        # exit code 0: another would have launchers kill the ranks that are still leaving
        except Stopped as stopped:
            if me.rank == 0:
                log.say(str(stopped))
        except FailedElsewhere:
            raise typer.Exit(MISTAKE) from None


@app.command(name="publish", short_help="Make a folder that plain transformers loads.")
def publish_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """Make a folder of the last checkpoint (publish.checkpoint: or the best) that plain
    transformers loads, and prove it."""
    with user_errors():
        experiment = settle(load_experiment(page, overrides), new_run)
        folder = experiment.folder("published")
        following = "report", *arguments_of(page, overrides, new_run)
        report(
            folder,
            publish_checkpoint(experiment),
            (
                command_line(*following)
                if experiment.report.delta
                else command_line("inspect", str(folder))
            ),
            as_json,
        )


@app.command(name="report")
def report_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """Compare a delta on the published model and on an untrained one."""
    with user_errors():
        experiment = settle(load_experiment(page, overrides), new_run)
        if compared_delta(experiment) is None:
            raise UserError(
                f"{page}: names no delta to compare; set report.delta, such as"
                " report.delta=delta/lora.yaml"
            )

        manifests = {
            "published": publish_checkpoint(experiment),
            "report": compare_delta(experiment),
        }
        report(experiment.folder("report"), manifests["report"], None, as_json)
        summarize(experiment, manifests)


@app.command(name="evaluate", short_help="Loss of a model on any text; minimal pairs.")
def evaluate_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Published folder, or a RoBERTa-like checkpoint on this machine."
        ),
    ],
    more: Annotated[list[str] | None, typer.Argument(metavar="FILES", hidden=True)] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILES", help="Files, folders or globs of .txt, .jsonl, .parquet; repeatable."
        ),
    ] = None,
    minimal_pairs: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="JSON lines with sentence_good and sentence_bad; repeatable."
        ),
    ] = None,
    block_length: Annotated[
        int | None,
        typer.Option(
            help="Tokens per block of text; default: the model's longest input, 512 at most."
        ),
    ] = None,
    mask_rate: Annotated[float, typer.Option(help="Share of the tokens that are targets.")] = 0.15,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Blocks at a time; changes nothing but speed.")
    ] = 32,
    documents: Annotated[
        str, typer.Option(help="What a document is in .txt: blank_line, file or line.")
    ] = "blank_line",
    text_key: Annotated[
        str, typer.Option(help="Key (.jsonl) or column (.parquet) that holds the text.")
    ] = "text",
    max_bad_lines: Annotated[
        int, typer.Option(min=0, help="Broken rows that are skipped before it is an error.")
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures as one JSON object on stdout.")
    ] = False,
) -> None:
    """Masked-LM loss of a model on any text, and its accuracy on minimal pairs.

    Text is cut into blocks, <s> first and </s> last, never across documents. 15% of the tokens
    (--mask-rate) are targets: 80% of them shown as <mask>, 10% as a random token, 10% as they are;
    <s> and </s> never are. The masks are the same every time and depend on nothing but a block's
    place in its file. Loss and perplexity compare models that share a tokenizer; bits per byte
    compare others, roughly: what is masked together differs.

    Minimal pairs are scored by pseudo-log-likelihood (Salazar et al. 2020); a tie counts half.
    """
    with user_errors():
        if more and text and minimal_pairs:
            raise UserError(
                f"{more[0]}: of which option? Repeat --text or --minimal-pairs before each file"
            )
        if more and not (text or minimal_pairs):
            raise UserError(
                f"{more[0]}: expected an option before it: --text FILES or --minimal-pairs FILE"
            )
        if not (text or minimal_pairs):
            raise UserError(
                "nothing to evaluate on: expected --text FILES, --minimal-pairs FILE, or both"
            )

        from robustly.evaluation.evaluate import evaluate_folder

        # a shell that expands a glob gives the option its first file and leaves the others bare
        texts = [*(text or []), *(more if more and text else [])]
        pairs = [*(minimal_pairs or []), *(map(Path, more) if more and minimal_pairs else [])]
        found = evaluate_folder(
            folder,
            texts,
            pairs,
            block_length,
            mask_rate,
            batch_size,
            documents,
            text_key,
            max_bad_lines,
        )
        if as_json:
            log.print_json(found)


class _TuneByDefault(TyperGroup):
    """`robustly delta CONFIG` is `robustly delta tune CONFIG`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in (*self.commands, "--help"):
            meant = difflib.get_close_matches(args[0], self.commands, n=1)
            if meant and len(args) > 1 and not Path(args[0]).exists():
                raise typer.BadParameter(
                    f"{args[0]}: no such page or command; did you mean {meant[0]}?"
                )
            args = ["tune", *args]

        return super().parse_args(ctx, args)


delta_app = typer.Typer(
    cls=_TuneByDefault,
    help=(
        "Attach a delta (LoRA, adapters, prompts, ...) to a published folder, train and score it,"
        " and save it: `robustly delta CONFIG`, short for `robustly delta tune CONFIG`. Or find the"
        " methods and rates to do it with."
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(
    delta_app, name="delta", short_help="Attach a delta to a published folder; search, compare."
)


def delta_page(page: str, overrides: list[str] | None, new_run: str | None) -> "DeltaExperiment":
    from robustly.delta.config import load_delta

    named = [f"name={json.dumps(new_run)}"] if new_run else []
    return load_delta(page, [*(overrides or []), *named])


@delta_app.command(name="tune", short_help="Train, score and save the page's delta.")
def delta_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """Attach a delta (LoRA, adapters, prompts, ...) to a published folder, train and score it, and
    save it."""
    with user_errors():
        settled = delta_page(page, overrides, new_run)
        from robustly.delta.stage import make_delta

        folder = settled.folder("delta")
        report(folder, make_delta(settled), command_line("inspect", str(folder)), as_json)


@delta_app.command(name="search", short_help="Try methods and rates; the best becomes a page.")
def delta_search_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """Try methods and rates, as the page's section `search` says, score them on the dev file, and
    write a page for the best. The same command goes on where the last one stopped."""
    with user_errors():
        settled = delta_page(page, overrides, new_run)
        from robustly.delta.search import BEST, search

        folder = settled.folder("search")
        report(folder, search(settled), command_line("delta", str(folder / BEST)), as_json)


@delta_app.command(name="compare", short_help="Methods side by side.")
def delta_compare_command(
    page: ConfigArgument, overrides: Overrides = None, new_run: NewRun = None, as_json: Json = False
) -> None:
    """Methods side by side, as the page's section `compare` says: score, parameters, bytes, seconds
    and memory of each, over `delta.seeds` seeds. The same command goes on where the last one
    stopped."""
    with user_errors():
        settled = delta_page(page, overrides, new_run)
        from robustly.delta.compare import compare

        folder = settled.folder("comparison")
        manifest = compare(settled)
        report(folder, manifest, None, as_json)
        log.say(f"table: {folder / 'table.md'}")


@delta_app.command(
    name="subspace", short_help="A space for intrinsic prompts, out of several tasks."
)
def delta_subspace_command(
    pages: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG... KEY=VALUE...", help="A page for each task; keys to set in all."
        ),
    ],
    into: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the decoder goes.")],
    dimension: Annotated[int, typer.Option(min=1, help="Numbers that an intrinsic prompt has.")],
    width: Annotated[int, typer.Option(min=1, help="Of the decoder's hidden layer.")] = 768,
    updates: Annotated[int, typer.Option(min=1, help="Each is over all tasks.")] = 1000,
    as_json: Json = False,
) -> None:
    """Find a space of few numbers in which the prompts of several tasks lie, for the method
    `intrinsic_prompt`: by the prompts themselves and by the tasks' losses. Prompts that are not
    trained yet are trained first, by their pages."""
    with user_errors():
        keys = [each for each in pages if "=" in each and not Path(each).exists()]
        settled = [delta_page(page, keys, None) for page in pages if page not in keys]
        from robustly.delta.subspace import make_subspace

        report(into, make_subspace(settled, into, dimension, width, updates), None, as_json)


@app.command(name="inspect", short_help="What a folder holds, in words and figures.")
def inspect_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A stage's folder, a run, a checkpoint, or a tokenizer."
        ),
    ],
    more: Annotated[list[str] | None, typer.Argument(metavar="FILES", hidden=True)] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILES",
            help=(
                "What the folder's tokenizer makes of files, folders or globs of .txt, .jsonl,"
                " .parquet; repeatable."
            ),
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="A row for each value of a key, such as lang; default: each file."
        ),
    ] = None,
    text_key: Annotated[
        str, typer.Option(help="Key (.jsonl) or column (.parquet) that holds the text.")
    ] = "text",
    documents: Annotated[
        str, typer.Option(help="What a document is in .txt: blank_line, file or line.")
    ] = "blank_line",
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Another folder, whose tokenizer is set beside this one's."
        ),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Data: show N blocks of each view as text; default: one."
        ),
    ] = None,
    decode_documents: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Data: write every document back, to a new .jsonl or .jsonl.gz."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Data: write the facts as one HTML page with plots, too."
        ),
    ] = None,
    with_tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="FOLDER",
            help="Data: its tokenizer; default: the one beside the folder.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as one JSON object on stdout.")
    ] = False,
) -> None:
    """What a folder holds, in words, figures and examples: tokenizer, data, train, published,
    report, delta, a whole run, or a Hugging Face checkpoint or tokenizer.

    With --text: how well the folder's tokenizer fits a text, in bytes per token, tokens per word
    and the share of bytes that are tokens of their own. With --compare: two tokenizers, on the same
    text.

    With --decode-documents: every document of a data folder as JSON lines (text, source, split).
    """
    from robustly import description
    from robustly.inspection import describe

    with user_errors():
        if more and not text:
            raise UserError(
                f"{more[0]}: expected an option before it: --text FILES or --compare FOLDER"
            )

        # a shell that expands a glob gives the option its first file and leaves the others bare
        paths = [*(text or []), *(more or [])]
        for_data = {
            "--blocks": blocks,
            "--decode-documents": decode_documents,
            "--html": html,
            "--tokenizer": with_tokenizer,
        }
        if given := [option for option, value in for_data.items() if value is not None]:
            if paths or by or compare:
                raise UserError(
                    f"{given[0]} is for data folders; --text, --by and --compare are for tokenizers"
                )

            describe.check_data_folder(folder, given[0])
            found = describe.describe_data(folder, blocks, decode_documents, html, with_tokenizer)
        else:
            of_tokenizer = describe.describe_tokenizer(
                folder, paths, by, text_key, documents, compare
            )
            found = of_tokenizer or describe.describe(folder, folder_kind(folder))

        if as_json:
            log.print_json(found.json())
        else:
            description.show(found)


@app.command(name="plan", short_help="What a page will take, before anything runs.")
def plan_command(
    page: ConfigArgument,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Ranks in all; default: run.ranks.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="GB", help="Memory of one GPU; default: this machine's."),
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=0.001, metavar="N", help="Speed of all ranks together.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="N", help="Operations a rank reaches, 10^12 per second."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine's speed: some 20 seconds.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan as one JSON object on stdout.")
    ] = False,
) -> None:
    """What a page will take, before anything runs: parameters, epochs, memory of a rank, time,
    disk."""
    with user_errors():
        from robustly.preflight.plan import plan, show

        experiment = load_experiment(page, overrides)
        settings = pretraining(experiment)
        total = ranks or experiment.run.ranks
        machine = _machine(experiment, total, memory)
        speed = _speed(experiment, total, tokens_per_second, tflops, measure)
        found = plan(
            settings,
            experiment.corpus,
            experiment.tokenizer,
            experiment.origin.parent,
            total,
            machine,
            speed,
        )
        show(found)
        if as_json:
            log.print_json(asdict(found))


def _machine(experiment: Experiment, ranks: int, gigabytes: float | None) -> "Machine":
    """What a rank runs on: the GPU whose memory is given, this machine's, or, for fp32 without one,
    its CPU."""
    from robustly.preflight import doctor
    from robustly.preflight.plan import Machine

    if gigabytes is not None:
        return Machine("cuda", round(gigabytes * 1e9), "--memory")

    if here := doctor.gpus():
        least = min(here, key=lambda gpu: gpu.memory)
        return Machine("cuda", least.memory, f"this machine's {least.name}")

    if experiment.run.precision != "fp32":
        return Machine("cuda", None, "no GPU on this machine: say --memory GB")

    available = machine.available_memory()
    if available is None:
        return Machine("cpu", None, "this machine does not say: give --memory GB for a GPU")

    return Machine(
        "cpu",
        available // ranks,
        f"this machine's free RAM / {ranks} {'rank' if ranks == 1 else 'ranks'}",
    )


def _speed(
    experiment: Experiment,
    ranks: int,
    tokens_per_second: float | None,
    tflops: float | None,
    measured: bool,
) -> "Speed | None":
    """The speed that was given or is to be measured. Raises UserError for more than one of them."""
    from robustly.preflight import plan

    if (tokens_per_second is not None) + (tflops is not None) + measured > 1:
        raise UserError("--tokens-per-second, --tflops, --measure: give one of them")
    if tokens_per_second is not None:
        return plan.Speed(tokens_per_second, "--tokens-per-second")

    vocabulary = experiment.tokenizer.vocab_size
    if tflops is not None:
        per_token = flops_per_token(
            experiment.model,
            vocabulary,
            experiment.data.block_length,
            experiment.masking.probability,
        )
        return plan.speed_at(tflops, ranks, per_token, f"--tflops {tflops:g}, {ranks} ranks")

    if not measured:
        return None

    from robustly.launch.environment import Rank, cores, export
    from robustly.launch.local import free_port

    log.say("measuring one rank's speed on this machine ...")
    export(Rank(0, 0, 1, 1, "127.0.0.1", free_port()))
    from robustly.preflight.speed import measure

    return measure(pretraining(experiment), vocabulary, ranks, cores())


@app.command(name="doctor", short_help="What this machine has and lacks.")
def doctor_command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as one JSON object on stdout.")
    ] = False,
) -> None:
    """What this machine has and lacks for training, each line with what to do. Exit code 1: not
    even tiny can run."""
    from robustly.preflight import doctor

    with user_errors():
        report = doctor.examine()
        doctor.show(report)
        if as_json:
            log.print_json(asdict(report))

        if not report.able:
            raise typer.Exit(1)


@app.command(name="launch")
def launch_command(
    launcher: Annotated[
        str, typer.Argument(metavar="LAUNCHER", help="local, hostfile, slurm or torchrun.")
    ],
    page: ConfigArgument,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines.")] = None,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Ranks on each; default: run.ranks.")
    ] = None,
    hostfile: Annotated[Path | None, typer.Option(help="hostfile: lines of HOST slots=N.")] = None,
    master: Annotated[
        str | None, typer.Option(help="torchrun: the first machine, as the others reach it.")
    ] = None,
    master_port: Annotated[
        int | None, typer.Option(help="Port on the first machine where ranks meet.")
    ] = None,
    restarts: Annotated[
        int, typer.Option(min=0, help="slurm, torchrun: new starts after a failure.")
    ] = 3,
    partition: Annotated[str | None, typer.Option(help="slurm: partition.")] = None,
    time: Annotated[str | None, typer.Option(help="slurm: time limit, such as 1-00:00:00.")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="slurm: a further option of sbatch; repeatable."),
    ] = None,
    profile: ProfileOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, and run nothing.")
    ] = False,
    new_run: NewRun = None,
) -> None:
    """Pretrain on one or many machines. Tokenizer and data must be finished."""
    from robustly.launch import LAUNCHERS
    from robustly.launch.job import Job, LaunchOptions, exported

    with user_errors():
        if launcher not in LAUNCHERS:
            raise UserError(
                f"{launcher!r}: no such launcher; expected one of {', '.join(LAUNCHERS)}"
            )

        experiment = settle(load_experiment(page, overrides), new_run)
        if not dry_run and train_stage(experiment).finished():
            log.say(f"{experiment.folder('train')}: finished already")
            return

        plan = Job(
            command=tuple(rank_command(page, overrides, experiment, new_run, profile)),
            folder=Path.cwd(),
            finished=experiment.folder("train").absolute() / MANIFEST,
            name=experiment.name,
            ranks=experiment.run.ranks,
            environment=exported(),
        )
        options = LaunchOptions(
            nodes,
            ranks_per_node,
            hostfile,
            master,
            master_port,
            restarts,
            partition,
            time,
            tuple(sbatch or ()),
        )
        if dry_run:
            typer.echo(LAUNCHERS[launcher].render(plan, options), nl=False)
            return

        if code := LAUNCHERS[launcher].start(plan, options):
            raise typer.Exit(code)

        if (
            launcher in ("local", "hostfile") and not plan.finished.exists()
        ):  # the others leave before it is done
            log.say("the same command goes on")
            raise typer.Exit(STOPPED)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"robustly {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the command `robustly`."""
    return app(arguments)


if __name__ == "__main__":
    main()
