"""The accelerator for a machine, and which ones a `Trainer` can use."""

import os
import sys
from typing import Any

import torch
from accelerate import Accelerator, DistributedType

_LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}
_SPLITTING = (
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
    DistributedType.MEGATRON_LM,
    DistributedType.XLA,
)


def auto_accelerator(**settings: Any) -> Accelerator:
    """An `Accelerator` that uses what the machine has.

    * bfloat16 where the hardware computes in it (CUDA devices that do, CPUs with AVX512-BF16), else float32. What
      `accelerate launch --mixed_precision` or `accelerate config` say comes first, unless it is their default, "no".
    * On a CPU, all cores that this process may run on, shared among the processes of the machine, by
      `torch.set_num_threads`. `OMP_NUM_THREADS` comes first under plain `python`; `accelerate launch` and torchrun
      set it to 1 by themselves.

    Args:
        **settings: of `Accelerator`. A `mixed_precision` among them comes before everything.
    """
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") == "no":
        settings.setdefault("mixed_precision", "bf16" if _computes_in_bf16() else "no")
    accelerator = Accelerator(**settings)
    chosen = "OMP_NUM_THREADS" in os.environ and not _LAUNCHED.intersection(os.environ)
    if accelerator.device.type == "cpu" and not chosen:
        free = getattr(os, "sched_getaffinity", None)  # on Linux
        cores = len(free(0)) if free else os.cpu_count() or 1
        processes = int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)
        torch.set_num_threads(max(1, cores // processes))
    return accelerator


def leave_to_main(accelerator: Accelerator) -> None:
    """Ends training; the main process goes on alone, the others exit here with status 0.

    For what one process does at the end, such as judging and drawing. Nothing waits for it, so it may take longer than
    the time-out of a barrier. The others leave without Python's own clean-up: while that runs, a thread of gloo,
    torch's communication between CPUs, that still holds a tensor aborts the process
    (https://github.com/pytorch/pytorch/pull/179291). Trackers are finished, and output is flushed.

    Args:
        accelerator: of all processes; each must call this.
    """
    accelerator.end_training()
    if not accelerator.is_main_process:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


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
