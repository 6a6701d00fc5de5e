"""Tiny random models of every supported family, with what transformers and peft make of them:
tests/golden/families/NAME/.

    python families.py GOLDEN_FOLDER

Each folder is a model as transformers saves it, plus `adapter/` as peft saves it, plus
`expected.safetensors` (computed in f64) and `errors.json` (how far f32 and bf16 are from that).
"""

import copy
import json
import pathlib
import shutil
import sys
import zlib

from common import (
    IGNORED,
    error_of,
    generator,
    logits_of,
    loss_of,
    normal,
    save_json,
    save_tensors,
    single_precision_rope,
    torch,
)

import peft
import transformers

VOCABULARY = 128
SEGMENT_LENGTHS = (21, 12)
RANK, ALPHA = 4, 8
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


class Family:
    """One model: its configuration, how it is saved, and what is recorded of it."""

    def __init__(
        self,
        config,
        save_type,
        published_rope=False,
        shard_size="1GB",
        every_gradient=False,
        rank_stabilised=False,
        **settings,
    ):
        self.config = config(**{**SHAPE, **settings})
        self.save_type = save_type
        self.published_rope = published_rope
        self.shard_size = shard_size
        self.every_gradient = every_gradient
        self.rank_stabilised = rank_stabilised


def families():
    """`published_rope`: with `rope_theta` and `rope_scaling`, as most published configurations."""
    return {
        "llama": Family(
            transformers.LlamaConfig,
            torch.bfloat16,
            published_rope=True,
            every_gradient=True,
            tie_word_embeddings=False,
            rms_norm_eps=1e-5,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        "llama-tied-sharded": Family(
            transformers.LlamaConfig,
            torch.float32,
            shard_size="150KB",
            tie_word_embeddings=True,
            num_key_value_heads=4,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        ),
        "llama-yarn": Family(
            transformers.LlamaConfig,
            torch.float16,
            tie_word_embeddings=False,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
        "mistral": Family(
            transformers.MistralConfig,
            torch.bfloat16,
            published_rope=True,
            tie_word_embeddings=False,
            sliding_window=8,
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        "qwen2": Family(
            transformers.Qwen2Config,
            torch.bfloat16,
            every_gradient=True,
            tie_word_embeddings=True,
            use_sliding_window=False,
            sliding_window=8,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        "qwen3": Family(
            transformers.Qwen3Config,
            torch.bfloat16,
            every_gradient=True,
            rank_stabilised=True,
            tie_word_embeddings=False,
            head_dim=32,
            use_sliding_window=False,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
    }


def seed_of(*names):
    return zlib.crc32("/".join(names).encode())


def fill_parameters(model, name):
    """Random weights of the size that trained ones have, so that every part of the model matters."""
    with torch.no_grad():
        for key, weight in model.named_parameters():
            random = normal(seed_of(name, key), *weight.shape)
            if key.endswith("norm.weight"):
                weight.copy_(1.0 + 0.2 * random)
            elif key.endswith("bias"):
                weight.copy_(0.2 * random)
            elif key.endswith("embed_tokens.weight") and not model.config.tie_word_embeddings:
                weight.copy_(random)
            else:
                weight.copy_(random / weight.shape[-1] ** 0.5 * 1.2)


def fill_adapter(model, name):
    """Both matrices random: a B of zeros, as at the start of training, would hide mistakes in A."""
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_" in key:
                weight.copy_(0.1 * normal(seed_of(name, key), *weight.shape))


def with_published_rope(folder):
    """Rewrites config.json from transformers 5's form into that of most published models."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    if config["head_dim"] == config["hidden_size"] // config["num_attention_heads"]:
        del config["head_dim"]
    path.write_text(json.dumps(config, indent=2) + "\n", newline="\n")


def load_base(folder, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return single_precision_rope(model.to(dtype).train())


def load_with_adapter(folder, dtype):
    model = peft.PeftModel.from_pretrained(
        load_base(folder, torch.float32), folder / "adapter", is_trainable=True
    )
    return model.to(dtype).train()


def save_family(family, name, folder):
    model = transformers.AutoModelForCausalLM.from_config(family.config, attn_implementation="eager")
    fill_parameters(model, name)
    model.generation_config = transformers.GenerationConfig()
    model = model.to(family.save_type)
    model.save_pretrained(folder, max_shard_size=family.shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if family.published_rope:
        with_published_rope(folder)
    adapted = peft.get_peft_model(
        load_base(folder, torch.float32),
        peft.LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0.0,
            target_modules=LINEAR_LAYERS,
            use_rslora=family.rank_stabilised,
            task_type="CAUSAL_LM",
        ),
    )
    fill_adapter(adapted, name)
    adapted.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    adapter_config = folder / "adapter" / "adapter_config.json"
    document = json.loads(adapter_config.read_text())
    document["base_model_name_or_path"] = name
    document["target_modules"] = sorted(document["target_modules"])
    adapter_config.write_text(json.dumps(document, indent=2) + "\n", newline="\n")


def tokens(name):
    """Two segments of tokens, and their labels: the second half of each and the odd token before."""
    segments, labels = [], []
    for index, length in enumerate(SEGMENT_LENGTHS):
        random = generator(seed_of(name, f"tokens {index}"))
        ids = torch.randint(0, VOCABULARY, (length,), generator=random)
        wanted = ids.clone()
        wanted[: length // 3] = IGNORED
        wanted[length // 2] = IGNORED
        segments.append(ids)
        labels.append(wanted)
    return segments, labels


def gradients(model, segments, labels):
    """The loss, and the gradient of every trainable parameter by name."""
    model.zero_grad()
    loss = loss_of(model, segments, labels)
    loss.backward()
    return loss.detach(), {
        key.removeprefix("base_model.model.").replace(".default.", "."): weight.grad.clone()
        for key, weight in model.named_parameters()
        if weight.requires_grad
    }


def results(folder, every_gradient, segments, labels, dtype):
    base = load_base(folder, dtype)
    found = {"logits": logits_of(base, segments).detach()}
    found["loss"], of_weights = gradients(base, segments, labels)
    if every_gradient:
        found |= {f"gradient.{key}": value for key, value in of_weights.items()}
    adapted = load_with_adapter(folder, dtype)
    found["adapter.logits"] = logits_of(adapted, segments).detach()
    found["adapter.loss"], of_adapter = gradients(adapted, segments, labels)
    found |= {f"adapter.gradient.{key}": value for key, value in of_adapter.items()}
    return found


def write_expected(family, name, folder):
    segments, labels = tokens(name)
    exact = results(folder, family.every_gradient, segments, labels, torch.float64)
    # Weight gradients are many: rounded to f32, which counts in the error below.
    exact = {k: v.float() if k.startswith("gradient.") else v for k, v in exact.items()}
    single = results(folder, family.every_gradient, segments, labels, torch.float32)
    # Products in bf16, and what comes out of them, as most train.
    with torch.autocast("cpu", torch.bfloat16):
        half = results(folder, family.every_gradient, segments, labels, torch.float32)
    stored = {
        "segment_lengths": torch.tensor(SEGMENT_LENGTHS),
        "input_ids": torch.cat(segments),
        "labels": torch.cat(labels),
    }
    save_tensors(folder / "expected.safetensors", {**stored, **exact})
    errors = {
        key: {
            **error_of(single[key], exact[key]),
            "rms_in_bf16": error_of(half[key], exact[key])["rms"],
        }
        for key in sorted(exact)
    }
    save_json(folder / "errors.json", errors)
    return exact, errors


def check_family(family, name, folder, exact):
    """What the goldens promise beyond numbers: each peculiarity of the family really is in them."""
    segments, _ = tokens(name)
    if family.config.model_type == "mistral":
        wide = load_base(folder, torch.float64)
        wide.config.sliding_window = None
        assert not torch.allclose(logits_of(wide, segments), exact["logits"]), "window has no effect"
    reloaded = transformers.AutoConfig.from_pretrained(folder)
    assert reloaded.rope_parameters == family.config.rope_parameters, "rotation was not saved whole"


def main(golden):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name, family in families().items():
        folder = golden / "families" / name
        shutil.rmtree(folder, ignore_errors=True)
        save_family(copy.deepcopy(family), name, folder)
        exact, errors = write_expected(family, name, folder)
        check_family(family, name, folder, exact)
        worst = max(error["rms"] / error["exact_rms"] for error in errors.values())
        print(f"{name}: loss {exact['loss']:.4f}, with adapter {exact['adapter.loss']:.4f}, "
              f"worst relative f32 error {worst:.1e}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
