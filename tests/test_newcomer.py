"""What newcomers get wrong, tried one by one: one line, a stable exit code, and nothing written."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from finetune.cli import main as finetune
from harmonize.cli import main as harmonize
from harmonize.sources.contrast_words import CONTRASTS
from headspark.cli import main as headspark

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
PROGRAMS: dict[str, Callable[[list[str]], int]] = {"harmonize": harmonize, "headspark": headspark, "finetune": finetune}

WRONG, UNFINISHED = 2, 1
"""Exit codes: not understood, nothing was done; understood, and it could not be done."""

TINY = """{data: {patch: 16, workers: 0, val_share: 0.3}, encoder: {features: [4, 8], blocks: [1, 1], strides: [1, 2]},
  mask: {block: 8}, decoder: {stop_stride: 2, width: 4}, train: {steps: 2, threads: 1, val_samples: 1, trackers: []}}"""
TINY_FINE_TUNING = """{data: {patch: [16, 16, 16], folds: 2, workers: 0}, head: {stride: 2, width: 4, top: 2},
  scratch: {features: [4, 8], blocks: [1, 1], strides: [1, 2]}, train: {batch: 1, threads: 1},
  stages: [{name: all, steps: 2, head_lr: 0.01, encoder_lr: 0.01, layers: all}]}"""


# -------------------------------------------------------------------------------------- what a machine may be short of


@contextmanager
def full_disk() -> Iterator[None]:
    """Whatever is to be seen onto the disk does not fit there any more."""

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@contextmanager
def no_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@contextmanager
def no_memory() -> Iterator[None]:
    """Network layers do not fit into memory, in the words of PyTorch on a CPU."""

    def convolution(*_: object, **__: object) -> None:
        raise RuntimeError(ALLOCATION)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Conv3d, "forward", convolution)
        patch.setattr(torch.nn.functional, "conv3d", convolution)
        yield


@contextmanager
def no_network() -> Iterator[None]:
    """The Hub's address leads to nobody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@contextmanager
