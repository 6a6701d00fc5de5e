"""What the reference scripts share: reproducible settings, exact double precision, golden files."""

import contextlib
import json
import logging
import os
import pathlib
import re
import warnings

# Every operation runs eagerly, as written: compiled ones fuse multiplications with additions.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy
import safetensors.torch
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

# Peft asks transformers for a name that transformers is about to drop.
warnings.filterwarnings("ignore", category=FutureWarning)
# bitsandbytes misses an optional package of faster kernels, none of which is called here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

torch.set_num_threads(1)  # The order of a sum, and so its last bits, depends on the thread count.
torch.use_deterministic_algorithms(True)

IGNORED = -100  # The label of a token that is not trained on, as transformers has it.


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(*shape, generator=generator(seed))


def save_tensors(path, tensors, **metadata):
    """Writes `tensors` in the order of their names, so that the same content is the same bytes."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensors[name].detach().contiguous().clone() for name in sorted(tensors)}
    safetensors.torch.save_file(contiguous, path, metadata=metadata or None)
    path.chmod(0o644)


def save_json(path, document):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1)
    # A list of plain values stands on one line.
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    path.write_text(text + "\n", newline="\n")


def error_of(approximate, exact):
    """How far an f32 result is from the f64 one: the largest and the root-mean-square difference."""
    difference = approximate.double() - exact.double()
    return {
        "max_abs": difference.abs().max().item(),
        "rms": difference.square().mean().sqrt().item(),
        "exact_rms": exact.double().square().mean().sqrt().item(),
    }


class KeepDouble(TorchFunctionMode):
    """Ignores a model's requests to continue in f32 when a tensor is f64.

    transformers computes its norms and softmax in f32 whatever the model's type, so that
    `model.double()` alone is no better than f32 in those places.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        wide = bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64
        if wide:
            if function is torch.Tensor.float:
                return args[0]
            if function is torch.Tensor.to and torch.float32 in args[1:]:
                return args[0]
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


def single_precision_rope(model):
    """Keeps the rotation angles of `model` in f32 where the rest is f64.

    The f32 table of angles belongs to the definition of the models: all implementations, and the
    training of the published weights, rounded it so.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            forward = module.forward

            def in_single(x, *args, _forward=forward, **kwargs):
                with torch._C.DisableTorchFunction():
                    cos, sin = _forward(x.float(), *args, **kwargs)
                return cos.to(x.dtype), sin.to(x.dtype)

            module.forward = in_single
    return model


@contextlib.contextmanager
def precision_of(model):
    """Inside, `model` computes wholly in the type of its weights, f32 or f64."""
    if next(model.parameters()).dtype == torch.float64:
        with KeepDouble():
            yield
    else:
        yield


def logits_of(model, segments):
    """The logits of every segment, each run on its own, one below the other."""
    with precision_of(model):
        rows = [model(input_ids=ids[None], use_cache=False).logits[0] for ids in segments]
    return torch.cat(rows)


def loss_of(model, segments, labels):
    """Mean cross-entropy per trained token, over the trained tokens of all segments together.

    A label stands at its own token and is predicted by the row before it, within the segment.
    """
    total, n_trained = 0.0, 0
    for ids, wanted in zip(segments, labels):
        rows = logits_of(model, [ids])[:-1]
        total = total + F.cross_entropy(rows, wanted[1:], ignore_index=IGNORED, reduction="sum")
        n_trained += int((wanted[1:] != IGNORED).sum())
    return total / n_trained
