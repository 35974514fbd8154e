"""Tables of the sources, what servers answer, archives, and a corpus that somebody else made."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.damage import ODD, either, extreme, of_bytes, of_csv, of_json, of_json_lines, of_nifti, within
from fuzz.kinds import Fault, Kind
from fuzz.kinds_raw import deeplesion_tree, harmonized, nifti_tree, rsna_tree
from fuzz.valid import OLD, dicom_bytes, plain_dicom, plain_nifti
from harmonize import engine
from harmonize.corpus import Corpus, verify
from harmonize.fetch import tcia
from harmonize.voxels import nyul as histograms

UID = "1.2.3"
ODD_NAMES = ("../../x.dcm", "/tmp/x.dcm", "a\\..\\..\\x", "C:x", "a" * 300, "x/" * 60 + "x", "\x1b[2J", ".", "x/")
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
ODD_CELLS = (None, -1, 0.5, 2**40, "x", "", "../../x", "/etc/passwd", [1], [[1]], True)


def _table(source: str, folder: Path, target: Path) -> Kind:
    return Kind(target=target, damage=of_csv, read=lambda: harmonized(source, folder / "raw", folder / "corpus"))


def openneuro_csv(folder: Path) -> Kind:
    """OpenMind's table."""
    nifti_tree(folder / "raw", "sub-01_T1w.nii", plain_nifti())
    return _table("openmind", folder, folder / "raw/openneuro_metadata.csv")


def deeplesion_csv(folder: Path) -> Kind:
    """DeepLesion's table."""
    deeplesion_tree(folder / "raw")
    return _table("deeplesion", folder, folder / "raw/DL_info.csv")


def train_csv(folder: Path) -> Kind:
    """The competition's labels."""
    rsna_tree(folder / "raw")
    return _table("rsna", folder, folder / "raw/train.csv")


def localizers_csv(folder: Path) -> Kind:
    """The competition's points."""
    rsna_tree(folder / "raw")
    return _table("rsna", folder, folder / "raw/train_localizers.csv")


def metadata_csv(folder: Path) -> Kind:
    """NBIA's table of subjects."""
    (folder / "raw/1").mkdir(parents=True)
    for number in range(6):
        (folder / f"raw/1/{number}.dcm").write_bytes(dicom_bytes(plain_dicom(1, number)))
    target = folder / "raw/metadata.csv"
    target.write_text("Series UID,Subject ID\n1.2.1,S-1\n", encoding="utf-8")
    return _table("tcia", folder, target)


class _Nbia(BaseHTTPRequestHandler):
    """Answers as NBIA does, with whatever is to be answered."""

    answers: dict[str, bytes]

    def do_GET(self) -> None:
        body = self.answers["list" if "/getSeries" in self.path else "archive"]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _fetched(folder: Path, *, answers: dict[str, bytes], server: ThreadingHTTPServer) -> int:
    out = folder / "fetched"
    outcome = tcia.fetch("C", out, base_url=f"http://127.0.0.1:{server.server_port}", workers=1)
    wrong = [path.name for path in folder.iterdir() if path.name not in ("fetched", "answer")]
    shutil.rmtree(out, ignore_errors=True)
    if wrong:
        raise Fault(f"wrote {wrong} outside its folder")
    return outcome.there


def _nbia(folder: Path, which: str, damage) -> Kind:
    listed = [{"SeriesInstanceUID": UID, "Collection": "C", "Modality": "CT", "ImageCount": 1, "LicenseName": "CC BY"}]
    answers = {"list": json.dumps(listed).encode(), "archive": _archive(dicom_bytes(plain_dicom(1, 0)))}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Nbia", (_Nbia,), {"answers": answers}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    target = folder / "answer"
    target.write_bytes(answers[which])

    def write(content: bytes) -> None:
        answers[which] = content

    read = functools.partial(_fetched, folder, answers=answers, server=server)
    return Kind(target=target, damage=damage, read=read, write=write)


def _archive(image: bytes, hashes: bytes | None = None) -> bytes:
    if hashes is None:
        hashes = f"Filename,MD5Hash\n1-1.dcm,{hashlib.md5(image).hexdigest()}\n".encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("1-1.dcm", image)
        opened.writestr("md5hashes.csv", hashes)
    return stream.getvalue()


def nbia_json(folder: Path) -> Kind:
    """NBIA's list of series."""
    return _nbia(folder, "list", of_json)


def zip_archive(folder: Path) -> Kind:
    """An archive of a series."""
    return _nbia(folder, "archive", either(of_bytes, extreme, _odd_archive))


def hashes_csv(folder: Path) -> Kind:
    """The checksums in it."""
    image = dicom_bytes(plain_dicom(1, 0))
    return _nbia(folder, "archive", within(_hashes_of, functools.partial(_archive, image), of_csv))


def _hashes_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        return opened.read("md5hashes.csv")


