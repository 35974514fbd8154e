"""The registry of raw sources: each is one module that finds and reads scans, and one entry here that all else reads.

Nothing is imported before it is needed: the list of commands shows every source, and loads none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from harmonize.errors import UserError, WrongUse
from harmonize.sources import own

if TYPE_CHECKING:
    from harmonize.scan import LeftOut, Scan, ScanRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms that a source gives its scans under.

    Attributes:
        licence: Its name, for the dataset card.
        link: Where the terms stand, "" where only the owner knows.
        may_share: Whether everybody may pass copies on.
        why_not: What stands against it otherwise, as half a sentence.
    """

    licence: str
    link: str
    may_share: bool = False
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """How a source's raw data are fetched.

    Attributes:
        title: What is fetched, for `harmonize fetch --help`.
        module: Has ``add_options(parser)`` and ``call(options)``, which gives the exit code.
    """

    title: str
    module: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What there is to know of a source without loading it.

    Attributes:
        title: What it is, for `harmonize --help`.
        expected: What its raw folder looks like, for whoever gives another.
        kind: What a folder like that is called.
        module: Reads it; see `Reader`. Of a file in ``HARMONIZE_SOURCES`` it is that file, whatever stands here.
        terms: Under which it gives its scans. Terms change: whoever publishes reads them again.
        mri_norm: How its MRI is normalised by default. Nyul needs many scans of one contrast to fit on.
        takes_options: The command has options of its own: the module has ``add_options(parser)``, and
            ``given(options)``, which makes of them what `Reader.discover` takes besides the root.
        opens_files: `Reader.discover` opens the files themselves, so that a look at the raw folder is worth sharing.
        phantom: Module that writes phantom raw data: ``write_scan`` gives what ``write_tables`` wants of all scans,
            and ``write_beside``, where there is something that is no part of the tree.
        download: How it is fetched.
    """

    title: str
    expected: str
    kind: str
    terms: Terms
    module: str = ""
    mri_norm: str = "zscore"
    takes_options: bool = False
    opens_files: bool = False
    phantom: str | None = None
    download: Download | None = None


SOURCES = {
    "openmind": Source(
        title="OpenMind: a tree of MRI NIfTI files with openneuro_metadata.csv",
        expected="a tree of NIfTI files such as OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz",
        kind="OpenMind's NIfTI",
        module="harmonize.sources.openmind",
        terms=Terms(licence="CC-BY-4.0", link="https://huggingface.co/datasets/AnonRes/OpenMind", may_share=True),
        mri_norm="nyul",
        phantom="harmonize.phantom.openmind",
        download=Download(title="a part of OpenMind, from the Hugging Face Hub", module="harmonize.fetch.openmind"),
    ),
    "tcia": Source(
        title="a folder of DICOM from The Cancer Imaging Archive",
        expected="a folder of DICOM files, in any layout",
        kind="DICOM",
        module="harmonize.sources.tcia",
        terms=Terms(
            licence="the collection's own",
            link="https://www.cancerimagingarchive.net/data-usage-policies-and-restrictions/",
            why_not="each collection has its own licence, and some are under controlled access",
        ),
        opens_files=True,
        phantom="harmonize.phantom.tcia",
        download=Download(
            title="a collection of The Cancer Imaging Archive, from its NBIA service",
            module="harmonize.fetch.tcia",
        ),
    ),
    "deeplesion": Source(
        title="DeepLesion: Images_png/ and DL_info.csv",
        expected="DL_info.csv and Images_png/ with a folder a series, such as 000001_01_01/103.png",
        kind="DeepLesion",
        module="harmonize.sources.deeplesion",
        terms=Terms(
            licence="NIH's terms of use",
            link="https://nihcc.box.com/v/DeepLesion",
            why_not="NIH hands it out itself, under its own terms",
        ),
        phantom="harmonize.phantom.deeplesion",
        download=Download(title="DeepLesion's archives, from NIH's list of them", module="harmonize.fetch.deeplesion"),
    ),
    "rsna": Source(
        title="RSNA 2025 intracranial aneurysm detection: series/, train.csv and more",
        expected="the competition's train.csv and series/<SeriesInstanceUID>/*.dcm",
        kind="the RSNA competition's download",
        module="harmonize.sources.rsna",
        terms=Terms(
            licence="the competition's rules",
            link="https://www.kaggle.com/competitions/rsna-intracranial-aneurysm-detection/rules",
            why_not="the competition's rules bind everybody who downloaded it",
        ),
        phantom="harmonize.phantom.rsna",
        download=Download(
            title="nothing: Kaggle hands RSNA 2025 out itself, and this says how", module="harmonize.fetch.rsna"
        ),
    ),
    "adam": Source(
        title="ADAM: TOF-MRA with unruptured aneurysms, their masks, places and radii",
        expected="ADAM's cases, such as 10001/orig/TOF.nii.gz, 10001/aneurysms.nii.gz and 10001/location.txt",
        kind="ADAM's cases",
        module="harmonize.sources.adam",
        terms=Terms(
            licence="the challenge's own",
            link="https://adam.isi.uu.nl/",
            why_not="the challenge's agreement binds everybody who downloaded it",
        ),
        phantom="harmonize.phantom.adam",
    ),
    "dicom": Source(
        title="a folder of your own DICOM, in any layout",
        expected="a folder of DICOM files, in any layout",
        kind="DICOM",
        module="harmonize.sources.dicom_folder",
        terms=Terms(licence="the owner's own", link="", why_not="only who owns the images knows who may have them"),
        opens_files=True,
    ),
    "nifti": Source(
        title="a folder of your own NIfTI images: BIDS, nnU-Net's layout, or any other",
        expected="a folder of NIfTI images, such as sub-01/anat/sub-01_T1w.nii.gz or imagesTr/case_0000.nii.gz",
        kind="NIfTI",
        module="harmonize.sources.nifti",
        terms=Terms(
            licence="the owner's own",
            link="",
            why_not="only who owns the images knows who may have them",
        ),
        takes_options=True,
        phantom="harmonize.phantom.nifti",
    ),
}


PHANTOM_DATA_SETS = {"topcow": "harmonize.phantom.topcow", "amos": "harmonize.phantom.amos"}
"""Published data sets that the source ``nifti`` reads, and what writes phantoms of them; see `Source.phantom`."""


class Reader(Protocol):
    """What the module of a source offers."""

    def discover(self, root: Path, **given: Any) -> Iterator[ScanRef | LeftOut]:
        """Yield one reference a volume, in a deterministic order, without reading pixels; and what was left out."""
        ...

    def load(self, ref: ScanRef) -> Scan:
        """Read one volume; raise `harmonize.errors.Rejection` if it must be rejected."""
        ...


def entry(name: str) -> Source:
    """What there is to know of the source of that name.

    Raises:
        UserError: No such source.
    """
    if name not in SOURCES:
        own.add(SOURCES)  # a process that reads scans meets their name first here
    if name not in SOURCES:
        raise WrongUse(f"source {name!r}: unknown; use one of {', '.join(SOURCES)}")
    return SOURCES[name]


def get(name: str) -> Reader:
    """Import the module that reads the source of that name.

    Raises:
        UserError: No such source.
    """
    return cast(Reader, import_module(entry(name).module))


def references(name: str, root: Path) -> Iterator[ScanRef]:
    """The references alone of what a source discovers.

    Raises:
        UserError: No such source, or the root is not laid out as the source's.
    """
    from harmonize.scan import ScanRef

    return (found for found in get(name).discover(root) if isinstance(found, ScanRef))


def inputs(ref: ScanRef) -> tuple[Path, ...]:
    """The files that `load` reads for a reference, in a fixed order.

    These are its paths and the files that its `meta` names; a source whose `load` looks for more has an ``inputs`` of
    its own.

    Raises:
        UserError: No such source.
    """
    own = getattr(get(ref.source), "inputs", None)
    if own is not None:
        return cast(tuple[Path, ...], own(ref))
    return (*ref.paths, *(value for value in ref.meta.values() if isinstance(value, Path)))


def check_still_there(root: Path) -> None:
    """Raise if the raw folder is gone, or empty as a mount point is when nothing is mounted on it.

    Raises:
        UserError: It is.
    """
    try:
        vanished = next(root.iterdir(), None) is None
    except OSError:
        vanished = True
    if vanished:
        raise UserError(f"{root}: vanished during the run; bring it back and run the same command again")
