"""A sweep holds rows out, chooses by them alone, prunes, ends whatever a trial does, and loses or repeats no trial,
whoever is killed."""

import json
import math
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from optuna.trial import TrialState

from iris import InputError, RunError, recipe, record, sweep
from iris.data import template


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    turns = [{"instruction": f"What rhymes with {'abcde'[i % 5] * (i % 7 + 1)}?", "output": f"{i}."} for i in range(60)]
    path.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    return path


@pytest.fixture
def asked(small_model, rows) -> recipe.Recipe:
    settings = ["max_steps=5", "max_length=128", "batch_size=1", "warmup_steps=0", "precision=fp32", "save_steps=2"]
    return recipe.make(settings, model=str(small_model), data=str(rows))


def grid(**choices):
    return {key: optuna.distributions.CategoricalDistribution(values) for key, values in choices.items()}


@pytest.fixture
def fitted(monkeypatch):
    """Replaces training: fitted(loss, end) gives trials the held-out loss(recipe, step), and `end` may raise."""

    def use(loss, end=lambda *_: None):
        monkeypatch.setattr(sweep, "mean_loss", lambda model, *_: loss(*model))
        monkeypatch.setattr(sweep.fit, "fit", fake_fit(end))

    return use


def fake_fit(end):
    """A train.fit that writes a record and has its callback see five steps; `end` may raise at one of them."""

    def fit(asked, out, *, dataset, callbacks):
        made = record.Record("training", out.name, {"id": "tiny"}, recipe=asked.as_dict(), note=str(os.getpid()))
        record.write(made, out / "record.json")
        for step in range(1, 6):
            end(asked, step, out, made)
            state = SimpleNamespace(max_steps=5, global_step=step)
            callbacks[0].on_step_end(None, state, None, model=(asked, step), processing_class=None)
        made.status = "finished"
        record.write(made, out / "record.json")

    return fit


def values_of(study, key="r"):
    return sorted(one.params[key] for one in study.get_trials(states=[TrialState.COMPLETE]))


# --- the space and the rows ------------------------------------------------------------------------------------------


def test_the_grid_is_the_seeds_and_alpha_follows_r():
    space = sweep.search_space("grid")
    found = [dict(zip(space, values, strict=True)) for values in product(*(kind.choices for kind in space.values()))]
    assert len(found) == 2 * 4 * 3 * 3 and {point["learning_rate"] for point in found} == {2e-2, 2e-3, 2e-4, 2e-5}
    assert all((made := sweep.at(recipe.Recipe(), point)).lora_alpha == made.r for point in found)
    assert sweep.at(recipe.Recipe(lora_alpha=32), {"r": 64}).lora_alpha == 128
    # what is fixed goes, and --over widens
    space = sweep.search_space("grid", {"r", "seed"}, ["learning_rate=1e-3,1e-4", "method=dora,lora16"])
    assert set(space) == {"lr_scheduler_type", "learning_rate", "weight_decay", "method"}
    assert space["learning_rate"].choices == (1e-3, 1e-4) and space["method"].choices == ("dora", "lora16")
    ranged = sweep.search_space("free", (), ["learning_rate=1e-2..1e-5"])["learning_rate"]
    assert (ranged.low, ranged.high, ranged.log) == (1e-5, 1e-2, True)


@pytest.mark.parametrize(
    ("search", "over", "message"),
    [
        ("gird", "r=1", "did you mean grid"), ("grid", "r", "needs the form"),
        ("grid", "data=a,b", "unknown field to search over"), ("grid", "seed=1,2", "searched over and fixed"),
        ("grid", "r=eight", "does not fit"), ("grid", "learning_rate=1e-5..1e-3", "needs --search free"),
        ("free", "r=8..16", "positive decimal"), ("grid", "target_modules=q_proj,k_proj", "cannot be searched over"),
    ],
)  # fmt: skip
def test_a_space_that_does_not_fit_is_one_sentence(search, over, message):
    with pytest.raises(InputError, match=message):
        sweep.search_space(search, {"seed"}, [over])


