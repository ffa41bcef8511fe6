"""Which targets a likelihood takes, what it ignores, and what it says of the rest."""

import pytest
import torch

from riemann_ng import likelihoods as lk
from riemann_ng.errors import InvalidTargets, RiemannError, ShapeMismatch

Z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGES = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TWO = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

REFUSED = [
    (lk.Categorical(), Z, torch.zeros(4), r"integer classes, got float32\[4\]\. Convert with \.long"),
    (lk.Categorical(), Z, torch.zeros(4, dtype=torch.bool), r"expected integer classes, got bool\[4\]"),
    (
        lk.Categorical(), Z, torch.zeros(5).long(),
        r"expected integer classes \[4\] or probabilities \[4, 3\] for outputs float64\[4, 3\], got int64\[5\]",
    ),
    (lk.Categorical(), Z, [0, 1, 2, 0], r"got list\. The classes are on axis -1"),
    (lk.Categorical(), Z, torch.tensor([0, 1, 3, 0]), r"classes are 0 to 2 \(or -100, ignored\), got 3\."),
    (lk.Categorical(), Z, torch.tensor([0, -1, 2, 0]), r"classes are 0 to 2 \(or -100, ignored\), got -1\."),
    (lk.Categorical(ignore_index=None), Z, torch.tensor([0, -100, 2, 0]), r"classes are 0 to 2, got -100\."),
    (lk.Categorical(), Z, Z, r"probabilities of the classes must not be negative, and sum to 1"),
    (lk.Categorical(), IMAGES, torch.zeros(2, 2, 2).long(), r"integer classes \[2, 3, 2\].*axis -1 of the outputs"),
    (lk.Bernoulli(), Z, 2 * torch.ones(4, 3), r"numbers in \[0, 1\], got values from 2 to 2\."),
    (
        lk.Bernoulli(), Z, torch.ones(4),
        r"Targets in Bernoulli\(\): expected numbers in \[0, 1\], shaped \[4, 3\] for outputs float64\[4, 3\], got",
    ),
    (lk.Bernoulli(), Z, torch.full((4, 3), torch.nan), r"expected numbers in \[0, 1\], got values from nan"),
    (lk.Gaussian(), Z, torch.full((4, 3), torch.inf), r"expected finite numbers, got NaN or infinity"),
    (lk.Gaussian(), Z, torch.ones(4, 3, dtype=torch.complex64), r"expected finite numbers, got complex64\[4, 3\]"),
    (lk.Poisson(), Z, -torch.ones(4, 3), r"expected counts, got values from -1 to -1 that are negative or no integers"),
    (lk.NegativeBinomial(1.0), Z, torch.full((4, 3), 0.5), r"got values from 0.5 to 0.5 that are negative or no"),
    (lk.GaussianMeanScale(), TWO, torch.ones(4, 2), r"shaped \[4, 1\] or \[4\] for outputs float64\[4, 2\], got"),
    (lk.GaussianMeanScale(), TWO, torch.full((4,), torch.nan), r"expected finite numbers, got NaN or infinity"),
    (lk.Gamma(), TWO, torch.zeros(4), r"expected positive numbers, got values that are not"),
    (lk.Beta(), TWO, torch.ones(4), r"expected numbers strictly between 0 and 1, got values that are not"),
    (lk.VonMises(), TWO, torch.full((4,), torch.inf), r"expected finite angles in radians, got NaN or infinity"),
]  # fmt: skip


