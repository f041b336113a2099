"""The tokenizer stage: count the words of the corpus, train the merges, save the files, try them on
the text.

Counts may come from elsewhere instead (`corpus.counts`), and so may the whole vocabulary
(`tokenizer.import`)."""

import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer as Reference

from robustly import UserError, log, machine, manifest
from robustly.config import fingerprint
from robustly.corpus import decisions
from robustly.corpus.config import CorpusConfig, CountFiles, Processing
from robustly.corpus.documents import documents
from robustly.corpus.files import Hashes, hashes
from robustly.corpus.partitions import Partition, partitions
from robustly.files import WORK_LOCK, lock, sha256
from robustly.manifest import Manifest, Stage
from robustly.tokenizer import load
from robustly.tokenizer.config import TokenizerConfig
from robustly.tokenizer.counting import RARE, SUMS, Sums, count
from robustly.tokenizer.counts import read_counts, watched
from robustly.tokenizer.importing import files_of, read_imported
from robustly.tokenizer.tokenizer import Tokenizer
from robustly.tokenizer.vocabulary import Vocabulary, fast_tokenizer, lay_out, save

SAMPLE_PARTS = 16
SAMPLE_DOCUMENTS = 16  # of each part
SAMPLE_CHARACTERS = 4096  # of each document


def stage(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    folder: Path,
    beside: Path,
    cleaned: Path | None = None,
) -> Stage:
    """What the tokenizer in `folder` depends on. Raises UserError if that cannot be read.

    `cleaned`: folder of the clean stage, for a page that has one.
    """
    if tokenizer.imported is not None:
        files = {path.name: sha256(path) for path in files_of(tokenizer.imported, beside)}
        return Stage(
            folder, "tokenizer", {"tokenizer": tokenizer.recipe()}, {"import": fingerprint(files)}
        )

    return _trained(corpus, tokenizer, folder, beside, cleaned)[0]


def _trained(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    folder: Path,
    beside: Path,
    cleaned: Path | None,
) -> tuple[Stage, Hashes]:
    earlier = manifest.read(folder)
    remembered = earlier.notes.get("files", {}) if earlier else {}
    recipe = {"tokenizer": tokenizer.recipe()}
    if corpus.counts:
        if tokenizer.count_by != "document":
            raise UserError(
                f"tokenizer.count_by = {tokenizer.count_by}: corpus.counts are counted already;"
                " remove either"
            )

        contents = hashes(CountFiles.of(corpus), beside, remembered)
        return Stage(folder, "tokenizer", recipe, {"counts": contents.corpus}), contents

    contents = hashes(corpus.training, beside, remembered)
    inputs = {"corpus": contents.corpus}
    if cleaned:
        whole = hashes(corpus, beside, {**remembered, **contents.files})
        inputs["clean"] = decisions.require(cleaned, whole.corpus).hash

    return Stage(folder, "tokenizer", {**recipe, "corpus": corpus.reading()}, inputs), contents


def build(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    folder: Path,
    beside: Path,
    processing: Processing,
    cleaned: Path | None = None,
) -> Manifest:
    """Make the tokenizer of a page in `folder`; does nothing where that is done. Returns the
    manifest.

    `beside` is the folder of the page, where relative paths start; `processing` changes no byte.
    `cleaned` is the folder of the clean stage, whose verdicts say which documents there are; None
    takes all of them. The counts of words lie in `folder/work` until all is done, one file for each
    part of the corpus: after a kill, only the rest is counted, and another vocabulary size uses
    them again. Their sums stay, as `counts.tsv.zst`.

    Raises UserError if the corpus, the counts or the import cannot be read or used; if the corpus
    is empty, or too small for `tokenizer.vocab_size`; if training needs more memory than there is;
    if the clean stage is not finished."""
    if tokenizer.imported is not None:
        return _take_over(corpus, tokenizer, folder, beside)

    made, contents = _trained(corpus, tokenizer, folder, beside, cleaned)
    if finished := made.finished():
        return finished

    # Counts depend on the text alone, and the stage begins when merges are found: a fault of the
    # corpus or of the vocabulary's size must not leave a folder that refuses the mended page.
    counting = {
        "reading": corpus.reading(),
        "by": tokenizer.count_by,
        "normalization": tokenizer.normalization,
    }
    work = (
        folder
        / "work"
        / fingerprint({"text": made.inputs, **({} if corpus.counts else counting)})[:16]
    )

    with lock(folder, WORK_LOCK):
        if finished := made.finished():  # by another process, while this one waited
            return finished

        work.mkdir(parents=True, exist_ok=True)
        text = _training_parts(corpus, beside, cleaned)
        tally, sums = count(corpus, tokenizer, text, beside, work, processing)
        vocabulary, counts = _train(work / SUMS, sums, tokenizer)

        with made.begin():
            outputs = save(vocabulary, folder)
            _try_out(
                load(folder),
                Reference.from_file(str(folder / "tokenizer.json")),
                _sample(text, corpus),
            )
            (work / SUMS).replace(folder / SUMS)
            found: dict[str, float] = {**tally, "distinct_words": sums.words, **counts}
            # of the words that were trained on, which are all words unless rare ones were left out
            if tokenizer.min_word_count == 1:
                found["bytes_per_token"] = round(tally["bytes"] / counts["tokens"], 4)

            result = made.finish([*outputs, folder / SUMS], found, notes={"files": contents.files})

        shutil.rmtree(folder / "work", ignore_errors=True)

    return result


