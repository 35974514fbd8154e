"""What names of several words, and of words that mean other things too, say that a lab's own NIfTI shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_source_nifti import found, harmonize, head, kinds, labels, save

from harmonize.decisions import DecisionKind


@pytest.mark.parametrize(
    ("key", "subject", "modality"),
    [
        ("s1_MR_T1", "s1", "T1w"),
        ("s1_mri_t2", "s1", "T2w"),
        ("s1_T2_FLAIR", "s1", "FLAIR"),
        ("s1_t1_post", "s1", "T1post"),
        ("s1_T1_gd", "s1", "T1post"),
        ("s1-CE-T1", "s1", "T1post"),
        ("s1_T1_ax_post_contrast", "s1_ax", "T1post"),
        ("s1_T1_pre_contrast", "s1", "T1w"),
        ("s1_T1_no_gd", "s1", "T1w"),
        ("s1_T1_pre", "s1", "T1w"),
        ("s1_T1_pre_op", "s1_pre_op", "T1w"),
        ("s1_T1_post_op", "s1_post_op", "T1w"),
        ("CE_01_T1", "CE_01", "T1w"),
        ("post_01_T1", "post_01", "T1w"),
        ("s1_CT_angio", "s1", "CTA"),
        ("s1_DWI_ADC", "s1", "ADC"),
        ("s1_swi_minip", "s1", "minIP"),
        ("s1_T1_map", "s1", "T1map"),
        ("s1_T1_PD", "s1", None),
        ("s1_CT_T1", "s1", None),
        ("pt_01_T1", "pt_01", "T1w"),
        ("pt-004-cta", "pt_004", "CTA"),
        ("md_anderson_07_T1w", "md_anderson_07", "T1w"),
        ("pt_001", "pt_001", None),
        ("007_pt", "007", "PT"),
        ("s1_FA", "s1", "FA"),
        ("PT/007", "007", None),
        ("MD/scan", "scan", None),
        ("T2_FLAIR/p07", "p07", "FLAIR"),
        ("T2_FLAIR/PD/p07", "p07", "FLAIR"),
        ("sub-01/sub-01_T2_FLAIR", "sub-01", "FLAIR"),
        ("sub-01/sub-01_ses-1_CT_angio", "sub-01", "CTA"),
        ("sub-01/sub-01_pt", "sub-01", "PT"),
        ("sub-01/sub-01_T1w_brain", "sub-01", None),
        ("sub-01/DWI-ADC", "sub-01", "ADC"),
    ],
)
def test_the_words_of_a_name_are_read_together(tmp_path: Path, key: str, subject: str, modality: str | None) -> None:
    save(tmp_path / f"{key}.nii.gz", head())
    ((_, ref),) = found(tmp_path)[0].items()
    assert (ref.subject, ref.modality) == (subject, modality)


def test_channels_and_tables_may_say_it_in_several_words(tmp_path: Path) -> None:
    for channel in range(3):
        save(tmp_path / f"imagesTr/a_{channel:04d}.nii.gz", head(seed=channel))
    names = {"0": "T1 post contrast", "1": "t2_flair", "2": "T1 of somebody"}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": names}))
    table = tmp_path / "t.csv"
    table.write_text("file,modality\nimagesTr/a_0002,CT angio\n")
    refs, _ = found(tmp_path, table=table)
    assert [ref.modality for ref in refs.values()] == ["T1post", "FLAIR", "CTA"]


def test_a_mask_has_the_name_without_all_words_of_the_contrast(tmp_path: Path) -> None:
    save(tmp_path / "a_T2_FLAIR.nii.gz", head())
    mask = save(tmp_path / "a_seg.nii.gz", labels(1))
    refs, _ = found(tmp_path)
    assert refs["a_T2_FLAIR.nii.gz"].meta["mask"] == mask


def test_a_name_that_contradicts_itself_is_told_so_and_yields_to_air(tmp_path: Path) -> None:
    save(tmp_path / "raw/a_T1_PD.nii.gz", head())
    save(tmp_path / "raw/b_PET_CT.nii.gz", head(ct=True))
    corpus = harmonize(tmp_path / "raw", tmp_path / "out")
    assert corpus.rejected["message"].tolist() == [
        "its name says several: T1w, PDw; say by a table or --modality which it is"
    ]
    assert corpus.scans["modality"].tolist() == ["CT"]
    assert "taken as CT by its values; its name says CT and PT" in corpus.scans["decisions"][0]


def test_a_patients_ct_is_no_pet_and_a_pet_in_hounsfield_units_is_said(tmp_path: Path) -> None:
    save(tmp_path / "raw/pt_001.nii.gz", head(ct=True))
    save(tmp_path / "raw/PT/002.nii.gz", head(ct=True, seed=1))
    save(tmp_path / "raw/003_pt.nii.gz", head(ct=True, seed=2))
    scans = harmonize(tmp_path / "raw", tmp_path / "out").scans
    said = {modality: kinds(lines) for modality, lines in zip(scans["modality"], scans["decisions"], strict=True)}
    assert sorted(scans["modality"]) == ["CT", "CT", "PT"]
    assert DecisionKind.CT_BY_VALUES in said["CT"]
    assert DecisionKind.MAY_BE_CT in said["PT"]