def test_bad_input_is_one_sentence(asked, tmp_path):
    with pytest.raises(InputError, match="give --trials or --minutes"):
        sweep.sweep(asked, sweep.search_space("free"), tmp_path)
    (tmp_path / "study.db").write_text("not a database\nat all\n")
    for storage, message in (("no+such://x", r"no\+such://x cannot"), (None, r"study\.db cannot")):
        with pytest.raises(InputError, match=f"{message} be used"):
            sweep.sweep(asked, grid(r=(4, 8)), tmp_path, storage=storage)


def test_rows_are_held_out_by_seed_and_counted(asked):
    dataset, rows = sweep.hold_out(asked)
    assert len(rows) == 1 and len(dataset.rows) == 59 and rows[0] not in dataset.rows
    assert dataset.as_dict()["dropped"] == {"held out to choose by": 1} and sweep.hold_out(asked)[1] == rows
    verses, rows = sweep.hold_out(recipe.make())
    assert len(rows) > 20 and not [row for row in rows if row in verses.rows] and not verses.dropped


def test_held_out_loss_is_that_of_plain_transformers(asked, small_model):
    from transformers import AutoModelForCausalLM

    from iris.model import load
    from iris.train import attention
    from iris.train.loss import give_loss

    tokenizer = template.load_tokenizer(str(small_model))
    messages, total, learned = sweep.rows.load(asked.data).rows[:12], 0, 0
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    for encoded in (template.encode(tokenizer, row) for row in messages):
        ids, labels = torch.tensor([encoded.input_ids]), torch.tensor([encoded.labels])
        count = int((labels[:, 1:] != template.IGNORED).sum())
        total += plain(input_ids=ids, labels=labels).loss.item() * count
        learned += count
    adapted = load.load(load.resolve(str(small_model)), asked, "fp32", attention.register()).train()
    give_loss(adapted.get_base_model())
    assert sweep.mean_loss(adapted, tokenizer, messages, 128) == pytest.approx(total / learned, abs=1e-4)
    assert adapted.training and all(p.grad is None for p in adapted.parameters())


# --- whole sweeps ----------------------------------------------------------------------------------------------------


def test_a_grid_ends_with_a_record_a_trial_a_table_and_a_picture(asked, tmp_path, capsys):
    space = grid(learning_rate=(2e-2, 2e-3), r=(2, 4))
    study = sweep.sweep(asked, space, tmp_path)
    assert len(study.trials) == 4 == len({json.dumps(one.params) for one in study.trials})
    for one in study.trials:
        folder = tmp_path / "trials" / f"{one.number:04d}"
        made = record.read(folder / "record.json")
        assert made.recipe["lora_alpha"] == made.recipe["r"] == one.params["r"]
        assert made.measures["held_out_loss"] == one.value and made.data["dropped"] == {"held out to choose by": 1}
        assert (folder / "adapter").exists() == (one.number == study.best_trial.number)
        assert not list(folder.glob("checkpoint-*")) and "training lora16" in (folder / "log.txt").read_text()
    table = (tmp_path / "sweep.md").read_text().splitlines()
    assert len(table) == 2 + 2 + 4 and table[4].startswith(f"| 1 | {study.best_trial.number} | ")
    assert (tmp_path / "parallel.png").exists()
    assert f"best of 4: trial {study.best_trial.number}, held-out" in capsys.readouterr().out
    assert len(sweep.sweep(asked, space, tmp_path).trials) == 4
    with pytest.raises(InputError, match="begun with another learning_rate"):
        sweep.sweep(replace(asked, learning_rate=1e-5), space, tmp_path)


