"""The kernels written in Triton: what they compute, by its interpreter; that they compile for a GPU; who takes them.

What they launch and move is counted in ``test_gpu_steps.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gpu_steps import skip_or_fail

from headspark.packed import kernels
from headspark.packed.kernels import available

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def with_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        skip_or_fail("needs Triton, which comes with PyTorch for CUDA")


def test_they_compute_what_pytorch_does() -> None:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "ssl")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/kernels_interpreted.py"],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


POINTERS = {"first": "*i32", "neighbours": "*i32", "sample": "*i64", "slope": "fp32", "eps": "fp32"}
POINTERS |= dict.fromkeys(
    ["mean", "scale", "weight", "bias", "means", "squares", "sums", "shift", "pull", "grad_weight", "grad_bias"],
    "*fp32",
)
NORM = {"ROWS": 64, "C": 64, "OUTS": 1, "PRECISION": "tf32", "head": None}
HEAD = {"ROWS": 128, "C": 32, "OUTS": 16, "PRECISION": "tf32", "residual": None, "active": None, "grad_residual": None}


@pytest.mark.parametrize(
    ("room", "kernel", "constants"),
    [
        ("norm_act", "moments", {"FINAL": False, "ROWS": 64, "C": 64}),
        ("norm_act", "join_moments", {"PARTS": 256, "C": 32}),
        ("norm_act", "norm_act", NORM | {"head_bias": None}),
        ("norm_act", "norm_act", HEAD),
        ("norm_act", "gradient_sums", NORM),
        ("norm_act", "gradient_sums", HEAD),
        ("norm_act", "join_gradient_sums", {"PARTS": 256, "C": 32}),
        ("norm_act", "norm_act_gradient", NORM),
        ("norm_act", "norm_act_gradient", HEAD),
        ("halo", "gather", {"NORM": True, "COLUMNS": False, "ROWS": 64, "C": 64}),
        ("halo", "gather", {"NORM": True, "COLUMNS": True, "ROWS": 64, "C": 64}),
        ("halo", "sum_columns", {"ROWS": 64, "C": 64}),
    ],
)
def test_they_compile_for_a_gpu(room: str, kernel: str, constants: dict[str, Any]) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    function = getattr(importlib.import_module(f"headspark.packed.kernels.{room}"), kernel)
    names, maps = function.arg_names, ("rows", "grad", "out", "residual", "head", "head_bias", "active", "products")
    types = dict.fromkeys(names, "i32") | POINTERS | dict.fromkeys((*maps, "grad_rows", "grad_residual"), "*bf16")
    types |= dict.fromkeys(constants, "constexpr")
    aligned = [name for name in names if types[name].startswith("*") or name == "channels"]
    source = ASTSource(
        fn=function,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items() if name in names},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def test_a_cpu_is_left_to_pytorch() -> None:
    assert not kernels.take(torch.zeros(4, 3))


def test_where_triton_cannot_compile_pytorch_takes_over_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("Failed to find C compiler\nmore")

    monkeypatch.setattr(torch.ops.headspark, "moments", fail)
    assert not available.compiles_on.__wrapped__(torch.device("cpu"))
    said = capsys.readouterr().err
    assert said.startswith("Triton cannot compile for cpu (RuntimeError: Failed to find C compiler): norms")
