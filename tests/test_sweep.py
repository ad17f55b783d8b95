"""A sweep holds rows out, chooses by them alone, prunes, and loses or repeats no trial, whoever is killed."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from iris import chat, recipe, record, sweep, trial
from iris.errors import InputError, RunError
from iris.study import grid_points, owns

LEARNING_RATES = (2e-2, 2e-3, 2e-4)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    turns = [
        ("What rhymes with {}?".format("abcdefghij"[i % 10] * (i % 7 + 1)), f"Number {i} does.") for i in range(60)
    ]
    lines = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in turns]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def asked(tiny_model, rows) -> recipe.Recipe:
    settings = ["max_steps=5", "max_length=128", "batch_size=1", "warmup_steps=0", "precision=fp32", "save_steps=2"]
    return recipe.make(settings, model=str(tiny_model), data=str(rows))


def grid(**choices):
    return {key: optuna.distributions.CategoricalDistribution(values) for key, values in choices.items()}


def fake_fit(loss, steps=5, end=None):
    """A train.fit that writes a record and has its callback see `steps` steps; `end` may raise at one of them."""

    def fit(asked, out, *, dataset, callbacks):
        made = record.Record("training", out.name, {"id": "tiny"}, recipe=asked.as_dict(), data=dataset.as_dict())
        record.write(made, out / "record.json")
        state = type("State", (), {"max_steps": steps, "global_step": 0})()
        (watch,) = callbacks
        watch.measure = lambda step, given: watch.losses.update({step: loss(asked, step)})
        for state.global_step in range(1, steps + 1):
            if end:
                end(asked, state.global_step, out, made)
            watch.on_step_end(None, state, None)
        watch.on_train_end(None, state, None)
        (out / "adapter").mkdir()
        made.status = "finished"
        record.write(made, out / "record.json")

    return fit


def settled(study, *states):
    return [one for one in study.get_trials() if one.state in (states or (TrialState.COMPLETE,))]


def points(trials):
    return Counter(json.dumps(one.params, sort_keys=True) for one in trials)


# --- the space -------------------------------------------------------------------------------------------------------


def test_the_grid_is_the_seeds_and_alpha_follows_r():
    found = grid_points(sweep.search_space("grid"), 1)
    assert len(found) == 2 * 4 * 3 * 3 == len({json.dumps(point) for point in found})
    assert {point["learning_rate"] for point in found} == {2e-2, 2e-3, 2e-4, 2e-5}
    assert found != grid_points(sweep.search_space("grid"), 2)
    assert all((made := sweep.at(recipe.Recipe(), point)).lora_alpha == made.r for point in found)
    assert sweep.at(recipe.Recipe(lora_alpha=32), {"r": 64}).lora_alpha == 128


def test_set_fixes_and_over_widens():
    space = sweep.search_space("grid", ["r=8", "seed=1"], ["learning_rate=1e-3,1e-4", "method=dora,lora16"])
    assert {key: values.choices for key, values in space.items() if key != "weight_decay"} == {
        "lr_scheduler_type": ("linear", "cosine"),
        "learning_rate": (1e-3, 1e-4),
        "method": ("dora", "lora16"),
    }
    ranged = sweep.search_space("free", None, ["learning_rate=1e-2..1e-5"])["learning_rate"]
    assert (ranged.low, ranged.high, ranged.log) == (1e-5, 1e-2, True)


@pytest.mark.parametrize(
    ("search", "settings", "over", "message"),
    [
        ("gird", [], [], "did you mean grid"),
        ("grid", [], ["r"], "needs the form"),
        ("grid", [], ["rank=1,2"], "unknown field to search over"),
        ("grid", [], ["data=a,b"], "unknown field to search over"),
        ("grid", ["r=8"], ["r=8,16"], "both fixed by --set and searched"),
        ("grid", [], ["r=eight"], "does not fit"),
        ("grid", [], ["learning_rate=1e-5..1e-3"], "needs --search free"),
        ("free", [], ["r=8..16"], "positive decimal"),
        ("grid", [], ["target_modules=q_proj,k_proj"], "cannot be searched over"),
    ],
)
def test_a_space_that_does_not_fit_is_one_sentence(search, settings, over, message):
    with pytest.raises(InputError, match=message):
        sweep.search_space(search, settings, over)


def test_bad_input_is_one_sentence(asked, tmp_path):
    space = grid(r=(4, 8))
    with pytest.raises(InputError, match="give --trials or --minutes"):
        sweep.sweep(asked, sweep.search_space("free"), tmp_path)
    with pytest.raises(InputError, match="--trials must be above zero"):
        sweep.sweep(asked, space, tmp_path, trials=0)
    with pytest.raises(InputError, match="unknown pruner"):
        sweep.sweep(asked, space, tmp_path, pruner="axe")
    with pytest.raises(InputError, match="learning_rate must be above zero"):
        sweep.sweep(asked, grid(learning_rate=(0.0,)), tmp_path)
    with pytest.raises(InputError, match=r"no\+such://x cannot be used"):
        sweep.sweep(asked, space, tmp_path, storage="no+such://x")
    (tmp_path / "study.journal").write_text("not a journal\nat all\n")
    with pytest.raises(InputError, match=r"study\.journal cannot be used"):
        sweep.sweep(asked, space, tmp_path)


# --- held-out rows ---------------------------------------------------------------------------------------------------


def test_rows_are_held_out_by_seed_and_counted(asked, rows):
    dataset, held_out = trial.hold_out(asked)
    assert len(held_out) == 1 and len(dataset.rows) == 59 and held_out[0] not in dataset.rows
    assert dataset.as_dict()["dropped"] == {"held out to choose by": 1}
    assert trial.hold_out(asked)[1] == held_out
    verses, held_out = trial.hold_out(recipe.make())
    assert len(held_out) > 20 and not [row for row in held_out if row in verses.rows] and not verses.dropped


def test_held_out_loss_is_that_of_plain_transformers(asked, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    from iris import model

    tokenizer = chat.load_tokenizer(str(tiny_model))
    messages = trial.data.load(asked.data).rows[:12]
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    total = learned = 0
    for row in messages:
        encoded = chat.encode(tokenizer, row)
        ids, labels = torch.tensor([encoded.input_ids]), torch.tensor([encoded.labels])
        count = int((labels[:, 1:] != chat.IGNORED).sum())
        total += plain(input_ids=ids, labels=labels).loss.item() * count
        learned += count
    adapted = model.load(model.resolve(str(tiny_model)), asked, "fp32").train()
    assert trial.held_out_loss(adapted, tokenizer, messages, 128) == pytest.approx(total / learned, abs=1e-4)
    assert adapted.training and all(p.grad is None for p in adapted.parameters())


# --- whole sweeps ----------------------------------------------------------------------------------------------------


def test_a_grid_ends_with_a_record_a_trial_a_table_and_two_pictures(asked, tmp_path, capsys):
    space = grid(learning_rate=LEARNING_RATES, r=(2, 4))
    study = sweep.sweep(asked, space, tmp_path, pruner="none")
    done = settled(study)
    assert len(done) == 6 and set(points(done).values()) == {1}
    best = min(done, key=lambda one: one.value)
    for one in done:
        folder = tmp_path / "trials" / f"{one.number:04d}"
        made = record.read(folder / "record.json")
        assert made.status == "finished" and made.recipe["lora_alpha"] == made.recipe["r"] == one.params["r"]
        assert made.measures["held_out_loss"] == one.value and len(made.measures["held_out_losses"]) == 5
        assert made.settings["sweep"]["held_out_rows"] == 1 and made.data["dropped"] == {"held out to choose by": 1}
        assert (folder / "adapter").exists() == (one.number == best.number)
        assert not list(folder.glob("checkpoint-*")) and "training lora16" in (folder / "log.txt").read_text()
    table = (tmp_path / "sweep.md").read_text().splitlines()
    assert len(table) == 2 + 2 + 6 and table[4].startswith(f"| 1 | {best.number} | ")
    assert (tmp_path / "parallel.png").exists() and (tmp_path / "importance.png").exists()
    assert f"best of 6: trial {best.number}, held-out loss {best.value:.4f}" in capsys.readouterr().out
    again = sweep.sweep(asked, space, tmp_path)
    assert len(again.trials) == 6
    with pytest.raises(InputError, match="begun with another learning_rate"):
        sweep.sweep(recipe.replace(asked, learning_rate=1e-5), space, tmp_path)


def test_the_model_that_a_trial_is_chosen_by_is_the_one_it_keeps(asked, tmp_path, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from iris.attention import register

    study = sweep.sweep(asked, grid(learning_rate=(2e-2,)), tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32", attn_implementation=register())
    saved = PeftModel.from_pretrained(base, tmp_path / "trials" / "0000" / "adapter")
    loss = trial.held_out_loss(saved, chat.load_tokenizer(str(tiny_model)), trial.hold_out(asked)[1], 128)
    assert loss == pytest.approx(study.best_value, abs=1e-4)


def test_hopeless_trials_are_pruned(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(trial.train, "fit", fake_fit(lambda asked, step: asked.r + 1 / step))
    study = sweep.sweep(asked, grid(r=tuple(range(1, 21))), tmp_path)
    states = {one.params["r"]: one.state for one in study.trials}
    assert states[1] == TrialState.COMPLETE and len(states) == 20
    pruned = settled(study, TrialState.PRUNED)
    assert len(pruned) >= 5 and len(pruned) + len(settled(study)) == 20
    made = record.read(tmp_path / "trials" / f"{pruned[0].number:04d}" / "record.json")
    assert made.status == "stopped" and "pruned at held-out loss" in made.note
    assert study.best_params == {"r": 1}


def test_diverged_and_failed_trials_are_settled_and_told(asked, tmp_path, monkeypatch):
    def end(asked, step, out, made):
        if asked.learning_rate == 1.0 and step == 3:
            made.status = "failed"
            record.write(made, out / "record.json")
            raise RunError("training stopped because the loss went from 2.00 to nan at step 3")
        if asked.learning_rate == 2.0:
            raise RunError("the GPU ran out of memory; lower max_length")

    monkeypatch.setattr(trial.train, "fit", fake_fit(lambda asked, step: asked.r + 1 / step, end=end))
    sweep.sweep(asked, grid(learning_rate=(1e-3, 1.0, 2.0)), tmp_path, pruner="halving")
    table = (tmp_path / "sweep.md").read_text()
    assert [word in table for word in ("finished", "diverged", "failed")] == [True] * 3
    assert len(sweep.sweep(asked, grid(learning_rate=(1e-3, 1.0, 2.0)), tmp_path).trials) == 3


def test_free_search_keeps_to_its_trials_and_goes_on_with_more(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(trial.train, "fit", fake_fit(lambda asked, step: abs(math.log(asked.learning_rate / 1e-3))))
    space = sweep.search_space("free")
    assert len(sweep.sweep(asked, space, tmp_path, trials=6, pruner="none").trials) == 6
    study = sweep.sweep(asked, space, tmp_path, trials=25, pruner="none")
    assert len(settled(study)) == 25 and study.best_value < 0.5
    shares = sweep.importance(settled(study))
    assert max(shares, key=shares.get) == "learning_rate" and sum(shares.values()) == pytest.approx(1)
    assert (tmp_path / "parallel.png").exists()


def test_a_database_serves_as_storage(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(trial.train, "fit", fake_fit(lambda asked, step: asked.r))
    study = sweep.sweep(asked, grid(r=(1, 2, 3)), tmp_path, storage=f"sqlite:///{tmp_path}/study.db", pruner="none")
    assert len(settled(study)) == 3 and not (tmp_path / "study.journal").exists()


def test_part_of_a_grid_and_then_the_rest(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(trial.train, "fit", fake_fit(lambda asked, step: asked.r))
    space = grid(r=tuple(range(1, 9)))
    assert len(settled(sweep.sweep(asked, space, tmp_path, trials=3, pruner="none"))) == 3
    study = sweep.sweep(asked, space, tmp_path, pruner="none")
    assert len(settled(study)) == 8 and set(points(settled(study)).values()) == {1}


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError("CUDA error"), "stopped"])
def test_what_ends_a_trial_from_outside_gives_it_back(asked, tmp_path, monkeypatch, fault):
    def end(asked, step, out, made):
        if asked.r == 2 and step == 3:
            if fault == "stopped":  # Ctrl-C, as train.fit tells it
                made.status = "stopped"
                record.write(made, out / "record.json")
                raise RunError("stopped at step 3")
            raise fault

    monkeypatch.setattr(trial.train, "fit", fake_fit(lambda asked, step: asked.r, end=end))
    space = grid(r=(1, 2, 3))
    with pytest.raises((KeyboardInterrupt, RuntimeError, RunError)):
        sweep.sweep(asked, space, tmp_path, pruner="none")
    monkeypatch.setattr(trial.train, "fit", fake_fit(lambda asked, step: asked.r))
    study = sweep.sweep(asked, space, tmp_path, pruner="none")
    assert points(settled(study)) == points([one for one in study.trials if one.state == TrialState.COMPLETE])
    assert len(settled(study)) == 3 == len(list((tmp_path / "trials").iterdir()))


def test_the_budget_in_minutes_ends_a_trial_that_is_then_run_again(asked, tmp_path, monkeypatch):
    slow = fake_fit(lambda asked, step: asked.r, end=lambda *_: time.sleep(0.2))
    monkeypatch.setattr(trial.train, "fit", slow)
    space = grid(r=(1, 2, 3))
    begin = time.monotonic()
    with pytest.raises(RunError, match="no trial finished; give it more --minutes"):
        sweep.sweep(asked, space, tmp_path, minutes=0.5 / 60, pruner="none")
    assert time.monotonic() - begin < 5
    assert len(settled(sweep.sweep(asked, space, tmp_path, minutes=10, pruner="none"))) == 3


def test_a_worker_taken_for_dead_drops_its_result(asked, tmp_path, monkeypatch, capsys):
    space, taken = grid(r=(1, 2)), []

    def end(asked, step, out, made):
        if step == 5 and not taken:
            taken.append(out.name)
            other = optuna.load_study(study_name="iris", storage=journal(tmp_path))
            other.tell(int(out.name), state=TrialState.FAIL)

    monkeypatch.setattr(trial.train, "fit", fake_fit(lambda asked, step: asked.r, end=end))
    study = sweep.sweep(asked, space, tmp_path, pruner="none")
    assert "was taken for dead" in capsys.readouterr().out
    assert len(settled(study)) == 2 and not (tmp_path / "trials" / taken[0]).exists()


def test_of_two_trials_at_one_point_the_first_owns_it(tmp_path):
    study, space = optuna.create_study(), grid(r=(1, 2))
    for r in (1, 1, 2):
        study.add_trial(optuna.create_trial(state=TrialState.WAITING, params={"r": r}, distributions=space))
    asked = [study.ask(space) for _ in range(3)]
    assert [owns(study, one, 2) for one in asked] == [True, False, True]
    assert [owns(study, one, 1) for one in asked] == [True, False, False]


# --- workers that die ------------------------------------------------------------------------------------------------

WORKER = """
import sys, time
from pathlib import Path
from iris import recipe, sweep, trial
sys.path.insert(0, {tests!r})
from test_sweep import fake_fit, grid
asked = recipe.make(model="none", data={rows!r})
trial.train.fit = fake_fit(lambda asked, step: asked.r, end=lambda *_: time.sleep({pause}))
print("ready", flush=True)
sys.stdin.readline()
sweep.sweep(asked, grid(r=tuple(range(1, {points} + 1))), Path({out!r}), pruner="none", storage={storage!r})
"""


def journal(out):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path = str(out / "study.journal")
    return JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))


def start(rows, out, pause, points=12, storage=None):
    source = WORKER.format(
        tests=str(Path(__file__).parent), rows=str(rows), out=str(out), pause=pause, points=points, storage=storage
    )
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(source)], stdin=pipe, stdout=pipe, text=True)


@pytest.fixture(scope="module")
def postgresql():
    """The address of a database of Debian's PostgreSQL server on loopback; the server refuses to run as root."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        if as_user:
            shutil.chown(folder, "postgres")
        bare = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}
        subprocess.run([*as_user, found[-1], "-D", f"{folder}/data", "-A", "trust", "-U", "iris", "-N"], **bare)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        control = [*as_user, found[-1].with_name("pg_ctl"), "-D", f"{folder}/data", "-l", f"{folder}/log"]
        subprocess.run([*control, "-w", "-o", options, "start"], **bare)
        try:
            yield f"postgresql+psycopg://iris:secret@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **bare)


