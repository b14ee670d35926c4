"""Sends one message by mail, and knows which refusals are permanent."""

import smtplib
import unicodedata
from email.utils import parseaddr

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.core.validators import validate_email
from django.utils.encoding import punycode

from scheduling.errors import PermanentError

# "Authentication required" can answer a sender too. It is about our login, which can be corrected.
NOT_OF_THIS_MAIL = {530}
LONGEST, LONGEST_LOCAL = 254, 64  # characters of an address, and before its @ (RFC 5321)


def check_address(address: str) -> None:
    """Refuse an address that no mail can be sent to; a validator of forms and columns too.

    Raises:
        ValidationError: the problem, in words that follow the address.
    """
    if problem := address_problem(address):
        raise ValidationError(problem)


def address_problem(address: str) -> str:
    """Return why an address cannot be mailed, in words that follow it; "" if it can.

    Django writes a domain such as bücher.example in ASCII. The part before the @ must be ASCII: few
    servers take other characters (SMTPUTF8), and Django does not request it.
    """
    for character in address:
        if character == " ":
            return "has a space: give one address"
        if unicodedata.category(character)[0] in "CZ":
            name = unicodedata.name(character, "a control character")
            return f"has the invisible character U+{ord(character):04X} ({name}): take it out"
    if "<" in address or ">" in address:
        return "has more than an address: give it alone, without a name and without < and >"
    local, at, domain = address.rpartition("@")
    if not at:
        return "is not a mail address"
    if foreign := next((each for each in local if not each.isascii()), ""):
        return f"has {foreign!r} before the @, which mail servers refuse: use ASCII there"
    if len(local) > LONGEST_LOCAL:
        return f"has {len(local)} characters before the @: {LONGEST_LOCAL} at most"
    try:
        written = mailable(address)
    except UnicodeError as error:
        return f"has the domain {domain[:60]!r}, which cannot be written in ASCII: {error}"
    if len(written) > LONGEST:
        return f"has {len(written)} characters: {LONGEST} at most"
    if domain.startswith("[") and ":" in domain:
        return "names a machine by its IPv6 address: give a domain"
    try:
        validate_email(written)
    except ValidationError:
        return "is not a mail address"
    return ""


def mailable(address: str) -> str:
    """Return the address as it is sent to: its domain in ASCII (punycode), as Django writes it."""
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{domain if domain.isascii() else punycode(domain)}"


def own_domain() -> str:
    """Return the domain that this installation's Message-IDs end with."""
    return parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2] or "localhost"


def send(message: EmailMessage) -> None:
    """Send it.

    Raises:
        PermanentError: the server, or the format of mail, refuses this message or its recipient.
        OSError: the failure may pass: no connection, a time-out, a 4xx answer, a refused login.
    """
    try:
        message.message()
    except ValueError as error:
        raise PermanentError(f"the message cannot be written: {error}") from error
    try:
        message.send()
    except smtplib.SMTPException as error:
        if reason := _permanent_reason(error):
            raise PermanentError(reason) from error
        raise


def _permanent_reason(error: smtplib.SMTPException) -> str:
    """Return the server's words if it refuses for good (RFC 5321, 4.2.1: 5yz), "" otherwise."""
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return str(error)
    answers: list[tuple[str, int, bytes | str]]
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        answers = [(parseaddr(address)[1], *answer) for address, answer in error.recipients.items()]
    elif isinstance(error, smtplib.SMTPSenderRefused):
        answers = [(f"sender {error.sender}", error.smtp_code, error.smtp_error)]
    elif isinstance(error, smtplib.SMTPDataError):
        answers = [("message", error.smtp_code, error.smtp_error)]
    else:
        return ""
    if any(code < 500 or code in NOT_OF_THIS_MAIL for _, code, _ in answers):
        return ""
    return "; ".join(f"{part} refused: {code} {_text(words)}" for part, code, words in answers)


def _text(words: bytes | str) -> str:
    return words.decode(errors="replace") if isinstance(words, bytes) else words
