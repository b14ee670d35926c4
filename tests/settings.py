"""The project's settings, with an app of jobs that tests can watch."""

from config.settings import *  # noqa: F403
from config.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.jobs"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
