"""Time and memory of one pretraining step: packed, emulated, a dense oracle of the visible size, and nnssl.

    python tests/benchmarks/bench_pretrain_step.py --json step.json --patch 96 --ratio 0.75
    python tests/benchmarks/bench_pretrain_step.py --json step.json --peer PATH_TO_NNSSL_CHECKOUT
    python tests/benchmarks/bench_pretrain_step.py --json step.json --preset demo --patch 64 --rounds 2   # in a minute
    python tests/benchmarks/bench_pretrain_step.py --json step.json \
        --variants packed_light packed_light_vessels packed_light_hybrid      # what other objectives cost

A step is mask, encode, densify, decode, loss, backward, clip, SGD. The variants take turns in one process, forwards in
one round and backwards in the next; medians are reported. Peak memory is measured in a process of its own for each
variant, from the resident set (CPU) or the allocator (CUDA), less what was there before the first step.

glibc returns large buffers to the system after every use and pays page faults for them, which flatters small working
sets: for the timing it is told never to, for the memory to do so always, so that what counts is what is in use.
Threads that wait for others are told to sleep, so that processor time (`--clock cpu`) is time that something was done.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headspark.decoder import DecoderConfig
from headspark.encoder import PRESETS, EncoderConfig, build_encoder
from headspark.hybrid import HybridConfig
from headspark.masking import draw_mask, draw_second_mask, expand_cells
from headspark.packed import MaskGeometry, encode_visible
from headspark.spark import SparK, SparKConfig
from headspark.vessels import VesselConfig

KEEP_BUFFERS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "200000000000"}
SLEEP = {"OMP_WAIT_POLICY": "passive"}
RETURN_BUFFERS = {"MALLOC_MMAP_THRESHOLD_": "131072"}
BLOCK = 16
CLIP = 12.0
"""Edge of a mask block and norm of the gradient at which nnssl clips."""

HEAD = (75, 95, 110)
HEAD_SHIFT = 0.46
"""Semi-axes of a head in voxels of 1 mm, and how far from its centre a patch lies, in parts of them: at 96 voxels 60 %
of the patch and 75 % of its blocks are head, as on average where patches are drawn inside a head."""

PLACES = ("json", "peer")
"""What is asked on the command line but is no setting: paths of this machine."""

OBJECTIVES = ("packed_light_vessels", "packed_light_hybrid", "packed_unet_hybrid")
"""Variants that are measured only if they are named."""

Step = Callable[[], None]


def main() -> None:
    """Measure what the command line asks for and write it as JSON."""
    arguments = parse()
    wanted = (RETURN_BUFFERS if arguments.peak_of else KEEP_BUFFERS) | SLEEP
    if sys.platform == "linux" and not wanted.items() <= os.environ.items():
        others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**others, **wanted})
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print(json.dumps(measure_peak(arguments, arguments.peak_of)))
        return
    variants = [name for name in arguments.variants if name != "nnssl" or arguments.peer]
    result = {
        "machine": describe_machine(arguments),
        "settings": {name: str(value) for name, value in vars(arguments).items() if name not in PLACES},
        "visible_share": visible_share(arguments),
        "seconds": time_in_turns(arguments, variants),
        "peak_mib": {} if arguments.no_memory else {name: peak_in_process(name) for name in variants},
    }
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--peer", type=Path, help="checkout of MIC-DKFZ/nnssl; needs dynamic-network-architectures")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="resenc_l")
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--ratio", type=float, default=0.75)
    parser.add_argument("--share", type=float, default=HybridConfig().share, help="of the second masking")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds; one more warms up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--checkpointing", action="store_true", help="our encoders recompute activations")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument(
        "--variants", nargs="+", choices=sorted(VARIANTS), default=[name for name in VARIANTS if name not in OBJECTIVES]
    )
    parser.add_argument("--peak-of", choices=sorted(VARIANTS), help=argparse.SUPPRESS)
    return parser.parse_args()


# What is measured ----------------------------------------------------------------------------------------------------


def packed_unet(arguments: argparse.Namespace) -> Step:
    """SparK with packed blocks and nnU-Net's decoder: the network of nnssl."""
    return spark_step(arguments, "packed", "unet")


