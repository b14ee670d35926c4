"""Which addresses can be mailed."""

import pytest

from scheduling.outgoing.mail import address_problem, mailable


@pytest.mark.parametrize(
    "address",
    ["ann@example.org", "max@bücher.example", "a.b+c@xn--bcher-kva.example", "o'neill@example.org",
     "ann@localhost", "ann@[192.0.2.1]", "ANN@EXAMPLE.ORG"],
)  # fmt: skip
def test_these_can_be_mailed(address: str) -> None:
    assert address_problem(address) == ""


def test_a_domain_is_mailed_in_ascii() -> None:
    assert mailable("max@bücher.example") == "max@xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ann@example.org\u200b", r"invisible character U\+200B \(ZERO WIDTH SPACE\): take it out"),
        ("\u202eann@example.org", r"U\+202E \(RIGHT-TO-LEFT OVERRIDE\)"),
        ("ann@exam\u00adple.org", r"U\+00AD \(SOFT HYPHEN\)"),
        ("ann\u00a0@example.org", r"U\+00A0 \(NO-BREAK SPACE\)"),
        ("ann@example.org\x07", r"U\+0007 \(a control character\)"),
        ("ann\ud800@example.org", r"U\+D800"),
        ("ann @example.org", "has a space: give one address"),
        ("Ann<ann@example.org>", "without a name"),
        ("müller@example.org", "has 'ü' before the @"),
        ("a" * 65 + "@example.org", "has 65 characters before the @: 64 at most"),
        ("ann@" + "a." * 130 + "org", "has 267 characters: 254 at most"),
        ("ann@" + "ü" * 64 + ".org", "cannot be written in ASCII"),
        ("ann@bücher..example", "cannot be written in ASCII"),
        ("ann..b@example.org", "is not a mail address"),
        (".ann@example.org", "is not a mail address"),
        ("ann@example..org", "is not a mail address"),
        ("ann@example.org.", "is not a mail address"),
        ("ann@example", "is not a mail address"),
        ("ann", "is not a mail address"),
        ("", "is not a mail address"),
        ("@example.org", "is not a mail address"),
        ("ann@[::1]", "IPv6"),
        ("ann@[1.2.3]", "is not a mail address"),
        ("ann,ben@example.org", "is not a mail address"),
    ],
)
def test_these_cannot(address: str, problem: str) -> None:
    import re

    assert re.search(problem, address_problem(address)), address_problem(address)
