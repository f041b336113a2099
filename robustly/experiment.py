"""An experiment: a whole config, composed of the stages' sections, and the work of each stage."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from robustly import StartAgain, UserError, config
from robustly.config import fingerprint
from robustly.files import write_atomic
from robustly.lease import ATTEMPT
from robustly.manifest import MANIFEST, Manifest, Work
from robustly.preflight.config import SearchConfig
from robustly.pretrain.stage import PretrainingConfig
from robustly.publish.config import PublishConfig, ReportConfig
from robustly.stages import RUN_STAGES, RunStage, resolve
from robustly.strict_yaml import dump_yaml

if TYPE_CHECKING:
    from robustly.data_prep.cleaning.clean import CleanStage
    from robustly.delta.config import DeltaExperiment
    from robustly.launch import Launcher
    from robustly.launch.checks.report import Report
    from robustly.launch.job import Job, LaunchOptions


CONFIGS = "configs"
"""Folder below the train stage's, with the config of each start."""


class Experiment(PretrainingConfig):
    """A whole config."""

    publish: PublishConfig = PublishConfig()
    report: ReportConfig = ReportConfig()
    search: SearchConfig = SearchConfig()

    _arguments: tuple[str, ...] = PrivateAttr(default=())
    """The config and the overrides that it was loaded from, for the processes of its ranks."""

    @property
    def stages(self) -> list[RunStage]:
        """The stages that the config asks for, in their order."""
        return [
            stage for stage in RUN_STAGES if not stage.optional or getattr(self, stage.section).on
        ]

    def work(self, stage: RunStage) -> Work:
        found: Work = resolve(stage.work)(self)
        return found

    def clean_folder(self) -> Path | None:
        """Folder of the clean stage, for the stages that read the corpus; None where the config
        takes all of it.

        Raises UserError if it holds the work of another recipe."""
        if not self.cleaning.on:
            return None
        stage = clean_work(self).stage
        assert stage
        stage().refuse_other_work()
        return self.folder("clean")

    def compared_delta(self) -> "DeltaExperiment | None":
        """The delta that the report tunes on the published model, with that model as its base; None
        without one."""
        from robustly.delta.config import load_delta

        if self.report.delta is None:
            return None
        base = f"paths.published={json.dumps(str(self.folder('published')))}"
        return load_delta(config.find_config("report.delta", self.report.delta), [base])

    def rank_command(
        self, profile: bool = False, live_code: bool = False, stop_after: int | None = None
    ) -> list[str]:
        """What every rank runs, of the code and the config that are typed."""
        typed = self._pretrain(profile, live_code, stop_after)
        return [sys.executable, "-m", "robustly.cli", *typed]

    def stage_command(self, stage: RunStage, *more: str) -> list[str]:
        """What makes a stage, of the code that is typed."""
        return [sys.executable, "-m", "robustly.cli", stage.verb, *self._arguments, *more]

    def job(self, command: list[str]) -> "Job":
        """The training, by what every rank runs, as launchers take it."""
        from robustly.launch.job import Job, exported
        from robustly.pretrain.checkpoints.disk_space import checkpoint_bytes
        from robustly.pretrain.flops import parameters

        return Job(
            command=tuple(command),
            python=tuple(command[: command.index("-m")]),
            folder=Path.cwd(),
            finished=self.folder("train").absolute() / MANIFEST,
            name=self.name,
            ranks=self.run.ranks,
            restarts=self.run.restarts,
            checkpoint_bytes=checkpoint_bytes(
                parameters(self.model, self.tokenizer.vocab_size), self.optim.average
            ),
            environment=exported(),
        )

    def settle(
        self, profile: bool = False, live_code: bool = False, stop_after: int | None = None
    ) -> list[str]:
        """What every rank of a start runs: the run's own code (with `live_code`: that which is
        typed) and this config, both kept in the run's folder, so that a start that waits in a
        queue, or is made again, is of the same. Says so if the code is another than that which is
        typed.

        Raises UserError as `snapshot.keep` does."""
        from robustly.launch.summary import typed

        # a launcher that started this process has done it before
        settled = self if ATTEMPT in os.environ else self.written_down(typed())
        return settled.kept_command(profile, live_code, stop_after)

    def written_down(self, typed: str) -> Self:
        """This experiment as a config in the run's folder, for what begins later. `typed`: the
        command that starts the training by it, which `launch status` tells; "": another one."""
        content = dump_yaml(self.settled())
        file = self.folder("train").absolute() / CONFIGS / f"{fingerprint(content)[:16]}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, f"# {typed}\n{content}" if typed else content)
        settled = self.model_copy()
        settled._arguments = (str(file),)
        return settled

    def kept_command(
        self, profile: bool, live_code: bool, stop_after: int | None = None
    ) -> list[str]:
        """What every rank runs, of the run's own code. Raises UserError as `snapshot.keep` does."""
        from robustly.launch import snapshot

        train = self.folder("train").absolute()
        kept = None if live_code else snapshot.keep(train)
        if kept is None:
            snapshot.say_live(train)
            return self.rank_command(profile, live_code=True, stop_after=stop_after)

        snapshot.say_whose(kept)
        return kept.program(self._pretrain(profile, False, stop_after))

    def _pretrain(self, profile: bool, live_code: bool, stop_after: int | None) -> list[str]:
        flags = {"--profile": profile, "--live-code": live_code}
        words = ["pretrain", *self._arguments, *(flag for flag, given in flags.items() if given)]
        return words if stop_after is None else [*words, "--stop-after", str(stop_after)]

    def look(
        self,
        launcher: "Launcher[Any]",
        job: "Job",
        options: "LaunchOptions",
        live_code: bool,
        wanted: bool = True,
    ) -> dict[str, str]:
        """Look at the hosts before a start, where that is `wanted`
        (`robustly.preflight.hosts.look`)."""
        from robustly.preflight import hosts

        return hosts.look(launcher, job, options, self, live_code, wanted)

    def examine(
        self, launcher: "Launcher[Any]", options: "LaunchOptions", live_code: bool
    ) -> "Report":
        """The explicit check of the hosts (`robustly.preflight.hosts.examine`)."""
        from robustly.preflight import hosts

        job = self.job(self.rank_command(live_code=live_code))
        return hosts.examine(launcher, job, options, self, live_code)

    def in_run(self, name: str) -> Self:
        """The experiment in the sibling folder `name`, with the old folders of the stages that
        still fit.

        Raises UserError if that is no new name."""
        if not config.is_folder_name(name) or self.root.name == name:
            raise UserError(
                f"--new-run {name!r}: expected the name of another folder beside {self.root}"
            )

        paths = self.paths.model_copy(update={"root": self.root.parent / name})
        for record in self.stages:
            if getattr(paths, record.name) is not None:
                continue

            old = paths.model_copy(update={record.name: self.root / record.name})
            with contextlib.suppress(UserError):  # it does not fit: this stage is made anew
                stage = self.model_copy(update={"paths": old}).work(record).stage
                if stage and stage().finished():
                    paths = old

        # settled here, once: no rank may come to another choice
        chosen = {"name": name, **{f"paths.{key}": path for key, path in paths if path}}
        settled = self.model_copy(update={"paths": paths, "name": name})
        settled._arguments = (
            *self._arguments,
            *(f"{key}={json.dumps(str(value))}" for key, value in chosen.items()),
        )
        return settled


