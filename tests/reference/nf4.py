"""NF4 with double quantisation as bitsandbytes does it: tests/golden/nf4.safetensors.

    python nf4.py GOLDEN_FOLDER

The plain-torch ("default") implementation of each operation is called by name: on processors with
AVX-512 the compiled one looks absmax codes up in a coarse table and misses the nearest now and
then, and dequantises some shapes wrongly.
"""

import pathlib
import sys

from common import normal, save_tensors, torch

import bitsandbytes.functional

DEFAULT = torch._C.DispatchKey.CompositeExplicitAutograd
BLOCK = 64
ABSMAX_GROUP = 256


def default(operation, *arguments):
    return getattr(torch.ops.bitsandbytes, operation).default._op_dk(DEFAULT, *arguments)


def dynamic_code():
    return bitsandbytes.functional.create_dynamic_map().float()


def levels():
    return bitsandbytes.functional.get_4bit_type("nf4", device="cpu").float()


def quantize(source):
    """The parts of the NF4 form of `source`, and the numbers it stands for, by name."""
    codes, absmax = default("quantize_4bit", source, BLOCK, "nf4", torch.uint8)
    offset = absmax.mean()
    absmax_codes, absmax_scales = default(
        "quantize_blockwise", absmax - offset, dynamic_code(), ABSMAX_GROUP
    )
    nested = default(
        "dequantize_blockwise", absmax_codes, absmax_scales, dynamic_code(), ABSMAX_GROUP, torch.float32
    )
    restored = nested + offset
    shape = tuple(source.shape)
    return {
        "codes": codes.reshape(-1),
        "absmax": absmax,
        "absmax_codes": absmax_codes,
        "absmax_scales": absmax_scales,
        "absmax_offset": offset.reshape(1),
        "absmax_restored": restored,
        "dequantized": default("dequantize_4bit", codes, restored, BLOCK, "nf4", shape, torch.float32),
        "dequantized_with_exact_absmax": default(
            "dequantize_4bit", codes, absmax, BLOCK, "nf4", shape, torch.float32
        ),
    }


def cases():
    """Inputs by name; every size that is no multiple of 64 ends in a short block."""
    with_zeros = normal(4, 64 * 10)
    with_zeros[64 * 3 : 64 * 5] = 0.0
    with_zeros[64 * 9 :] = 0.0
    outliers = normal(5, 64 * 40) * 0.02
    outliers[::97] *= 1000.0
    tiny_and_huge = torch.cat([normal(6, 256) * 1e-30, normal(7, 256) * 1e30, normal(8, 100)])
    # Exact levels and exact midpoints between neighbours, at an absmax of one.
    table = levels()
    on_the_edges = torch.zeros(64)
    on_the_edges[:16] = table
    on_the_edges[16:31] = (table[:-1] + table[1:]) / 2
    on_the_edges[31:46] = torch.nextafter((table[:-1] + table[1:]) / 2, torch.tensor(2.0))
    on_the_edges[46:61] = torch.nextafter((table[:-1] + table[1:]) / 2, torch.tensor(-2.0))
    return {
        "one_block": normal(1, 64),
        "short_block": normal(2, 1000),
        "odd_length": normal(9, 333),
        "shorter_than_a_block": normal(10, 5),
        "two_absmax_groups": normal(3, 64 * 300 + 17) * 0.05,
        "zero_blocks": with_zeros,
        "all_zero": torch.zeros(128),
        "zero_short_block": torch.cat([normal(11, 64), torch.zeros(7)]),
        "outliers": outliers,
        "tiny_and_huge": tiny_and_huge,
        "edges": on_the_edges,
        "bf16": normal(12, 64 * 20 + 8).bfloat16(),
        "f16": normal(13, 64 * 20).half(),
        "matrix": normal(14, 96, 80) * 0.1,
    }


def main(folder):
    tensors = {"nf4_levels": levels(), "dynamic_code": dynamic_code()}
    for name, source in cases().items():
        tensors[f"{name}.source"] = source
        for part, tensor in quantize(source).items():
            tensors[f"{name}.{part}"] = tensor
    save_tensors(folder / "nf4.safetensors", tensors)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
