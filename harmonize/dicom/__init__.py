"""Turn DICOM files into scans: group their pictures into volumes, fit the geometry, read the pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom import owners, strays
from harmonize.dicom.doubts import settle_doubts
from harmonize.dicom.elements import looks_like_dicom
from harmonize.dicom.estimate import Estimator, placed
from harmonize.dicom.geometry import MIN_TILT_DEG, StackGeometry, fit_stack
from harmonize.dicom.grouping import MIN_SLICES, Stack, group_series
from harmonize.dicom.headers import Frame, read_frames
from harmonize.dicom.pixels import read_values
from harmonize.dicom.repeats import one_picture_a_place, picture_of, read_some
from harmonize.dicom.rescale import settle_rescale
from harmonize.dicom.units import settle_units
from harmonize.errors import Reason, Rejection, Stage, UserError, unforeseen
from harmonize.raw_tree import VOLUME_SUFFIXES, RawTree, suffix_of
from harmonize.scan import Scan
from harmonize.time_limit import ONE_TURN
from harmonize.voxels import interleaving

_INDEX = "DICOMDIR"
_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a source allows beyond the strict reading.

    Attributes:
        min_slices: Fewer slices are no volume.
        keep_derived: Accept reformats: the source's series were chosen by hand.
        assume_geometry: Accept multi-frame files that lost their geometry, as axial in frame order.
    """

    min_slices: int = MIN_SLICES
    keep_derived: bool = False
    assume_geometry: bool = False


STRICT = Rules()


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomVolume:
    """One volume of a series, or a rejected part of it, as the headers describe it; no pixel has been read.

    Attributes:
        paths: Its files, in slice order.
        series_uid: SeriesInstanceUID; empty for files that cannot be parsed or do not say.
        member: What sets its pictures apart from those of other patients, studies ... under the same series UID, as
            (name, value) of `dicom_traits.IDENTITY`; empty where the series has one owner. May be patient text.
        number: Among the volumes of the series, or of that member of it.
        part: Among those of them that have exactly the same files.
        stack: Its pictures; none where the file cannot be parsed.
    """

    paths: tuple[Path, ...]
    series_uid: str
    number: int
    part: int
    stack: Stack
    member: tuple[tuple[str, str], ...] = ()

    @property
    def rejection(self) -> Rejection | None:
        """Why it is no scan, or None."""
        return self.stack.rejection


def is_dicom_name(name: str) -> bool:
    """Whether a file of that name is DICOM, or damaged; of other names the first bytes tell."""
    return Path(name).suffix.lower() in _DICOM_SUFFIXES


def find_files(root: Path) -> list[Path]:
    """All files under `root` that may be DICOM, in a fixed order; what cannot be read comes last, to be rejected."""
    tree = RawTree(root, is_dicom_name)
    return [path for path in tree.files() if take(path, tree)] + [path for path, _ in tree.unread]


def take(path: Path, tree: RawTree) -> bool:
    """Whether a file may be DICOM; if not, `tree` is told why."""
    if is_dicom_name(path.name):
        return True
    if path.name.upper() == _INDEX:
        tree.count(_INDEX, "an index, no image")
        return False
    suffix = suffix_of(path.name)
    try:
        with path.open("rb") as stream:
            if looks_like_dicom(stream):
                return True
    except OSError as error:
        if suffix and suffix not in VOLUME_SUFFIXES:
            tree.leave(path.name, "cannot be read")
        else:
            tree.reject_unread(path, "a file", error)
        return False
    if suffix.startswith(tuple(_DICOM_SUFFIXES)):
        tree.reject(path, Reason.UNSUPPORTED_ENCODING, "a packed DICOM file; unpack it")
    elif suffix in VOLUME_SUFFIXES:
        tree.reject(path, Reason.UNSUPPORTED_ENCODING, "an image of another format among DICOM files")
    else:
        tree.leave(path.name, "no DICOM")
    return False


