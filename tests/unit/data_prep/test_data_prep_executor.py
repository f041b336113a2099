"""The clean and the data stage on a Slurm cluster and on Ray: the same bytes as on this machine."""

import pytest
from slurm_cluster import cluster
from small_stores import VIEW, corpus, files_of, train_tokenizer, write_rows

from robustly.corpus import partitions as partitioning
from robustly.corpus.config import Processing, SlurmConfig
from robustly.corpus.executors import slurm as slurm_executor
from robustly.data_prep.cleaning.clean import CleanStage
from robustly.data_prep.cleaning.config import CleaningConfig
from robustly.data_prep.prepare import DataStage
from stated import stated

PROSE = [
    f"This is story {n}. It has {n} words (or so). “Few!” said he.\nThe end of it.\n"
    for n in range(200)
]


@pytest.fixture
def processing(request, tmp_path, monkeypatch):
    if request.param == "ray":
        library = pytest.importorskip(
            "ray", reason="Ray is not installed: pip install 'robustly[ray]'"
        )
        yield Processing(2, executor="ray")
        assert not library.is_initialized()  # it was started for the stage alone
        return

    monkeypatch.setattr(slurm_executor, "POLL", 0.2)
    with cluster(tmp_path / "cluster"):
        yield Processing(1, executor="slurm", slurm=SlurmConfig(max_jobs=2))


@pytest.mark.full
@pytest.mark.parametrize("processing", ["slurm", "ray"], indirect=True)
def test_decisions_and_store_are_the_same_bytes(processing, tmp_path, monkeypatch):
    trained = train_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        write_rows(
            tmp_path / f"corpus/{number}.jsonl",
            [*PROSE[number * 60 : number * 60 + 60], PROSE[7], "Short."],
        )

    monkeypatch.setattr(partitioning, "PARTITION_BYTES", 8_000)  # each file alone
    config = corpus(str(tmp_path / "corpus"), validation=0.1)
    rules = CleaningConfig(min_words=4, exact_duplicates=True)

    def made(how):
        folder = tmp_path / how.executor
        cleaned = CleanStage(
            stated(tmp_path, config), stated(tmp_path, rules), "en", folder / "clean", how
        ).make()
        return cleaned, DataStage(
            stated(tmp_path, config), VIEW, folder / "data", trained, how, folder / "clean"
        ).make()

    one, other = made(Processing(1)), made(processing)
    assert one[0].counts["kept_documents"] == 180 and one[0].counts["documents"] == 186
    assert files_of(tmp_path / "local/data") == files_of(tmp_path / processing.executor / "data")

    for here, there in zip(one, other, strict=True):
        assert (
            here.outputs == there.outputs
            and here.hash == there.hash
            and here.counts == there.counts
        )
