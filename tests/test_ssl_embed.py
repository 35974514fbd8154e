"""`headspark embed`: the vectors of a corpus, how they are pooled, and what goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from harmonize.corpus import Corpus, read_volume
from headspark.channels import to_network_input
from headspark.cli import main
from headspark.data.cohort import ScanItem, scan_item
from headspark.embedding import Embedded, Pooling, embed_corpus, embed_scans, read_embeddings, table
from headspark.encoder import EncoderConfig, MaskableEncoder, build_encoder
from headspark.hub import save_encoder
from headspark.weights import weights_sha256

PREPROCESSING = {
    "orientation": "RAS", "spacing_mm": [1.0] * 3, "ct_windows": ["brain", "blood", "bone"], "mri_scaling": "soft",
    "mri_norms": {"openmind": "zscore"}, "patch": 48,
}  # fmt: skip


def make_encoder(patch: int = 48) -> MaskableEncoder:
    torch.manual_seed(0)
    network = build_encoder(EncoderConfig(features=(4, 6), blocks=(1, 1), strides=(1, 4))).eval()
    network.preprocessing = PREPROCESSING | {"patch": patch}
    return network


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    save_encoder(make_encoder(), folder, preprocessing=PREPROCESSING)
    return folder


def test_a_vector_is_the_mean_over_the_cells_of_the_head(tiny_corpus: Path) -> None:
    corpus, encoder = Corpus.open(tiny_corpus), make_encoder()
    row = corpus.scans[corpus.scans["modality"] == "CT"].iloc[0]
    (one,) = embed_scans(
        encoder, [scan_item(corpus.path, row)], Pooling(patch=(48, 48, 48)), device=torch.device("cpu")
    )
    x0, x1, y0, y1, z0, z1 = row["foreground_box"]
    stored = read_volume(corpus.path / row["image_file_name"]).stored_XYZ[x0:x1, y0:y1, z0:z1]
    padded = np.full((48, 48, 48), -1000.0, np.float32)  # one tile, filled up with air
    padded[: x1 - x0, : y1 - y0, : z1 - z0] = stored
    with torch.no_grad():
        map_Cdhw = encoder(to_network_input(torch.from_numpy(padded), "HU")[None])[-1][0].numpy()
    d, h, w = (x1 - x0) // 4, (y1 - y0) // 4, (z1 - z0) // 4  # the box is a whole number of cells
    assert one.vector_E == pytest.approx(map_Cdhw[:, :d, :h, :w].mean((1, 2, 3)), rel=1e-4)


def test_tiles_overlap_and_cover_the_head(tiny_corpus: Path) -> None:
    """An encoder that says where it is: the mean over tiles of a map that does not depend on them is that map."""

    class Brightness(MaskableEncoder):
        def forward(self, x_BCDHW: torch.Tensor) -> list[torch.Tensor]:
            return [torch.nn.functional.avg_pool3d(x_BCDHW, 4)]

    corpus = Corpus.open(tiny_corpus)
    scan = scan_item(corpus.path, corpus.scans.iloc[0])
    encoder = Brightness(EncoderConfig(features=(4, 6), blocks=(1, 1), strides=(1, 4)))
    encoder.preprocessing = PREPROCESSING
    small, large = (
        next(embed_scans(encoder, [scan], Pooling(patch=(edge,) * 3), device=torch.device("cpu"), batch=3))
        for edge in (16, 48)
    )
    x0, x1, y0, y1, z0, z1 = scan.box
    volume = read_volume(scan.image)
    x = to_network_input(torch.from_numpy(volume.values()[x0:x1, y0:y1, z0:z1]), "zscore")
    assert small.vector_E == pytest.approx(x.mean((1, 2, 3)).numpy(), rel=1e-4)
    assert large.vector_E == pytest.approx(small.vector_E, rel=1e-4)
    assert small.cells_Cdhw.shape == (3, 9, 8, 10)  # type: ignore[union-attr]


def test_a_batch_changes_nothing(tiny_corpus: Path) -> None:
    corpus, encoder = Corpus.open(tiny_corpus), make_encoder()
    scans = [scan_item(corpus.path, row) for row in corpus.scans.to_dict("records")]
    pooling = Pooling(patch=(24, 24, 24))
    one, many = (
        [found.vector_E for found in embed_scans(encoder, scans, pooling, device=torch.device("cpu"), batch=size)]
        for size in (1, 7)
    )
    assert np.stack(many) == pytest.approx(np.stack(one), rel=1e-4, abs=1e-6)  # type: ignore[arg-type]


def test_the_command_writes_a_table_that_says_how_it_was_made(
    tiny_corpus: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "emb.parquet"
    words = ["embed", tiny_corpus, "--encoder", encoder_folder, "--out", out, "--cells", "--pooling", "mean_max"]
    assert main(list(map(str, words))) == 0
    found = read_embeddings(out)
    assert {vector.shape for vector in found.vectors.values()} == {(12,)}
    assert len(found.vectors) == 6
    assert found.facts["encoder"] == "tiny"
    assert found.facts["encoder_sha256"] == weights_sha256(make_encoder().state_dict())
    assert found.facts["corpus_sha256"] == Corpus.open(tiny_corpus).manifest_sha256()
    assert found.facts["pooling"] == {
        "kind": "mean_max", "patch": [48] * 3, "overlap": 0.25, "stride": 4, "region": "foreground"
    }  # fmt: skip
    assert found.facts["preprocessing"] == PREPROCESSING
    row = pq.read_table(out).to_pylist()[0]
    assert row["cells_shape"] == [6, 12, 12, 12]
    assert row["cells_start"] == [2, 2, 2]
    assert not out.with_name("emb.parquet.parts").exists()


def test_what_was_embedded_is_not_embedded_again(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = Corpus.open(tiny_corpus), tmp_path / "emb.parquet"
    whole = embed_corpus(make_encoder(), corpus, tmp_path / "whole.parquet", name="tiny")
    asked: list[int] = []

    def after_two() -> bool:
        asked.append(0)
        return len(asked) > 2

    stopped = embed_corpus(make_encoder(), corpus, out, name="tiny", asked=after_two)
    assert stopped.interrupted
    assert not out.exists()
    assert 0 < len(stopped.vectors) < 6
    seen: list[int] = []
    embed = table.embed_scans

    def counted(encoder: MaskableEncoder, scans: list[ScanItem], *rest: Any, **more: Any) -> Iterator[Embedded]:
        seen.append(len(scans))
        return embed(encoder, scans, *rest, **more)

    monkeypatch.setattr(table, "embed_scans", counted)
    found = embed_corpus(make_encoder(), corpus, out, name="tiny")
    assert seen == [6 - len(stopped.vectors)]
    assert {key: vector.tolist() for key, vector in found.vectors.items()} == {
        key: vector.tolist() for key, vector in whole.vectors.items()
    }
    embed_corpus(make_encoder(), corpus, out, name="tiny")
    assert len(seen) == 1
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_another_encoder_does_not_go_on(
    tiny_corpus: Path, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "emb.parquet"
    words = ["embed", str(tiny_corpus), "--encoder", str(encoder_folder), "--out", str(out)]
    assert main(words) == 0
    before = out.read_bytes()
    assert main([*words, "--pooling", "max"]) == 2
    assert "made with another pooling" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*words[:-1], str(tmp_path / "emb.csv")]) == 2
    out.write_text(json.dumps({}))
    assert main(words) == 1
    assert "delete it" in capsys.readouterr().err


def test_a_scan_that_is_gone_is_told_and_the_others_are_embedded(
    tiny_corpus: Path, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, out = tmp_path / "corpus", tmp_path / "emb.parquet"
    shutil.copytree(tiny_corpus, copy)
    gone = Corpus.open(copy).scans.iloc[1]
    (copy / gone["image_file_name"]).unlink()
    assert main(["embed", str(copy), "--encoder", str(encoder_folder), "--out", str(out)]) == 0
    assert gone["scan_id"] in capsys.readouterr().err
    found = read_embeddings(out)
    assert len(found.vectors) == 5
    assert (gone["source"], gone["scan_id"]) not in found.vectors
