"""The mixin for `transformers.Trainer`: a step learns the same however it is cut, and as a loop by hand does."""

import pytest
import torch
from hf_training import LENGTHS, MtpTrainer, arguments, collate, documents, llama, trained, trained_on_rank, trainer
from transformers import Trainer

from ranks import on_ranks
from wmtp_core import UserError, dense_cross_entropy, mtp_targets
from wmtp_models import MtpForCausalLM, Objective

H = 3


def close(ours, theirs):
    return all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5) for name in theirs)


@pytest.mark.parametrize("rule", ["uniform", "random", "rho1"])
def test_accumulation_changes_nothing(rule, tmp_path):
    whole, logged = trained(tmp_path, 4, 1, rule)
    for rows, accumulation in ((2, 2), (1, 4)):
        parts, same = trained(tmp_path, rows, accumulation, rule)
        assert close(parts, whole)
        assert len(same) == len(logged) == 3  # two steps and the end
        for ours, theirs in zip(same[:2], logged[:2], strict=True):
            for name in ("loss", "ce/head_0", "ce/head_2", "selected_ratio/head_1"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    assert (logged[0]["selected_ratio/head_1"] == 1) == (rule == "uniform")
    untouched = dict(MtpForCausalLM.wrap(llama(), H).named_parameters())
    assert not any(torch.allclose(weight, untouched[name]) for name, weight in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["uniform", "rho1"])
def test_processes_change_nothing(rule, tmp_path):
    whole, logged = trained(tmp_path, 4, 1, rule)
    for parts, same in on_ranks(tmp_path, 2, trained_on_rank, str(tmp_path), 1, 2, rule):
        assert close(parts, whole)
        for name in ("loss", "ce/head_0", "ce/head_2", "selected_ratio/head_1"):
            assert same[0][name] == pytest.approx(logged[0][name], rel=1e-5), name


def test_a_step_is_that_of_a_loop_by_hand(tmp_path):
    """Row by row without padding, from all logits at once; gradients and logs."""
    own = trainer(tmp_path, 8, 1, max_steps=1)
    own.train()
    policy = MtpForCausalLM.wrap(llama(), H)
    sums, counts = torch.zeros(H), torch.zeros(H)
    for row in documents():
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        targets, valid = mtp_targets(labels, H)
        sums = sums + dense_cross_entropy(policy.head_logits(ids), targets).sum(dim=(0, 1))
        counts += valid.sum(dim=(0, 1))
    assert counts[0] == sum(LENGTHS) - len(LENGTHS) - 2 * 4 + 1  # two labels a prompt, but one of a document of two
    loss = (sums / counts).sum() / H
    loss.backward()
    with torch.no_grad():
        for weight in policy.parameters():
            weight -= 0.5 * weight.grad
    assert close(dict(own.model.named_parameters()), dict(policy.named_parameters()))
    logged = own.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for h in range(H):
        assert logged[f"ce/head_{h}"] == pytest.approx((sums / counts)[h].item(), rel=1e-5)


def test_heads_may_learn_what_head_0_says(tmp_path):
    """The objective is the policy's; the logs go on to have cross-entropies."""
    own, plain = trainer(tmp_path, 4, 2, max_steps=1), trainer(tmp_path, 4, 2, max_steps=1)
    own.model.objective = Objective("forward-kl")
    own.train()
    plain.train()
    ours, theirs = own.state.log_history[0], plain.state.log_history[0]
    for h in range(H):
        assert ours[f"ce/head_{h}"] == pytest.approx(theirs[f"ce/head_{h}"], rel=1e-5)
    assert theirs["loss"] == pytest.approx(sum(theirs[f"ce/head_{h}"] for h in range(H)) / H, rel=1e-5)
    assert ours["loss"] < theirs["loss"]
    assert not close(dict(own.model.named_parameters()), dict(plain.model.named_parameters()))


def test_evaluation_has_the_heads_and_does_not_disturb_training(tmp_path):
    own = trainer(tmp_path, 4, 1)
    before = own.evaluate()
    again = trainer(tmp_path, 4, 1, per_device_eval_batch_size=3).evaluate()
    for h in range(H):
        assert before[f"eval_ce/head_{h}"] == pytest.approx(again[f"eval_ce/head_{h}"], rel=1e-5)
    _, plain = trained(tmp_path, 4, 1)
    evaluated = trainer(tmp_path, 4, 1, eval_strategy="steps", eval_steps=1, logging_steps=2)
    evaluated.train()
    logged = next(entry for entry in evaluated.state.log_history if "ce/head_1" in entry)
    tokens = [8 * step["ce/head_1"] for step in plain[:2]]
    assert min(tokens) < 8 * logged["ce/head_1"] < max(tokens)  # of both steps, and of no evaluation
    assert evaluated.evaluate()["eval_ce/head_1"] != pytest.approx(before["eval_ce/head_1"], rel=1e-3)


def test_metrics_are_computed_of_losses(tmp_path):
    own = trainer(tmp_path, 4, 1)
    own.compute_metrics = lambda found: {
        "mean": (found.predictions[0] * found.predictions[1]).sum() / found.predictions[1].sum()
    }
    own.args.per_device_eval_batch_size = 8
    metrics = own.evaluate()
    assert 2 < metrics["eval_mean"] < 5


def test_what_it_saves_loads_and_resumes(tmp_path):
    whole, _ = trained(tmp_path / "whole", 4, 1)
    half = trainer(tmp_path / "run", 4, 1, max_steps=1, save_strategy="steps", save_steps=1)
    half.train()
    resumed = trainer(tmp_path / "run", 4, 1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))
    assert close(dict(resumed.model.named_parameters()), whole)
    resumed.save_model(str(tmp_path / "model"))
    loaded = MtpForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(1, 9).view(1, -1)
    assert torch.equal(loaded(ids).ce, resumed.model.eval()(ids).ce)


