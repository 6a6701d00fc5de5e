"""Rotation tables of transformers for every kind of scaling: tests/golden/rope.json.

    python rope.py GOLDEN_FOLDER

cos and sin are those of the first half of a head (the second half repeats them), f32 written with
all their digits, the attention factor multiplied in.
"""

import pathlib
import sys

from common import save_json, torch

import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

POSITIONS = [0, 1, 2, 17, 255, 1023, 8191, 32767, 131071]

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}

CASES = {
    "default, head of 64": (64, {"rope_type": "default", "rope_theta": 10000.0}),
    "default, head of 128, base of a million": (
        128,
        {"rope_type": "default", "rope_theta": 1000000.0},
    ),
    "linear": (64, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "Llama 3.1": (
        128,
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            **LLAMA3,
        },
    ),
    "Llama 3.2": (
        64,
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 8192,
            **LLAMA3,
        },
    ),
    "YaRN": (
        128,
        {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    ),
    "YaRN, every setting given": (
        64,
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "attention_factor": 1.25,
            "truncate": False,
        },
    ),
}


def table(head_size, parameters):
    config = transformers.LlamaConfig(
        hidden_size=head_size * 2,
        num_attention_heads=2,
        head_dim=head_size,
        max_position_embeddings=int(
            parameters.get("original_max_position_embeddings", 131072)
            * parameters.get("factor", 1.0)
        ),
        rope_parameters=dict(parameters),
    )
    rotation = LlamaRotaryEmbedding(config)
    cos, sin = rotation(torch.zeros(1), torch.tensor([POSITIONS]))
    half = head_size // 2
    return {
        "head_size": head_size,
        "parameters": parameters,
        "inverse_frequencies": rotation.inv_freq.tolist(),
        "attention_factor": rotation.attention_scaling,
        "cos": cos[0, :, :half].tolist(),
        "sin": sin[0, :, :half].tolist(),
    }


def main(golden):
    cases = {name: table(*case) for name, case in CASES.items()}
    save_json(golden / "rope.json", {"positions": POSITIONS, "cases": cases})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
