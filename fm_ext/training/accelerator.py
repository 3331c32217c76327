"""The accelerator for a machine, and which ones a `Trainer` can use."""

import os
from typing import Any

import torch
from accelerate import Accelerator, DistributedType

_SPLITTING = (
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
    DistributedType.MEGATRON_LM,
    DistributedType.XLA,
)


def default_accelerator(**settings: Any) -> Accelerator:
    """An `Accelerator` that uses what the machine has.

    * bfloat16 where the hardware computes in it (CUDA devices that do, CPUs with AVX512-BF16), else float32. What
      `accelerate launch --mixed_precision` or `accelerate config` say comes first, unless it is their default, "no".
    * On a CPU, all cores that this process may run on, shared among the processes of the machine, by
      `torch.set_num_threads`. `accelerate launch` alone gives each process one thread.

    Args:
        **settings: of `Accelerator`. A `mixed_precision` among them comes before everything.
    """
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") == "no":
        settings.setdefault("mixed_precision", "bf16" if _computes_in_bf16() else "no")
    accelerator = Accelerator(**settings)
    if accelerator.device.type == "cpu":
        free = getattr(os, "sched_getaffinity", None)  # on Linux
        cores = len(free(0)) if free else os.cpu_count() or 1
        processes = int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)
        torch.set_num_threads(max(1, cores // processes))
    return accelerator


def _computes_in_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return bool(capabilities.get("avx512_bf16"))


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuses an accelerator that the trainer would handle wrongly.

    Raises:
        ValueError: if it splits the model over processes, is in use already, or names checkpoints itself.
    """
    kind = accelerator.distributed_type
    if kind in _SPLITTING:
        raise ValueError(
            f"`accelerator` must keep a whole copy of the model on every process; got {kind.value}. "
            "Choose multi-GPU or multi-CPU training in `accelerate config`."
        )
    if accelerator._optimizers:
        raise ValueError(
            "`accelerator` must not be in use for another training, whose optimiser would go into "
            "this one's checkpoints. Call accelerator.free_memory() first."
        )
    if accelerator.project_configuration.automatic_checkpoint_naming:
        raise ValueError(
            "`accelerator` must leave the naming of checkpoints to `output_dir`; build its "
            "ProjectConfiguration with automatic_checkpoint_naming=False."
        )
