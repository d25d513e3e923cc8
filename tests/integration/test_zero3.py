"""ZeRO-3 over two ranks is exact: the gradients of the fused loss, and a reference that lives or scores in parts."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from ranks import free_ports
from wmtp_core import mtp_targets
from wmtp_models import ReferenceModel, build_policy, load_tokenizer
from wmtp_train.algorithms import TRAINERS
from wmtp_train.data import scoring
from wmtp_train.data.batch import PackedRows
from wmtp_train.data.loading import TRAIN, data_spec, load_sources, tokenizer_from_settings
from wmtp_train.data.scores import load_scores
from wmtp_train.settings.schema import Settings

pytestmark = pytest.mark.slow
RANKS = Path(__file__).with_name("zero3_ranks.py")
TIED = {"tied": True, "untied": False}
HEAD_KINDS = ("layer", "sequential")
STAGES = (0, 1, 2, 3)
MICRO_BATCH = 2
ALWAYS_WHOLE = 100_000  # DeepSpeed gathers a parameter of no more elements once, and keeps it


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_home, tiny_llama):
    """References with matrices that are too large to be kept whole, and DeepSpeed's configurations."""
    folder = tmp_path_factory.mktemp("zero3")
    tokenizer = load_tokenizer(tiny_home / "tokenizer")
    wide = {**tiny_llama, "hidden_size": 384, "intermediate_size": 320, "initializer_range": 0.05}
    for name, tied in TIED.items():
        torch.manual_seed(1)
        config = LlamaConfig(**{**wide, "tie_word_embeddings": tied}, vocab_size=len(tokenizer))
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    def write(name, zero, **batch):
        config = {"zero_optimization": zero, "gradient_clipping": 0.0, **batch}
        (folder / name).write_text(json.dumps(config))

    for stage in STAGES:
        write(f"stage{stage}.json", {"stage": stage}, train_micro_batch_size_per_gpu=MICRO_BATCH)
        none_kept_whole = {"stage": stage, "stage3_param_persistence_threshold": 0}
        write(f"gradients{stage}.json", none_kept_whole, gradient_accumulation_steps=2)
    limits = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
    write("freed.json", {"stage": 3, **{f"stage3_{limit}": 0 for limit in limits}})
    return folder


@pytest.fixture(scope="module")
def settings(folder, tiny_home, tiny_llama):
    def make(output="run", stage=1, reference="tied", dtype="float32", sharded=True):
        return Settings(
            algo="rho1-wmtp",
            steps=4,
            deepspeed_config=folder / f"stage{stage}.json",
            output_dir=folder / output,
            data={
                "train": [str(tiny_home / "train.jsonl")],
                "tokenizer": str(tiny_home / "tokenizer"),
                "sequence_length": 32,
                "cache_dir": tiny_home / "cache",
            },
            model={"config": tiny_llama, "horizon": 3},
            reference={"source": str(folder / reference), "dtype": dtype, "sharded": sharded},
        )

    return make


@pytest.fixture(scope="module")
def prepared(processes, settings):
    spec = data_spec(settings(), tokenizer_from_settings(settings()))
    return load_sources(spec, processes)[TRAIN].prepared


@pytest.fixture(scope="module")
def job(settings, prepared, tiny_llama):
    draw = torch.Generator().manual_seed(0)

    def micro_batch(good_hint):
        weights = (torch.rand(2, 12, 3, generator=draw) - 0.5).clamp(min=0)
        hinted = weights if good_hint else torch.rand(2, 12, 3, generator=draw)
        return torch.randint(64, (2, 12), generator=draw), weights, hinted

    packed_rows = PackedRows(prepared)
    return {
        "trunks": {
            name: {**tiny_llama, "initializer_range": 0.2, "tie_word_embeddings": tied} for name, tied in TIED.items()
        },
        "head_kinds": HEAD_KINDS,
        "micro_batches": [[micro_batch(True), micro_batch(False)] for _ in range(2)],
        # DeepSpeed learns the order of a forward in the first two, and fetches ahead from the third on.
        "batches": [[packed_rows[[8 * rank + 2 * n, 8 * rank + 2 * n + 1]] for n in range(4)] for rank in range(2)],
        "references": {
            (name, dtype): settings(reference=name, dtype=dtype)
            for name, dtype in product(TIED, ("float32", "bfloat16"))
        },
        "training": {
            (stage, sharded): settings(f"run{stage}-{sharded}", stage, sharded=sharded)
            for stage, sharded in product(STAGES, (False, True))
        },
        "scoring": settings(),
        # Three shards: rank 0 has two of them. The kill comes in the middle of its second.
        "shards": (-(-len(prepared.rows) // 3), MICRO_BATCH, len(prepared.rows) // 3 // MICRO_BATCH + 3),
    }


@pytest.fixture(scope="module")
def found(folder, job):
    """What each of the two ranks found."""
    torch.save(job, folder / "job.pt")
    (port,) = free_ports(1)
    # As many threads as here: their number may change the last bit of a product.
    common = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    common |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, RANKS, folder],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=200)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(text[-3000:] for text in said)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def test_what_the_heads_gathered_is_freed_until_the_backward(found):
    for rank in found:
        assert len(rank["freed"]) >= 3 * 7  # the trunk's last layer and two copies of it
        assert [name for name, freed in rank["freed"].items() if not freed] == []


