"""Writes peft/CASE/ for every PEFT method that Graft supports in addition to plain LoRA (run make_models.py and make_families.py first):
adapter_config.json and adapter_model.safetensors as PEFT saves them, with random non-trivial weights, golden.json and golden.safetensors:

  ids.N [T] I64 (images: pixels.N), labels.N, task.N (multitask prompts)   rows; labels as in families/
  logits.N, loss []       with the adapter attached; prompt tuning and P-tuning have T virtual tokens before the row's own
                          logits, prefix tuning does not; loss of row 0
  merged.N                after merge_and_unload, only where that differs
  grad.KEY                gradient of the loss for every trainable tensor, KEY = its key in adapter_model.safetensors
  encoder.KEY, grad.encoder.KEY   weights that PEFT trains but does not save: MLP or LSTM of P-tuning, MLP of a projected prefix
  curve [20]              losses of 20 AdamW steps (lr 1e-2, no decay) over batches.KIND.jsonl, from the saved weights (PiSSA, OLoRA: from init)
  curve.summed [20]       tied LoRA: PEFT trains embedding and head as two parameters over one storage, each with its own gradient and Adam state
                          (`curve`); this is the curve of one parameter with the sum of both gradients
  init.A|B|base.PATH      PiSSA, OLoRA: A and B at the start and the residual base weight; only the product B A is unique.
                          Their adapter is the float32 one after the 20 steps, logits and gradients are at those weights on the
                          residual base; converted/ is the plain LoRA of rank 2r to which PEFT converts it, for the original base
  text [12] I64           prefix-text-*: the prefix is what PEFT's initialize_kv_prefix_from_past_key_values takes from this row
  init.NAME.KEY           multitask prompts: weights after PEFT's three ways to start from a source task, `source`
batches.KIND.jsonl: 30 steps of three ragged rows. The loss of a step is the sum over predicted tokens / their number (lm, tags) or the
mean over rows (class). Rows are computed alone; dropout is off.
golden.json: base, kind, trainable (PEFT's name -> KEY), keys, merged_minus_attached, adapter_effect, warnings, optimizer (where it is not
the usual one), as in lora/. base_model_name_or_path is relative to test/golden.
"""
import copy
import json
import os
import pathlib
import random
import tempfile
import warnings

import peft
import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from common import arguments, double_model, float64, provenance, random_rows, round_up, save_json, save_tensors, some_labels, worst

