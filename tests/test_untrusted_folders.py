"""Damaged and odd checkpoints, runs, encoders, models, corpora and histograms: one line each, and never much memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from finetune.evaluation import read
from finetune.folds import Folds, read_folds, write_folds
from finetune.model_folder import load_model, read_bundle
from finetune.origin import Given, taken_up
from harmonize.bounded_files import fits
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.voxels import nyul
from headspark import Encoder
from headspark.hub.export import export_run
from headspark.pretraining.origin import check_state
from headspark.run.checkpoint import Checkpoint, check_fits, load_newest, save_checkpoint
from headspark.run.claim import read_metrics, read_state
from headspark.run.plain_state import load_plain
from headspark.run.resume import state_shape

VERSION_0_1_0 = Path(__file__).parent / "fixtures" / "v0_1_0"
STEM = "stem.convs.0.conv.weight"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


def put(path: Path, content: bytes | None) -> None:
    """Put a content in place of a file."""
    path.unlink()
    if content is not None:
        path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: put(path, None),
    "empty": lambda path: put(path, b""),
    "cut": lambda path: put(path, path.read_bytes()[: path.stat().st_size // 2]),
    "noise": lambda path: put(path, bytes(range(256)) * 8),
    "zeros": lambda path: put(path, bytes(4096)),
    "a list": lambda path: put(path, b"[1, 2]"),
    "null": lambda path: put(path, b"null"),
    "a number": lambda path: put(path, b"3"),
    "no keys": lambda path: put(path, b"{}"),
    "nested": lambda path: put(path, b'{"a": ' * 50_000),
    "not UTF-8": lambda path: put(path, b"\xff" + path.read_bytes()),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}
READERS: dict[str, Callable[[Path], object]] = {
    "encoder/config.json": lambda folder: Encoder.from_pretrained(folder),
    "encoder/model.safetensors": lambda folder: Encoder.from_pretrained(folder),
    "finetuned/config.json": read_bundle,
    "finetuned/model.safetensors": lambda folder: load_model(folder, read_bundle(folder)),
    "finetuned/predictions.parquet": read,
    "run/run.json": export_run,
    "run/recipe.yaml": export_run,
    "corpus/corpus.json": Corpus.open,
    "corpus/metadata.parquet": lambda folder: Corpus.open(folder).scans,
    "corpus/rejected.parquet": lambda folder: Corpus.open(folder).rejected,
    "corpus/nyul/T1w.npy": lambda folder: nyul.load(folder / "nyul" / "T1w.npy"),
}


STATE = {"state/run.json": lambda folder: check_state(folder, read_state(folder))}


def copied(name: str, target: Path) -> Path:
    ignored = shutil.ignore_patterns("images", "masks", "records", "report")
    return shutil.copytree(VERSION_0_1_0 / name, target / name, ignore=ignored)


@pytest.mark.parametrize("name", READERS)
def test_any_damage_to_any_file_is_one_line(tmp_path: Path, name: str) -> None:
    folder, _, file = name.partition("/")
    READERS[name](copied(folder, tmp_path / "whole"))
    for number, damage in enumerate(DAMAGES.values()):
        place = copied(folder, tmp_path / str(number))
        damage(place / file)
        refusal(partial(READERS[name], place))


def changed(path: Path, *keys: str, to: Any) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    path.write_text(json.dumps(content))


ODD: list[Any] = [None, 3, "inner.yaml", [1], {"a": 1}, float("nan"), True, 10**30, [[]], {"spacing": None}]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("encoder/config.json", "encoder"), ("encoder/config.json", "preprocessing"),
        ("encoder/config.json", "preprocessing spacing_mm"), ("encoder/config.json", "preprocessing mri_norms"),
        ("encoder/config.json", "preprocessing region"), ("encoder/config.json", "preprocessing region_mm"),
        ("encoder/config.json", "encoder features"), ("encoder/config.json", "encoder kind"),
        ("finetuned/config.json", "encoder"), ("finetuned/config.json", "head"), ("finetuned/config.json", "data"),
        ("finetuned/config.json", "harmonize"), ("finetuned/config.json", "harmonize spacing"),
        ("finetuned/config.json", "harmonize n4"), ("finetuned/config.json", "harmonize mri_norm"),
        ("finetuned/config.json", "data patch"), ("finetuned/config.json", "labels"),
        ("state/run.json", "corpus"), ("state/run.json", "corpus groups"), ("state/run.json", "corpus spacing_mm"),
        ("state/run.json", "libraries"), ("state/run.json", "corpus region"),
        ("corpus/corpus.json", "settings"), ("corpus/corpus.json", "settings spacing"),
        ("corpus/corpus.json", "sources"), ("corpus/corpus.json", "schema_version"),
    ],
)  # fmt: skip
def test_json_of_another_shape_is_one_line(tmp_path: Path, name: str, keys: str) -> None:
    folder, _, file = name.partition("/")
    folder, read = folder.replace("state", "run"), (STATE | READERS)[name]
    place = copied(folder, tmp_path)
    refused = 0
    for value in ODD:
        (place / file).write_bytes((VERSION_0_1_0 / folder / file).read_bytes())
        changed(place / file, *keys.split(), to=value)
        with suppress(UserError):
            read(place)
            continue
        refused += 1
        refusal(partial(read, place))
    # {"a": 1} may be a section whose keys are free, and a whole number for a truth is not the reader's to judge.
    assert refused >= len(ODD) - 2


def test_a_key_that_stands_twice_is_damage(tmp_path: Path) -> None:
    place = copied("encoder", tmp_path)
    text = (place / "config.json").read_text()
    (place / "config.json").write_text(text.replace("{", '{"preprocessing": {},', 1))
    assert "config.json is damaged" in refusal(lambda: Encoder.from_pretrained(place))


@pytest.mark.parametrize(
    ("key", "value"),
    [("features", [10**9, 10**9, 10**9]), ("features", [60_000] * 3), ("blocks", [10**9, 1, 1]),
     ("in_channels", 10**9), ("in_channels", 50_000), ("kernel", 10**9 + 1), ("kernel", 31),
     ("strides", [1, 10**9, 2])],
)  # fmt: skip
def test_a_network_is_built_only_where_its_weights_are(tmp_path: Path, key: str, value: Any) -> None:
    encoder, model = copied("encoder", tmp_path), copied("finetuned", tmp_path)
    for folder in (encoder, model):
        changed(folder / "config.json", "encoder", key, to=value)
    refusal(lambda: Encoder.from_pretrained(encoder))
    refusal(lambda: load_model(model, read_bundle(model)))


def test_weights_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    place = copied("encoder", tmp_path)
    weights = load_file(place / "model.safetensors")
    for odd, said in (
        (weights[STEM].to(torch.int32), f"{STEM} holds torch.int32"),
        (torch.full_like(weights[STEM], torch.nan), f"{STEM} is not finite"),
        (weights[STEM][:1], f"{STEM} is (1,"),
    ):
        save_file(weights | {STEM: odd.contiguous()}, place / "model.safetensors")
        assert said in refusal(lambda: Encoder.from_pretrained(place))


def npy(values: Any, **header: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    content = stream.getvalue()
    for old, new in header.items():
        content = content.replace(old.encode(), new.encode())
    return content


GOOD = np.array([[-2.0, 0.0, 2.0], [1.0, 50.0, 99.0]])


@pytest.mark.parametrize(
    "content",
    [
        npy(np.array([[{}, {}], [{}, {}]])), npy(GOOD.T), npy(GOOD[0]), npy(GOOD[None]), npy(GOOD.astype("S8")),
        npy(GOOD.astype(complex)), npy(GOOD * np.nan), npy(GOOD[:, ::-1]), npy(GOOD[::-1]),
        npy(np.array([[0.0, 0.0], [1.0, 99.0]])), npy(np.array([[-2.0, 2.0], [1.0, 200.0]])),
        npy(np.array([[-1e300, 1e300], [1.0, 99.0]])), npy(np.zeros((2, 0))),
        npy(GOOD).replace(b"(2, 3), }" + b" " * 12, b"(2, 1000000000000), }"),
        npy(GOOD).replace(b"(2, 3), }" + b" " * 12, b"(2, -1000000000), }  "),
        npy(GOOD).replace(b"'<f8'", b"'|O' "),
        b"\x93NUMPY\x01\x00\x76\x27" + b"(" * 10_102,
        npy(GOOD).replace(b"}", b" "), b"\x93NUMPY\x09\x00", bytes(2 << 20),
    ],
)  # fmt: skip
def test_a_histogram_that_is_none_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "T1w.npy").write_bytes(content)
    assert "T1w.npy" in refusal(lambda: nyul.load(tmp_path / "T1w.npy"))


def test_a_table_cannot_claim_more_rows_than_it_has_bytes(tmp_path: Path) -> None:
    path = copied("corpus", tmp_path) / "metadata.parquet"
    schema = pq.read_schema(path)
    rows = 300_000
    columns = [pa.nulls(rows, field.type) for field in schema]
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")
    assert path.stat().st_size < rows
    assert "more than its bytes can hold" in refusal(lambda: Corpus.open(path.parent).scans)


def test_folds_that_are_none_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "folds.parquet"
    write_folds(path, Folds(subjects={"a": "s"}, fold_of={"a": 7}, folds=2, seed=0))
    assert "cannot be read as the folds" in refusal(lambda: read_folds(path))
    for damage in ("empty", "cut", "noise", "a folder", "a pipe"):
        place = tmp_path / damage
        write_folds(place, Folds(subjects={"a": "s"}, fold_of={"a": 1}, folds=2, seed=0))
        DAMAGES[damage](place)
        refusal(partial(read_folds, place))


def test_odd_lines_of_metrics_are_left_out(tmp_path: Path) -> None:
    good = ['{"step": 1, "loss": 0.5}', '{"step": 2, "scans": ["a"]}', '{"step": 3, "loss": NaN}']
    odd = ["[1]", "3", "null", "{", "[" * 100_000, '{"loss": 1}', '{"step": "1"}', '{"step": true}', "\udcff",
           '{"step": 1, "loss": "low"}',
           f'{{"step": {10**400}}}', f'{{"step": 1, "x": "{"x" * 2_000_000}"}}']  # fmt: skip
    lines = [line for pair in zip(odd, [*good, *[""] * 9], strict=True) for line in pair]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in ("gone", "a link to nowhere")])
def test_a_damaged_state_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "run.json").write_text('{"status": "running"}')
    DAMAGES[damage](tmp_path / "run.json")
    assert "run.json" in refusal(lambda: read_state(tmp_path))


@pytest.mark.parametrize(
    "origin", [None, [], {}, {"corpus": "a", "ranks": 1}, {"corpus": "a", "ranks": 1, "encoder": {"sha256": 3}}]
)
def test_an_origin_of_another_shape_is_one_line(origin: Any) -> None:
    call = partial(taken_up, Path("run"), origin, corpus="a", ranks=1, given=Given(None), has_checkpoint=True)
    assert "run.json is damaged" in refusal(call)


# Checkpoints


def checkpoint(step: int) -> Checkpoint:
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return Checkpoint(step=step, model={"w": torch.ones(8)}, ema=None, training={"optimizer": optimizer})


def sealed_again(path: Path, content: bytes) -> None:
    """Put another training.pt into a checkpoint, under a right seal."""
    (path / "training.pt").write_bytes(content)
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    changed(path / "checkpoint.json", "files", "training.pt", to=facts)


def packed(value: Any, *, compressed: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    if not compressed:
        return stream.getvalue()
    smaller = io.BytesIO()
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in whole.infolist():
            archive.writestr(entry.filename, whole.read(entry))
    return smaller.getvalue()


def holding_itself() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["optimizer"] = value
    return value


def shared(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return value


TRAINING: dict[str, Callable[[], bytes]] = {
    "a tensor that claims a terabyte": lambda: packed({"a": torch.zeros(1).expand(1 << 38)}),
    "a compressed archive": lambda: packed({"a": torch.zeros(1 << 20)}, compressed=True),
    "a state that holds itself": lambda: packed(holding_itself()),
    "a list of lists": lambda: packed({"a": shared(60)}),
    "a sparse tensor": lambda: packed({"a": torch.zeros(3).to_sparse()}),
    "a tensor of no memory": lambda: packed({"a": torch.zeros(1 << 38, device="meta")}),
    "a set": lambda: packed({"a": {1, 2}}),
    "no dict": lambda: packed([1, 2]),
    "the old format": lambda: old_format({"a": 1}),
}


def old_format(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", TRAINING)
def test_a_state_that_claims_more_than_it_is_is_passed_over(tmp_path: Path, kind: str) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=5)
    sealed_again(save_checkpoint(tmp_path, checkpoint(2), keep=5), TRAINING[kind]())
    said: list[str] = []
    found = load_newest(tmp_path, say=said.append)
    assert found is not None
    assert found.step == 1
    assert "something else than weights" in said[0]


def listed_twice() -> bytes:
    """An archive whose second entry is the first one's bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", bytes(1 << 16))
        archive.filelist.append(archive.filelist[0])
    return stream.getvalue()


