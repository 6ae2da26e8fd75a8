"""The metrics by hand, and beside scikit-learn."""

import re
from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import strategies as st

from xception_jax.training import metrics, sharding
from xception_jax.training.class_report import ClassReport


@pytest.mark.parametrize("k", [1, 5])
def test_in_top_agrees_with_sorting(k):
    rng = np.random.default_rng(1)
    logits = rng.integers(0, 6, (200, 20)).astype(np.float32)  # many ties
    labels = rng.integers(0, 20, 200)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    expected = (best == labels[:, None]).any(1)
    found = metrics.topk_correct(k, jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_array_equal(found, expected)


def test_a_model_that_diverged_is_never_right():
    logits = jnp.asarray([[jnp.nan] * 3, [0.0, jnp.nan, 1.0], [1.0, jnp.inf, 0.0]])
    found = metrics.topk_correct(5, logits, jnp.asarray([0, 2, 1]))
    np.testing.assert_array_equal(found, [0, 0, 0])


def test_few_classes_are_all_in_the_top_five():
    logits = jnp.asarray([[0.3, 0.1, 0.2]])
    np.testing.assert_array_equal(metrics.topk_correct(5, logits, jnp.asarray([1])), [1])


MULTILABEL = jax.jit(metrics.sums)
AVERAGE_PRECISION = jax.jit(metrics.average_precision, static_argnums=0)


def pictures(seed, count, classes):
    """Logits without ties, and labels; some pictures have none."""
    rng = np.random.default_rng(seed)
    logits = rng.permutation(count * classes).reshape(count, classes) / (count * classes) - 0.6
    labels = rng.random((count, classes)) < rng.choice([0.0, 0.1, 0.6], (count, 1))
    return np.float32(logits), labels


def average_precision(k, logits, positives):
    """Of one picture, prediction by prediction."""
    best = sorted(range(len(logits)), key=lambda c: -logits[c])[:k]
    right, total = 0, 0.0
    for place, prediction in enumerate(best, start=1):
        if positives[prediction]:
            right += 1
            total += right / place
    return total / max(1, min(k, positives.sum()))


@pytest.mark.parametrize(("classes", "ranks"), [(19, (1,)), (20, (1, 5))])
def test_the_metrics_of_one_label_agree_with_scikit_learn(classes, ranks):
    """Rows that are masked count nowhere, neither in the sums nor among the examples."""
    rng = np.random.default_rng(0)
    logits, labels = np.float32(rng.standard_normal((40, classes))), rng.integers(0, classes, 40)
    mask = np.float32(np.arange(40) % 4 > 0)
    sums = jax.device_get(MULTILABEL(logits, {"label": labels, "mask": mask}))
    assert sums.keys() == {"examples", *(f"top{k}" for k in ranks)}
    assert sums["examples"] == 30
    found = metrics.means({**sums, "loss": np.float32(60)})
    expected = {
        f"top{k}": sklearn.metrics.top_k_accuracy_score(
            labels[mask > 0], logits[mask > 0], k=k, labels=np.arange(classes)
        )
        for k in ranks
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {**expected, "loss": 2.0}, rel=1e-6
    )


@hypothesis.given(seed=st.integers(0, 2**32 - 1), k=st.sampled_from((1, 3, 100)))
@hypothesis.settings(max_examples=25, deadline=None)
def test_average_precision_by_hand(seed, k):
    logits, labels = pictures(seed, 5, 12)
    found = AVERAGE_PRECISION(k, logits, labels)
    expected = [average_precision(k, *picture) for picture in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_multilabel_metrics_agree_with_scikit_learn(seed):
    """With all classes it is the label ranking average precision, except without labels."""
    logits, labels = pictures(seed, 30, 12)
    mask = np.float32(np.arange(30) < 27)
    batch = {"labels": jnp.asarray(labels, jnp.uint8), "mask": jnp.asarray(mask)}
    sums = jax.device_get(MULTILABEL(jnp.asarray(logits), batch))
    found = metrics.means(sums)
    logits, labels = logits[:27], labels[:27]
    labelled = labels.any(1)
    assert 0 < labelled.sum() < 27
    options = {"average": "micro", "zero_division": 0}
    assert {name: float(value) for name, value in found.items()} == pytest.approx({
        "map": sklearn.metrics.label_ranking_average_precision_score(
            labels[labelled], logits[labelled]
        ),
        "precision": sklearn.metrics.precision_score(labels, logits > 0, **options),
        "recall": sklearn.metrics.recall_score(labels, logits > 0, **options),
    }, rel=1e-5)  # fmt: skip
    assert sums["examples"] == 27


def test_more_classes_than_predictions():
    """A label at rank 100 counts, one at rank 101 does not."""
    logits = np.tile(-np.arange(130, dtype=np.float32), (3, 1))
    labels = np.zeros((3, 130), np.uint8)
    labels[0, 99], labels[1, 100], labels[2, :] = 1, 1, 1
    sums = MULTILABEL(logits, {"labels": labels, "mask": np.ones(3, np.float32)})
    assert float(metrics.means(sums)["map"]) == pytest.approx((1 / 100 + 0 + 1) / 3)


def test_nothing_to_count_is_zero():
    batch = {"labels": np.zeros((30, 12), np.uint8), "mask": np.ones(30, np.float32)}
    sums = MULTILABEL(-np.ones((30, 12), np.float32), batch)
    expected = {"map": 0, "precision": 0, "recall": 0}
    assert jax.jit(metrics.means)(sums) == expected
    assert metrics.means({name: float(value) for name, value in sums.items()}) == expected


def test_counts_are_whole_numbers():
    """A batch has more pairs of image and class than the 2^24 that a float32 counts to."""
    batch = {"labels": jnp.ones((2, 12), jnp.uint8), "mask": jnp.ones(2)}
    sums = jax.eval_shape(metrics.sums, jnp.ones((2, 12)), batch)
    counted = ("predictions", "positives", "precision", "recall", "labelled", "examples")
    assert {sums[name].dtype for name in counted} == {np.dtype("int32")}


def test_a_model_that_diverged_has_no_precision():
    logits = jnp.asarray([[jnp.nan, 1.0, 0.0], [2.0, 1.0, 0.0]])
    positive = jnp.asarray([[False, True, False], [True, False, False]])
    np.testing.assert_array_equal(metrics.average_precision(3, logits, positive), [0, 1])


def test_multilabel_metrics_move_no_logits_between_devices():
    logits, labels = pictures(0, 16, 120)
    cut = sharding.by_example(sharding.make_mesh(8))
    batch = {"labels": np.uint8(labels), "mask": np.ones(16, np.float32)}
    there, spread = jax.device_put((jnp.asarray(logits), batch), cut)
    sums = jax.jit(partial(metrics.sums, mesh=cut.mesh))
    program = sums.lower(there, spread).compile()
    assert "all-reduce" in program.as_text()
    assert not {"all-gather", "all-to-all", "collective-permute"} & set(
        re.findall(r" ([a-z-]+)\(", program.as_text())
    )
    one = jax.device_get(MULTILABEL(jnp.asarray(logits), batch))
    eight = jax.device_get(program(there, spread))
    assert {k: float(v) for k, v in eight.items()} == pytest.approx(
        {k: float(v) for k, v in one.items()}, rel=1e-6
    )


@pytest.mark.parametrize("classes", [30, metrics.MATRIX_CLASSES, metrics.MATRIX_CLASSES + 1])
def test_counts_of_each_class_with_and_without_a_matrix(classes):
    """Of so many classes that a matrix would take too much memory, there is none."""
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(64, classes)).astype(np.float32)
    labels = rng.integers(0, 9, 64)
    logits[::3, :9] += 9
    batch = {"label": jnp.asarray(labels), "mask": jnp.asarray(np.arange(64) < 60, np.float32)}
    found = jax.jit(metrics.class_sums)(logits, batch)
    assert ("confusion" in found) == (classes <= metrics.MATRIX_CLASSES)
    report = ClassReport.of(tuple(map(str, range(classes))), found)
    best, labels = logits[:60].argmax(1), labels[:60]
    for counted, expected in (
        (report.images, labels), (report.predicted, best), (report.right, best[labels == best]),
    ):  # fmt: skip
        np.testing.assert_array_equal(counted, np.bincount(expected, minlength=classes))
    assert report.right.sum() > 0


def test_no_count_of_many_classes_is_a_matrix():
    """Each batch of 21,841 classes would make one of 1.9 GB."""
    classes = 21_841
    batch = {"label": jax.ShapeDtypeStruct((8,), jnp.int32),
             "mask": jax.ShapeDtypeStruct((8,), jnp.float32)}  # fmt: skip
    logits = jax.ShapeDtypeStruct((8, classes), jnp.float32)
    found = jax.eval_shape(metrics.class_sums, logits, batch)
    assert {each.shape for each in found.values()} == {(classes,)}
