"""Holds an adapter that Nibble wrote against peft: loads it unchanged and compares the logits.

    python read_adapter.py BASE ADAPTER LOGITS

BASE: a model folder. ADAPTER: an adapter folder. LOGITS: a safetensors file of Nibble's, computed
in f32 on that pair, with
    input_ids        [tokens]              integers, all sequences one after another
    segment_lengths  [segments]            integers, how many tokens each sequence has
    logits           [tokens, vocabulary]  f32

Ends with code 1 when Nibble's logits are further from peft's in f64 than twice what peft's own are
in f32 (root mean square over all), or when the adapter changes nothing, which would prove nothing.
"""

import argparse
import pathlib
import sys

from common import error_of, logits_of, single_precision_rope, torch

import peft
import safetensors.torch
import transformers


def adapted(base, adapter, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(model, adapter)
    return single_precision_rope(model.to(dtype).eval())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("base", "adapter", "logits"):
        parser.add_argument(name, type=pathlib.Path)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    recorded = safetensors.torch.load_file(arguments.logits)
    lengths = recorded["segment_lengths"].tolist()
    segments = recorded["input_ids"].long().split(lengths)
    with torch.no_grad():
        wide = adapted(arguments.base, arguments.adapter, torch.float64)
        exact = logits_of(wide, segments)
        with wide.disable_adapter():
            effect = error_of(logits_of(wide, segments), exact)["rms"]
        single = logits_of(adapted(arguments.base, arguments.adapter, torch.float32), segments)

    if recorded["logits"].shape != exact.shape:
        sys.exit(f"Nibble has logits of shape {tuple(recorded['logits'].shape)}, peft {tuple(exact.shape)}")
    ours, theirs = error_of(recorded["logits"], exact), error_of(single, exact)
    print(f"{'token':>6}  {'peft (f64)':>10}  {'Nibble':>10}   first five logits of the last token")
    for token in range(min(5, exact.shape[1])):
        print(f"{token:>6}  {exact[-1, token]:>10.6f}  {recorded['logits'][-1, token]:>10.6f}")
    print(f"root mean square of: logits {ours['exact_rms']:.3g}, the adapter's effect {effect:.3g}, "
          f"Nibble's error {ours['rms']:.2e}, peft's own f32 error {theirs['rms']:.2e}")
    if not effect > 100 * theirs["rms"]:
        sys.exit("the adapter changes nothing: train it before it is compared")
    if not ours["rms"] <= 2 * theirs["rms"]:
        sys.exit("Nibble's logits differ from peft's by more than twice peft's own f32 error")


if __name__ == "__main__":
    main()
