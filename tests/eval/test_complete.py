import torch

from wmtp_eval.complete import complete
from wmtp_models import Sampling, encode_prompt

PROMPTS = ["def f(", "return", "a", "x: x\n"]


def plain_texts(policy, tokenizer, tokens):
    """What transformers makes of each prompt alone."""
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        row = policy.unwrap().generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
        )[0, ids.shape[1] :]  # fmt: skip
        texts.append(tokenizer.decode(row, skip_special_tokens=True))
    return texts


def test_texts_are_those_of_the_plain_model_up_to_their_first_stop(policy, tokenizer):
    plain = plain_texts(policy, tokenizer, 20)
    prompts = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    assert complete(policy, tokenizer, prompts, 20, [], None, batch_size=3) == plain
    late, early = plain[1][8:10], plain[1][5:7]
    stopped = complete(policy, tokenizer, prompts, 20, [late, early], None, batch_size=3)
    assert stopped[1] == plain[1][: plain[1].index(early)] != plain[1]
    assert all(text == whole[: len(text)] and late not in text for text, whole in zip(stopped, plain, strict=True))


def test_every_batch_is_drawn_anew_and_the_seed_fixes_all(policy, tokenizer):
    prompts = [encode_prompt(tokenizer, "def f(")] * 4

    def draw(seed):
        return complete(policy, tokenizer, prompts, 12, [], Sampling(seed=seed), batch_size=2)

    assert draw(0) == draw(0) != draw(1)
    assert len(set(draw(0))) == 4