def _odd_archive(content: bytes, dice: Random) -> bytes:
    """Members under odd names, packed otherwise, far larger than they should be, or damaged under a right checksum."""
    if dice.random() < 0.04:
        return _swollen(dice.choice(PACKINGS[1:]))
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as there, zipfile.ZipFile(stream, "w") as opened:
        for name in there.namelist():
            body, kind = there.read(name), dice.randrange(5)
            if kind == 0:
                name = dice.choice(ODD_NAMES)
            elif kind == 1:
                body = of_bytes(body, dice)
            opened.writestr(name, body, dice.choice(PACKINGS), 1)
    made = stream.getvalue()
    return of_bytes(made, dice) if dice.random() < 0.5 else made


@functools.cache
def _swollen(packing: int) -> bytes:
    """An archive with a member of 200 MB, which takes long to pack."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        opened.writestr("1-1.dcm", bytes(200 << 20), packing, 1)
    return stream.getvalue()


def _corpus(folder: Path, name: str, damage, read=None) -> Kind:
    corpus = folder / "corpus"
    shutil.copytree(OLD / "corpus", corpus)
    return Kind(target=corpus / name, damage=damage, read=read or functools.partial(_checked, corpus))


def _checked(corpus: Path) -> None:
    """Read it as `verify` and whoever trains on it do; faults that are found are right."""
    verify.verify(corpus)
    opened = Corpus.open(corpus)
    assert opened.scans is not None
    assert opened.labels is not None
    assert opened.spacing
    assert isinstance(opened.mri_norms, dict)


def _of_parquet(content: bytes, dice: Random) -> bytes:
    """A table with columns of another type, gone, doubled, null or odd; or damaged bytes."""
    if dice.random() < 0.4:
        return of_bytes(content, dice)
    table = pq.read_table(io.BytesIO(content))
    for _ in range(dice.choice((1, 1, 2))):
        place, kind = dice.randrange(table.num_columns), dice.randrange(6)
        name = table.column_names[place]
        if kind == 0:
            table = table.remove_column(place)
        elif kind == 1:
            table = table.set_column(place, name, pa.nulls(table.num_rows, table.schema.field(place).type))
        elif kind == 2:
            other = dice.choice(("", "x", "image_file_name", name + "\x00"))
            table = table.set_column(place, other, table.column(place))
        else:
            odd = pa.array([dice.choice(ODD_CELLS)] * table.num_rows)
            table = table.set_column(place, name, odd)
    stream = io.BytesIO()
    pq.write_table(table.slice(0, dice.choice((0, 1, 10**6))), stream)
    return stream.getvalue()


def parquet(folder: Path) -> Kind:
    """The manifest."""
    return _corpus(folder, "metadata.parquet", _of_parquet)


def rejected_parquet(folder: Path) -> Kind:
    """The table of what was refused."""
    return _corpus(folder, "rejected.parquet", _of_parquet)


def corpus_json(folder: Path) -> Kind:
    """What the corpus says of itself."""
    return _corpus(folder, "corpus.json", of_json)


def journal(folder: Path) -> Kind:
    """The journal that the tables are made from."""
    return _corpus(folder, "records/openmind.jsonl", of_json_lines, lambda: engine.merge(folder / "corpus"))


def corpus_image(folder: Path) -> Kind:
    """An image of the corpus."""
    name = sorted((OLD / "corpus/images").rglob("*.nii.gz"))[0].relative_to(OLD / "corpus").as_posix()
    damage = either(of_bytes, within(gzip.decompress, functools.partial(gzip.compress, compresslevel=1), of_nifti))
    return _corpus(folder, name, damage)


def nyul(folder: Path) -> Kind:
    """A standard histogram."""
    target = folder / "T1w.npy"
    shutil.copyfile(OLD / "corpus/nyul/T1w.npy", target)

    def read() -> None:
        standard = histograms.load(target)
        values = np.linspace(0, 100, 50, dtype=np.float32)
        assert np.isfinite(histograms.transform(values, values, standard)).all()

    return Kind(target=target, damage=either(of_bytes, _odd_array), read=read)


def _odd_array(content: bytes, dice: Random) -> bytes:
    array = np.load(io.BytesIO(content))
    kind = dice.randrange(6)
    if kind == 0:
        array = dice.choice((array[:1], array[:, :1], array[:, :0], array.ravel(), array[None], array[:, ::-1]))
    elif kind == 1:
        array = array.astype(dice.choice(("complex128", "int8", "float16", "S8", "object", "bool", ">f8")))
    elif kind == 2:
        array = np.full_like(array, dice.choice((0.0, 1e308, -1.0)))
    elif kind == 3:
        array.flat[dice.randrange(array.size)] = dice.choice((np.nan, np.inf, -1.0, 101.0, 1e308))
    elif kind == 4:
        array = np.array(dice.choice([odd for odd in ODD if not isinstance(odd, list)]), dtype=object)
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    made = stream.getvalue()
    return made.replace(b"(2, ", b"(2000000000, ") if kind == 5 else made
