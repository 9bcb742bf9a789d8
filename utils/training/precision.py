"""How forward and backward passes are computed: their precision, and whether compiled."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.system.errors import UserError

PRECISIONS = FP32, TF32, BF16 = ("fp32", "tf32", "bf16")
# Graphs that torch may keep of a model's class, all its copies together, where it stops at 8 by
# itself: one for each size of batch in training, in tests and in P-BFGS's line search.
GRAPHS = 64


@dataclass(frozen=True)
class Arithmetic:
    """How a model's passes alone are computed; weights, trajectory and CMD are always float32.

    precision: one of PRECISIONS. fp32: everywhere. tf32: NVIDIA's 19-bit products in convolutions
    and matrix products. bf16: autocast to bfloat16. compiled: whether by torch.compile, to a graph
    for each size of batch.
    """

    precision: str = FP32
    compiled: bool = False

    def logits(self, module: nn.Module, images: Tensor) -> Tensor:
        """What the module makes of the images, float32; called within `products`.

        Raises UserError if it cannot be compiled, or to too many graphs.
        """
        with self.autocast(images.device):
            if not self.compiled:
                return module(images).float()
            if module._compiled_call_impl is None:
                # else the short last batch makes the size dynamic, also of the full batches to come
                module.compile(dynamic=False)
            try:
                return module(images).float()
            except torch._dynamo.exc.FailOnRecompileLimitHit as error:
                raise UserError(
                    f"--compile True: more than {GRAPHS} graphs would be compiled; leave it"
                ) from error
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"--compile True: not available here ({reason}); leave it"
                ) from error

    def autocast(self, device: torch.device) -> torch.autocast:
        """Around forward passes: whether they are in bfloat16."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == BF16)

    @contextlib.contextmanager
    def products(self) -> Iterator[None]:
        """Around forward and backward passes: how a GPU multiplies float32, that it tries which of
        its convolutions is fastest, and that what is to be compiled is."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        matmul.allow_tf32 = cudnn.allow_tf32 = self.precision == TF32
        cudnn.benchmark = True
        try:
            with _never_uncompiled() if self.compiled else contextlib.nullcontext():
                yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before

    def uncompiled(self) -> contextlib.AbstractContextManager:
        """Around passes that are better not compiled, also of a module that was."""
        if not self.compiled:
            return contextlib.nullcontext()
        return torch.compiler.set_stance("force_eager")


def _never_uncompiled() -> contextlib.AbstractContextManager:
    """Around passes: torch raises an error where it would go on uncompiled, saying so in its log
    alone."""
    return torch._dynamo.config.patch(
        cache_size_limit=GRAPHS,  # recompile_limit is the same, but not in torch 2.6
        fail_on_cache_limit_hit=True,
        suppress_errors=False,
    )


PLAIN = Arithmetic()


def choose_precision(name: str | None, device: torch.device) -> str:
    """The precision by name; None is bf16 on GPUs that have it, else fp32.

    Raises UserError if the device cannot compute in it.
    """
    on_gpu = device.type == "cuda"
    if name is None:
        return BF16 if on_gpu and _has_bf16(device) else FP32
    if name == TF32 and not (on_gpu and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise UserError(f"--precision tf32: --device {device} has none; choose fp32 or bf16")
    return name


def _has_bf16(gpu: torch.device) -> bool:
    with torch.cuda.device(gpu):  # torch tells it of the current one
        return torch.cuda.is_bf16_supported(including_emulation=False)