def test_mixed_precision_and_checkpointing_learn_the_same(tmp_path):
    _, logged = trained(tmp_path, 4, 1)
    own = trainer(tmp_path, 4, 1, bf16=True, activation_checkpointing=True)
    own.train()
    assert own.state.log_history[1]["loss"] == pytest.approx(logged[1]["loss"], rel=0.02)
    assert all(weight.isfinite().all() for weight in own.model.parameters())


def test_what_does_not_go_together_is_refused(tmp_path, monkeypatch):
    options = (arguments(tmp_path, 1, 1), collate, documents())
    with pytest.raises(UserError, match="wrap it with MtpForCausalLM"):
        MtpTrainer(llama(), *options)
    with pytest.raises(UserError, match="remove_value_head"):
        MtpTrainer(MtpForCausalLM.wrap(llama(), H, value_head=True), *options)
    policy = MtpForCausalLM.wrap(llama(), H)
    with pytest.raises(UserError, match="compute_loss_func: the loss is"):
        MtpTrainer(policy, *options, compute_loss_func=lambda *_: 0)
    with pytest.raises(UserError, match="label_smoothing_factor: the loss is"):
        MtpTrainer(policy, arguments(tmp_path, 1, 1, label_smoothing_factor=0.1), *options[1:])
    with monkeypatch.context() as several:
        several.setattr(type(options[0]), "n_gpu", 2)
        with pytest.raises(UserError, match="one process sees 2 GPUs"):
            MtpTrainer(policy, *options)
    monkeypatch.setattr(Trainer, "get_sp_size", lambda _: 2)
    with pytest.raises(UserError, match="processes share rows"):
        MtpTrainer(policy, *options)
    monkeypatch.delattr(Trainer, "loss_is_scaled_for_ga")
    with pytest.raises(UserError, match=r"take 5\.23"):
        MtpTrainer(policy, *options)