def find_volumes(paths: Iterable[Path], rules: Rules = STRICT) -> list[DicomVolume]:
    """Read the headers of DICOM files and group their pictures into volumes.

    Args:
        paths: The files, of any number of series.
        rules: What the source allows.

    Returns:
        Every file that holds a picture, or that should and cannot be read, in at least one volume; ordered by
        SeriesInstanceUID. Volumes with a `rejection` are no scans.
    """
    series: dict[str, list[Frame]] = defaultdict(list)
    damaged: list[tuple[Path, Rejection]] = []
    for path in paths:
        try:
            with ONE_TURN:
                frames = read_frames(path, keep_derived=rules.keep_derived, assume_geometry=rules.assume_geometry)
        except Rejection as rejection:
            damaged.append((path, rejection.at(Stage.DISCOVER)))
        except OSError as error:
            reason = Reason.MISSING_FILE if isinstance(error, FileNotFoundError) else Reason.IO_ERROR
            message = f"a file cannot be read: {error.strerror}"
            damaged.append((path, Rejection(reason, message, stage=Stage.DISCOVER)))
        except UserError:
            raise
        except Exception as error:
            # One file must not end the look at a hundred thousand.
            damaged.append((path, unforeseen(error).at(Stage.DISCOVER)))
        else:
            for frame in frames:
                # Without a series UID (some anonymisers drop it) a folder is the best guess at a series.
                series[frame.header.series_uid or path.parent.as_posix()].append(frame)
    _join_drawn(series)
    volumes = []
    for frames in (series[name] for name in sorted(series)):
        volumes += _volumes_or_rejection(frames, rules)
    for path, fault in damaged:
        stack = Stack(frames=(), rejection=fault)
        volumes.append(DicomVolume(paths=(path,), series_uid="", number=0, part=0, stack=stack))
    return volumes


def load_volume(volume: DicomVolume, *, estimate: Estimator | None = None) -> Scan:
    """Read the pixels of a volume.

    Args:
        volume: Which.
        estimate: Where its file says nothing of its geometry, this does by the head that is seen.

    Returns:
        The scan in the geometry of its slices: sheared where the gantry was tilted, with `slice_offsets` where the
        slices are uneven.

    Raises:
        Rejection: The volume is rejected, or its pixels or positions cannot be used.
    """
    if volume.rejection:
        raise volume.rejection.at(Stage.LOAD)
    try:
        settled, stated, rescaled = settle_rescale(volume.stack.frames)
        frames, repeated = one_picture_a_place(settled)
        geometry = fit_stack([f.position for f in frames], frames[0].orientation, frames[0].spacing)
        voxels_ZYX, read = read_values([picture_of(frame) for frame in frames], modality=frames[0].header.modality)
    except FileNotFoundError as error:
        raise Rejection(Reason.MISSING_FILE, "a file of the series has gone") from error
    except OSError as error:
        raise Rejection(Reason.IO_ERROR, f"a file of the series cannot be read: {error.strerror}") from error
    voxels_ZYX, unit, understood = settle_units(voxels_ZYX, frames, stated=stated, read=read_some)
    seen = estimate(voxels_ZYX, unit) if estimate is not None and frames[0].unsaid else None
    if seen is not None:
        order = frames
        frames, decision = placed(frames, seen)
        voxels_ZYX = voxels_ZYX if frames[0].index == order[0].index else voxels_ZYX[::-1]
        geometry = fit_stack([f.position for f in frames], frames[0].orientation, frames[0].spacing)
        understood = [*understood, decision]
    if interleaving.standing_apart(interleaving.sample_slices(voxels_ZYX, axis=0), interleaving.WOVEN):
        raise Rejection(
            Reason.MIXED_VOLUMES, "slices alternate in intensity like volumes woven into one; no header sorts them"
        )
    return Scan(
        voxels_XYZ=voxels_ZYX.transpose(2, 1, 0),
        affine=geometry.affine,
        slice_offsets=geometry.slice_offsets,
        modality=frames[0].header.contrast,
        unit=unit,
        decisions=(
            *volume.stack.decisions,
            *owners.notes(frames),
            *repeated,
            *strays.notes(frames),
            *describe_geometry(frames, geometry),
            *rescaled,
            *read,
            *understood,
        ),
    )


def reload_volume(paths: Sequence[Path], part: int = 0, rules: Rules = STRICT) -> Scan:
    """Load the volume that `find_volumes` found to have exactly the files `paths` (and number `part` among those).

    Raises:
        Rejection: See `load_volume`; also if the files have changed since.
    """
    wanted = frozenset(paths)
    volumes = find_volumes(paths, rules)
    for volume in volumes:
        if volume.part == part and frozenset(volume.paths) == wanted:
            return load_volume(volume)
    for volume in volumes:
        if volume.rejection:
            raise volume.rejection.at(Stage.LOAD)
    raise Rejection(Reason.MIXED_GEOMETRY, "the files of the series no longer form the volume that was found")