def test_an_archive_that_becomes_more_than_it_is_is_refused_before_it_is_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, twice = packed({"a": torch.zeros(1 << 20)}, compressed=True), listed_twice()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    for content, said in ((small, "compressed"), (twice, "overlapping")):
        with pytest.raises(ValueError, match=said):
            load_plain(content)


def test_weights_with_one_other_bit_are_damage(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=5)
    path = save_checkpoint(tmp_path, checkpoint(2), keep=5) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])
    said: list[str] = []
    found = load_newest(tmp_path, say=said.append)
    assert found is not None
    assert found.step == 1
    assert "model.safetensors is damaged" in said[0]


def test_a_seal_has_no_other_file_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"mine")
    save_checkpoint(tmp_path, checkpoint(1), keep=5)
    seal = save_checkpoint(tmp_path, checkpoint(2), keep=5) / "checkpoint.json"
    changed(seal, "files", "../secret", to={"bytes": 4, "sha256": hashlib.sha256(b"mine").hexdigest()})
    said: list[str] = []
    found = load_newest(tmp_path, say=said.append)
    assert found is not None
    assert found.step == 1
    assert "names ../secret" in said[0]


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "checkpoint.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_a_checkpoint_leaves_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=5)
    DAMAGES[damage](save_checkpoint(tmp_path, checkpoint(2), keep=5) / name)
    said: list[str] = []
    found = load_newest(tmp_path, say=said.append)
    assert found is not None
    assert found.step == 1
    assert len(said) == 1


