"""Train the tokenizer: the stage that counts the corpus's words, trains merges and saves the files.

What is saved is tried on the text. Counts may come from elsewhere instead (`corpus.counts`), and so
may the whole vocabulary (`tokenizer.import`)."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Reference

from robustly import UserError, log
from robustly.config import InputPath, fingerprint
from robustly.corpus import decisions
from robustly.corpus.bad_lines import listed_in, move_list, told
from robustly.corpus.config import CorpusConfig, CountFiles, Processing
from robustly.corpus.documents import documents
from robustly.corpus.files import Hashes, hash_corpus, remember_files, remembered_files
from robustly.corpus.partitions import Partition, at_hand, partitions, work_key
from robustly.files import sha256
from robustly.manifest import Manifest, Outcome, Stage
from robustly.resources import available_memory
from robustly.tokenizer import load_tokenizer
from robustly.tokenizer.config import SEGMENTER_KEY, FairseqFiles, TokenizerConfig
from robustly.tokenizer.counting import COUNTS_FILE, FILES, RARE, CountSummary, count
from robustly.tokenizer.counts import read_counts, watched
from robustly.tokenizer.importing import files_of, read_imported
from robustly.tokenizer.segmenters import word_list
from robustly.tokenizer.special_tokens import CONTROL_TOKENS
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import Vocabulary, fast_tokenizer, lay_out, save_vocabulary

MANY_MARKS = 0.01  # of the words that are counted; emoji alone give fewer
SAMPLE_PARTITIONS = 16
SAMPLE_DOCUMENTS = 16  # of each partition
SAMPLE_CHARACTERS = 4096  # of each document
_CONTROL_TOKENS = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))


@dataclass(frozen=True)
class TokenizerStage:
    """The tokenizer stage of a config."""

    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    folder: Path
    processing: Processing
    """Changes no byte."""
    clean_folder: Path | None = None
    """Of the clean stage, whose decisions say which documents there are; None takes all of them."""

    def stage(self) -> Stage:
        """What the tokenizer depends on. Raises UserError if that cannot be read."""
        recipe = {"tokenizer": self.tokenizer.recipe()}
        if self.tokenizer.imported is not None:
            files = {path.name: sha256(path) for path in files_of(self.tokenizer.imported)}
            return Stage(self.folder, "tokenizer", recipe, {"import": fingerprint(files)})

        if self.corpus.counts:
            if ways := self.tokenizer.off_default({"count_by", "segmenter"}):
                raise UserError(
                    f"tokenizer.{ways[0]} = {getattr(self.tokenizer, ways[0])}: corpus.counts are"
                    " counted already; remove either"
                )
            return Stage(self.folder, "tokenizer", recipe, {"counts": self._contents.corpus})

        inputs = {"corpus": self._contents.corpus}
        if self.clean_folder:
            remembered = {**remembered_files(self.folder), **self._contents.files}
            whole = hash_corpus(self.corpus, remembered)
            inputs["clean"] = decisions.require(self.clean_folder, whole.corpus).hash

        if listed := word_list(self.tokenizer.segmenter, SEGMENTER_KEY):
            inputs["words"] = sha256(listed)

        recipe["corpus"] = self.corpus.reading()
        return Stage(self.folder, "tokenizer", recipe, inputs)

    @cached_property
    def _contents(self) -> Hashes:
        """Hashes of what is trained on."""
        counts = self.corpus.counts
        trained_on = CountFiles.of(counts) if counts else self.corpus.training
        return hash_corpus(trained_on, remembered_files(self.folder))

    def make(self) -> Manifest:
        """Train the tokenizer, or take over the one that the config imports; does nothing where
        that is done. Returns the manifest.

        The counts of words lie in the work folder until all is done, one file for each partition of
        the corpus: after a kill, only the rest is counted, and another vocabulary size uses them
        again. Their sums stay, as `counts.tsv.zst`.

        Raises UserError if the corpus, the counts or the import cannot be read or used; if the
        corpus is empty, or too small for `tokenizer.vocab_size`; if training needs more memory than
        there is; if the clean stage is not finished."""
        if self.tokenizer.imported is not None:
            return self._take_over(self.tokenizer.imported)

        stage = self.stage()
        # counts depend on the text alone
        counted: dict[str, Any] = {"text": stage.inputs, "files": FILES}
        if not self.corpus.counts:
            counted["reading"] = self.corpus.reading()
            counted["by"] = self.tokenizer.count_by
            counted["normalization"] = self.tokenizer.normalization
            asked = stage.recipe["tokenizer"]
            counted |= {key: asked[key] for key in ("pattern", "segmenter") if key in asked}
            if self.tokenizer.special_tokens:  # no words are counted in their names
                counted["special_tokens"] = self.tokenizer.special_tokens

        return stage.make(work_key(fingerprint(counted)), self._process, self._collect)

    def _process(self, work: Path) -> tuple[Vocabulary, list[Partition], dict[str, Any]]:
        """Returns the vocabulary, what it was trained on, and the manifest's counts."""
        text = self._partitions()
        tally, sums = count(self.corpus, self.tokenizer, text, work, self.processing)
        if self.tokenizer.pattern == "gpt2":
            _warn_of_marks(sums.cut_at_marks / tally["words"])

        vocabulary, counts = _train(work, sums, self.tokenizer)
        found = {**tally, "distinct_words": sums.words, **counts}
        # of the words that were trained on, which are all words unless rare ones were left out
        if self.tokenizer.min_word_count == 1:
            found["bytes_per_token"] = round(tally["bytes"] / counts["tokens"], 4)

        return vocabulary, text, found

    def _collect(
        self, work: Path, trained: tuple[Vocabulary, list[Partition], dict[str, Any]]
    ) -> Outcome:
        vocabulary, text, counts = trained
        outputs = save_vocabulary(vocabulary, self.folder)
        reference = Reference.from_file(str(self.folder / "tokenizer.json"))
        _try_out(load_tokenizer(self.folder), reference, _sample(text, self.corpus))
        (work / COUNTS_FILE).replace(self.folder / COUNTS_FILE)
        outputs += [self.folder / COUNTS_FILE, *move_list(work, self.folder)]
        notes = remember_files(self.folder, self._contents.files)
        return Outcome(outputs, counts, notes)

    def _take_over(self, imported: InputPath | FairseqFiles) -> Manifest:
        """Take a vocabulary that exists, and try it on the text."""
        if self.corpus.counts:
            raise UserError(
                "tokenizer.import takes a vocabulary as it is, and corpus.counts train one; remove"
                " either"
            )

        stage = self.stage()
        if finished := stage.finished():
            return finished

        vocabulary = read_imported(imported)
        if (found := len(vocabulary.ids)) != self.tokenizer.vocab_size:
            raise UserError(
                f"tokenizer.vocab_size = {self.tokenizer.vocab_size}, but the vocabulary of"
                f" tokenizer.import has {found:,} entries; set tokenizer.vocab_size: {found}"
            )

        try:
            sample = list(_sample(self._partitions(), self.corpus))
        except UserError as fault:  # the text is no part of an import, and may be elsewhere
            log.warn(f"the vocabulary is not tried on the corpus: {fault}")
            sample = []

        # All faults are found before the stage begins, for the reason that `Stage.make` gives.
        tokenizer, reference = Tokenizer(vocabulary), fast_tokenizer(vocabulary)
        _try_tokens(tokenizer, reference)
        _try_out(tokenizer, reference, sample)

        with stage.begin():
            outputs = save_vocabulary(vocabulary, self.folder)
            counts = {"entries": found, "merges": len(vocabulary.merges)}
            return stage.finish(outputs, counts)

    def _partitions(self) -> list[Partition]:
        """The partitions that are trained on: without the sources that are held out, and without
        the dropped documents unless the vocabulary is imported."""
        found = partitions(self.corpus)
        if self.clean_folder and self.tokenizer.imported is None:
            found = decisions.attach(found, self.clean_folder)
        return [one for one in found if not self.corpus.sources[one.source].held_out]