def packed_unet_scored(arguments: argparse.Namespace) -> Step:
    """The same, its finest map decoded only where a hidden voxel of a head is scored."""
    return spark_step(arguments, "packed", "unet", "scored")


def packed_light(arguments: argparse.Namespace) -> Step:
    """SparK with packed blocks and the light decoder."""
    return spark_step(arguments, "packed", "light")


def packed_light_vessels(arguments: argparse.Namespace) -> Step:
    """The same with a further channel that tells how near vessels are."""
    return spark_step(arguments, "packed", "light", vessels=VesselConfig(distance_weight=1.0))


def packed_light_hybrid(arguments: argparse.Namespace) -> Step:
    """SparK with packed blocks, the light decoder and a second masking, compared with the first."""
    return spark_step(arguments, "packed", "light", hybrid=HybridConfig(weight=1.0, share=arguments.share))


def packed_unet_hybrid(arguments: argparse.Namespace) -> Step:
    """The same with nnU-Net's decoder."""
    return spark_step(arguments, "packed", "unet", hybrid=HybridConfig(weight=1.0, share=arguments.share))


def emulated_unet(arguments: argparse.Namespace) -> Step:
    """SparK by dense emulation and nnU-Net's decoder."""
    return spark_step(arguments, "emulated", "unet")


def spark_step(
    arguments: argparse.Namespace,
    backend: str,
    decoder: str,
    where: str = "all",
    vessels: VesselConfig | None = None,
    hybrid: HybridConfig | None = None,
) -> Step:
    """Build the step of our own model."""
    config = encoder_config(arguments)
    encoder = build_encoder(config)
    encoder.set_grad_checkpointing(arguments.checkpointing)
    model = SparK(
        encoder,
        DecoderConfig(kind=decoder, where=where),  # type: ignore[arg-type]
        SparKConfig(backend=backend),  # type: ignore[arg-type]
        in_channels=config.in_channels,
        vessels=vessels,
        hybrid=hybrid,
    )
    model = to_device(model, arguments)
    x, mask = patch_and_mask(arguments)
    head = head_of(arguments)
    steps_B1DHW = torch.randint(0, 200, head.shape, device=arguments.device).float() if vessels else None
    if hybrid is None:
        return train_step(arguments, model, lambda: model(x, MaskGeometry(mask), head, None, steps_B1DHW).loss)
    # What the first hides must be there to be seen.
    x, in_head = torch.randn_like(x), expand_cells(head[:, 0], tuple(mask.shape[1:]))[:, 0].cpu()
    draws = torch.Generator().manual_seed(1)
    second = torch.stack([draw_second_mask(*one, hybrid.share, draws) for one in zip(mask, in_head, strict=True)])
    return train_step(
        arguments,
        model,
        lambda: model(x, MaskGeometry(mask), head, None, None, MaskGeometry(torch.cat([mask, second]))).loss,
    )


def packed_encoder(arguments: argparse.Namespace) -> Step:
    """The packed encoder alone, forward and backward."""
    encoder = to_device(build_encoder(encoder_config(arguments)), arguments)
    x, mask = patch_and_mask(arguments)

    def loss() -> Tensor:
        maps = encode_visible(encoder, x, MaskGeometry(mask))
        return sum_of_squares([map_.data for map_ in maps])  # type: ignore[union-attr]

    return train_step(arguments, encoder, loss, optimise=False)


def oracle_encoder(arguments: argparse.Namespace) -> Step:
    """The plain dense encoder on a volume of the size of what is visible: the least that can be hoped for."""
    encoder = to_device(build_encoder(encoder_config(arguments)), arguments)
    x = torch.randn(arguments.batch, arguments.channels, *oracle_shape(arguments)).to(arguments.device)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return train_step(arguments, encoder, lambda: sum_of_squares(encoder(x)), optimise=False)


