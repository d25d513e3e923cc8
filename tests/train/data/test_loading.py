import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from wmtp_core import UserError
from wmtp_models import ReferenceModel, weights_fingerprint
from wmtp_train.data.loading import data_spec, load_sources, tokenizer_from_settings, with_scores
from wmtp_train.data.packed import prepared
from wmtp_train.data.scoring import ScoringJob
from wmtp_train.ranks.mesh import Mesh


@pytest.fixture
def load(processes):
    """The sources of settings, with their scores where they name some."""

    def run(settings, mesh=processes):
        return with_scores(load_sources(data_spec(settings, tokenizer_from_settings(settings)), mesh), settings, mesh)

    return run


@pytest.fixture
def scored(processes, make_settings, tmp_path):
    """Settings whose every set is scored by the reference."""
    settings = make_settings(reference={"scores": tmp_path / "scores"})
    reference = ReferenceModel.load(settings.reference.source)
    fingerprint = weights_fingerprint(settings.reference.source)
    spec = data_spec(settings, tokenizer_from_settings(settings))
    for name, data in load_sources(spec, processes).items():

        def losses(batch):
            return reference.token_losses(batch.input_ids, batch.position_ids, batch.document_ids)

        ScoringJob(data.prepared, losses, tmp_path / "scores" / name, fingerprint, processes, 4).run()
    return settings


def changed(settings, section, **changes):
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=changes)})


def test_every_set_is_opened_under_its_name(load, make_settings):
    sources = load(make_settings())
    assert list(sources) == ["train", "held_out"]
    assert sources["train"].sequence_length == 32
    contents = sources["train"].contents
    assert contents.label_names == ("hex", "shuffled")
    assert (contents.rewards, contents.pairs, contents.scores) == (True, False, False)
    assert sources["train"].prepared.documents == 60
    assert sources["held_out"].prepared.documents == 12


def test_the_tokenizer_may_be_the_models_own(load, make_settings, tiny_home):
    own = load(make_settings(data={"tokenizer": None}, model={"source": str(tiny_home / "reference"), "config": None}))
    assert own["train"].fingerprint == load(make_settings())["train"].fingerprint


def test_scores_lie_beside_their_rows(load, scored):
    for data in load(scored).values():
        assert data.contents.scores
        assert len(data.scores) == len(data.prepared.rows) > 0
        assert data.fingerprint.keys() == {*data.prepared.fingerprint, "reference", "dtype", "computed_in"}
    without = load(changed(scored, "reference", scores=None))["train"]
    assert without.scores is None
    assert without.fingerprint == without.prepared.fingerprint


def test_scores_of_another_corpus_are_refused(load, scored, tiny_home, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text((tiny_home / "train.jsonl").read_text() + '{"text": "one more"}\n')
    with pytest.raises(UserError, match=r"scores .*/train: they were made with another corpus .*score again"):
        load(changed(scored, "data", train=[str(other)]))


def test_scores_of_another_packing_are_refused(load, scored):
    with pytest.raises(UserError, match="they were made with another packing"):
        load(changed(scored, "data", sequence_length=16))


def test_scores_of_another_reference_are_refused(load, scored, tmp_path, tiny_home):
    other = shutil.copytree(tiny_home / "reference", tmp_path / "other")
    reference = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        next(reference.parameters())[0] += 1
    reference.save_pretrained(other)
    with pytest.raises(UserError, match="they were made with another reference"):
        load(changed(scored, "reference", source=str(other)))


def test_scores_need_no_reference_to_be_used(load, scored):
    assert load(changed(scored, "reference", source=None))["train"].scores is not None


def test_missing_scores_say_how_to_make_them(load, make_settings, tmp_path):
    with pytest.raises(UserError, match=r"absent/.*: no such folder: .*wmtp score"):
        load(make_settings(reference={"scores": tmp_path / "absent"}))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"tokenizer": None}, r"data\.tokenizer is not set"),
        ({"train": []}, r"data\.train names no file"),
        ({"evaluate": {"train": ["x.txt"]}}, r'data\.evaluate has a set called "train"'),
        ({"tokenizer": "/absent"}, "no folder /absent"),
        ({"train": ["/absent.jsonl"]}, r"corpus /absent\.jsonl: there is no such file"),
    ],
)
def test_what_cannot_be_read_is_refused(load, make_settings, data, problem):
    with pytest.raises(UserError, match=problem):
        load(make_settings(data=data))


class SecondRank(Mesh):
    """Rank 1 of two whose rank 0 has prepared the data."""

    def broadcast_object(self, value):
        return self.found_by_rank0


def test_the_corpus_is_read_by_rank_0_alone_where_the_others_see_what_it_prepared(
    processes, load, make_settings, monkeypatch, tmp_path
):
    settings = make_settings(data={"evaluate": {}})
    known = load(settings)["train"].prepared
    second = SecondRank(**{**vars(processes), "rank": 1})
    object.__setattr__(second, "found_by_rank0", {"train": known.fingerprint})
    reads = []
    read = prepared._corpus_fingerprint
    monkeypatch.setattr(prepared, "_corpus_fingerprint", lambda *how: reads.append(how) or read(*how))
    assert load(settings, second)["train"].prepared.path == known.path
    assert reads == []
    elsewhere = changed(settings, "data", cache_dir=tmp_path / "cache")  # a node with a disk of its own
    assert load(elsewhere, second)["train"].fingerprint == known.fingerprint
    assert len(reads) == 1