# ----------------------------------------------------------------------------------------- training


def _train(
    work: Path, sums: CountSummary, tokenizer: TokenizerConfig
) -> tuple[Vocabulary, dict[str, int]]:
    """The vocabulary, from the counts in `work`, and counts for the manifest. Raises UserError if
    memory or the corpus do not suffice."""
    # numba: half a second and 100 MB that the workers need not have
    from robustly.tokenizer.merges import train_merges

    least = tokenizer.min_word_count
    _check_memory(sums, least)
    wanted = tokenizer.vocab_size - tokenizer.fixed_entries
    rows = watched("reading counts", read_counts(work / COUNTS_FILE), sums.words)
    counts = ((word, number) for word, number in rows if number >= least)
    training = train_merges(counts, wanted, tokenizer.min_frequency, tokenizer.max_token_length)
    if (found := len(training.merges)) < wanted:
        entries = tokenizer.fixed_entries + found
        message = (
            f"tokenizer.vocab_size = {tokenizer.vocab_size}: the corpus gives no more than"
            f" {entries} entries ({tokenizer.fixed_entries} for special tokens and bytes, {found}"
            f" for pairs that occur at least {tokenizer.min_frequency} times)"
        )
        if not tokenizer.accept_fewer:
            raise UserError(
                f"{message}; lower tokenizer.vocab_size to that or less, set"
                f" tokenizer.accept_fewer: true, or add text{told(listed_in(work))}"
            )

        log.warn(f"{message}; taken as tokenizer.accept_fewer says")

    vocabulary = lay_out(
        training.merges,
        tokenizer.special_tokens,
        tokenizer.normalization == "nfc",
        tokenizer.pattern,
    )

    found_counts = {"trained_on_words": training.words} if least > 1 else {}
    found_counts |= {"entries": len(vocabulary.ids), "merges": found, "tokens": training.tokens}
    return vocabulary, found_counts


