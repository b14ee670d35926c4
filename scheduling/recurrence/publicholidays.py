"""Public holidays by country, from the package `holidays`: in English if it can be.

Years are computed on demand, and kept by country for the next call. Years that
the package does not know have no holidays.
"""

import re
import warnings
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from importlib import import_module, metadata
from typing import Any

from scheduling.near_names import near_names

from .errors import MissingDependency, UnknownCountry

_ENGLISH = "en_US"


@lru_cache(maxsize=1024)
def public_holidays(country: str, subdivision: str, year: int) -> Mapping[date, str]:
    """The holidays of a year with their names; without a subdivision, those of the whole country.

    Raises UnknownCountry, MissingDependency.
    """
    check_country(country, subdivision)
    language = _ENGLISH if _ENGLISH in _languages().get(country, ()) else None
    with warnings.catch_warnings():  # of years that it knows in part
        warnings.simplefilter("ignore", UserWarning)
        found = _package().country_holidays(
            country, subdiv=subdivision or None, years=year, language=language
        )
    return dict(found)


@lru_cache(maxsize=1)
def countries() -> Mapping[str, tuple[str, ...]]:
    """The ISO 3166 codes of the countries that are known, each with its subdivisions' codes."""
    known = _package().list_supported_countries(include_aliases=False)
    return {code: tuple(known[code]) for code in sorted(known) if len(code) == 2}


@lru_cache(maxsize=1)
def country_names() -> Mapping[str, str]:
    """The names of these countries by their codes."""
    entities = import_module("holidays.registry").COUNTRIES.values()
    names = {code: re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name) for name, code, *_ in entities}
    return {code: names.get(code, code) for code in countries()}


def check_country(country: str, subdivision: str = "") -> None:
    """Refuse a country, or a part of one, that is not known: raises UnknownCountry."""
    known = countries()
    if country not in known:
        raise UnknownCountry(
            f"no public holidays are known for the country {country!r}: use an ISO 3166 code such "
            f"as 'DE'{_nearest(country)}"
        )
    if subdivision and subdivision not in known[country]:
        parts = known[country]
        some = (
            f"use one of {', '.join(parts)}"
            if parts
            else "leave it out: the country has no subdivisions"
        )
        raise UnknownCountry(f"{country} has no subdivision {subdivision!r}: {some}")


@lru_cache(maxsize=1)
def holidays_version() -> str:
    """The release of the package, such as "0.108". Raises MissingDependency."""
    try:
        return metadata.version("holidays")  # the package itself takes its time to load
    except metadata.PackageNotFoundError as error:
        raise _missing() from error


def _nearest(wanted: str) -> str:
    """The codes that look most like `wanted`, or whose country is called so."""
    by_name = {name.lower(): code for code, name in country_names().items()}
    near = [by_name[name] for name in near_names(wanted.lower(), by_name, n=2)]
    near += near_names(wanted.upper(), countries(), cutoff=0.5)
    return f"; near it: {', '.join(dict.fromkeys(near))}" if near else ""


@lru_cache(maxsize=1)
def _languages() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = _package().list_localized_countries()
    return found


def _package() -> Any:
    try:
        return import_module("holidays")
    except ImportError as error:
        raise _missing() from error


def _missing() -> MissingDependency:
    return MissingDependency(
        "public holidays need the package holidays, which is not installed: pip install holidays"
    )
