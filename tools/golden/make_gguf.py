"""Writes gguf/blocks.safetensors, gguf/llama.gguf, gguf/qwen2.gguf and their goldens (run make_corpus.py first).

blocks.safetensors: for every type F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K
  raw.TYPE U8 [rows, bytes], values.TYPE F32 [rows, elements]: random blocks, and the values that PyPI gguf's dequantize gives;
      rows 0 to 3 have usual scales, row 4 the largest finite and negative ones, row 5 subnormal ones and zeros
  input.TYPE F32 [4, 64], quantised.TYPE U8: gguf's quantize, for the types it can write
  All are exact, bit for bit.
llama.gguf: Q/K rows permuted as converters do for llama, another type for nearly every matrix, output separate,
  GPT-2 style BPE with pre = smollm inside. qwen2.gguf: no permutation, q/k/v biases, output tied, pre = qwen2.
NAME.golden.safetensors: ids.N, logits.N (computed in float64 on the dequantised weights), weight.PATH: some weights as
  transformers reads them, under Hugging Face names and with rows in Hugging Face order.
NAME.golden.json: config that transformers derives from the file; texts and ids of the tokenizer inside.
"""
import json
import unicodedata
import warnings

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from common import arguments, double_model, float64, provenance, random_rows, randomise, round_up, save_records, save_tensors, worst
from make_tokenizers import QWEN2_SPLIT

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# byte offsets of the fp16 fields of a block
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
ROWS, SEED = 6, 700
EXTREME = np.array([65504, -65504, 40000, -1, 2048.5, -0.000061], np.float16)
SMALL = np.array([6e-8, -6e-8, 0.0, -0.0, 3.1e-5, 6.1e-5], np.float16)


def raw_blocks(name, rng):
    if name in ("F32", "F16", "BF16"):
        x = (rng.standard_normal((ROWS, 64)) * 0.1).astype(np.float32)
        x[4, :6], x[5, :6] = EXTREME, SMALL
        if name == "F32":
            x[4, 6:10], x[5, 6:10] = [3.4e38, -3.4e38, 1e38, 7], [1e-45, -1e-40, 1.2e-38, 0]
        return gguf.quants.quantize(x, Q[name]).view(np.uint8).reshape(ROWS, -1)
    elements, size = gguf.GGML_QUANT_SIZES[Q[name]]
    blocks = 2 if elements == 256 else 3
    raw = rng.integers(0, 256, (ROWS, blocks, size), dtype=np.uint8)
    for at in SCALES[name]:
        scales = (rng.standard_normal((ROWS, blocks)) * 0.02).astype(np.float16)
        scales[4], scales[5] = rng.choice(EXTREME, blocks), rng.choice(SMALL, blocks)
        raw[:, :, at:at + 2] = scales[..., None].view(np.uint8)
    return raw.reshape(ROWS, -1)


def blocks(out):
    rng, tensors = np.random.default_rng(SEED), {}
    for name in TYPES:
        raw = raw_blocks(name, rng)
        typed = raw.view({"F32": np.float32, "F16": np.float16}.get(name, np.uint8))
        values = gguf.quants.dequantize(typed, Q[name]).astype(np.float32)
        assert np.isfinite(values).all() and values.shape[0] == ROWS, name
        tensors[f"raw.{name}"], tensors[f"values.{name}"] = torch.from_numpy(raw), torch.from_numpy(values)
        try:
            x = (rng.standard_normal((4, 64)) * np.array([[1], [1e-3], [300], [0]])).astype(np.float32)
            packed = gguf.quants.quantize(x, Q[name]).view(np.uint8).reshape(4, -1)
            tensors[f"input.{name}"], tensors[f"quantised.{name}"] = torch.from_numpy(x), torch.from_numpy(packed)
        except (NotImplementedError, gguf.quants.QuantError):
            pass
    save_tensors(out / "blocks.safetensors", tensors, provenance(__file__, SEED, "exact, bit for bit"))
    print("blocks", [f"{k} {tuple(v.shape)}" for k, v in tensors.items() if k.startswith("raw")], "quantised", [k for k in tensors if k.startswith("quantised")])


