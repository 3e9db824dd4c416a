"""What is wrong with a document is said without its secrets: by the loader, in the agent's log and in its status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from node.given import authority, node_layout
from node.running import Node
from node.tree import put
from sluice.cluster.documents import load_document
from sluice.cluster.layout import Login, NodeLayout, NodeSecrets
from sluice.errors import ConfigInvalid
from sluice.node.record import STATUS

SECRET = "hunter2"
_, CERTIFICATE, KEY = authority()
PAIR = {"certificate": CERTIFICATE, "key": KEY}
LOGIN = {"user": "bob", "password": SECRET}
KEY_LINE = KEY.splitlines()[1]


def written(document: object) -> str:
    return json.dumps(document)


# A secrets file, and what is said about it after its name.
BROKEN = [
    (f"upstream:\n  password: {SECRET}: x", "is neither YAML nor JSON: mapping values are not allowed here (line 2, c"),
    (f"key: |\n  -----BEGIN PRIVATE KEY-----\n{KEY_LINE}\n", "is neither YAML nor JSON: could not find expected ':' ("),
    (f"password: {SECRET}", "certificate is missing: write it"),
    (SECRET, "the document is not what it should be: a valid dictionary or instance of NodeSecrets"),
    (written([SECRET]), "the document is not what it should be"),
    (written(PAIR | {"passwd": SECRET}), "passwd is not a known key: leave it out, or look for a spelling mistake"),
    (written(PAIR | {"upstream": LOGIN | {"pasword": SECRET}}), "upstream.pasword is not a known key: leave it out"),
    (written(PAIR | {"upstream": LOGIN | {SECRET: None}}), "upstream has a key that is not known and not shown"),
    (written(PAIR | {f"password {SECRET}": 1}), "the document has a key that is not known and not shown: leave it"),
    (written(PAIR | {"upstream": SECRET}), "upstream is not what it should be"),
    (written(PAIR | {"upstream": [SECRET]}), "upstream is not what it should be"),
    (written(PAIR | {"upstream": {"user": [SECRET], "password": "x"}}), "upstream.user is no text of one line"),
    (written(PAIR | {"upstream": {"user": "bob", "password": f"{SECRET}\n"}}), "upstream.password is no text of one"),
    (written(PAIR | {"key": KEY[:120]}), "key is no private key in PEM without a password"),
    (written(PAIR | {"certificate": KEY}), "certificate holds no PEM certificate that can be read"),
    (written({"certificate": CERTIFICATE, "key": authority("other")[2]}), "key is not the key of the first certif"),
]


@pytest.mark.parametrize(("text", "said"), BROKEN)
def test_a_broken_secrets_file_is_explained_without_its_secrets(text: str, said: str, tmp_path: Path) -> None:
    """Field and remedy are named; no value, no line of the file and no key that may be a value by mistake is."""
    file = put(tmp_path / "secrets.yaml", text.encode())
    with pytest.raises(ConfigInvalid) as caught:
        load_document(NodeSecrets, file)
    message = caught.value.message
    assert said == message.removeprefix(str(file)).lstrip(": ")[: len(said)]
    assert [] == [secret for secret in (SECRET, KEY_LINE[:20]) if secret in message]


def test_the_validator_itself_shows_no_secret() -> None:
    """Its own error and the model's ``repr`` may end in a traceback."""
    with pytest.raises(ValidationError) as caught:
        NodeSecrets.model_validate(PAIR | {"upstream": LOGIN | {"pasword": SECRET}})
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(Login(user="bob", password=SECRET))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"upstream": {"address": f"https://bob:{SECRET}@r.example/x"}},
            "upstream.address ('https://…@r.example/x') has a user name or an @",
        ),
        ({"upstream": {"address": f"bob:{SECRET}/@:x@r.example"}}, "upstream.address ('…@r.example') has a user name"),
        ({"registries": [{"name": f"bob:{SECRET}@r.example"}]}, "registries.0.name ('…@r.example') has '…@r.example'"),
        ({"balancer_image": f"https://bob:{SECRET}@r.example/x"}, "balancer_image ('https://…@r.example/x') is no im"),
        ({"upstream": {"address": "r.example", "passwd": SECRET}}, "upstream.passwd is not a known key: leave it out"),
        ({f"https://bob:{SECRET}@r.example": 1}, "https://…@r.example is not a known key: leave it out"),
        ({"virtual": f"{KEY}"}, "virtual ('-----BEGIN …') has white space around it"),
    ],
)
def test_a_layout_is_explained_without_a_password(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    """A layout is no place for one, and people write one there all the same."""
    document = node_layout().model_dump(mode="json") | changes
    file = put(tmp_path / "layout.yaml", written(document).encode())
    with pytest.raises(ConfigInvalid) as caught:
        load_document(NodeLayout, file)
    assert f"{file}: {said}" == caught.value.message[: len(f"{file}: {said}")]
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("text", [text for text, _ in BROKEN[:2]] + [written(PAIR | {"passwd": SECRET})])
def test_neither_log_nor_status_has_a_secret(text: str, tmp_path: Path) -> None:
    """The agent says what is wrong with a secrets file where everybody may read it."""
    with Node(tmp_path) as node:
        node.want(node.layout())
        node.start()
        node.applied(1)
        put(node.secrets, text.encode())
        node.wait_for(lambda status: str(node.secrets) in (status.error or ""), "what is wrong with the secrets")
        assert 0 == node.end()
        told = {"log": node.log.read_text(), "status": (node.state / STATUS).read_text()}
        assert ["log", "status"] == [where for where, said in told.items() if str(node.secrets) in said]
        assert [] == [where for where, said in told.items() if SECRET in said or KEY_LINE[:20] in said]