warnings.filterwarnings("ignore", category=FutureWarning)
STEPS = 30
LM, CLS, TAGS, QA = "CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"
ATTENTION = ["q_proj", "v_proj"]
lora = lambda **k: peft.LoraConfig(r=4, lora_alpha=8, **k)
prefix = lambda **k: peft.PrefixTuningConfig(num_virtual_tokens=5, **k)
prompt = lambda **k: peft.PromptTuningConfig(num_virtual_tokens=5, **k)
p_tuning = lambda **k: peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=12, **k)
lstm = lambda **k: p_tuning(encoder_reparameterization_type="LSTM", encoder_num_layers=2, **k)
multitask = lambda **k: peft.MultitaskPromptTuningConfig(num_virtual_tokens=4, num_tasks=3, num_ranks=2, prompt_tuning_init="RANDOM", **k)
# case: (base, task type, configuration)
CASES = {
    "prefix-llama3": ("models/llama3", LM, lambda: prefix()),
    "prefix-qwen2": ("models/qwen2", LM, lambda: prefix()),
    "prefix-gpt2": ("families/gpt2", LM, lambda: prefix()),
    "prefix-llama-seqcls": ("families/llama-seqcls", CLS, lambda: prefix()),
    "prefix-bert-seqcls": ("families/bert-seqcls", CLS, lambda: prefix()),
    "prefix-bert-tokcls": ("families/bert-tokcls", TAGS, lambda: prefix()),
    "prefix-roberta-seqcls": ("families/roberta-seqcls", CLS, lambda: prefix()),
    "prefix-projection-llama3": ("models/llama3", LM, lambda: prefix(prefix_projection=True, encoder_hidden_size=12)),
    "prefix-projection-bert-seqcls": ("families/bert-seqcls", CLS, lambda: prefix(prefix_projection=True, encoder_hidden_size=12)),
    "prompt-llama3": ("models/llama3", LM, lambda: prompt()),
    "prompt-qwen2": ("models/qwen2", LM, lambda: prompt()),
    "prompt-gpt2": ("families/gpt2", LM, lambda: prompt()),
    "prompt-llama-seqcls": ("families/llama-seqcls", CLS, lambda: prompt()),
    "prompt-bert-seqcls": ("families/bert-seqcls", CLS, lambda: prompt()),
    "prompt-bert-tokcls": ("families/bert-tokcls", TAGS, lambda: prompt()),
    "prompt-bert-qa": ("families/bert-qa", QA, lambda: prompt()),
    "prompt-roberta-seqcls": ("families/roberta-seqcls", CLS, lambda: prompt()),
    "prompt-distilbert-seqcls": ("families/distilbert-seqcls", CLS, lambda: prompt(token_dim=16, num_layers=2, num_attention_heads=2)),
    "multitask-llama3": ("models/llama3", LM, lambda: multitask()),
    "multitask-bert-seqcls": ("families/bert-seqcls", CLS, lambda: multitask()),
    "p-tuning-mlp-llama3": ("models/llama3", LM, lambda: p_tuning()),
    "p-tuning-mlp-gpt2": ("families/gpt2", LM, lambda: p_tuning()),
    "p-tuning-mlp-bert-seqcls": ("families/bert-seqcls", CLS, lambda: p_tuning()),
    "p-tuning-lstm-llama3": ("models/llama3", LM, lambda: lstm()),
    "p-tuning-lstm-bert-tokcls": ("families/bert-tokcls", TAGS, lambda: lstm()),
    "dora-llama3": ("models/llama3", LM, lambda: lora(use_dora=True, target_modules="all-linear")),
    "dora-qwen2": ("models/qwen2", LM, lambda: lora(use_dora=True, target_modules=["q_proj", "v_proj", "o_proj"])),
    "dora-gpt2": ("families/gpt2", LM, lambda: lora(use_dora=True, fan_in_fan_out=True, target_modules=["c_attn", "c_proj"])),
    "dora-bert-seqcls": ("families/bert-seqcls", CLS, lambda: lora(use_dora=True, target_modules=["query", "value"])),
    "dora-embed-llama2": ("models/llama2", LM, lambda: lora(use_dora=True, target_modules=["embed_tokens", "v_proj"])),
    "lora-gpt2": ("families/gpt2", LM, lambda: lora(fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"])),
    "rslora-gpt2": ("families/gpt2", LM, lambda: lora(use_rslora=True, fan_in_fan_out=True, target_modules=["c_attn"])),
    "lora-bias-llama3": ("models/llama3", LM, lambda: lora(lora_bias=True, target_modules=ATTENTION)),
    "lora-bias-qwen2": ("models/qwen2", LM, lambda: lora(lora_bias=True, target_modules=ATTENTION)),
    "lora-bert-seqcls": ("families/bert-seqcls", CLS, lambda: lora(target_modules=["query", "value"])),
    "lora-bert-tokcls": ("families/bert-tokcls", TAGS, lambda: lora(target_modules=["query", "key", "value", "dense"])),
    "lora-bert-qa": ("families/bert-qa", QA, lambda: lora(target_modules=["query", "value"])),
    "lora-roberta-seqcls": ("families/roberta-seqcls", CLS, lambda: lora(target_modules=["query", "value"])),
    "lora-distilbert-seqcls": ("families/distilbert-seqcls", CLS, lambda: lora(target_modules=["q_lin", "v_lin"])),
    "lora-llama-seqcls": ("families/llama-seqcls", CLS, lambda: lora(target_modules=ATTENTION)),
    "lora-llama-tokcls": ("families/llama-tokcls", TAGS, lambda: lora(target_modules=ATTENTION)),
    "lora-gpt2-seqcls": ("families/gpt2-seqcls", CLS, lambda: lora(fan_in_fan_out=True, target_modules=["c_attn"])),
    "lora-vit": ("families/vit", None, lambda: lora(target_modules=ATTENTION, modules_to_save=["classifier"])),
    "pissa-llama3": ("models/llama3", LM, lambda: lora(init_lora_weights="pissa", target_modules=["q_proj", "down_proj"])),
    "pissa-gpt2": ("families/gpt2", LM, lambda: lora(init_lora_weights="pissa", fan_in_fan_out=True, target_modules=["c_attn"])),
    "pissa-rslora-qwen2": ("models/qwen2", LM, lambda: lora(init_lora_weights="pissa", use_rslora=True, target_modules=["q_proj"])),
    "olora-llama3": ("models/llama3", LM, lambda: lora(init_lora_weights="olora", target_modules=["q_proj", "down_proj"])),
    "tokens-llama2": ("models/llama2", LM, lambda: lora(target_modules=ATTENTION, trainable_token_indices={"embed_tokens": [5, 9, 40, 77]})),
    "tokens-llama3-tied": ("models/llama3", LM, lambda: lora(target_modules=ATTENTION, trainable_token_indices=[5, 9, 40, 77])),
    "tokens-gpt2-tied": ("families/gpt2", LM, lambda: lora(fan_in_fan_out=True, target_modules=["c_attn"], trainable_token_indices={"wte": [5, 9, 40]})),
    "embed-gpt2-tied": ("families/gpt2", LM, lambda: lora(fan_in_fan_out=True, target_modules=["wte", "c_attn"])),
    "tying-embed-llama3": ("models/llama3", LM, lambda: lora(target_modules=["embed_tokens", "v_proj"], ensure_weight_tying=True)),
    "tying-head-llama3": ("models/llama3", LM, lambda: lora(target_modules=["lm_head", "v_proj"], ensure_weight_tying=True)),
    "tying-saved-llama3": ("models/llama3", LM, lambda: lora(target_modules=["v_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "saved-embed-llama3": ("models/llama3", LM, lambda: lora(target_modules=["v_proj"], modules_to_save=["embed_tokens"])),
    "loraplus-llama3": ("models/llama3", LM, lambda: lora(target_modules=["embed_tokens", "q_proj", "v_proj"])),
    "ia3-llama3": ("models/llama3", LM, lambda: peft.IA3Config()),
    "ia3-qwen2": ("models/qwen2", LM, lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ia3-gpt2": ("families/gpt2", LM, lambda: peft.IA3Config(fan_in_fan_out=True)),
    "ia3-bert-seqcls": ("families/bert-seqcls", CLS, lambda: peft.IA3Config()),
    "prefix-text-llama3": ("models/llama3", LM, lambda: prefix()),
    "prefix-text-qwen2": ("models/qwen2", LM, lambda: prefix()),
    "prefix-text-gpt2": ("families/gpt2", LM, lambda: prefix()),
    "lora-allbias-bert-seqcls": ("families/bert-seqcls", CLS, lambda: lora(target_modules=["query", "value"], bias="all")),
    "lora-allbias-gpt2": ("families/gpt2", LM, lambda: lora(fan_in_fan_out=True, target_modules=["c_attn"], bias="all")),
    "saved-head-distilbert-seqcls": ("families/distilbert-seqcls", CLS, lambda: lora(target_modules=["q_lin", "v_lin"], modules_to_save=["pre_classifier", "classifier"])),
    "tokens-head-llama2": ("models/llama2", LM, lambda: lora(target_modules=ATTENTION, trainable_token_indices={"embed_tokens": [5, 9], "lm_head": [40, 77, 9]})),
    "lora-deit-teacher": ("families/deit-teacher", None, lambda: lora(target_modules=ATTENTION, modules_to_save=["cls_classifier", "distillation_classifier"])),
}
KIND = {LM: "lm", CLS: "class", TAGS: "tags", QA: "span", None: "image"}
LENGTHS = [17, 4]
F32 = torch.float32  # its name means float64 inside float64()
VOCAB = 90  # these ids are valid for every base


def load(base):
    config = tf.AutoConfig.from_pretrained(base)
    cls = getattr(tf, config.architectures[0])
    return cls.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()


def make_batches(out):
    """Writes files of 30 steps of three ragged rows for the three kinds with curves."""
    batches = {}
    for kind in ("lm", "class", "tags"):
        rng = random.Random(1200)
        steps = []
        for _ in range(STEPS):
            rows = []
            for _ in range(3):
                n = rng.randint(4, 14)
                ids = [rng.randrange(3, VOCAB) for _ in range(n)]
                labels = {"lm": [-100] * (n // 2) + ids[n // 2:], "class": rng.randrange(3), "tags": [rng.choice([-100, 0, 1, 2, 3, 4]) for _ in ids[1:]] + [rng.randrange(5)]}[kind]
                rows.append({"ids": ids, "labels": labels})
            steps.append(rows)
        out.mkdir(parents=True, exist_ok=True)
        (out / f"batches.{kind}.jsonl").write_text("".join(json.dumps({"rows": s}, separators=(",", ":")) + "\n" for s in steps))
        batches[kind] = [[{"ids": torch.tensor(r["ids"]), "labels": torch.tensor(r["labels"])} for r in s] for s in steps]
    return batches


def make_rows(kind, config, seed):
    g = torch.Generator().manual_seed(seed)
    if kind == "image":
        shape = (config.num_channels, config.image_size, config.image_size)
        return [{"pixels": torch.randn(shape, generator=g), "labels": torch.randint(0, config.num_labels, (), generator=g)} for _ in range(2)]
    rows = [{"ids": r} for r in random_rows(LENGTHS, VOCAB, seed)]
    for r in rows:
        n = len(r["ids"])
        r["labels"] = {"lm": lambda: some_labels(r["ids"], seed), "class": lambda: torch.randint(0, 3, (), generator=g),
                       "tags": lambda: torch.randint(0, 5, (n,), generator=g).index_fill(0, torch.tensor([0, n // 2]), -100),
                       "span": lambda: torch.tensor([n // 3, n // 2])}[kind]()
    return rows


def forward(model, kind, row):
    """Returns PEFT's logits and loss of one row computed alone."""
    if kind == "image":
        x = row["pixels"].to(next(model.parameters()).dtype)
        if "Teacher" in type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__:  # has no loss in transformers
            logits = model(pixel_values=x[None]).logits
            return logits[0], torch.nn.functional.cross_entropy(logits, row["labels"][None])
        out = model(pixel_values=x[None], labels=row["labels"][None])
        return out.logits[0], out.loss
    extra = {"task_ids": row["task"][None]} if "task" in row else {}
    c = model.active_peft_config  # PEFT adds virtual tokens to the labels of lm only: for tags and answers the labels are wrong; corrected here
    shift = c.num_virtual_tokens if c.is_prompt_learning and c.peft_type != "PREFIX_TUNING" and kind in ("tags", "span") else 0
    if kind == "span":
        out = model(input_ids=row["ids"][None], start_positions=row["labels"][:1] + shift, end_positions=row["labels"][1:] + shift)
        return torch.stack([out.start_logits[0], out.end_logits[0]], -1), out.loss
    labels = torch.nn.functional.pad(row["labels"], (shift, 0), value=-100) if shift else row["labels"]
    out = model(input_ids=row["ids"][None], labels=labels[None], **extra)
    return out.logits[0], out.loss


def weights_of(kind, rows):
    counts = [((r["labels"][1:] if kind == "lm" else r["labels"]) != -100).sum().item() if kind in ("lm", "tags") else 1 for r in rows]
    return [c / sum(counts) for c in counts]


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)


def train(model, kind, steps, make_optimizer=adamw, before=None, after=None, keep=False):
    """Returns the losses of the steps. The weights are restored unless keep."""
    start = {k: v.clone() for k, v in model.state_dict().items()}
    opt = make_optimizer(model)
    losses = []
    for i, rows in enumerate(steps):
        opt.zero_grad()
        loss = sum(w * forward(model, kind, r)[1] for w, r in zip(weights_of(kind, rows), rows) if w)
        loss.backward()
        if before:
            before(model)
        opt.step()
        if after:
            after(i + 1)
        losses.append(loss.item())
    opt.zero_grad()
    if not keep:
        model.load_state_dict(start)
    return losses


def key_of(name, encoder):
    """Returns the key under which PEFT saves a parameter, or encoder.KEY where it does not."""
    if name.startswith("prompt_encoder.default."):
        rest = name.removeprefix("prompt_encoder.default.")
        return rest if rest.startswith("prefix_task") else "encoder." + rest if encoder else "prompt_embeddings"
    key = name.replace(".modules_to_save.default", "").replace(".default", "")
    return key.removesuffix(".weight") if "lora_magnitude_vector" in key else key


def fill(model, seed):
    """Fills in place, because PEFT's tied LoRA is two parameters over one storage."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        n = torch.randn(p.shape, generator=g)
        if "prompt_encoder" in name and ("embedding" in name or "prefix_task" in name):
            n = 0.5 * n
        elif "lora_B" in name and name.endswith("bias"):
            n = 0.1 * n
        elif "lora_B" in name:
            n = 0.05 * n
        elif "lora_embedding" in name:
            n = 0.2 * n
        elif "lora_A" in name:
            n = n / p.shape[1] ** 0.5
        elif "lora_magnitude" in name:
            n = p.data * (1 + 0.1 * n)
        elif "ia3" in name:
            n = 1 + 0.3 * n
        else:
            n = p.data + 0.1 * n
        p.data.copy_(n)


def tied_pairs(model):
    """Returns pairs (parameter of the embedding, that of the head, its transpose in the same storage), where PEFT ties LoRA."""
    ends = {n.rsplit(".lora_", 1)[1]: p for n, p in model.named_parameters() if "embed_tokens.lora_embedding" in n or "lm_head.lora" in n}
    return [(ends["embedding_B.default"], ends["A.default.weight"]), (ends["embedding_A.default"], ends["B.default.weight"])] if len(ends) == 4 else []


def sum_tied(model):
    for own, other in tied_pairs(model):
        own.grad, other.grad = own.grad + other.grad.T, None


def twin(base, config, model):
    """Returns the same PEFT model in float64. Weights are copied by name, including the base weights that an initialisation changed."""
    plain = load(base)
    config = copy.deepcopy(config)
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True
    with float64(check=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = get_peft_model(double_model(type(plain), plain.config, plain.state_dict()), config).double().eval()
        truth.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in model.state_dict().items()})
    for own, other in tied_pairs(truth):
        other.data = own.data.T
    return truth


def save(model, directory, **more):
    """Saves as PEFT does, with sets in a fixed order."""
    model.save_pretrained(directory, **more)
    (directory / "README.md").unlink(missing_ok=True)
    (directory / "adapter_model.safetensors").chmod(0o644)
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    for k in ("target_modules", "modules_to_save", "feedforward_modules"):
        if isinstance(config.get(k), list):
            config[k] = sorted(config[k])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def learned(model):
    """Returns the parameters that learn: with bias="all" PEFT also unfreezes biases of modules that a copy replaces."""
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad and ".original_module." not in n]


def evaluate(model, kind, rows, encoder):
    logits = []
    model.zero_grad()
    for i, row in enumerate(rows):
        y, l = forward(model, kind, row)
        if i == 0:
            l.backward()
            loss = l.detach()
        logits.append(y.detach())
    return logits, loss, {key_of(n, encoder): p.grad.clone() for n, p in learned(model)}


def loraplus(model):
    from peft.optimizers import create_loraplus_optimizer
    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=2e-3, loraplus_lr_ratio=8, loraplus_lr_embedding=1e-3)


def multitask_inits(source, base, config):
    """Returns the initial weights of PEFT with the adapter `source`."""
    out = {}
    for init, tasks in (("AVERAGE_SOURCE_TASKS", 1), ("EXACT_SOURCE_TASK", 1), ("ONLY_SOURCE_SHARED", 3)):
        c = copy.deepcopy(config)
        c.prompt_tuning_init, c.num_tasks, c.prompt_tuning_init_task, c.prompt_tuning_init_state_dict_path = init, tasks, 1, str(source / "adapter_model.safetensors")
        state = get_peft_model(load(base), c).prompt_encoder["default"].state_dict()
        for k, v in state.items():
            if init != "ONLY_SOURCE_SHARED" or k == "embedding.weight":  # the others are random there
                out[f"init.{init}.{k.replace('embedding.weight', 'prompt_embeddings')}"] = v
    return out


def main():
    out = arguments(__doc__, only=dict(help="cases whose name has this in it")).__dict__
    only, out = out["only"], out["out"].resolve()
    os.chdir(out)
    batches = make_batches(out / "peft")
    for index, (case, (base, task_type, make)) in enumerate(CASES.items()):
        if only and only not in case:
            continue
        seed = 1300 + index
        directory, kind = out / "peft" / case, KIND[task_type]
        config = make()
        config.task_type = task_type
        plain = load(base)
        torch.manual_seed(seed)
        tensors, facts = {}, {}
        mutates = getattr(config, "init_lora_weights", None) in ("pissa", "olora")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = get_peft_model(load(base), copy.deepcopy(config)).eval()
            if "text" in case:  # keys and values of the first tokens of a longer text, keys after rotation
                tensors["text"] = random_rows([12], VOCAB, seed)[0]
                with torch.no_grad(), model.disable_adapter():
                    cache = model(input_ids=tensors["text"][None], use_cache=True).past_key_values
                peft.initialize_kv_prefix_from_past_key_values(model, past_key_values=[(layer.keys, layer.values) for layer in cache.layers])
            elif not mutates:
                fill(model, seed)
        optimizer = loraplus if case.startswith("loraplus") else adamw
        encoder = config.peft_type == "P_TUNING" or bool(getattr(config, "prefix_projection", False))
        config = model.peft_config["default"] if not mutates else config  # with the fields that PEFT filled in
        truth = twin(base, config, model)
        curve = None
        if mutates:
            start = tempfile.TemporaryDirectory()
            model.peft_config["default"].init_lora_weights = True  # as PEFT's conversion needs the saved start
            model.save_pretrained(start.name)
            model.peft_config["default"].init_lora_weights = config.init_lora_weights
            for n, m in model.named_modules():
                if hasattr(m, "lora_A") and "default" in m.lora_A:
                    path = n.removeprefix("base_model.model.")
                    tensors |= {k: v.detach().clone() for k, v in ((f"init.A.{path}", m.lora_A["default"].weight), (f"init.B.{path}", m.lora_B["default"].weight), (f"init.base.{path}", m.base_layer.weight))}
        if kind in batches:
            steps = batches[kind][:20]
            if "multitask" in case:
                for i, rows in enumerate(steps):
                    for j, r in enumerate(rows):
                        r["task"] = torch.tensor((i + j) % 3)
            with float64():
                high = train(truth, kind, steps, optimizer)
                summed = train(truth, kind, steps, optimizer, sum_tied) if tied_pairs(truth) else None
            curve = train(model, kind, steps, optimizer, keep=mutates), high
            if summed:
                tensors["curve.summed"] = torch.tensor(summed)
            for rows in steps:
                for r in rows:
                    r.pop("task", None)
        if optimizer is loraplus:
            names = {id(p): n for n, p in model.named_parameters()}
            facts["optimizer"] = {"name": "AdamW", "groups": [{"lr": g["lr"], "keys": [key_of(names[id(p)], encoder) for p in g["params"]]} for g in loraplus(model).param_groups]}
        if mutates:
            save(model, directory)
            save(model, directory / "converted", path_initial_model_for_weight_conversion=start.name)
            truth = twin(base, config, model)
        else:
            save(model, directory)

        rows = make_rows(kind, plain.config, seed)
        if "multitask" in case:
            for i, r in enumerate(rows):
                r["task"] = torch.tensor(2 - i)
        logits, loss, grads = evaluate(model, kind, rows, encoder)
        again = PeftModel.from_pretrained(load(base), directory / "converted" if mutates else directory).eval()
        for row, y in zip(rows, logits):
            z = forward(again, kind, row)[0]
            assert torch.allclose(y, z, atol=2e-4 if mutates else 2e-5), (case, (y - z).abs().max())
        trainable = {n: key_of(n, encoder) for n, p in learned(truth)}
        saved = load_file(directory / "adapter_model.safetensors")
        absent = {k for k in trainable.values() if k not in saved}
        assert all(k.startswith("encoder.") for k in absent), absent
        tensors |= {key_of(n, encoder): p for n, p in model.named_parameters() if p.requires_grad and key_of(n, encoder) in absent}
        with float64():
            logits64, loss64, grads64 = evaluate(truth, kind, rows, encoder)
            gap, merged = None, None
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    merged = [merged_logits(m, kind, r) for m in [truth.merge_and_unload()] for r in rows] if not config.is_prompt_learning else None
                except RuntimeError as e:
                    facts["merge_refused"] = str(e)
        if merged:
            gap = max((a - b).abs().max().item() for a, b in zip(logits64, merged))
            if gap > 1e-9:
                tensors |= {f"merged.{i}": v.to(F32) for i, v in enumerate(merged)}
        with torch.no_grad():
            effect = 0.0
            for row, y in zip(rows, logits64):
                z = merged_logits(plain, kind, row).double()
                effect = max(effect, (y[-len(z):] - z).abs().max().item())
        zero = sorted(k for k, g in grads64.items() if g.abs().max() < 1e-12)
        for k in zero:
            grads64[k] = torch.zeros_like(grads64[k])
        observed = {"logits": worst(zip(logits, logits64)), "loss": worst([(loss, loss64)]), "grad": worst((grads[k], grads64[k]) for k in grads if k not in zero)}
        if curve:
            observed["curve"] = float(f"{max(abs(a - b) / b for a, b in zip(*curve)):.2g}")
        tolerance = {k: max(2e-6, round_up(10 * v) if v else 0) for k, v in observed.items()}
        tensors |= {f"{k}.{i}": v for i, r in enumerate(rows) for k, v in r.items()}
        tensors |= {f"logits.{i}": v.to(F32) for i, v in enumerate(logits64)} | {"loss": loss64.to(F32)} | {f"grad.{k}": v.to(F32) for k, v in grads64.items()}
        if curve:
            tensors["curve"] = torch.tensor(curve[1], dtype=torch.float64).to(F32)
        if case == "multitask-llama3":
            tensors |= multitask_inits(directory, base, config)
        prov = provenance(__file__, seed, tolerance, measure="max|a-b|/max|b| of each tensor; curve: |a-b|/b of each step", float32_error=observed, loss=loss64.item(), zero_gradients=zero)
        save_tensors(directory / "golden.safetensors", tensors, prov)
        save_json(directory / "golden.json", {
            "base": base, "kind": kind, "trainable": trainable, "keys": {k: list(v.shape) for k, v in sorted(saved.items())},
            "merged_minus_attached": None if gap is None else float(f"{gap:.3g}"), "adapter_effect": float(f"{effect:.3g}"), **facts,
            "warnings": sorted({str(w.message).strip() for w in caught if issubclass(w.category, UserWarning)}), "provenance": prov})
        print(case, "trainable", len(trainable), "saved", len(saved), "effect", round(effect, 3), "merge gap", gap, observed, [round(x, 3) for x in curve[1][::6]] if curve else "", flush=True)


def merged_logits(model, kind, row):
    if kind == "image":
        return model(pixel_values=row["pixels"].to(next(model.parameters()).dtype)[None]).logits[0]
    out = model(input_ids=row["ids"][None])
    return torch.stack([out.start_logits[0], out.end_logits[0]], -1) if kind == "span" else out.logits[0]


if __name__ == "__main__":
    main()
