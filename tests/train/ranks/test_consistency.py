import copy
from types import SimpleNamespace

import pytest
import torch

from wmtp_core import UserError
from wmtp_train.ranks.consistency import check_inputs_match, check_ranks_match, check_settings_match
from wmtp_train.ranks.mesh import Mesh

FACTS = {"settings": {"seed": 1, "data": {"train": ["a.jsonl"]}}, "version": {"torch": "2.9"}}


class ThreeRanks(Mesh):
    """Rank 0 of three that hold the same facts, but for what `change` makes of them on rank 2."""

    def all_gather_object(self, mine):
        if mine is None:  # a phase that failed nowhere
            return [None] * 3
        other = dict(mine)
        self.change(other)
        return [mine, mine, other]


@pytest.fixture
def ranks_hold(processes):
    def hold(change):
        mesh = ThreeRanks(**vars(processes))
        object.__setattr__(mesh, "change", change)
        return mesh

    return hold


def test_ranks_that_agree_go_on(ranks_hold):
    check_ranks_match(FACTS, ranks_hold(lambda other: None))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("settings.seed", 2, "settings.seed is 2 on rank 2 and 1 on rank 0; start every process with the same "),
        (
            "settings.data.train",
            ["b.jsonl"],
            r"settings.data.train is \['b.jsonl'\] on rank 2 and \['a.jsonl'\] on rank 0",
        ),
        ("version.torch", "2.10", "version.torch is '2.10' on rank 2 and '2.9' on rank 0"),
        ("settings.extra", True, "settings.extra is True on rank 2 and 'nothing' on rank 0"),
    ],
)
def test_a_difference_is_named_with_the_rank_and_both_values(ranks_hold, name, value, said):
    with pytest.raises(UserError, match=said):
        check_ranks_match(FACTS, ranks_hold(lambda other: other.update({name: value})))


def test_what_a_rank_lacks_is_a_difference(ranks_hold):
    mesh = ranks_hold(lambda other: other.pop("settings.seed"))
    with pytest.raises(UserError, match=r"settings\.seed is 'nothing' on rank 2 and 1 on rank 0"):
        check_ranks_match(FACTS, mesh)


@pytest.fixture
def facts_of(ranks_hold):
    """The facts that a check compares, by dotted name."""

    def facts(check, *arguments):
        found = {}
        check(*arguments, ranks_hold(found.update))
        return found

    return facts


def test_settings_are_compared_but_for_places_and_helpers(facts_of, make_settings, write_deepspeed, tmp_path):
    one = facts_of(check_settings_match, make_settings())
    elsewhere = {"cache_dir": tmp_path / "elsewhere", "workers": 3, "tokenise_processes": 2}
    same = make_settings(data=elsewhere, deepspeed_config=write_deepspeed("copy.json"), config=tmp_path / "copy.yaml")
    assert facts_of(check_settings_match, same) == one
    for change, name in [
        ({"seed": 5}, "settings.seed"),
        ({"data": {"sequence_length": 16}}, "settings.data.sequence_length"),
        ({"deepspeed_config": write_deepspeed("two.json", stage=2)}, "deepspeed_config.zero_optimization.stage"),
    ]:
        other = facts_of(check_settings_match, make_settings(**change))
        assert [key for key in one if one[key] != other[key]] == [name]
    assert one["version.torch"] == torch.__version__


def test_data_model_and_loaded_weights_are_compared(facts_of, make_settings):
    weights = torch.nn.Linear(3, 2)
    fingerprints = {"train": {"corpus": "c", "reference": "r"}}
    policy = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: {"horizon": 3}))

    def facts(reference, settings):
        return facts_of(check_inputs_match, fingerprints, settings, policy, reference)

    settings = make_settings()
    one = facts(weights, settings)
    assert one.keys() == {
        "data.train.fingerprint.corpus",
        "data.train.fingerprint.reference",
        "model.horizon",
        "weights.reference.weight",
        "weights.reference.bias",
    }
    assert facts(copy.deepcopy(weights), settings) == one
    with torch.no_grad():
        weights.weight[1, 2] = torch.nextafter(weights.weight[1, 2], torch.tensor(9.0))  # one bit
    other = facts(weights, settings)
    assert [name for name in one if one[name] != other[name]] == ["weights.reference.weight"]
    with torch.no_grad():
        weights.weight.copy_(weights.weight.flip(0))
    assert facts(weights, settings)["weights.reference.weight"] != other["weights.reference.weight"]
    half = copy.deepcopy(weights).bfloat16()
    assert "torch.bfloat16" in facts(half, settings)["weights.reference.bias"]
    sharded = make_settings(reference={"sharded": True})
    assert not [name for name in facts(weights, sharded) if name.startswith("weights")]
