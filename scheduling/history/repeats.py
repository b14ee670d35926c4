"""The follow-ups of a replay: those of the run that it repeats, as if it were new."""

from typing import Any, NamedTuple

from kombu.utils.json import loads

from scheduling.models import State
from scheduling.registry import encode

# The options that Celery sets on a step for one use of its canvas. A step that is sent again must
# not have them: Celery sets new ones.
OF_ONE_USE = ("task_id", "root_id", "parent_id", "group_id", "group_index", "chord")

CHORD = "its chord, which has counted it once"
SENT = "the follow-ups that its success has sent already"


class Repeated(NamedTuple):
    """The follow-ups of a replay as text for its row, and in words the follow-ups left out."""

    follow_ups: str
    left_out: tuple[str, ...]


def repeated(text: str, state: str, *, sent_too: bool = False) -> Repeated:
    """Return the follow-ups of a replay of a final run.

    They are its errbacks, its links and the rest of its chain. Links and chain are left out if the
    run's success has sent them, unless `sent_too` is given. The chord is always left out.
    """
    try:
        carried: dict[str, Any] = dict(loads(text)) if text else {}
        left_out = _take_out(carried, sent=state == State.SUCCEEDED and not sent_too)
        carried = {name: [_anew(step) for step in steps] for name, steps in carried.items()}
    except Exception:  # it cannot be read: the replay's end reports that
        return Repeated(text, ())
    return Repeated(encode(carried) if carried else "", left_out)


def _take_out(carried: dict[str, Any], *, sent: bool) -> tuple[str, ...]:
    chain, left_out = carried.get("chain") or [], []
    if carried.pop("chord", None) or (chain and chain[0]["options"].get("chord")):
        left_out.append(CHORD)
    if sent and any([carried.pop("link", None), carried.pop("chain", None)]):
        left_out.append(SENT)
    return tuple(left_out)


def _anew(step: Any) -> Any:
    """Return a signature, and the signatures in it, without the options for one use."""
    if isinstance(step, list):
        return [_anew(one) for one in step]
    if not isinstance(step, dict) or "options" not in step:
        return step
    options = {name: kept for name, kept in step["options"].items() if name not in OF_ONE_USE}
    for name in ("link", "link_error"):
        if name in options:
            options[name] = _anew(options[name])
    kwargs = step["kwargs"]
    if step.get("subtask_type"):
        kwargs = {name: _anew(value) for name, value in kwargs.items()}
    return {**step, "options": options, "kwargs": kwargs}
