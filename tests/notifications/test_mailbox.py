import subprocess
import sys
from collections.abc import Callable
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from pytest_django import Settings

from notifications.mailbox import FilePerMessageBackend

Box = Callable[[], FilePerMessageBackend]

# A process of its own, which sends 50 mails: half of them under ids that the others use as well.
SENDER = """
import sys
from django.conf import settings
settings.configure()
from django.core.mail import EmailMessage
from notifications.mailbox import FilePerMessageBackend

directory, sender = sys.argv[1:]
backend = FilePerMessageBackend(file_path=directory)
for number in range(25):
    for name in (f"shared-{number}", f"own-{sender}-{number}"):
        message = EmailMessage("s", "b" * 10_000, "a@example.org", ["b@example.org"])
        message.extra_headers = {"Message-ID": f"<{name}@example.org>"}
        backend.send_messages([message])
"""


@pytest.fixture
def mailbox(tmp_path: Path) -> FilePerMessageBackend:
    return FilePerMessageBackend(file_path=tmp_path / "mail")


def make_mail(message_id: str = "<delivery-7@1.localhost>", body: str = "text") -> EmailMessage:
    return EmailMessage(
        "subject",
        body,
        "truebeat@example.org",
        ["ada@example.org"],
        headers={"Message-ID": message_id},
    )


def files(mailbox: FilePerMessageBackend) -> list[str]:
    return sorted(path.name for path in mailbox.directory.iterdir())


def read(path: Path) -> Any:
    return message_from_bytes(path.read_bytes(), policy=policy.default)


def test_each_mail_is_a_file_named_after_its_delivery(mailbox: FilePerMessageBackend) -> None:
    mails = [make_mail(f"<delivery-{number}@1.localhost>", f"text {number}") for number in (7, 8)]
    assert mailbox.send_messages(mails) == 2
    assert files(mailbox) == ["delivery-7.eml", "delivery-8.eml"]
    message = read(mailbox.directory / "delivery-8.eml")
    assert (message["To"], message["Subject"]) == ("ada@example.org", "subject")
    assert message.get_content().strip() == "text 8"


def test_a_second_mail_of_a_delivery_is_seen(mailbox: FilePerMessageBackend) -> None:
    for number in range(3):
        mailbox.send_messages([make_mail(body=f"text {number}")])
    assert files(mailbox) == ["delivery-7.2.eml", "delivery-7.3.eml", "delivery-7.eml"]
    assert "text 0" in (mailbox.directory / "delivery-7.eml").read_text()


def test_a_name_stays_inside_the_mailbox(mailbox: FilePerMessageBackend) -> None:
    mailbox.send_messages([make_mail("<../../etc/passwd@x>"), make_mail("<@x>")])
    assert files(mailbox) == ["_.._etc_passwd.eml", "message.eml"]


def test_a_mail_to_nobody_is_not_sent(mailbox: FilePerMessageBackend) -> None:
    assert mailbox.send_messages([EmailMessage("subject", "text")]) == 0
    assert not mailbox.directory.exists()


def test_it_is_where_the_settings_say(settings: Settings, tmp_path: Path) -> None:
    settings.EMAIL_FILE_PATH = str(tmp_path)
    assert FilePerMessageBackend().directory == tmp_path
    settings.EMAIL_FILE_PATH = ""
    with pytest.raises(ImproperlyConfigured, match="EMAIL_FILE_PATH is not set"):
        FilePerMessageBackend()


def test_processes_that_send_at_once_lose_no_mail(mailbox: FilePerMessageBackend) -> None:
    directory = mailbox.directory
    senders = [
        subprocess.Popen([sys.executable, "-c", SENDER, str(directory), str(number)])
        for number in range(4)
    ]
    assert [sender.wait(timeout=60) for sender in senders] == [0] * 4
    written = list(directory.iterdir())
    assert len(written) == 4 * 50
    assert len([path for path in written if path.name.startswith("shared-13.")]) == 4
    assert {read(path).get_content().strip() for path in written} == {"b" * 10_000}