def describe_geometry(frames: Sequence[Frame], geometry: StackGeometry) -> list[Decision]:
    """What a person should know about the places of the slices, in a few short lines."""
    header = frames[0].header
    found = [DecisionKind.SLICES(count=len(frames), modality=header.modality, step_mm=geometry.step_mm)]
    if header.pixels.tiles > 1:
        found.append(DecisionKind.MOSAIC_CUT(tiles=header.pixels.tiles))
    elif header.frames_of_file > 1:
        found.append(DecisionKind.MULTI_FRAME(count=header.frames_of_file))
    if frames[0].assumed:
        found.append(DecisionKind.GEOMETRY_ASSUMED(assumed=frames[0].assumed))
    if frames[0].doubt:
        found.append(DecisionKind.DOUBT_REFUTED())
    if frames[0].straightened:
        found.append(DecisionKind.STRAIGHTENED())
    rounded = sum(frame.rounded for frame in frames)
    if rounded:
        found.append(DecisionKind.ROUNDED_GEOMETRY(count=rounded))
    if geometry.tilt_deg > MIN_TILT_DEG:
        found.append(DecisionKind.TILTED(tilt_deg=geometry.tilt_deg))
    if geometry.missing:
        found.append(DecisionKind.MISSING_SLICES(count=geometry.missing))
    elif geometry.slice_offsets is not None:
        low, high = geometry.gaps_mm
        found.append(DecisionKind.UNEVEN_SLICES(low_mm=low, high_mm=high))
    return found


def _join_drawn(series: dict[str, list[Frame]]) -> None:
    """Join the files of a folder for each of which an anonymiser drew a series UID of its own.

    They must have one series number, and one patient or study: a folder of single slices of many series has not.
    Where the number was taken out, too, the instance numbers must all differ; single slices of many series repeat them.
    """
    folders: dict[Path, list[str]] = defaultdict(list)
    for name, frames in series.items():
        if len(frames) == 1 and frames[0].rejection is None and frames[0].header.series_uid:
            folders[frames[0].header.path.parent].append(name)
    for folder, names in folders.items():
        frames = [frame for name in names for frame in series[name]]
        numbers = {frame.traits.get("series", "") for frame in frames}
        owners = ({frame.header.patient_id for frame in frames}, {frame.header.study_uid for frame in frames})
        if len(frames) < MIN_SLICES or len(numbers) > 1:
            continue
        if numbers == {""} and len({frame.instance for frame in frames}) < len(frames):
            continue
        if any(len(owner) == 1 and owner != {""} for owner in owners):
            for name in names:
                del series[name]
            series[folder.as_posix()].extend(frames)


def _volumes_or_rejection(frames: Sequence[Frame], rules: Rules) -> list[DicomVolume]:
    try:
        with ONE_TURN:
            return _volumes_of(frames, rules)
    except (UserError, OSError):
        raise
    except Exception as error:
        # Nor must one series.
        fault = error if isinstance(error, Rejection) else unforeseen(error)
        stack = Stack(frames=tuple(frames), rejection=fault.at(Stage.DISCOVER))
        return _number(frames[0].header.series_uid, (), [stack])


def _volumes_of(frames: Sequence[Frame], rules: Rules) -> list[DicomVolume]:
    """The volumes of one series UID, those of each patient, study ... by themselves."""
    frames = settle_doubts(frames)
    members = owners.split_by_identity(frames)
    accepted = [member for member, own in members if any(frame.rejection is None for frame in own)]
    if len(members) > 1 and len(accepted) <= 1:
        members = [((), list(frames))]  # only scouts and captures say otherwise
    volumes = []
    for member, own in members:
        stacks = group_series(own, min_slices=rules.min_slices, read=read_some)
        if len(members) > 1:
            told = ", ".join(dict.fromkeys(name for other, _ in members for name, _ in other))
            note = DecisionKind.ONE_OF_OWNERS(count=len(members), names=told)
            stacks = [replace(stack, decisions=(note, *stack.decisions)) for stack in stacks]
        uids = {frame.header.series_uid for frame in own}
        volumes += _number(uids.pop() if len(uids) == 1 else "", member, stacks)
    return volumes


def _number(uid: str, member: tuple[tuple[str, str], ...], stacks: Sequence[Stack]) -> list[DicomVolume]:
    volumes = []
    parts: dict[frozenset[Path], int] = defaultdict(int)
    for number, stack in enumerate(stacks):
        paths = tuple(dict.fromkeys(frame.header.path for frame in stack.frames))
        part = parts[frozenset(paths)]
        parts[frozenset(paths)] += 1
        volumes.append(DicomVolume(paths=paths, series_uid=uid, number=number, part=part, stack=stack, member=member))
    return volumes
