"""A model's own answers: token by token what it says, whoever is killed and however many share the work."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from ranks import on_ranks
from wmtp_core import UserError
from wmtp_models import build_policy, load_causal_lm, load_tokenizer
from wmtp_train.answering import open_answers
from wmtp_train.data.loading import data_spec, load_sources, tokenizer_from_settings

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
OPTIONS = {
    "max_new_tokens": 12, "batch": 3, "text_tokens": 4, "chat_template": None, "temperature": None, "top_k": None,
    "top_p": None, "seed": 0, "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_home, tiny_llama, tmp_path_factory):
    """A plain model of random weights, large enough that its text is no single token; half of its texts end."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_home / "tokenizer")
    tokenizer.chat_template = TEMPLATE
    policy = build_policy({**tiny_llama, "initializer_range": 0.3, "tie_word_embeddings": False}, len(tokenizer), 1)
    with torch.no_grad():
        policy.trunk.weight[tokenizer.eos_token_id] *= 4
    policy.unwrap().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"def {name}" * (1 + place % 3)}]}
        for place, name in enumerate("abcdefg")
    ]
    rows[3]["messages"].append({"role": "assistant", "content": "whatever stands here"})
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(mesh, model, prompts, output, **changes):
    job = open_answers(mesh, model=str(model), data=[str(prompts)], output=Path(output), **{**OPTIONS, **changes})
    decoding = job.run()
    rows = [json.loads(line) for line in Path(output).read_text().splitlines()]
    assert decoding.tokens == sum(label != -100 for row in rows for label in row["labels"])
    return rows


def brute_force(model, prompt, new):
    """The most probable next token, one after the other, each by a forward of its own."""
    causal_lm, tokens = load_causal_lm(model).eval(), list(prompt)
    eos = load_tokenizer(model).eos_token_id
    for _ in range(new):
        with torch.no_grad():
            tokens.append(int(causal_lm(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == eos:
            break
    return tokens


def test_answers_are_the_models_own_tokens(processes, model, prompts, tmp_path):
    rows = answer(processes, model, prompts, tmp_path / "answers.jsonl")
    tokenizer = load_tokenizer(model)
    asked = [json.loads(line)["messages"][0]["content"] for line in prompts.read_text().splitlines()]
    ended = []
    for question, row in zip(asked, rows, strict=True):
        prompt = tokenizer(f"<user>{question}{tokenizer.eos_token}<assistant>", add_special_tokens=False)["input_ids"]
        assert row["input_ids"] == brute_force(model, prompt, OPTIONS["max_new_tokens"])
        answered = row["input_ids"][len(prompt) :]
        assert row["labels"] == [-100] * len(prompt) + answered
        assert row["answer"] == tokenizer.decode(answered, skip_special_tokens=True)
        ended.append(answered[-1] == tokenizer.eos_token_id)
    assert 0 < sum(ended) < len(ended), "some answers end by themselves, and some are cut off"


def test_training_learns_these_tokens(processes, model, prompts, tmp_path, make_settings):
    output = tmp_path / "answers" / "answers.jsonl"
    rows = answer(processes, model, prompts, output)
    data = {"train": [str(output.parent)], "evaluate": {}, "sequence_length": 64, "packing": False}
    settings = make_settings(data={**data, "tokenizer": str(model), "cache_dir": tmp_path / "cache"})
    source = load_sources(data_spec(settings, tokenizer_from_settings(settings)), processes)["train"]
    (batch,) = source.held_out_batches(processes, len(rows), None)
    learned = sorted([t for t in labels if t != -100] for labels in batch.labels.tolist())
    assert learned == sorted([t for t in row["labels"] if t != -100] for row in rows)


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_kill_costs_a_batch_at_most(processes, model, prompts, tmp_path, killed_after):
    whole = answer(processes, model, prompts, tmp_path / "whole.jsonl", temperature=1.0)
    job = open_answers(
        processes, model=str(model), data=[str(prompts)], output=tmp_path / "a.jsonl", **{**OPTIONS, "temperature": 1.0}
    )
    decode, seen = job.decode, []

    def until_killed(batch, number):
        if len(seen) == killed_after:
            raise KeyboardInterrupt
        seen.append(number)
        return decode(batch, number)

    object.__setattr__(job, "decode", until_killed)
    with pytest.raises(KeyboardInterrupt):
        job.run()
    assert not (tmp_path / "a.jsonl").exists()
    job = open_answers(
        processes, model=str(model), data=[str(prompts)], output=tmp_path / "a.jsonl", **{**OPTIONS, "temperature": 1.0}
    )
    again, decode = [], job.decode
    object.__setattr__(job, "decode", lambda batch, number: (again.append(number), decode(batch, number))[1])
    job.run()
    assert sorted(seen + again) == [0, 1, 2]
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.jsonl", "a.jsonl.about", "prompts.jsonl", "whole.jsonl", "whole.jsonl.about",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_processes_write_the_same(processes, model, prompts, tmp_path):
    alone = answer(processes, model, prompts, tmp_path / "alone.jsonl")
    both = on_ranks(tmp_path, 2, answer, model, prompts, tmp_path / "both.jsonl")
    assert both[0] == alone


def test_heads_draft_the_same_answers(processes, model, prompts, tmp_path):
    tokenizer, plain = load_tokenizer(model), load_causal_lm(model)
    from wmtp_models import MtpForCausalLM

    MtpForCausalLM.wrap(plain, 3, head_kind="sequential").save_pretrained(tmp_path / "heads")
    tokenizer.save_pretrained(tmp_path / "heads")
    assert answer(processes, tmp_path / "heads", prompts, tmp_path / "b.jsonl") == answer(
        processes, model, prompts, tmp_path / "a.jsonl"
    )


def test_another_model_or_other_options_are_refused(processes, model, prompts, tmp_path):
    output = tmp_path / "a.jsonl"
    rows = answer(processes, model, prompts, output)
    assert answer(processes, model, prompts, output) == rows
    with pytest.raises(UserError, match=r"a.jsonl was made with max_new_tokens = 12, and now it is 5: name another"):
        answer(processes, model, prompts, output, max_new_tokens=5)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"output": "answers.txt"}, "name a file that ends in .jsonl"),
        ({"batch": 0}, "--max-new-tokens, --batch and --text-tokens are numbers of at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
    ],
)
def test_options_that_cannot_be(processes, model, prompts, tmp_path, changes, problem):
    with pytest.raises(UserError, match=problem):
        answer(processes, model, prompts, **{"output": tmp_path / "a.jsonl", **changes})
