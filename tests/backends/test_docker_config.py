"""What is said to Docker, and the scripts that run inside, as data."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from backends.compute.contract import State, VolumeMount, WorkloadSpec
from backends.compute.docker import config
from backends.compute.docker.nfs_homes import Export, driver_options, home_volume
from backends.settings import DockerHostSettings, DockerSettings
from storage.errors import BadInput

SPEC = WorkloadSpec(
    id="00ff00ff00ff00ff", name="train_v1.2", owner="alice", workspace="team", image="debian:bookworm", cpus=1.5,
    memory=256 * 1024 * 1024, variables={"B": "2", "A": "with = and space", "NVIDIA_VISIBLE_DEVICES": "all"},
)  # fmt: skip


def body(spec: WorkloadSpec = SPEC) -> config.JSON:
    return config.container(
        spec, image="debian:bookworm", login="developer", guest=Path("/data/guest/abc"), settings=DockerSettings()
    )


def test_it_can_be_found_by_its_labels() -> None:
    assert body()["Labels"] == {
        "ashore": "00ff00ff00ff00ff", "ashore.name": "train_v1.2", "ashore.owner": "alice",
        "ashore.workspace": "team", "ashore.user": "developer",
    }  # fmt: skip


def test_hardening() -> None:
    host = body()["HostConfig"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert sorted(host["CapDrop"]) == ["MKNOD", "NET_RAW"]
    assert (host["PidsLimit"], host["Init"], host["RestartPolicy"]) == (4096, True, {"Name": "no"})
    assert host["NetworkMode"] == "ashore-team"
    assert host.get("Privileged", False) is False
    assert "Devices" not in host
    assert "CapAdd" not in host


def test_limits_and_their_absence() -> None:
    host = body()["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (SPEC.memory, SPEC.memory, 1_500_000_000)
    free = body(WorkloadSpec("i", "n", "o", "w"))["HostConfig"]
    assert not {"Memory", "MemorySwap", "NanoCpus"} & set(free)
    assert free["ShmSize"] == 1024 * 1024 * 1024


def test_no_gpu_unless_given() -> None:
    """CUDA images say `all`, and so could a user."""
    assert body()["Env"] == ["A=with = and space", "B=2", "NVIDIA_VISIBLE_DEVICES=void"]


def test_mounts() -> None:
    home, guest, run = body()["HostConfig"]["Mounts"]
    assert (home["Type"], home["Source"], home["Target"]) == ("volume", "ashore-00ff00ff00ff00ff-home", "/workspace")
    assert (guest["Source"], guest["Target"], guest["ReadOnly"]) == ("/data/guest/abc", "/opt/ashore/guest", True)
    assert (run["Type"], run["Target"], run["TmpfsOptions"]["Mode"]) == ("tmpfs", "/opt/ashore/run", 0o700)


def test_the_image_does_not_choose_what_runs() -> None:
    made = body()
    assert made["Entrypoint"][:2] == ["/bin/sh", "-c"]
    assert (made["Cmd"], made["User"], made["Healthcheck"]) == ([], "0:0", {"Test": ["NONE"]})
    assert made["Hostname"] == "train-v1-2"


@pytest.mark.parametrize(
    ("user", "login"),
    [("", "developer"), ("root", "developer"), ("0", "developer"), ("0:0", "developer"), ("jovyan", "jovyan"),
     ("1001:100", "1001"), ("app:app", "app"), ("$(reboot)", "developer"), (None, "developer")],
)  # fmt: skip
def test_who_logs_in(user: str | None, login: str) -> None:
    assert config.image_user({"Config": {"User": user}}) == login
    assert config.image_user({"Config": None}) == "developer"


@pytest.mark.parametrize("image", ["", "-x", "a b", "a\nb", "a;b", "x" * 300])
def test_images_that_cannot_be(image: str) -> None:
    with pytest.raises(BadInput):
        config.check_image(image)


@pytest.mark.parametrize("image", ["debian", "debian:bookworm", "r.example:5000/a/b:c", "a@sha256:00ff"])
def test_images_that_can_be(image: str) -> None:
    assert config.check_image(image) == image


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"Status": "running"}, (State.RUNNING, "", None)),
        ({"Status": "created", "Error": "no runtime"}, (State.STOPPED, "no runtime", None)),
        ({"Status": "exited", "ExitCode": 0}, (State.STOPPED, "it was stopped", 0)),
        ({"Status": "exited", "ExitCode": 3}, (State.STOPPED, "its main program ended with status 3", 3)),
        ({"Status": "exited", "ExitCode": 137, "OOMKilled": True}, (State.STOPPED, "it ran out of memory", 137)),
        ({"Status": "removing", "ExitCode": 0}, (State.STOPPED, "it was stopped", 0)),
    ],
)
def test_status(state: config.JSON, expected: tuple[State, str, int | None]) -> None:
    status = config.status_of({"State": state})
    assert (status.state, status.reason, status.exit_status) == expected


def test_a_pull_in_percent() -> None:
    assert config.pull_line("debian", {}) == "pulling debian"
    assert config.pull_line("debian", {"a": (50, 100), "b": (0, 100)}) == "pulling debian 25 %"


@settings(max_examples=20, deadline=None)
@given(content=st.binary(max_size=3000))
def test_files_arrive_byte_for_byte(content: bytes) -> None:
    """The lines that write a file, run by this machine's own shell."""
    script = "".join(f"printf '%b' '{piece}'\n" for piece in config.octal(content))
    done = subprocess.run(["/bin/sh", "-s"], input=script.encode(), capture_output=True, check=True)
    assert done.stdout == content


