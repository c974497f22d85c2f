"""Messages hold no password and nothing that a terminal obeys."""

import pytest

from flows.settings import load_flows_environment
from ral.errors import UserError, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:token@host/x.git", "https://host/x.git"),
        ("https://token@host/x.git", "https://host/x.git"),
        ("HTTPS://user:token@host:8443", "HTTPS://host:8443"),
        ("https://user:p@ss@host/x", "https://host/x"),
        ("https://user:a/b?c#d@host/x", "https://host/x"),
        ("https://user:@host/x https://user:it's@host/x", "https://host/x https://host/x"),
        ("fatal: unable to access 'http://u:t@h/x/': no", "fatal: unable to access 'http://h/x/': no"),
        ("['git', 'push', 'https://u:t@h/x']", "['git', 'push', 'https://h/x']"),
        ("postgresql+asyncpg://u:t@h/d", "postgresql+asyncpg://h/d"),
        ("ssh://git:t@h/x", "ssh://h/x"),
        ("ssh://git@h/x git@h:x", "ssh://git@h/x git@h:x"),
        ("https://h:8080/a@b and https://h/a@b, x@y", "https://h:8080/a@b and https://h/a@b, x@y"),
        ("https://h/x?a=1&private_token=t-1#y 'z'", "https://h/x?a=1&private_token=***#y 'z'"),
        ("azure://h/x?sv=2&sig=a%2Fb", "azure://h/x?sv=2&sig=***"),
        ("file:///data/a@b", "file:///data/a@b"),
    ],
)
def test_addresses_lose_user_and_password(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_nothing_in_a_message_steers_a_terminal() -> None:
    cell = "a\x1b]0;owned\x07\x1b[2Jb\r\x9bc\u202egnp.\n\tüé\u200d文"
    assert plain(cell) == r"a\x1b]0;owned\x07\x1b[2Jb\r\x9bc\u202egnp." + "\n\tüé\u200d文"


def test_every_error_for_people_is_plain(tmp_path) -> None:
    error = UserError("row 3: \x1b[31m of https://u:t@h/x", "disk", True)
    assert str(error) == r"row 3: \x1b[31m of https://h/x"
    with pytest.raises(UserError) as refused:
        load_flows_environment(tmp_path, {"RAL_FLOWS_RETRIES": "https://u:hunter2@h/x"})
    assert "hunter2" not in str(refused.value)
