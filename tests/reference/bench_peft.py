"""Trains a random model of a given shape with PEFT and bitsandbytes, and times it.

    python bench_peft.py --config CONFIG.json --method full|lora|qlora --sequence N --steps N
    python bench_peft.py --device cuda --model FOLDER --method qlora --sequence N --steps N

The usual settings of each method: full with f32 weights under bf16 autocast, or, with --weights bf16,
with weights, gradients and moments in bf16, in which small updates are lost; LoRA on a bf16 base;
QLoRA on an NF4 base with double quantisation and bf16 products; adapters and optimizer states f32.
A processor without bf16 products emulates them, slowly: there, products are in f32 but for full in bf16,
as nobody who has tried both would do otherwise, and LoRA's base is too, which autocast spares a copy of.
On a card weights and products are bf16, and the model is one that lies on the disk.
One JSON line when the model is in place, one a step, then one with `"event": "done"`. The base is made
and saved by a process of its own, so that the peak memory is that of loading and training.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import psutil
import torch
import transformers

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_random_model(config, folder, dtype):
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(config)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)


def load(folder, method, weights, rank, recompute, compute, device):
    settings = {"device_map": {"": device}, "dtype": compute}
    if method == "full":
        settings["dtype"] = weights
    if method == "qlora":
        settings["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **settings)
    model.config.use_cache = False
    if recompute:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    if method != "full":
        import peft

        model = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"
            ),
        )
    return model.train()  # Evaluation would repack the four-bit weights, with a loss.


def peak_rss_bytes():
    """The largest resident memory the process ever had."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return memory.peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def train(model, arguments, compute):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-5)
    vocabulary = model.config.vocab_size
    random = torch.Generator().manual_seed(1)
    for step in range(1, arguments.steps + 1):
        ids = torch.randint(0, vocabulary, (1, arguments.sequence), generator=random)
        started, processor = time.perf_counter(), time.process_time()
        ids = ids.to(arguments.device)
        with torch.autocast(arguments.device, dtype=torch.bfloat16, enabled=compute == torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.item()  # Waits for a card.
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        yield {
            "event": "step",
            "step": step,
            "loss": loss,
            "secs": seconds,
            "tokens_per_s": arguments.sequence / seconds,
            "cores_used": (time.process_time() - processor) / seconds,
            "rss_bytes": psutil.Process().memory_info().rss,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--config", type=pathlib.Path, help="a config.json: weights are made")
    model.add_argument("--model", type=pathlib.Path, help="a folder with weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--method", choices=("full", "lora", "qlora"), required=True)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--recompute", action="store_true", help="with gradient checkpointing")
    parser.add_argument("--compute", choices=("auto", "bf16", "f32"), default="auto")
    parser.add_argument("--weights", choices=("bf16", "f32"), default="f32", help="of full")
    parser.add_argument("--save-only", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    compute = "bf16" if has_bf16 or arguments.device == "cuda" else "f32"
    if arguments.compute != "auto":
        compute = arguments.compute
    precisions = {"bf16": torch.bfloat16, "f32": torch.float32}
    compute, weights = precisions[compute], precisions[arguments.weights]
    dtype = weights if arguments.method == "full" else torch.bfloat16
    if arguments.save_only:
        save_random_model(arguments.config, arguments.save_only, dtype)
        return
    settings = (arguments.method, weights, arguments.rank, arguments.recompute, compute, arguments.device)
    if arguments.model:
        model = load(arguments.model, *settings)
    else:
        with tempfile.TemporaryDirectory(prefix="bench-peft-") as folder:
            subprocess.run([sys.executable, *sys.argv, "--save-only", folder], check=True)
            model = load(folder, *settings)
    print(json.dumps({"event": "ready"}), flush=True)
    rates = []
    for report in train(model, arguments, compute):
        rates.append(report["tokens_per_s"])
        print(json.dumps(report), flush=True)
    # The first step also makes the optimizer's states and warms the caches.
    steady = sorted(rates[1:] or rates)
    done = {
        "event": "done",
        "method": arguments.method,
        "steps": arguments.steps,
        "compute": str(compute).removeprefix("torch."),
        "tokens_per_s": steady[len(steady) // 2],
        "peak_rss_bytes": peak_rss_bytes(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
