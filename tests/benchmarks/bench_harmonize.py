"""Time and memory of harmonize beside the chains that people use today, each on one thread.

    python tests/benchmarks/bench_harmonize.py --json harmonize.json
    python tests/benchmarks/bench_harmonize.py --json harmonize.json --quick           # an eighth of the voxels, to try
    python tests/benchmarks/bench_harmonize.py --json harmonize.json --cases ct_nifti --rounds 7

Every variant lives in a process of its own, which has imported its libraries and done one round before anything
counts; then the variants take turns, in one order and the reverse. Reported are medians of wall-clock time and of
processor time (the one to look at where others share the machine), and the peak of the resident set, libraries
included. TorchIO and dcm2niix take part where they are installed: pip install torchio dcm2niix.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from harmonize.pool import WORKER_ENVIRONMENT

Variant = Callable[[Path, Path], object]
"""Reads from the first folder, writes into the second."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
SCANS_FOR_SCALING = 24


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured on one kind of input.

    Attributes:
        what: For the table.
        write: Makes the input in a folder; the number divides its edges.
        variants: By name.
        ours: The variant that the ratio is of.
        peer: The variant that it is to.
        wanted: Ratio aimed at, at most.
    """

    what: str
    write: Callable[[Path, int], None]
    variants: dict[str, Variant]
    ours: str
    peer: str
    wanted: float


def main() -> None:
    """Measure what the command line asks for and write it as JSON."""
    arguments = parse()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    result: dict[str, Any] = {"machine": describe_machine(), "rounds": arguments.rounds, "quick": arguments.quick}
    with tempfile.TemporaryDirectory(dir=arguments.scratch, ignore_cleanup_errors=True) as scratch:
        result["cases"] = {name: measure(name, Path(scratch) / name, arguments) for name in arguments.cases}
    result["load_at_end"] = os.getloadavg()
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds; one more warms up")
    parser.add_argument("--quick", action="store_true", help="half the edge lengths")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--scratch", type=Path, help="where the scans are written, about 1 GB; default: TMPDIR")
    return parser.parse_args()


# How it is measured --------------------------------------------------------------------------------------------------


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let the variants of one case take turns."""
    case = CASES[name]
    raw = folder / "raw"
    raw.mkdir(parents=True)
    spawn = multiprocessing.get_context("spawn")
    # In a process of its own, because the peak of a process counts for those that it starts.
    writer = spawn.Process(target=write_input, args=(name, raw, 2 if arguments.quick else 1))
    writer.start()
    writer.join()
    workers: dict[str, Connection] = {}
    left_out: dict[str, str] = {}
    for variant in case.variants:
        ours, theirs = spawn.Pipe()
        # As the workers of a run have it.
        os.environ.update(WORKER_ENVIRONMENT if variant == "headspark" else {})
        spawn.Process(target=serve, args=(theirs, name, variant, raw, folder / variant)).start()
        for extra in WORKER_ENVIRONMENT.keys() - set(THREADS):
            os.environ.pop(extra, None)
        fault = ours.recv()
        if fault is None:
            workers[variant] = ours
        else:
            left_out[variant] = fault
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in workers}
    for turn in range(arguments.rounds):
        for variant in list(workers) if turn % 2 else reversed(list(workers)):
            workers[variant].send(True)
            found[variant].append(workers[variant].recv())
    for connection in workers.values():
        connection.send(False)
    shutil.rmtree(folder)
    summary = {variant: summarise(rounds) for variant, rounds in found.items()}
    ratios = {
        clock: summary[case.ours][clock] / summary[case.peer][clock]
        for clock in ("wall_s", "cpu_s")
        if case.peer in summary
    }
    return {
        "what": case.what, "variants": summary, "left_out": left_out,
        "ratio": ratios, "of": [case.ours, case.peer], "wanted": case.wanted,
    }  # fmt: skip


def write_input(case: str, folder: Path, divisor: int) -> None:
    """Make the input of a case."""
    CASES[case].write(folder, divisor)


def serve(connection: Connection, case: str, variant: str, raw: Path, out: Path) -> None:
    """Do a variant once to warm up, then whenever told to."""
    call = CASES[case].variants[variant]
    try:
        call(raw, fresh(out))
    except (ImportError, FileNotFoundError) as error:
        connection.send(str(error))
        return
    connection.send(None)
    while connection.recv():
        fresh(out)
        wall, cpu = time.perf_counter(), cpu_seconds()
        call(raw, out)
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        connection.send(
            {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu, "peak_gb": peak * 1024 / 1e9}
        )


