"""API keys in files and folders: only hashes, every mistake at its place, and times that count."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from authz.authenticators.api_keys import ApiKeys, client_files, load_directory, load_file
from authz.authenticators.clients import (
    ClientRecord,
    hash_key,
    new_key,
    parse_hash,
    weakness,
)
from authz.authn.credentials import Answer, Result
from garrison.errors import ConfigError

A, B, C = (hash_key(name) for name in ("key-a", "key-b", "key-c"))


def known(load: Path, credential: str) -> Answer:
    """Return what keys from a file or folder make of a credential."""
    keys = ApiKeys()
    keys.use(load_directory(load) if load.is_dir() else load_file(load))
    return keys.known(credential, 0.0)


def file_of(folder: Path, text: str) -> Path:
    """Return a file of keys."""
    file = folder / "keys.yaml"
    file.write_text(text)
    return file


def mistakes(path: Path) -> list[str]:
    """Return what is wrong with a file or folder of keys, without its folder."""
    with pytest.raises(ConfigError) as caught:
        known(path, "x")
    return [str(one).replace(f"{path.parent}/", "") for one in caught.value.diagnostics]


def test_a_file_names_clients_by_the_hashes_of_their_keys(tmp_path: Path) -> None:
    """Several hashes while keys change, claims, and nothing of a client whose key is another."""
    file = file_of(
        tmp_path,
        f"keys:\n- {{name: alice, hashes: ['{A}', '{B}'], claims: {{groups: [x], tier: gold}}}}\n- {{name: bob, hashes: ['{C}']}}\n",
    )
    for key in ("key-a", "key-b"):
        answer = known(file, key)
        assert (answer.result, answer.claims) == (
            Result.ACCEPTED,
            {"sub": "alice", "groups": ["x"], "tier": "gold"},
        )
    assert known(file, "key-c").claims == {"sub": "bob"}
    for wrong in ("", "key-d", A, A.removeprefix("sha256:"), "key-a ", "KEY-A", "x" * 513):
        assert known(file, wrong).result is Result.REFUSED
    assert f"sha256:{hashlib.sha256(b'key-a').hexdigest()}" == A


def test_times_of_a_client_become_those_of_the_answer(tmp_path: Path) -> None:
    """Whoever asked compares them with the time of the call."""
    file = file_of(
        tmp_path,
        f"keys:\n- {{name: a, hashes: ['{A}'], not_before: '2027-01-01T00:00:00Z', expires: '2027-01-01T01:00:00+01:00'}}\n".replace(
            "01:00:00+01:00", "03:00:00+01:00"
        ),
    )
    answer = known(file, "key-a")
    assert (answer.begins, answer.expires) == (1_798_761_600.0, 1_798_761_600.0 + 7200)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "keys.yaml:1:1: the file is empty; no keys at all are `keys: []` [missing_field]"),
        ("{}", "keys.yaml:1:1: keys: the required field `keys` is missing [missing_field]"),
        ("keys: []\n---\nkeys: []\n", "keys.yaml:3:1: there can be only one document [two_documents]"),
        ("keys:\n- {name: a}", "keys.yaml:2:3: keys[0].hashes: the required field `hashes` is missing"),
        ("keys:\n- {name: a, hashes: []}", "keys.yaml:2:21: keys[0].hashes:"),
        ("keys:\n- {name: a/b, hashes: ['HASH']}", "keys.yaml:2:10: keys[0].name:"),
        (
            "keys:\n- {name: a, hashes: [plain-key-s3cret]}",
            "keys.yaml:2:21: keys[0].hashes: this is no hash of an API key",
        ),
        ("keys:\n- {name: a, hashes: ['HASH'], key: x}", "keys[0].key: unknown field `key`"),
        ("keys:\n- {name: a, hashes: ['HASH'], expires: tomorrow}", "`tomorrow` is no time such as"),
        ("keys:\n- {name: a, hashes: ['HASH'], expires: '2027-01-01T00:00:00'}", "is no time such as"),
        (
            "keys:\n- {name: a, hashes: ['HASH'], not_before: '2027-01-01T00:00:00Z', expires: '2027-01-01T00:00:00Z'}",
            "`expires` is not after `not_before`",
        ),
        (
            "keys:\n- {name: a, hashes: ['HASH'], claims: {iss: x}}",
            "the claim `iss` is not for a client to have",
        ),
        (
            "keys:\n- {name: a, hashes: ['HASH']}\n- {name: a, hashes: ['OTHER']}",
            "keys.yaml:3:10: keys[1].name: `a` stands here twice",
        ),
        (
            "keys:\n- {name: a, hashes: ['HASH']}\n- {name: b, hashes: ['HASH']}",
            "keys[1].hashes[0]: this hash stands here twice",
        ),
        ("keys:\n- {name: a, hashes: ['HASH', 'HASH']}", "keys[0].hashes[1]: this hash stands here twice"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, expected: str) -> None:
    """File, line, column, field; and never a text that may be a key."""
    found = mistakes(file_of(tmp_path, text.replace("HASH", A).replace("OTHER", B)))
    assert any(expected in one for one in found), found
    assert "s3cret" not in "".join(found)


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    """It is no file without keys."""
    assert "cannot be read" in mistakes(tmp_path / "none.yaml")[0]


def test_no_keys_at_all_is_worth_a_warning(tmp_path: Path) -> None:
    """It may be meant, and it lets nobody in."""
    assert [one.code for one in load_file(file_of(tmp_path, "keys: []")).warnings] == ["no_keys"]
    (tmp_path / "empty").mkdir()
    assert [one.code for one in load_directory(tmp_path / "empty").warnings] == ["no_keys"]


# ---------------------------------------------------------------------------------------------------- folder


def mounted(folder: Path, version: str, clients: dict[str, str]) -> Path:
    """Write a Secret's volume as Kubernetes does: links into `..data`, which is swapped as a whole."""
    folder.mkdir(exist_ok=True)
    data = folder / f"..{version}"
    data.mkdir()
    for name, text in clients.items():
        (data / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..new").symlink_to(data.name)
    (folder / "..new").rename(folder / "..data")
    for link in folder.iterdir():
        if link.is_symlink() and not link.name.startswith("..") and link.name not in clients:
            link.unlink()
    return folder


def test_a_folder_names_clients_by_its_files(tmp_path: Path) -> None:
    """As the volume of a Kubernetes Secret; a swap changes all at once, what starts with a dot is nothing."""
    folder = mounted(tmp_path / "keys", "1", {"alice": f"{A}\n{B}\n", "bob": C})
    (folder / ".swp").write_text("x")
    first = load_directory(folder)
    assert [path.name for path in client_files(folder)] == ["alice", "bob"]
    assert known(folder, "key-a").claims == known(folder, "key-b").claims == {"sub": "alice"}
    assert known(folder, "key-c").claims == {"sub": "bob"}
    mounted(folder, "2", {"alice": f"\n{B}\r\n"})
    assert load_directory(folder).version != first.version
    assert known(folder, "key-a").result is known(folder, "key-c").result is Result.REFUSED
    assert known(folder, "key-b").claims == {"sub": "alice"}


@pytest.mark.parametrize(
    ("clients", "expected"),
    [
        ({"a": ""}, "keys/a:1:1: there is no hash in it"),
        ({"a": f"{A}\nplain-key-s3cret"}, "keys/a:2:1: this is no hash of an API key"),
        ({"a": A, "b": f"\n{A}"}, "keys/b:2:1: client `a` has this hash, too"),
        ({"a": f"{A}\n{A}"}, "keys/a:2:1: client `a` has this hash, too"),
        ({"a": "sha256:\u00e9"}, "keys/a:1:1: the file is not ASCII"),
        ({"a": "x" * (1024 * 1024 + 1)}, "keys/a:1:1: the file has more than 1048576 bytes"),
        ({"a\nb": A}, "is no name of a client"),
    ],
)
def test_mistakes_in_a_folder_are_named(tmp_path: Path, clients: dict[str, str], expected: str) -> None:
    """File and line; and never a text that may be a key."""
    found = mistakes(mounted(tmp_path / "keys", "1", clients))
    assert any(expected in one for one in found), found
    assert "s3cret" not in "".join(found)


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    """It is no folder without clients; nor is a link that leads nowhere a client without keys."""
    assert "cannot be read" in mistakes(tmp_path / "none" / "keys")[0]
    folder = mounted(tmp_path / "keys", "1", {"a": A})
    (folder / "b").symlink_to("..data/b")
    assert "keys/b:1:1: cannot be read: no such file or directory" in mistakes(folder)[0]


# ------------------------------------------------------------------------------------------------------ keys


def test_a_new_key_is_long_and_another_each_time() -> None:
    """256 bits; the command that hashes keys takes it."""
    keys = {new_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(len(key) > 43 and not weakness(key) for key in keys)


@pytest.mark.parametrize(
    "key", ["", "short", "a" * 40, "correct horse battery staple", "a,b" * 20, "x" * 513]
)
def test_a_key_that_could_be_found_from_its_hash_is_not_hashed(key: str) -> None:
    """Too short, too uniform, or not what a header can carry."""
    assert weakness(key)


@pytest.mark.parametrize(
    "text", ["", A.upper(), A[:-1], f"{A}0", f" {A}", A.removeprefix("sha256:"), "md5:00"]
)
def test_only_the_one_spelling_is_a_hash(text: str) -> None:
    """So that one key does not stand in two."""
    with pytest.raises(ValueError, match="no hash of an API key"):
        parse_hash(text)


def test_counts_are_kept_by_result() -> None:
    """For metrics; asking is the same as looking up."""
    keys = ApiKeys()
    assert keys.known("x", 0.0) == asyncio.run(keys.ask("x"))
    assert keys.results[Result.REFUSED] == 2
    assert keys.remembered == 0
    asyncio.run(keys.close())


def test_a_record_keeps_its_own_name() -> None:
    """No claim of a file replaces it."""
    assert ClientRecord(name="a", claims={"x": 1}).answer().claims == {"x": 1, "sub": "a"}
