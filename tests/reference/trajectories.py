"""Fifty training steps of the tiny Llama with each method: tests/golden/trajectories.json, and the
LoRA adapter they end in: tests/golden/trajectories_adapter.safetensors.

    python trajectories.py GOLDEN_FOLDER        (after families.py)

Every method starts from families/llama; LoRA and QLoRA from its adapter. For QLoRA the base's
linear layers are NF4 with double quantisation, expanded again to plain numbers.
"""

import hashlib
import math
import pathlib
import sys

from common import (
    IGNORED,
    generator,
    loss_of,
    save_json,
    save_tensors,
    torch,
)
from families import LINEAR_LAYERS, VOCABULARY, load_base, load_with_adapter, seed_of
from nf4 import quantize

import transformers

FAMILY = "llama"
N_STEPS = 50
N_WARMUP_STEPS = 5
PEAK_LEARNING_RATE = 1e-3
BETAS, EPSILON, WEIGHT_DECAY, CLIP = (0.9, 0.999), 1e-8, 0.01, 1.0
N_BATCHES = 5
SEGMENT_LENGTHS = (19, 8, 14)


def learning_rate(step):
    """Of step 0, 1, …: a linear rise from the first step on, then half a cosine towards zero."""
    if step < N_WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / N_WARMUP_STEPS
    progress = (step - N_WARMUP_STEPS) / (N_STEPS - N_WARMUP_STEPS)
    return PEAK_LEARNING_RATE * 0.5 * (1.0 + math.cos(math.pi * progress))


def batches():
    """Token batches that come round again, so that there is something to learn."""
    made = []
    for batch in range(N_BATCHES):
        segments = []
        for index, length in enumerate(SEGMENT_LENGTHS):
            random = generator(seed_of("trajectories", f"{batch} {index}"))
            ids = torch.randint(0, VOCABULARY, (length,), generator=random)
            labels = ids.clone()
            labels[: length // 3] = IGNORED
            segments.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
        made.append(segments)
    return made


def quantize_base(model):
    """Replaces the linear layers' weights by what their NF4 form stands for.

    Returns what identifies each form: the offset, which implementations may round differently, and
    fingerprints of the codes.
    """
    forms = {}
    for name, weight in model.named_parameters():
        if "lora_" in name or not any(layer in name for layer in LINEAR_LAYERS):
            continue
        form = quantize(weight.detach().float())
        with torch.no_grad():
            weight.copy_(form["dequantized"])
        forms[name.removeprefix("base_model.model.").replace(".base_layer", "")] = {
            "absmax_offset": form["absmax_offset"].item(),
            "codes_sha256": fingerprint(form["codes"]),
            "absmax_codes_sha256": fingerprint(form["absmax_codes"]),
            "dequantized_sha256": fingerprint(form["dequantized"]),
        }
    return forms


def fingerprint(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def start(method, folder, dtype):
    """The model at step 0, and the NF4 forms of its base where there are any."""
    if method == "full":
        return load_base(folder, dtype), None
    model = load_with_adapter(folder, torch.float32)
    forms = quantize_base(model) if method == "qlora" else None
    return model.to(dtype), forms


def optimizer_of(model):
    """AdamW with weight decay on matrices alone, the grouping of transformers' own Trainer."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [w for w in trained if w.dim() >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [w for w in trained if w.dim() < 2], "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=BETAS,
        eps=EPSILON,
        foreach=False,
        fused=False,
    )


def check_decay_groups(model):
    decayed = transformers.Trainer.get_decay_parameter_names(None, model)
    for name, weight in model.named_parameters():
        assert (name in decayed) == (weight.dim() >= 2), f"{name}: the Trainer groups it otherwise"


def train(model, steps_batches):
    optimizer = optimizer_of(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    losses, norms = [], []
    for step in range(N_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        batch = steps_batches[step % N_BATCHES]
        segments = [torch.tensor(segment["input_ids"]) for segment in batch]
        labels = [torch.tensor(segment["labels"]) for segment in batch]
        optimizer.zero_grad()
        loss = loss_of(model, segments, labels)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, CLIP, foreach=False).item())
        losses.append(loss.item())
        optimizer.step()
    return losses, norms


def final_adapter(model):
    return {
        name.removeprefix("base_model.model.").replace(".default.", "."): weight
        for name, weight in model.named_parameters()
        if "lora_" in name
    }


def main(golden):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = golden / "families" / FAMILY
    check_decay_groups(load_base(folder, torch.float32))
    document = {
        "model": f"families/{FAMILY}",
        "optimizer": {
            "beta1": BETAS[0],
            "beta2": BETAS[1],
            "epsilon": EPSILON,
            "weight_decay_of_matrices": WEIGHT_DECAY,
            "weight_decay_of_vectors": 0.0,
            "clip_gradient_norm": CLIP,
        },
        "learning_rates": [learning_rate(step) for step in range(N_STEPS)],
        "batches": batches(),
        "batch_of_step": [step % N_BATCHES for step in range(N_STEPS)],
        "methods": {},
    }
    adapters = {}
    for method in ("full", "lora", "qlora"):
        runs = {}
        for precision, dtype in (("f64", torch.float64), ("f32", torch.float32)):
            model, forms = start(method, folder, dtype)
            losses, norms = train(model, document["batches"])
            runs[precision] = {"losses": losses, "gradient_norms": norms}
            if method == "lora":
                adapters |= {f"{precision}.{key}": w for key, w in final_adapter(model).items()}
        if forms is not None:
            runs["nf4_forms"] = forms
        document["methods"][method] = runs
        worst = max(abs(a - b) for a, b in zip(runs["f32"]["losses"], runs["f64"]["losses"]))
        print(f"{method}: loss {losses[0]:.4f} to {losses[-1]:.4f}, f32 differs by up to {worst:.1e}")
    save_json(golden / "trajectories.json", document)
    save_tensors(golden / "trajectories_adapter.safetensors", adapters)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
