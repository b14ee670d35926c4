"""The IP addresses to which a request may go: global ones only.

The tables are our own. Python's `ipaddress` has tables too, which depend on its patch release, and
which call some addresses global that lead to the inside of a cloud.
"""

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from django.conf import settings

Address = IPv4Address | IPv6Address

# IANA's special-purpose registries, without the few anycast services in them that are global, and
# addresses at which clouds answer their own machines.
NOT_GLOBAL_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by a provider's customers
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's wire server
        "169.254.0.0/16",  # link-local; cloud metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is cloud metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
    )
)
# All of IPv6 that has been given out, and public IPv4 as NAT64 writes it.
UNICAST = (IPv6Network("2000::/3"), IPv6Network("64:ff9b::/96"))
NOT_GLOBAL_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, among them Teredo, benchmarks and ORCHID
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)
# Where an IPv6 address carries an IPv4 address: how many bits stand after it.
EMBEDDING = (
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("2002::/16"), 80),  # 6to4
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
)
ISATAP = (0x5EFE, 0x200_5EFE)


def refusal(address: Address) -> str:
    """Return why nothing may be sent to an address.

    "" if the address is global, or in a network of settings.OUTGOING_ALLOW.
    """
    if any(address in network for network in _allowed(tuple(settings.OUTGOING_ALLOW))):
        return ""
    for each in (address, *_embedded(address)):
        if not _is_global(each):
            inside = "" if each == address else f", which carries {each},"
            return f"{address}{inside} is not a global address"
    return ""


@lru_cache(maxsize=8)
def _allowed(networks: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ip_network, networks))


def _is_global(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_GLOBAL_IPV4)
    return any(address in network for network in UNICAST) and not any(
        address in network for network in NOT_GLOBAL_IPV6
    )


def _embedded(address: Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, IPv4Address):
        return
    number = int(address)
    for network, shift in EMBEDDING:
        if address in network:
            yield IPv4Address(number >> shift & 0xFFFF_FFFF)
    if number >> 32 & 0xFFFF_FFFF in ISATAP:
        yield IPv4Address(number & 0xFFFF_FFFF)
