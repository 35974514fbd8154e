"""The Hub as networks are: away, slow, cut off in the middle, gated; the real client against the stand-in."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import torch
from standin_hub import READ_TOKEN, Hub, Repo

from finetune.hub import fetch_model, push_model, push_probe
from harmonize.errors import UserError, WrongUse
from harmonize.hub import check_repo, check_tag, download, fetch_file, large, push_folder, reach, repo_of
from headspark import Encoder, load_encoder
from headspark.encoder import EncoderConfig, build_encoder
from headspark.hub import push_encoder

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
PREPROCESSING = {"spacing_mm": [1.0, 1.0, 1.0], "ct_windows": ["brain", "blood", "bone"]}
SIZE, PART = 50_000, 4_000
WAIT_S = 1.0
"""That a command may wait for a Hub that does not answer."""

SLEEP = time.sleep


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is pushed: a file that is large here, and a small one."""
    made = tmp_path / "pushed"
    made.mkdir()
    (made / "model.safetensors").write_bytes(torch.randint(0, 256, (SIZE,), dtype=torch.uint8).numpy().tobytes())
    (made / "config.json").write_text("{}")
    return made


@pytest.fixture
def in_parts(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub takes large files in parts; nobody waits between two attempts."""
    monkeypatch.setattr(large, "LARGE", 10_000)
    monkeypatch.setattr(download, "LARGE", 10_000)
    monkeypatch.setattr(hub_constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.part_bytes = PART
    return hub


def push(folder: Path, **options: str) -> str:
    return push_folder(folder, "user/name", message="a push", **options).commit


def small_encoder(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_encoder(EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2))).eval()


def has(hub: Hub, name: str, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repos[name] = Repo(private=False, commits=[{}, files])


def test_an_upload_that_is_cut_in_the_middle_of_a_file_sends_each_part_once(
    in_parts: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_parts.break_upload_after = 22_000
    with pytest.raises(UserError, match=r"user/name: .*; give the command again, what has arrived is not sent again"):
        push(folder)
    assert in_parts.received == 5 * PART
    assert in_parts.repos["user/name"].commits == [{}]
    (record,) = Path(hub_constants.HF_HOME, large.UPLOADS).iterdir()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600  # whoever has it could send other parts
    in_parts.break_upload_after = None
    push(folder)
    assert in_parts.received == SIZE
    assert "goes on, 5 of 13 parts have arrived" in capsys.readouterr().err
    assert in_parts.repos["user/name"].files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not record.exists()


def test_parts_that_the_store_forgot_are_sent_again(in_parts: Hub, folder: Path) -> None:
    in_parts.break_upload_after = 22_000
    with pytest.raises(UserError):
        push(folder)
    in_parts.break_upload_after = None
    in_parts.parts.clear()  # as after a day
    in_parts.forgets_parts = True
    with pytest.raises(UserError, match="your token may not write"):
        push(folder)  # and it forgets what it offers now, too
    in_parts.forgets_parts = False
    push(folder)
    assert in_parts.repos["user/name"].files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_another_file_does_not_go_on_where_the_first_one_was(in_parts: Hub, folder: Path) -> None:
    in_parts.break_upload_after = 22_000
    with pytest.raises(UserError):
        push(folder)
    in_parts.break_upload_after = None
    (folder / "model.safetensors").write_bytes(bytes(SIZE))
    push(folder)
    assert in_parts.repos["user/name"].files["model.safetensors"] == bytes(SIZE)


def test_a_download_that_is_cut_goes_on_in_the_next_command(
    in_parts: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    has(in_parts, "user/name", folder)
    in_parts.break_download_after = 30_000
    with pytest.raises(UserError, match=r"at 0.0 of 0.1 MB; give the command again, it goes on from there"):
        fetch_file("user/name", "model.safetensors")
    assert in_parts.sent == 30_000
    in_parts.break_download_after = None
    found = fetch_file("user/name", "model.safetensors")
    assert found.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert in_parts.sent == SIZE
    assert "model.safetensors: goes on at" in capsys.readouterr().err
    assert not list(Path(hub_constants.HF_HUB_CACHE).rglob("*incomplete"))
    assert fetch_file("user/name", "model.safetensors") == found
    assert in_parts.sent == SIZE


def test_what_is_left_of_a_download_and_is_damaged_is_not_taken(in_parts: Hub, folder: Path) -> None:
    has(in_parts, "user/name", folder)
    in_parts.break_download_after = 30_000
    with pytest.raises(UserError):
        fetch_file("user/name", "model.safetensors")
    (partial,) = Path(hub_constants.HF_HUB_CACHE).rglob(f"*{download.PARTIAL}")
    partial.write_bytes(bytes(partial.stat().st_size))
    in_parts.break_download_after = None
    with pytest.raises(UserError, match="is not the file that the Hub announced"):
        fetch_file("user/name", "model.safetensors")
    found = fetch_file("user/name", "model.safetensors").read_bytes()
    assert hashlib.sha256(found).digest() == hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()


def test_a_push_is_tagged_and_a_tag_goes_with_the_newest_push_of_its_name(hub: Hub) -> None:
    for seed, step in ((0, 10), (1, 20), (2, 10)):
        push_encoder(small_encoder(seed), "user/name", preprocessing=PREPROCESSING, tag=f"step_{step:06d}")
    assert hub.repos["user/name"].tags == {"step_000010": 4, "step_000020": 3}
    for name, seed in (("user/name@step_000020", 1), ("user/name@step_000010", 2), ("user/name", 2)):
        found, wanted = load_encoder(name).state_dict(), small_encoder(seed).state_dict()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    found = Encoder.from_pretrained("user/name", revision="step_000020").state_dict()
    assert all(torch.equal(found[key], value) for key, value in small_encoder(1).state_dict().items())
    push_encoder(small_encoder(2), "user/name", preprocessing=PREPROCESSING, tag="step_000010")  # nothing is new
    assert hub.repos["user/name"].tags == {"step_000010": 4, "step_000020": 3}


def refuses() -> Iterator[str]:
    """A port that nobody listens to."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{one.getsockname()[1]}"


def swallows() -> Iterator[str]:
    """A port whose queue is full: the system answers no SYN, as where a firewall drops them."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(server.getsockname())
            waiting.append(one)
        time.sleep(0.1)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for one in waiting:
            one.close()


def takes_and_is_silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def is_unknown() -> Iterator[str]:
    """A name that no server knows (RFC 6761)."""
    yield "http://hub.invalid"


def is_looked_up_for_ever() -> Iterator[str]:
    """A name whose servers do not answer: nothing bounds how long the system asks them."""
    real = socket.getaddrinfo

    def looked_up(*words: object, **more: object) -> object:
        assert threading.current_thread() is not threading.main_thread(), "the command itself waits for the name"
        SLEEP(4)
        return real(*words, **more)  # type: ignore[arg-type]

    socket.getaddrinfo = looked_up  # type: ignore[assignment]
    try:
        yield "http://hub.invalid"
    finally:
        socket.getaddrinfo = real


NETWORKS = [refuses, swallows, takes_and_is_silent, is_unknown, is_looked_up_for_ever]


@contextmanager
def away(network: Callable[[], Iterator[str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From here on the Hub is somewhere that does not answer."""
    with contextmanager(network)() as address:
        monkeypatch.setattr(hub_constants, "ENDPOINT", address)
        monkeypatch.setattr(
            hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield


def took(load: Callable[[], object]) -> float:
    start = time.monotonic()
    load()
    return time.monotonic() - start


@pytest.mark.parametrize("network", NETWORKS)
def test_without_a_network_what_the_cache_has_is_there_at_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, network: Callable[[], Iterator[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    has(hub, "user/encoder", FIXTURES / "encoder")
    finetuned = {name: (FIXTURES / "finetuned" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.repos["user/model"] = Repo(private=False, commits=[{}, finetuned])

    def load() -> None:
        assert load_encoder("user/encoder").channels
        assert (fetch_model("user/model") / "model.safetensors").is_file()

    load()
    with monkeypatch.context() as offline:
        offline.setattr(hub_constants, "HF_HUB_OFFLINE", True)
        usual = took(load)
    capsys.readouterr()
    waited: list[float] = []
    asked = reach._asked

    def note(*words: object) -> object:
        answers: list[object] = []
        waited.append(took(lambda: answers.append(asked(*words))))  # type: ignore[arg-type]
        return answers[0]

    monkeypatch.setattr(reach, "_asked", note)
    slept: list[float] = []
    with away(network, monkeypatch), monkeypatch.context() as awake:
        awake.setattr(time, "sleep", slept.append)
        total = took(load)
    assert (len(waited), slept) == (1, []), "one question, and the client tries nothing again"
    assert waited[0] < WAIT_S
    assert total < 3 * usual + 5 * WAIT_S  # a machine that does other things, too; it was 24 s
    said = capsys.readouterr().err.splitlines()
    assert [line.rpartition("; ")[2] for line in said] == [
        f"user/{name} is taken from the cache, which may be older" for name in ("encoder", "model")
    ]
    assert not hub_constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("network", NETWORKS)
def test_without_a_network_what_the_cache_lacks_is_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, network: Callable[[], Iterator[str]], tmp_path: Path
) -> None:
    monkeypatch.setattr(reach, "PATIENT_S", 1.0)
    with away(network, monkeypatch):
        start = time.monotonic()
        for load in (load_encoder, fetch_model):
            with pytest.raises(
                UserError, match=r"^user/none: no such folder, and the cache lacks it, and http://.*; connect"
            ):
                load("user/none")
        with pytest.raises(UserError, match="nothing was sent"):
            push_folder(tmp_path, "user/none", message="nothing")
        assert time.monotonic() - start < 3.0


def test_a_hub_that_was_too_slow_for_what_the_cache_has_gets_its_time_for_what_it_lacks(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    monkeypatch.setattr(reach, "_asked", lambda address, within_s: [given.append(within_s), "is slow"][1])
    for within_s in (reach.QUICK_S, reach.QUICK_S, reach.PATIENT_S, reach.QUICK_S, reach.PATIENT_S):
        assert reach.why_away(within_s) == "is slow"
    assert given == [reach.QUICK_S, reach.PATIENT_S]


def test_a_commit_in_the_cache_is_taken_without_asking(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    has(hub, "user/encoder", FIXTURES / "encoder")
    commit = hub.repos["user/encoder"].sha
    load_encoder("user/encoder", revision=commit)
    monkeypatch.setattr(reach, "why_away", lambda *words: pytest.fail("asked"))
    assert load_encoder("user/encoder", revision=commit).channels


def test_a_commit_of_a_model_in_the_cache_does_not_wait_for_a_hub_that_is_silent(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: (FIXTURES / "finetuned" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.repos["user/model"] = Repo(private=False, commits=[{}, files])
    commit = hub.repos["user/model"].sha
    found = fetch_model("user/model", revision=commit)
    with away(takes_and_is_silent, monkeypatch):  # which the client would ask without a limit of time
        assert fetch_model("user/model", revision=commit) == found


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        load()
    said = str(caught.value)
    assert "\n" not in said
    assert "hf_" not in said
    return said


def test_gates_and_tokens_are_a_line_that_says_what_to_do(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    has(hub, "user/gated", FIXTURES / "encoder")
    has(hub, "user/secret", FIXTURES / "encoder")
    hub.repos["user/gated"].gated, hub.repos["user/secret"].private = True, True
    page = f"accept its terms at {hub.url}/user/gated"
    for load in (load_encoder, fetch_model):
        assert page + " with the account of your token" in refusal(lambda load=load: load("user/gated"))
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        assert "does not know your token" in refusal(lambda load=load: load("user/secret"))
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        assert f"{page}, then log in with `hf auth login`" in refusal(lambda load=load: load("user/gated"))
        said = refusal(lambda load=load: load("user/secret"))
        assert "or a private one: log in with `hf auth login`, or set HF_TOKEN" in said
        assert "who pushes: log in" in refusal(lambda: push(folder))
        monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
        assert f"make one that may at {hub.url}/settings/tokens" in refusal(lambda: push(folder))
        assert load_encoder("user/secret").channels
        shutil.rmtree(hub_constants.HF_HUB_CACHE)
    hub.repos["user/gated"].admitted = True
    assert load_encoder("user/gated").channels


@pytest.mark.parametrize(
    "repo",
    ["heads", "user/", "user/my heads", "user/a--b", "user/a..b", "user/heads-", "user/heads.git", f"user/{'a' * 99}"],
)
def test_a_name_that_the_hub_takes_for_no_repository_is_wrong_use(repo: str) -> None:
    with pytest.raises(WrongUse, match=f"--repo {re.escape(repo)}: "):
        check_repo(repo)


def test_a_name_that_is_no_tag_is_refused_before_the_push_that_would_stand_without_it(hub: Hub, tmp_path: Path) -> None:
    for tag in ("", "v 1", "v1.", "-v1", "a..b", "a//b", "v1~2", "v1.lock", "main", "v1@2"):
        with pytest.raises(WrongUse, match=f"--tag {re.escape(tag)}: no name of a tag"):
            push_model(tmp_path, "user/model", tag=tag)
        with pytest.raises(WrongUse, match="no name of a tag"):
            push_probe(tmp_path / "probe.json", "user/probe", tag=tag)
    assert hub.repos == {}
    for fine in (None, "v1", "v1.0", "step_050000", "2026-11-29", "ablation/no-vessels"):
        check_tag(fine)
        assert fine is None or repo_of(f"user/model@{fine}") == ("user/model", fine)


def test_a_cache_that_others_filled_may_only_be_read(hub: Hub, guarded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(guarded / "cache"))
    monkeypatch.setattr(download, "LARGE", 10)
    hub.repos["user/name"] = Repo(private=False, commits=[{}, {"model.safetensors": b"x" * 100, "a.json": b"{}"}])
    names = "model.safetensors", "a.json"
    there = [fetch_file("user/name", name) for name in names]
    for folder, _, _ in os.walk(guarded / "cache", topdown=False):
        Path(folder).chmod(0o555)
    assert [fetch_file("user/name", name) for name in names] == there
    hub.repos["user/name"].commits.append({"model.safetensors": b"y" * 100, "a.json": b"[]"})
    for name in names:
        with pytest.raises(UserError, match=f"user/name: {name}: the Hub's cache cannot be written to .*HF_HOME"):
            fetch_file("user/name", name)


def test_an_upload_goes_on_where_nothing_can_be_remembered_of_it(
    in_parts: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setattr(hub_constants, "HF_HOME", str(tmp_path / "home"))
    push(folder)
    assert len(in_parts.repos["user/name"].files["model.safetensors"]) == SIZE