def dense_encoder(arguments: argparse.Namespace) -> Step:
    """The plain dense encoder on the whole patch, no mask."""
    encoder = to_device(build_encoder(encoder_config(arguments)), arguments)
    x, _ = patch_and_mask(arguments)
    return train_step(arguments, encoder, lambda: sum_of_squares(encoder(x)), optimise=False)


def nnssl(arguments: argparse.Namespace) -> Step:
    """The peer: SparK3D around the same residual encoder and decoder."""
    peer_path(arguments.peer)
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    from nnssl.architectures import spark_utils
    from nnssl.architectures.spark_model import SparK3D
    from nnssl.training.loss.spark_loss import SparkLoss

    config = encoder_config(arguments)
    stages = len(config.features)
    net = ResidualEncoderUNet(
        config.in_channels,
        stages,
        list(config.features),
        nn.Conv3d,
        [[config.kernel] * 3] * stages,
        [[stride] * 3 for stride in config.strides],
        list(config.blocks),
        config.in_channels,
        [1] * (stages - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    net.encoder = spark_utils.convert_to_spark_cnn(net.encoder)
    model, criterion = SparK3D(net, use_mask_token=True).to(arguments.device), SparkLoss()
    x, block_mask = patch_and_mask(arguments)
    mask = block_mask.unsqueeze(1).float().to(arguments.device)

    def loss() -> Tensor:
        spark_utils._cur_active = mask
        return criterion(prediction=model(x), groundtruth=x, mask=mask)

    return train_step(arguments, model, loss)


VARIANTS: dict[str, Callable[[argparse.Namespace], Step]] = {
    variant.__name__: variant
    for variant in (
        nnssl,
        emulated_unet,
        packed_unet,
        packed_unet_scored,
        packed_light,
        packed_light_vessels,
        packed_light_hybrid,
        packed_unet_hybrid,
        packed_encoder,
        oracle_encoder,
        dense_encoder,
    )
}


def train_step(
    arguments: argparse.Namespace, model: nn.Module, loss: Callable[[], Tensor], *, optimise: bool = True
) -> Step:
    """Return a function that does one step; without the optimizer, forward and backward alone."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.bf16):
            value = loss()
        value.backward()
        if optimise:
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()

    return step


# How it is measured --------------------------------------------------------------------------------------------------


def time_in_turns(arguments: argparse.Namespace, variants: list[str]) -> dict[str, dict[str, Any]]:
    """Let the variants take turns; give the median and all measurements in seconds."""
    steps = {name: VARIANTS[name](arguments) for name in variants}
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    scale = {name: oracle_scale(arguments) if name == "oracle_encoder" else 1.0 for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(arguments.rounds + 1):
        for name in variants if turn % 2 else reversed(variants):
            gc.collect()
            synchronise(arguments)
            start = clock()
            steps[name]()
            synchronise(arguments)
            if turn:
                seconds[name].append((clock() - start) * scale[name])
    return {name: {"median": statistics.median(values), "all": values} for name, values in seconds.items()}


def peak_in_process(name: str) -> float:
    """Measure the peak of one variant in a process of its own, in MiB."""
    command = [sys.executable, *sys.argv, "--peak-of", name]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure_peak(arguments: argparse.Namespace, name: str) -> float:
    """Return what two steps add to the memory in use at most, in MiB; parameters and optimizer included."""
    load_libraries(arguments)
    before = resident_mib()
    step = VARIANTS[name](arguments)
    for _ in range(2):
        step()
    if arguments.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident_mib() - before


def load_libraries(arguments: argparse.Namespace) -> None:
    """Do a tiny step, so that the code that a first step loads is not counted as its memory."""
    layers = nn.Conv3d(1, 8, 3), nn.InstanceNorm3d(8), nn.LeakyReLU(), nn.ConvTranspose3d(8, 1, 2, 2)
    model = nn.Sequential(*layers).to(arguments.device)
    x = torch.zeros(1, 1, 8, 8, 8, device=arguments.device)
    train_step(arguments, model, lambda: model(x).square().mean())()


def resident_mib() -> float:
    """Return the resident set of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_resident_mib() -> float:
    """Return the most that the resident set of this process has been; getrusage would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


def synchronise(arguments: argparse.Namespace) -> None:
    """Wait for the device."""
    if arguments.device == "cuda":
        torch.cuda.synchronize()


def describe_machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Say on what this was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.processor())
    return {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else cpu,
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def show(result: dict[str, Any]) -> None:
    """Print the figures as a table, beside the first variant's."""
    seconds, peaks = result["seconds"], result["peak_mib"]
    reference = next(iter(seconds))
    print(
        f"{result['machine']['device']}, {result['machine']['threads']} threads, visible {result['visible_share']:.3f}"
    )
    print(f"{'':16s} {'seconds':>9s} {'of ' + reference:>16s} {'peak MiB':>9s}")
    for name, times in seconds.items():
        share = times["median"] / seconds[reference]["median"]
        print(f"{name:16s} {times['median']:9.3f} {share:16.3f} {peaks.get(name, math.nan):9.0f}")


# What they share -----------------------------------------------------------------------------------------------------


def encoder_config(arguments: argparse.Namespace) -> EncoderConfig:
    """Return the preset with the channels asked for."""
    shape = PRESETS[arguments.preset]
    return EncoderConfig(
        in_channels=arguments.channels, features=shape.features, blocks=shape.blocks, strides=shape.strides
    )


def head_of(arguments: argparse.Namespace) -> Tensor:
    """Return what may be scored of a patch, bool (B, 1, D, H, W)."""
    line = torch.arange(arguments.patch) - (arguments.patch - 1) / 2
    z, y, x = ((line / axis + HEAD_SHIFT).square() for axis in HEAD)
    inside = z[:, None, None] + y[:, None] + x <= 1
    return inside.expand(arguments.batch, 1, *inside.shape).to(arguments.device)


def patch_and_mask(arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return the same random patch and mask for every variant; the patch is masked for those that do not do it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(arguments.batch, arguments.channels, *[arguments.patch] * 3, generator=generator)
    mask = draw_mask(arguments.batch, (arguments.patch // BLOCK,) * 3, arguments.ratio, generator)
    x = (x * expand_cells(mask, tuple(x.shape[2:]))).to(arguments.device)
    return x.contiguous(memory_format=torch.channels_last_3d), mask


def visible_share(arguments: argparse.Namespace) -> float:
    """Return the share of voxels that is visible."""
    return patch_and_mask(arguments)[1].float().mean().item()


def oracle_shape(arguments: argparse.Namespace) -> tuple[int, int, int]:
    """Return the edges of the most cubic volume of whole encoder cells with nearly the visible number of voxels."""
    cell = math.prod(PRESETS[arguments.preset].strides)
    wanted = visible_share(arguments) * (arguments.patch / cell) ** 3
    edges = range(1, arguments.patch // cell + 1)
    candidates = [(a, b, c) for a in edges for b in edges if b >= a for c in edges if c >= b]
    best = min(candidates, key=lambda abc: (round(abs(math.log(math.prod(abc) / wanted)), 1), abc[2] - abc[0]))
    return best[0] * cell, best[1] * cell, best[2] * cell


def oracle_scale(arguments: argparse.Namespace) -> float:
    """Return the visible number of voxels over the oracle's."""
    return visible_share(arguments) * arguments.patch**3 / math.prod(oracle_shape(arguments))


def sum_of_squares(maps: list[Tensor]) -> Tensor:
    """Give every map a gradient."""
    return torch.stack([map_.float().square().mean() for map_ in maps]).sum()


def to_device(model: nn.Module, arguments: argparse.Namespace) -> nn.Module:
    """Bring a model to its device, weights in the layout that suits packed blocks."""
    return model.to(arguments.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def peer_path(checkout: Path) -> None:
    """Make the peer importable."""
    sys.path.insert(0, str(checkout / "src" if (checkout / "src").is_dir() else checkout))


if __name__ == "__main__":
    main()