def nothing() -> Iterator[None]:
    yield


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A command that cannot work.

    Attributes:
        words: As it is typed.
        code: How it ends.
        says: All of the line on standard error, behind ``error: ``.
        short_of: What the machine lacks meanwhile.
    """

    words: str
    code: int
    says: str
    short_of: Callable[[], object] = nothing


NO_CORPUS = "no corpus there (corpus.json is missing); make one with `harmonize SOURCE RAW --out`"
NO_FOLDER = "no such folder; give a corpus, which `harmonize SOURCE RAW --out` makes"
TREE = "expected is a tree of NIfTI files such as OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz"
FULL = "No space left on device"
NO_ROOM = f"{FULL}; what was written before is intact: make room and give the same command again"
ALLOCATION = "DefaultCPUAllocator: can't allocate memory"
NO_MEMORY = f"not enough memory ({ALLOCATION}): take a smaller patch, batch, encoder or cache"
PRETRAIN = "headspark pretrain --config tiny.yaml --out RUN_2"
PREDICT = "finetune predict FT SERIES --out ANSWERS.parquet"
TRAIN = "finetune train --config tiny_ft.yaml --out FT_2"

MISTAKES = [
    # A folder that is none, or another one.
    Mistake(words="harmonize openmind NOWHERE --out CORPUS_2", code=WRONG, says=f"NOWHERE: no such folder; {TREE}"),
    Mistake(words="harmonize openmind FILE --out CORPUS_2", code=WRONG, says=f"FILE: a file, no folder; {TREE}"),
    Mistake(
        words="harmonize openmind EMPTY --out CORPUS_2",
        code=WRONG,
        says=f"EMPTY: no openmind scans found; it is empty; {TREE}",
    ),
    Mistake(
        words="harmonize openmind CORPUS --out CORPUS_2",
        code=WRONG,
        says="CORPUS: is a corpus that harmonize wrote; give the raw folder it was made from",
    ),
    Mistake(
        words="harmonize openmind RAW --out FILE", code=WRONG, says="FILE: a file, not a folder; choose another --out"
    ),
    Mistake(words=f"{PRETRAIN} --corpus NOWHERE", code=WRONG, says=f"NOWHERE: {NO_FOLDER}"),
    Mistake(words=f"{PRETRAIN} --corpus EMPTY", code=WRONG, says=f"EMPTY: {NO_CORPUS}"),
    Mistake(words=f"{PRETRAIN} --corpus RAW", code=WRONG, says=f"RAW: {NO_CORPUS}"),
    Mistake(
        words="headspark pretrain --config tiny.yaml --corpus CORPUS --out CORPUS",
        code=WRONG,
        says="CORPUS: not empty and no run; give --out a new folder",
    ),
    Mistake(words=f"{TRAIN} --corpus NOWHERE", code=WRONG, says=f"NOWHERE: {NO_FOLDER}"),
    Mistake(words=f"{TRAIN} --corpus EMPTY", code=WRONG, says=f"EMPTY: {NO_CORPUS}"),
    # A corpus without scans.
    Mistake(
        words=f"{PRETRAIN} --corpus NO_SCANS",
        code=UNFINISHED,
        says="NO_SCANS: no scan to train on; see `harmonize verify` and data.weights",
    ),
    # A word that is none.
    Mistake(
        words="harmonize nifti RAW --out CORPUS_2 --modality T1/T2",
        code=WRONG,
        says=f"--modality T1/T2: no word of letters and digits; use one of {', '.join(CONTRASTS)}",
    ),
    Mistake(
        words="harmonize opnmind RAW --out CORPUS_2",
        code=WRONG,
        says="opnmind: unknown command; did you mean openmind?",
    ),
    Mistake(
        words="harmonize openmind RAW --out CORPUS_2 --spacng 2",
        code=WRONG,
        says="--spacng: unknown option; did you mean --spacing?",
    ),
    Mistake(
        words="headspark pretrian --corpus CORPUS --out RUN_2",
        code=WRONG,
        says="argument COMMAND: invalid choice: 'pretrian' (choose from 'pretrain', 'push', 'recipes', 'embed', "
        "'doctor'); did you mean pretrain?; see `headspark --help`",
    ),
    Mistake(
        words=f"{PRETRAIN} --corpus CORPUS --train.stpes 3",
        code=WRONG,
        says="unknown key --train.stpes on the command line; did you mean --train.steps?",
    ),
    Mistake(
        words="headspark pretrain --config typo.yaml --corpus CORPUS --out RUN_2",
        code=WRONG,
        says="unknown key train.stpes in typo.yaml; did you mean train.steps?",
    ),
    Mistake(
        words="headspark pretrain --config demp --corpus CORPUS --out RUN_2",
        code=WRONG,
        says="--config demp: no such file, and no recipe of that name; did you mean demo?",
    ),
    Mistake(
        words=f"{PRETRAIN} --corpus CORPUS --train.steps three",
        code=WRONG,
        says="train.steps: Expected a int. Got value: three",
    ),
    Mistake(
        words="finetune train --config typo.yaml --corpus CORPUS --out FT_2",
        code=WRONG,
        says="unknown key train.stpes in typo.yaml; did you mean train.seed?",
    ),
    # No GPU.
    Mistake(
        words=f"{PRETRAIN} --corpus CORPUS --train.precision fp16",
        code=WRONG,
        says="train.precision fp16: needs a GPU; take bf16 or fp32 on a CPU",
        short_of=no_gpu,
    ),
    Mistake(
        words="finetune predict FT SERIES --device cuda --out ANSWERS.parquet",
        code=WRONG,
        says="--device cuda: there are 0 GPUs here",
        short_of=no_gpu,
    ),
    # What is given is something else.
    Mistake(
        words="headspark push NOWHERE --out ENCODER_2",
        code=WRONG,
        says="NOWHERE: no such file or folder, not a pretraining run; `headspark pretrain --out` makes one",
    ),
    Mistake(
        words="headspark push RUN --out FILE",
        code=WRONG,
        says="FILE: a file, where a folder is wanted; give the encoder a new folder",
    ),
    Mistake(
        words="finetune predict FT EMPTY --out ANSWERS.parquet",
        code=UNFINISHED,
        says="EMPTY: holds no DICOM pictures and no image; give a series, or many",
    ),
    Mistake(
        words="finetune predict FT NOWHERE --out ANSWERS.parquet",
        code=WRONG,
        says="NOWHERE: no such folder; give that of a series, of many, an image, or a list of these as text",
    ),
    Mistake(
        words="finetune predict ENCODER SERIES --out ANSWERS.parquet",
        code=WRONG,
        says="ENCODER: no fine-tuned model there (config.json is another's), but a pretrained encoder; let "
        "finetune train finish, or give its --out",
    ),
    Mistake(
        words="finetune predict FT SERIES --devic cuda",
        code=WRONG,
        says="unrecognized arguments: --devic cuda; did you mean --device?; see `finetune --help`",
    ),
    Mistake(words=PRETRAIN, code=WRONG, says="the following arguments are required: --corpus"),
    # The disk is full.
    Mistake(
        words="harmonize openmind RAW --out CORPUS_2 --workers 0",
        code=UNFINISHED,
        says=f"CORPUS_2: {FULL}; make room and run the same command again, it goes on from here",
        short_of=full_disk,
    ),
    Mistake(words=f"{PRETRAIN} --corpus CORPUS", code=UNFINISHED, says=NO_ROOM, short_of=full_disk),
    Mistake(words=f"{TRAIN} --corpus CORPUS", code=UNFINISHED, says=NO_ROOM, short_of=full_disk),
    Mistake(
        words="headspark push RUN --out ENCODER_2",
        code=UNFINISHED,
        says=f"ENCODER_2: {FULL}; nothing was written: make room and try again",
        short_of=full_disk,
    ),
    Mistake(words=PREDICT, code=UNFINISHED, says=NO_ROOM, short_of=full_disk),
    # Memory is short.
    Mistake(words=f"{PRETRAIN} --corpus CORPUS", code=UNFINISHED, says=NO_MEMORY, short_of=no_memory),
    Mistake(words=f"{TRAIN} --corpus CORPUS", code=UNFINISHED, says=NO_MEMORY, short_of=no_memory),
    Mistake(words=PREDICT, code=UNFINISHED, says=NO_MEMORY, short_of=no_memory),
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what newcomers have: raw scans, a corpus, a run, an encoder, a model, and things that are none."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(FIXTURES / "corpus", folder / "CORPUS")
    series = min((FIXTURES / "raw" / "rsna" / "series").iterdir())
    for name, place in {
        "RAW": FIXTURES / "raw" / "openmind", "RUN": FIXTURES / "run", "ENCODER": FIXTURES / "encoder",
        "FT": FIXTURES / "finetuned", "SERIES": series,
    }.items():  # fmt: skip
        shutil.copytree(place, folder / name)
    public = folder / "PUBLIC"  # a corpus that anybody may publish
    harmonize(["openmind", str(folder / "RAW"), "--out", str(public), "--spacing", "4", "--workers", "0"])
    (folder / "EMPTY").mkdir()
    (folder / "FILE").write_text("hello")
    shutil.copytree(folder / "CORPUS", folder / "NO_SCANS")
    pq.write_table(pq.read_table(folder / "CORPUS/metadata.parquet").slice(0, 0), folder / "NO_SCANS/metadata.parquet")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "tiny_ft.yaml").write_text(TINY_FINE_TUNING)
    (folder / "typo.yaml").write_text("train: {stpes: 5}")
    return folder


def clear(folder: Path) -> None:
    """Remove what a command wrote."""
    for path in (*folder.glob("*_2"), *folder.glob("ANSWERS*"), *folder.glob("VECTORS*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "mistake",
    MISTAKES,
    ids=lambda one: f"{one.words}{'' if one.short_of is nothing else f' ({one.short_of.__name__})'}",
)
def test_a_mistake_is_answered_with_one_line_and_a_stable_exit_code(
    mistake: Mistake, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    before = files_in(desk)
    program, *words = mistake.words.split()
    with mistake.short_of():
        code = PROGRAMS[program](words)
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    faults = [line.removeprefix("error: ") for line in shown.splitlines() if line.startswith("error: ")]
    assert faults == [mistake.says]
    assert code == mistake.code
    if mistake.code == WRONG:
        assert files_in(desk) == before
    clear(desk)


@pytest.mark.parametrize(
    "words",
    [
        "headspark push RUN --repo user/name",
        "finetune push FT --repo user/name",
        "harmonize publish PUBLIC --repo user/name",
        f"{TRAIN} --corpus CORPUS --encoder user/name",
        "finetune predict user/name SERIES --out ANSWERS.parquet",
        "headspark embed CORPUS --encoder user/name --out VECTORS.parquet",
    ],
)
def test_a_hub_that_nobody_answers_at_is_one_line_about_the_repository(
    words: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    program, *rest = words.split()
    with no_network():
        code = PROGRAMS[program](rest)
    shown = capsys.readouterr().err
    (fault,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert "user/name" in fault or "HF_HUB_OFFLINE" in fault
    assert "Traceback" not in shown
    assert code in (UNFINISHED, WRONG)  # wrong use is to push while the client was told to stay offline
    clear(desk)


def test_every_message_of_the_page_is_one_that_the_code_writes() -> None:
    whole = re.sub(r"\n {4}", " ", PAGE)  # a long line goes on in the next one
    quoted = re.findall(r"^error: (.+)$", whole, re.MULTILINE)
    assert len(quoted) >= 20
    assert [line for line in quoted if line not in {one.says for one in MISTAKES}] == []
