"""System checks of the settings that triggers read."""

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from scheduling.outgoing import sealing


@register()
def check_outgoing_allow(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """OUTGOING_ALLOW must hold networks."""
    found = list[CheckMessage]()
    for network in settings.OUTGOING_ALLOW:
        try:
            ip_network(network)
        except ValueError as error:
            hint = "Write networks such as 10.1.2.0/24, with commas between."
            found.append(Error(f"OUTGOING_ALLOW: {error}.", hint=hint, id="triggers.E001"))
    return found


@register()
def check_secrets_keys(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """SECRETS_KEYS must hold Fernet keys."""
    try:
        sealing.check_keys()
    except sealing.SealingError as error:
        return [Error(str(error), id="triggers.E002")]
    return []