def _take_over(
    corpus: CorpusConfig, tokenizer: TokenizerConfig, folder: Path, beside: Path
) -> Manifest:
    """The stage with a vocabulary that exists."""
    assert tokenizer.imported is not None
    if corpus.counts:
        raise UserError(
            "tokenizer.import takes a vocabulary as it is, and corpus.counts train one; remove"
            " either"
        )

    made = stage(corpus, tokenizer, folder, beside)
    if finished := made.finished():
        return finished

    vocabulary = read_imported(tokenizer.imported, beside)
    if (found := len(vocabulary.ids)) != tokenizer.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size = {tokenizer.vocab_size}, but the vocabulary of tokenizer.import"
            f" has {found:,} entries; set tokenizer.vocab_size: {found}"
        )

    try:
        sample = list(_sample(_training_parts(corpus, beside, None), corpus))
    except UserError as fault:  # the text is no part of an import, and may be elsewhere
        log.warn(f"the vocabulary is not tried on the corpus: {fault}")
        sample = []

    # All faults are found before the stage begins, for the reason that `build` gives.
    encoder, reference = Tokenizer(vocabulary), fast_tokenizer(vocabulary)
    _try_tokens(encoder, reference)
    _try_out(encoder, reference, sample)

    with made.begin():
        outputs = save(vocabulary, folder)
        return made.finish(
            outputs, {"entries": found, "merges": len(vocabulary.merges)}, notes={"files": {}}
        )


def _training_parts(corpus: CorpusConfig, beside: Path, cleaned: Path | None) -> list[Partition]:
    """The parts of the corpus without the sources that are held out."""
    pieces = partitions(corpus, beside)
    pieces = decisions.attach(pieces, cleaned) if cleaned else pieces
    return [part for part in pieces if not corpus.sources[part.source].held_out]


# ----------------------------------------------------------------------------------------- training


def _train(file: Path, sums: Sums, tokenizer: TokenizerConfig) -> tuple[Vocabulary, dict[str, int]]:
    """The vocabulary, and counts of it. Raises UserError if memory or the corpus do not suffice."""
    # numba: half a second and 100 MB that the workers need not have
    from robustly.tokenizer.merges import (
        memory,
        train,
    )

    least = tokenizer.min_word_count
    words, symbols = sums.kept(least)
    needed, free = memory(words, symbols), machine.available_memory()
    each = needed // max(words, 1)
    log.say(
        f"training on {words:,} distinct words: at most {needed / 2**20:,.0f} MiB of memory, {each}"
        " bytes a word"
    )
    if free is not None and needed > free:
        fits = (times for times in range(least + 1, RARE + 2) if memory(*sums.kept(times)) <= free)
        hint = next(
            (f"tokenizer.min_word_count: {times} leaves {sums.kept(times)[0]:,}" for times in fits),
            "",
        )
        raise UserError(
            f"training on {words:,} distinct words takes about {needed / 2**30:.1f} GiB, and"
            f" {free / 2**30:.1f} GiB of memory are free;"
            f" {hint or 'raise tokenizer.min_word_count'}, or take a machine with more. What was"
            " counted is kept"
        )

    wanted = tokenizer.vocab_size - tokenizer.fixed_entries
    rows = watched("reading counts", read_counts(file), sums.words)
    counts = ((word, number) for word, number in rows if number >= least)
    training = train(counts, wanted, tokenizer.min_frequency, tokenizer.max_token_length)
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
                " tokenizer.accept_fewer: true, or add text"
            )

        log.warn(f"{message}; taken as tokenizer.accept_fewer says")

    vocabulary = lay_out(
        training.merges, tokenizer.special_tokens, tokenizer.normalization == "nfc"
    )

    return vocabulary, {
        **({"trained_on_words": training.words} if least > 1 else {}),
        "entries": len(vocabulary.ids),
        "merges": found,
        "tokens": training.tokens,
    }


# ------------------------------------------------------------------------------------------- trying


def _sample(pieces: Sequence[Partition], corpus: CorpusConfig) -> Iterator[str]:
    """The beginnings of some documents from all over the corpus."""
    for part in pieces[:: -(-len(pieces) // SAMPLE_PARTS) or 1]:
        for document in islice(documents(part, corpus, []), SAMPLE_DOCUMENTS):
            yield document.text[:SAMPLE_CHARACTERS]


def _try_out(encoder: Tokenizer, reference: Reference, texts: Iterable[str]) -> None:
    """Raises UserError unless our encoder and `tokenizers` give the same ids, which stand for the
    exact text."""
    reference.encode_special_tokens = True  # a special token's name in a text is text
    for text in texts:
        ids = encoder.encode_documents([text])[0]
        exact = unicodedata.normalize("NFC", text) if encoder.vocabulary.nfc else text
        if (
            ids.tolist() != reference.encode(text, add_special_tokens=False).ids
            or encoder.decode(ids) != exact
        ):
            raise UserError(
                f"tiktoken and tokenizers encode a text of the corpus differently: {text[:200]!r}; "
                "install the versions that pyproject.toml names and run the stage again"
            )


def _try_tokens(encoder: Tokenizer, reference: Reference) -> None:
    """Raises UserError if a merge of an imported vocabulary makes a token that the two engines find
    differently.

    tiktoken merges any neighbours that make a token, `tokenizers` only the pairs that are listed:
    the same for merges that were trained, and not for every list that can be written down."""
    reference.encode_special_tokens = True
    for left, right in encoder.vocabulary.merges:
        piece = encoder.decode_bytes([encoder.vocabulary.ids[left + right]])
        try:
            text = piece.decode()
        except UnicodeDecodeError:  # a part of a character is no text of its own
            continue

        ids = reference.encode(text, add_special_tokens=False).ids
        if ids != encoder.encode_documents([text])[0].tolist():
            raise UserError(
                "tokenizer.import: the merges are not in an order in which training finds them:"
                f" {text!r} becomes {ids} pair by pair, and other ids by rank; such a vocabulary"
                " cannot be encoded fast"
            )
