"""What a student is compared with its teacher by: pure functions of tensors, each a sum or a mean that carries gradients.

Divergences of logits are sums over rows, as losses are; comparisons of features are means, relative to the teacher's size, so
that layers of any width and scale weigh alike.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# -- logits -------------------------------------------------------------------------------------------------------


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """sum over rows of KL(p || q), p = softmax(teacher / T), q = softmax(student / T).

    It asks the student to cover all that the teacher holds possible.

    Args:
        student, teacher: [n, classes] logits.
        temperature: T > 0.

    >>> float(forward_kl(torch.zeros(2, 3), torch.zeros(2, 3)))
    0.0

    Source: "Distilling the Knowledge in a Neural Network", Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
    """
    return _kl(torch.log_softmax(teacher / temperature, -1), torch.log_softmax(student / temperature, -1))


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """sum over rows of KL(q || p): the student may leave out what it cannot hold, and settles on the teacher's peaks.

    Arguments as those of `forward_kl`.

    >>> p, q = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    >>> torch.equal(reverse_kl(q, p), forward_kl(p, q))
    True

    Source: "MiniLLM", Gu et al. 2023, arXiv:2306.08543.
    """
    return _kl(torch.log_softmax(student / temperature, -1), torch.log_softmax(teacher / temperature, -1))


def jsd(student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """sum over rows of the generalized Jensen-Shannon divergence.

        JSD = beta KL(p || m) + (1 - beta) KL(q || m),      m = beta p + (1 - beta) q

    As published: at both ends of beta it goes to 0, JSD / beta to the forward KL at 0, JSD / (1 - beta) to the reverse
    KL at 1. Those have names of their own.

    Args:
        student, teacher, temperature: as those of `forward_kl`.
        beta: in (0, 1).

    >>> bool(jsd(torch.tensor([[9.0, -9.0]]), torch.tensor([[-9.0, 9.0]])) <= torch.tensor(2.0).log())
    True

    Source: "On-Policy Distillation of Language Models" (GKD), Agarwal et al. 2023, arXiv:2306.13649, equation 1.
    """
    log_p, log_q = torch.log_softmax(teacher / temperature, -1), torch.log_softmax(student / temperature, -1)
    shares = torch.tensor([beta, 1 - beta], dtype=log_p.dtype, device=log_p.device).log()
    log_m = torch.logaddexp(log_p + shares[0], log_q + shares[1])
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def sampled_kl(student: Tensor, drawn: Tensor, temperature: float = 1.0) -> Tensor:
    """sum over rows of the cross entropy with K draws from the teacher, which differs from the forward KL by a constant.

        -1/K sum_k log q(y_k),      y_k ~ p

    Its expectation, and its gradient's, are those of the cross entropy with the whole p: a cache of draws is unbiased where
    one of the K largest probabilities is not.

    Args:
        student: [n, classes] logits.
        drawn: [n, K] classes, from `draw`.
        temperature: T > 0, the one that they were drawn at.

    >>> float(sampled_kl(torch.zeros(1, 4), torch.tensor([[1, 3]])).exp())
    4.0

    Source: "Sparse Logit Sampling", Anshumann et al. 2025, arXiv:2503.16870.
    """
    return -torch.log_softmax(student / temperature, -1).gather(1, drawn.long()).mean(1).sum()


def draw(teacher: Tensor, count: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """K classes a row, drawn from softmax(teacher / T) with replacement: [n, K] int32.

    Args:
        teacher: [n, classes] logits.
        count: K.
        temperature: T > 0.
        generator: of the draws.

    >>> draw(torch.tensor([[0.0, 99.0]]), 3).tolist()
    [[1, 1, 1]]
    """
    p = torch.softmax(teacher.float() / temperature, -1)
    return torch.multinomial(p, count, replacement=True, generator=generator).int()


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum p log(p / q); nothing where p is 0, be q what it may."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum()


# -- embeddings ---------------------------------------------------------------------------------------------------


def embedding_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of 1 - cos(s_i, t_i): each vector should point where the teacher's does.

    Args:
        student, teacher: [n, width].

    >>> float(embedding_distance(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])))
    1.0
    """
    return _mean(1 - F.cosine_similarity(student, teacher, dim=-1))


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over pairs of (cos(s_i, s_j) - cos(t_i, t_j))^2: examples should be as alike to each other as they are to the teacher.

    Widths may differ: only similarities are compared.

    Args:
        student: [n, width].
        teacher: [n, any width].

    >>> x = torch.randn(4, 3)
    >>> float(similarity_distance(torch.cat([x, 0 * x], 1), x)) < 1e-10
    True

    Source: "Similarity-Preserving Knowledge Distillation", Tung and Mori 2019, arXiv:1907.09682; of cosines, as in
    "Relational Knowledge Distillation", Park et al. 2019, arXiv:1904.05068.
    """
    s, t = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return _mean((s @ s.t() - t @ t.t()).square())


# -- features -----------------------------------------------------------------------------------------------------


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """sum (s - t)^2 / sum t^2: the squared distance relative to the teacher's size, 1 for a student that gives nothing.

    Args:
        student: [n, width], projected to the teacher's width where its own is another.
        teacher: [n, width].

    >>> float(feature_distance(torch.zeros(2, 3), torch.ones(2, 3)))
    1.0

    Source: "FitNets", Romero et al. 2014, arXiv:1412.6550, equation 3; the division makes layers weigh alike.
    """
    return (student - teacher).square().sum() / teacher.square().sum().clamp(min=1e-12)


def attention_map_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images of |a(s)/|a(s)| - a(t)/|a(t)||^2, a = the mean square over channels: where a network looks.

    Args:
        student: [batch, channels, height, width].
        teacher: likewise, of any number of channels.

    >>> x = torch.rand(2, 3, 4, 4)
    >>> float(attention_map_distance(2 * x, x)) < 1e-10
    True

    Source: "Paying More Attention to Attention", Zagoruyko and Komodakis 2016, arXiv:1612.03928, equation 2.
    """
    s, t = (F.normalize(x.square().mean(1).flatten(1), dim=1) for x in (student, teacher))
    return _mean((s - t).square().sum(1))


def attention_relation_distance(student: Tensor, teacher: Tensor, valid: Tensor, heads: int) -> Tensor:
    """Mean over heads and valid places of KL(r(t) || r(s)), r(x) = softmax(x x^T / sqrt(d)) over valid places of a head.

    How each place of queries, keys or values relates to all others. Widths and numbers of heads of the models may
    differ: both are cut into ``heads`` heads of relation.

    Args:
        student: [batch, tokens, width].
        teacher: [batch, tokens, any width].
        valid: [batch, tokens] bool.
        heads: that divide both widths.

    >>> x, all = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    >>> abs(float(attention_relation_distance(x, x, all, 2))) < 1e-6
    True

    Source: "MiniLMv2", Wang et al. 2020, arXiv:2012.15828, section 3.1.
    """
    log_s, log_t = (_relation(x, valid, heads) for x in (student, teacher))
    p = log_t.exp()
    rows = torch.where(p > 0, p * (log_t - log_s), 0.0).sum(-1).movedim(1, -1)[valid]
    return _mean(rows)


def _relation(x: Tensor, valid: Tensor, heads: int) -> Tensor:
    parts = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5
    # Not -inf: 0 times the difference of two infinities would be NaN.
    return torch.log_softmax(scores.masked_fill(~valid[:, None, None, :], -1e9), -1)


def _mean(x: Tensor) -> Tensor:
    """0 of nothing: an all-masked part of a batch teaches nothing."""
    return x.mean() if x.numel() else x.sum()
