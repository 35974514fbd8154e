"""What a machine computes with: cores, memory and GPUs; those of the job, which may be less than the node's."""

from __future__ import annotations

import os
import warnings
from typing import Any

import psutil

from harmonize.control_groups import core_limit
from harmonize.pool import cores
from headspark.data.memory import GIB, address_limit, free_memory, gib, slurm_memory
from headspark.doctor.section import Section

LITTLE_MEMORY = 4 * GIB
"""Less than the demo takes, with the libraries."""


def examine_cores() -> Section:
    """Cores of this process, by affinity and by the job's quota."""
    found = Section(name="cores")
    machine, own, limit = os.cpu_count() or 1, cores(), core_limit()
    in_slurm = "SLURM_JOB_ID" in os.environ
    found.facts = {"job": own, "machine": machine, "quota": limit, "slurm": in_slurm}
    quota = "" if limit is None else f", a quota of {limit:g}"
    found.text = [f"{own} for this {'job of SLURM' if in_slurm else 'process'} (machine: {machine}{quota})"]
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > own:
        found.findings.append(f"OMP_NUM_THREADS is {threads}, more than the {own} cores: they wait for each other")
    if in_slurm and own == 1:
        found.findings.append("the job has one core: ask for more with --cpus-per-task, which the data loader needs")
    return found


def examine_memory() -> Section:
    """Memory that a run may still take, and what limits it."""
    found = Section(name="memory")
    machine, free, granted = psutil.virtual_memory(), free_memory(), slurm_memory(os.environ)
    found.facts = {
        "free": free, "machine_free": machine.available, "machine_total": machine.total, "slurm": granted,
        "limited_by_job": free < 0.98 * machine.available, "address_limit": address_limit(),
    }  # fmt: skip
    slurm = "" if granted is None else f", SLURM granted {gib(granted)}"
    found.text = [f"{gib(free)} free for this job (machine: {gib(machine.available)} of {gib(machine.total)}{slurm})"]
    if free < LITTLE_MEMORY:
        found.findings.append(
            f"{gib(free)} of memory are free, less than {gib(LITTLE_MEMORY)}: take data.cache disk, a smaller "
            "data.patch and train.batch 1, or ask for a larger job"
        )
    return found


def examine_gpu() -> Section:
    """GPUs that PyTorch can use, with their free memory, or why there is none."""
    import torch

    found = Section(name="gpu")
    built = torch.version.cuda
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    gpus = [_gpu(number) for number in range(torch.cuda.device_count())] if available else []
    cudnn = torch.backends.cudnn.version() if available else None
    found.facts = {"gpus": gpus, "torch": torch.__version__, "cuda": built, "cudnn": cudnn, "threads_of_torch": None}
    found.facts["threads_of_torch"] = torch.get_num_threads()
    for gpu in gpus:
        free = "memory unknown" if gpu["free"] is None else f"{gib(gpu['free'])} free of {gib(gpu['total'])}"
        found.text.append(f"{gpu['name']}, compute {gpu['capability']}, {free}; CUDA {built}, cuDNN {cudnn}")
    if gpus:
        return found
    found.text = ["none"]
    if torch.backends.mps.is_available():
        why = "the GPU of this Mac is not used"
    elif built is None:
        why = "this PyTorch is built without CUDA"
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        why = "CUDA_VISIBLE_DEVICES hides them"
    elif said:
        why = str(said[0].message).splitlines()[0]
    else:
        why = f"PyTorch is built for CUDA {built} and finds no driver with a GPU"
    found.facts["why_none"] = why
    found.findings.append(f"no GPU: {why}; runs take the CPU, which is good for the demo and for prediction")
    return found


def _gpu(number: int) -> dict[str, Any]:
    import torch

    facts = torch.cuda.get_device_properties(number)
    try:
        free, total = torch.cuda.mem_get_info(number)
    except RuntimeError:  # all of it is taken, or it is another process's alone
        free, total = None, facts.total_memory
    return {
        "name": facts.name, "capability": f"{facts.major}.{facts.minor}", "free": free, "total": total,
    }  # fmt: skip
