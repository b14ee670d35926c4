"""Settings of every Truebeat process, read from the environment only.

In development `make up` writes the addresses of the services it embeds to var/up.env; a command
in a second terminal reads them there when its own environment names no database.
"""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote
from zoneinfo import available_timezones

import environ
from celery.schedules import crontab
from django.core.exceptions import ImproperlyConfigured

from scheduling.broker.address import AddressError, checked

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()

if "DATABASE_URL" not in os.environ:
    environ.Env.read_env(BASE_DIR / "var" / "up.env")


def refuse(message: str) -> NoReturn:
    """End start-up with one line: a half-configured service must not run."""
    raise SystemExit(f"truebeat: {message}")


def required(name: str, in_development: str) -> str:
    value: str = env.str(name, default="")
    if value and not (value == in_development and not DEBUG):
        return value
    if DEBUG:
        return in_development
    refuse(f"{name} is {'a development default' if value else 'not set'}: set it, or DEBUG=1.")


def check_key(name: str, key: str) -> None:
    """Refuse a key that could be guessed, by Django's own measure (security.W009)."""
    if len(key) < 50 or len(set(key)) < 5 or key.startswith("django-insecure-"):
        refuse(
            f"{name} can be guessed: it needs 50 characters or more, 5 different ones, and no"
            ' prefix django-insecure-. Make one: python -c "import secrets;'
            ' print(secrets.token_urlsafe(50))"'
        )


# --- Core -----------------------------------------------------------------------------------------
DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = required("SECRET_KEY", in_development="insecure-development-key")
# Keys that were SECRET_KEY (or HINT_KEY) before: their signatures are still accepted.
SECRET_KEY_FALLBACKS = env.list("SECRET_KEY_FALLBACKS", default=[])
# Signs hints, for beat and workers alike.
HINT_KEY = env.str("HINT_KEY", default=SECRET_KEY) or SECRET_KEY
if not DEBUG:
    check_key("SECRET_KEY", SECRET_KEY)
    check_key("HINT_KEY", HINT_KEY)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1"] if DEBUG else [])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "django_celery_results",
    "scheduling",
    "notifications",
    "triggers",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "scheduling.admin.odd_input.OddInput",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "var" / "static"
WHITENOISE_USE_FINDERS = DEBUG

# --- Time -----------------------------------------------------------------------------------------
USE_TZ = True
TIME_ZONE = env.str("TIME_ZONE", default="UTC")
if TIME_ZONE not in available_timezones():
    refuse(f"TIME_ZONE {TIME_ZONE!r} does not exist: give an IANA name such as Europe/Berlin.")
LANGUAGE_CODE = "en"

# --- Services -------------------------------------------------------------------------------------
DATABASE_URL = required("DATABASE_URL", "postgres://truebeat@127.0.0.1:5432/truebeat")
REDIS_URL = required("REDIS_URL", "redis://127.0.0.1:6379/0")

try:
    DATABASES: dict[str, dict[str, Any]] = {"default": environ.Env.db_url_config(DATABASE_URL)}
except ImproperlyConfigured as error:
    refuse(f"DATABASE_URL cannot be read: {error}")
# libpq's own form of a Unix socket: postgres://user@%2Fvar%2Frun%2Fpostgresql/name
DATABASES["default"]["HOST"] = unquote(DATABASES["default"].get("HOST", ""))
if DATABASES["default"].get("ENGINE") != "django.db.backends.postgresql":
    refuse("DATABASE_URL must begin with postgres:// (Truebeat's ledger lives in PostgreSQL).")
try:
    REDIS_URL = checked(REDIS_URL)
except AddressError as error:
    refuse(f"REDIS_URL {error}")
DATABASES["default"].update(CONN_MAX_AGE=60, CONN_HEALTH_CHECKS=True)
# A connection that was lost without a word is noticed in seconds, not in TCP's quarter of an hour.
DATABASES["default"]["OPTIONS"] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,  # milliseconds
    **DATABASES["default"].get("OPTIONS", {}),
}

# --- E-mail ---------------------------------------------------------------------------------------
vars().update(env.email_url("EMAIL_URL", default="consolemail://"))
if vars()["EMAIL_BACKEND"] == "django.core.mail.backends.filebased.EmailBackend":
    # Django's names a file by second and object id, which forked workers can share.
    EMAIL_BACKEND = "notifications.mailbox.FilePerMessageBackend"
    # django-environ takes the path's first slash away.
    EMAIL_FILE_PATH = "/" + vars()["EMAIL_FILE_PATH"].lstrip("/")
EMAIL_TIMEOUT = 20
DEFAULT_FROM_EMAIL = env.str("DEFAULT_FROM_EMAIL", default="truebeat@localhost")

# --- Scheduling -----------------------------------------------------------------------------------
from scheduling.defaults import *  # noqa: E402, F403  (they read the environment, as of here)

# --- Celery ---------------------------------------------------------------------------------------
CELERY_BROKER_URL = REDIS_URL
CELERY_TIMEZONE = TIME_ZONE
CELERY_BEAT_SCHEDULE = {
    "notifications.sweep": {
        "task": "notifications.tasks.sweep",
        "schedule": crontab(minute="0", hour="6"),
    },
    "scheduling.prune": {
        "task": "scheduling.tasks.prune",
        "schedule": crontab(minute="30", hour="3"),
        "options": {"priority": 9},
    },
    "scheduling.digest": {
        "task": "scheduling.tasks.digest",
        "schedule": crontab(minute="0", hour="7"),
    },
    "triggers.prune": {
        "task": "triggers.tasks.prune",
        "schedule": crontab(minute="40", hour="3"),
        "options": {"priority": 9},
    },
}


# --- Logs -----------------------------------------------------------------------------------------
def service_name(argv: list[str]) -> str:
    """Return which service this process is, for its log lines: web, beat, worker or manage."""
    program = Path(argv[0]).name if argv else ""
    if program == "celery" or program == "__main__.py":
        return next((word for word in argv[1:] if word in ("beat", "worker")), "celery")
    if program == "gunicorn" or "runserver" in argv[1:2]:
        return "web"
    return "manage"


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"()": "scheduling.logs.LineFormatter", "service": service_name(sys.argv)},
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": env.str("LOG_LEVEL", default="INFO")},
    "loggers": {
        "django": {"handlers": [], "level": "INFO"},  # in DEBUG, Django's own would say all twice
        # Its "received" and "succeeded" lines name hints, not runs: the ledger's events say more.
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
        "celery.worker.consumer.mingle": {"level": "WARNING"},
    },
}

# --- Security -------------------------------------------------------------------------------------
if not DEBUG:
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env.bool("SECURE_COOKIES", default=True)
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
