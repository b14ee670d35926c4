"""Encrypts secrets for the database, each bound to its row.

The keys are settings.SECRETS_KEYS, the newest first: Fernet keys, which `manage.py secrets key`
makes. The first one encrypts; all of them decrypt.
"""

import json
from typing import TYPE_CHECKING

from django.conf import settings

from scheduling.errors import PermanentError, SchedulingError

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

HOW = "set SECRETS_KEYS to a key that `manage.py secrets key` prints"


class SealingError(SchedulingError, PermanentError):
    """A secret that cannot be encrypted or decrypted with the keys of this process."""


def seal(secret: str, place: str) -> str:
    """Return `secret` encrypted; only `unseal` with the same `place` returns it.

    Raises:
        SealingError: SECRETS_KEYS is empty, or has a bad key.
    """
    return _keys().encrypt(json.dumps([place, secret]).encode()).decode()


def unseal(sealed: str, place: str) -> str:
    """Return the secret.

    Raises:
        SealingError: no key fits, or the text was sealed for another place.
    """
    from cryptography.fernet import InvalidToken

    try:
        sealed_for, secret = json.loads(_keys().decrypt(sealed.encode()))
    except InvalidToken:
        raise SealingError(
            f"The secret of {place} was encrypted with a key that SECRETS_KEYS does not have."
        ) from None
    if sealed_for != place:
        raise SealingError(f"The secret of {place} was encrypted for {sealed_for}: set it again.")
    return str(secret)


def reseal(sealed: str) -> str:
    """Return the sealed text encrypted with the newest key.

    Raises:
        SealingError: no key fits.
    """
    from cryptography.fernet import InvalidToken

    try:
        return _keys().rotate(sealed.encode()).decode()
    except InvalidToken:
        raise SealingError("SECRETS_KEYS does not have the key of a stored secret.") from None


def check_keys() -> None:
    """Refuse keys that cannot be used.

    Raises:
        SealingError: a key is not a Fernet key.
    """
    if settings.SECRETS_KEYS:
        _keys()


def new_key() -> str:
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


def _keys() -> "MultiFernet":
    # Imported here: most processes never read a secret.
    from cryptography.fernet import Fernet, MultiFernet

    if not settings.SECRETS_KEYS:
        raise SealingError(f"Secrets cannot be stored without a key: {HOW}.")
    try:
        return MultiFernet([Fernet(key) for key in settings.SECRETS_KEYS])
    except ValueError as error:
        raise SealingError(f"SECRETS_KEYS has a bad key ({error}): {HOW}.") from None
