"""Between two log intervals the host never waits for the device, but where DeepSpeed itself does."""

import pytest
from counted_steps import count_waits

from ranks import on_ranks
from wmtp_models import weights_fingerprint
from wmtp_train.data.loading import data_spec, load_sources, tokenizer_from_settings
from wmtp_train.data.scoring import ScoringJob
from wmtp_train.step import Step

_STAGE3 = "deepspeed/runtime/zero/stage3.py DeepSpeedZeroOptimizer_Stage3."
_UTILS = "deepspeed/runtime/utils.py "
STAGE1_BF16 = {
    f"{_UTILS}mask_nan_or_inf_with_val_inplace tensor": 1,
    f"{_UTILS}is_invalid_grad_norm _local_scalar_dense": 1,
    f"{_UTILS}clip_tensors_by_global_norm _local_scalar_dense": 1,
}
STAGE3 = {
    f"{_STAGE3}get_grad_norm_direct tensor": 2,  # one for each group of parameters
    f"{_UTILS}is_invalid_grad_norm _local_scalar_dense": 1,
    f"{_STAGE3}independent_gradient_partition_epilogue synchronize": 2,  # one for each of two micro-batches
}
BACK_PRESSURE = {
    "deepspeed/runtime/zero/partitioned_param_coordinator.py "
    "PartitionedParameterCoordinator._fetch_sub_module_impl event",
    f"{_STAGE3}__reduce_and_partition_ipg_grads event",
}
"""For events of two gathers or reductions ago, so that memory suffices: the device has work meanwhile."""
_PARTITIONS = "deepspeed/runtime/zero/partition_parameters.py "
ALONE = {f"{_PARTITIONS}NoGatherHandle.wait synchronize", f"{_PARTITIONS}NoGatherCoalescedHandle.wait synchronize"}
"""One process of ZeRO-3 waits whenever it fetches parameters, in buckets of `stage3_prefetch_bucket_size`."""

BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
TWO_MICRO_BATCHES = {"train_batch_size": 4, "gradient_accumulation_steps": 2}
RUN = {"steps": 5, "data": {"evaluate": {}}, "log_every": 100}


@pytest.fixture
def counted(processes, make_settings):
    def count(plain=True, **changes):
        return count_waits(processes, make_settings(**{**RUN, **changes}), plain)

    return count


@pytest.fixture
def scores(processes, make_settings, tiny_home, tmp_path):
    """A folder of reference losses beside the training rows."""
    settings = make_settings(**RUN)
    rows = load_sources(data_spec(settings, tokenizer_from_settings(settings)), processes)["train"].prepared
    fingerprint = weights_fingerprint(tiny_home / "reference")
    ScoringJob(rows, lambda batch: batch.labels / 100, tmp_path / "scores" / "train", fingerprint, processes, 4).run()
    return tmp_path / "scores"


def of_deepspeed(counts):
    return {place: count for place, count in counts.items() if place.startswith("deepspeed/")}


@pytest.mark.parametrize(
    ("algo", "normalize_by", "changes"),
    [
        ("mtp-baseline", "valid", {}),
        ("rho1-wmtp", "selected", {"selection": {"scope": "batch"}}),
        ("rho1-wmtp", "valid", {"selection": {"scope": "sequence", "from_head": 0}}),
        ("rho1-wmtp", "selected", {"selection": {"scope": "sequence"}}),
        ("critic-wmtp", "valid", {"critic": {"advantage": "delta", "transform": "softmax", "value_warmup_steps": 1}}),
        ("critic-wmtp", "selected", {"critic": {"advantage": "gae", "transform": "exp", "value_warmup_steps": 0}}),
        ("random", "selected", {"selection": {"scope": "sequence"}, "head_coefficients": 0.5}),
        ("softmax-excess", "valid", {}),
        ("labelled", "selected", {}),
        ("reach-wmtp", "valid", {}),
        ("rho1-wmtp", "valid", {"model": {"detach_heads": True, "head_kind": "sequential"}}),
    ],
)
def test_no_algorithm_waits(counted, algo, normalize_by, changes):
    assert not counted(algo=algo, normalize_by=normalize_by, **changes)