def test_a_state_that_an_optimizer_cannot_go_on_from_is_passed_over(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    good = {"scaler": None, "samples_per_step": 2, "skipped": 0, "skipped_in_a_row": 0, "evaluated": 1,
            "held_out_loss": float("inf"), "pending": {"loss": [1.0, float("nan")], "norm": [1.0, 2.0]}}  # fmt: skip

    def state(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        whole = optimizer.state_dict()
        copied = {"state": {key: dict(kept) for key, kept in whole["state"].items()}}
        copied["param_groups"] = [dict(group) for group in whole["param_groups"]]  # type: ignore[assignment]
        change(copied)
        return {**good, "optimizer": copied}

    odd = [
        state(lambda found: found["state"][0].update(exp_avg=torch.zeros(9))),
        state(lambda found: found["state"][0].update(exp_avg_sq="x")),
        state(lambda found: found["state"][0].update(step=torch.zeros(2))),
        state(lambda found: found["state"].update({7: {}})),
        state(lambda found: found["state"].update({0: 3})),
        state(lambda found: found["param_groups"][0].pop("lr")),
        state(lambda found: found["param_groups"][0].pop("betas")),
        state(lambda found: found["state"][0].pop("exp_avg")),
        state(lambda found: found["state"][0].update(step=torch.tensor(True))),
        state(lambda found: found["param_groups"][0].update(weight_decay="x")),
        state(lambda found: found["param_groups"][0].update(params=["a", "b"])),
        *(
            state(lambda _: None) | {name: value}
            for name in good
            for value in ("x", [], {"loss": ["x"], "norm": [1.0]})
        ),
    ]
    whole = Checkpoint(step=1, model=model.state_dict(), ema=None, training=state(lambda _: None))
    check = partial(
        check_fits, model=model, optimizer=optimizer, needs=tuple(good), shape=state_shape(("loss", "norm"))
    )
    check(whole, "checkpoint")
    for training in odd:
        assert "training.pt holds" in refusal(partial(check, replace(whole, training=training), "checkpoint"))


def test_steps_that_wait_to_be_written_have_a_number_for_each_measure() -> None:
    shape = state_shape(("loss", "norm"))["pending"]
    assert fits({"loss": [1.0, float("nan")], "norm": [1.0, 2.0]}, shape)
    assert fits(None, shape)
    for odd in ([[1.0]], 3, {}, {"loss": [1.0]}, {"loss": [1.0], "norm": []}, {"loss": ["a"], "norm": [1.0]}):
        assert not fits(odd, shape)