def _warn_of_marks(share: float) -> None:
    """Say it where many of the words begin with a combining mark."""
    if share > MANY_MARKS:
        log.warn(
            f"{share:.0%} of the words that were counted begin with a combining mark: GPT-2's"
            " pattern ends a word before each, and no vocabulary can put them together;"
            " tokenizer.pattern: unicode keeps marks with their letters"
        )


def _check_memory(sums: CountSummary, least: int) -> None:
    """Raises UserError if training on the words that occur at least `least` times takes more memory
    than is free."""
    from robustly.tokenizer.merges import memory_needed

    words, symbols = sums.kept(least)
    needed, free = memory_needed(words, symbols), available_memory()
    each = needed // max(words, 1)
    log.say(
        f"training on {words:,} distinct words: at most {needed / 2**20:,.0f} MiB of memory, {each}"
        " bytes a word"
    )
    if needed <= free:
        return

    hint = "raise tokenizer.min_word_count"
    for times in range(least + 1, RARE + 2):
        if memory_needed(*sums.kept(times)) <= free:
            hint = f"tokenizer.min_word_count: {times} leaves {sums.kept(times)[0]:,}"
            break

    raise UserError(
        f"training on {words:,} distinct words takes about {needed / 2**30:.1f} GiB, and"
        f" {free / 2**30:.1f} GiB of memory are free; {hint}, or take a machine with more. What was"
        " counted is kept"
    )


# ------------------------------------------------------------------------------------------- trying


def _sample(cut: Sequence[Partition], corpus: CorpusConfig) -> Iterator[str]:
    """The beginnings of the first documents of some partitions, evenly spaced."""
    cut = at_hand(cut)
    for partition in cut[:: -(-len(cut) // SAMPLE_PARTITIONS) or 1]:
        for text in islice(documents(partition, corpus, []), SAMPLE_DOCUMENTS):
            yield text[:SAMPLE_CHARACTERS]


def _try_out(tokenizer: Tokenizer, reference: Reference, texts: Iterable[str]) -> None:
    """Raises UserError unless our tokenizer and `tokenizers` give the same ids, which stand for the
    exact text."""
    # the names of control tokens are text to ours alone
    for text in chain(*map(_CONTROL_TOKENS.split, texts)):
        ids = tokenizer.encode_documents([text])[0]
        cut = tokenizer.added_tokens.cut(text)
        exact = "".join(piece if isinstance(piece, str) else piece.content for piece in cut)
        if (
            ids.tolist() != reference.encode(text, add_special_tokens=False).ids
            or tokenizer.decode(ids) != exact
        ):
            raise UserError(
                f"tiktoken and tokenizers encode a text of the corpus differently: {text[:200]!r};"
                " install the versions that pyproject.toml names and run the stage again"
            )


def _try_tokens(tokenizer: Tokenizer, reference: Reference) -> None:
    """Raises UserError if a merge of an imported vocabulary makes a token that the two engines find
    differently.

    tiktoken merges any neighbours that make a token, `tokenizers` only the pairs that are listed:
    the same for merges that were trained, and not for every list that can be written down."""
    for left, right in tokenizer.vocabulary.merges:
        raw = tokenizer.decode_bytes([tokenizer.vocabulary.ids[left + right]])
        try:
            text = raw.decode()
        except UnicodeDecodeError:  # some bytes of a character are no text of their own
            continue

        ids = reference.encode(text, add_special_tokens=False).ids
        if ids != tokenizer.encode_documents([text])[0].tolist():
            raise UserError(
                "tokenizer.import: the merges are not in an order in which training finds them:"
                f" {text!r} becomes {ids} pair by pair, and other ids by rank; such a vocabulary"
                " cannot be encoded fast"
            )
