"""An Optuna study that any number of workers, here and elsewhere, share: who runs what, and what is run again.

A point, one choice of the searched fields, belongs to the lowest-numbered live trial that holds it. A worker that
claims another's point, or one beyond the number asked for, drops it; a trial whose worker died is failed; a point that
no live trial holds is queued again. All of that follows from the trials alone, so it needs no lock and no order of
events: nothing is lost and nothing is run twice, on any storage.

A failed trial's attribute "outcome" says whether it counts: "failed" does (out of memory, say), "not needed" was
dropped, and anything else was given back.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import re
import threading
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from .errors import InputError

Space = dict[str, BaseDistribution]
PRUNERS = ("median", "halving", "none")
HEARTBEAT, GRACE = 15.0, 90.0  # seconds: between two signs of life; without one until a worker is taken for dead


def open_study(out: Path, storage: str | None, pruner: str, stated: dict[str, Any]) -> optuna.Study:
    """The study in `storage` (default: OUT/study.journal), made if there is none; InputError if it is of another sweep,
    or the storage cannot be used."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds: dict[str, optuna.pruners.BasePruner] = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=5),
        "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        "none": optuna.pruners.NopPruner(),
    }
    place = storage or str(out / "study.journal")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if "://" in place:
            opened: Any = _open_database(place)
        else:
            path = str(Path(place).resolve())
            opened = JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
        study = optuna.create_study(storage=opened, study_name="iris", load_if_exists=True, pruner=kinds[pruner])
    except Exception as error:  # SQLAlchemy's, a driver's, the file system's, JSON's: all mean the same here
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the study's storage {_without_password(place)} cannot be used ({first_line}); choose another --storage"
        ) from None
    known = study.user_attrs.get("stated")
    if known is None:
        study.set_user_attr("stated", stated)
    elif known != json.loads(json.dumps(stated)):
        parts = {**known, **known["recipe"]}, {**stated, **stated["recipe"]}
        names = [
            key for key in parts[1] if key != "recipe" and parts[0].get(key) != json.loads(json.dumps(parts[1][key]))
        ]
        raise InputError(
            f"the study in {_without_password(place)} was begun with another {', '.join(names)}; choose another --out"
        )
    return study


def _open_database(address: str) -> Any:
    """The storage at an SQLAlchemy address. Of workers that begin at once on an empty database one makes the tables,
    and the others fail for a moment."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    patience = {"connect_args": {"timeout": 60}} if address.startswith("sqlite") else {}  # one writer at a time
    for wait in (0.5, 1.0, 2.0, 4.0):
        with contextlib.suppress(IntegrityError, ProgrammingError):
            return RDBStorage(address, engine_kwargs={"pool_pre_ping": True} | patience)
        time.sleep(wait * (1 + random.random()))
    return RDBStorage(address, engine_kwargs={"pool_pre_ping": True} | patience)


def _without_password(place: str) -> str:
    return re.sub(r"(://[^/@]*?:)[^/]*@", r"\1***@", place)


def grid_points(space: Space, seed: int) -> list[dict[str, Any]]:
    """Every point of a grid, in a seeded order, so that a part of them covers it evenly."""
    choices = [values.choices for values in space.values() if isinstance(values, CategoricalDistribution)]
    points = [dict(zip(space, values, strict=True)) for values in product(*choices)]
    random.Random(seed).shuffle(points)
    return points


def live(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: waiting, running, complete, pruned, or failed for good."""
    trials = study.get_trials(deepcopy=False)
    return [one for one in trials if one.state != TrialState.FAIL or one.user_attrs.get("outcome") == "failed"]


def owns(study: optuna.Study, trial: optuna.Trial, most: int) -> bool:
    """Whether the trial is the first to hold its point, and this one of the first `most` points."""
    before = {_key(one.params) for one in live(study) if one.number < trial.number}
    return _key(trial.params) not in before and len(before) < most


def fill_queue(study: optuna.Study, points: list[dict[str, Any]], space: Space) -> None:
    """Queue every one of `points`, and every point that was given back, that no live trial holds."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    given_back = [one.params for one in failed if one.user_attrs.get("outcome") not in ("failed", "not needed")]
    held = {_key(one.params) for one in live(study)}
    for point in [*points, *(params for params in given_back if params.keys() == space.keys())]:
        if _key(point) not in held:
            study.add_trial(optuna.create_trial(state=TrialState.WAITING, params=point, distributions=space))
            held.add(_key(point))


def return_dead(study: optuna.Study, seen: dict[int, tuple[Any, float]]) -> list[int]:
    """Give back the running trials whose worker is gone: its process here, or its signs of life, from elsewhere, for
    GRACE seconds. `seen` keeps the last sign of each, and when by this machine's clock it was first seen."""
    returned = []
    for one in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        sign = one.user_attrs.get("alive")
        if one.number not in seen or seen[one.number][0] != sign:
            seen[one.number] = (sign, time.monotonic())
        gone = sign is not None and sign["machine"] == machine() and not is_running(sign["pid"])
        silent = time.monotonic() - seen[one.number][1] > GRACE
        if (gone or silent) and settle(study, one.number, TrialState.FAIL):
            returned.append(one.number)
    return returned


def settle(study: optuna.Study, number: int, state: TrialState, value: float | None = None) -> bool:
    """End a running trial; False if another worker has ended it before."""
    try:
        study.tell(number, value, state)
        return True
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        return False


def _key(point: dict[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def machine() -> str:
    """This machine, or container, in which process ids mean the same."""
    namespace = Path("/proc/self/ns/pid")
    return f"{platform.node()} {os.readlink(namespace) if namespace.exists() else ''}".strip()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def signs_of_life(trial: optuna.Trial) -> Iterator[None]:
    """While this lasts, a thread tells the study every HEARTBEAT seconds that the trial's worker lives."""
    ended = threading.Event()

    def tell(count: int) -> None:
        trial.set_user_attr("alive", {"machine": machine(), "pid": os.getpid(), "count": count})

    def keep_telling() -> None:
        count = 1
        while not ended.wait(HEARTBEAT):
            with contextlib.suppress(Exception):  # a storage out of reach for a while must not end the training
                tell(count)
            count += 1

    tell(0)
    thread = threading.Thread(target=keep_telling, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
