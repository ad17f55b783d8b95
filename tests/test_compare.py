"""The statistics against scipy and by simulation; what may be compared and what may not."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from evaluations import SETTINGS, VERSIONS, write
from scipy import stats

from iris import InputError, record
from iris.compare import bootstrap, compare, holm, paired, sign_flip


def binary(rng, n, p):
    return rng.binomial(1, p, n).astype(float)


def mcnemar(base, tuned):
    """p of two (n,) columns of 0 and 1."""
    return paired(({"value": base}, {"value": tuned}), "value", 1, np.random.default_rng(0))[0]["p"]


# --- statistics ------------------------------------------------------------------------------------------------------


def test_sign_flip_equals_scipy_exactly_when_small_and_closely_when_large():
    rng = np.random.default_rng(1)
    for n, resamples, tolerance in ((9, 10_000, 1e-12), (60, 10_000, 0.01)):
        difference, weight = rng.normal(0.3, 1, n), rng.integers(20, 300, n).astype(float)
        given = {"permutation_type": "samples", "n_resamples": 100_000, "rng": 0}
        expected = stats.permutation_test((difference * weight,), np.sum, **given).pvalue
        assert sign_flip(difference, weight, resamples, rng) == pytest.approx(expected, abs=tolerance)


def test_bootstrap_interval_is_that_of_scipy_and_of_theory():
    rng = np.random.default_rng(2)
    difference = rng.normal(0.1, 0.5, 400)
    drawn = bootstrap(difference, np.ones(400), 10_000, rng)
    theirs = stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=10_000, rng=0).confidence_interval
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx(list(theirs), abs=0.004)
    assert drawn.std() == pytest.approx(stats.sem(difference), rel=0.03)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


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
    assert binary_calls <= 60 and family_calls <= 60 and 30 <= permutation_calls <= 60


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
            "poetry_form": ("keeps", True, {"value": [0.25] * 50, "rhyme": rhyme}, {"parts": ["haiku", "sonnet"]}),
        }

    more = [r if r is None else r + 0.1 + r / 10 for r in rhyme]
    first = write(tmp_path / "base.json", tasks(base, bits, rhyme))
    return first, write(tmp_path / "tuned.json", tasks(better, bits - 0.2, more))


def test_a_comparison_says_what_is_clear_of_noise(pair):
    result = compare(list(pair))
    assert compare(list(pair)) == result  # seeded
    rows = {row.task: row for row in result.rows if row.verdict}
    verdicts = [rows[task].verdict for task in ("arc_challenge", "hellaswag", "poetry_verses", "poetry_form")]
    assert verdicts == ["better, clear of noise", "within noise", "better, clear of noise", "within noise"]
    assert rows["arc_challenge"].test == "exact McNemar"
    assert rows["poetry_verses"].test == "sign-flip permutation"
    assert [rows["poetry_verses"].difference, rows["poetry_verses"].low] == pytest.approx([-0.2, -0.2])
    assert all(row.low <= row.difference + 1e-9 and row.difference - 1e-9 <= row.high for row in result.rows)
    (mean,) = result.means
    assert mean.tasks == ("arc_challenge", "hellaswag") and mean.low < mean.difference < mean.high
    assert mean.difference == pytest.approx(rows["arc_challenge"].difference / 2)
    (rhyme,) = (row for row in result.rows if not row.verdict)
    assert (rhyme.metric, rhyme.n, rhyme.p_holm) == ("rhyme", 17, None) and rhyme.p < 0.001
    table = result.table()
    for words in ("fp32", "within noise", "lower is better", "Mean difference", "keeps of haiku, sonnet (higher is"):
        assert words in table
    assert "worse" not in table and len(json.loads(json.dumps(asdict(result)))["rows"]) == 5


def test_a_record_compared_with_itself_is_within_noise(pair):
    rows = [row for row in compare([pair[0], pair[0], pair[0]]).rows if row.verdict]
    assert len(rows) == 8
    assert {(row.difference, row.low, row.high, row.p, row.verdict) for row in rows} == {(0, 0, 0, 1, "within noise")}


ONE = {"arc_challenge": ("acc_norm", True, {"value": [0.0, 1.0, 1.0]})}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"settings": SETTINGS | {"precision": "bf16"}}, r"precision \(fp32 and bf16\)"),
        ({"settings": SETTINGS | {"limit": 10}}, r"limit \(None and 10\)"),
        ({"versions": VERSIONS | {"lm_eval": "0.4.12"}}, r"version of lm_eval \(0.4.13 and 0.4.12\)"),
        ({"items_hash": "other"}, "arc_challenge's items_hash"),
        ({"version": 2.0}, r"arc_challenge's version \(1.0 and 2.0\)"),
        ({"parts": ["haiku"]}, "arc_challenge's parts"),
        ({"model": {"config": "c"}}, r"the model's config \(a and c\)"),
        ({"model": {"tokenizer": "t"}}, "the model's tokenizer"),
        ({"model": {"template": "t"}}, "the model's template"),
        ({"model": {"digest": "1"}, "adapter": {"kind": "lora"}}, r"the model's digest \(0 and 1\)"),
    ],
)
def test_records_made_otherwise_are_refused_and_the_difference_named(tmp_path, changed, said):
    stated = {"config": "a", "tokenizer": "a", "template": "a"}
    first = write(tmp_path / "a.json", ONE, model=stated if changed.get("model", {}).keys() & stated else {})
    second = write(tmp_path / "b.json", ONE, **changed)
    with pytest.raises(InputError, match=said):
        compare([first, second])


def test_what_an_older_record_does_not_state_is_no_difference(tmp_path):
    older, newer = write(tmp_path / "a.json", ONE), write(tmp_path / "b.json", ONE, model={"config": "c"})
    assert compare([older, newer]).rows


def test_what_is_no_finished_evaluation_as_it_was_written_is_refused(tmp_path):
    good, edited = write(tmp_path / "a.json", ONE), write(tmp_path / "edited.json", ONE)
    items = record.read_items(edited)
    items["arc_challenge"]["value"] = [1.0, 1.0, 1.0]
    record.write_items(edited, items)
    for other, words in (
        (write(tmp_path / "b.json", ONE, kind="training"), "record of training"),
        (write(tmp_path / "c.json", ONE, status="stopped"), "stopped"),
        (write(tmp_path / "d.json", {"hellaswag": ONE["arc_challenge"]}), "none in common"),
        (edited, "does not belong"),
    ):
        with pytest.raises(InputError, match=words):
            compare([good, other])
