import json

import pytest
import torch

from wmtp_core import LabelledWeighting, RandomWeighting, SoftmaxExcessWeighting, UniformWarmup

CONTROLS = ["random", "softmax-excess", "labelled"]


def test_each_wires_its_rule(processes, make_trainer):
    group = processes.data_parallel
    selection = {"k_percent": 0.3, "scope": "sequence", "warmup_steps": 7, "from_head": 0}
    wired = {name: make_trainer(name, algo=name, seed=5, selection=selection) for name in CONTROLS}
    assert {name: trainer.loop.run.step.weighting.weighting for name, trainer in wired.items()} == {
        "random": UniformWarmup(RandomWeighting(0.3, "sequence", seed=5, group=group, from_head=0), 7),
        "softmax-excess": SoftmaxExcessWeighting(),
        "labelled": LabelledWeighting(group),
    }
    assert [name for name, trainer in wired.items() if trainer.loop.run.step.reference is not None] == [
        "softmax-excess"
    ]


@pytest.mark.parametrize("algo", CONTROLS)
def test_each_trains(make_trainer, algo):
    trainer = make_trainer(algo=algo, steps=15)
    before = trainer.loop.run.evaluate(trainer.loop.number)["held_out/ce/head_0"]
    assert trainer.train()["held_out/ce/head_0"] < before - 0.3


def test_random_keeps_as_much_as_rho1_but_not_the_same(make_trainer):
    kept = {}
    for algo in ("random", "rho1-wmtp"):
        trainer = make_trainer(algo, algo=algo, steps=1, data={"evaluate": {}})
        trainer.train()
        kept[algo] = trainer.loop.run.step.weighting.seen[0][1]
    assert torch.equal(kept["random"].sum(dim=(0, 1)), kept["rho1-wmtp"].sum(dim=(0, 1)))
    assert not torch.equal(kept["random"], kept["rho1-wmtp"])


def test_labelled_keeps_exactly_what_the_corpus_calls_clean(make_trainer):
    metrics = make_trainer(algo="labelled", steps=1).train()
    assert metrics["held_out/noise/precision"] == metrics["held_out/noise/recall"] == 1
    assert metrics["held_out/noise/kept/hex"] == metrics["held_out/noise/kept/shuffled"] == 0


def test_held_out_text_without_labels_is_clean_to_labelled(make_trainer, tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("def a(x): return x\n" * 30)
    metrics = make_trainer(algo="labelled", steps=1, data={"evaluate": {"plain": [str(plain)]}}).train()
    assert metrics["plain/ce/head_1"] > 0
    passage = json.loads((tmp_path / "run/passages.json").read_text())["plain"]
    assert {weight for weights in passage["weights"] for weight in weights} == {1.0, None}