@pytest.mark.parametrize("detach", [False, True])
def test_a_distillation_asks_once_for_the_rows_that_its_hint_missed(counted, detach):
    counts = counted(algo="mtp-baseline", objective="distill", model={"detach_heads": detach})
    assert counts == {"wmtp_core/losses/logits_chunk.py ChunkedLogits.add_beyond _local_scalar_dense": 1}


def test_a_wait_would_be_seen(counted, monkeypatch):
    compute = Step.loss

    def loss(step, *args):
        found = compute(step, *args)
        float(found.total)
        return found

    monkeypatch.setattr(Step, "loss", loss)
    assert list(counted(algo="rho1-wmtp").values()) == [1]


def test_reference_losses_of_a_folder_are_not_waited_for(counted, scores):
    counts = counted(algo="rho1-wmtp", reference={"scores": scores, "source": None})
    assert not counts


@pytest.mark.parametrize(
    "model",
    [
        {"head_kind": "sequential"},
        {"head_kind": "sequential", "shared_module": False},
        {"head_kind": "mlp"},
        {"head_kind": "linear"},
        {"train": "heads"},
        {"train": "lora", "lora_rank": 2},
        {"gradient_checkpointing": True},
    ],
)
def test_no_kind_of_heads_waits(counted, model):
    assert not counted(algo="rho1-wmtp", model=model)


def test_routers_and_their_loss_do_not_wait(counted, tiny_llama):
    mixture = tiny_llama | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    assert not counted(algo="rho1-wmtp", model={"config": mixture | {"router_aux_loss_coef": 0.01}})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision", "clipping"),
    [(0, {}, 0.0), (0, {}, 1.0), (1, {}, 0.0), (1, {}, 1.0), (2, {}, 1.0), (2, BF16, 0.0), (2, BF16, 1.0)],
)
def test_nor_does_deepspeed_at_stages_0_to_2(counted, write_deepspeed, stage, precision, clipping):
    config = write_deepspeed(stage=stage, gradient_clipping=clipping, **precision, **TWO_MICRO_BATCHES)
    assert not counted(plain=False, algo="rho1-wmtp", deepspeed_config=config)


@pytest.mark.slow
def test_deepspeed_waits_for_the_norm_at_stage_1_in_bfloat16(counted, write_deepspeed):
    config = write_deepspeed(stage=1, gradient_clipping=1.0, **BF16, **TWO_MICRO_BATCHES)
    counts = counted(plain=False, algo="rho1-wmtp", deepspeed_config=config)
    assert of_deepspeed(counts) == counts == STAGE1_BF16


@pytest.fixture
def stage3(write_deepspeed):
    """A configuration in which also small parameters lie in parts, as large ones do."""
    zero = {"stage": 3, "reduce_bucket_size": 10**6, "stage3_param_persistence_threshold": 0}
    return write_deepspeed("stage3.json", zero_optimization=zero, gradient_clipping=1.0, **TWO_MICRO_BATCHES)


@pytest.mark.slow
def test_deepspeed_waits_at_stage_3(counted, stage3):
    counts = counted(plain=False, algo="rho1-wmtp", deepspeed_config=stage3)
    assert {place: count for place, count in counts.items() if place not in BACK_PRESSURE | ALONE} == STAGE3
    assert counts.keys() == STAGE3.keys() | BACK_PRESSURE | ALONE


@pytest.mark.slow
def test_other_ranks_make_no_difference(make_settings, write_deepspeed, stage3, tmp_path):
    stage2 = write_deepspeed(stage=2, gradient_clipping=1.0, **TWO_MICRO_BATCHES)
    for config, expected in ((stage2, {}), (stage3, STAGE3)):
        for counts in on_ranks(
            tmp_path, 2, count_waits, make_settings(**RUN, algo="rho1-wmtp", deepspeed_config=config)
        ):
            assert counts.keys() - BACK_PRESSURE == expected.keys()
            assert {place: counts[place] for place in expected} == expected


@pytest.mark.parametrize("algo", ["rho1-wmtp", "critic-wmtp"])
def test_a_log_copies_one_tensor_to_the_host(processes, make_settings, algo):
    counts = count_waits(processes, make_settings(**RUN, algo=algo), plain=True, log=True)
    assert counts == {"wmtp_train/metrics/accumulator.py MetricAccumulator._gather cpu": 1}
