"""The statistics against scipy and by simulation; what may be compared and what may not."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from iris import record
from iris.compare import bootstrap, compare, holm, mcnemar, sign_flip
from iris.errors import InputError

VERSIONS = {"torch": "2.13.0", "transformers": "5.17.0", "peft": "0.21.2", "lm_eval": "0.4.13"}
SETTINGS = {"precision": "fp32", "device": "cpu", "batch_size": 8, "limit": None, "num_fewshot": 0}


def write(path, tasks, versions=VERSIONS, settings=SETTINGS, status="finished", kind="evaluation", **entry):
    """A record at `path` of {task: (metric, higher_is_better, columns)}."""
    made = record.Record(
        kind, path.stem, {"id": "a", "revision": None, "digest": "0"}, status=status, settings=settings
    )
    made.environment["packages"] = dict(versions)
    items = {}
    for task, (metric, higher, columns) in tasks.items():
        items[task] = {"id": [str(i) for i in range(len(columns["value"]))], **columns}
        values = np.average(columns["value"], weights=columns.get("weight")), 0.01
        made.tasks[task] = {"metric": metric, "value": float(values[0]), "stderr": 0.01, "higher_is_better": higher}
        made.tasks[task] |= {"n": len(columns["value"]), "version": 1.0, "num_fewshot": 0, "items_hash": "h"} | entry
        made.tasks[task] |= {"items_digest": record.digest_of(items[task])}
        made.tasks[task]["others"] = {
            name: {
                "value": float(np.mean([v for v in column if v is not None])),
                "higher_is_better": True,
                "stderr": 0.1,
            }
            for name, column in columns.items()
            if name not in ("value", "weight")
        }
    record.write_items(path, items)
    record.write(made, path)
    return path


def binary(rng, n, p):
    return rng.binomial(1, p, n).astype(float)


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 3), (12, 4), (0, 9), (230, 180)])
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    base = np.array([0.0] * gained + [1.0] * lost + [1.0] * 50)
    tuned = np.array([1.0] * gained + [0.0] * lost + [1.0] * 50)
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(base, tuned) == pytest.approx(expected, abs=1e-12)


def test_sign_flip_equals_scipy_exactly_when_small_and_closely_when_large():
    rng = np.random.default_rng(1)
    for n, resamples, tolerance in ((9, 10_000, 1e-12), (60, 10_000, 0.01)):
        difference, weight = rng.normal(0.3, 1, n), rng.integers(20, 300, n).astype(float)
        expected = stats.permutation_test(
            (difference * weight,), np.sum, permutation_type="samples", n_resamples=100_000, rng=0
        ).pvalue
        assert sign_flip(difference, weight, resamples, rng) == pytest.approx(expected, abs=tolerance)


def test_bootstrap_interval_is_that_of_scipy_and_of_theory():
    rng = np.random.default_rng(2)
    difference = rng.normal(0.1, 0.5, 400)
    drawn = bootstrap(difference, np.ones(400), 10_000, rng)
    theirs = stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=10_000, rng=0).confidence_interval
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx(list(theirs), abs=0.004)
    assert drawn.std() == pytest.approx(stats.sem(difference), rel=0.03)


def test_bootstrap_keeps_weights_with_their_items():
    difference, weight = np.array([1.0, 0.0, -1.0]), np.array([5.0, 1.0, 1.0])
    rng = np.random.default_rng(3)
    picks = rng.integers(0, 3, (40_000, 3))
    plain = (difference[picks] * weight[picks]).sum(1) / weight[picks].sum(1)
    drawn = bootstrap(difference, weight, 40_000, rng)
    assert drawn.mean() == pytest.approx(plain.mean(), abs=0.01)
    assert drawn.std() == pytest.approx(plain.std(), abs=0.01)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_of_1000_null_pairs_at_most_6_percent_are_called_clear():
    rng = np.random.default_rng(4)
    binary_calls = permutation_calls = family_calls = 0
    for _ in range(1000):
        item = rng.uniform(0.2, 0.8, 300)  # items differ in difficulty, the two models do not
        ps = [mcnemar(binary(rng, 300, item), binary(rng, 300, item)) for _ in range(4)]
        binary_calls += ps[0] < 0.05
        family_calls += min(holm(ps)) < 0.05
        skewed = rng.exponential(1, 60) * rng.choice([-1, 1], 60)
        permutation_calls += sign_flip(skewed, rng.integers(40, 400, 60).astype(float), 1000, rng) < 0.05
    assert binary_calls <= 60
    assert family_calls <= 60
    assert 30 <= permutation_calls <= 60


def test_known_effects_are_found_at_the_expected_power():
    rng = np.random.default_rng(5)
    # 30% of 800 items change their score; of these 60% for the better: a true gain of 0.06.
    found = 0
    for _ in range(400):
        changed = rng.binomial(800, 0.3)
        gained = rng.binomial(changed, 0.6)
        scores = np.repeat([[0.0, 1.0], [1.0, 0.0]], [gained, changed - gained], axis=0)
        found += mcnemar(scores[:, 0], scores[:, 1]) < 0.05
    n = 240
    low = stats.binom.ppf(0.025, n, 0.5)
    expected = stats.binom.cdf(low - 1, n, 0.6) + stats.binom.sf(n - low, n, 0.6)
    assert found / 400 == pytest.approx(expected, abs=0.05)
    # A mean difference of half a standard deviation over 40 items: the power of the t test is 0.87.
    found = sum(sign_flip(rng.normal(0.5, 1, 40), np.ones(40), 1000, rng) < 0.05 for _ in range(400))
    shift = 0.5 * math.sqrt(40)
    expected = stats.nct.sf(stats.t.ppf(0.975, 39), 39, shift)
    assert found / 400 == pytest.approx(expected, abs=0.05)


def test_interval_covers_the_true_difference():
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(400):
        difference = rng.choice([-1.0, 0.0, 1.0], 500, p=[0.1, 0.75, 0.15])
        low, high = np.quantile(bootstrap(difference, np.ones(500), 1000, rng), [0.025, 0.975])
        covered += low <= 0.05 <= high
    assert covered / 400 == pytest.approx(0.95, abs=0.03)


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    """A base and a tuned record: clearly better on arc, equal on hellaswag, fewer bits per byte, more rhymes."""
    rng = np.random.default_rng(7)
    base, same = binary(rng, 400, 0.4), binary(rng, 300, 0.5)
    better = np.maximum(base, binary(rng, 400, 0.2))
    bits, weight = rng.normal(2.0, 0.3, 50), rng.integers(60, 500, 50)
    rhyme = [None if i % 3 else i / 50 for i in range(50)]

    def tasks(arc, bits, rhyme):
        return {
            "arc_challenge": ("acc_norm", True, {"value": arc.tolist()}),
            "hellaswag": ("acc_norm", True, {"value": same.tolist()}),
            "poetry_verses": ("bits_per_byte", False, {"value": bits.tolist(), "weight": weight.tolist()}),
            "poetry_form": ("keeps", True, {"value": [0.25] * 50, "rhyme": rhyme}),
        }

    first = write(tmp_path / "base.json", tasks(base, bits, rhyme))
    second = write(
        tmp_path / "tuned.json", tasks(better, bits - 0.2, [r if r is None else r + 0.1 + r / 10 for r in rhyme])
    )
    return first, second


def test_a_comparison_says_what_is_clear_of_noise(pair):
    result = compare(list(pair))
    rows = {row.task: row for row in result.rows}
    assert [rows[task].verdict for task in ("arc_challenge", "hellaswag", "poetry_verses", "poetry_form")] == [
        "clear of noise",
        "within noise",
        "clear of noise",
        "within noise",
    ]
    assert rows["arc_challenge"].test == "exact McNemar"
    assert rows["poetry_verses"].test == "sign-flip permutation"
    assert rows["poetry_verses"].difference == pytest.approx(-0.2)
    assert rows["poetry_verses"].low == pytest.approx(-0.2)
    assert all(row.low <= row.difference + 1e-9 and row.difference - 1e-9 <= row.high for row in result.rows)
    (mean,) = result.means
    assert mean.tasks == ("arc_challenge", "hellaswag")
    assert mean.difference == pytest.approx(rows["arc_challenge"].difference / 2)
    assert mean.low < mean.difference < mean.high
    (rhyme,) = result.others
    assert (rhyme.metric, rhyme.n, rhyme.verdict, rhyme.p_holm) == ("rhyme", 17, "", None)
    assert rhyme.p < 0.001


def test_the_table_and_the_json_hold_every_row(pair):
    result = compare(list(pair))
    table = result.table()
    for words in ("zero-shot", "fp32", "better, clear of noise", "within noise", "lower is better", "Mean difference"):
        assert words in table
    assert "worse" not in table
    assert len(json.loads(json.dumps(result.as_dict()))["rows"]) == 4
    assert compare(list(pair)) == result  # seeded


def test_a_record_compared_with_itself_is_within_noise(pair):
    result = compare([pair[0], pair[0], pair[0]])
    assert len(result.rows) == 8
    assert {(row.difference, row.low, row.high, row.p, row.verdict) for row in result.rows} == {
        (0.0, 0.0, 0.0, 1.0, "within noise")
    }


def test_tasks_of_one_record_alone_are_named(tmp_path):
    scores = ("acc", True, {"value": [0.0, 1.0]})
    first = write(tmp_path / "a.json", {"arc_challenge": scores, "hellaswag": scores})
    second = write(tmp_path / "b.json", {"arc_challenge": scores})
    result = compare([first, second])
    assert [row.task for row in result.rows] == ["arc_challenge"]
    assert "left out: hellaswag" in result.table()


ONE = {"arc_challenge": ("acc_norm", True, {"value": [0.0, 1.0, 1.0]})}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"settings": SETTINGS | {"precision": "bf16"}}, r"precision \(fp32 and bf16\)"),
        ({"settings": SETTINGS | {"limit": 10}}, r"limit \(None and 10\)"),
        ({"versions": VERSIONS | {"lm_eval": "0.4.12"}}, r"version of lm_eval \(0.4.13 and 0.4.12\)"),
        ({"items_hash": "other"}, "arc_challenge's items_hash"),
        ({"version": 2.0}, r"arc_challenge's version \(1.0 and 2.0\)"),
        ({"chat_template_sha256": "x"}, "arc_challenge's chat_template"),
    ],
)
def test_records_made_otherwise_are_refused_and_the_difference_named(tmp_path, changed, said):
    first, second = write(tmp_path / "a.json", ONE), write(tmp_path / "b.json", ONE, **changed)
    with pytest.raises(InputError, match=said):
        compare([first, second])


def test_what_is_no_finished_evaluation_is_refused(tmp_path):
    good = write(tmp_path / "a.json", ONE)
    with pytest.raises(InputError, match="at least two"):
        compare([good])
    with pytest.raises(InputError, match="record of training"):
        compare([good, write(tmp_path / "b.json", ONE, kind="training")])
    with pytest.raises(InputError, match="stopped"):
        compare([good, write(tmp_path / "c.json", ONE, status="stopped")])
    with pytest.raises(InputError, match="no record"):
        compare([good, tmp_path / "absent.json"])
    with pytest.raises(InputError, match="no task in common"):
        compare([good, write(tmp_path / "d.json", {"hellaswag": ONE["arc_challenge"]})])


def test_a_record_or_items_edited_by_hand_are_refused(tmp_path):
    first, second = write(tmp_path / "a.json", ONE), write(tmp_path / "b.json", ONE)
    items = record.read_items(second)
    items["arc_challenge"]["value"] = [1.0, 1.0, 1.0]
    record.write_items(second, items)
    with pytest.raises(InputError, match="does not belong"):
        compare([first, second])
    second.write_text(second.read_text().replace('"value": 0.66', '"value": 0.96'))
    with pytest.raises(InputError, match="changed after it was written"):
        compare([first, second])