def fresh(folder: Path) -> Path:
    """Empty a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def summarise(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Give medians, the largest peak, and all that was measured."""
    medians = {clock: statistics.median(one[clock] for one in rounds) for clock in ("wall_s", "cpu_s")}
    return {**medians, "peak_gb": max(one["peak_gb"] for one in rounds), "all": rounds}


def describe_machine() -> dict[str, Any]:
    """Say on what this was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.processor())
    return {"cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()}


def show(result: dict[str, Any]) -> None:
    """Print the figures as a Markdown table."""
    print("| case | variant | wall s | cpu s | peak GB |\n|---|---|---:|---:|---:|")
    for case in result["cases"].values():
        for variant, found in case["variants"].items():
            row = f"{found['wall_s']:.2f} | {found['cpu_s']:.2f} | {found['peak_gb']:.2f}"
            print(f"| {case['what']} | {variant} | {row} |")
    for case in result["cases"].values():
        ours, peer = case["of"]
        ratios = ", ".join(f"{clock.removesuffix('_s')} {value:.2f}" for clock, value in case["ratio"].items())
        left_out = "".join(f"; without {name}: {fault}" for name, fault in case["left_out"].items())
        print(f"{case['what']}: {ours} / {peer} = {ratios} (wanted: {case['wanted']:g}){left_out}")


# The input -----------------------------------------------------------------------------------------------------------


def head_ct(shape_XYZ: tuple[int, int, int]) -> np.ndarray:
    """A head of ellipsoids in HU with the noise of a scanner, so that it packs about as well as a real one; int16."""
    rng = np.random.default_rng(0)
    x, y, z = (np.linspace(-1, 1, count, dtype=np.float32) for count in shape_XYZ)
    radius = (x[:, None, None] / 0.75) ** 2 + (y[:, None] / 0.9) ** 2 + (z / 1.1) ** 2
    values = np.where(radius < 1, np.float32(40), np.float32(-1000))
    values[(radius > 0.85) & (radius < 1)] = 900
    values += 60 * np.sin(9 * x)[:, None, None] * (radius < 0.85)
    values += rng.standard_normal(values.shape, dtype=np.float32) * 10
    return np.maximum(values, -1024).astype(np.int16)


def write_ct_nifti(folder: Path, divisor: int) -> None:
    """512 x 512 x 400 voxels of 0.45 x 0.45 x 0.5 mm, stored L, P, S as dcm2niix leaves them."""
    import nibabel as nib

    shape = (512 // divisor, 512 // divisor, 400 // divisor)
    nib.save(nib.Nifti1Image(head_ct(shape), np.diag([-0.45, -0.45, 0.5, 1])), folder / "ct.nii.gz")


def write_ct_dicom(folder: Path, divisor: int) -> None:
    """The same as 400 uncompressed DICOM files."""
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    voxels = head_ct((512 // divisor, 512 // divisor, 400 // divisor))
    study, series, frame = (generate_uid(entropy_srcs=[name]) for name in ("study", "series", "frame"))
    for k in range(voxels.shape[2]):
        dataset = pydicom.Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[f"slice {k}"])
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.PatientID, dataset.PatientName = "bench", "bench"
        dataset.Modality, dataset.ImageType, dataset.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], k + 1
        dataset.Rows, dataset.Columns, dataset.PixelSpacing = voxels.shape[1], voxels.shape[0], [0.45, 0.45]
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0.5 * k]
        dataset.SliceThickness, dataset.RescaleSlope, dataset.RescaleIntercept = 0.5, 1, -1024
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.PixelData = np.ascontiguousarray((voxels[:, :, k].T + 1024).astype("<u2")).tobytes()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(folder / f"{k:04d}.dcm", enforce_file_format=True)


def write_mri(folder: Path, divisor: int) -> None:
    """256^3 voxels of MRI with a third of foreground, and a standard histogram that three such scans agree on."""
    from intensity_normalization import NyulNormalizer, create_image

    rng = np.random.default_rng(0)
    edge = 256 // divisor
    axis = np.linspace(-1, 1, edge, dtype=np.float32)
    foreground = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 0.75
    tissue = 300 + 200 * np.sin(6 * axis)[:, None, None] * np.cos(5 * axis)[:, None] + 60 * axis
    values = np.where(foreground, tissue, 0) + np.abs(rng.normal(0, 12, foreground.shape))
    np.save(folder / "values.npy", values.astype(np.float32))
    np.save(folder / "foreground.npy", foreground)
    sample = [values[::2, ::2, ::2] * scale for scale in (0.9, 1.0, 1.2)]
    library = NyulNormalizer()
    library.fit_population([create_image(one) for one in sample], [create_image(foreground[::2, ::2, ::2])] * 3)
    library.save_standard_histogram(str(folder / "nyul.npy"))


@lru_cache
def mri(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read what `write_mri` wrote, once a process."""
    return np.load(folder / "values.npy"), np.load(folder / "foreground.npy")


