"""System checks: of settings, and of tasks, schedules and plans."""

from scheduling.checks import project, settings

__all__ = ["project", "settings"]
