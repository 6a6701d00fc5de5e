"""AdamW with eight-bit moments as bitsandbytes does it: tests/golden/adamw_8bit.safetensors.

    python adamw_8bit.py GOLDEN_FOLDER

The optimizer is bitsandbytes' own, on the processor. Only its two conversions of moments are replaced
by its plain-torch ("default") ones, as in nf4.py: on processors with AVX-512 the compiled ones miss
the nearest code now and then.
"""

import pathlib
import sys

from common import normal, save_tensors, torch
from nf4 import default, dynamic_code

import bitsandbytes
import bitsandbytes.backends.cpu.ops

N_STEPS = 4
# The moments of this many steps are made by steps that are not kept, so that the last of a case is
# a late one.
LATE = 400
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def dequantize(codes, absmax, code, block):
    return default("dequantize_blockwise", codes, absmax, code, block, torch.float32)


def quantize(values, code, absmax, codes, block):
    new_codes, new_absmax = default("quantize_blockwise", values, code, block)
    codes.copy_(new_codes)
    absmax.copy_(new_absmax)


bitsandbytes.backends.cpu.ops._dequant_blockwise_fp32_direct = dequantize
bitsandbytes.backends.cpu.ops._quant_blockwise_fp32_direct = quantize


def sparse(seed, n):
    """Most elements never have a gradient, and some seldom."""
    gradient = normal(seed, n)
    gradient[normal(1, n) < 0.5] = 0.0
    gradient[normal(seed, n) < -1.0] = 0.0
    return gradient


def with_outliers(seed, n):
    gradient = normal(seed, n) * 1e-3
    gradient[seed % 97 :: 97] *= 1e4
    return gradient


def zero_blocks(seed, n):
    gradient = normal(seed, n)
    gradient[256:512] = 0.0
    gradient[-(n % 256) :] = 0.0
    return gradient


def tiny_and_huge(seed, n):
    gradient = normal(seed, n)
    gradient[:256] *= 1e-21  # Squares below the smallest normal number.
    gradient[256:512] *= 1e10
    return gradient


# By name: how many elements, and the gradient of a step.
CASES = {
    "whole_blocks": (768, lambda step, n: normal(100 + step, n)),
    "short_block": (617, lambda step, n: normal(200 + step, n) * 0.01),
    "shorter_than_a_block": (5, lambda step, n: normal(300 + step, n)),
    "one_element": (1, lambda step, n: normal(350 + step, n)),
    "outliers": (900, lambda step, n: with_outliers(400 + step, n)),
    "sparse": (700, lambda step, n: sparse(500 + step, n)),
    "zero_blocks": (600, lambda step, n: zero_blocks(600 + step, n)),
    "tiny_and_huge": (600, lambda step, n: tiny_and_huge(700 + step, n)),
    "late": (700, lambda step, n: normal(800 + step, n) * 10.0 ** (step % 5 - 2)),
}


def run(name, n, gradient_of):
    """Parameters and moments before the first kept step and after each, by name."""
    parameters = torch.nn.Parameter(normal(9, n))
    optimizer = bitsandbytes.optim.AdamW8bit([parameters], min_8bit_size=0, **SETTINGS)

    def keep(step):
        tensors[f"{name}.{step}.parameters"] = parameters.detach().clone()
        state = optimizer.state[parameters]
        for ours, theirs in [
            ("first_codes", "state1"),
            ("first_absmax", "absmax1"),
            ("second_codes", "state2"),
            ("second_absmax", "absmax2"),
        ]:
            # Before the first step there is no state yet; it is made of zeros.
            if theirs in state:
                tensors[f"{name}.{step}.{ours}"] = state[theirs].clone()

    tensors = {}
    begin = LATE if name == "late" else 0
    for step in range(1, begin + N_STEPS + 1):
        if step == begin + 1:
            keep(begin)
        parameters.grad = gradient_of(step, n)
        optimizer.step()
        if step > begin:
            tensors[f"{name}.{step}.gradient"] = parameters.grad
            keep(step)
    return tensors


def main(folder):
    settings = [SETTINGS["lr"], *SETTINGS["betas"], SETTINGS["eps"], SETTINGS["weight_decay"]]
    tensors = {
        "settings": torch.tensor(settings, dtype=torch.float64),
        "first_code": dynamic_code(),
        "second_code": bitsandbytes.functional.create_dynamic_map(signed=False).float(),
    }
    for name, (n, gradient_of) in CASES.items():
        tensors |= run(name, n, gradient_of)
    save_tensors(folder / "adamw_8bit.safetensors", tensors)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