@pytest.mark.parametrize(("likelihood", "z", "y", "message"), REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_wrong_targets_are_refused(likelihood, z, y, message):
    with pytest.raises(InvalidTargets, match=message):
        likelihood.validate(z, y)
    with pytest.raises(InvalidTargets, match=message):
        likelihood.loss(z, y)


@pytest.mark.parametrize(
    ("likelihood", "z", "y"),
    [
        (lk.Categorical(), Z, torch.tensor([0, 1, -100, 2])),
        (lk.Categorical(ignore_index=7), Z, torch.tensor([0, 1, 7, 2], dtype=torch.int32)),
        (lk.Categorical(), Z, Z.softmax(-1)),
        (lk.Categorical(dim=1), IMAGES, torch.zeros(2, 2, 2, dtype=torch.uint8)),
        (lk.Bernoulli(), Z, torch.full((4, 3), 0.3)),
        (lk.Bernoulli(), Z, torch.ones(4, 3, dtype=torch.bool)),
        (lk.Poisson(), Z, torch.ones(4, 3, dtype=torch.int64)),
        (lk.Gamma(), TWO, torch.ones(4)),
        (lk.Gamma(), TWO, torch.ones(4, 1)),
        (lk.Gaussian(torch.tensor([1.0, 2.0, 3.0])), Z, torch.ones(4, 3)),
    ],
)
def test_right_targets_are_taken(likelihood, z, y):
    likelihood.validate(z, y)
    assert likelihood.loss(z, y).isfinite()
    assert likelihood.score(z, y).shape == z.shape


@pytest.mark.parametrize(
    ("likelihood", "z", "message"),
    [
        (lk.Categorical(), Z[:0], r"the batch is empty: float64\[0, 3\]"),
        (lk.Categorical(), Z.long(), r"outputs are a floating-point tensor with examples first, got int64\[4, 3\]"),
        (lk.Categorical(), Z[:, 0], r"dim=-1 is no axis of float64\[4\] after the examples' axis 0"),
        (lk.Categorical(dim=2), Z, r"dim=2 is no axis of float64\[4, 3\]"),
        (lk.Categorical(dim=0), Z, r"dim=0 is no axis"),
        (lk.Gamma(), Z, r"axis -1 of float64\[4, 3\] must hold 2 parameters for each output.*3 is no multiple of 2"),
        (lk.Gaussian(torch.ones(2)), Z, r"a scale \[2\] does not broadcast over one example of float64\[4, 3\]"),
        (lk.EuclideanOutput(), Z[:0], r"ShapeMismatch in EuclideanOutput\(\): the batch is empty"),
    ],
)
def test_wrong_outputs_are_refused(likelihood, z, message):
    with pytest.raises(ShapeMismatch, match=message):
        likelihood.matrix(z)


def test_wrong_tangents_and_weights_are_refused():
    with pytest.raises(ShapeMismatch, match=r"Bernoulli\(\)\.apply: what belongs to outputs float64\[4, 3\] has"):
        lk.Bernoulli().apply(Z, Z[0])
    with pytest.raises(ShapeMismatch, match=r"one number per example and direction, \[4, 3\], got float64\[4, 2\]"):
        lk.Categorical().combine(Z, TWO)
    with pytest.raises(ShapeMismatch, match=r"2 class weights for the 3 classes of float64\[4, 3\]"):
        lk.Categorical(weight=torch.ones(2)).loss(Z, torch.zeros(4).long())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lk.Categorical(sites="all"), r"Categorical: sites is one of 'sum', 'mean', got 'all'"),
        (lambda: lk.Categorical(label_smoothing=1.0), r"label_smoothing lies in \[0, 1\), got 1.0"),
        (lambda: lk.Categorical(weight=torch.tensor([1.0, -1.0])), r"weight is one number per class, none negative"),
        (lambda: lk.Gaussian(0.0), r"Gaussian: scale must be positive, got 0.0"),
        (lambda: lk.NegativeBinomial(-1), r"NegativeBinomial: total_count must be positive, got -1"),
        (lambda: lk.EuclideanOutput(0.0), r"EuclideanOutput: scale must be positive, got 0.0"),
        (lambda: lk.FromDistribution(torch.distributions.Poisson, method="guess"), r"method is one of 'auto', 'kl'"),
    ],
)
def test_options_that_mean_nothing_are_refused(make, message):
    with pytest.raises(RiemannError, match=message):
        make()