@pytest.fixture
def database(postgresql):
    """The server with an empty database."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(postgresql)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    engine.dispose()
    return postgresql


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_workers_share_a_grid_and_one_takes_over_from_the_other_when_it_is_killed(rows, tmp_path):
    workers = [start(rows, tmp_path, 0.06) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        until(lambda: len(list((tmp_path / "trials").glob("*"))) >= 4)
        victim = workers[0]
        study = optuna.load_study(study_name="iris", storage=journal(tmp_path))
        mine = lambda: [  # noqa: E731
            one
            for one in study.get_trials()
            if one.state == TrialState.RUNNING and one.user_attrs.get("alive", {}).get("pid") == victim.pid
        ]
        until(mine)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        lost = mine()
        told, _ = workers[1].communicate(timeout=120)
        assert workers[1].returncode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    done = settled(study)
    assert sorted(one.params["r"] for one in done) == list(range(1, 13))
    assert len({one.user_attrs["alive"]["pid"] for one in done}) == 2  # both did some
    assert [f"trial {one.number}: its worker is gone" in told for one in lost] == [True] * len(lost)
    kept = {int(path.name) for path in (tmp_path / "trials").iterdir()}
    assert kept == {one.number for one in done}
    assert all(
        record.read(tmp_path / "trials" / f"{number:04d}" / "record.json").status == "finished" for number in kept
    )


def test_a_postgresql_server_serves_as_storage(asked, tmp_path, monkeypatch, database):
    monkeypatch.setattr(trial.train, "fit", fake_fit(lambda asked, step: asked.r))
    for out in ("here", "elsewhere"):  # two machines without a common disk
        study = sweep.sweep(asked, grid(r=(1, 2, 3)), tmp_path / out, storage=database, pruner="none")
        assert len(settled(study)) == 3
    assert len(list((tmp_path / "here" / "trials").iterdir())) == 3


def test_a_database_out_of_reach_is_one_sentence_without_its_password(asked, tmp_path, postgresql):
    for wrong in (postgresql.replace("iris:", "nobody:"), postgresql.replace("@127.0.0.1:", "@127.0.0.1:1")):
        with pytest.raises(InputError, match="storage postgresql.* cannot be used") as caught:
            sweep.sweep(asked, grid(r=(1, 2)), tmp_path, storage=wrong)
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_of_eight_workers_two_are_killed_and_no_trial_is_lost_or_run_twice(rows, tmp_path, kind, request):
    """As eight machines with a common disk, or a common database only: all begin at once, on an empty study."""
    where = request.getfixturevalue("database") if kind == "postgresql" else None
    outs = [tmp_path if where is None else tmp_path / str(number) for number in range(8)]
    workers = [start(rows, out, 0.1, points=40, storage=where) for out in outs]
    told = {}
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        until(lambda: len(list(tmp_path.glob("**/trials/*"))) >= 10)
        storage = where or journal(tmp_path)
        study = optuna.load_study(study_name="iris", storage=storage)
        running = lambda pid: [  # noqa: E731
            one
            for one in study.get_trials()
            if one.state == TrialState.RUNNING and one.user_attrs.get("alive", {}).get("pid") == pid
        ]
        for victim in workers[:2]:
            until(lambda pid=victim.pid: running(pid))
            victim.kill()
            victim.wait()
        lost = [one.number for victim in workers[:2] for one in running(victim.pid)]
        for worker in workers[2:]:
            told[worker.pid], _ = worker.communicate(timeout=150)
            assert worker.returncode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    done = settled(study)
    assert sorted(one.params["r"] for one in done) == list(range(1, 41))  # each point once
    assert {one.state for one in done} == {TrialState.COMPLETE}
    assert len({one.user_attrs["alive"]["pid"] for one in done}) >= 6
    assert all(f"trial {number}: its worker is gone" in "".join(told.values()) for number in lost)
    finished = re.findall(r"^trial (\d+) .*: finished", "".join(told.values()), re.MULTILINE)
    assert len(finished) == len(set(finished))


@pytest.mark.slow
def test_a_training_killed_in_the_middle_is_run_again_once(asked, rows, tiny_model, tmp_path):
    source = f"""
        import sys
        from dataclasses import replace
        from pathlib import Path
        from optuna.distributions import CategoricalDistribution
        from iris import recipe, sweep, trial
        settings = ["max_steps=2000", "max_length=128", "batch_size=1", "warmup_steps=0", "precision=fp32"]
        asked = recipe.make(settings, model={str(tiny_model)!r}, data={str(rows)!r})
        fit, steps = trial.train.fit, 2000 if sys.argv[1] == "long" else 5
        trial.train.fit = lambda asked, *args, **given: fit(replace(asked, max_steps=steps), *args, **given)
        space = {{"learning_rate": CategoricalDistribution({LEARNING_RATES})}}
        sweep.sweep(asked, space, Path({str(tmp_path)!r}), pruner="none")
    """
    command = [sys.executable, "-c", textwrap.dedent(source)]
    worker = subprocess.Popen([*command, "long"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: list((tmp_path / "trials").glob("*/checkpoint-*")), 120)
    finally:
        worker.kill()
        worker.wait()
    assert record.read(tmp_path / "trials" / "0000" / "record.json").status == "running"
    subprocess.run([*command, "short"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    study = optuna.load_study(study_name="iris", storage=journal(tmp_path))
    assert sorted(one.params["learning_rate"] for one in settled(study)) == sorted(LEARNING_RATES)
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == ["0001", "0002", "0003"]