@pytest.mark.parametrize("over", ["micro_batch=none,1", "method=lora16,qlora", "learning_rate=1e-3..1e-3"])
def test_a_sweep_ends_whatever_a_trial_did(asked, tmp_path, fitted, over):
    """Values that do not sort, a method that needs a GPU, a range of one value: table, pictures and best are there."""
    if "qlora" not in over:
        fitted(lambda asked, step: asked.r)
    space = sweep.search_space("free", ("lr_scheduler_type", "weight_decay", "r", "learning_rate"), ())
    space |= {(key := over.partition("=")[0]): sweep.search_space("free", (), [over])[key]}
    study = sweep.sweep(asked, space, tmp_path, trials=2)
    table, count = (tmp_path / "sweep.md").read_text(), 1 if "qlora" in over else 2
    assert table.count("| finished |") == len(study.get_trials(states=[TrialState.COMPLETE])) == count
    assert ("| failed: " in table and "needs a GPU" in table) == ("qlora" in over)
    assert (tmp_path / "parallel.png").exists()


def test_hopeless_diverged_and_failed_trials_are_told(asked, tmp_path, fitted):
    def end(asked, step, out, made):
        if asked.r == 30 and step == 1:
            made.status = "failed"
            record.write(made, out / "record.json")
            raise RunError("training stopped because the loss went from 2.00 to nan at step 3")
        if asked.r == 40:
            raise ZeroDivisionError("division by zero")

    fitted(lambda asked, step: asked.r + 1 / step, end)
    for _ in range(2):  # the second time nothing is left to do
        study = sweep.sweep(asked, grid(r=(*range(1, 15), 30, 40)), tmp_path)
        table = (tmp_path / "sweep.md").read_text()
        assert "| diverged: training stopped" in table and "| failed: division by zero |" in table
        pruned = [one for one in study.trials if one.user_attrs["outcome"] == "pruned"]
        assert len(study.trials) == 16 and len(pruned) >= 2 and study.best_params == {"r": 1}
    made = record.read(tmp_path / "trials" / f"{pruned[0].number:04d}" / "record.json")
    assert made.status == "stopped" and made.note == "pruned"


def test_a_part_first_and_then_more(asked, tmp_path, fitted):
    fitted(lambda asked, step: abs(math.log(asked.learning_rate / 1e-3)))
    for first, then, space in ((2, 3, grid(seed=range(3))), (2, 4, sweep.search_space("free"))):
        out = tmp_path / str(then)
        assert len(sweep.sweep(asked, space, out, trials=first).trials) == first
        study = sweep.sweep(asked, space, out, trials=then)
        assert len(study.trials) == then == len({json.dumps(one.params) for one in study.trials})
    assert (out / "parallel.png").exists()


@pytest.mark.parametrize("fault", [KeyboardInterrupt, torch.AcceleratorError, "stopped"])
def test_what_ends_a_trial_from_outside_gives_it_back(asked, tmp_path, fitted, fault):
    def end(asked, step, out, made):
        if asked.r == 2 and step == 3:
            if fault != "stopped":
                raise fault
            made.status = "stopped"  # Ctrl-C, as train.fit tells it
            record.write(made, out / "record.json")
            raise RunError("stopped at step 3")

    fitted(lambda asked, step: asked.r, end)
    with pytest.raises((KeyboardInterrupt, torch.AcceleratorError, RunError)):
        sweep.sweep(asked, grid(r=(1, 2, 3)), tmp_path)
    fitted(lambda asked, step: asked.r)
    assert values_of(sweep.sweep(asked, grid(r=(1, 2, 3)), tmp_path)) == [1, 2, 3]
    assert len(list((tmp_path / "trials").iterdir())) == 3


def test_the_budget_in_minutes_ends_a_trial_that_is_then_run_again(asked, tmp_path, fitted):
    fitted(lambda asked, step: asked.r, lambda *_: time.sleep(0.2))
    begin = time.monotonic()
    with pytest.raises(RunError, match="no trial finished; give it more --minutes"):
        sweep.sweep(asked, grid(r=(1, 2)), tmp_path, minutes=0.5 / 60)
    assert time.monotonic() - begin < 5
    assert values_of(sweep.sweep(asked, grid(r=(1, 2)), tmp_path, minutes=10)) == [1, 2]


