"""A mailbox for development and tests: each mail is a file."""

import os
import re
import tempfile
from collections.abc import Sequence
from email.utils import make_msgid
from itertools import count
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend


class FilePerMessageBackend(BaseEmailBackend):
    """Writes each mail to EMAIL_FILE_PATH, named after the local part of its Message-ID.

    A file appears whole or not at all, and is never overwritten: the second mail with an id is
    `<id>.2.eml`, also if several processes write at once.
    """

    def __init__(self, *args: Any, file_path: str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        directory = file_path or getattr(settings, "EMAIL_FILE_PATH", None)
        if not directory:
            raise ImproperlyConfigured("EMAIL_FILE_PATH is not set: name the mailbox's directory.")
        self.directory = Path(directory)

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        sent = [message for message in email_messages if message.recipients()]
        for message in sent:
            self._write(message)
        return len(sent)

    def _write(self, message: EmailMessage) -> None:
        content = message.message()
        self.directory.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.directory, prefix=".", suffix=".part")
        try:
            with open(handle, "wb") as file:
                file.write(content.as_bytes())
                file.flush()
                os.fsync(file.fileno())
            self._link(temporary, _file_stem(content["Message-ID"]))
        finally:
            os.unlink(temporary)

    def _link(self, temporary: str, stem: str) -> None:
        """Give the file its name, which link() refuses to take from another one."""
        for number in count(1):
            suffix = ".eml" if number == 1 else f".{number}.eml"
            try:
                os.link(temporary, self.directory / f"{stem}{suffix}")
            except FileExistsError:
                continue
            return


def _file_stem(message_id: str | None) -> str:
    local_part = str(message_id or make_msgid()).strip("<> ").partition("@")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "_", local_part)[:200].lstrip(".") or "message"
