import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from wmtp_core import UserError
from wmtp_models import ReferenceModel, weights_fingerprint
from wmtp_train.data import inputs, score
from wmtp_train.data.inputs import load_inputs
from wmtp_train.data.packed import prepared


@pytest.fixture
def scored(processes, make_settings, tmp_path):
    """Settings whose every set is scored by the reference."""
    settings = make_settings(reference={"scores": tmp_path / "scores"})
    reference = ReferenceModel.load(settings.reference.source)
    fingerprint = weights_fingerprint(settings.reference.source)
    for name, data in load_inputs(settings, with_scores=False).sets().items():

        def losses(batch):
            return reference.token_losses(batch.input_ids, batch.position_ids, batch.document_ids)

        score(data.prepared, losses, tmp_path / "scores" / name, fingerprint, 0, 1, 4)
    return settings


def changed(settings, section, **changes):
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=changes)})


def test_every_set_is_opened_under_its_name(processes, make_settings):
    inputs = load_inputs(make_settings(), with_scores=False)
    assert list(inputs.sets()) == ["train", "held_out"]
    assert inputs.sets()["train"] is inputs.train
    assert inputs.train.prepared.sequence_length == 32
    assert inputs.train.prepared.kinds == ["hex", "shuffled"]
    assert inputs.train.prepared.has_rewards
    assert not inputs.train.prepared.has_pairs
    assert inputs.train.prepared.documents == 60
    assert inputs.evaluate["held_out"].prepared.documents == 12
    assert {data.scores for data in inputs.sets().values()} == {None}


def test_the_tokenizer_may_be_the_models_own(processes, make_settings, tiny_home):
    own = load_inputs(
        make_settings(data={"tokenizer": None}, model={"source": str(tiny_home / "reference"), "config": None}), False
    )
    given = load_inputs(make_settings(), with_scores=False)
    assert own.train.prepared.fingerprint == given.train.prepared.fingerprint


def test_scores_lie_beside_their_rows(scored):
    for data in load_inputs(scored, with_scores=True).sets().values():
        assert len(data.scores) == len(data.prepared.rows) > 0
        assert data.fingerprint.keys() == {*data.prepared.fingerprint, "reference", "dtype", "computed_in"}
    without = load_inputs(scored, with_scores=False).train
    assert without.scores is None
    assert without.fingerprint == without.prepared.fingerprint


def test_scores_of_another_corpus_are_refused(scored, tiny_home, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text((tiny_home / "train.jsonl").read_text() + '{"text": "one more"}\n')
    with pytest.raises(UserError, match=r"scores .*/train: they were made with another corpus .*score again"):
        load_inputs(changed(scored, "data", train=[str(other)]), with_scores=True)


def test_scores_of_another_packing_are_refused(scored):
    with pytest.raises(UserError, match="they were made with another packing"):
        load_inputs(changed(scored, "data", sequence_length=16), with_scores=True)


def test_scores_of_another_reference_are_refused(scored, tmp_path, tiny_home):
    other = shutil.copytree(tiny_home / "reference", tmp_path / "other")
    reference = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        next(reference.parameters())[0] += 1
    reference.save_pretrained(other)
    with pytest.raises(UserError, match="they were made with another reference"):
        load_inputs(changed(scored, "reference", source=str(other)), with_scores=True)


def test_scores_need_no_reference_to_be_used(scored):
    assert load_inputs(changed(scored, "reference", source=None), with_scores=True).train.scores is not None


def test_missing_scores_say_how_to_make_them(processes, make_settings, tmp_path):
    with pytest.raises(UserError, match=r"absent/.*: no such folder: .*launch/score\.py"):
        load_inputs(make_settings(reference={"scores": tmp_path / "absent"}), with_scores=True)


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
def test_what_cannot_be_read_is_refused(processes, make_settings, data, problem):
    with pytest.raises(UserError, match=problem):
        load_inputs(make_settings(data=data), with_scores=False)


def test_the_corpus_is_read_by_rank_0_alone_where_the_others_see_what_it_prepared(
    processes, make_settings, monkeypatch, tmp_path
):
    settings = make_settings(data={"evaluate": {}})
    known = load_inputs(settings, with_scores=False).train.prepared
    monkeypatch.setattr(inputs.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(inputs, "broadcast_object", lambda _mine: known.fingerprint)
    reads = []
    read = prepared._corpus_fingerprint
    monkeypatch.setattr(prepared, "_corpus_fingerprint", lambda paths: reads.append(paths) or read(paths))
    assert load_inputs(settings, with_scores=False).train.prepared.path == known.path
    assert reads == []
    elsewhere = changed(settings, "data", cache_dir=tmp_path / "cache")  # a node with a disk of its own
    assert load_inputs(elsewhere, with_scores=False).train.prepared.fingerprint == known.fingerprint
    assert len(reads) == 1