def test_repr_is_the_call():
    said = [lk.Categorical(), lk.Categorical(dim=1, sites="mean"), lk.Gaussian(0.5), lk.NegativeBinomial(3.0)]
    assert list(map(repr, said)) == [
        "Categorical()", "Categorical(dim=1, sites='mean')", "Gaussian(scale=0.5)", "NegativeBinomial(total_count=3.0)",
    ]  # fmt: skip
    assert repr(lk.Categorical(weight=torch.tensor([1.0, 2.0]))) == "Categorical(weight=[1.0, 2.0])"
    assert repr(lk.FromDistribution(torch.distributions.Poisson)) == "FromDistribution(make=Poisson)"


# --- what is ignored --------------------------------------------------------------------------------------------------


def test_ignored_targets_weigh_nothing():
    likelihood = lk.Categorical(dim=1)
    y = torch.tensor([[[0, -100], [2, 1]], [[-100, -100], [-100, -100]]])
    mask = likelihood.mask(y)
    assert mask.tolist() == [[True, False, True, True], [False] * 4]
    score = likelihood.score(IMAGES, y)
    assert bool((score[:, :, 0, 1] == 0).all())
    assert bool((score[1] == 0).all())
    assert float(likelihood.nll(IMAGES, y)[1]) == 0
    kept = score.movedim(1, -1).reshape(2, 4, 3)[mask]
    assert float(kept.abs().sum(-1).min()) > 0


def test_nothing_ignored_is_no_mask():
    assert lk.Categorical().mask(torch.tensor([0, 1])) is None
    assert lk.Categorical(ignore_index=None).mask(torch.tensor([0, -100])) is None
    assert lk.Categorical().mask(Z.softmax(-1)) is None
    assert lk.Bernoulli().mask(Z) is None


def test_the_mean_over_sites_divides_loss_and_form_alike():
    y = torch.tensor([[[0, 1], [2, 1]], [[0, 0], [1, 2]]])
    total, mean = lk.Categorical(dim=1), lk.Categorical(dim=1, sites="mean")
    assert torch.allclose(mean.nll(IMAGES, y) * 4, total.nll(IMAGES, y))
    assert torch.allclose(mean.score(IMAGES, y) * 4, total.score(IMAGES, y))
    assert torch.allclose(mean.matrix(IMAGES) * 4, total.matrix(IMAGES))
    assert torch.allclose(mean.kl(IMAGES, -IMAGES) * 4, total.kl(IMAGES, -IMAGES))


def test_weights_scale_the_form_by_the_weight_expected_and_smoothing_leaves_it():
    weight = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    plain = lk.Categorical().matrix(Z)
    assert torch.equal(lk.Categorical(label_smoothing=0.4).matrix(Z), plain)
    expected = (Z.softmax(-1) @ weight)[:, None, None] * plain
    assert torch.allclose(lk.Categorical(weight=weight).matrix(Z), expected)
    assert torch.allclose(lk.Categorical(weight=3 * torch.ones(3)).matrix(Z), 3 * plain)


def test_a_scale_per_output_broadcasts():
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    likelihood = lk.Gaussian(scale)
    assert torch.equal(likelihood.matrix(Z), torch.diag_embed(scale.square().reciprocal().expand(4, 3)))
    y = likelihood.sample(Z, torch.Generator().manual_seed(0), 2)[1]
    by_torch = -torch.distributions.Normal(Z, scale).log_prob(y).sum(-1)
    assert torch.allclose(likelihood.nll(Z, y), by_torch)


def test_nll_and_score_work_under_vmap():
    y = torch.tensor([0, 1, -100, 2])
    likelihood = lk.Categorical()
    one = torch.func.vmap(lambda z, t: likelihood.nll(z[None], t[None])[0])(Z, y)
    assert torch.allclose(one, likelihood.nll(Z, y))
    slope = torch.func.vmap(torch.func.grad(lambda z, t: likelihood.nll(z[None], t[None])[0]))(Z, y)
    assert torch.allclose(slope, likelihood.score(Z, y))
    form = torch.func.vmap(lambda z, d: likelihood.apply(z[None], d[None])[0])(Z, Z.flip(0))
    assert torch.allclose(form, likelihood.apply(Z, Z.flip(0)))
    assert torch.allclose(torch.func.vmap(lambda z: likelihood.directions(z[None])[0])(Z), likelihood.directions(Z))