def load_experiment(path: Path | str, overrides: list[str] | None = None) -> Experiment:
    """Read and check a config. Raises UserError with every fault."""
    experiment = config.load(path, overrides or [], Experiment)
    experiment._arguments = (str(path), *(overrides or []))
    return experiment


# ------------------------------------------------------------------------------- work of the stages


class RanksEnded(Exception):
    """Training ended before its end; what ended it has been said."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code
        """Exit code."""


def clean_stage(experiment: Experiment) -> "CleanStage":
    from robustly.data_prep.cleaning.clean import CleanStage

    return CleanStage(
        experiment.corpus,
        experiment.cleaning,
        experiment.data.language,
        experiment.folder("clean"),
        experiment.processing,
    )


def clean_work(experiment: Experiment) -> Work:
    made = clean_stage(experiment)
    return Work(made.make, made.stage)


def tokenizer_work(experiment: Experiment) -> Work:
    from robustly.tokenizer.build import TokenizerStage

    made = TokenizerStage(
        experiment.corpus,
        experiment.tokenizer,
        experiment.folder("tokenizer"),
        experiment.processing,
        experiment.clean_folder(),
    )
    return Work(made.make, made.stage)


def data_work(experiment: Experiment) -> Work:
    from robustly.data_prep.prepare import DataStage

    made = DataStage(
        experiment.corpus,
        experiment.data,
        experiment.folder("data"),
        experiment.folder("tokenizer"),
        experiment.processing,
        experiment.clean_folder(),
    )

    def make() -> Manifest:
        from robustly.pretrain.targets import check_words, prepare_masks

        check_words(experiment)
        finished = made.make()
        prepare_masks(experiment)
        return finished

    return Work(make, made.stage)


def train_work(
    experiment: Experiment,
    profile: bool = False,
    live_code: bool = False,
    check: bool = True,
    stop_after: int | None = None,
) -> Work:
    def make() -> Manifest:
        from robustly.launch import LAUNCHERS, LocalOptions

        stage = experiment.stage()
        if finished := stage.finished():
            return finished

        local, options = LAUNCHERS["local"], LocalOptions()
        typed = experiment.job(experiment.rank_command(profile, live_code))
        looked = experiment.look(local, typed, options, live_code, check)
        job = experiment.job(experiment.settle(profile, live_code, stop_after))
        if code := local.start(job.with_variables(looked), options):
            raise RanksEnded(code)
        if (manifest := stage.finished()) is None:
            raise StartAgain("the ranks ended before their work did; the same command goes on")
        return manifest

    return Work(make, experiment.stage)


def published_work(experiment: Experiment) -> Work:
    def make() -> Manifest:
        from robustly.publish.publish import publish

        return publish(
            experiment.publish,
            experiment.name,
            experiment.folder("train"),
            experiment.folder("data"),
            experiment.folder("tokenizer"),
            experiment.folder("published"),
        )

    return Work(make)


def report_work(experiment: Experiment) -> Work:
    def make() -> Manifest:
        from robustly.publish.report import compare

        delta = experiment.compared_delta()
        assert delta
        return compare(delta, experiment.folder("published"), experiment.folder("report"))

    return Work(make)
