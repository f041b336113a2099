"""The data stage on a Slurm cluster and on Ray: the same bytes as on this machine."""

import pytest
from slurm_cluster import cluster
from small_stores import VIEW, corpus, files_of, train_tokenizer, write_rows

from data_prep.prepare import prepare
from tokenizer import on_slurm
from tokenizer.config import Processing, Slurm

PROSE = [f"This is story {n}. It has {n} words (or so). “Few!” said he.\nThe end of it.\n" for n in range(200)]


@pytest.fixture
def processing(request, tmp_path, monkeypatch):
    if request.param == "ray":
        library = pytest.importorskip("ray", reason="Ray is not installed: pip install 'robustly[ray]'")
        yield Processing(2, executor="ray")
        assert not library.is_initialized()  # it was started for the stage alone
        return
    monkeypatch.setattr(on_slurm, "POLL", 0.2)
    with cluster(tmp_path / "cluster"):
        yield Processing(1, executor="slurm", slurm=Slurm(max_jobs=2))


@pytest.mark.parametrize("processing", ["slurm", "ray"], indirect=True)
def test_a_store_is_the_same_bytes(processing, tmp_path):
    trained = train_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        write_rows(tmp_path / f"corpus/{number}.jsonl", PROSE[number * 60 : number * 60 + 60])
    page = corpus(str(tmp_path / "corpus"), validation=0.1)
    made = [prepare(page, VIEW, tmp_path / how.executor, trained, tmp_path, how) for how in (Processing(1), processing)]
    assert files_of(tmp_path / "local") == files_of(tmp_path / processing.executor)
    assert made[0].outputs == made[1].outputs and made[0].hash == made[1].hash and made[0].counts == made[1].counts
