"""Draws that have derivatives, and densities: what ``torch.distributions`` computes of parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
import torch.distributions as td
from models.zoo.model import Model, Params, randn
from torch import Tensor

Make = Callable[[Tensor, Tensor], td.Distribution]


def of(make: Make, is_positive: bool = False, **facts: object) -> Callable[[], Model]:
    """Draw, and ask for densities at the draws and between them, and for entropies, where there are some.

    ``make`` gets two parameters, positive ones if it asks for them; the second is the input.
    """

    def build() -> Model:
        def call(p: Params, x: Tensor) -> Tensor:
            first, second = p["first"], x
            if is_positive:
                first, second = first.exp() + 0.3, second.exp() + 0.3
            distribution = make(first, second)
            drawn = distribution.rsample((2,))
            values = [drawn, distribution.log_prob(drawn), distribution.log_prob(drawn.mean(0))]
            with contextlib.suppress(NotImplementedError):
                values.append(distribution.entropy())
            return torch.cat([v.flatten() for v in values])

        params = {"first": randn(3, scale=0.4)}
        return Model(call, params, randn(3, scale=0.4), draws=True, **facts)

    return build


def positive(make: Make) -> Callable[[], Model]:
    return of(make, is_positive=True)


def by_rejection(make: Make, **facts: object) -> Callable[[], Model]:
    """What is drawn by rejection: PyTorch knows the first derivative of the draws alone."""
    return of(make, is_positive=True, order=1, is_smooth=False, **facts)


OFF = {
    "validate_args": False
}  # what is checked is whether all values are allowed, which vmap refuses


def several() -> Model:
    """Normal draws with a full covariance, of low rank, transformed, and relaxed ones of classes and of bits."""

    def call(p: Params, x: Tensor) -> Tensor:
        factor = p["factor"].tril(-1) + p["factor"].diagonal().exp().diag()
        full = td.MultivariateNormal(x, scale_tril=factor, **OFF)
        low = td.LowRankMultivariateNormal(x, p["factor"][:, :1], p["first"].exp(), **OFF)
        bounded = td.TransformedDistribution(
            td.Normal(x, p["first"].exp(), **OFF),
            [td.SigmoidTransform(), td.AffineTransform(1.0, 2.0)],
            **OFF,
        )
        classes = td.RelaxedOneHotCategorical(x.new_tensor(0.7), logits=x, **OFF)
        bits = td.RelaxedBernoulli(x.new_tensor(0.6), logits=p["first"], **OFF)
        other = td.MultivariateNormal(x.cos(), factor @ factor.mT + factor.diagonal().diag(), **OFF)
        values = [td.kl_divergence(full, other)[None]]
        for distribution in (full, low, bounded, classes, bits):
            drawn = distribution.rsample()
            values += [drawn.flatten(), distribution.log_prob(drawn).flatten()]
        return torch.cat(values)

    params = {"factor": randn(3, 3, scale=0.4), "first": randn(3, scale=0.4)}
    return Model(call, params, randn(3), draws=True)


def densities() -> Model:
    """Densities of mixtures, counts, angles and matrices; divergences. All arguments are checked."""

    def call(p: Params, x: Tensor) -> Tensor:
        weights, scale = td.Categorical(logits=p["weights"]), p["scale"].exp()
        mixture = td.MixtureSameFamily(weights, td.Normal(p["mean"], scale))
        count = torch.arange(3, dtype=x.dtype)
        values = [
            mixture.log_prob(x),
            mixture.mean[None],
            weights.entropy()[None],
            td.Poisson(x.exp()).log_prob(count),
            td.NegativeBinomial(scale, logits=x).log_prob(count),
            td.Binomial(4, logits=x).log_prob(count),
            td.VonMises(p["mean"], scale).log_prob(x),
            td.StudentT(scale + 1, p["mean"], scale).log_prob(x),
            td.Dirichlet(scale).log_prob(x.softmax(0))[None],
            td.ContinuousBernoulli(logits=p["mean"] + 2).log_prob(x.sigmoid()),
            td.kl_divergence(td.Gamma(scale, x.exp()), td.Gamma(x.exp(), scale)),
            td.kl_divergence(td.Beta(scale, x.exp()), td.Beta(x.exp(), scale)),
            td.kl_divergence(td.Laplace(x, scale), td.Laplace(p["mean"], x.exp())),
            td.Wishart(torch.tensor(4.0, dtype=x.dtype), scale.diag()).log_prob(
                x.exp().diag() + 0.1
            )[None],
        ]
        return torch.cat(values)

    params = {name: randn(3, scale=0.4) for name in ("weights", "mean", "scale")}
    return Model(call, params, randn(3), has_vmap=False)


MODELS = {
    "normal": of(lambda a, b: td.Normal(a, b.exp(), **OFF)),
    "laplace": of(lambda a, b: td.Laplace(a, b.exp(), **OFF)),
    "cauchy": of(lambda a, b: td.Cauchy(a, b.exp(), **OFF)),
    "gumbel": of(lambda a, b: td.Gumbel(a, b.exp(), **OFF)),
    "uniform": of(lambda a, b: td.Uniform(a, a + b.exp() + 0.1, **OFF)),
    "log-normal": of(lambda a, b: td.LogNormal(a, b.exp(), **OFF)),
    "exponential": positive(lambda a, b: td.Exponential(a * b, **OFF)),
    "weibull": positive(lambda a, b: td.Weibull(a, b, **OFF)),
    "pareto": positive(lambda a, b: td.Pareto(a, b, **OFF)),
    "kumaraswamy": positive(lambda a, b: td.Kumaraswamy(a, b, **OFF)),
    "half-cauchy": positive(lambda a, b: td.HalfCauchy(a * b, **OFF)),
    "gamma": by_rejection(lambda a, b: td.Gamma(a, b, **OFF)),
    "inverse gamma": by_rejection(lambda a, b: td.InverseGamma(a, b, **OFF)),
    "beta": by_rejection(lambda a, b: td.Beta(a, b, **OFF), has_vmap=False),
    "dirichlet": by_rejection(lambda a, b: td.Dirichlet(a * b, **OFF), has_vmap=False),
    "chi-squared": by_rejection(lambda a, b: td.Chi2(a * b, **OFF), has_vmap=False),
    "student": by_rejection(lambda a, b: td.StudentT(a + 2, b, a, **OFF)),
    "fisher-snedecor": by_rejection(
        lambda a, b: td.FisherSnedecor(a, b + 4, **OFF), has_vmap=False
    ),
    "draws of several kinds": several,
    "densities": densities,
}