def write_deeplesion(folder: Path, divisor: int) -> None:
    """One run of 60 PNG slices, 512 x 512 voxels of 0.8 x 0.8 x 5 mm, with its table."""
    from PIL import Image

    voxels = head_ct((512 // divisor, 512 // divisor, 60))
    series = folder / "Images_png" / "000001_01_01"
    series.mkdir(parents=True)
    for k in range(60):
        Image.fromarray((voxels[:, :, k].T.astype(np.int32) + 32768).astype(np.uint16)).save(series / f"{k:03d}.png")
    (folder / "DL_info.csv").write_text(
        'File_name,Slice_range,Spacing_mm_px_\n000001_01_01_030.png,"0, 59","0.8, 0.8, 5"\n'
    )


def write_many(folder: Path, divisor: int) -> None:
    """The CT many times over, in an OpenMind tree."""
    write_ct_nifti(folder, divisor)
    for number in range(SCANS_FOR_SCALING):
        path = folder / "tree" / f"OpenMind/ds000001/sub-{number:02d}/ct/sub-{number:02d}_CT.nii.gz"
        path.parent.mkdir(parents=True)
        path.hardlink_to(folder / "ct.nii.gz")
    rows = "".join(f"ds000001/sub-{n:02d}/ct/sub-{n:02d}_CT.nii.gz,CT\n" for n in range(SCANS_FOR_SCALING))
    (folder / "tree" / "openneuro_metadata.csv").write_text(f"image_path,modality\n{rows}")


# headspark -----------------------------------------------------------------------------------------------------------


def headspark_nifti(raw: Path, out: Path) -> None:
    """One NIfTI file through all of harmonize: anti-aliased, with its foreground, statistics, hash and fsync."""
    from harmonize.engine.one_scan import process
    from harmonize.scan import ScanRef
    from harmonize.settings import Settings

    ref = ScanRef(
        source="openmind", key="ct", root=raw, paths=(raw / "ct.nii.gz",), subject="s", modality="CT", public_id="ct"
    )
    assert process(ref, corpus=out, settings=Settings()).row is not None


def headspark_source(raw: Path, out: Path, *, source: str) -> None:
    """A raw folder through all of harmonize, its discovery included."""
    from harmonize import sources
    from harmonize.engine.one_scan import process
    from harmonize.settings import Settings

    for ref in sources.references(source, raw):
        assert process(ref, corpus=out, settings=Settings()).row is not None


def headspark_nyul(raw: Path, out: Path) -> None:
    """Landmarks and transform, in memory."""
    from harmonize.voxels import nyul

    values, foreground = mri(raw)
    nyul.transform(values, values[foreground], nyul.load(raw / "nyul.npy"))


def headspark_workers(raw: Path, out: Path, *, workers: int) -> None:
    """A whole run, the start of its processes included."""
    from harmonize import engine
    from harmonize.settings import Settings

    summary = engine.run("openmind", raw / "tree", out / "corpus", Settings(), workers=workers)
    assert summary.accepted == SCANS_FOR_SCALING


# What people use -----------------------------------------------------------------------------------------------------


def monai_chain(raw: Path, out: Path) -> None:
    """LoadImage, Orientation, Spacing, SaveImage."""
    import torch
    from monai.transforms import Compose, LoadImage, Orientation, SaveImage, Spacing

    torch.set_num_threads(1)
    chain = Compose(
        [
            LoadImage(image_only=True, ensure_channel_first=True),
            Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacing(pixdim=(1.0, 1.0, 1.0), mode="bilinear"),
            SaveImage(output_dir=out, output_dtype=np.int16, separate_folder=False, print_log=False),
        ]
    )
    chain(raw / "ct.nii.gz")


def torchio_chain(raw: Path, out: Path) -> None:
    """ToCanonical and Resample."""
    import torch
    import torchio

    torch.set_num_threads(1)
    image = torchio.Resample(1.0)(torchio.ToCanonical()(torchio.ScalarImage(raw / "ct.nii.gz")))
    image.save(out / "ct.nii.gz")


def sitk_nifti(raw: Path, out: Path) -> None:
    """ReadImage and a linear resample: no anti-aliasing."""
    import SimpleITK as sitk

    sitk_resample(sitk.ReadImage(raw / "ct.nii.gz"), out)


def sitk_dicom(raw: Path, out: Path) -> None:
    """ImageSeriesReader and a linear resample: no anti-aliasing, and no look at tilt or gaps."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(raw)))
    sitk_resample(reader.Execute(), out)


def sitk_deeplesion(raw: Path, out: Path) -> None:
    """A PNG series, its spacing set by hand, and a linear resample."""
    import SimpleITK as sitk

    files = sorted((raw / "Images_png" / "000001_01_01").glob("*.png"))
    image = sitk.Cast(sitk.ReadImage([str(path) for path in files]), sitk.sitkInt32) - 32768
    image = sitk.Cast(image, sitk.sitkInt16)
    image.SetSpacing((0.8, 0.8, 5.0))
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    sitk_resample(image, out)


def dcm2niix_sitk(raw: Path, out: Path) -> None:
    """dcm2niix, then a linear resample: two passes over the disk."""
    import SimpleITK as sitk

    subprocess.run(["dcm2niix", "-z", "y", "-1", "-f", "ct", "-o", out, raw], check=True, capture_output=True)
    sitk_resample(sitk.ReadImage(out / "ct.nii.gz"), out)


def sitk_resample(image: Any, out: Path) -> None:
    """Orient, resample to 1 mm and write as .nii.gz."""
    import SimpleITK as sitk

    image = sitk.DICOMOrient(image, "RAS")
    size = [max(1, round(count * spacing)) for count, spacing in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    resampled = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), (1.0, 1.0, 1.0), image.GetDirection(), -1024
    )
    sitk.WriteImage(resampled, out / "resampled.nii.gz", useCompression=True)


def library_nyul(raw: Path, out: Path) -> None:
    """intensity-normalization's own, in memory."""
    from intensity_normalization import NyulNormalizer, create_image

    library = NyulNormalizer()
    library.load_standard_histogram(str(raw / "nyul.npy"))
    values, foreground = mri(raw)
    library.transform(create_image(values), create_image(foreground)).get_data()


CASES = {
    "ct_nifti": Case(
        what="CT 512x512x400 .nii.gz",
        write=write_ct_nifti,
        variants={
            "headspark": headspark_nifti,
            "monai": monai_chain,
            "torchio": torchio_chain,
            "simpleitk": sitk_nifti,
        },
        ours="headspark",
        peer="monai",
        wanted=0.30,
    ),
    "ct_dicom": Case(
        what="CT 512x512x400 DICOM",
        write=write_ct_dicom,
        variants={
            "headspark": partial(headspark_source, source="tcia"),
            "simpleitk": sitk_dicom,
            "dcm2niix + simpleitk": dcm2niix_sitk,
        },
        ours="headspark",
        peer="simpleitk",
        wanted=0.5,
    ),
    "nyul": Case(
        what="Nyul of MRI 256^3",
        write=write_mri,
        variants={"headspark": headspark_nyul, "intensity-normalization": library_nyul},
        ours="headspark",
        peer="intensity-normalization",
        wanted=0.1,
    ),
    "deeplesion": Case(
        what="DeepLesion run of 60 slices",
        write=write_deeplesion,
        variants={"headspark": partial(headspark_source, source="deeplesion"), "simpleitk": sitk_deeplesion},
        ours="headspark",
        peer="simpleitk",
        wanted=1.0,
    ),
    "workers": Case(
        what=f"{SCANS_FOR_SCALING} CT .nii.gz, a whole run",
        write=write_many,
        variants={
            "1 worker": partial(headspark_workers, workers=1),
            "2 workers": partial(headspark_workers, workers=2),
        },
        ours="2 workers",
        peer="1 worker",
        wanted=1 / 1.8,
    ),
}

if __name__ == "__main__":
    main()