def test_a_worker_taken_for_dead_drops_its_result(asked, tmp_path, fitted, capsys):
    taken = []

    def end(asked, step, out, made):
        if step == 5 and not taken:
            taken.append(out)
            other = optuna.load_study(study_name="iris", storage=f"sqlite:///{tmp_path}/study.db")
            other.tell(int(out.name), state=TrialState.FAIL)

    fitted(lambda asked, step: asked.r, end)
    assert values_of(sweep.sweep(asked, grid(r=(1, 2)), tmp_path)) == [1, 2]
    assert "was taken for dead" in capsys.readouterr().out and not taken[0].exists()


# --- several workers -------------------------------------------------------------------------------------------------


def work(rows, out, points, grace, storage, together):
    """One worker on the grid of r from 1 to `points`; writes each point that it has trained to its end into DONE."""

    def end(asked, step, folder, made):
        time.sleep(0.1)
        if step == 5:
            with open(rows.with_name("DONE"), "a") as done:
                done.write(f"{asked.r}\n")

    sweep.HEARTBEAT, sweep.GRACE, sweep.POLL = 1, grace, 0.5
    sweep.mean_loss = lambda model, *_: 1 / model[1]
    sweep.fit.fit = fake_fit(end)
    together.wait()
    sweep.sweep(recipe.make(data=str(rows)), grid(r=range(1, points + 1)), out, storage=storage)


def share_a_grid(rows, outs, killed, points, grace, storage=None):
    """Workers, one for each of `outs`, begin at once on an empty study; `killed` of them are killed in the middle of a
    trial. All others end well, and each point is run to its end once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["iris.sweep"])
    together = context.Barrier(len(outs))
    workers = [context.Process(target=work, args=(rows, out, points, grace, storage, together)) for out in outs]
    try:
        for worker in workers:
            worker.start()
        for worker, out in list(zip(workers, outs, strict=True))[:killed]:
            end = time.monotonic() + 100
            while not is_training(worker.pid, out):
                assert time.monotonic() < end
                time.sleep(0.02)
            worker.kill()
        for worker in workers:
            worker.join(200)
        assert [worker.exitcode for worker in workers] == [-9] * killed + [0] * (len(outs) - killed)
    finally:
        for worker in workers:
            worker.kill()
    study = optuna.load_study(study_name="iris", storage=storage or f"sqlite:///{outs[0]}/study.db")
    done = sorted(map(int, rows.with_name("DONE").read_text().split()))
    assert done == list(range(1, points + 1)) == values_of(study)


def is_training(pid, out):
    made = [record.read(path) for path in out.glob("trials/*/record.json")]
    return any(one.status == "running" and one.note == str(pid) for one in made)


def test_of_two_workers_one_is_killed_and_the_other_takes_over(rows, tmp_path):
    share_a_grid(Path(shutil.copy(rows, tmp_path)), [tmp_path] * 2, killed=1, points=5, grace=5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_of_eight_workers_two_are_killed_and_no_trial_is_lost_or_run_twice(rows, tmp_path, kind, request):
    """As eight machines with a common disk, or a common database only."""
    storage = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    outs = [tmp_path if storage is None else tmp_path / str(number) for number in range(8)]
    share_a_grid(Path(shutil.copy(rows, tmp_path)), outs, killed=2, points=40, grace=40, storage=storage)


@pytest.fixture
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


def test_a_postgresql_server_serves_two_machines_and_its_password_is_not_told(asked, tmp_path, fitted, postgresql):
    fitted(lambda asked, step: asked.r)
    for out in ("here", "elsewhere"):
        assert values_of(sweep.sweep(asked, grid(r=(1, 2, 3)), tmp_path / out, storage=postgresql)) == [1, 2, 3]
    assert len(list((tmp_path / "here" / "trials").iterdir())) == 3
    for wrong in (postgresql.replace("iris:", "nobody:"), postgresql.replace("@127.0.0.1:", "@127.0.0.1:1")):
        with pytest.raises(InputError, match="storage postgresql.* cannot be used") as caught:
            sweep.sweep(asked, grid(r=(1, 2)), tmp_path, storage=wrong)
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
