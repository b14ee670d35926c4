"""Which addresses may be connected to."""

from ipaddress import ip_address

import pytest

from scheduling.outgoing.networks import refusal


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.1.1", "100.64.0.1",
        "0.0.0.1", "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "192.0.2.1",
        "::", "::1", "4000::1", "100::1", "fe80::1", "fc00::1", "ff02::1", "ff0e::1",
        "2001:db8::1", "::ffff:10.0.0.1", "::7f00:1", "::ffff:0:7f00:1", "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:a00:1::1",
        "2001:0:808:808::80ff:fffe",
        "2a00::5efe:a00:1", "2a00::200:5efe:7f00:1", "64:ff9b::e000:1",
        "192.0.0.192", "192.0.0.8", "168.63.129.16", "192.88.99.1", "3fff::1", "3fff:fff::1",
        "100.100.100.200", "198.18.0.1", "203.0.113.9", "2001:10::1", "2001:2::1", "5f00::1",
        "fd00:ec2::254", "2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe", "::ffff:168.63.129.16",
        "64:ff9b::c000:c0",
    ],
)  # fmt: skip
def test_these_are_not_global(address: str) -> None:
    assert "is not a global address" in refusal(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "2a00:1450:4001::1",
        "64:ff9b::808:808",
        "2606:4700::1",
        "192.0.1.1",
        "168.63.129.17",
        "192.88.98.1",
        "3ffe::1",
        "2002:808:808::1",
    ],
)
def test_these_are(address: str) -> None:
    assert refusal(ip_address(address)) == ""