def test_secrets_come_on_stdin_and_whole() -> None:
    script = config.setup_script({"key": b"secret"}, "developer").decode()
    assert "secret" not in script  # nobody greps for it by accident, in a log for instance
    assert script.index("umask 077") < script.index("/opt/ashore/run/key.new") < script.index("mv /opt/ashore/run/key")


# ---- the accounts script, in a container of its own ----------------------------------------------------------------
def accounts(image_setup: str, login: str) -> str:
    """Run the script after `image_setup`, as a start does, twice, and show what it made."""
    script = image_setup.encode() + b"\n" + config.setup_script({"key": b"x"}, login) * 2
    show = b"\ncat /etc/passwd; cat /etc/shadow; stat -c '%u:%g' /workspace; cat /opt/ashore/run/user\n"
    done = subprocess.run(
        ["docker", "run", "--rm", "-i", "--tmpfs", "/opt/ashore/run:mode=0700", "debian:bookworm", "sh", "-s"],
        input=script + show, capture_output=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout.decode()


def test_an_image_without_users_gets_a_developer() -> None:
    shown = accounts("", "developer")
    assert shown.count("\ndeveloper:x:1000:1000::/workspace:/bin/bash\n") == 1
    assert shown.count("sshd:x:74:74:") == 1
    assert shown.endswith("1000:1000\ndeveloper\n")


def test_the_images_own_user_keeps_its_number_and_is_unlocked() -> None:
    shown = accounts("useradd -u 1234 -m -s /usr/sbin/nologin jovyan", "jovyan")
    assert "\njovyan:x:1234:1234::/workspace:/bin/bash\n" in shown
    assert "\njovyan:*:" in shown
    assert shown.endswith("1234:1234\njovyan\n")
    assert "developer" not in shown


def test_a_user_by_number() -> None:
    assert accounts("useradd -u 1234 -m jovyan", "1234").endswith("1234:1234\njovyan\n")
    assert accounts("", "1234").endswith("1234:1234\nuser1234\n")


def test_an_image_with_hardly_anything_in_etc() -> None:
    shown = accounts("rm /etc/passwd /etc/group /etc/shadow; touch /etc/shadow", "developer")
    assert shown.startswith("root:x:0:0:root:/root:/bin/sh\n")
    assert "developer:x:1000:1000::/workspace:/bin/bash" in shown


def test_gpus_are_given_by_their_uuids() -> None:
    """With `Count`, Docker gives everybody the same card."""
    spec = replace(SPEC, gpus=("GPU-1", "MIG-2"))
    made = body(spec)
    assert made["HostConfig"]["DeviceRequests"] == [
        {"Driver": "nvidia", "DeviceIDs": ["GPU-1", "MIG-2"], "Capabilities": [["gpu"]]}
    ]
    assert "NVIDIA_VISIBLE_DEVICES=GPU-1,MIG-2" in made["Env"]
    assert made["Labels"]["ashore.gpus"] == "GPU-1,MIG-2"
    assert "DeviceRequests" not in body()["HostConfig"]


def test_gpus_by_cdi() -> None:
    made = config.container(
        replace(SPEC, gpus=("GPU-1",)), image="i", login="developer", guest=Path("/g"), settings=DockerSettings(),
        gpu_driver="cdi",
    )  # fmt: skip
    assert made["HostConfig"]["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1"]}]


