"""One TOML file, the environment on top, unknown keys named, secrets never shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backends.composition import HouseSettings
from gateway.settings import Settings, example, load
from storage.errors import BadInput

EXAMPLE = Path(__file__).parents[2] / "packaging" / "ashore.example.toml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ashore.toml"


def refusal(path: Path | None) -> str:
    with pytest.raises(BadInput) as caught:
        load(path)
    return caught.value.message


def test_defaults() -> None:
    settings = load(None)
    assert (settings.gateway.port, settings.gateway.login_grace_seconds, settings.objects.bucket) == (
        2022,
        30,
        "ashore",
    )


def test_the_file_and_then_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('[gateway]\nport = 2200\nbanner = "hello"\n[backends.docker]\nenabled = false\n')
    monkeypatch.setenv("ASHORE_GATEWAY__PORT", "2201")
    monkeypatch.setenv("ASHORE_BACKENDS__LOCAL__ENABLED", "false")
    settings = load(file)
    assert (settings.gateway.port, settings.gateway.banner) == (2201, "hello")
    assert not settings.backends.docker.enabled
    assert not settings.backends.local.enabled


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gateway]\nprot = 1\n", "there is no setting 'gateway.prot' (did you mean 'gateway.port'?)"),
        ("[gatway]\nport = 1\n", "there is no setting 'gatway' (did you mean 'gateway'?)"),
        ("[backends.docker]\nimage = 'x'\n", "there is no setting 'backends.docker.image'"),
        ("[gateway]\nport = 70000\n", "'gateway.port' is wrong"),
        ("[gateway]\nattempts = 'many'\n", "'gateway.attempts' is wrong"),
        ("[gateway\n", "is not TOML"),
        ("gateway = 3\n", "'gateway' is wrong"),
    ],
)
def test_mistakes_name_the_file_and_the_key(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    sentence = refusal(file)
    assert sentence.startswith(str(file))
    assert said in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ASHORE_GATEWAY__PROT", "1"),
        ("ASHORE_GATWAY__PORT", "1"),
        ("ASHORE_PRT", "1"),
        ("ASHORE_GATEWAY_PORT", "2200"),
        ("ASHORE_PORT", "2200"),
        ("ASHORE_GATEWAY__PORT", "seventy"),
        ("ASHORE_GATEWAY", "{"),
    ],
)
def test_mistakes_in_the_environment_name_the_variable(
    file: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    file.write_text("[gateway]\nattempts = 3\n")
    monkeypatch.setenv(variable, value)
    assert variable in refusal(file) or variable.removeprefix("ASHORE_").lower() in refusal(file)


def test_variables_that_kubernetes_makes_are_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ASHORE_SERVICE_HOST": "10.0.0.1",
        "ASHORE_SERVICE_PORT": "2022",
        "ASHORE_SERVICE_PORT_SSH": "2022",
        "ASHORE_PORT": "tcp://10.0.0.1:2022",
        "ASHORE_PORT_2022_TCP": "tcp://10.0.0.1:2022",
        "ASHORE_PORT_2022_TCP_ADDR": "10.0.0.1",
        "ASHORE_DB_SERVICE_HOST": "10.0.0.2",
    }.items():
        monkeypatch.setenv(name, value)
    assert load(None).gateway.port == 2022


MACHINE = """[backends.machines.gpu7]
address = "gpu7.example.org"
user = "ashore"
host_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILUHRBntthKg9Y8mH+qerxvw+bxhoLptBtHSxo63OpiJ root@gpu7"
key_file = "/root/.ssh/ashore-gpu7"
"""


def test_a_table_for_each_machine(file: Path, tmp_path: Path) -> None:
    """Also as the processes of the menu read it."""
    file.write_text(MACHINE)
    backends = load(file).backends
    assert (backends.machines["gpu7"].port, backends.machines["gpu7"].users) == (22, ())
    HouseSettings(backends=backends).save(tmp_path / "house.json")
    assert HouseSettings.read(tmp_path / "house.json").backends == backends


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("user =", "usr ="), "'backends.machines.gpu7.user' is wrong: Field required"),
        (("AAAAC3", "AAAA"), "'backends.machines.gpu7.host_key' is wrong"),
        (("machines.gpu7", "machines.docker"), "'backends.machines' is wrong"),
    ],
)
def test_mistakes_about_machines_name_the_key(file: Path, change: tuple[str, str], said: str) -> None:
    file.write_text(MACHINE.replace(*change))
    assert said in refusal(file)


def test_secrets_are_never_shown(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[objects]\nsecret_key = 'hunter2'\n")
    assert "hunter2" not in repr(load(file))
    file.write_text("[objects]\nsecret_key = ['hunter2']\n")
    assert "hunter2" not in refusal(file)
    file.write_text("[objects]\nsecret_key = 'hunter2\n")
    assert "hunter2" not in refusal(file)
    file.write_text("")
    monkeypatch.setenv("ASHORE_OBJECTS", '{"secret_key": "hunter2"')
    assert "hunter2" not in refusal(file)


def test_a_file_that_is_not_there(file: Path) -> None:
    assert "No such file" in refusal(file)


def test_the_example_is_up_to_date() -> None:
    """`ashore init` writes the same text."""
    assert EXAMPLE.read_text() == example()


def test_the_example_lists_every_setting_with_its_default_and_documentation(file: Path) -> None:
    text = EXAMPLE.read_text()
    file.write_text(re.sub("^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE))
    assert load(file) == Settings()
    assert load(file).model_fields_set == set(Settings.model_fields)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match("# [a-z_]+ = ", line):
            assert lines[number - 1].startswith("## "), f"{line} has no documentation"