LLAMA = LlamaConfig(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    rms_norm_eps=1e-5, max_position_embeddings=256, bos_token_id=0, eos_token_id=2, tie_word_embeddings=False)
QWEN2 = Qwen2Config(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    rms_norm_eps=1e-6, max_position_embeddings=256, bos_token_id=0, eos_token_id=2, tie_word_embeddings=True,
                    rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
TYPE_OF = {"llama": {"token_embd": "Q8_0", "output": "F16", "attn_q": "Q8_0", "attn_k": "Q4_0", "attn_v": "F16", "attn_output": "Q5_1",
                     "ffn_gate": "Q4_1", "ffn_up": "Q5_0", "ffn_down": "BF16"},
           "qwen2": {"token_embd": "F16", "attn_q": "Q8_0", "attn_k": "Q8_0", "attn_v": "Q8_0", "attn_output": "F16",
                     "ffn_gate": "Q4_1", "ffn_up": "Q8_0", "ffn_down": "F32"}}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def permute(w, heads):
    """Permutes rows: pairs (i, i + d/2) of a head, which Hugging Face rotates together, become neighbours (2i, 2i + 1)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def tokenizer(corpus, pre):
    """Returns a byte-level BPE of 320 tokens, three control tokens first, with its vocabulary and merges."""
    t = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)] if pre == "smollm" else \
        [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    t.pre_tokenizer = pre_tokenizers.Sequence(split)
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=320, show_progress=False, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(t.to_str())["model"]
    return t, [w for w, _ in sorted(model["vocab"].items(), key=lambda x: x[1])], [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]


def write(path, arch, config, state, tokens, merges, pre):
    w = gguf.GGUFWriter(str(path), arch)
    w.add_name(f"tiny-{arch}")
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_rope_freq_base(config.rope_parameters["rope_theta"])
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    if arch == "llama":
        w.add_vocab_size(config.vocab_size)
        w.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL if i < 3 else gguf.TokenType.NORMAL for i in range(len(tokens))])
    w.add_token_merges(merges)
    w.add_bos_token_id(0)
    w.add_eos_token_id(2)
    w.add_pad_token_id(0)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)
    for key, value in state.items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, kind = key.rsplit(".", 1)
        layer = ""
        if module.startswith("model.layers."):
            _, _, n, module = module.split(".", 3)
            layer = f"blk.{n}."
        name, x = NAMES[module], value.numpy()
        if arch == "llama" and name in ("attn_q", "attn_k"):
            x = permute(x, config.num_attention_heads if name == "attn_q" else config.num_key_value_heads)
        qtype = Q.F32 if x.ndim == 1 else Q[TYPE_OF[arch][name]]
        w.add_tensor(f"{layer}{name}.{kind}", gguf.quants.quantize(np.ascontiguousarray(x), qtype), raw_dtype=qtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def model(out, arch, config, pre, seed):
    warnings.simplefilter("ignore")
    corpus = [json.loads(x) for x in (out.parent / "tokenizer" / "corpus.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    tok, tokens, merges = tokenizer(corpus, pre)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(made, seed)
    made.tie_weights()
    path = out / f"{arch}.gguf"
    write(path, arch, config, made.state_dict(), tokens, merges, pre)

    read = AutoModelForCausalLM.from_pretrained(out, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").eval()
    state = read.state_dict()
    drift = max((state[k] - v).abs().max().item() / v.abs().max().item() for k, v in made.state_dict().items())
    assert drift < 0.2, drift  # quantisation moves weights a little; a wrong permutation would move them a lot
    clean = type(config)(**{**config.to_dict(), "tie_word_embeddings": read.config.tie_word_embeddings})
    with float64(check=False):
        truth = double_model(type(read), clean, state).eval()
    rows = random_rows([24, 7], config.vocab_size, seed)
    with torch.no_grad():
        logits = [read(input_ids=r[None]).logits[0] for r in rows]
        with float64():
            logits64 = [truth(input_ids=r[None]).logits[0] for r in rows]
    observed = {"logits": worst(zip(logits, logits64))}
    prov = provenance(__file__, seed, {"logits": max(2e-6, round_up(10 * observed["logits"])), "weight": "exact"},
                      measure="max|a-b|/max|b| of each tensor", float32_error=observed)
    shown = [k for k in state if k.startswith("model.layers.0.self_attn.") and k[25] in "qk"]
    save_tensors(out / f"{arch}.golden.safetensors", {f"ids.{i}": r for i, r in enumerate(rows)} | {f"logits.{i}": v.to(torch.float32) for i, v in enumerate(logits64)} |
                 {f"weight.{k}": state[k] for k in shown}, prov)
    lines = [s for s in corpus if 0 < len(s) < 80 and unicodedata.normalize("NFC", s) == s][::4]
    derived = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version")}
    save_records(out / f"{arch}.golden.json", {"provenance": prov, "config": derived, "chat_template": TEMPLATE, "pre": pre},
                 [{"text": s, "ids": tok.encode(s).ids} for s in lines], "tokenizer")
    print(arch, path.stat().st_size, "weights moved by", round(drift, 3), "max logit", round(max(x.abs().max().item() for x in logits64), 2), observed,
          "tied", read.config.tie_word_embeddings)


def main():
    out = arguments(__doc__).out.resolve() / "gguf"
    out.mkdir(parents=True, exist_ok=True)
    blocks(out)
    model(out, "llama", LLAMA, "smollm", SEED + 1)
    model(out, "qwen2", QWEN2, "qwen2", SEED + 2)


if __name__ == "__main__":
    main()