def test_a_container_is_compared_by_its_gpus() -> None:
    spec = replace(SPEC, gpus=("GPU-1", "GPU-2"))
    assert config.has_these_gpus(spec, {"ashore.gpus": "GPU-2,GPU-1"})
    assert not config.has_these_gpus(spec, {"ashore.gpus": "GPU-1"})
    assert config.has_these_gpus(SPEC, {})


# ---- homes on NFS ------------------------------------------------------------------------------------------------
def test_a_home_on_nfs_is_a_folder_of_its_own() -> None:
    """An export that is mounted as it is would show everybody's home."""
    settings = DockerSettings(homes_nfs="nas.example.org:/srv/homes/", homes_nfs_options="nfsvers=4.2,hard")
    export = Export.of(settings, DockerHostSettings(url="unix:///x"))
    assert export == Export("nas.example.org:/srv/homes", "nfsvers=4.2,hard")
    assert export is not None
    home = home_volume(config.volume(SPEC), export, config.Place(SPEC.id))
    assert home["Driver"] == "local"
    assert home["DriverOpts"] == {
        "type": "nfs", "o": "addr=nas.example.org,nfsvers=4.2,hard", "device": f":/srv/homes/ashore-{SPEC.id}",
    }  # fmt: skip
    assert home["Name"] == f"ashore-{SPEC.id}-home"
    assert home["Labels"]["ashore"] == SPEC.id
    assert Export.of_home(home["Labels"]) == export
    assert Export.of_home(config.volume(SPEC)["Labels"]) is None


def test_a_host_may_have_an_export_of_its_own() -> None:
    settings = DockerSettings(homes_nfs="nas:/homes")
    host = DockerHostSettings(url="unix:///x", homes_nfs="other:/")
    export = Export.of(settings, host)
    assert export == Export("other:/", "nfsvers=4,hard")
    assert driver_options(export) == {"type": "nfs", "o": "addr=other,nfsvers=4,hard", "device": ":/"}
    assert driver_options(export, "ashore-x")["device"] == ":/ashore-x"
    assert Export.of(DockerSettings(), DockerHostSettings(url="unix:///x")) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"homes_nfs": "nas"}, "SERVER:/PATH"),
        ({"homes_nfs": "nas:relative"}, "SERVER:/PATH"),
        ({"homes_nfs": "nas:/a,b"}, "SERVER:/PATH"),
        ({"homes_nfs_options": "hard,addr=evil"}, "without addr="),
        ({"homes_nfs_options": "hard rw"}, "commas between them"),
    ],
)
def test_exports_that_cannot_be(values: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DockerSettings(**values)  # type: ignore[arg-type]


# ---- data --------------------------------------------------------------------------------------------------------
def test_a_volume_of_data_is_read_only_and_gets_nothing_of_the_image() -> None:
    spec = replace(SPEC, mounts=(VolumeMount("ashore-data-v", "/gemini/data-1"),))
    (mount,) = (one for one in body(spec)["HostConfig"]["Mounts"] if one["Target"] == "/gemini/data-1")
    assert mount == {
        "Type": "volume", "Source": "ashore-data-v", "Target": "/gemini/data-1", "ReadOnly": True,
        "VolumeOptions": {"NoCopy": True},
    }  # fmt: skip
    labels = config.mounts_label(spec)
    assert config.has_these_mounts(spec, labels)
    assert config.has_these_mounts(spec, {})  # made before there was such a label
    assert not config.has_these_mounts(SPEC, labels)
    assert not config.has_these_mounts(replace(spec, mounts=(VolumeMount("other", "/gemini/data-1"),)), labels)