def dense_gradients(trunk, head_kind, micro_batches):
    """The mean over micro-batches, from all logits, by autograd."""
    policy = build_policy(trunk, 64, 3, head_kind=head_kind)
    for input_ids, weights, _ in micro_batches:
        targets, valid = mtp_targets(input_ids, 3)
        ce = -policy.head_logits(input_ids).log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        ((ce * weights)[valid].sum() / len(micro_batches)).backward()
    return {name: parameter.grad for name, parameter in policy.named_parameters()}


@pytest.mark.parametrize("head_kind", HEAD_KINDS)
@pytest.mark.parametrize("name", TIED)
def test_gradients_of_the_fused_loss_are_those_of_stage_0(job, found, name, head_kind):
    expected = dense_gradients(job["trunks"][name], head_kind, job["micro_batches"][0] + job["micro_batches"][1])
    for rank in found:
        whole, sharded = (rank["gradients"][name, head_kind, stage] for stage in (0, 3))
        assert sharded.keys() == whole.keys() == expected.keys()
        for parameter, gradient in expected.items():
            scale = gradient.abs().max()
            assert scale > 1e-3
            assert (whole[parameter] - gradient).abs().max() < 1e-5 * scale, parameter
            assert (sharded[parameter] - whole[parameter]).abs().max() < 1e-6 * scale, parameter


@pytest.mark.parametrize("head_kind", HEAD_KINDS)
def test_checkpointed_layers_gather_their_weights_again(found, head_kind):
    for rank in found:
        plain, checkpointed = rank["gradients"]["untied", head_kind, 3], rank["checkpointed"][head_kind]
        assert checkpointed.keys() == plain.keys()
        assert [name for name in plain if not torch.equal(checkpointed[name], plain[name])] == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TIED)
def test_a_sharded_reference_gives_the_losses_of_a_whole_one(found, name, dtype):
    for rank in found:
        reference = rank["losses"][name, dtype]
        for whole, sharded in zip(reference["losses"][False], reference["losses"][True], strict=True):
            assert torch.equal(sharded, whole)
            assert whole.unique().numel() > whole.numel() / 2
        assert (reference["training"], reference["requires_grad"]) == (False, False)
        assert reference["dtypes"] == {getattr(torch, dtype)}


@pytest.mark.parametrize("name", TIED)
def test_each_rank_keeps_its_part_of_the_memory(found, name):
    kept = [rank["losses"][name, "float32"]["kept"] for rank in found]
    assert kept[0] == kept[1]
    for numel, part, between in kept[0]:
        assert part == numel // 2
        assert between == (0 if numel > ALWAYS_WHOLE else numel)
    assert sum(numel for numel, _, between in kept[0] if between == 0) > 0.99 * sum(numel for numel, _, _ in kept[0])


@pytest.mark.parametrize("stage", STAGES)
def test_training_beside_a_sharded_reference_is_that_beside_a_whole_one(folder, job, found, stage):
    for rank in found:
        whole, sharded = (rank["training"][stage, sharded] for sharded in (False, True))
        assert len(whole) == len(sharded) >= 4
        for ours, theirs in zip(sharded, whole, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert_same_model(job["training"][stage, True].output_dir, job["training"][stage, False].output_dir)


@pytest.mark.parametrize("stage", STAGES)
def test_a_group_of_one_process_trains_so_too(processes, settings, stage):
    runs = [settings(f"alone{stage}-{sharded}", stage, sharded=sharded) for sharded in (False, True)]
    for run in runs:
        TRAINERS[run.algo](run, processes).train()
    assert_same_model(*(run.output_dir for run in runs))


def assert_same_model(one, other):
    ours, theirs = (load_file(folder / "model/model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_two_ranks_score_to_the_bit_what_one_process_does_with_a_whole_reference(
    processes, folder, job, prepared, found, monkeypatch
):
    shard_rows, micro_batch, killed_at = job["shards"]
    monkeypatch.setattr(scoring, "SHARD_ROWS", shard_rows)
    reference = ReferenceModel.load(folder / "tied")
    rows = []

    def token_losses(batch):
        rows.append(batch.row_ids.tolist())
        return reference.token_losses(batch.input_ids, batch.position_ids, batch.document_ids)

    scoring.ScoringJob(prepared, token_losses, folder / "scores-of-one", "it", processes, micro_batch).run()
    alone, together = (load_scores(folder / name, prepared)[:]["reference_ce"] for name in ("scores-of-one", "scores"))
    assert together == alone

    # After the kill rank 0 owes its second shard once more and rank 1 nothing: it takes part with rows of no meaning.
    (first0, second0), (first1, second1) = (rank["scores"] for rank in found)
    assert len(first0) == len(first1) == killed_at
    assert len(second0) == len(second1)
    third_shard = [batch for batch in rows if batch[0] >= 2 * shard_rows]
    assert second0 == third_shard
    assert all(batch == [0] * micro_batch for batch in second1)
